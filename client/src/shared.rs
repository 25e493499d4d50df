//! What all handles of a client share: options, reply buffers, and how many streams divide the memory.

use crate::{buffers::ReplyBuffers, options::ClientOptions, streams::Limits};
use common::budget::MemoryBudget;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Shared by all handles.
pub struct ClientShared {
    pub(crate) options: ClientOptions,
    pub(crate) buffers: Arc<ReplyBuffers>,
    pub(crate) budget: Arc<MemoryBudget>,
    streams: AtomicUsize,
}

impl ClientShared {
    /// With these options, within `budget`.
    pub fn new(options: ClientOptions, budget: Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self { options, buffers: ReplyBuffers::new(&budget), budget, streams: AtomicUsize::new(0) })
    }

    /// Streams that prefetch now, in all handles.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// The reply buffers.
    pub fn buffers(&self) -> &Arc<ReplyBuffers> {
        &self.buffers
    }

    pub(crate) fn count_streams(&self, before: usize, after: usize) {
        if after >= before {
            self.streams.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.streams.fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// What one more stream may use: its part of what prefetch may take of the budget.
    pub(crate) fn limits(&self, page_size: u64) -> Limits {
        let all = (self.budget.limit() as u64 / 2).min(self.options.prefetch_total);
        let share = all / self.streams().max(1) as u64;
        let window = match self.options.prefetch_window {
            0 => 0,
            window => window.min(share.max(2 * page_size)),
        };
        Limits { page_size, window, extents: u64::from(self.options.prefetch_extents.max(1)) }
    }
}
