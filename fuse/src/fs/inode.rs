//! The inode table: what each node id of the kernel means, where it is, and for how long.
//!
//! An inode is found by its directory and its name there. A hard link is a further name of one inode. An inode keeps the
//! path of its first name; a directory that moves takes the paths of all below it along, by making them old at once and
//! having each found anew when it is wanted.
//!
//! Invariants:
//! - node ids count up from 2 (1 is the root) and are never used twice;
//! - the lookup count of an inode is what the kernel was told minus what it forgot; at zero the inode leaves the table for
//!   good, and whoever still has it open keeps it alive without it;
//! - at most one inode stands for a name at a time. An inode without names is one whose file was removed, or whose name
//!   became another file's: it lives on for its handles, and no path leads to it;
//! - an inode stands for one kind of file, and for a file of this host for one file: what another file took the name of
//!   gets another inode.

use common::{Attr, FileKind, Timestamp, UfsPath, Version, attr::LocalId, change::WriteHandle};
use hashbrown::{Equivalent, HashMap};
use parking_lot::{Mutex, RwLock};
use std::{
    fs::File,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use super::trail::{Held, Record, Trail};
use crate::passthrough::Backing;

/// The root's node id, as the protocol has it.
pub const ROOT: u64 = 1;

const SHARDS: usize = 64;

/// One node that the kernel knows.
pub struct Inode {
    /// Its id.
    pub id: u64,
    /// What it is.
    pub kind: FileKind,
    /// Which file it is, when it is one of this host.
    pub local: Option<LocalId>,
    lookups: AtomicU64,
    place: Mutex<Place>,
    common: Arc<Common>,
    /// What changes.
    pub state: Mutex<State>,
}

/// What all inodes of a table share.
#[derive(Default)]
struct Common {
    /// How many directories have moved.
    moves: AtomicU64,
    /// Where it is written down what the kernel holds.
    trail: OnceLock<Arc<Trail>>,
}

impl Common {
    fn note(&self, record: impl FnOnce() -> Record) {
        if let Some(trail) = self.trail.get() {
            trail.note(&record());
        }
    }
}

/// Where an inode is.
struct Place {
    names: Vec<Name>,
    /// The path of the first name, or what it was when the last one went.
    path: UfsPath,
    /// The number of moved directories up to which `path` is right.
    moves: u64,
}

/// One name in one directory.
#[derive(Clone)]
struct Name {
    parent: Arc<Inode>,
    name: Box<[u8]>,
}

impl Name {
    fn is(&self, parent: &Inode, name: &[u8]) -> bool {
        self.parent.id == parent.id && *self.name == *name
    }
}

impl Inode {
    /// Where it is now; of one without names, where it was.
    pub fn path(self: &Arc<Self>) -> UfsPath {
        let now = self.common.moves.load(Ordering::Acquire);
        let mut above = Vec::new();
        let mut at = self.clone();
        // Up to the nearest directory whose path is known, and down again. Not by recursion: paths may be deep.
        let mut path = loop {
            let parent = {
                let place = at.place.lock();
                match place.names.first() {
                    Some(name) if place.moves != now => name.clone(),
                    _ => break place.path.clone(),
                }
            };
            above.push((at, parent.clone()));
            at = parent.parent;
        };
        for (inode, name) in above.into_iter().rev() {
            // A name that was made or looked up is one.
            let Ok(longer) = path.join(&name.name) else { break };
            let mut place = inode.place.lock();
            if place.names.first().is_some_and(|first| first.is(&name.parent, &name.name)) {
                place.path = longer.clone();
                place.moves = now;
            }
            path = longer;
        }
        path
    }

    /// Whether no path leads to it any more.
    pub fn is_nameless(&self) -> bool {
        self.id != ROOT && self.place.lock().names.is_empty()
    }

    /// The directory of its first name.
    pub fn parent(&self) -> Option<Arc<Inode>> {
        self.place.lock().names.first().map(|name| name.parent.clone())
    }

    /// How many lookups the kernel has not forgotten.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    /// Counts more lookups, unless the last one was forgotten.
    fn raise(&self, lookups: u64) -> bool {
        let more = |now: u64| (now > 0).then(|| now + lookups);
        self.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    fn gain(&self, parent: &Arc<Inode>, name: &[u8]) {
        let name = Name { parent: parent.clone(), name: name.into() };
        let mut place = self.place.lock();
        if place.names.is_empty() {
            // Older than anything, so that the path is found anew.
            place.moves = u64::MAX;
        }
        let noted = self.common.trail.get().map(|_| (name.parent.id, name.name.to_vec()));
        place.names.push(name);
        drop(place);
        if let Some((parent, name)) = noted {
            self.common.note(|| Record::Named { id: self.id, parent, name });
        }
    }

    fn lose(&self, parent: &Inode, name: &[u8]) {
        let mut place = self.place.lock();
        let Some(at) = place.names.iter().position(|known| known.is(parent, name)) else { return };
        if at == 0 && place.names.len() > 1 {
            place.moves = u64::MAX;
        }
        place.names.remove(at);
        drop(place);
        self.common.note(|| Record::Unnamed { id: self.id, parent: parent.id, name: name.to_vec() });
    }
}

impl Drop for Inode {
    /// Lets go of the directories above one after the other: each inode holds the one above it, and one dropping the next would
    /// need as much stack as the path is deep.
    fn drop(&mut self) {
        let mut above = std::mem::take(&mut self.place.get_mut().names);
        while let Some(name) = above.pop() {
            if let Some(mut parent) = Arc::into_inner(name.parent) {
                above.append(&mut parent.place.get_mut().names);
            }
        }
    }
}

impl std::fmt::Debug for Inode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inode({}, {:?})", self.id, self.kind)
    }
}

/// What the kernel was told of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Which version.
    pub version: Version,
    /// Its size.
    pub size: u64,
    /// Its time of change.
    pub mtime: Timestamp,
}

impl Told {
    /// What `attr` tells.
    pub fn of(attr: &Attr) -> Self {
        Self { version: attr.version.clone(), size: attr.size, mtime: attr.mtime }
    }

    /// Something else than whatever will be found.
    pub fn other() -> Self {
        Self { version: Version::none(), size: u64::MAX, mtime: Timestamp::default() }
    }
}

/// What changes about an inode.
#[derive(Default)]
pub struct State {
    /// The attributes that the kernel was told last; `None`: none that could be compared, or the kernel has dropped them.
    pub told: Option<Told>,
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
    /// The last attributes of what has no name any more and is not opened through the daemon, as a pipe or a directory that
    /// somebody is in.
    pub gone: Option<Arc<Attr>>,
}

/// What all open handles of an inode share.
pub struct Shared {
    /// How many handles there are.
    pub handles: u64,
    /// How many of them write.
    pub writers: u64,
    /// Which file they have open.
    pub identity: Identity,
    /// Its attributes when it was last seen.
    pub attr: Arc<Attr>,
    /// How it is read.
    pub mode: Mode,
    /// The source file, when it is one of this host; open for writing once somebody writes.
    pub local: Option<Arc<File>>,
    /// What is written through a worker.
    pub staged: Option<Arc<dyn WriteHandle>>,
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
    Local(LocalId),
    /// One version of an object.
    Version(Version),
    /// An object whose storage names no versions.
    Unversioned {
        /// Bytes.
        size: u64,
        /// Last change.
        mtime: Timestamp,
    },
    /// An object that is being written on this host.
    Staged,
}

/// A name as the table has it.
#[derive(PartialEq, Eq)]
struct Key {
    parent: u64,
    name: Box<[u8]>,
}

/// The same, borrowed.
struct KeyRef<'a> {
    parent: u64,
    name: &'a [u8],
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        KeyRef { parent: self.parent, name: &self.name }.hash(state);
    }
}

impl Hash for KeyRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parent.hash(state);
        self.name.hash(state);
    }
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.parent == key.parent && *self.name == *key.name
    }
}

type Names = HashMap<Key, Arc<Inode>, RandomState>;

/// The table.
pub struct InodeTable {
    by_name: Vec<Mutex<Names>>,
    by_id: Vec<RwLock<HashMap<u64, Arc<Inode>>>>,
    by_file: Vec<Mutex<HashMap<LocalId, Arc<Inode>>>>,
    hasher: RandomState,
    next: AtomicU64,
    count: AtomicUsize,
    common: Arc<Common>,
}

impl InodeTable {
    /// A table that holds the root only.
    pub fn new() -> Self {
        let hasher = RandomState::new();
        let table = Self {
            by_name: (0..SHARDS).map(|_| Mutex::new(Names::with_hasher(hasher.clone()))).collect(),
            by_id: (0..SHARDS).map(|_| RwLock::default()).collect(),
            by_file: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher,
            next: AtomicU64::new(ROOT),
            count: AtomicUsize::new(0),
            common: Arc::default(),
        };
        table.insert(FileKind::Directory, None, 1);
        table
    }

    fn ids(&self, id: u64) -> &RwLock<HashMap<u64, Arc<Inode>>> {
        &self.by_id[(id % SHARDS as u64) as usize]
    }

    fn names(&self, parent: u64, name: &[u8]) -> &Mutex<Names> {
        let hash = self.hasher.hash_one(KeyRef { parent, name });
        // The low bits choose within a shard.
        &self.by_name[(hash >> 32) as usize % SHARDS]
    }

    fn files(&self, file: LocalId) -> &Mutex<HashMap<LocalId, Arc<Inode>>> {
        &self.by_file[(file.ino % SHARDS as u64) as usize]
    }

    /// The inode with this id.
    pub fn get(&self, id: u64) -> Option<Arc<Inode>> {
        self.ids(id).read().get(&id).cloned()
    }

    /// The inode that stands for a name now. Counts nothing.
    pub fn find(&self, parent: u64, name: &[u8]) -> Option<Arc<Inode>> {
        self.names(parent, name).lock().get(&KeyRef { parent, name }).cloned()
    }

    /// The inode at this path, if each directory on the way is known. Counts nothing.
    pub fn find_path(&self, path: &UfsPath) -> Option<Arc<Inode>> {
        path.names().try_fold(self.get(ROOT)?, |parent, name| self.find(parent.id, name))
    }

    /// The inode that was last known to be this file of this host, under whatever name.
    pub fn find_file(&self, file: LocalId) -> Option<Arc<Inode>> {
        self.files(file).lock().get(&file).cloned()
    }

    fn insert(&self, kind: FileKind, local: Option<LocalId>, lookups: u64) -> Arc<Inode> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.common.note(|| Record::Node { id, kind: kind.into(), local: local.map(|file| (file.dev, file.ino)) });
        self.insert_as(id, kind, local, lookups)
    }

    fn insert_as(&self, id: u64, kind: FileKind, local: Option<LocalId>, lookups: u64) -> Arc<Inode> {
        let inode = Arc::new(Inode {
            id,
            kind,
            // The root may be exchanged beside the mount, and stays the root.
            local,
            lookups: AtomicU64::new(lookups),
            place: Mutex::new(Place { names: Vec::new(), path: UfsPath::root(), moves: u64::MAX }),
            common: self.common.clone(),
            state: Mutex::default(),
        });
        self.ids(inode.id).write().insert(inode.id, inode.clone());
        self.count.fetch_add(1, Ordering::Relaxed);
        inode
    }

    /// The inode for a name whose file is of this kind, and this one, made if need be, with `lookups` more lookups. When
    /// the name is new to the table it becomes one of `known`, an inode that stands for this file already.
    pub fn remember(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        (kind, local): (FileKind, Option<LocalId>),
        known: Option<&Arc<Inode>>,
        lookups: u64,
    ) -> Arc<Inode> {
        let mut names = self.names(parent.id, name).lock();
        if let Some(inode) = names.get(&KeyRef { parent: parent.id, name }) {
            if inode.kind == kind && (inode.local == local || local.is_none()) && inode.raise(lookups) {
                return inode.clone();
            }
            inode.lose(parent, name);
        }
        let stands_for_it = |known: &&Arc<Inode>| known.kind == kind && known.local == local;
        let inode = match known.filter(stands_for_it).filter(|known| known.raise(lookups)) {
            Some(known) => known.clone(),
            None => {
                let inode = self.insert(kind, local, lookups);
                // Of directories there is one name, so nobody looks for them so.
                if let Some(file) = local.filter(|_| kind != FileKind::Directory) {
                    self.files(file).lock().insert(file, inode.clone());
                }
                inode
            }
        };
        inode.gain(parent, name);
        names.insert(Key { parent: parent.id, name: name.into() }, inode.clone());
        inode
    }

    /// Takes `lookups` back. Returns whether the inode left the table. The root stays, and an unknown id is no news.
    pub fn forget(&self, id: u64, lookups: u64) -> bool {
        if id == ROOT {
            return false;
        }
        let Some(inode) = self.get(id) else { return false };
        let less = |now: u64| (now > 0).then(|| now.saturating_sub(lookups));
        let before = inode.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
        if !before.is_ok_and(|before| before > 0 && before <= lookups) {
            return false;
        }
        // Nobody raises it any more, so it gains no names.
        let place = std::mem::take(&mut inode.place.lock().names);
        for name in place {
            self.unname(&inode, &name.parent, &name.name);
        }
        if let Some(file) = inode.local {
            let mut files = self.files(file).lock();
            if files.get(&file).is_some_and(|known| Arc::ptr_eq(known, &inode)) {
                files.remove(&file);
            }
        }
        self.ids(id).write().remove(&id);
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.common.note(|| Record::Gone { id });
        true
    }

    /// Has everything written down from now on.
    pub fn note_in(&self, trail: Arc<Trail>) {
        // There is one trail, set before anything is served.
        let _ = self.common.trail.set(trail);
    }

    /// Where it is written down.
    pub fn trail(&self) -> Option<&Arc<Trail>> {
        self.common.trail.get()
    }

    /// Takes the nodes over that the kernel holds from a process that died. How often they were looked up nobody knows, so
    /// they are never forgotten.
    pub fn resume(&self, held: &Held) {
        const UNKNOWN: u64 = u64::MAX / 2;
        self.next.fetch_max(held.next.0, Ordering::Relaxed);
        for (id, node) in &held.nodes {
            let inode = self.insert_as(*id, node.kind, node.local, UNKNOWN);
            if let Some(file) = node.local.filter(|_| node.kind != FileKind::Directory) {
                self.files(file).lock().insert(file, inode.clone());
            }
            if node.kind == FileKind::File {
                // What it was told of them nobody knows either: it is to look again before it opens one.
                inode.state.lock().told = Some(Told::other());
            }
        }
        for (id, node) in &held.nodes {
            let Some(inode) = self.get(*id) else { continue };
            for (parent, name) in &node.names {
                let Some(parent) = self.get(*parent) else { continue };
                let mut names = self.names(parent.id, name).lock();
                inode.gain(&parent, name);
                if let Some(beaten) = names.insert(Key { parent: parent.id, name: name[..].into() }, inode.clone()) {
                    beaten.lose(&parent, name);
                }
            }
        }
    }

    fn unname(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8]) {
        let mut names = self.names(parent.id, name).lock();
        let key = KeyRef { parent: parent.id, name };
        if names.get(&key).is_some_and(|current| Arc::ptr_eq(current, inode)) {
            names.remove(&key);
        }
        inode.lose(parent, name);
    }

    /// Notes that a name is gone. Returns the inode that had it.
    pub fn remove(&self, parent: &Arc<Inode>, name: &[u8]) -> Option<Arc<Inode>> {
        let mut names = self.names(parent.id, name).lock();
        let inode = names.remove(&KeyRef { parent: parent.id, name })?;
        inode.lose(parent, name);
        Some(inode)
    }

    /// Takes all names from an inode, for others to have them; the root keeps its own.
    pub fn detach(&self, inode: &Arc<Inode>) {
        let names = inode.place.lock().names.clone();
        for name in names {
            self.unname(inode, &name.parent, &name.name);
        }
    }

    /// Notes that `from` was renamed to `to`, or exchanged with it. Returns the inode that lost its name to it.
    pub fn rename(&self, from: (&Arc<Inode>, &[u8]), to: (&Arc<Inode>, &[u8]), exchange: bool) -> Option<Arc<Inode>> {
        let moved = self.find(from.0.id, from.1);
        let other = self.find(to.0.id, to.1);
        // What moves has its new name before it loses the old one, so that there is no moment at which it seems removed.
        if let Some(moved) = &moved {
            moved.gain(to.0, to.1);
        }
        if let Some(other) = other.as_ref().filter(|_| exchange) {
            other.gain(from.0, from.1);
        }
        self.give_name(to, moved.as_ref());
        self.give_name(from, other.as_ref().filter(|_| exchange));
        if [&moved, &other].into_iter().flatten().any(|inode| inode.kind == FileKind::Directory) {
            self.common.moves.fetch_add(1, Ordering::AcqRel);
        }
        other.filter(|_| !exchange)
    }

    /// Notes that a name is that of `inode`, which has it already, or of none.
    fn give_name(&self, (parent, name): (&Arc<Inode>, &[u8]), inode: Option<&Arc<Inode>>) {
        let mut names = self.names(parent.id, name).lock();
        let before = match inode {
            Some(inode) => names.insert(Key { parent: parent.id, name: name.into() }, inode.clone()),
            None => names.remove(&KeyRef { parent: parent.id, name }),
        };
        if let Some(before) = before {
            before.lose(parent, name);
        }
    }

    /// Those of which `which` holds. Looks at each of them.
    pub fn all(&self, which: impl Fn(&Arc<Inode>) -> bool) -> Vec<Arc<Inode>> {
        let mut found = Vec::new();
        for shard in &self.by_id {
            found.extend(shard.read().values().filter(|inode| which(inode)).cloned());
        }
        found
    }

    /// All ids, a part at a time, so that no lock is held for long and no list of all is made.
    pub fn ids_by_part(&self) -> impl Iterator<Item = Vec<u64>> {
        self.by_id.iter().map(|shard| shard.read().keys().copied().collect())
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
mod tests;
