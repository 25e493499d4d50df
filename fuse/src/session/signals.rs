//! Signals, taken by one thread. Every other thread has them blocked, so that no signal ever ends the process half way
//! and none is handled between two instructions of anybody.

use super::{Result, SessionError};
use nix::sys::signal::{SigSet, Signal};

fn set() -> SigSet {
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect()
}

/// Blocks the signals for this thread and all that it starts. Call it before the first thread is started.
pub fn block() -> Result<()> {
    set().thread_block().map_err(|error| SessionError::system("blocking signals", error))
}

/// Starts the thread that takes them. `stop` is called for SIGINT and SIGTERM, with the number of those so far, from 1;
/// SIGHUP has the log file opened anew.
pub fn start(mut stop: impl FnMut(u64) + Send + 'static) -> Result<()> {
    let take = move || {
        let mut stops = 0;
        loop {
            match set().wait() {
                Ok(Signal::SIGHUP) => common::logging::request_reopen(),
                Ok(_) => {
                    stops += 1;
                    stop(stops);
                }
                // sigwait has no failure for a set of valid signals.
                Err(error) => tracing::error!("waiting for signals: {error}"),
            }
        }
    };
    match std::thread::Builder::new().name("signals".into()).spawn(take) {
        Ok(_) => Ok(()),
        Err(error) => Err(SessionError::system("a thread for signals", error)),
    }
}
