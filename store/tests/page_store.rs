//! The page store against a model: whatever is filled, evicted, lost in a crash or damaged on disk, each byte that it
//! gives is right, and what it says it holds it can give.

use common::{FileId, Version, worker::FileLease};
use proptest::prelude::*;
use std::{
    collections::HashSet,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};
use store::{DirOptions, PageStore, StoreOptions, Stored, StoredFile};

const PAGE: u64 = 4096;
const CAPACITY: u64 = 48;
/// Pages of the files, and the bytes by which their last page is short.
const FILES: [(u64, u64); 7] = [(1, 4095), (1, 0), (2, 1), (5, 100), (20, 0), (70, 7), (150, 4000)];
const VERSIONS: [&str; 2] = ["one", "two"];

fn size(file: usize) -> u64 {
    FILES[file].0 * PAGE - FILES[file].1
}

fn content(file: usize, version: usize, offset: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| {
        let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ ((file as u64) << 40 | (version as u64) << 20));
        (mixed >> 29) as u8
    };
    (offset..offset + len as u64).map(byte).collect()
}

#[derive(Debug, Clone)]
enum Damage {
    None,
    /// Overwrites bytes of a page file.
    Garbage {
        file: usize,
        at: u64,
        len: usize,
    },
    Truncate {
        file: usize,
        at: u64,
    },
    Remove {
        file: usize,
    },
    CutJournal {
        bytes: u64,
    },
    FlipJournal {
        at: u64,
    },
    RemoveJournal,
}

#[derive(Debug, Clone)]
enum Op {
    Fill { file: usize, version: usize, first: u64, count: u64 },
    Read { file: usize, version: usize, offset: u64, len: usize },
    Export { file: usize, version: usize },
    Release,
    Flush,
    Restart,
    Crash { flush: bool, damage: Damage },
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        Just(Damage::None),
        (0..14_usize, 0..200_000_u64, 1..9000_usize).prop_map(|(file, at, len)| Damage::Garbage { file, at, len }),
        (0..14_usize, 0..200_000_u64).prop_map(|(file, at)| Damage::Truncate { file, at }),
        (0..14_usize).prop_map(|file| Damage::Remove { file }),
        (1..600_u64).prop_map(|bytes| Damage::CutJournal { bytes }),
        (0..4000_u64).prop_map(|at| Damage::FlipJournal { at }),
        Just(Damage::RemoveJournal),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let file = || (0..FILES.len(), 0..VERSIONS.len());
    prop_oneof![
        8 => (file(), 0..150_u64, 1..12_u64)
            .prop_map(|((file, version), first, count)| Op::Fill { file, version, first, count }),
        8 => (file(), 0..620_000_u64, 1..20_000_usize)
            .prop_map(|((file, version), offset, len)| Op::Read { file, version, offset, len }),
        3 => file().prop_map(|(file, version)| Op::Export { file, version }),
        1 => Just(Op::Release),
        1 => Just(Op::Flush),
        1 => Just(Op::Restart),
        2 => (any::<bool>(), damage()).prop_map(|(flush, damage)| Op::Crash { flush, damage }),
    ]
}

struct World {
    dir: tempfile::TempDir,
    store: Option<Arc<PageStore>>,
    leases: Vec<(usize, usize, FileLease)>,
}

fn open(path: &Path) -> Arc<PageStore> {
    PageStore::open(StoreOptions {
        dirs: vec![DirOptions { path: path.to_owned(), capacity: CAPACITY * PAGE }],
        page_size: PAGE as u32,
        high_watermark: 1.0,
        low_watermark: 1.0,
        max_open_files: 4,
        ..StoreOptions::default()
    })
    .unwrap()
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(dir.path()));
        Self { dir, store, leases: Vec::new() }
    }

    fn store(&self) -> &Arc<PageStore> {
        self.store.as_ref().unwrap()
    }

    fn file(&self, file: usize, version: usize) -> Arc<StoredFile> {
        let name = format!("s3://b/{file}");
        let id = FileId::of(name.as_bytes());
        self.store().open_file(id, &Version::new(VERSIONS[version]), size(file), name.as_bytes()).unwrap()
    }

    fn present(&self) -> HashSet<(usize, usize, u64)> {
        let mut present = HashSet::new();
        for (file, (pages, _)) in FILES.iter().enumerate() {
            for version in 0..VERSIONS.len() {
                let stored = self.file(file, version);
                present.extend((0..*pages).filter(|page| stored.is_present(*page)).map(|page| (file, version, page)));
            }
        }
        present
    }

    fn check_leases(&self) {
        for (file, version, lease) in &self.leases {
            let mut bytes = vec![0; size(*file) as usize];
            lease.file().read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == content(*file, *version, 0, bytes.len()), "a lease's bytes changed");
        }
    }

    fn check_counts(&self) {
        let stats = self.store().stats();
        assert!(stats.used <= CAPACITY * PAGE, "{} bytes used", stats.used);
        let present = self.present();
        assert_eq!(stats.pages, present.len() as u64);
        let files: HashSet<_> = present.iter().map(|(file, version, _)| (file, version)).collect();
        assert_eq!(stats.files, files.len() as u64);
        if self.leases.is_empty() {
            let blocks =
                |(file, _, page): &(usize, usize, u64)| (size(*file) - page * PAGE).min(PAGE).div_ceil(PAGE) * PAGE;
            assert_eq!(stats.used, present.iter().map(blocks).sum::<u64>());
        }
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Fill { file, version, first, count } => {
                let stored = self.file(*file, *version);
                for page in *first..(first + count).min(FILES[*file].0) {
                    let len = (size(*file) - page * PAGE).min(PAGE) as usize;
                    let outcome = stored.write_page(page, &content(*file, *version, page * PAGE, len));
                    if outcome == Stored::Bypassed {
                        assert!(!self.leases.is_empty(), "only leases keep a page from finding space");
                    } else {
                        assert!(stored.is_present(page));
                    }
                }
            }
            Op::Read { file, version, offset, len } => {
                let stored = self.file(*file, *version);
                let mut bytes = vec![0xaa; *len];
                let claimed = stored.is_present(offset / PAGE);
                let read = stored.read(*offset, &mut bytes).unwrap();
                assert!(bytes[..read] == content(*file, *version, *offset, read), "wrong bytes");
                assert!(bytes[read..].iter().all(|byte| *byte == 0xaa) || read == 0, "bytes beyond what was read");
                assert!(claimed || read == 0, "bytes of an absent page");
                if claimed && read == 0 && *offset < size(*file) {
                    assert!(!stored.is_present(offset / PAGE), "present and yet not to be read");
                }
            }
            Op::Export { file, version } => {
                let stored = self.file(*file, *version);
                if let Some(lease) = stored.export() {
                    self.leases.push((*file, *version, lease));
                } else {
                    assert!(!stored.is_complete(), "complete and yet no lease");
                }
            }
            Op::Release => self.leases.clear(),
            Op::Flush => self.store().flush(),
            Op::Restart => {
                let before = self.present();
                self.leases.clear();
                self.store = None;
                self.store = Some(open(self.dir.path()));
                assert_eq!(self.present(), before, "a clean restart changes nothing");
            }
            Op::Crash { flush, damage } => self.crash(*flush, damage),
        }
        self.check_leases();
    }

    /// What the disk holds at this moment is all that is left.
    fn crash(&mut self, flush: bool, damage: &Damage) {
        let before = self.present();
        if flush {
            self.store().flush();
        }
        let dir = tempfile::tempdir().unwrap();
        copy(&self.dir.path().join("alluxio-pages"), &dir.path().join("alluxio-pages"));
        self.leases.clear();
        self.store = None;
        self.dir = dir;
        wreck(&self.dir.path().join("alluxio-pages"), damage);
        self.store = Some(open(self.dir.path()));
        let after = self.present();
        match damage {
            // A record that says that a page is gone may be lost as well: such a page is found out by its checksum.
            Damage::None if flush => assert_eq!(after, before, "what was flushed is there"),
            Damage::Garbage { .. } | Damage::Truncate { .. } | Damage::Remove { .. } if flush => {
                assert_eq!(after, before)
            }
            _ => {}
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn page_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for sub in fs::read_dir(folder.join("pages")).unwrap() {
        files.extend(fs::read_dir(sub.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    files.sort();
    files
}

fn wreck(folder: &Path, damage: &Damage) {
    let journal = folder.join("journal");
    let pick = |file: usize| {
        let files = page_files(folder);
        files.get(file % files.len().max(1)).cloned()
    };
    let write = |path: &Path| fs::File::options().write(true).open(path).unwrap();
    match damage {
        Damage::None => {}
        Damage::Garbage { file, at, len } => {
            if let Some(path) = pick(*file) {
                let at = at % fs::metadata(&path).unwrap().len().max(1);
                write(&path).write_all_at(&vec![0xbd; *len], at).unwrap();
            }
        }
        Damage::Truncate { file, at } => {
            if let Some(path) = pick(*file) {
                let len = fs::metadata(&path).unwrap().len();
                write(&path).set_len(at % len.max(1)).unwrap();
            }
        }
        Damage::Remove { file } => pick(*file).into_iter().for_each(|path| fs::remove_file(path).unwrap()),
        Damage::CutJournal { bytes } => {
            let len = fs::metadata(&journal).unwrap().len();
            write(&journal).set_len(len.saturating_sub(*bytes)).unwrap();
        }
        Damage::FlipJournal { at } => {
            let mut bytes = fs::read(&journal).unwrap();
            let at = *at as usize % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 0x44;
            }
            fs::write(&journal, bytes).unwrap();
        }
        Damage::RemoveJournal => fs::remove_file(&journal).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_right_or_absent(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.run(op);
        }
        world.check_counts();
        // Everything that is claimed to be present is read once at the end, and what was dropped by that is counted.
        for (file, version, page) in world.present() {
            world.run(&Op::Read { file, version, offset: page * PAGE, len: PAGE as usize });
        }
        world.check_counts();
    }
}

/// A tmpfs of a few MiB, unmounted at the end; none (with a note) when it cannot be mounted here.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=4m")) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                println!("skipped: no tmpfs can be mounted here ({error})");
                None
            }
        }
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_fills_up_costs_misses_only() {
    let Some(tiny) = Tiny::mount() else { return };
    let path = tiny.0.path();
    let store = PageStore::open(StoreOptions {
        dirs: vec![DirOptions { path: path.join("cache"), capacity: 3 << 20 }],
        page_size: PAGE as u32,
        ..StoreOptions::default()
    })
    .unwrap();
    let file = |at: u64| {
        let name = format!("/{at}");
        store.open_file(FileId::of(name.as_bytes()), &Version::new("v"), 10 * PAGE, name.as_bytes()).unwrap()
    };
    let check = |at: u64| {
        let mut bytes = vec![0; 10 * PAGE as usize];
        let read = file(at).read(0, &mut bytes).unwrap();
        assert!(bytes[..read] == content(1, at as usize, 0, read));
        read
    };
    let fill = |at: u64| {
        let stored = file(at);
        let write = |page: u64| stored.write_page(page, &content(1, at as usize, page * PAGE, PAGE as usize));
        (0..10).map(write).filter(|outcome| *outcome == Stored::Written).count()
    };
    assert_eq!((0..20).map(fill).sum::<usize>(), 200);
    // Somebody else takes all that is left, down to the last byte.
    let hog = fs::File::create(path.join("hog")).unwrap();
    let mut taken = 0;
    for block in [1 << 16, 4096] {
        while hog.write_at(&vec![1; block], taken).is_ok_and(|wrote| {
            taken += wrote as u64;
            wrote == block
        }) {}
    }
    for at in 20..80 {
        fill(at);
        (0..=at).for_each(|at| {
            check(at);
        });
    }
    assert_eq!(store.stats().dirs[0].health, store::HealthState::Normal, "a full disk is no broken disk");
    // Space comes back, and the cache is used again.
    fs::remove_file(path.join("hog")).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let mut at = 100;
    while fill(at) < 10 {
        assert!(std::time::Instant::now() < until, "nothing is stored although there is space");
        std::thread::sleep(std::time::Duration::from_millis(20));
        at += 1;
    }
    assert_eq!(check(at), 10 * PAGE as usize);
}

#[test]
fn readers_writers_leases_and_eviction_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = PageStore::open(StoreOptions {
        dirs: vec![DirOptions { path: dir.path().to_owned(), capacity: 40 * PAGE }],
        page_size: PAGE as u32,
        high_watermark: 0.9,
        low_watermark: 0.5,
        max_open_files: 8,
        ..StoreOptions::default()
    })
    .unwrap();
    let files = [(0_usize, 3_u64), (1, 1), (2, 30), (3, 100), (4, 16), (5, 2)];
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let store = &store;
            scope.spawn(move || {
                let mut state = thread + 1;
                let mut random = |below: u64| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 33) % below
                };
                for _ in 0..3000 {
                    let (number, pages) = files[random(files.len() as u64) as usize];
                    let name = format!("/{number}");
                    let id = FileId::of(name.as_bytes());
                    let stored = store.open_file(id, &Version::new("v"), pages * PAGE, name.as_bytes()).unwrap();
                    let page = random(pages);
                    match random(10) {
                        0..4 => {
                            stored.write_page(page, &content(number, 0, page * PAGE, PAGE as usize));
                        }
                        4..9 => {
                            let mut bytes = vec![0; 2 * PAGE as usize];
                            let offset = page * PAGE + random(PAGE);
                            let read = stored.read(offset, &mut bytes).unwrap();
                            assert!(bytes[..read] == content(number, 0, offset, read), "wrong bytes");
                        }
                        _ => {
                            if let Some(lease) = stored.export() {
                                let mut bytes = vec![0; (pages * PAGE) as usize];
                                lease.file().read_exact_at(&mut bytes, 0).unwrap();
                                assert!(bytes == content(number, 0, 0, bytes.len()), "wrong bytes under a lease");
                            }
                        }
                    }
                    assert!(store.stats().used <= 40 * PAGE);
                }
            });
        }
    });
    let stats = store.stats();
    assert_eq!(stats.corrupt_pages, 0);
    assert!(stats.evicted_pages > 0);
    let mut present = 0;
    for (number, pages) in files {
        let name = format!("/{number}");
        let stored = store.open_file(FileId::of(name.as_bytes()), &Version::new("v"), pages * PAGE, b"").unwrap();
        present += (0..pages).filter(|page| stored.is_present(*page)).count() as u64;
    }
    drop(dir);
    // The keeper may still be evicting, so the counts are compared after it has ended.
    store.shutdown();
    assert!(store.stats().pages <= present);
}
