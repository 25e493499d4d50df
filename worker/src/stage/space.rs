//! The space of the stage: what all staged files together may take on disk.
//!
//! Invariants: what is taken never exceeds the capacity, but for what lay there when the process began and for what parts that
//! are being sent need from their object ([`Space::take_anyway`]); who waits waits no longer than a limit, then `NoSpace`;
//! what was taken and not kept comes back, also from whoever was given up while it waited.

use common::{Error, ErrorKind, Result, metrics::metrics};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::sync::Notify;

/// The space.
#[derive(Debug)]
pub(crate) struct Space {
    capacity: u64,
    used: Mutex<u64>,
    freed: Notify,
}

/// Space that is taken, and comes back when this is dropped, as far as it was not kept.
#[derive(Debug)]
pub(crate) struct Taken {
    space: Arc<Space>,
    bytes: u64,
}

impl Taken {
    /// So much of it stays taken: it lies on disk now.
    pub(crate) fn keep(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.bytes, "{bytes} of {} are kept", self.bytes);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// What is not kept yet.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.space.give(self.bytes);
    }
}

impl Space {
    /// Space of `capacity` bytes, none of it taken.
    pub(crate) fn new(capacity: u64) -> Arc<Self> {
        Arc::new(Self { capacity, used: Mutex::new(0), freed: Notify::new() })
    }

    /// Bytes taken.
    pub(crate) fn used(&self) -> u64 {
        *self.used.lock()
    }

    /// Takes `bytes` if they are free.
    pub(crate) fn try_take(self: &Arc<Self>, bytes: u64) -> Option<Taken> {
        let mut used = self.used.lock();
        let total = used.checked_add(bytes).filter(|total| *total <= self.capacity)?;
        self.set(&mut used, total);
        Some(Taken { space: self.clone(), bytes })
    }

    /// Takes `bytes` whatever the capacity.
    pub(crate) fn take_anyway(self: &Arc<Self>, bytes: u64) -> Taken {
        let mut used = self.used.lock();
        let total = used.saturating_add(bytes);
        self.set(&mut used, total);
        Taken { space: self.clone(), bytes }
    }

    /// Takes `bytes`, waiting for them `limit` at most. `relieve` is called before each wait, to free what it can.
    pub(crate) async fn take(
        self: &Arc<Self>,
        bytes: u64,
        limit: Duration,
        relieve: impl Fn() + Send,
    ) -> Result<Taken> {
        if let Some(taken) = self.try_take(bytes) {
            return Ok(taken);
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
                if let Some(taken) = self.try_take(bytes) {
                    return taken;
                }
                // Looked at again without a sign too: what can be freed changes as uploads advance.
                let _ = tokio::time::timeout(Duration::from_millis(200), freed).await;
            }
        };
        tokio::time::timeout(limit, wait).await.map_err(|_| full(&format!(" for {limit:?}")))
    }

    /// Gives `bytes` back that were kept.
    pub(crate) fn give(&self, bytes: u64) {
        if bytes > 0 {
            let mut used = self.used.lock();
            debug_assert!(*used >= bytes, "{bytes} bytes are given back, {used} are taken");
            let left = used.saturating_sub(bytes);
            self.set(&mut used, left);
            drop(used);
            self.freed.notify_waiters();
        }
    }

    fn set(&self, used: &mut u64, now: u64) {
        *used = now;
        metrics().stage_used_bytes.set(i64::try_from(now).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back_or_an_error() {
        let space = Space::new(100);
        let limit = Duration::from_secs(20);
        space.take(80, limit, || ()).await.unwrap().keep(80);
        let waiting = tokio::spawn({
            let space = space.clone();
            async move { space.take(50, limit, || ()).await }
        });
        tokio::task::yield_now().await;
        space.give(80);
        let mut taken = waiting.await.unwrap().unwrap();
        assert_eq!(space.used(), 50);
        taken.keep(50);
        drop(taken);
        assert_eq!(space.used(), 50);
        let short = Duration::from_millis(1);
        assert_eq!(space.take(51, short, || ()).await.unwrap_err().kind(), ErrorKind::NoSpace);
        assert_eq!(space.take(101, limit, || ()).await.unwrap_err().kind(), ErrorKind::NoSpace);
        space.take(100, limit, || space.give(space.used())).await.unwrap().keep(60);
        assert_eq!(space.used(), 60, "what was not kept is back");
    }
}
