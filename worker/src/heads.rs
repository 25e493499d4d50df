//! First bytes of files that came along with their attributes, kept for the open that is likely to follow at once.
//!
//! Invariants: the bytes kept are reserved in the memory budget; their sum and their age are bounded; without a free
//! part of the budget nothing is kept.

use crate::clock::{Clock, Moment};
use bytes::Bytes;
use common::{
    UfsPath, Version,
    budget::{MemoryBudget, Purpose, Reservation},
};
use lru::LruCache;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

/// For how long first bytes wait for their open.
pub(crate) const KEEP: Duration = Duration::from_secs(2);

struct Kept {
    version: Version,
    bytes: Bytes,
    at: Moment,
    _reservation: Reservation,
}

#[derive(Default)]
struct Shelf {
    files: Option<LruCache<UfsPath, Kept>>,
    total: usize,
    sweeping: bool,
}

/// The shelf of first bytes.
pub(crate) struct Heads {
    clock: Clock,
    budget: Arc<MemoryBudget>,
    limit: usize,
    shelf: Mutex<Shelf>,
}

impl Heads {
    /// A shelf of at most `limit` bytes within `budget`.
    pub(crate) fn new(clock: Clock, budget: Arc<MemoryBudget>, limit: usize) -> Self {
        Self { clock, budget, limit, shelf: Mutex::default() }
    }

    /// Keeps the first bytes of a version. Returns whether the caller must see to it that [`sweep`](Self::sweep) is
    /// called until it says that nothing is left.
    pub(crate) fn put(&self, path: &UfsPath, version: Version, bytes: Bytes) -> bool {
        if bytes.is_empty() || bytes.len() > self.limit || version.is_none() {
            return false;
        }
        let Some(reservation) = self.budget.try_reserve(bytes.len(), Purpose::Prefetch) else { return false };
        let now = self.clock.now();
        let mut shelf = self.shelf.lock();
        let Shelf { files, total, sweeping } = &mut *shelf;
        let files = files.get_or_insert_with(LruCache::unbounded);
        *total += bytes.len();
        if let Some(old) = files.put(path.clone(), Kept { version, bytes, at: now, _reservation: reservation }) {
            *total -= old.bytes.len();
        }
        while *total > self.limit {
            let Some((_, old)) = files.pop_lru() else { break };
            *total -= old.bytes.len();
        }
        !std::mem::replace(sweeping, true)
    }

    /// Takes the first bytes of this version, if they are here.
    pub(crate) fn take(&self, path: &UfsPath, version: &Version) -> Option<Bytes> {
        let mut shelf = self.shelf.lock();
        let Shelf { files, total, .. } = &mut *shelf;
        let kept = files.as_mut()?.pop(path)?;
        *total -= kept.bytes.len();
        (kept.version == *version && self.clock.now().since(kept.at) <= KEEP).then_some(kept.bytes)
    }

    /// Drops what is too old; returns whether something is left to be swept later.
    pub(crate) fn sweep(&self) -> bool {
        let now = self.clock.now();
        let mut shelf = self.shelf.lock();
        let Shelf { files, total, sweeping } = &mut *shelf;
        if let Some(files) = files {
            while files.peek_lru().is_some_and(|(_, kept)| now.since(kept.at) > KEEP) {
                let Some((_, old)) = files.pop_lru() else { break };
                *total -= old.bytes.len();
            }
            *sweeping = !files.is_empty();
        } else {
            *sweeping = false;
        }
        *sweeping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> UfsPath {
        UfsPath::parse(text).unwrap()
    }

    #[test]
    fn bytes_are_bounded_aged_and_counted() {
        let clock = Clock::manual();
        let budget = MemoryBudget::new(1 << 20);
        let heads = Heads::new(clock.clone(), budget.clone(), 3 * 4096);
        let version = Version::new("1");
        for name in ["a", "b", "c", "d"] {
            heads.put(&path(name), version.clone(), Bytes::from(vec![1; 4096]));
        }
        assert_eq!(budget.used(), 3 * 4096);
        assert!(heads.take(&path("a"), &version).is_none(), "the oldest made room");
        assert_eq!(heads.take(&path("b"), &version).unwrap().len(), 4096);
        assert!(heads.take(&path("c"), &Version::new("2")).is_none(), "another version");
        assert!(heads.sweep());
        clock.advance(KEEP + Duration::from_millis(1));
        assert!(heads.take(&path("d"), &version).is_none(), "too old");
        assert!(heads.put(&path("e"), version.clone(), Bytes::from_static(b"x")) || heads.sweep());
        clock.advance(KEEP + Duration::from_millis(1));
        assert!(!heads.sweep());
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn nothing_is_kept_when_memory_is_short() {
        let budget = MemoryBudget::new(4 * 4096);
        let heads = Heads::new(Clock::manual(), budget.clone(), 1 << 20);
        let held = budget.try_reserve(3 * 4096, Purpose::Demand).unwrap();
        heads.put(&path("a"), Version::new("1"), Bytes::from_static(b"x"));
        assert!(heads.take(&path("a"), &Version::new("1")).is_none());
        drop(held);
        assert_eq!(budget.used(), 0);
    }
}
