//! Which open files the kernel reads without us, and the backing files that it does so from.
//!
//! Registering a backing file costs an open and an ioctl; a training job opens the same small files again in each epoch.
//! So the backing files of closed inodes are kept for a while: an open that finds one of the right version costs one
//! look at the attributes, and nothing is opened.
//!
//! Invariants:
//! - a file is registered only when all its bytes are there: the source file itself, or a cached one under a lease;
//! - a failure to register never reaches the user: the file is then read through the daemon. Failures that hold for
//!   the whole mount (privilege, kernel) switch passthrough off with a reason, those of one file system (its stacking
//!   depth, no reads of its own) are remembered by its device number;
//! - at most a fixed number of closed backing files are kept, each for a bounded time; one that is open is not among
//!   them, but with its inode;
//! - the kernel's reference is dropped before the lease on the file.

mod delegate;

pub use delegate::{Delegate, Registered, Through};

use crate::fs::inode::Identity;
use common::{Attr, worker::FileLease};
use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use std::{
    any::Any,
    collections::HashSet,
    fs::File,
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

const SHARDS: usize = 16;

/// Closed backing files kept at most.
const KEPT: usize = 32_768;

/// How long a closed backing file is kept.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// How long a lease is used without telling the page store again that its file is wanted.
const LEASE_FOR: Duration = Duration::from_secs(60);

/// Leases on larger files are not kept after the last close: evicted, they would hold disk space that nobody sees.
const KEPT_LEASE_BYTES: u64 = 16 << 20;

/// What the kernel gave for a registered file. Dropping the last clone takes the registration back.
pub type Token = Arc<dyn Any + Send + Sync>;

/// Registers files with the kernel. The adapter's open reply is one; tests have their own.
pub trait Registrar: Sync {
    /// Registers an open file.
    ///
    /// # Errors
    /// As the kernel gives them: EPERM without the privilege, ELOOP when the file's file system is stacked too deep.
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Token>;
}

/// A registered file.
pub struct Backing {
    token: Token,
    /// Which file it is.
    pub identity: Identity,
    /// Its attributes when it was registered or seen last.
    pub attr: Arc<Attr>,
    /// The source file, when it is one of this host.
    pub local: Option<Arc<File>>,
    /// Whether it is open for writing here, and so keeps others from running it.
    pub writable: bool,
    lease: Option<FileLease>,
    born: Instant,
}

impl Backing {
    /// What the kernel gave for it.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Whether it comes from the cache rather than being the source file.
    pub fn is_cached(&self) -> bool {
        self.lease.is_some()
    }
}

/// What a file is registered from.
pub enum Source {
    /// The source file itself.
    Local(Arc<File>),
    /// The source file itself, open for writing.
    Writable(Arc<File>),
    /// A cached file.
    Lease(FileLease),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Local(file) | Source::Writable(file) => file.as_fd(),
            Source::Lease(lease) => lease.as_fd(),
        }
    }
}

/// Whether passthrough is in use, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Switch {
    /// The kernel reads what is wholly local.
    On,
    /// Everything goes through the daemon, for this reason.
    Off(String),
}

/// The state of passthrough for one mount.
pub struct Passthrough {
    on: AtomicBool,
    reason: Mutex<String>,
    refused: RwLock<HashSet<u64>>,
    kept: Vec<Mutex<LruCache<u64, Kept>>>,
    registered: AtomicU64,
    reused: AtomicU64,
    /// Who registers, when it is not this process.
    delegate: OnceLock<Arc<Delegate>>,
}

struct Kept {
    backing: Arc<Backing>,
    since: Instant,
}

impl Passthrough {
    /// Off with this reason until the kernel was asked ([`Passthrough::switch`]). The number of files kept is bounded by
    /// a quarter of the descriptors that this process may have.
    pub fn new(reason: &str) -> Self {
        let most = (descriptor_limit() / 4).clamp(SHARDS, KEPT);
        Self::with_capacity(reason, most)
    }

    fn with_capacity(reason: &str, most: usize) -> Self {
        let per_shard = NonZeroUsize::new(most.div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
        Self {
            on: AtomicBool::new(false),
            reason: Mutex::new(reason.to_owned()),
            refused: RwLock::default(),
            kept: (0..SHARDS).map(|_| Mutex::new(LruCache::new(per_shard))).collect(),
            registered: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            delegate: OnceLock::new(),
        }
    }

    /// Has files registered by somebody else, from the beginning.
    pub fn delegate_to(&self, delegate: Arc<Delegate>) {
        // There is one line, which is set before anything is served.
        let _ = self.delegate.set(delegate);
    }

    /// Who registers, when it is not this process.
    pub fn delegate(&self) -> Option<&Arc<Delegate>> {
        self.delegate.get()
    }

    /// A file that was registered before this process was there.
    pub fn resumed(
        &self,
        id: u32,
        identity: Identity,
        attr: Arc<Attr>,
        local: Option<Arc<File>>,
        writable: bool,
    ) -> Option<Backing> {
        let token = self.delegate()?.known(id);
        Some(Backing { token, identity, attr, local, writable, lease: None, born: Instant::now() })
    }

    /// Whether files may be registered.
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Turns it on or off.
    pub fn switch(&self, to: Switch) {
        match to {
            Switch::On => {
                self.reason.lock().clear();
                self.on.store(true, Ordering::Relaxed);
            }
            Switch::Off(reason) => {
                *self.reason.lock() = reason;
                self.on.store(false, Ordering::Relaxed);
            }
        }
    }

    /// On, or off and why.
    pub fn switched(&self) -> Switch {
        if self.is_on() { Switch::On } else { Switch::Off(self.reason.lock().clone()) }
    }

    /// How many files were registered, and how many opens found one registered already.
    pub fn counts(&self) -> (u64, u64) {
        (self.registered.load(Ordering::Relaxed), self.reused.load(Ordering::Relaxed))
    }

    /// Registers a file; none when the kernel does not take it, and then the daemon reads it.
    pub fn register(
        &self,
        source: Source,
        identity: Identity,
        attr: Arc<Attr>,
        registrar: &dyn Registrar,
    ) -> Option<Backing> {
        if !self.is_on() {
            return None;
        }
        let dev = device(&source);
        if dev.is_some_and(|dev| self.refused.read().contains(&dev)) {
            return None;
        }
        let token = match registrar.register(source.as_fd()) {
            Ok(token) => token,
            Err(error) => {
                self.note(&error, dev);
                return None;
            }
        };
        self.registered.fetch_add(1, Ordering::Relaxed);
        let (local, writable, lease) = match source {
            Source::Local(file) => (Some(file), false, None),
            Source::Writable(file) => (Some(file), true, None),
            Source::Lease(lease) => (None, false, Some(lease)),
        };
        Some(Backing { token, identity, attr, local, writable, lease, born: Instant::now() })
    }

    fn note(&self, error: &io::Error, dev: Option<u64>) {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                let reason = "the kernel lets only CAP_SYS_ADMIN register files";
                tracing::info!("passthrough is off: {reason}");
                self.switch(Switch::Off(reason.into()));
            }
            Some(libc::ENOTTY | libc::ENOSYS) => {
                let reason = "this kernel cannot register files";
                tracing::info!("passthrough is off: {reason}");
                self.switch(Switch::Off(reason.into()));
            }
            // Out of descriptors or memory, or nobody who registers: another time.
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => {}
            _ => {
                if let Some(dev) = dev
                    && self.refused.write().insert(dev)
                {
                    tracing::info!("no passthrough for files of device {dev:#x}: {error}");
                }
            }
        }
    }

    fn shard(&self, id: u64) -> &Mutex<LruCache<u64, Kept>> {
        &self.kept[(id % SHARDS as u64) as usize]
    }

    /// Takes the kept backing file of an inode out, to be opened again. One that is too old is dropped.
    pub fn take(&self, id: u64) -> Option<Arc<Backing>> {
        let kept = self.shard(id).lock().pop(&id)?;
        if kept.backing.is_cached() && kept.backing.born.elapsed() > LEASE_FOR {
            return None;
        }
        self.reused.fetch_add(1, Ordering::Relaxed);
        Some(kept.backing)
    }

    /// Keeps the backing file of an inode that was closed. The one that gives way for it is returned, so that it is
    /// dropped without a lock.
    #[must_use]
    pub fn keep(&self, id: u64, backing: Arc<Backing>) -> Option<Arc<Backing>> {
        if !self.is_on() || (backing.is_cached() && backing.attr.size > KEPT_LEASE_BYTES) {
            return Some(backing);
        }
        let kept = Kept { backing, since: Instant::now() };
        self.shard(id).lock().push(id, kept).map(|(_, gone)| gone.backing)
    }

    /// Drops what is kept for an inode.
    pub fn drop_kept(&self, id: u64) {
        let gone = self.shard(id).lock().pop(&id);
        drop(gone);
    }

    /// Drops what has been kept too long at `now`.
    pub fn expire(&self, now: Instant) {
        for shard in &self.kept {
            loop {
                let mut gone = Vec::new();
                {
                    let mut shard = shard.lock();
                    while gone.len() < 64
                        && shard
                            .peek_lru()
                            .is_some_and(|(_, kept)| now.saturating_duration_since(kept.since) >= KEPT_FOR)
                    {
                        gone.extend(shard.pop_lru());
                    }
                }
                if gone.is_empty() {
                    break;
                }
            }
        }
    }

    /// Drops all that is kept.
    pub fn clear(&self) {
        for shard in &self.kept {
            let gone: Vec<_> = {
                let mut shard = shard.lock();
                std::iter::from_fn(|| shard.pop_lru()).collect()
            };
            drop(gone);
        }
    }

    /// How many closed backing files are kept.
    pub fn kept(&self) -> usize {
        self.kept.iter().map(|shard| shard.lock().len()).sum()
    }
}

fn device(source: &Source) -> Option<u64> {
    nix::sys::stat::fstat(source.as_fd()).ok().map(|stat| stat.st_dev)
}

/// How many descriptors this process may have.
fn descriptor_limit() -> usize {
    nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Whether this process holds CAP_SYS_ADMIN, which the kernel asks of whoever registers a file.
pub fn has_privilege() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return true };
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_none_or(|mask| mask & (1 << CAP_SYS_ADMIN) != 0)
}

/// How deep a stack of file systems passthrough needs for files in these directories: 1, or 2 when one of them lies on
/// a file system that is itself a stack (overlayfs). The smaller number leaves room for an overlay on top of the mount.
pub fn stack_depth<'a>(directories: impl IntoIterator<Item = &'a std::path::Path>) -> u32 {
    const OVERLAYFS: i64 = 0x794c_7630;
    const ECRYPTFS: i64 = 0xf15f;
    const FUSE: i64 = 0x6573_5546;
    let stacked = |directory: &std::path::Path| {
        // The directory may be made later: its nearest ancestor tells.
        let existing = directory.ancestors().find_map(|path| nix::sys::statfs::statfs(path).ok());
        existing.is_some_and(|stat| matches!(stat.filesystem_type().0, OVERLAYFS | ECRYPTFS | FUSE))
    };
    if directories.into_iter().any(stacked) { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{FileKind, Timestamp, Version};

    struct Answers(Option<i32>);

    impl Registrar for Answers {
        fn register(&self, _: BorrowedFd<'_>) -> io::Result<Token> {
            match self.0 {
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Ok(Arc::new(())),
            }
        }
    }

    fn on(capacity: usize) -> Passthrough {
        let passthrough = Passthrough::with_capacity("not asked yet", capacity);
        passthrough.switch(Switch::On);
        passthrough
    }

    fn register(passthrough: &Passthrough, answer: Option<i32>) -> Option<Backing> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let version = Version::new("v");
        let attr = Arc::new(Attr::of_object(FileKind::File, 1, Timestamp::default(), version.clone()));
        passthrough.register(Source::Local(file), Identity::Version(version), attr, &Answers(answer))
    }

    #[test]
    fn it_is_off_until_it_is_switched_on() {
        let passthrough = Passthrough::with_capacity("not asked yet", 16);
        assert_eq!(passthrough.switched(), Switch::Off("not asked yet".into()));
        assert!(register(&passthrough, None).is_none());
    }

    #[test]
    fn a_missing_privilege_switches_it_off_with_a_reason() {
        let passthrough = on(16);
        assert!(register(&passthrough, Some(libc::EPERM)).is_none());
        assert!(matches!(passthrough.switched(), Switch::Off(reason) if reason.contains("CAP_SYS_ADMIN")));
    }

    #[test]
    fn a_file_system_that_is_refused_is_not_asked_again_but_a_full_table_is() {
        let passthrough = on(16);
        assert!(register(&passthrough, Some(libc::EMFILE)).is_none());
        assert!(register(&passthrough, None).is_some());
        assert!(register(&passthrough, Some(libc::ELOOP)).is_none());
        assert!(register(&passthrough, None).is_none());
        assert!(passthrough.is_on());
    }

    #[test]
    fn closed_files_are_kept_within_the_bound_and_for_a_bounded_time() {
        let passthrough = on(SHARDS);
        for id in 0..100 {
            let backing = register(&passthrough, None).unwrap();
            drop(passthrough.keep(id, Arc::new(backing)));
        }
        assert_eq!(passthrough.kept(), SHARDS);
        assert!(passthrough.take(0).is_none());
        assert!(passthrough.take(99).is_some());
        assert!(passthrough.take(99).is_none(), "an open one is not among the closed");
        passthrough.expire(Instant::now());
        assert_eq!(passthrough.kept(), SHARDS - 1);
        passthrough.expire(Instant::now() + KEPT_FOR);
        assert_eq!(passthrough.kept(), 0);
    }
}
