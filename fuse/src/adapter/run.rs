//! How an operation runs: timed, caught, and moved to the runtime once it waits.

use super::Adapter;
use common::metrics::{FuseOp, metrics};
use futures::FutureExt;
use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Poll, Waker},
    time::Instant,
};

/// Measures one operation, from its request to its reply.
pub(super) struct Timer {
    op: FuseOp,
    since: Instant,
}

impl Timer {
    pub(super) fn start(op: FuseOp) -> Self {
        Self { op, since: Instant::now() }
    }

    /// It was answered.
    pub(super) fn done(self) {
        metrics().fuse_latency.of(self.op).observe(self.since.elapsed());
    }

    /// It was answered with an error.
    pub(super) fn failed(self) {
        metrics().fuse_errors.of(self.op).inc();
        self.done();
    }
}

/// Runs an operation; a panic is logged and goes no further. The reply that it dropped has answered EIO.
pub(super) fn caught(operation: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(operation)) {
        log_panic(&*panic);
    }
}

fn log_panic(panic: &(dyn std::any::Any + Send)) {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!("an operation panicked and was answered EIO: {}", text.unwrap_or("no message"));
}

impl Adapter {
    /// Runs `work`: what it can do without waiting at once and here, so that an answer from memory wakes nobody; the
    /// rest on the runtime.
    pub(super) fn drive(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        let first = {
            let _inside = self.runtime.enter();
            work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        match first {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(panic)) => log_panic(&*panic),
            // The runtime looks again before it sleeps, so nothing that happened in between is missed.
            Poll::Pending => {
                self.runtime.spawn(async move {
                    if let Err(panic) = work.await {
                        log_panic(&*panic);
                    }
                });
            }
        }
    }
}
