//! The table against a model, with renames and hard links.

use super::*;
use proptest::prelude::*;
use std::collections::HashMap as Map;

const FILE: (FileKind, Option<LocalId>) = (FileKind::File, None);
const DIRECTORY: (FileKind, Option<LocalId>) = (FileKind::Directory, None);

fn file(ino: u64) -> (FileKind, Option<LocalId>) {
    (FileKind::File, Some(LocalId { dev: 1, ino }))
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

fn name(number: u8) -> Vec<u8> {
    format!("n{number}").into_bytes()
}

#[derive(Debug, Clone)]
enum Step {
    Lookup { name: u8, directory: bool },
    Forget { nth: usize, lookups: u64 },
    Remove { name: u8 },
    Rename { from: u8, to: u8, exchange: bool },
    Link { from: u8, to: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6, any::<bool>()).prop_map(|(name, directory)| Step::Lookup { name, directory }),
        4 => (0usize..64, 1u64..4).prop_map(|(nth, lookups)| Step::Forget { nth, lookups }),
        1 => (0u8..6).prop_map(|name| Step::Remove { name }),
        2 => (0u8..6, 0u8..6, any::<bool>()).prop_map(|(from, to, exchange)| Step::Rename { from, to, exchange }),
        1 => (0u8..6, 0u8..6).prop_map(|(from, to)| Step::Link { from, to }),
    ]
}

/// What the table must know: the lookups of the inodes that the kernel holds, and which one each name has.
#[derive(Default)]
struct Model {
    held: Map<u64, u64>,
    named: Map<u8, (u64, FileKind)>,
}

proptest! {
    #[test]
    fn it_agrees_with_a_model(steps in proptest::collection::vec(step(), 1..80)) {
        let table = InodeTable::new();
        let root = table.get(ROOT).unwrap();
        let mut model = Model::default();
        let mut used = std::collections::HashSet::from([ROOT]);
        for step in steps {
            match step {
                Step::Lookup { name: at, directory } => {
                    let kind = if directory { DIRECTORY } else { FILE };
                    let inode = table.remember(&root, &name(at), kind, None, 1);
                    match model.named.get(&at) {
                        Some((id, known)) if *known == kind.0 => prop_assert_eq!(inode.id, *id),
                        _ => prop_assert!(used.insert(inode.id), "a node id was used twice"),
                    }
                    model.named.insert(at, (inode.id, kind.0));
                    *model.held.entry(inode.id).or_default() += 1;
                }
                Step::Forget { nth, lookups } => {
                    let mut ids: Vec<_> = model.held.keys().copied().collect();
                    ids.sort_unstable();
                    if ids.is_empty() {
                        continue;
                    }
                    let id = ids[nth % ids.len()];
                    let left = model.held[&id].saturating_sub(lookups);
                    prop_assert_eq!(table.forget(id, lookups), left == 0);
                    if left == 0 {
                        model.held.remove(&id);
                        model.named.retain(|_, (named, _)| *named != id);
                    } else {
                        model.held.insert(id, left);
                    }
                }
                Step::Remove { name: at } => {
                    let removed = table.remove(&root, &name(at)).map(|inode| inode.id);
                    prop_assert_eq!(removed, model.named.remove(&at).map(|(id, _)| id));
                }
                Step::Rename { from, to, exchange } => {
                    if from == to {
                        continue;
                    }
                    table.rename((&root, &name(from)), (&root, &name(to)), exchange);
                    let (moved, other) = (model.named.remove(&from), model.named.remove(&to));
                    model.named.extend(moved.map(|moved| (to, moved)));
                    model.named.extend(other.filter(|_| exchange).map(|other| (from, other)));
                }
                Step::Link { from, to } => {
                    let Some(known) = table.find(ROOT, &name(from)) else { continue };
                    if model.named.contains_key(&to) || known.kind != FileKind::File {
                        continue;
                    }
                    let linked = table.remember(&root, &name(to), FILE, Some(&known), 1);
                    prop_assert_eq!(linked.id, known.id);
                    *model.held.entry(linked.id).or_default() += 1;
                    model.named.insert(to, (linked.id, FileKind::File));
                }
            }
            prop_assert_eq!(table.len(), model.held.len() + 1);
            for (id, count) in &model.held {
                let inode = table.get(*id).unwrap();
                prop_assert_eq!(inode.lookups(), *count);
                let names: Vec<_> = (0..6).filter(|at| model.named.get(at).is_some_and(|(named, _)| named == id)).collect();
                prop_assert_eq!(inode.is_nameless(), names.is_empty());
                if !names.is_empty() {
                    let shown = inode.path();
                    prop_assert!(names.iter().any(|at| shown.as_bytes() == name(*at)), "{:?} is at {:?}", shown, names);
                }
            }
            for at in 0..6 {
                let found = table.find(ROOT, &name(at)).map(|inode| inode.id);
                prop_assert_eq!(found, model.named.get(&at).map(|(id, _)| *id));
            }
        }
    }
}

#[test]
fn a_directory_takes_along_what_lies_below_it() {
    let table = InodeTable::new();
    let root = table.get(ROOT).unwrap();
    let a = table.remember(&root, b"a", DIRECTORY, None, 1);
    let b = table.remember(&a, b"b", DIRECTORY, None, 1);
    let f = table.remember(&b, b"f", FILE, None, 1);
    assert_eq!(f.path(), path("a/b/f"));
    table.rename((&root, b"a"), (&root, b"z"), false);
    assert_eq!((f.path(), b.path()), (path("z/b/f"), path("z/b")));
    table.rename((&a, b"b"), (&root, b"y"), false);
    assert_eq!(f.path(), path("y/f"));
    assert_eq!(table.find(b.id, b"f").map(|inode| inode.id), Some(f.id));
    table.rename((&root, b"y"), (&root, b"z"), true);
    assert_eq!((f.path(), a.path()), (path("z/f"), path("y")));
    table.remove(&b, b"f");
    assert!(f.is_nameless());
    assert_eq!(f.path(), path("z/f"), "where it was");
}

#[test]
fn what_moves_always_has_a_name() {
    let table = InodeTable::new();
    let root = table.get(ROOT).unwrap();
    let f = table.remember(&root, b"a", file(7), None, 1);
    let g = table.remember(&root, b"g", file(8), None, 1);
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20_000 {
                table.rename((&root, b"a"), (&root, b"b"), false);
                table.rename((&root, b"b"), (&root, b"g"), true);
                table.rename((&root, b"g"), (&root, b"a"), false);
                table.rename((&root, b"b"), (&root, b"g"), false);
            }
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            assert!(!f.is_nameless() && !g.is_nameless());
        }
    });
    assert_eq!((f.path(), g.path()), (path("a"), path("g")));
}

#[test]
fn a_name_for_another_file_is_not_given_to_the_one_that_is_known() {
    let table = InodeTable::new();
    let root = table.get(ROOT).unwrap();
    let a = table.remember(&root, b"a", file(7), None, 1);
    let b = table.remember(&root, b"b", file(8), Some(&a), 1);
    assert_ne!(a.id, b.id);
    assert_eq!(a.lookups(), 1);
}

#[test]
fn very_deep_paths_are_found() {
    let table = InodeTable::new();
    let mut at = table.get(ROOT).unwrap();
    for _ in 0..20_000 {
        at = table.remember(&at, b"d", DIRECTORY, None, 1);
    }
    assert_eq!(at.path().names().count(), 20_000);
}

#[test]
fn hard_links_are_one_inode_and_another_file_is_another() {
    let table = InodeTable::new();
    let root = table.get(ROOT).unwrap();
    let a = table.remember(&root, b"a", file(7), None, 1);
    let known = table.find_file(LocalId { dev: 1, ino: 7 }).unwrap();
    let b = table.remember(&root, b"b", file(7), Some(&known), 1);
    assert_eq!((a.id, a.lookups()), (b.id, 2));
    table.remove(&root, b"a");
    assert_eq!(b.path(), path("b"));
    let other = table.remember(&root, b"b", file(8), None, 1);
    assert_ne!(other.id, b.id);
    assert!(b.is_nameless());
    assert!(table.forget(b.id, 2));
    assert!(table.find_file(LocalId { dev: 1, ino: 7 }).is_none());
    assert_eq!(table.find(ROOT, b"b").unwrap().id, other.id);
}

#[test]
fn lookups_and_forgets_from_many_threads_add_up() {
    let table = InodeTable::new();
    let root = table.get(ROOT).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let inode = table.remember(&root, b"a", FILE, None, 1);
                    table.forget(inode.id, 1);
                }
            });
        }
    });
    assert!(table.find(ROOT, b"a").is_none());
    assert_eq!(table.len(), 1);
}

#[test]
fn the_root_is_never_forgotten() {
    let table = InodeTable::new();
    assert!(!table.forget(ROOT, 5));
    assert!(!table.forget(99, 1));
    let root = table.get(ROOT).unwrap();
    assert!(root.path().is_root() && !root.is_nameless());
}
