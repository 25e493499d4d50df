//! The clock that ages what is cached. A value, so that tests turn the hands instead of waiting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A clock that never goes back.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    manual: Option<Arc<AtomicU64>>,
}

/// A moment on a [`Clock`]: nanoseconds since some fixed start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The time from `earlier` to this moment, zero when it lies after it.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This moment and `duration` more.
    pub fn plus(self, duration: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Clock {
    /// The clock of the system.
    pub fn system() -> Self {
        Self { manual: None }
    }

    /// A clock that stands still until [`advance`](Self::advance). Clones share their hands.
    pub fn manual() -> Self {
        Self { manual: Some(Arc::default()) }
    }

    /// Turns a manual clock on by `duration`; without effect on the system's.
    pub fn advance(&self, duration: Duration) {
        if let Some(hands) = &self.manual {
            hands.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
        }
    }

    /// Now.
    pub fn now(&self) -> Moment {
        match &self.manual {
            Some(hands) => Moment(hands.load(Ordering::SeqCst)),
            None => {
                static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
                let start = *START.get_or_init(Instant::now);
                Moment(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
            }
        }
    }
}
