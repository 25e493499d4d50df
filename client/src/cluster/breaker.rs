//! A circuit breaker for each worker: after a failure nobody waits for that worker again until a probe has reached it.
//!
//! Readers never probe: while the breaker is open a background task tries the worker at growing intervals, and closes it.

use parking_lot::Mutex;
use std::time::Duration;

/// The pause before the first probe.
pub const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between probes.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Whether a worker may be asked.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    failures: u32,
}

impl Breaker {
    /// Whether requests may go to the worker.
    pub fn is_closed(&self) -> bool {
        !self.state.lock().open
    }

    /// The worker failed. Returns true to the one caller that has to start probing.
    #[must_use]
    pub fn failed(&self) -> bool {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        !std::mem::replace(&mut state.open, true)
    }

    /// The worker answered.
    pub fn answered(&self) {
        let mut state = self.state.lock();
        *state = State::default();
    }

    /// How long to wait before probe number `probe` (0 for the first).
    pub fn pause(probe: u32) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << probe.min(10)).min(LONGEST_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_probes_and_an_answer_closes() {
        let breaker = Breaker::default();
        assert!(breaker.is_closed());
        assert!(breaker.failed());
        assert!(!breaker.failed(), "somebody probes already");
        assert!(!breaker.is_closed());
        breaker.answered();
        assert!(breaker.is_closed());
        assert!(breaker.failed());
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(Breaker::pause(0), FIRST_PAUSE);
        assert!(Breaker::pause(1) > Breaker::pause(0));
        assert_eq!(Breaker::pause(60), LONGEST_PAUSE);
    }
}
