//! Builds what a mount consists of: under storage, page store, worker, client, file system, adapter.
//!
//! Invariant: when [`filesystem`] returns, the under storage has answered once (its root can be used with these
//! credentials), so that a mount never comes up over something that cannot work.

use crate::{
    adapter::Adapter,
    fs::{Fs, FsOptions},
};
use common::{Error, Result, UfsUri, conf::Conf, worker::Worker};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// How often the file system looks after what it keeps.
const TICK: Duration = Duration::from_secs(10);

/// What is to be mounted, and how.
#[derive(Debug, Clone)]
pub struct MountPlan {
    /// The root of the under storage.
    pub uri: UfsUri,
    /// The configuration, options of the mount included (timeouts, kernel cache, passthrough, threads).
    pub conf: Conf,
    /// Options of the under storage that count for this mount only; they override `conf`.
    pub ufs_options: Vec<(String, String)>,
    /// Whether the mount takes no writes. Until writes come this changes nothing: they answer EROFS anyway.
    pub read_only: bool,
}

/// A file system that is ready to be mounted.
///
/// Take it down in this order: end the FUSE session (which drops the adapter), drop `fs`, then
/// `runtime.shutdown_timeout(..)`. It must not be dropped inside an asynchronous task.
pub struct MountedParts {
    /// What fuser serves; give it to `fuser::Session::from_fd` or `Session::new`.
    pub adapter: Adapter,
    /// The file system below it: [`Fs::status`] for the state file and `/metrics`.
    pub fs: Arc<Fs>,
    /// Where the asynchronous work runs; `runtime.handle()` serves the web endpoint too.
    pub runtime: Runtime,
    /// How many threads should take requests (`fuser::Config::n_threads`; never `clone_fd`).
    pub threads: usize,
}

/// The parts that a test may bring itself.
pub struct Parts {
    /// Who serves metadata and data.
    pub worker: Arc<dyn Worker>,
    /// How the file system behaves.
    pub options: FsOptions,
}

/// Builds a file system over parts that exist already.
///
/// # Errors
/// The runtime's threads could not be started.
pub fn from_parts(parts: Parts) -> Result<MountedParts> {
    let runtime = runtime(2)?;
    let fs = Fs::new(parts.worker, parts.options);
    mounted(fs, runtime)
}

fn runtime(threads: usize) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_name("alluxio-fuse")
        .enable_all()
        .build()
        .map_err(|error| Error::io("the threads of the daemon", error))
}

fn mounted(fs: Arc<Fs>, runtime: Runtime) -> Result<MountedParts> {
    let weak = Arc::downgrade(&fs);
    runtime.spawn(async move {
        loop {
            tokio::time::sleep(TICK).await;
            let Some(fs) = weak.upgrade() else { return };
            fs.tick(Instant::now());
        }
    });
    let adapter = Adapter::new(fs.clone(), runtime.handle().clone());
    let threads = fs.options().threads;
    Ok(MountedParts { adapter, fs, runtime, threads })
}
