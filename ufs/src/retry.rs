//! How often, and for how long, something that failed for a passing reason is tried again.

use crate::options::UfsOptions;
use common::{Error, Result, metrics::metrics};
use rand::Rng;
use std::time::{Duration, Instant};

/// The first pause, doubled each time.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(2);

/// The attempts at one call.
#[derive(Debug)]
pub struct Attempts {
    made: u32,
    most: u32,
    /// When the time without progress began, and how long it may last.
    since: Instant,
    give_up: Duration,
    /// When the call ends whatever progress it makes.
    end: Instant,
}

impl Attempts {
    /// Attempts at a call that is to bring `bytes`.
    pub fn new(options: &UfsOptions, bytes: u64) -> Self {
        let now = Instant::now();
        // Slower than 16 KiB per second is as good as broken.
        let end = now + options.give_up + Duration::from_secs(bytes >> 14);
        Self { made: 0, most: options.retries, since: now, give_up: options.give_up, end }
    }

    /// Gives up after `limit` at the latest.
    pub fn limited(mut self, limit: Duration) -> Self {
        self.give_up = self.give_up.min(limit);
        self.end = self.end.min(self.since + limit);
        self
    }

    /// For a call whose answer may take `time` more.
    pub fn thinking(mut self, time: Duration) -> Self {
        self.give_up += time;
        self.end += time;
        self
    }

    /// Notes that something arrived: what comes next counts as a first attempt.
    pub fn progress(&mut self) {
        self.made = 0;
        self.since = Instant::now();
    }

    /// Whether the call must end now whatever progress it makes.
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// How long the call may still take.
    pub fn left(&self) -> Duration {
        let end = self.end.min(self.since + self.give_up);
        end.saturating_duration_since(Instant::now())
    }

    /// Waits until the next attempt, or gives `error` back when there is none.
    pub async fn again(&mut self, error: Error) -> Result<()> {
        let longest = LONGEST.min(FIRST * 2u32.saturating_pow(self.made.min(16)));
        // Somewhere in the upper half: callers that failed together do not come back together.
        let pause = longest.mul_f64(rand::rng().random_range(0.5..1.0));
        if self.made >= self.most || pause >= self.left() {
            return Err(error);
        }
        self.made += 1;
        metrics().ufs_retries.inc();
        tracing::debug!("again in {pause:?}: {error}");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::ErrorKind;

    fn failed() -> Error {
        Error::new(ErrorKind::Unavailable, "x")
    }

    #[tokio::test]
    async fn attempts_end_and_progress_renews_them() {
        let options = UfsOptions { retries: 2, ..Default::default() };
        let mut attempts = Attempts::new(&options, 0);
        assert!(attempts.again(failed()).await.is_ok());
        assert!(attempts.again(failed()).await.is_ok());
        assert!(attempts.again(failed()).await.is_err());
        attempts.progress();
        assert!(attempts.again(failed()).await.is_ok());
    }

    #[tokio::test]
    async fn no_attempt_begins_when_time_is_up() {
        let mut attempts = Attempts::new(&UfsOptions::default(), 0).limited(Duration::ZERO);
        assert_eq!(attempts.left(), Duration::ZERO);
        assert!(attempts.again(failed()).await.is_err());
    }
}
