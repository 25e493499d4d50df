//! Calls that end: a bound on every wait, for futures and for blocking calls.

use common::{Error, ErrorKind, Result};
use std::{future::Future, time::Duration};

/// Waits for `future`, at most `limit`; then `TimedOut`, naming `what`.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, future).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(limit, what)),
    }
}

/// Runs `call` on a thread for blocking calls and waits for it, at most `limit`. A call that takes longer goes on unseen
/// until the kernel lets go of it.
pub async fn blocking<T: Send + 'static>(
    limit: Duration,
    what: &str,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(call)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(gone)) => Err(Error::with_source(ErrorKind::Io, format!("{what}: the call was given up"), gone)),
        Err(_) => Err(timed_out(limit, what)),
    }
}

/// The error for a wait of `limit` on `what` that was in vain.
pub fn timed_out(limit: Duration, what: &str) -> Error {
    Error::new(ErrorKind::TimedOut, format!("{what}: no answer within {limit:?}"))
}
