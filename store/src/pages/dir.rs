//! One cache directory: its descriptors, its space, its health and its journal.

use super::{
    DirStats,
    health::Health,
    journal::{Journal, Record},
    names::Key,
    order::Order,
    shared::Shared,
};
use nix::{
    errno::Errno,
    fcntl::{Flock, OFlag, openat},
    sys::{stat::Mode, statvfs::fstatvfs},
    unistd::{UnlinkatFlags, unlinkat},
};
use parking_lot::{Condvar, Mutex};
use std::{
    fs::File,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

/// Space on disk is counted in blocks of this size.
const BLOCK: u64 = 4096;

/// What `bytes` of a page take on disk.
pub(super) fn on_disk(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK) * BLOCK
}

/// What wakes the directory's keeper thread.
#[derive(Debug, Default)]
pub(super) struct Wake {
    pub evict: bool,
    pub journal: bool,
    pub stop: bool,
}

/// See the module.
pub(super) struct CacheDir {
    pub index: usize,
    /// As configured.
    pub path: PathBuf,
    /// The store's folder in it.
    pub folder: OwnedFd,
    /// `pages/` in that.
    pub pages: OwnedFd,
    /// Held until the store is shut down: no other store opens the directory.
    pub lock: Mutex<Option<Flock<File>>>,
    pub capacity: u64,
    pub high: u64,
    pub low: u64,
    /// Bytes of the disk that are left free.
    pub reserve: u64,
    used: AtomicU64,
    /// Of `used`: unlinked files that are still open, whose space nobody can free now.
    pinned: AtomicU64,
    /// Bytes free on the disk, by the last look and what was claimed since.
    free: AtomicI64,
    pub page_count: AtomicU64,
    pub file_count: AtomicU64,
    pub health: Health,
    pub journal: Journal,
    pub order: Order,
    pub evicting: Mutex<()>,
    /// Shut down: nothing is written any more.
    pub closed: AtomicBool,
    pub can_punch: AtomicBool,
    pub shared: Arc<Shared>,
    pub wake: Mutex<Wake>,
    pub wakeup: Condvar,
}

/// What [`CacheDir::new`] is made from.
pub(super) struct Parts {
    pub index: usize,
    pub path: PathBuf,
    pub folder: OwnedFd,
    pub pages: OwnedFd,
    pub lock: Flock<File>,
    pub capacity: u64,
    pub watermarks: (f64, f64),
    pub punch: bool,
    pub disk: u64,
    pub health: Health,
    pub journal: Journal,
    pub shared: Arc<Shared>,
}

impl CacheDir {
    pub fn new(parts: Parts) -> Self {
        let share = |part: f64| (parts.capacity as f64 * part) as u64;
        // A percent of the disk, 64 MiB at least; on a tiny disk a sixteenth.
        let reserve = (parts.disk / 100).max(64 << 20).min(parts.disk / 16);
        let dir = Self {
            index: parts.index,
            path: parts.path,
            folder: parts.folder,
            pages: parts.pages,
            lock: Mutex::new(Some(parts.lock)),
            capacity: parts.capacity,
            low: share(parts.watermarks.0),
            high: share(parts.watermarks.1),
            reserve,
            used: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            free: AtomicI64::new(0),
            page_count: AtomicU64::new(0),
            file_count: AtomicU64::new(0),
            health: parts.health,
            journal: parts.journal,
            order: Order::default(),
            evicting: Mutex::new(()),
            closed: AtomicBool::new(false),
            can_punch: AtomicBool::new(parts.punch),
            shared: parts.shared,
            wake: Mutex::default(),
            wakeup: Condvar::new(),
        };
        dir.look_at_space();
        dir
    }

    /// Asks the disk how much is free. False when it did not answer.
    pub fn look_at_space(&self) -> bool {
        match fstatvfs(&self.folder) {
            Ok(stat) => {
                let free = stat.blocks_available() * stat.fragment_size();
                self.free.store(i64::try_from(free).unwrap_or(i64::MAX), Relaxed);
                true
            }
            Err(error) => {
                self.failed("statvfs", error);
                false
            }
        }
    }

    /// A call on the directory failed. A full disk is no failure of it: eviction is what helps.
    pub fn failed(&self, what: &str, error: Errno) {
        match error {
            Errno::ENOSPC | Errno::EDQUOT => {
                self.free.store(0, Relaxed);
                self.wake(|wake| wake.evict = true);
            }
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EINTR => {}
            _ => {
                common::metrics::metrics().cache_errors.inc();
                if self.health.failed(Instant::now()) {
                    tracing::warn!(
                        "cache directory {} is out of use after repeated errors, the last: {what}: {error}; reads go to the storage, and it is tried again every {:?}",
                        self.path.display(),
                        self.health.options().probe_interval
                    );
                }
            }
        }
    }

    /// Whether so many bytes could be claimed without anything being evicted for it.
    pub fn has_room(&self, bytes: u64) -> bool {
        let wanted = i64::try_from(self.reserve.saturating_add(bytes)).unwrap_or(i64::MAX);
        self.used.load(Relaxed).saturating_add(bytes) <= self.high && self.free.load(Relaxed) >= wanted
    }

    /// Takes `bytes` of the capacity and of the disk's free space; false when they are not there.
    pub fn claim(&self, bytes: u64) -> bool {
        let reserve = i64::try_from(self.reserve).unwrap_or(i64::MAX);
        let wanted = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.free.load(Relaxed) < reserve.saturating_add(wanted) {
            return false;
        }
        let grow = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.capacity);
        let Ok(before) = self.used.fetch_update(Relaxed, Relaxed, grow) else { return false };
        self.free.fetch_sub(wanted, Relaxed);
        if before + bytes > self.high && before <= self.high {
            self.wake(|wake| wake.evict = true);
        }
        true
    }

    /// Gives back what was claimed and never used, or is no longer on disk.
    pub fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
        self.free.fetch_add(i64::try_from(bytes).unwrap_or(0), Relaxed);
    }

    /// Counts bytes that a journal says are there already.
    pub fn adopt(&self, bytes: u64) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Bytes of an unlinked file stay in use until its last descriptor is closed.
    pub fn pin(&self, bytes: u64) {
        self.pinned.fetch_add(bytes, Relaxed);
    }

    /// That descriptor was closed.
    pub fn unpin(&self, bytes: u64) {
        self.pinned.fetch_sub(bytes, Relaxed);
        self.release(bytes);
    }

    pub fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Bytes that eviction can do something about.
    pub fn evictable(&self) -> u64 {
        self.used().saturating_sub(self.pinned.load(Relaxed))
    }

    /// How much is to be evicted now: from above the high watermark down to the low one, and more when other users of
    /// the disk leave less than the reserve.
    pub fn surplus(&self) -> u64 {
        let evictable = self.evictable();
        let over = if evictable > self.high { evictable - self.low } else { 0 };
        let short = match self.short_of(0) {
            0 => 0,
            short => short + self.reserve / 2,
        };
        over.max(short).min(evictable)
    }

    /// How much the disk lacks to take `bytes` and keep its reserve.
    pub fn short_of(&self, bytes: u64) -> u64 {
        let wanted = i64::try_from(self.reserve.saturating_add(bytes)).unwrap_or(i64::MAX);
        wanted.saturating_sub(self.free.load(Relaxed)).max(0).unsigned_abs()
    }

    /// Opens a page file for reading and writing; `None` when there is none and it is not to be made.
    pub fn open_pages(&self, key: &Key, create: bool) -> Result<Option<File>, Errno> {
        let path = key.path();
        let mut flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        if create {
            flags |= OFlag::O_CREAT;
        }
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let mut made = false;
        loop {
            match openat(&self.pages, path.as_str(), flags, mode) {
                Ok(fd) => return Ok(Some(File::from(fd))),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOENT) if !create => return Ok(None),
                Err(Errno::ENOENT) if !made => {
                    made = true;
                    match nix::sys::stat::mkdirat(&self.pages, &path[..2], Mode::S_IRWXU) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(Errno::EMFILE | Errno::ENFILE) if !made => {
                    made = true;
                    self.shared.close_some();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes a page file; that it is gone already is fine.
    pub fn unlink(&self, key: &Key) -> Result<(), Errno> {
        match unlinkat(&self.pages, key.path().as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Queues a record for the journal.
    pub fn record(&self, record: &Record<'_>) {
        if self.journal.push(record) {
            self.wake(|wake| wake.journal = true);
        }
    }

    /// Writes the records that wait, and rewrites the journal when most of it is history.
    pub fn flush_journal(&self) {
        if let Err(error) =
            self.journal.flush(&self.folder, self.page_count.load(Relaxed), self.file_count.load(Relaxed), || {
                self.order.files()
            })
        {
            self.failed("write of the journal", error);
        }
    }

    /// Changes what the keeper thread is to do, and wakes it.
    pub fn wake(&self, change: impl FnOnce(&mut Wake)) {
        change(&mut self.wake.lock());
        self.wakeup.notify_one();
    }

    pub fn stats(&self) -> DirStats {
        DirStats {
            path: self.path.clone(),
            capacity: self.capacity,
            used: self.used(),
            pages: self.page_count.load(Relaxed),
            files: self.file_count.load(Relaxed),
            health: self.health.state(),
            errors: self.health.errors(),
            problem: None,
        }
    }
}
