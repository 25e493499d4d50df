//! The space of the stage: what all staged files together may take on disk.
//!
//! Invariants: what is taken never exceeds the capacity; who waits waits no longer than a limit, then `NoSpace`.

use common::{Error, ErrorKind, Result, metrics::metrics};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::sync::Notify;

/// The space.
#[derive(Debug)]
pub(crate) struct Space {
    capacity: u64,
    used: Mutex<u64>,
    freed: Notify,
}

impl Space {
    /// Space of `capacity` bytes, none of it taken.
    pub(crate) fn new(capacity: u64) -> Self {
        Self { capacity, used: Mutex::new(0), freed: Notify::new() }
    }

    /// Bytes taken.
    pub(crate) fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Takes `bytes` if they are free.
    pub(crate) fn try_take(&self, bytes: u64) -> bool {
        let mut used = self.used.lock();
        let fits = used.checked_add(bytes).is_some_and(|total| total <= self.capacity);
        if fits {
            *used += bytes;
            metrics().stage_used_bytes.set(i64::try_from(*used).unwrap_or(i64::MAX));
        }
        fits
    }

    /// Takes `bytes` whatever the capacity: what lies on disk already is counted.
    pub(crate) fn take_anyway(&self, bytes: u64) {
        *self.used.lock() += bytes;
    }

    /// Takes `bytes`, waiting for them `limit` at most. `relieve` is called before each wait, to free what it can.
    pub(crate) async fn take(&self, bytes: u64, limit: Duration, relieve: impl Fn() + Send) -> Result<()> {
        if self.try_take(bytes) {
            return Ok(());
        }
        let full = |why: &str| {
            let message = format!("the stage of {} bytes is full{why}; raise alluxio.user.stage.size", self.capacity);
            Error::new(ErrorKind::NoSpace, message)
        };
        if bytes > self.capacity {
            return Err(full(" at once"));
        }
        let wait = async {
            loop {
                let freed = self.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                relieve();
                if self.try_take(bytes) {
                    return;
                }
                // Looked at again without a sign too: what can be freed changes as uploads advance.
                let _ = tokio::time::timeout(Duration::from_millis(200), freed).await;
            }
        };
        tokio::time::timeout(limit, wait).await.map_err(|_| full(&format!(" for {limit:?}")))
    }

    /// Gives `bytes` back.
    pub(crate) fn give(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = self.used.lock();
            *used = used.saturating_sub(bytes);
            metrics().stage_used_bytes.set(i64::try_from(*used).unwrap_or(i64::MAX));
            drop(used);
            self.freed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back_or_an_error() {
        let space = Arc::new(Space::new(100));
        let limit = Duration::from_secs(20);
        space.take(80, limit, || ()).await.unwrap();
        let waiting = tokio::spawn({
            let space = space.clone();
            async move { space.take(50, limit, || ()).await }
        });
        tokio::task::yield_now().await;
        space.give(80);
        waiting.await.unwrap().unwrap();
        assert_eq!(space.used(), 50);
        let short = Duration::from_millis(1);
        assert_eq!(space.take(51, short, || ()).await.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(space.take(101, limit, || ()).await.unwrap_err().kind(), ErrorKind::NoSpace);
        space.take(100, limit, || space.give(50)).await.unwrap();
    }
}
