//! The order in which a directory's pages are evicted: least recently used first, by chunk of 64 pages.
//!
//! A use only stores the time in the chunk (no lock). The order is put right when a chunk comes up for eviction: one
//! that was used since it was queued goes back with its true time.

use super::file::StoredFile;
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};

/// A chunk that is queued.
pub(super) struct Queued {
    pub file: Arc<StoredFile>,
    pub chunk: usize,
}

/// The order. Owns the files that have pages.
#[derive(Default)]
pub(super) struct Order(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    queue: BTreeMap<(u64, u64), Queued>,
    sequence: u64,
}

impl Order {
    /// Queues a chunk that was last used at `time`.
    pub fn push(&self, time: u64, queued: Queued) {
        let mut inner = self.0.lock();
        inner.sequence += 1;
        let key = (time, inner.sequence);
        inner.queue.insert(key, queued);
    }

    /// Takes out the chunk that was queued with the earliest time.
    pub fn pop(&self) -> Option<(u64, Queued)> {
        let ((time, _), queued) = self.0.lock().queue.pop_first()?;
        Some((time, queued))
    }

    /// Chunks queued.
    pub fn len(&self) -> usize {
        self.0.lock().queue.len()
    }

    /// The files in their order, each as often as it has chunks; for rewriting the journal.
    pub fn files(&self) -> Vec<Arc<StoredFile>> {
        self.0.lock().queue.values().map(|queued| queued.file.clone()).collect()
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        let queue = std::mem::take(&mut self.0.lock().queue);
        drop(queue);
    }
}
