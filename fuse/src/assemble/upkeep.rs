//! What a mount does now and then by itself: it takes back what was not used for a while, gives memory that it no longer
//! needs to the system, and sets the gauges of its figures.
//!
//! Invariants: nothing here keeps the mount alive; an idle mount wakes once in a tick, and gives memory back once.

use crate::fs::Fs;
use common::metrics::{FuseOp, metrics};
use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};
use store::ReadThrough;
use tokio::runtime::Handle;
use worker::EmbeddedWorker;

/// How often it looks.
const TICK: Duration = Duration::from_secs(10);

/// The parts that it looks after.
#[derive(Clone)]
pub(super) struct Upkeep {
    fs: Weak<Fs>,
    /// None over a worker that is not embedded here.
    below: Option<(Weak<EmbeddedWorker>, Weak<ReadThrough>)>,
}

impl Upkeep {
    pub(super) fn new(fs: &Arc<Fs>, below: Option<(&Arc<EmbeddedWorker>, &Arc<ReadThrough>)>) -> Self {
        let below = below.map(|(worker, reads)| (Arc::downgrade(worker), Arc::downgrade(reads)));
        Self { fs: Arc::downgrade(fs), below }
    }

    /// Looks after them until the file system is gone; the metrics show their figures as of the moment.
    pub(super) fn start(self, runtime: &Handle) {
        let figures = self.clone();
        metrics().refresh_by(move || figures.set_gauges());
        runtime.spawn(async move {
            let mut rest = Rest::default();
            loop {
                tokio::time::sleep(TICK).await;
                let Some(fs) = self.fs.upgrade() else { return };
                fs.tick(Instant::now());
                if rest.begins(self.events()) {
                    self.trim(&fs);
                }
            }
        });
    }

    /// False when there is nothing left to tell of.
    fn set_gauges(&self) -> bool {
        let Some(fs) = self.fs.upgrade() else { return false };
        fs.set_gauges();
        if let Some(worker) = self.below.as_ref().and_then(|(worker, _)| worker.upgrade()) {
            let entries = worker.stats().metadata_entries;
            metrics().metadata_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        }
        true
    }

    /// A number that changes whenever anything was asked of this mount, or fetched.
    fn events(&self) -> u64 {
        let calls = [FuseOp::Lookup, FuseOp::GetAttr, FuseOp::Open, FuseOp::Read, FuseOp::ReadDir, FuseOp::ReadDirPlus];
        let fetched = self.below.as_ref().and_then(|(_, reads)| reads.upgrade()).map_or(0, |reads| {
            let stats = reads.stats();
            stats.requests.wrapping_add(stats.fetched_bytes)
        });
        calls.iter().fold(fetched, |sum, call| sum.wrapping_add(metrics().fuse_latency.of(*call).count()))
    }

    fn trim(&self, fs: &Fs) {
        fs.client().trim();
        if let Some(reads) = self.below.as_ref().and_then(|(_, reads)| reads.upgrade()) {
            reads.trim();
        }
        give_back();
    }
}

/// Whether nothing happens.
#[derive(Debug, Default)]
struct Rest {
    seen: u64,
    trimmed: bool,
}

impl Rest {
    /// Told of the events so far, once in a tick: true at the first one with no news, once until there are some again.
    fn begins(&mut self, events: u64) -> bool {
        if events != self.seen {
            *self = Self { seen: events, trimmed: false };
            return false;
        }
        !std::mem::replace(&mut self.trimmed, true)
    }
}

/// Gives freed memory back to the system: the allocator keeps what lies between things that live on.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim may be called at any time from any thread; it touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_each_time_of_use() {
        let mut rest = Rest::default();
        let trims: Vec<bool> = [5, 5, 5, 6, 7, 7, 7].into_iter().map(|events| rest.begins(events)).collect();
        assert_eq!(trims, [false, true, false, false, false, true, false]);
    }
}
