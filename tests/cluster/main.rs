//! Clusters of real processes: etcd, workers, mounts, with an S3 server behind them.

mod changes;
mod failures;
mod processes;
mod reading;
mod restarts;
mod tls;
