//! Counts what calls of under storages cost and how they fail.

use common::{
    Result,
    metrics::{UfsOp, metrics},
};
use std::{future::Future, time::Instant};

/// Awaits a call, and notes its time and its failure.
pub async fn observe<T>(op: UfsOp, call: impl Future<Output = Result<T>>) -> Result<T> {
    let begin = Instant::now();
    let result = call.await;
    metrics().ufs_latency.of(op).observe(begin.elapsed());
    if let Err(error) = &result {
        metrics().ufs_errors.of(error.kind().into()).inc();
    }
    result
}
