//! What all handles of a client share: options, reply buffers, and how many streams divide the memory.

use crate::{buffers::ReplyBuffers, options::ClientOptions, streams::Limits};
use common::budget::MemoryBudget;
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// The streams of a handle that nothing was read from for a whole period count no more.
const PERIOD: Duration = Duration::from_secs(5);

/// Shared by all handles.
pub struct ClientShared {
    pub(crate) options: ClientOptions,
    pub(crate) buffers: Arc<ReplyBuffers>,
    pub(crate) budget: Arc<MemoryBudget>,
    start: Instant,
    census: Mutex<Census>,
    /// What the census says, and of which period, to be looked at without its lock.
    streams: AtomicUsize,
    counted: AtomicU64,
}

/// Streams by the period in which their handle was read last: this one or the one before. Older ones are gone.
#[derive(Debug, Default)]
struct Census {
    period: u64,
    now: usize,
    before: usize,
}

/// What one handle counts for.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    period: u64,
    streams: usize,
}

impl Census {
    fn roll(&mut self, period: u64) {
        if period > self.period {
            self.before = if period == self.period + 1 { self.now } else { 0 };
            self.now = 0;
            self.period = period;
        }
    }

    fn withdraw(&mut self, tally: &mut Tally) {
        if tally.period == self.period {
            self.now -= tally.streams;
        } else if tally.period + 1 == self.period {
            self.before -= tally.streams;
        }
        tally.streams = 0;
    }
}

impl ClientShared {
    /// With these options, within `budget`.
    pub fn new(options: ClientOptions, budget: Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self {
            options,
            buffers: ReplyBuffers::new(&budget),
            budget,
            start: Instant::now(),
            census: Mutex::default(),
            streams: AtomicUsize::new(0),
            counted: AtomicU64::new(0),
        })
    }

    /// Streams that prefetch now, in all handles.
    pub fn streams(&self) -> usize {
        self.streams_at(self.period())
    }

    /// The reply buffers.
    pub fn buffers(&self) -> &Arc<ReplyBuffers> {
        &self.buffers
    }

    /// The budget that everything read is counted in.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    fn period(&self) -> u64 {
        self.start.elapsed().as_secs() / PERIOD.as_secs()
    }

    fn streams_at(&self, period: u64) -> usize {
        if self.counted.load(Ordering::Relaxed) < period {
            self.change(period, |_| ());
        }
        self.streams.load(Ordering::Relaxed)
    }

    /// Notes that a handle was read from and has so many streams.
    pub(crate) fn count(&self, tally: &mut Tally, streams: usize) {
        self.count_at(tally, streams, self.period());
    }

    fn count_at(&self, tally: &mut Tally, streams: usize, period: u64) {
        if tally.streams == streams && (streams == 0 || tally.period == period) {
            return;
        }
        self.change(period, |census| {
            census.withdraw(tally);
            census.now += streams;
            *tally = Tally { period: census.period, streams };
        });
    }

    /// Notes that a handle is gone.
    pub(crate) fn uncount(&self, tally: &mut Tally) {
        if tally.streams > 0 {
            self.change(tally.period, |census| census.withdraw(tally));
        }
    }

    fn change(&self, period: u64, change: impl FnOnce(&mut Census)) {
        let mut census = self.census.lock();
        census.roll(period);
        change(&mut census);
        self.streams.store(census.now + census.before, Ordering::Relaxed);
        self.counted.store(census.period, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_a_parked_handle_divide_the_memory_no_more() {
        let shared = ClientShared::new(ClientOptions::default(), MemoryBudget::new(64 << 20));
        let (mut parked, mut read) = (Tally::default(), Tally::default());
        shared.count_at(&mut parked, 3, 7);
        shared.count_at(&mut read, 1, 7);
        assert_eq!(shared.streams_at(7), 4);
        shared.count_at(&mut read, 1, 8);
        assert_eq!(shared.streams_at(8), 4, "a moment ago is not parked");
        shared.count_at(&mut read, 1, 9);
        assert_eq!(shared.streams_at(9), 1);
        shared.count_at(&mut parked, 2, 9);
        assert_eq!(shared.streams_at(9), 3, "it is read again");
        shared.uncount(&mut parked);
        shared.uncount(&mut parked);
        assert_eq!(shared.streams_at(9), 1);
        assert_eq!(shared.streams_at(11), 0);
        shared.uncount(&mut read);
        assert_eq!(shared.streams_at(11), 0);
    }
}
