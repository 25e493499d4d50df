//! The file system: POSIX semantics over a [`Worker`] and its [`Client`], without any FUSE type, so that it is tested without a mount.
//!
//! Every operation comes in two forms. The one whose name ends in `_now` answers from memory or local disk, or says
//! (`None`) that somebody must be asked; the other one asks, and always ends, since it has a deadline of its own behind
//! those of the storage.
//!
//! Invariants:
//! - on a mount that takes no writes, whatever would write is `ReadOnly`;
//! - an inode that is open stands for one file and, for an object, one version of it, until its last release. When the
//!   path names another by then, the next lookup makes a new inode for it, and an open that comes without such a lookup
//!   is refused once (`Stale`), upon which the kernel looks the name up again ([`open`]);
//! - a successful lookup, or entry of a listing with attributes, is counted before it is answered;
//! - no lock is held while a storage is asked or a disk is read, but this one: while a directory of this host is renamed
//!   nothing else is changed by its path, so that no change lands beside its place (`Fs::tree`); what only reads is
//!   made again when its path has changed meanwhile.

mod attributes;
pub mod changed;
mod changing;
mod closing;
mod content;
pub mod directory;
mod files;
pub mod handles;
pub mod inode;
mod names;
mod open;
mod resume;
pub mod trail;
mod writing;
mod xattr;

pub use content::Read;
pub use open::{Opened, PASSTHROUGH_HANDLE};

use crate::passthrough::{Passthrough, Switch};
use changed::Notices;
use client::Client;
use closing::Closing;
use common::{Attr, Error, ErrorKind, Result, StatFs, conf::keys::fuse::KernelCache, metrics::metrics, worker::Worker};
use directory::DirectoryHandle;
use handles::{Handles, Limit};
use inode::{Inode, InodeTable};
use open::FileHandle;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

/// How the file system behaves.
#[derive(Debug, Clone)]
pub struct FsOptions {
    /// How long the kernel may use attributes.
    pub attr_timeout: Duration,
    /// How long the kernel may use names.
    pub entry_timeout: Duration,
    /// How long the kernel may rely on a name not existing; zero: not at all.
    pub negative_timeout: Duration,
    /// What the kernel keeps of a file's data between opens.
    pub kernel_cache: KernelCache,
    /// Whether passthrough is wanted; kernel and privilege have their say too.
    pub passthrough: bool,
    /// How deep a stack of file systems passthrough must cope with: 1 or 2.
    pub stack_depth: u32,
    /// Open files and directories, at most.
    pub max_handles: usize,
    /// The largest request that the kernel is offered, in bytes.
    pub max_request: u32,
    /// Readahead and other background requests that the kernel may have under way.
    pub max_background: u16,
    /// Whether the mount takes no writes, though its storage would.
    pub read_only: bool,
    /// Threads that take requests from the kernel.
    pub threads: usize,
    /// After this time any operation ends, whatever became of the deadlines below it.
    pub deadline: Duration,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            attr_timeout: Duration::from_secs(10),
            entry_timeout: Duration::from_secs(10),
            negative_timeout: Duration::from_secs(1),
            kernel_cache: KernelCache::Auto,
            passthrough: true,
            stack_depth: 2,
            max_handles: 100_000,
            max_request: 1 << 20,
            max_background: 128,
            read_only: false,
            threads: 2,
            deadline: Duration::from_secs(300),
        }
    }
}

/// Figures for `status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FsStatus {
    /// Whether passthrough is in use.
    pub passthrough: bool,
    /// Why it is not.
    pub passthrough_reason: Option<String>,
    /// Files registered for passthrough since the start.
    pub passthrough_registered: u64,
    /// Opens that found their file registered already.
    pub passthrough_reused: u64,
    /// Closed files that are still registered.
    pub passthrough_kept: usize,
    /// Open files and directories.
    pub open_handles: usize,
    /// Inodes that the kernel holds.
    pub inodes: usize,
}

/// The file system of one mount. Shared by `Arc`.
pub struct Fs {
    client: Arc<Client>,
    options: FsOptions,
    inodes: InodeTable,
    files: Handles<FileHandle>,
    directories: Handles<DirectoryHandle>,
    limit: Limit,
    passthrough: Passthrough,
    notices: Arc<Notices>,
    /// No directory that was listed before this may be kept by the kernel over another open.
    relisted: parking_lot::Mutex<Option<Instant>>,
    closing: Closing,
    /// Taken for reading by whatever changes something by its path, for writing while a local directory is renamed.
    tree: tokio::sync::RwLock<()>,
}

impl Fs {
    /// A file system that asks and reads through `client`.
    pub fn new(client: Arc<Client>, options: FsOptions) -> Arc<Self> {
        let reason = if options.passthrough { "the kernel has not been asked yet" } else { "switched off by option" };
        Arc::new(Self {
            client,
            inodes: InodeTable::new(),
            files: Handles::new(),
            directories: Handles::new(),
            limit: Limit::new(options.max_handles),
            passthrough: Passthrough::new(reason),
            notices: Arc::default(),
            relisted: parking_lot::Mutex::new(None),
            closing: Closing::default(),
            tree: tokio::sync::RwLock::new(()),
            options,
        })
    }

    /// How it behaves.
    pub fn options(&self) -> &FsOptions {
        &self.options
    }

    /// Whether the kernel reads local files itself.
    pub fn passthrough(&self) -> &Passthrough {
        &self.passthrough
    }

    /// Figures for people and dashboards; the gauges are set to them too.
    pub fn status(&self) -> FsStatus {
        self.set_gauges();
        let switch = self.passthrough.switched();
        let (registered, reused) = self.passthrough.counts();
        FsStatus {
            passthrough: switch == Switch::On,
            passthrough_reason: match switch {
                Switch::On => None,
                Switch::Off(reason) => Some(reason),
            },
            passthrough_registered: registered,
            passthrough_reused: reused,
            passthrough_kept: self.passthrough.kept(),
            open_handles: self.limit.used(),
            inodes: self.inodes.len(),
        }
    }

    /// What must happen now and then: registrations that nobody used for a while are taken back.
    pub fn tick(&self, now: Instant) {
        self.passthrough.expire(now);
    }

    /// Sets the gauges that show this mount to what they are now.
    pub fn set_gauges(&self) {
        let metrics = metrics();
        let value = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        metrics.inodes.set(value(self.inodes.len()));
        metrics.open_files.set(value(self.limit.used()));
        let budget = self.client.shared().budget();
        metrics.budget_used_bytes.set(value(budget.used()));
        metrics.budget_limit_bytes.set(value(budget.limit()));
    }

    /// Space, from memory.
    pub fn stat_fs(&self) -> StatFs {
        self.worker().stat_fs()
    }

    /// Takes back lookups that the kernel has forgotten.
    pub fn forget(&self, id: u64, lookups: u64) {
        if self.inodes.forget(id, lookups) {
            self.passthrough.drop_kept(id);
        }
    }

    /// The client that it reads through.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        self.client.worker()
    }

    fn inode(&self, id: u64) -> Result<Arc<Inode>> {
        // The kernel only names what it was told of; anything else is from before a restart.
        self.inodes.get(id).ok_or_else(|| Error::new(ErrorKind::Stale, format!("no inode has the number {id}")))
    }

    /// Runs `work` until the deadline of all operations.
    async fn bounded<T>(&self, what: &Arc<Inode>, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.options.deadline, work).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{}: no answer within {:?}", what.path(), self.options.deadline),
            )),
        }
    }
}

/// A node with its attributes, as a lookup answers. It has been counted.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The node id.
    pub id: u64,
    /// The attributes.
    pub attr: Arc<Attr>,
    /// Whether the kernel may keep them: not while the file is open for writing.
    pub lasting: bool,
}

#[cfg(test)]
mod tests;
