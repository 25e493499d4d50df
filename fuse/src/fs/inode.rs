//! The inode table: what each node id of the kernel means, and for how long.
//!
//! Invariants:
//! - node ids count up from 2 (1 is the root) and are never used twice;
//! - the lookup count of an inode is what the kernel was told minus what it forgot; at zero the inode leaves the table,
//!   and whoever still has it open keeps it alive without it;
//! - at most one inode stands for a path at a time. When the file at a path becomes another one while the old one is
//!   open, the old inode is *detached*: the path is free for a new inode, and the old one lives on for its handles;
//! - counts change only under the lock of the path's shard, so a lookup and a forget of one inode cannot cross.
//!
//! The path is kept whole, and shared between both maps: looking one up needs no walk, and an inode costs about 250
//! bytes beside its path.

use common::{Attr, FileKind, UfsPath, Version};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    fs::File,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::passthrough::Backing;

/// The root's node id, as the protocol has it.
pub const ROOT: u64 = 1;

const SHARDS: usize = 64;

/// One node that the kernel knows.
pub struct Inode {
    /// Its id.
    pub id: u64,
    /// Where it is.
    pub path: UfsPath,
    /// What it is; a path whose kind changes gets a new inode.
    pub kind: FileKind,
    lookups: AtomicU64,
    detached: AtomicBool,
    /// What changes.
    pub state: Mutex<State>,
}

impl Inode {
    /// Whether its path belongs to another inode by now.
    pub fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Relaxed)
    }

    /// How many lookups the kernel has not forgotten.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }
}

/// What changes about an inode.
#[derive(Default)]
pub struct State {
    /// The version of the attributes that the kernel was told last; `None`: no version that could be compared; the empty
    /// one: those of an open file whose path may be another's.
    pub told: Option<Version>,
    /// The version whose bytes (or entries) the kernel's page cache holds, when that is certain.
    pub cached: Option<Version>,
    /// When a directory's entries that the kernel caches were listed.
    pub listed: Option<Instant>,
    /// When a directory was last changed by somebody else: what was listed before does not count.
    pub changed: Option<Instant>,
    /// When an open was last answered ESTALE because the kernel's attributes were old.
    pub refused: Option<Instant>,
    /// What all open handles share, from the first open to the last release.
    pub open: Option<Box<Shared>>,
}

/// What all open handles of an inode share.
pub struct Shared {
    /// How many handles there are.
    pub handles: u64,
    /// Which file they have open.
    pub identity: Identity,
    /// Its attributes when it was last seen.
    pub attr: Arc<Attr>,
    /// How it is read.
    pub mode: Mode,
    /// The source file, when it is one of this host.
    pub local: Option<Arc<File>>,
}

/// How an inode is read while it is open. The kernel does not allow a mixture.
#[derive(Clone)]
pub enum Mode {
    /// By the kernel, from this backing file.
    Passthrough(Arc<Backing>),
    /// Through the daemon.
    Daemon,
}

/// Which file is open: two opens may share an inode only when these are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A file of this host, which may change under its readers as every local file may.
    Local {
        /// Device.
        dev: u64,
        /// Inode on that device.
        ino: u64,
    },
    /// One version of an object.
    Version(Version),
    /// An object whose storage names no versions.
    Unversioned {
        /// Bytes.
        size: u64,
        /// Last change.
        mtime: common::Timestamp,
    },
}

/// The table.
pub struct InodeTable {
    by_path: Vec<Mutex<HashMap<UfsPath, Arc<Inode>>>>,
    by_id: Vec<RwLock<HashMap<u64, Arc<Inode>>>>,
    hasher: RandomState,
    next: AtomicU64,
    count: AtomicUsize,
}

impl InodeTable {
    /// A table that holds the root only.
    pub fn new() -> Self {
        let table = Self {
            by_path: (0..SHARDS).map(|_| Mutex::default()).collect(),
            by_id: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::new(),
            next: AtomicU64::new(ROOT),
            count: AtomicUsize::new(0),
        };
        table.remember(&UfsPath::root(), FileKind::Directory, 1);
        table
    }

    fn ids(&self, id: u64) -> &RwLock<HashMap<u64, Arc<Inode>>> {
        &self.by_id[(id % SHARDS as u64) as usize]
    }

    fn paths(&self, path: &UfsPath) -> &Mutex<HashMap<UfsPath, Arc<Inode>>> {
        &self.by_path[(self.hasher.hash_one(path) % SHARDS as u64) as usize]
    }

    /// The inode with this id.
    pub fn get(&self, id: u64) -> Option<Arc<Inode>> {
        self.ids(id).read().get(&id).cloned()
    }

    /// The inode that stands for a path now. Counts nothing.
    pub fn find(&self, path: &UfsPath) -> Option<Arc<Inode>> {
        self.paths(path).lock().get(path).cloned()
    }

    /// The inode for a path whose file is of this kind, made if need be, with `lookups` more lookups.
    pub fn remember(&self, path: &UfsPath, kind: FileKind, lookups: u64) -> Arc<Inode> {
        let mut paths = self.paths(path).lock();
        if let Some(inode) = paths.get(path) {
            if inode.kind == kind {
                inode.lookups.fetch_add(lookups, Ordering::Relaxed);
                return inode.clone();
            }
            inode.detached.store(true, Ordering::Relaxed);
        }
        let inode = Arc::new(Inode {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            path: path.clone(),
            kind,
            lookups: AtomicU64::new(lookups),
            detached: AtomicBool::new(false),
            state: Mutex::default(),
        });
        self.ids(inode.id).write().insert(inode.id, inode.clone());
        paths.insert(path.clone(), inode.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        inode
    }

    /// Takes `lookups` back. Returns whether the inode left the table. The root stays, and an unknown id is no news.
    pub fn forget(&self, id: u64, lookups: u64) -> bool {
        if id == ROOT {
            return false;
        }
        let Some(inode) = self.get(id) else { return false };
        let mut paths = self.paths(&inode.path).lock();
        let left = inode.lookups.load(Ordering::Relaxed).saturating_sub(lookups);
        inode.lookups.store(left, Ordering::Relaxed);
        if left > 0 {
            return false;
        }
        if paths.get(&inode.path).is_some_and(|current| Arc::ptr_eq(current, &inode)) {
            paths.remove(&inode.path);
        }
        let left_table = self.ids(id).write().remove(&id).is_some();
        if left_table {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        left_table
    }

    /// Frees the path of `inode` for another one; the root keeps its path.
    pub fn detach(&self, inode: &Arc<Inode>) {
        if inode.id == ROOT {
            return;
        }
        let mut paths = self.paths(&inode.path).lock();
        inode.detached.store(true, Ordering::Relaxed);
        if paths.get(&inode.path).is_some_and(|current| Arc::ptr_eq(current, inode)) {
            paths.remove(&inode.path);
        }
    }

    /// Those of which `which` holds. Looks at each of them.
    pub fn all(&self, which: impl Fn(&Inode) -> bool) -> Vec<Arc<Inode>> {
        let mut found = Vec::new();
        for shard in &self.by_id {
            found.extend(shard.read().values().filter(|inode| which(inode)).cloned());
        }
        found
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Never: the root is always there.
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Default for InodeTable {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Lookup { name: u8, directory: bool },
        Forget { nth: usize, lookups: u64 },
        Detach { name: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u8..6, any::<bool>()).prop_map(|(name, directory)| Step::Lookup { name, directory }),
            4 => (0usize..64, 1u64..4).prop_map(|(nth, lookups)| Step::Forget { nth, lookups }),
            1 => (0u8..6).prop_map(|name| Step::Detach { name }),
        ]
    }

    /// What the table must know: the inodes that the kernel holds with their counts, and which one each name has.
    #[derive(Default)]
    struct Model {
        held: Vec<(u64, u8, u64)>,
        named: HashMap<u8, (u64, FileKind)>,
    }

    proptest! {
        #[test]
        fn counts_ids_and_names_follow_the_model(steps in proptest::collection::vec(step(), 1..200)) {
            let table = InodeTable::new();
            let mut model = Model::default();
            let mut largest = ROOT;
            let path = |name: u8| UfsPath::parse(format!("d/{name}")).unwrap();
            for step in steps {
                match step {
                    Step::Lookup { name, directory } => {
                        let kind = if directory { FileKind::Directory } else { FileKind::File };
                        let inode = table.remember(&path(name), kind, 1);
                        match model.named.get(&name) {
                            Some((id, known)) if *known == kind => prop_assert_eq!(inode.id, *id),
                            _ => {
                                prop_assert!(inode.id > largest, "an id was used twice");
                                largest = inode.id;
                                model.named.insert(name, (inode.id, kind));
                                model.held.push((inode.id, name, 0));
                            }
                        }
                        let held = model.held.iter_mut().find(|held| held.0 == inode.id).unwrap();
                        held.2 += 1;
                    }
                    Step::Forget { nth, lookups } => {
                        if model.held.is_empty() { continue; }
                        let at = nth % model.held.len();
                        let (id, name, count) = model.held[at];
                        let gone = table.forget(id, lookups.min(count));
                        prop_assert_eq!(gone, lookups >= count);
                        if gone {
                            model.held.swap_remove(at);
                            if model.named.get(&name).is_some_and(|(named, _)| *named == id) {
                                model.named.remove(&name);
                            }
                        } else {
                            model.held[at].2 -= lookups;
                        }
                    }
                    Step::Detach { name } => {
                        if let Some(inode) = table.find(&path(name)) {
                            table.detach(&inode);
                            model.named.remove(&name);
                        }
                    }
                }
                prop_assert_eq!(table.len(), model.held.len() + 1);
                for (id, name, count) in &model.held {
                    let inode = table.get(*id).unwrap();
                    prop_assert_eq!(inode.lookups(), *count);
                    prop_assert_eq!(&inode.path, &path(*name));
                }
                for name in 0..6 {
                    let found = table.find(&path(name)).map(|inode| inode.id);
                    prop_assert_eq!(found, model.named.get(&name).map(|(id, _)| *id));
                }
            }
        }
    }

    #[test]
    fn lookups_and_forgets_from_many_threads_add_up() {
        let table = InodeTable::new();
        let path = UfsPath::parse("a").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let inode = table.remember(&path, FileKind::File, 1);
                        table.forget(inode.id, 1);
                    }
                });
            }
        });
        assert!(table.find(&path).is_none());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn the_root_is_never_forgotten() {
        let table = InodeTable::new();
        assert!(!table.forget(ROOT, 5));
        assert!(!table.forget(99, 1));
        assert!(table.get(ROOT).unwrap().path.is_root());
    }
}
