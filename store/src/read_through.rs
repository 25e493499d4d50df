//! Read-through loads: opens files of an under storage page by page, through the page store.
//!
//! Invariants (tested here and in `store/tests`):
//! - a page is fetched once, whatever the number of readers who want it at the same time, also through several opens;
//! - memory is reserved before bytes are asked for, and given back when a page is stored or nobody needs it;
//! - a page that has arrived stays findable in memory until it can be found on disk;
//! - a reader that goes away cancels nothing for the others;
//! - a failure goes to everybody who waits for the page, and the next who asks tries again; only `Stale` is final;
//! - a fetch that makes no progress for the deadline fails.

mod fill;
mod open;
mod recent;
mod rest;
mod seed;

use crate::{PageStore, StoredFile};
use bytes::Bytes;
use common::{Attr, Error, ErrorKind, FileId, Result, UfsPath, Version, page::PagePool, worker::PagedFile};
use open::{OpenPages, Pages};
use parking_lot::Mutex;
use recent::Recent;
use rest::Rest;
use seed::Heads;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::Semaphore};
use ufs::UnderStorage;

const SHARDS: usize = 32;

/// Called with the path of a file whose version the storage no longer has.
type OnStale = Box<dyn Fn(&UfsPath) + Send + Sync>;

/// How files are read through.
#[derive(Debug, Clone)]
pub struct ReadOptions {
    /// Bytes of a page when there is no store; else the store's count.
    pub page_size: u32,
    /// A fetch fails after so long without a byte. The storage's own deadlines are usually shorter.
    pub deadline: Duration,
    /// The largest request made for prefetch, in bytes (at least one page).
    pub max_request_bytes: u64,
    /// Requests under way at most.
    pub concurrency: usize,
    /// Of these, requests that nobody waits for yet.
    pub prefetch_concurrency: usize,
    /// Complete pages kept in memory, since they cannot be stored or were fetched ahead, in bytes. Given up when memory is
    /// wanted.
    pub recent_bytes: usize,
    /// A closed file of which this share is on disk has the rest fetched in the background, where there is room; 1: never.
    pub complete_share: f64,
    /// How long pages that are kept in memory stay unused, and unused buffers at all.
    pub idle_after: Duration,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            page_size: 1 << 20,
            deadline: Duration::from_secs(60),
            max_request_bytes: 8 << 20,
            concurrency: 128,
            prefetch_concurrency: 96,
            recent_bytes: 64 << 20,
            complete_share: 1.0,
            idle_after: Duration::from_secs(5),
        }
    }
}

/// Counts of what was fetched.
#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    fetched_bytes: AtomicU64,
    failures: AtomicU64,
}

/// A snapshot of [`ReadThrough::stats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReadStats {
    /// Requests made to the storage for data.
    pub requests: u64,
    /// Bytes that it gave.
    pub fetched_bytes: u64,
    /// Requests that failed.
    pub failures: u64,
}

/// What names a file's pages in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    id: FileId,
    version: Version,
    size: u64,
}

/// See the module.
pub struct ReadThrough {
    ufs: Arc<dyn UnderStorage>,
    store: Option<Arc<PageStore>>,
    pool: Arc<PagePool>,
    options: ReadOptions,
    page_size: u32,
    handle: Handle,
    files: Vec<Mutex<HashMap<Key, Weak<Pages>>>>,
    recent: Recent,
    rest: Rest,
    heads: Heads,
    requests: Arc<Semaphore>,
    prefetches: Arc<Semaphore>,
    on_stale: OnceLock<OnStale>,
    counters: Counters,
}

impl ReadThrough {
    /// Reads `ufs` through `store` (none: from memory only), with buffers from `pool`; fetches run on `handle`.
    pub fn new(
        ufs: Arc<dyn UnderStorage>,
        store: Option<Arc<PageStore>>,
        pool: Arc<PagePool>,
        options: ReadOptions,
        handle: Handle,
    ) -> Arc<Self> {
        let store = store.filter(|store| !store.is_off());
        let page_size = store.as_ref().map_or(options.page_size, |store| store.page_size());
        let recent_bytes = options.recent_bytes.min(pool.budget().limit() / 2);
        Arc::new(Self {
            page_size: page_size.max(1),
            requests: Arc::new(Semaphore::new(options.concurrency.max(1))),
            prefetches: Arc::new(Semaphore::new(
                options.prefetch_concurrency.min(options.concurrency.saturating_sub(1)).max(1),
            )),
            files: (0..SHARDS).map(|_| Mutex::default()).collect(),
            recent: Recent::new(recent_bytes, store.is_some()),
            rest: Rest::new(options.complete_share),
            heads: Heads::new(pool.budget().limit()),
            on_stale: OnceLock::new(),
            counters: Counters::default(),
            ufs,
            store,
            pool,
            options,
            handle,
        })
    }

    /// Has `call` called whenever the storage says that it no longer has a version. Set once, before the first open.
    /// What owns this `ReadThrough` is captured weakly, else neither would ever go.
    pub fn on_stale(&self, call: impl Fn(&UfsPath) + Send + Sync + 'static) {
        // A second one is a mistake of the program, and changes nothing.
        let first = self.on_stale.set(Box::new(call)).is_ok();
        debug_assert!(first);
    }

    /// Opens the version of a regular file that `attr` names. No request is made.
    pub fn open(self: &Arc<Self>, path: &UfsPath, attr: Arc<Attr>) -> Arc<dyn PagedFile> {
        Arc::new(OpenPages::new(self.pages(path, &attr), attr))
    }

    /// The same, with the first bytes of this version, which came with the lookup: when they are the whole of a file of
    /// one page, the page is stored without a request; otherwise the first page begins with them.
    pub fn open_seeded(self: &Arc<Self>, path: &UfsPath, attr: Arc<Attr>, bytes: &Bytes) -> Arc<dyn PagedFile> {
        let pages = self.pages(path, &attr);
        pages.seed(bytes);
        Arc::new(OpenPages::new(pages, attr))
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The page store, when there is one that works.
    pub fn store(&self) -> Option<&Arc<PageStore>> {
        self.store.as_ref()
    }

    /// What was fetched so far.
    pub fn stats(&self) -> ReadStats {
        ReadStats {
            requests: self.counters.requests.load(Relaxed),
            fetched_bytes: self.counters.fetched_bytes.load(Relaxed),
            failures: self.counters.failures.load(Relaxed),
        }
    }

    /// Gives up pages that are kept in memory only because they might be wanted again, and idle buffers.
    pub fn trim(&self) {
        self.recent.clear();
        self.heads.clear();
        self.pool.trim();
    }

    fn shard(&self, key: &Key) -> &Mutex<HashMap<Key, Weak<Pages>>> {
        &self.files[usize::from(key.id.0[1]) % SHARDS]
    }

    /// The pages of this version, shared with everybody who has it open.
    fn pages(self: &Arc<Self>, path: &UfsPath, attr: &Arc<Attr>) -> Arc<Pages> {
        let full_path = self.ufs.uri().full_path(path);
        let id = FileId::of(&full_path);
        // Where the storage names no version, size and time stand for it.
        let version = if attr.version.is_none() {
            Version::new(format!("mtime {}.{:09}", attr.mtime.sec, attr.mtime.nsec))
        } else {
            attr.version.clone()
        };
        let key = Key { id, version, size: attr.size };
        let shard = self.shard(&key);
        if let Some(known) = shard.lock().get(&key).and_then(Weak::upgrade) {
            return known;
        }
        let stored: Option<Arc<StoredFile>> =
            self.store.as_ref().and_then(|store| store.open_file(id, &key.version, attr.size, &full_path));
        let fresh = Pages::new(self, key, path.clone(), attr.version.clone(), stored);
        let mut files = shard.lock();
        if let Some(known) = files.get(&fresh.key).and_then(Weak::upgrade) {
            // `fresh` is dropped after the lock: its drop takes the same one.
            drop(files);
            return known;
        }
        files.insert(fresh.key.clone(), Arc::downgrade(&fresh));
        fresh
    }

    /// Called by pages that go, or are stale.
    fn forget(&self, pages: &Pages) {
        let mut files = self.shard(&pages.key).lock();
        if files.get(&pages.key).is_some_and(|known| std::ptr::eq(known.as_ptr(), pages)) {
            files.remove(&pages.key);
        }
    }

    /// Puts the recently used pages to rest once nothing happens any more.
    fn watch_idle(self: &Arc<Self>) {
        if !self.recent.start_watch() {
            return;
        }
        let (weak, idle) = (Arc::downgrade(self), self.options.idle_after);
        self.handle.spawn(async move {
            loop {
                tokio::time::sleep(idle).await;
                let Some(reads) = weak.upgrade() else { return };
                if reads.recent.end_watch_if_idle() {
                    reads.trim();
                    return;
                }
            }
        });
    }
}

impl std::fmt::Debug for ReadThrough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadThrough({})", self.ufs.uri())
    }
}

/// The page numbers that a call may name.
fn check_page(page: u64, pages: u64) -> Result<()> {
    if page < pages {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, format!("page {page} of a file of {pages} pages")))
}
