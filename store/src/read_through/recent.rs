//! Complete pages that are kept in memory because they are not on disk: the store is off, full or too slow.
//!
//! Without them a sequential reader would fetch a page once for each of its requests. They are kept in order of arrival,
//! bounded in bytes, and given up, used ones first, when memory is wanted.

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
}

/// See the module.
pub(super) struct Recent {
    kept: Mutex<Inner>,
    limit: usize,
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

impl Recent {
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Mutex::default(),
            limit,
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
                while inner.bytes > self.limit {
                    let Some(oldest) = inner.queue.pop_front() else { break };
                    inner.bytes -= oldest.load.len();
                    out.push(oldest);
                }
            }
        }
        // Buffers go back to the pool after the lock.
        drop(out);
    }

    /// Gives up pages of at least `bytes`: oldest first, and when `used_only` only those that somebody has taken.
    pub fn make_room(&self, bytes: usize, used_only: bool) -> bool {
        let (mut out, mut freed) = (Vec::new(), 0);
        {
            let mut inner = self.kept.lock();
            let mut at = 0;
            while freed < bytes && at < inner.queue.len() {
                if used_only && !inner.queue[at].used.load(Relaxed) {
                    at += 1;
                } else if let Some(kept) = inner.queue.remove(at) {
                    freed += kept.load.len();
                    out.push(kept);
                }
            }
            inner.bytes -= freed;
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
