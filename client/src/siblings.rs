//! Fetches the siblings of small files that are read one after the other.
//!
//! A program that opens the small files of a directory in turn pays one round trip to the storage for each. After a few
//! such opens that found nothing on local disk, the other small files of the directory are fetched whole, many at a
//! time, in the order of the listing from the last opened one on, so that the following opens find them.
//!
//! Invariants:
//! - files under way are bounded in number for all directories together, and in bytes by a quarter of the memory budget;
//! - what is fetched ahead of the reader is bounded by a credit that only its opens renew, so it ends when they end;
//! - a cache that is nearly full is left alone, and one directory takes at most half of it: prefetch never evicts what
//!   it has just brought;
//! - failures end it; they never reach a reader.

use crate::options::ClientOptions;
use common::{
    ErrorKind, FileKind, UfsPath,
    budget::MemoryBudget,
    metrics::metrics,
    worker::{Freshness, OpenedFile, Worker},
};
use lru::LruCache;
use parking_lot::Mutex;
use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    task::JoinSet,
};

/// Cold opens in a directory, each soon after the one before, that start it.
const OPENS: u32 = 4;
/// What "soon" is.
const TOGETHER: Duration = Duration::from_secs(5);
/// Directories that are watched.
const WATCHED: usize = 256;
/// Directories whose siblings are fetched at the same time.
const RUNS: usize = 8;
/// Siblings that may be fetched before the reader's next open …
const FIRST_CREDIT: usize = 256;
/// … and for each open.
const CREDIT_EACH: usize = 128;
/// The most credit that is kept.
const CREDIT_LIMIT: usize = 4096;
/// Entries of one directory that are looked at.
const CANDIDATES: usize = 65_536;
/// After this long a directory that has been gone through may be again, if its files are cold.
const AGAIN: Duration = Duration::from_secs(60);
/// Failures in a row that end it.
const FAILURES: usize = 8;
const UNIT: u64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Watching,
    Running,
    Done(Instant),
}

struct Progress {
    phase: Phase,
    cold: u32,
    last: Instant,
    last_name: Box<[u8]>,
    credit: usize,
}

struct Directory {
    progress: Mutex<Progress>,
    wake: Notify,
}

/// Counters of the sibling prefetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SiblingStats {
    /// Directories that were started.
    pub directories: u64,
    /// Files fetched.
    pub files: u64,
}

struct Inner {
    worker: Arc<dyn Worker>,
    max_size: u64,
    slots: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    memory_units: u64,
    together: Duration,
    directories: Mutex<LruCache<UfsPath, Arc<Directory>>>,
    /// Directories whose siblings are being fetched.
    running: AtomicUsize,
    started: AtomicU64,
    fetched: AtomicU64,
}

/// Watches opens and fetches siblings. Dropped, it ends what is under way.
pub(crate) struct Siblings {
    inner: Arc<Inner>,
    runs: Mutex<JoinSet<()>>,
    handle: Handle,
}

impl Siblings {
    pub(crate) fn new(
        worker: Arc<dyn Worker>,
        options: &ClientOptions,
        budget: &Arc<MemoryBudget>,
        handle: Handle,
    ) -> Self {
        let units = (budget.limit() as u64 / 4 / UNIT).clamp(1, 1 << 20);
        let watched = NonZeroUsize::new(WATCHED).unwrap_or(NonZeroUsize::MIN);
        let inner = Inner {
            worker,
            max_size: if options.sibling_parallel == 0 { 0 } else { options.sibling_max_size },
            slots: Arc::new(Semaphore::new(options.sibling_parallel)),
            memory: Arc::new(Semaphore::new(units as usize)),
            memory_units: units,
            together: TOGETHER,
            directories: Mutex::new(LruCache::new(watched)),
            running: AtomicUsize::new(0),
            started: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner), runs: Mutex::new(JoinSet::new()), handle }
    }

    pub(crate) fn stats(&self) -> SiblingStats {
        SiblingStats {
            directories: self.inner.started.load(Ordering::Relaxed),
            files: self.inner.fetched.load(Ordering::Relaxed),
        }
    }

    /// A reader opened a file of `size` bytes; `cold`: it was not on local disk.
    pub(crate) fn opened(&self, path: &UfsPath, size: u64, cold: bool) {
        // A warm open matters only to a run, whose reader it shows to go on.
        if size == 0 || size > self.inner.max_size || (!cold && self.inner.running.load(Ordering::Relaxed) == 0) {
            return;
        }
        let (Some(dir), Some(name)) = (path.parent(), path.name()) else { return };
        let now = Instant::now();
        let directory = {
            let mut directories = self.inner.directories.lock();
            match directories.get(&dir) {
                Some(directory) => directory.clone(),
                None if !cold => return,
                None => {
                    let progress =
                        Progress { phase: Phase::Watching, cold: 0, last: now, last_name: Box::default(), credit: 0 };
                    let directory = Arc::new(Directory { progress: Mutex::new(progress), wake: Notify::new() });
                    // What is pushed out while it runs goes on by itself until its credit is used up.
                    directories.put(dir.clone(), directory.clone());
                    directory
                }
            }
        };
        {
            let mut progress = directory.progress.lock();
            let soon = now.saturating_duration_since(progress.last) <= self.inner.together;
            progress.last = now;
            match progress.phase {
                Phase::Running => {
                    progress.credit = (progress.credit + CREDIT_EACH).min(CREDIT_LIMIT);
                    drop(progress);
                    directory.wake.notify_one();
                    return;
                }
                _ if !cold => return,
                Phase::Done(at) if now.saturating_duration_since(at) < AGAIN => return,
                _ => {}
            }
            progress.cold = if soon { progress.cold + 1 } else { 1 };
            if progress.cold < OPENS {
                return;
            }
            progress.cold = 0;
            progress.last_name = name.into();
            progress.credit = FIRST_CREDIT;
            let mut runs = self.runs.lock();
            while runs.try_join_next().is_some() {}
            if runs.len() >= RUNS {
                return;
            }
            progress.phase = Phase::Running;
            self.inner.running.fetch_add(1, Ordering::Relaxed);
            let (inner, directory) = (self.inner.clone(), directory.clone());
            runs.spawn_on(
                async move {
                    inner.started.fetch_add(1, Ordering::Relaxed);
                    inner.run(&dir, &directory).await;
                    directory.progress.lock().phase = Phase::Done(Instant::now());
                    inner.running.fetch_sub(1, Ordering::Relaxed);
                },
                &self.handle,
            );
        }
    }
}

impl Inner {
    async fn run(self: &Arc<Self>, dir: &UfsPath, directory: &Arc<Directory>) {
        let candidates = match self.candidates(dir, directory).await {
            Ok(candidates) => candidates,
            Err(error) => {
                tracing::debug!("no siblings of {dir} are fetched: {error}");
                return;
            }
        };
        let mut room = self.room().map(|(total, _)| total / 2);
        let failures = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for (index, (name, size)) in candidates.into_iter().enumerate() {
            if failures.load(Ordering::Relaxed) >= FAILURES || !self.credit(directory).await {
                break;
            }
            if index % 32 == 0 && self.room().is_some_and(|(total, free)| free < total / 8) {
                break;
            }
            if let Some(room) = &mut room {
                match room.checked_sub(size) {
                    Some(rest) => *room = rest,
                    None => break,
                }
            }
            let Ok(path) = dir.join(&name) else { continue };
            let units = u32::try_from(size.div_ceil(UNIT).clamp(1, self.memory_units)).unwrap_or(1);
            let Ok(slot) = self.slots.clone().acquire_owned().await else { break };
            let Ok(memory) = self.memory.clone().acquire_many_owned(units).await else { break };
            let (inner, failures) = (self.clone(), failures.clone());
            tasks.spawn(async move {
                let _held = (slot, memory);
                inner.fetch(&path, &failures).await;
            });
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn fetch(&self, path: &UfsPath, failures: &AtomicUsize) {
        let fetched = match self.worker.open(path, Freshness::Cached).await {
            Ok(OpenedFile::Paged(file)) if file.attr().size <= self.max_size => file.complete().await,
            Ok(_) => return,
            Err(error) => Err(error),
        };
        match fetched {
            Ok(()) => {
                self.fetched.fetch_add(1, Ordering::Relaxed);
                metrics().prefetch_siblings.inc();
                failures.store(0, Ordering::Relaxed);
            }
            // No cache, or none with room: nothing to be gained.
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                failures.store(FAILURES, Ordering::Relaxed);
            }
            // Removed or replaced since the listing: says nothing of the others.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Stale) => {}
            Err(error) => {
                tracing::debug!("sibling {path} is not fetched: {error}");
                failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Small files of the directory, from the last opened one on.
    async fn candidates(&self, dir: &UfsPath, directory: &Directory) -> common::Result<Vec<(Box<[u8]>, u64)>> {
        let mut listing = self.worker.list(dir).await?;
        let mut found = Vec::new();
        let mut seen = 0;
        while let Some(batch) = listing.next().await? {
            seen += batch.len();
            for entry in batch {
                if let (FileKind::File, Some(attr)) = (entry.kind, &entry.attr)
                    && attr.size > 0
                    && attr.size <= self.max_size
                {
                    found.push((entry.name, attr.size));
                }
            }
            if seen >= CANDIDATES {
                break;
            }
        }
        let last = directory.progress.lock().last_name.clone();
        if let Some(at) = found.iter().position(|(name, _)| *name == last) {
            found.rotate_left(at + 1);
        }
        Ok(found)
    }

    /// Takes one credit; waits for the reader's next open when there is none. False when it does not come.
    async fn credit(&self, directory: &Directory) -> bool {
        loop {
            {
                let mut progress = directory.progress.lock();
                if progress.credit > 0 {
                    progress.credit -= 1;
                    return true;
                }
            }
            if tokio::time::timeout(self.together, directory.wake.notified()).await.is_err() {
                return false;
            }
        }
    }

    /// Bytes of the cache in all and free; none when it says nothing.
    fn room(&self) -> Option<(u64, u64)> {
        let space = self.worker.stat_fs();
        let block = u64::from(space.block_size);
        (space.blocks > 0).then(|| (space.blocks.saturating_mul(block), space.available.saturating_mul(block)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeWorker, eventually};

    fn path(text: &str) -> UfsPath {
        UfsPath::parse(text).unwrap()
    }

    fn siblings(worker: &Arc<FakeWorker>, options: &ClientOptions) -> Siblings {
        let mut siblings = Siblings::new(worker.clone(), options, worker.pool().budget(), Handle::current());
        // However slow the machine is, the opens of a test belong together.
        Arc::get_mut(&mut siblings.inner).unwrap().together = Duration::from_secs(3600);
        siblings
    }

    #[tokio::test]
    async fn after_four_cold_opens_the_others_are_there() {
        let worker = FakeWorker::new(8 << 20);
        for at in 0..100 {
            worker.put(&format!("d/{at:03}"), vec![at as u8; 1000 + at]);
        }
        worker.put("d/large", vec![0; 2 << 20]);
        let siblings = siblings(&worker, &ClientOptions::default());
        for at in [17, 3, 88] {
            siblings.opened(&path(&format!("d/{at:03}")), 1000, true);
        }
        assert_eq!(siblings.stats().directories, 0);
        siblings.opened(&path("d/050"), 1000, true);
        eventually("all siblings", || siblings.stats().files == 100).await;
        assert!((0..100).all(|at| worker.is_complete(&format!("d/{at:03}"))));
        assert!(!worker.is_complete("d/large"));
        assert!(worker.most_running() <= 64);
        eventually("memory is given back", || worker.pool().budget().used() == 0).await;
    }

    #[tokio::test]
    async fn warm_opens_and_large_files_start_nothing() {
        let worker = FakeWorker::new(8 << 20);
        worker.put("d/a", vec![1; 10]);
        let siblings = siblings(&worker, &ClientOptions::default());
        for _ in 0..50 {
            siblings.opened(&path("d/a"), 10, false);
            siblings.opened(&path("d/b"), 5 << 20, true);
            siblings.opened(&path("d/c"), 0, true);
        }
        assert_eq!(siblings.stats(), SiblingStats::default());
    }

    #[tokio::test]
    async fn it_runs_ahead_only_as_far_as_the_reader_follows() {
        let worker = FakeWorker::new(8 << 20);
        for at in 0..1000 {
            worker.put(&format!("d/{at:04}"), vec![1; 100]);
        }
        let siblings = siblings(&worker, &ClientOptions::default());
        for at in 0..4 {
            siblings.opened(&path(&format!("d/{at:04}")), 100, true);
        }
        eventually("the first credit is used", || siblings.stats().files == FIRST_CREDIT as u64).await;
        tokio::task::yield_now().await;
        assert_eq!(siblings.stats().files, FIRST_CREDIT as u64);
        siblings.opened(&path("d/0005"), 100, false);
        let next = (FIRST_CREDIT + CREDIT_EACH) as u64;
        eventually("the next credit is used", || siblings.stats().files == next).await;
    }

    #[tokio::test]
    async fn a_cache_that_is_nearly_full_is_left_alone() {
        let worker = FakeWorker::new(8 << 20);
        for at in 0..300 {
            worker.put(&format!("d/{at:03}"), vec![1; 4096]);
        }
        worker.set_capacity(100 * 4096);
        let siblings = siblings(&worker, &ClientOptions::default());
        for at in 0..4 {
            siblings.opened(&path(&format!("d/{at:03}")), 4096, true);
        }
        eventually("it ends", || {
            let directories = siblings.inner.directories.lock();
            let directory = directories.peek(&path("d")).unwrap();
            let phase = directory.progress.lock().phase;
            matches!(phase, Phase::Done(_))
        })
        .await;
        assert!(siblings.stats().files <= 50, "{:?}", siblings.stats());
        assert!(siblings.stats().files >= 40);
    }

    #[tokio::test]
    async fn failures_end_it() {
        let worker = FakeWorker::new(8 << 20);
        for at in 0..250 {
            worker.put(&format!("d/{at:03}"), vec![1; 4096]);
        }
        worker.fail_from_now(ErrorKind::Unavailable);
        let options = ClientOptions { sibling_parallel: 4, ..ClientOptions::default() };
        let siblings = siblings(&worker, &options);
        for at in 0..4 {
            siblings.opened(&path(&format!("d/{at:03}")), 4096, true);
        }
        eventually("it ends", || {
            let directories = siblings.inner.directories.lock();
            let phase = directories.peek(&path("d")).unwrap().progress.lock().phase;
            matches!(phase, Phase::Done(_))
        })
        .await;
        assert_eq!(siblings.stats().files, 0);
        assert!(worker.fetches() <= FAILURES + 4, "{}", worker.fetches());
    }
}
