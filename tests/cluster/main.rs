//! Clusters of real processes: etcd, workers, mounts, with an S3 server behind them.

mod bad_input;
mod changes;
mod commands;
mod failures;
mod histories;
mod outages;
mod placement;
mod processes;
mod reading;
mod restarts;
mod tls;
mod writing;
