//! Whether a cache directory is used: normal, unstable (errors happened lately) or down (not used, probed).
//!
//! Invariants: what is down is neither read nor written; it comes back only by a probe that succeeded; nobody waits for
//! a directory that hangs, once that is noticed.

use parking_lot::Mutex;
use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How a directory fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthState {
    /// It works.
    Normal,
    /// Errors happened lately; it is used all the same.
    Unstable,
    /// Not used, until a probe succeeds.
    Down,
}

/// The limits of health.
#[derive(Debug, Clone, Copy)]
pub struct HealthOptions {
    /// Errors, each within `calm` of the one before, after which a directory is down.
    pub errors_until_down: u32,
    /// Time without an error after which it is normal again.
    pub calm: Duration,
    /// Time between probes of a directory that is down.
    pub probe_interval: Duration,
    /// A call that takes longer has hung, and the directory is down.
    pub hang_after: Duration,
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self {
            errors_until_down: 5,
            calm: Duration::from_secs(60),
            probe_interval: Duration::from_secs(10),
            hang_after: Duration::from_secs(15),
        }
    }
}

/// The state of one directory.
#[derive(Debug)]
pub(super) struct Health {
    options: HealthOptions,
    state: AtomicU8,
    errors: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    recent: u32,
    last_error: Option<Instant>,
    next_probe: Option<Instant>,
}

const NORMAL: u8 = 0;
const UNSTABLE: u8 = 1;
const DOWN: u8 = 2;

impl Health {
    pub fn new(options: HealthOptions) -> Self {
        let inner = Inner { recent: 0, last_error: None, next_probe: None };
        Self { options, state: AtomicU8::new(NORMAL), errors: AtomicU64::new(0), inner: Mutex::new(inner) }
    }

    pub fn options(&self) -> &HealthOptions {
        &self.options
    }

    pub fn state(&self) -> HealthState {
        match self.state.load(Relaxed) {
            NORMAL => HealthState::Normal,
            UNSTABLE => HealthState::Unstable,
            _ => HealthState::Down,
        }
    }

    pub fn is_down(&self) -> bool {
        self.state.load(Relaxed) == DOWN
    }

    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    /// A call failed. True when the directory went down by it.
    pub fn failed(&self, now: Instant) -> bool {
        self.errors.fetch_add(1, Relaxed);
        let mut inner = self.inner.lock();
        let calm = inner.last_error.is_none_or(|last| now.duration_since(last) >= self.options.calm);
        inner.recent = if calm { 1 } else { inner.recent + 1 };
        inner.last_error = Some(now);
        if inner.recent >= self.options.errors_until_down {
            return self.go_down(&mut inner, now);
        }
        if !self.is_down() {
            self.state.store(UNSTABLE, Relaxed);
        }
        false
    }

    /// A call has hung. True when the directory went down by it.
    pub fn hung(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        if !self.is_down() {
            self.errors.fetch_add(1, Relaxed);
        }
        inner.last_error = Some(now);
        self.go_down(&mut inner, now)
    }

    fn go_down(&self, inner: &mut Inner, now: Instant) -> bool {
        inner.next_probe = Some(now + self.options.probe_interval);
        self.state.swap(DOWN, Relaxed) != DOWN
    }

    /// Whether the directory is down and due for a probe.
    pub fn wants_probe(&self, now: Instant) -> bool {
        self.is_down() && self.inner.lock().next_probe.is_none_or(|at| now >= at)
    }

    /// A probe ended. True when the directory is in use again by it.
    pub fn probed(&self, now: Instant, worked: bool) -> bool {
        let mut inner = self.inner.lock();
        inner.next_probe = Some(now + self.options.probe_interval);
        if !worked || !self.is_down() {
            return false;
        }
        inner.recent = 0;
        inner.last_error = Some(now);
        self.state.store(UNSTABLE, Relaxed);
        true
    }

    /// Called now and then: what has been calm for long enough is normal again.
    pub fn settle(&self, now: Instant) {
        if self.state.load(Relaxed) != UNSTABLE {
            return;
        }
        let inner = self.inner.lock();
        if inner.last_error.is_none_or(|last| now.duration_since(last) >= self.options.calm) {
            // Fails only when the state has changed since, and then the change is what counts.
            let _ = self.state.compare_exchange(UNSTABLE, NORMAL, Relaxed, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_make_it_unstable_then_down_and_a_probe_brings_it_back() {
        let options = HealthOptions { errors_until_down: 3, ..HealthOptions::default() };
        let health = Health::new(options);
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(!health.failed(start));
        assert_eq!(health.state(), HealthState::Unstable);
        assert!(!health.failed(after(1)));
        assert!(health.failed(after(2)), "the third within a minute");
        assert!(health.is_down());
        assert!(!health.wants_probe(after(3)));
        assert!(health.wants_probe(after(12)));
        assert!(!health.probed(after(12), false));
        assert!(!health.wants_probe(after(13)));
        assert!(health.probed(after(22), true));
        assert_eq!(health.state(), HealthState::Unstable);
        health.settle(after(23));
        assert_eq!(health.state(), HealthState::Unstable);
        health.settle(after(82));
        assert_eq!(health.state(), HealthState::Normal);
        assert_eq!(health.errors(), 3);
    }

    #[test]
    fn rare_errors_do_not_add_up_and_a_hang_counts_at_once() {
        let health = Health::new(HealthOptions { errors_until_down: 2, ..HealthOptions::default() });
        let start = Instant::now();
        for minute in 0..10 {
            assert!(!health.failed(start + Duration::from_secs(61 * minute)));
        }
        assert_eq!(health.state(), HealthState::Unstable);
        assert!(health.hung(start + Duration::from_secs(1000)));
        assert!(!health.hung(start + Duration::from_secs(1001)), "only the change is told");
        assert!(health.is_down());
    }
}
