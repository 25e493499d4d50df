//! The page store: cached pages on local disks, which survive a restart and never cost a reader more than a miss.
//!
//! Invariants (each has a test here or in `store/tests`):
//! - a page is marked present only after its bytes are on the file; after a crash a page whose checksum fails is absent,
//!   never served. Hence the journal may lose or repeat any record, and its tail may be torn, without a wrong byte;
//! - the bytes of a (file id, version) never change; a new version is a new file;
//! - a file whose descriptor was handed out is never punched or rewritten, only unlinked; others may lose single pages;
//! - usage never exceeds the capacity: space is claimed before it is written. Bytes of an unlinked file count until the
//!   last descriptor is closed;
//! - a full, slow or failing disk never fails a read: its pages count as absent, nothing is written there, and it is
//!   probed until it works again;
//! - a restart finds the cache as it was, from the journal, without reading the data; each page is verified on its
//!   first use.
//!
//! Locks: readers take none over input or output. They note the file's epoch, read, and compare: whoever takes a page
//! away raises the epoch first. Order of locks: a file's state, then the dir's order of eviction or journal buffer.

mod dir;
mod evict;
mod file;
mod health;
mod journal;
mod names;
mod order;
mod send;
mod shared;
mod startup;
mod threads;

pub use file::{Stored, StoredFile};
pub use health::{HealthOptions, HealthState};

use common::{Error, ErrorKind, FileId, Result, Version, page::PageLoad};
use dir::CacheDir;
use names::Key;
use shared::Shared;
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use threads::{Threads, WriteJob};

/// Told whether a page that was submitted is present now.
pub type Done = Box<dyn FnOnce(bool) + Send>;

/// One directory that holds cached pages.
#[derive(Debug, Clone)]
pub struct DirOptions {
    /// The directory; made when missing. The store keeps to its own folder `alluxio-pages` in it.
    pub path: PathBuf,
    /// Bytes that the pages may take; 0 leaves the directory alone.
    pub capacity: u64,
}

/// How the store is set up.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Where the pages lie. None, or only such with capacity 0: the store is off.
    pub dirs: Vec<DirOptions>,
    /// Bytes of a page, a multiple of 4 KiB.
    pub page_size: u32,
    /// Share of the capacity at which eviction starts.
    pub high_watermark: f64,
    /// Share of the capacity down to which it goes.
    pub low_watermark: f64,
    /// Whether single pages may be taken from a large file. Not for a store whose files are lent to other processes: a
    /// restart forgets what was lent, and a borrower may read a file long after; then files go as a whole.
    pub punch: bool,
    /// Descriptors of page files kept open for the next read.
    pub max_open_files: usize,
    /// Bytes of pages that may wait for one directory's writer; what comes on top is not stored.
    pub max_queued_bytes: usize,
    /// How long changes may wait to be written to the journal. What a crash loses of them is fetched again.
    pub journal_delay: Duration,
    /// When a directory is no longer used, and when it is again.
    pub health: HealthOptions,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            dirs: Vec::new(),
            page_size: 1 << 20,
            high_watermark: 0.95,
            low_watermark: 0.85,
            punch: true,
            max_open_files: 1024,
            max_queued_bytes: 96 << 20,
            journal_delay: Duration::from_millis(100),
            health: HealthOptions::default(),
        }
    }
}

/// What one directory holds.
#[derive(Debug, Clone)]
pub struct DirStats {
    /// As configured.
    pub path: PathBuf,
    /// Bytes that it may hold; 0 when it could not be used at start.
    pub capacity: u64,
    /// Bytes that it holds, those of unlinked files that are still open included.
    pub used: u64,
    /// Pages present.
    pub pages: u64,
    /// Files with at least one page.
    pub files: u64,
    /// Whether it is in use.
    pub health: HealthState,
    /// Failed calls so far.
    pub errors: u64,
    /// Why it could not be used at start.
    pub problem: Option<String>,
}

/// What the store holds and has done; from counters, nothing is walked.
#[derive(Debug, Clone, Default)]
pub struct StoreStats {
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes that it holds.
    pub used: u64,
    /// Pages present.
    pub pages: u64,
    /// Files with at least one page.
    pub files: u64,
    /// Pages evicted so far.
    pub evicted_pages: u64,
    /// Bytes evicted so far.
    pub evicted_bytes: u64,
    /// Bytes read from the store so far, exported files not counted.
    pub read_bytes: u64,
    /// Bytes stored so far.
    pub stored_bytes: u64,
    /// Pages that were not stored because the disk was full, slow or failing.
    pub bypassed_pages: u64,
    /// Pages dropped because their checksum was wrong or their file was damaged.
    pub corrupt_pages: u64,
    /// Each directory.
    pub dirs: Vec<DirStats>,
}

/// The store. Shared by `Arc`; the last one dropped writes the journal and stops the threads.
pub struct PageStore {
    page_size: u32,
    dirs: Vec<Arc<CacheDir>>,
    broken: Vec<(PathBuf, String)>,
    shared: Arc<Shared>,
    threads: Threads,
}

impl PageStore {
    /// Opens the directories and loads their journals.
    ///
    /// # Errors
    /// Mistakes in the configuration, in one line each: a path that is no directory or cannot be written, a folder that
    /// belongs to another user, a capacity larger than the disk, a directory that another process (or another store
    /// here) uses, wrong numbers. A disk that fails is no error: it is warned of and left out.
    pub fn open(options: StoreOptions) -> Result<Arc<Self>> {
        check(&options)?;
        let shared = Arc::new(Shared::new(options.max_open_files));
        let (mut dirs, mut broken) = (Vec::new(), Vec::new());
        for dir in options.dirs.iter().filter(|dir| dir.capacity > 0) {
            match startup::open_dir(dir, &options, &shared) {
                Ok(opened) => dirs.push(opened),
                Err(startup::Failure::Mistake(error)) => return Err(error),
                Err(startup::Failure::Broken(error)) => {
                    tracing::warn!("cache directory {} is left out: {error}", dir.path.display());
                    broken.push((dir.path.clone(), error.to_string()));
                }
            }
        }
        let threads = Threads::start(&dirs, options.max_queued_bytes, options.journal_delay)?;
        Ok(Arc::new(Self { page_size: options.page_size, dirs, broken, shared, threads }))
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// Whether it can hold nothing: no directory, or none that works.
    pub fn is_off(&self) -> bool {
        self.dirs.is_empty()
    }

    /// The file that holds (or will hold) the pages of this version; `full_path` is what `id` was made from. Cheap: no
    /// call to the system. None when the store is off or every directory is down.
    pub fn open_file(&self, id: FileId, version: &Version, size: u64, full_path: &[u8]) -> Option<Arc<StoredFile>> {
        let key = Key::new(id, version, size, self.page_size);
        self.shared.tick();
        let file = match self.shared.find(&key) {
            Some(file) => file,
            None => {
                let dir = self.place(&id)?;
                let fresh =
                    StoredFile::new(key, version.clone(), size, self.page_size, full_path.into(), dir, &self.shared);
                self.shared.insert(fresh)
            }
        };
        // Two versions with one hash: astronomically rare, and then the second is simply not cached.
        (file.version() == version && file.size() == size).then_some(file)
    }

    /// The directory for a new file: by its hash, in proportion to the capacities, among those that work.
    fn place(&self, id: &FileId) -> Option<Arc<CacheDir>> {
        let usable = || self.dirs.iter().filter(|dir| !dir.health.is_down());
        let total: u128 = usable().map(|dir| u128::from(dir.capacity)).sum();
        let hash = u64::from_le_bytes(id.0[8..16].try_into().unwrap_or_default());
        let mut point = (u128::from(hash) * total) >> 64;
        for dir in usable() {
            match point.checked_sub(u128::from(dir.capacity)) {
                Some(rest) => point = rest,
                None => return Some(dir.clone()),
            }
        }
        None
    }

    /// Has a complete page written by the directory's writer thread. `done` is told whether the page is present now.
    /// Gives both back when the page cannot be taken (a full queue, a directory that is down).
    pub fn submit(
        &self,
        file: &Arc<StoredFile>,
        page: u64,
        load: Arc<PageLoad>,
        done: Done,
    ) -> Result<(), (Arc<PageLoad>, Done)> {
        let job = WriteJob { file: file.clone(), page, load, done, queued: Instant::now() };
        self.threads.submit(file.dir().index, job).map_err(|job| {
            self.shared.counters.bypassed(job.load.len() as u64);
            (job.load, job.done)
        })
    }

    /// Whether the pages of this file come faster than they are stored, for a moment. Who fetches ahead should pause.
    pub fn is_behind(&self, file: &StoredFile) -> bool {
        self.threads.is_behind(file.dir().index)
    }

    /// What it holds and has done.
    pub fn stats(&self) -> StoreStats {
        let counters = &self.shared.counters;
        let mut stats = StoreStats {
            evicted_pages: counters.evicted_pages.load(Relaxed),
            evicted_bytes: counters.evicted_bytes.load(Relaxed),
            read_bytes: counters.read_bytes.load(Relaxed),
            stored_bytes: counters.stored_bytes.load(Relaxed),
            bypassed_pages: counters.bypassed_pages.load(Relaxed),
            corrupt_pages: counters.corrupt_pages.load(Relaxed),
            ..StoreStats::default()
        };
        for dir in &self.dirs {
            let one = dir.stats();
            stats.capacity += one.capacity;
            stats.used += one.used;
            stats.pages += one.pages;
            stats.files += one.files;
            stats.dirs.push(one);
        }
        stats.dirs.extend(self.broken.iter().map(|(path, problem)| DirStats {
            path: path.clone(),
            capacity: 0,
            used: 0,
            pages: 0,
            files: 0,
            health: HealthState::Down,
            errors: 1,
            problem: Some(problem.clone()),
        }));
        stats
    }

    /// Gives up every file whose full path `matches`; returns the bytes that they held. Leases keep the bytes that they
    /// lead to. Calls the system for each file.
    pub fn free(&self, matches: &dyn Fn(&[u8]) -> bool) -> u64 {
        let files = self.shared.all(&|file| matches(file.full_path()));
        files.iter().map(|file| file.evict_all().1).sum()
    }

    /// Writes what the journals still lack.
    pub fn flush(&self) {
        for dir in &self.dirs {
            dir.flush_journal();
        }
    }

    /// Stops the threads, after what is queued has been written, and writes the journals. Reads go on to work; nothing
    /// is stored any more. A directory that hangs is not waited for.
    pub fn shutdown(&self) {
        self.threads.stop();
        for dir in &self.dirs {
            dir.closed.store(true, Relaxed);
        }
        for dir in self.dirs.iter().filter(|dir| !dir.health.is_down()) {
            dir.flush_journal();
            // From here on this store changes nothing in the directory but for unlinking what proves damaged, which
            // costs another store a miss at most.
            *dir.lock.lock() = None;
        }
    }
}

impl Drop for PageStore {
    fn drop(&mut self) {
        self.shutdown();
        for dir in &self.dirs {
            // The order of eviction owns the files, which own the directory: without this neither would ever go.
            dir.order.clear();
        }
    }
}

impl std::fmt::Debug for PageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageStore({} directories)", self.dirs.len())
    }
}

fn check(options: &StoreOptions) -> Result<()> {
    let wrong = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
    if options.page_size == 0 || !options.page_size.is_multiple_of(4096) {
        return wrong(format!("page size {}: it must be a multiple of 4096 bytes", options.page_size));
    }
    let (low, high) = (options.low_watermark, options.high_watermark);
    if !(low > 0.0 && low <= high && high <= 1.0) {
        return wrong(format!("watermarks low {low} and high {high}: 0 < low <= high <= 1 is needed"));
    }
    for dir in options.dirs.iter().filter(|dir| dir.capacity > 0) {
        if dir.capacity < u64::from(options.page_size) {
            return wrong(format!(
                "cache directory {}: its capacity of {} bytes is less than one page of {} bytes; raise it, or set it to 0 to turn the cache off",
                dir.path.display(),
                dir.capacity,
                options.page_size
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "pages/tests.rs"]
mod tests;
