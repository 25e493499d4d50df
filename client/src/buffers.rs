//! Reply buffers: owned memory for what a read copies together (several pages, or bytes from disk).
//!
//! They have a fixed share of the memory budget, reserved once, apart from pages. That is what makes it safe to hold a
//! reply buffer while waiting for a page: whoever holds a page never waits for a reply buffer, so no two can wait for
//! each other.
//!
//! Invariants: buffers in use never exceed the share (one read larger than the share takes all of it); idle buffers
//! are counted in it.

use common::{
    Error, ErrorKind, Result,
    budget::{MemoryBudget, Purpose, Reservation},
};
use parking_lot::Mutex;
use std::{ops::Deref, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const UNIT: usize = 4096;
/// The share of the budget: an eighth, at most this much.
const SHARE_LIMIT: usize = 32 << 20;

/// The pool of reply buffers.
pub struct ReplyBuffers {
    semaphore: Arc<Semaphore>,
    units: usize,
    idle: Mutex<Vec<Vec<u8>>>,
    _share: Option<Reservation>,
}

impl ReplyBuffers {
    /// A pool with its share of `budget`.
    pub fn new(budget: &Arc<MemoryBudget>) -> Arc<Self> {
        let bytes = (budget.limit() / 8).clamp(UNIT, SHARE_LIMIT);
        // None only when the budget is used up at start; then the pool is small and counts beside it.
        let share = budget.try_reserve(bytes, Purpose::Demand);
        let units = if share.is_some() { bytes / UNIT } else { 1 };
        Arc::new(Self { semaphore: Arc::new(Semaphore::new(units)), units, idle: Mutex::default(), _share: share })
    }

    /// A buffer of `len` bytes without waiting; none when all are in use.
    pub fn try_get(self: &Arc<Self>, len: usize) -> Option<ReplyBuffer> {
        let permit = self.semaphore.clone().try_acquire_many_owned(self.permits(len)).ok()?;
        Some(self.buffer(len, permit))
    }

    /// A buffer of `len` bytes, waiting in line. The caller holds no page.
    pub async fn get(self: &Arc<Self>, len: usize) -> Result<ReplyBuffer> {
        let permit = self.semaphore.clone().acquire_many_owned(self.permits(len)).await;
        let permit = permit.map_err(|_| Error::new(ErrorKind::Cancelled, "the client stops"))?;
        Ok(self.buffer(len, permit))
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        (self.units - self.semaphore.available_permits().min(self.units)) * UNIT
    }

    /// Gives the memory of idle buffers back to the system.
    pub fn trim(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }

    fn permits(&self, len: usize) -> u32 {
        u32::try_from(len.div_ceil(UNIT).clamp(1, self.units)).unwrap_or(u32::MAX)
    }

    fn buffer(self: &Arc<Self>, len: usize, permit: OwnedSemaphorePermit) -> ReplyBuffer {
        let size = len.div_ceil(UNIT).max(1) * UNIT;
        let (found, surplus) = {
            let mut idle = self.idle.lock();
            let at = idle.iter().rposition(|buffer| buffer.len() == size);
            let found = at.map(|at| idle.swap_remove(at));
            (found, self.surplus(&mut idle))
        };
        drop(surplus);
        ReplyBuffer { bytes: found.unwrap_or_else(|| vec![0; size]), len, pool: self.clone(), permit: Some(permit) }
    }

    fn give_back(&self, buffer: Vec<u8>, permit: Option<OwnedSemaphorePermit>) {
        let surplus = {
            let mut idle = self.idle.lock();
            drop(permit);
            idle.push(buffer);
            self.surplus(&mut idle)
        };
        drop(surplus);
    }

    /// Takes out the oldest idle buffers until those in use and those kept fit the share.
    fn surplus(&self, idle: &mut Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut kept: usize = idle.iter().map(Vec::len).sum();
        let mut count = 0;
        while count < idle.len() && self.used() + kept > self.units * UNIT {
            kept -= idle[count].len();
            count += 1;
        }
        idle.drain(..count).collect()
    }
}

/// A buffer of the pool; given back when dropped.
pub struct ReplyBuffer {
    bytes: Vec<u8>,
    len: usize,
    pool: Arc<ReplyBuffers>,
    permit: Option<OwnedSemaphorePermit>,
}

impl ReplyBuffer {
    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// Keeps only the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for ReplyBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for ReplyBuffer {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes), self.permit.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_bounds_what_is_used_and_kept() {
        let budget = MemoryBudget::new(64 * UNIT);
        let pool = ReplyBuffers::new(&budget);
        assert_eq!(budget.used(), 8 * UNIT);
        let all: Vec<_> = (0..8).map(|_| pool.try_get(UNIT).unwrap()).collect();
        assert!(pool.try_get(1).is_none());
        drop(all);
        assert_eq!(pool.used(), 0);
        assert!(pool.idle.lock().iter().map(Vec::capacity).sum::<usize>() <= 8 * UNIT);
        let mut huge = pool.try_get(100 * UNIT).unwrap();
        huge.bytes_mut().fill(7);
        assert!(pool.try_get(1).is_none(), "one larger than the share takes all of it");
        drop(huge);
        assert!(pool.idle.lock().iter().map(Vec::capacity).sum::<usize>() <= 8 * UNIT);
        drop(pool);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn who_must_wait_is_served_when_one_is_given_back() {
        let budget = MemoryBudget::new(8 * UNIT);
        let pool = ReplyBuffers::new(&budget);
        let only = pool.try_get(UNIT).unwrap();
        let waiting = tokio::spawn({
            let pool = pool.clone();
            async move { pool.get(10).await.map(|buffer| buffer.len()) }
        });
        drop(only);
        assert_eq!(waiting.await.unwrap().unwrap(), 10);
    }
}
