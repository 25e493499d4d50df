//! One budget for all memory that holds file data: pages that are being fetched, pages that wait to be stored, reply buffers.
//!
//! Invariants:
//! - what is reserved never exceeds the limit, whatever the number of readers;
//! - those who must wait are served in order of arrival, so nobody starves;
//! - prefetch takes only what is free, and leaves a quarter of the budget to readers that wait ([`Purpose`]).
//!
//! Who waits for a reservation must hold none (else two such could wait for each other): copy out and release first.

use crate::{
    error::{Error, ErrorKind, Result},
    metrics::metrics,
};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit of the semaphore stands for.
const UNIT: usize = 4096;

/// What memory is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Somebody waits for these bytes.
    Demand,
    /// Nobody waits yet; take nothing when memory is short.
    Prefetch,
}

/// The budget. Cheap to share by `Arc`.
#[derive(Debug)]
pub struct MemoryBudget {
    semaphore: Arc<Semaphore>,
    units: usize,
}

impl MemoryBudget {
    /// A budget of `limit` bytes (rounded down to 4 KiB, one unit at least).
    pub fn new(limit: usize) -> Arc<Self> {
        let units = (limit / UNIT).clamp(1, u32::MAX as usize >> 3);
        Arc::new(Self { semaphore: Arc::new(Semaphore::new(units)), units })
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> usize {
        self.units * UNIT
    }

    /// What is reserved now, in bytes.
    pub fn used(&self) -> usize {
        (self.units - self.semaphore.available_permits().min(self.units)) * UNIT
    }

    /// Reserves `bytes` without waiting; none when there is too little (for prefetch: less than a quarter would be left).
    pub fn try_reserve(self: &Arc<Self>, bytes: usize, purpose: Purpose) -> Option<Reservation> {
        let units = bytes.div_ceil(UNIT).max(1);
        if purpose == Purpose::Prefetch && self.semaphore.available_permits() < units + self.units / 4 {
            return None;
        }
        let permit = self.semaphore.clone().try_acquire_many_owned(u32::try_from(units).ok()?).ok()?;
        Some(Reservation { permit })
    }

    /// Reserves `bytes`, waiting in line. Fails (`NoMemory`) only when it is more than the whole budget.
    pub async fn reserve(self: &Arc<Self>, bytes: usize) -> Result<Reservation> {
        let units = bytes.div_ceil(UNIT).max(1);
        let too_much = || {
            Error::new(
                ErrorKind::NoMemory,
                format!(
                    "{bytes} bytes are more than the memory budget of {} bytes; raise alluxio.user.memory.limit",
                    self.limit()
                ),
            )
        };
        if units > self.units {
            return Err(too_much());
        }
        let units = u32::try_from(units).map_err(|_| too_much())?;
        if let Ok(permit) = self.semaphore.clone().try_acquire_many_owned(units) {
            return Ok(Reservation { permit });
        }
        metrics().budget_waits.inc();
        let permit = self.semaphore.clone().acquire_many_owned(units).await.map_err(|_| too_much())?;
        Ok(Reservation { permit })
    }
}

/// Memory that its holder may use; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    permit: OwnedSemaphorePermit,
}

impl Reservation {
    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.permit.num_permits() * UNIT
    }

    /// Takes `bytes` (rounded up to 4 KiB) out of it as a reservation of their own; none when it holds less.
    pub fn split(&mut self, bytes: usize) -> Option<Reservation> {
        let permit = self.permit.split(bytes.div_ceil(UNIT).max(1))?;
        Some(Reservation { permit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefetch_leaves_a_quarter() {
        let budget = MemoryBudget::new(16 * UNIT);
        let held = budget.try_reserve(12 * UNIT, Purpose::Prefetch).unwrap();
        assert!(budget.try_reserve(1, Purpose::Prefetch).is_none());
        let rest = budget.try_reserve(4 * UNIT, Purpose::Demand).unwrap();
        assert_eq!(budget.used(), budget.limit());
        drop((held, rest));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn more_than_everything_is_refused_at_once() {
        let budget = MemoryBudget::new(4 * UNIT);
        assert_eq!(budget.reserve(5 * UNIT).await.unwrap_err().kind(), ErrorKind::NoMemory);
        let all = budget.reserve(4 * UNIT).await.unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(UNIT).await.map(|held| held.bytes()) }
        });
        drop(all);
        assert_eq!(waiting.await.unwrap().unwrap(), UNIT);
    }
}
