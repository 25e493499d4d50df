//! What all directories of a store share: the map of files, the clock of uses, the bounded set of open descriptors.

use super::{file::StoredFile, names::Key};
use common::metrics::metrics;
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const SHARDS: usize = 64;

/// Counters of the whole store.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub evicted_pages: AtomicU64,
    pub evicted_bytes: AtomicU64,
    pub read_bytes: AtomicU64,
    pub stored_bytes: AtomicU64,
    pub bypassed_pages: AtomicU64,
    pub corrupt_pages: AtomicU64,
}

impl Counters {
    pub fn evicted(&self, pages: u64, bytes: u64) {
        self.evicted_pages.fetch_add(pages, Relaxed);
        self.evicted_bytes.fetch_add(bytes, Relaxed);
        metrics().evicted_pages.inc_by(pages);
        metrics().evicted_bytes.inc_by(bytes);
    }

    pub fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Relaxed);
        metrics().cached_read_bytes.inc_by(bytes);
    }

    pub fn bypassed(&self, bytes: u64) {
        self.bypassed_pages.fetch_add(1, Relaxed);
        metrics().bypassed_bytes.inc_by(bytes);
    }

    pub fn corrupt(&self) {
        self.corrupt_pages.fetch_add(1, Relaxed);
        metrics().corrupt_pages.inc();
    }
}

/// See the module.
///
/// The map does not own files: those with pages are owned by their directory's order of eviction, the others by who has
/// them open; a file removes its entry when it goes. So there is at most one `StoredFile` per key.
pub(super) struct Shared {
    shards: Vec<RwLock<HashMap<Key, Weak<StoredFile>>>>,
    clock: AtomicU64,
    open: Mutex<VecDeque<Weak<StoredFile>>>,
    max_open: usize,
    pub counters: Counters,
}

impl Shared {
    pub fn new(max_open: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            clock: AtomicU64::new(1),
            open: Mutex::default(),
            max_open: max_open.max(8),
            counters: Counters::default(),
        }
    }

    fn shard(&self, key: &Key) -> &RwLock<HashMap<Key, Weak<StoredFile>>> {
        &self.shards[usize::from(key.id.0[0]) % SHARDS]
    }

    /// The current time of the logical clock, which writes and opens move on and reads only look at.
    pub fn now(&self) -> u64 {
        self.clock.load(Relaxed)
    }

    /// Moves the clock on.
    pub fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Relaxed) + 1
    }

    pub fn find(&self, key: &Key) -> Option<Arc<StoredFile>> {
        self.shard(key).read().get(key)?.upgrade()
    }

    /// Enters `fresh` unless there is one of its key by now; returns the one that counts.
    pub fn insert(&self, fresh: Arc<StoredFile>) -> Arc<StoredFile> {
        let mut shard = self.shard(fresh.key()).write();
        let known = shard.get(fresh.key()).and_then(Weak::upgrade);
        if let Some(known) = known {
            // `fresh` goes only after the lock: its drop takes the same one.
            drop(shard);
            return known;
        }
        shard.insert(*fresh.key(), Arc::downgrade(&fresh));
        fresh
    }

    /// The files that `wanted` chooses.
    pub fn all(&self, wanted: &dyn Fn(&StoredFile) -> bool) -> Vec<Arc<StoredFile>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            // Those that are not wanted may go here, and their drop takes the shard's lock: they are kept beyond it.
            let all: Vec<_> = shard.read().values().filter_map(Weak::upgrade).collect();
            found.extend(all.into_iter().filter(|file| wanted(file)));
        }
        found
    }

    /// Called by a file that goes.
    pub fn remove(&self, file: &StoredFile) {
        let mut shard = self.shard(file.key()).write();
        if shard.get(file.key()).is_some_and(|known| std::ptr::eq(known.as_ptr(), file)) {
            shard.remove(file.key());
        }
    }

    /// Notes that `file` has opened its descriptor, and closes ones that were not used lately when there are too many.
    pub fn opened(&self, file: &Arc<StoredFile>) {
        self.open.lock().push_back(Arc::downgrade(file));
        for _ in 0..8 {
            if !self.close_front(self.max_open, false) {
                break;
            }
        }
    }

    /// Closes descriptors, used lately or not, since the process has run out of them.
    pub fn close_some(&self) {
        let until = self.open.lock().len() / 2;
        for _ in 0..until + 1 {
            if !self.close_front(until, true) {
                break;
            }
        }
    }

    /// One turn of second chance. False when no more than `until` are open.
    fn close_front(&self, until: usize, forced: bool) -> bool {
        let front = {
            let mut open = self.open.lock();
            if open.len() <= until {
                return false;
            }
            open.pop_front()
        };
        // Outside the lock: closing calls the system, and this may be the last reference to the file.
        if let Some(file) = front.as_ref().and_then(Weak::upgrade)
            && !file.close_idle(forced)
        {
            self.open.lock().push_back(Arc::downgrade(&file));
        }
        true
    }
}
