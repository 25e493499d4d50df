//! A worker in memory for the tests of this room: its files can fail, stall, change and be evicted.

use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileId, FileKind, Result, StatFs, Timestamp, UfsPath, Version,
    budget::{MemoryBudget, Purpose},
    page::{PageLoad, PagePool, PageWriter},
    worker::{DirEntry, FileLease, Freshness, Listing, OpenedFile, PagedFile, Worker},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes of a page.
pub(crate) const PAGE: u32 = 64 << 10;

/// Polls until `condition` holds; fails after 30 seconds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 30 seconds");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What becomes of the fetch of a page: its number and how often it has been tried before.
pub(crate) type Fault = dyn Fn(u64, u32) -> Option<ErrorKind> + Send + Sync;

pub(crate) struct Hooks {
    pool: Arc<PagePool>,
    fault: Mutex<Option<Arc<Fault>>>,
    gate: tokio::sync::Semaphore,
    gated: AtomicBool,
    fetches: AtomicUsize,
    running: AtomicUsize,
    most_running: AtomicUsize,
}

/// One version of a file.
pub(crate) struct FakeFile {
    attr: Arc<Attr>,
    content: Bytes,
    hooks: Arc<Hooks>,
    gone: AtomicBool,
    present: Mutex<HashSet<u64>>,
    loads: Mutex<HashMap<u64, Arc<PageLoad>>>,
    tries: Mutex<HashMap<u64, u32>>,
    this: std::sync::Weak<FakeFile>,
}

impl FakeFile {
    fn range(&self, page: u64) -> std::ops::Range<usize> {
        let start = page as usize * PAGE as usize;
        start..(start + PAGE as usize).min(self.content.len())
    }

    fn pages(&self) -> u64 {
        self.attr.size.div_ceil(u64::from(PAGE))
    }

    /// Drops a page from disk.
    pub(crate) fn evict(&self, page: u64) {
        self.present.lock().remove(&page);
    }

    /// Puts a page on disk.
    pub(crate) fn store(&self, page: u64) {
        self.present.lock().insert(page);
    }

    fn fill(&self, page: u64, mut writer: PageWriter) {
        let Some(file) = self.this.upgrade() else { return };
        let hooks = file.hooks.clone();
        hooks.fetches.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            let now = hooks.running.fetch_add(1, Ordering::SeqCst) + 1;
            hooks.most_running.fetch_max(now, Ordering::SeqCst);
            if hooks.gated.load(Ordering::SeqCst) {
                hooks.gate.acquire().await.unwrap().forget();
            }
            let tries = {
                let mut tries = file.tries.lock();
                let tries = tries.entry(page).or_default();
                *tries += 1;
                *tries - 1
            };
            let fault = hooks.fault.lock().clone();
            let fault = match file.gone.load(Ordering::SeqCst) {
                true => Some(ErrorKind::Stale),
                false => fault.and_then(|fault| fault(page, tries)),
            };
            let bytes = file.content.slice(file.range(page));
            for (at, piece) in bytes.chunks(10_000).enumerate() {
                if fault.is_some() && at == 1 {
                    break;
                }
                writer.append(piece);
                tokio::task::yield_now().await;
            }
            match fault {
                Some(kind) => {
                    file.loads.lock().remove(&page);
                    writer.fail(Error::new(kind, "by order"));
                }
                None => {
                    writer.finish().unwrap();
                    file.present.lock().insert(page);
                    file.loads.lock().remove(&page);
                }
            }
            hooks.running.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

#[async_trait]
impl PagedFile for FakeFile {
    fn file_id(&self) -> FileId {
        FileId::of(self.attr.version.as_str().as_bytes())
    }

    fn attr(&self) -> &Arc<Attr> {
        &self.attr
    }

    fn page_size(&self) -> u32 {
        PAGE
    }

    fn read_present(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let present = self.present.lock();
        let mut copied = 0;
        while copied < buffer.len() {
            let at = offset + copied as u64;
            let page = at / u64::from(PAGE);
            if at >= self.attr.size || !present.contains(&page) {
                break;
            }
            let end = self.range(page).end.min(offset as usize + buffer.len());
            let piece = &self.content[at as usize..end];
            buffer[copied..copied + piece.len()].copy_from_slice(piece);
            copied += piece.len();
        }
        Ok(copied)
    }

    fn is_present(&self, page: u64) -> bool {
        self.present.lock().contains(&page)
    }

    fn page_now(&self, page: u64) -> Option<Arc<PageLoad>> {
        self.loads.lock().get(&page).cloned()
    }

    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>> {
        if self.is_present(page) {
            return Ok(None);
        }
        if let Some(load) = self.page_now(page) {
            return Ok(Some(load));
        }
        let (load, writer) = self.hooks.pool.demand_load(self.range(page).len()).await?;
        {
            let mut loads = self.loads.lock();
            if let Some(other) = loads.get(&page) {
                return Ok(Some(other.clone()));
            }
            if self.is_present(page) {
                return Ok(None);
            }
            loads.insert(page, load.clone());
        }
        self.fill(page, writer);
        Ok(Some(load))
    }

    fn prefetch(&self, first: u64, count: u64) -> u64 {
        assert!(first + count <= self.pages(), "prefetch beyond the end");
        for at in 0..count {
            let page = first + at;
            let mut loads = self.loads.lock();
            if self.is_present(page) || loads.contains_key(&page) {
                continue;
            }
            let Some((load, writer)) = self.hooks.pool.try_load(self.range(page).len(), Purpose::Prefetch) else {
                return at;
            };
            loads.insert(page, load);
            drop(loads);
            self.fill(page, writer);
        }
        count
    }

    fn export(&self) -> Option<FileLease> {
        let complete = self.present.lock().len() as u64 == self.pages();
        complete.then(|| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&self.content, 0).unwrap();
            FileLease::new(Arc::new(file), self.attr.version.clone(), Arc::new(()))
        })
    }

    async fn complete(&self) -> Result<()> {
        for page in 0..self.pages() {
            if let Some(load) = self.demand(page).await? {
                load.wait_end().await?;
                drop(load);
                while !self.is_present(page) {
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    }
}

/// The worker: paths to files; what it knows of a path may be older than what the storage has.
pub(crate) struct FakeWorker {
    hooks: Arc<Hooks>,
    stored: Mutex<BTreeMap<String, Arc<FakeFile>>>,
    known: Mutex<BTreeMap<String, Arc<FakeFile>>>,
    versions: AtomicU64,
    capacity: AtomicU64,
}

impl FakeWorker {
    /// With a memory budget of `memory` bytes.
    pub(crate) fn new(memory: usize) -> Arc<Self> {
        Arc::new(Self {
            hooks: Arc::new(Hooks {
                pool: PagePool::new(MemoryBudget::new(memory)),
                fault: Mutex::default(),
                gate: tokio::sync::Semaphore::new(0),
                gated: AtomicBool::new(false),
                fetches: AtomicUsize::new(0),
                running: AtomicUsize::new(0),
                most_running: AtomicUsize::new(0),
            }),
            stored: Mutex::default(),
            known: Mutex::default(),
            versions: AtomicU64::new(0),
            capacity: AtomicU64::new(0),
        })
    }

    pub(crate) fn pool(&self) -> &Arc<PagePool> {
        &self.hooks.pool
    }

    pub(crate) fn put(&self, path: &str, content: Vec<u8>) -> Arc<FakeFile> {
        let file = self.replace_behind(path, content);
        self.known.lock().insert(path.to_owned(), file.clone());
        file
    }

    /// Replaces a file without the worker's knowledge.
    pub(crate) fn replace_behind(&self, path: &str, content: Vec<u8>) -> Arc<FakeFile> {
        let version = Version::new(format!("v{}", self.versions.fetch_add(1, Ordering::SeqCst)));
        let attr = Attr::of_object(FileKind::File, content.len() as u64, Timestamp::default(), version);
        let file = Arc::new_cyclic(|this| FakeFile {
            attr: Arc::new(attr),
            content: content.into(),
            hooks: self.hooks.clone(),
            gone: AtomicBool::new(false),
            present: Mutex::default(),
            loads: Mutex::default(),
            tries: Mutex::default(),
            this: this.clone(),
        });
        if let Some(old) = self.stored.lock().insert(path.to_owned(), file.clone()) {
            old.gone.store(true, Ordering::SeqCst);
        }
        file
    }

    pub(crate) fn is_complete(&self, path: &str) -> bool {
        let file = self.stored.lock().get(path).cloned();
        file.is_some_and(|file| file.present.lock().len() as u64 == file.pages())
    }

    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.capacity.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn set_fault(&self, fault: Option<Arc<Fault>>) {
        *self.hooks.fault.lock() = fault;
    }

    pub(crate) fn fail_from_now(&self, kind: ErrorKind) {
        self.set_fault(Some(Arc::new(move |_, _| Some(kind))));
    }

    pub(crate) fn heal(&self) {
        self.set_fault(None);
    }

    /// Every fetch waits from now on until it is let through.
    pub(crate) fn close_gate(&self) {
        self.hooks.gated.store(true, Ordering::SeqCst);
    }

    pub(crate) fn let_pass(&self, fetches: usize) {
        self.hooks.gate.add_permits(fetches);
    }

    pub(crate) fn fetches(&self) -> usize {
        self.hooks.fetches.load(Ordering::SeqCst)
    }

    pub(crate) fn running(&self) -> usize {
        self.hooks.running.load(Ordering::SeqCst)
    }

    pub(crate) fn most_running(&self) -> usize {
        self.hooks.most_running.load(Ordering::SeqCst)
    }

    fn key(path: &UfsPath) -> String {
        String::from_utf8_lossy(path.as_bytes()).into_owned()
    }

    fn missing(path: &UfsPath) -> Error {
        Error::new(ErrorKind::NotFound, format!("{path}: no such file"))
    }
}

struct Once(Option<Vec<DirEntry>>);

#[async_trait]
impl Listing for Once {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        Ok(self.0.take().filter(|entries| !entries.is_empty()))
    }
}

#[async_trait]
impl Worker for FakeWorker {
    fn attr_now(&self, path: &UfsPath) -> Option<Result<Arc<Attr>>> {
        self.known.lock().get(&Self::key(path)).map(|file| Ok(file.attr.clone()))
    }

    async fn attr(&self, path: &UfsPath, _freshness: Freshness) -> Result<Arc<Attr>> {
        self.attr_now(path).unwrap_or_else(|| Err(Self::missing(path)))
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let prefix = format!("{}/", Self::key(path));
        let entries = self.known.lock();
        let in_it = entries.iter().filter_map(|(key, file)| {
            let name = key.strip_prefix(&prefix)?.as_bytes().into();
            Some(DirEntry { name, kind: FileKind::File, attr: Some(file.attr.clone()) })
        });
        Ok(Box::new(Once(Some(in_it.collect()))))
    }

    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        Err(Self::missing(path))
    }

    fn open_now(&self, path: &UfsPath) -> Option<Result<OpenedFile>> {
        let file = self.known.lock().get(&Self::key(path)).cloned()?;
        Some(Ok(OpenedFile::Paged(file)))
    }

    async fn open(&self, path: &UfsPath, freshness: Freshness) -> Result<OpenedFile> {
        if freshness == Freshness::Cached
            && let Some(opened) = self.open_now(path)
        {
            return opened;
        }
        let file = self.stored.lock().get(&Self::key(path)).cloned().ok_or_else(|| Self::missing(path))?;
        self.known.lock().insert(Self::key(path), file.clone());
        Ok(OpenedFile::Paged(file))
    }

    fn stat_fs(&self) -> StatFs {
        let capacity = self.capacity.load(Ordering::SeqCst);
        let page = |file: &Arc<FakeFile>| -> u64 {
            file.present.lock().iter().map(|page| file.range(*page).len() as u64).sum()
        };
        let used: u64 = self.stored.lock().values().map(page).sum();
        let free = capacity.saturating_sub(used) / 4096;
        StatFs {
            block_size: 4096,
            blocks: capacity / 4096,
            free,
            available: free,
            files: 0,
            files_free: 0,
            name_max: 255,
        }
    }

    fn forget(&self, path: &UfsPath) {
        self.known.lock().remove(&Self::key(path));
    }
}
