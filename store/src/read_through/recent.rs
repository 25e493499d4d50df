//! Complete pages that are kept in memory: those that are not on disk, because the store is off, full or too slow, and
//! those on disk that were fetched ahead of a reader who has not come to them yet.
//!
//! Without the former a sequential reader would fetch a page once for each of its requests; with the latter it is
//! answered without reading the disk. They are kept in order of arrival, bounded in bytes, and given up when memory is
//! wanted: first those that were used, then those on disk.

use common::page::PageLoad;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

/// One kept page. The mark is shared with the file's table, which sets it when somebody takes the page.
pub(super) struct Kept {
    pub load: Arc<PageLoad>,
    pub used: Arc<AtomicBool>,
    /// Whether the page is on disk too.
    pub stored: bool,
}

/// Bytes of used pages that are kept where there is a store: readers may be in the middle of them.
const USED_BYTES: usize = 8 << 20;

/// See the module.
pub(super) struct Recent {
    kept: Mutex<Inner>,
    limit: usize,
    used_limit: usize,
    /// Readers that wait for memory: nothing is kept meanwhile.
    waiting: AtomicUsize,
    watched: AtomicBool,
    /// Raised by everything that happens.
    events: AtomicU64,
    seen: AtomicU64,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Kept>,
    bytes: usize,
}

impl Inner {
    /// Takes out the oldest pages that `may` go, until `bytes` are free.
    fn free(&mut self, out: &mut Vec<Kept>, bytes: usize, may: impl Fn(&Kept) -> bool) {
        let (mut at, mut freed) = (0, 0);
        while freed < bytes && at < self.queue.len() {
            if !may(&self.queue[at]) {
                at += 1;
            } else if let Some(kept) = self.queue.remove(at) {
                freed += kept.load.len();
                out.push(kept);
            }
        }
        self.bytes -= freed;
    }

    /// Takes out the oldest pages that `may` go, until no more than `keep` bytes of such are left.
    fn give_up(&mut self, out: &mut Vec<Kept>, keep: usize, may: impl Fn(&Kept) -> bool) {
        let all: usize = self.queue.iter().filter(|kept| may(kept)).map(|kept| kept.load.len()).sum();
        if all > keep {
            self.free(out, all - keep, may);
        }
    }
}

impl Recent {
    /// Keeps pages of at most `limit` bytes. With a store few of those that were used: most of them are on disk.
    pub fn new(limit: usize, with_store: bool) -> Self {
        Self {
            kept: Mutex::default(),
            limit,
            used_limit: if with_store { USED_BYTES.min(limit) } else { limit },
            waiting: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            events: AtomicU64::new(0),
            seen: AtomicU64::new(0),
        }
    }

    /// Keeps a page, if there is memory for it.
    pub fn keep(&self, kept: Kept) {
        let mut out = Vec::new();
        {
            let mut inner = self.kept.lock();
            if self.waiting.load(Relaxed) > 0 || kept.load.len() > self.limit {
                out.push(kept);
            } else {
                inner.bytes += kept.load.len();
                inner.queue.push_back(kept);
                inner.give_up(&mut out, self.used_limit, |kept| kept.used.load(Relaxed));
                for ease in [|kept: &Kept| kept.used.load(Relaxed), |kept: &Kept| kept.stored, |_: &Kept| true] {
                    if inner.bytes > self.limit {
                        let excess = inner.bytes - self.limit;
                        inner.free(&mut out, excess, ease);
                    }
                }
            }
        }
        // Buffers go back to the pool after the lock.
        drop(out);
    }

    /// Gives up pages of at least `bytes`: oldest first, and when `cheap_only` only those that somebody has taken or that
    /// are on disk.
    pub fn make_room(&self, bytes: usize, cheap_only: bool) -> bool {
        let mut out = Vec::new();
        {
            let mut inner = self.kept.lock();
            inner.free(&mut out, bytes, |kept| !cheap_only || kept.stored || kept.used.load(Relaxed));
        }
        !out.is_empty()
    }

    /// Gives up everything.
    pub fn clear(&self) {
        let inner = std::mem::take(&mut *self.kept.lock());
        drop(inner);
    }

    /// While the guard lives nothing is kept, so that who waits for memory gets it.
    pub fn wait_for_memory(&self) -> impl Drop + '_ {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        self.waiting.fetch_add(1, Relaxed);
        // After the count: a page that is kept in between is found here, a later one sees the count.
        self.clear();
        Waiting(&self.waiting)
    }

    /// Notes that something happened. True when the caller is to start watching for idleness.
    pub fn start_watch(&self) -> bool {
        self.events.fetch_add(1, Relaxed);
        !self.watched.load(Relaxed) && !self.watched.swap(true, Relaxed)
    }

    /// True when nothing happened since the last call; watching has then ended.
    pub fn end_watch_if_idle(&self) -> bool {
        let events = self.events.load(Relaxed);
        if self.seen.swap(events, Relaxed) != events {
            return false;
        }
        self.watched.store(false, Relaxed);
        true
    }
}
