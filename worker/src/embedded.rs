//! The worker inside this process: metadata from the cache or the storage, data through a [`PageSource`].
//!
//! Invariants:
//! - a directory on this host is never cached: every call asks the operating system;
//! - the same question is asked once at a time: concurrent callers share the answer, and it is dropped unfinished only
//!   when all of them have gone;
//! - what is asked with [`Freshness::Storage`] begins after the call, it never joins an older request;
//! - the number of metadata requests at the storage is bounded; each ends, since the storage keeps deadlines.

use crate::{
    cache::{Known, MetadataCache},
    flight::{Flight, Found},
    heads::{Heads, KEEP},
    lent::{Lent, LentFile},
    lister::{Lister, Wanted},
    options::WorkerOptions,
    outage::Outage,
    parents::Advice,
    source::PageSource,
    stage::{Attributes, Caches, ObjectChanges, Stage, StageOptions, StagedPages, unpublished},
};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, StatFs, UfsPath,
    budget::MemoryBudget,
    change::Changes,
    metrics::metrics,
    worker::{DirEntry, FileLease, Freshness, Listing, OpenedFile, Worker},
};
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use store::ReadThrough;
use tokio::{runtime::Handle, sync::Semaphore};
use ufs::UnderStorage;

/// Batches of a fresh listing up to which it is made again for the sake of names that it does not have.
const RELISTED: usize = 4;

/// Files up to this size are kept in the page store when they are written.
const SEEDED: usize = 1 << 20;

type Answer = Result<Arc<Attr>>;

/// What the worker has counted since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkerStats {
    /// Lookups answered from memory.
    pub metadata_hits: u64,
    /// Lookups that had to ask the storage or wait for a listing.
    pub metadata_misses: u64,
    /// Names known now.
    pub metadata_entries: u64,
}

/// Serves one under storage from within this process.
pub struct EmbeddedWorker {
    inner: Arc<Inner>,
}

struct Inner {
    storage: Arc<dyn UnderStorage>,
    source: Arc<dyn PageSource>,
    local: bool,
    cache: Arc<MetadataCache>,
    lister: Arc<Lister>,
    heads: Heads,
    requests: Arc<Semaphore>,
    lent: Lent,
    outage: Arc<Outage>,
    asking: Mutex<HashMap<UfsPath, WeakShared<BoxFuture<'static, Answer>>>>,
    options: WorkerOptions,
    handle: Handle,
    budget: Arc<MemoryBudget>,
    stage: OnceLock<(Arc<Stage>, ObjectChanges)>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl EmbeddedWorker {
    /// A worker over `storage` whose data is read through `reads` (over the same storage). What proves stale there is
    /// forgotten here. The rest as in [`new`](Self::new).
    pub fn over(
        storage: Arc<dyn UnderStorage>,
        reads: &Arc<ReadThrough>,
        budget: Arc<MemoryBudget>,
        options: WorkerOptions,
        handle: Handle,
    ) -> Arc<Self> {
        let worker = Self::new(storage, Arc::new(reads.clone()), budget, options, handle);
        let inner = Arc::downgrade(&worker.inner);
        reads.on_stale(move |path| {
            if let Some(inner) = inner.upgrade() {
                inner.cache.forget(path);
            }
        });
        worker
    }

    /// A worker over `storage` that opens files through `source`. First bytes kept for an open count in `budget`;
    /// background listings run on `handle`.
    pub fn new(
        storage: Arc<dyn UnderStorage>,
        source: Arc<dyn PageSource>,
        budget: Arc<MemoryBudget>,
        options: WorkerOptions,
        handle: Handle,
    ) -> Arc<Self> {
        let clock = options.clock.clone();
        let cache = Arc::new(MetadataCache::new(
            clock.clone(),
            options.sync_interval,
            options.negative_ttl,
            options.metadata_entries,
        ));
        let requests = Arc::new(Semaphore::new(options.metadata_requests.max(1)));
        let outage = Outage::new(storage.clone(), cache.clone(), handle.clone());
        let lister =
            Lister::new(storage.clone(), cache.clone(), requests.clone(), outage.clone(), &options, handle.clone());
        let inner = Inner {
            local: storage.is_local(),
            storage,
            source,
            cache,
            lister,
            heads: Heads::new(clock, budget.clone(), options.head_total),
            budget,
            stage: OnceLock::new(),
            requests,
            lent: Lent::new(),
            outage,
            asking: Mutex::default(),
            options,
            handle,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        };
        Arc::new(Self { inner: Arc::new(inner) })
    }

    /// From now on this worker takes changes of its storage, which must take changes of objects ([`UnderStorage::objects`]):
    /// files are staged as `options` say, and what an earlier process left is gone on with. `attributes` are those that the
    /// storage was dressed with ([`crate::stage::Dressed`]).
    pub fn take_changes(&self, attributes: Arc<Attributes>, options: StageOptions) -> Result<Arc<Stage>> {
        let inner = &self.inner;
        let caches = Box::new(Hooks(Arc::downgrade(inner)));
        let stage = Stage::open(
            inner.storage.clone(),
            attributes,
            options,
            inner.budget.clone(),
            caches,
            inner.handle.clone(),
        )?;
        let changes = ObjectChanges(stage.clone());
        let first = inner.stage.set((stage.clone(), changes)).is_ok();
        debug_assert!(first, "a worker takes changes once");
        Ok(stage)
    }

    /// The stage, when this worker takes changes of objects.
    pub fn stage(&self) -> Option<&Arc<Stage>> {
        self.inner.stage.get().map(|(stage, _)| stage)
    }

    /// Counters.
    pub fn stats(&self) -> WorkerStats {
        WorkerStats {
            metadata_hits: self.inner.hits.load(Ordering::Relaxed),
            metadata_misses: self.inner.misses.load(Ordering::Relaxed),
            metadata_entries: self.inner.cache.len() as u64,
        }
    }

    /// Drops what is cached about `path` and everything below it.
    pub fn forget_below(&self, path: &UfsPath) {
        self.inner.cache.forget_below(path);
    }

    /// The under storage.
    pub fn storage(&self) -> &Arc<dyn UnderStorage> {
        &self.inner.storage
    }
}

impl Inner {
    fn cached(&self, path: &UfsPath) -> Option<Answer> {
        let answer = match self.cache.get(path)? {
            Known::Attr(attr) => Ok(attr),
            Known::Missing => Err(missing(path)),
        };
        self.hits.fetch_add(1, Ordering::Relaxed);
        metrics().metadata_hits.inc();
        Some(answer)
    }

    /// Asks the storage, together with everybody else who asks for this path now.
    async fn ask_shared(self: &Arc<Self>, path: &UfsPath) -> Answer {
        let shared: Shared<BoxFuture<'static, Answer>> = {
            let mut asking = self.asking.lock();
            match asking.get(path).and_then(WeakShared::upgrade) {
                Some(shared) => shared,
                None => {
                    // Those that were given up leave a dead entry; they are cleared when the table has grown.
                    if asking.len() >= 4096 {
                        asking.retain(|_, shared| shared.upgrade().is_some());
                    }
                    let (inner, path) = (self.clone(), path.clone());
                    let key = path.clone();
                    let shared = async move {
                        let answer = inner.look_up(&path).await;
                        inner.asking.lock().remove(&path);
                        answer
                    }
                    .boxed()
                    .shared();
                    if let Some(weak) = shared.downgrade() {
                        asking.insert(key, weak);
                    }
                    shared
                }
            }
        };
        shared.await
    }

    /// One lookup that the cache could not answer.
    async fn look_up(self: &Arc<Self>, path: &UfsPath) -> Answer {
        self.misses.fetch_add(1, Ordering::Relaxed);
        metrics().metadata_misses.inc();
        let (Some(dir), Some(name)) = (path.parent(), path.name()) else {
            return self.ask(path).await;
        };
        if !self.lister.answers_lookups() {
            return self.ask(path).await;
        }
        let advice = self.lister.missed(&dir);
        // A listing that is still fresh, but says no more that names are absent, is repeated only when that is cheap.
        let known = self.cache.listing(&dir).is_some_and(|listing| listing.batches().len() > RELISTED);
        let outdated = self.cache.is_worth_refreshing(&dir);
        if outdated {
            self.lister.refresh_others();
        }
        if (advice == Advice::List || outdated) && !known {
            // Whoever lists it already, for a reader or another lookup, is joined.
            let (flight, _) = self.lister.start(&dir, Wanted::Lookup);
            if let Some(answer) = self.wait_for(&flight, path, name).await {
                return answer;
            }
            // The flight may have ended with more than it could say itself.
            if let Some(answer) = self.cached(path) {
                return answer;
            }
            return self.ask(path).await;
        }
        if let Some(flight) = self.lister.under_way(&dir)
            && let Some(answer) = self.wait_for(&flight, path, name).await
        {
            return answer;
        }
        if advice == Advice::First && !known { self.ask_with_head(path).await } else { self.ask(path).await }
    }

    /// What a listing under way says of `name`, within the patience of a lookup.
    async fn wait_for(&self, flight: &Arc<Flight>, path: &UfsPath, name: &[u8]) -> Option<Answer> {
        match tokio::time::timeout(self.options.listing_patience, flight.find(name)).await {
            Ok(Found::Entry(entry)) => entry.attr.map(Ok),
            Ok(Found::Missing) => Some(Err(missing(path))),
            Ok(Found::Unknown) | Err(_) => None,
        }
    }

    async fn ask(&self, path: &UfsPath) -> Answer {
        let ticket = self.cache.ticket();
        let answer = {
            let _permit = self.requests.acquire().await;
            self.storage.stat(path).await
        };
        self.learn(path, answer.map(Arc::new), ticket)
    }

    async fn ask_with_head(self: &Arc<Self>, path: &UfsPath) -> Answer {
        if self.options.head_bytes == 0 {
            return self.ask(path).await;
        }
        let ticket = self.cache.ticket();
        let answer = {
            let _permit = self.requests.acquire().await;
            self.storage.stat_and_read(path, self.options.head_bytes).await
        };
        let answer = answer.map(|head| {
            if self.heads.put(path, head.attr.version.clone(), head.bytes) {
                self.sweep_heads();
            }
            Arc::new(head.attr)
        });
        self.learn(path, answer, ticket)
    }

    fn learn(&self, path: &UfsPath, answer: Answer, ticket: crate::cache::Ticket) -> Answer {
        match &answer {
            Ok(attr) => self.cache.put(path, Known::Attr(attr.clone()), ticket),
            Err(error) if error.kind() == ErrorKind::NotFound => self.cache.put(path, Known::Missing, ticket),
            Err(error) if self.outage.noticed(error) => return self.cached(path).unwrap_or(answer),
            Err(_) => {}
        }
        answer
    }

    fn sweep_heads(self: &Arc<Self>) {
        let inner = Arc::downgrade(self);
        self.handle.spawn(async move {
            loop {
                tokio::time::sleep(KEEP).await;
                match inner.upgrade() {
                    Some(inner) if inner.heads.sweep() => {}
                    _ => return,
                }
            }
        });
    }

    fn open_lent(&self, path: &UfsPath, attr: Arc<Attr>, lease: FileLease) -> Result<OpenedFile> {
        match self.open(path, attr)? {
            OpenedFile::Paged(inner) => Ok(OpenedFile::Paged(Arc::new(LentFile { inner, lease }))),
            local => Ok(local),
        }
    }

    fn open(&self, path: &UfsPath, attr: Arc<Attr>) -> Result<OpenedFile> {
        match attr.kind {
            FileKind::File => {
                let head: Option<Bytes> = self.heads.take(path, &attr.version);
                Ok(OpenedFile::Paged(self.source.open(path, attr, head)))
            }
            FileKind::Directory => Err(Error::new(ErrorKind::IsADirectory, format!("{path} is a directory"))),
            FileKind::Symlink => Err(Error::new(ErrorKind::TooManyLinks, format!("{path} is a symbolic link"))),
            _ => Err(Error::new(ErrorKind::Unsupported, format!("{path} is a special file"))),
        }
    }
}

impl Inner {
    /// The attributes of a file that is written and not in the storage.
    fn unpublished(&self, path: &UfsPath) -> Option<Arc<Attr>> {
        self.stage.get()?.0.attr_now(path)
    }

    /// Opens a file that is written and not in the storage, as it is here.
    fn open_unpublished(&self, path: &UfsPath) -> Option<OpenedFile> {
        let stage = &self.stage.get()?.0;
        stage.attr_now(path)?;
        let pages = StagedPages::new(stage, &stage.staged(path)?, self.options.staged_page);
        Some(OpenedFile::Paged(Arc::new(pages)))
    }

    /// Nobody joins a request from now on that began before this.
    fn detach(&self, path: &UfsPath) {
        self.asking.lock().remove(path);
        self.lister.detach(path);
        if let Some(directory) = path.parent() {
            self.lister.detach(&directory);
        }
    }
}

/// What a stage tells the caches. Weak, since the worker owns the stage.
struct Hooks(Weak<Inner>);

#[async_trait]
impl Caches for Hooks {
    fn changed(&self, path: &UfsPath, known: Option<Known>) {
        let Some(inner) = self.0.upgrade() else { return };
        match (known, path.name()) {
            (Some(Known::Attr(attr)), Some(name)) => {
                let entry = DirEntry { name: name.into(), kind: attr.kind, attr: Some(attr) };
                inner.cache.change(path, Some(entry));
            }
            (Some(Known::Missing), _) => inner.cache.change(path, None),
            _ => inner.cache.forget(path),
        }
        inner.detach(path);
    }

    fn stored(&self, path: &UfsPath) {
        let (Some(inner), Some(name)) = (self.0.upgrade(), path.name()) else { return };
        inner.cache.change(path, Some(DirEntry { name: name.into(), kind: FileKind::File, attr: None }));
        inner.detach(path);
    }

    fn changed_tree(&self, path: &UfsPath) {
        let Some(inner) = self.0.upgrade() else { return };
        inner.cache.forget_below(path);
        inner.asking.lock().retain(|asked, _| !asked.is_within(path));
        inner.lister.detach_tree(path);
        inner.detach(path);
    }

    async fn attr(&self, path: &UfsPath, fresh: bool) -> Result<Arc<Attr>> {
        let inner = self.0.upgrade().ok_or_else(|| Error::new(ErrorKind::Cancelled, "the mount has ended"))?;
        if fresh {
            return inner.ask(path).await;
        }
        match inner.cached(path) {
            Some(answer) => answer,
            None => inner.ask_shared(path).await,
        }
    }

    fn seed(&self, path: &UfsPath, attr: Arc<Attr>, bytes: Bytes) {
        if let Some(inner) = self.0.upgrade()
            && bytes.len() <= SEEDED
        {
            drop(inner.source.open(path, attr, Some(bytes)));
        }
    }
}

fn missing(path: &UfsPath) -> Error {
    Error::new(ErrorKind::NotFound, format!("{path}: no such file or directory"))
}

#[async_trait]
impl Worker for EmbeddedWorker {
    fn attr_now(&self, path: &UfsPath) -> Option<Result<Arc<Attr>>> {
        if self.inner.local {
            return self.inner.storage.stat_now(path).map(|answer| answer.map(Arc::new));
        }
        if let Some(attr) = self.inner.unpublished(path) {
            return Some(Ok(attr));
        }
        self.inner.cached(path)
    }

    async fn attr(&self, path: &UfsPath, freshness: Freshness) -> Result<Arc<Attr>> {
        if let Some(attr) = self.inner.unpublished(path) {
            return Ok(attr);
        }
        if self.inner.local {
            return match self.inner.storage.stat_now(path) {
                Some(answer) => answer.map(Arc::new),
                None => self.inner.storage.stat(path).await.map(Arc::new),
            };
        }
        if freshness == Freshness::Storage {
            return self.inner.ask(path).await;
        }
        match self.inner.cached(path) {
            Some(answer) => answer,
            // Where nothing is kept nothing may be joined either: it may have begun before a change.
            None if !self.inner.cache.is_useful() => self.inner.ask(path).await,
            None => self.inner.ask_shared(path).await,
        }
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        if self.inner.local || !self.inner.cache.is_useful() && self.inner.storage.changes().is_some() {
            return self.inner.storage.list(path).await;
        }
        let listing = self.inner.lister.list(path).await;
        match self.inner.stage.get() {
            Some((stage, _)) => unpublished(stage, path, listing),
            None => listing,
        }
    }

    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        if self.inner.local {
            return self.inner.storage.read_link(path).await;
        }
        let _permit = self.inner.requests.acquire().await;
        self.inner.storage.read_link(path).await
    }

    fn open_now(&self, path: &UfsPath) -> Option<Result<OpenedFile>> {
        if self.inner.local {
            return self.inner.storage.open_now(path).map(|opened| opened.map(OpenedFile::Local));
        }
        if let Some(opened) = self.inner.open_unpublished(path) {
            return Some(Ok(opened));
        }
        match self.inner.cached(path)? {
            Ok(attr) if attr.is_file() && attr.size > 0 && self.inner.storage.lends() => {
                let lease = self.inner.lent.get(path, &attr.version)?;
                Some(self.inner.open_lent(path, attr, lease))
            }
            Ok(attr) => Some(self.inner.open(path, attr)),
            Err(error) => Some(Err(error)),
        }
    }

    async fn open(&self, path: &UfsPath, freshness: Freshness) -> Result<OpenedFile> {
        if self.inner.local
            && let Some(opened) = self.inner.storage.open_now(path)
        {
            return opened.map(OpenedFile::Local);
        }
        if let Some(opened) = self.inner.open_unpublished(path) {
            return Ok(opened);
        }
        let attr = self.attr(path, freshness).await?;
        if attr.is_file()
            && attr.size > 0
            && self.inner.storage.lends()
            && let Some(lease) = self.inner.lent.ask(&self.inner.storage, path, &attr).await
        {
            return self.inner.open_lent(path, attr, lease);
        }
        self.inner.open(path, attr)
    }

    fn changes(&self) -> Option<&dyn Changes> {
        match self.inner.stage.get() {
            Some((_, changes)) => Some(changes),
            // Those of another kind of storage are made beside what is cached here, if anything is.
            None if self.inner.local || !self.inner.cache.is_useful() => self.inner.storage.changes(),
            None => None,
        }
    }

    fn stat_fs(&self) -> StatFs {
        const BLOCK: u64 = 4096;
        let space = self.inner.source.space().filter(|_| !self.inner.local);
        if space.is_none()
            && let Some(space) = self.inner.storage.stat_fs()
        {
            return space;
        }
        let (capacity, used, files) = space.map_or((0, 0, 0), |space| (space.capacity, space.used, space.files));
        let free = capacity.saturating_sub(used) / BLOCK;
        StatFs {
            block_size: 4096,
            blocks: capacity / BLOCK,
            free,
            available: free,
            files,
            files_free: 0,
            name_max: 255,
        }
    }

    fn forget(&self, path: &UfsPath) {
        self.inner.cache.forget(path);
    }
}

#[cfg(test)]
mod tests;
