//! Clusters of real processes: etcd, workers, mounts, with an S3 server behind them.

mod failures;
mod processes;
mod reading;
