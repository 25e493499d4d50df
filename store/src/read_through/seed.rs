//! Bytes that came with a lookup: the whole of a small file, without a request of its own, or the beginning of a longer
//! one, so that its first read need not wait for another round trip.

use super::open::Pages;
use crate::Stored;
use bytes::Bytes;
use common::budget::{Purpose, Reservation};
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

/// First bytes of a file, with the memory that they take.
pub(super) struct Head {
    bytes: Bytes,
    _memory: Reservation,
}

impl Head {
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Which open files hold first bytes: a file may stay open and its beginning never be read, so all of them together
/// are bounded, the oldest give way, and all do when somebody waits for memory.
pub(super) struct Heads {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    queue: VecDeque<(Weak<Pages>, usize)>,
    bytes: usize,
}

impl Heads {
    /// Within a memory budget of so many bytes.
    pub fn new(budget: usize) -> Self {
        Self { limit: (budget / 16).min(8 << 20), held: Mutex::default() }
    }

    /// Notes that `pages` holds so many first bytes.
    fn hold(&self, pages: &Arc<Pages>, bytes: usize) {
        let mut gone = Vec::new();
        {
            let mut held = self.held.lock();
            held.queue.push_back((Arc::downgrade(pages), bytes));
            held.bytes += bytes;
            while held.bytes > self.limit
                && let Some((pages, bytes)) = held.queue.pop_front()
            {
                held.bytes -= bytes;
                gone.push(pages);
            }
        }
        release(gone);
    }

    /// Has all of them given up.
    pub fn clear(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        release(held.queue.into_iter().map(|(pages, _)| pages));
    }
}

fn release(gone: impl IntoIterator<Item = Weak<Pages>>) {
    for pages in gone.into_iter().filter_map(|pages| pages.upgrade()) {
        let head = pages.head.lock().take();
        drop(head);
    }
}

impl Pages {
    /// Takes over `bytes`, the first ones of this version: all of a file of one page is stored; of a longer file they are
    /// kept, while there is memory, until its first page is fetched.
    pub fn seed(self: &Arc<Self>, bytes: &Bytes) {
        if self.count() == 0 || bytes.is_empty() {
            return;
        }
        if bytes.len() < self.page_len(0) {
            if !self.is_present(0)
                && let Some(memory) = self.reads.pool.budget().try_reserve(bytes.len(), Purpose::Prefetch)
            {
                *self.head.lock() = Some(Head { bytes: bytes.clone(), _memory: memory });
                self.reads.heads.hold(self, bytes.len());
            }
            return;
        }
        if self.count() > 1 {
            return;
        }
        let bytes = &bytes[..self.page_len(0)];
        if self.writes_inline()
            && let Some(stored) = &self.stored
            && matches!(stored.write_page(0, bytes), Stored::Written | Stored::Present | Stored::Busy)
        {
            return;
        }
        // Not stored: kept in memory while there is plenty, since a reader is likely to follow.
        let Some((load, mut writer)) = self.reads.pool.try_load(bytes.len(), Purpose::Prefetch) else { return };
        if !self.enter_if_absent(0, &load) {
            return;
        }
        writer.append(bytes);
        if writer.finish().is_ok() {
            self.settle(0, load);
        }
    }
}
