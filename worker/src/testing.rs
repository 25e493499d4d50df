//! An under storage in memory for tests: counts requests, can be slow or faulty, and holds directories that exist only
//! as a rule (a million entries cost nothing until they are listed).

use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    worker::{DirEntry, Listing},
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use ufs::{Head, ReadSink, UnderStorage};

/// A request as the fault hook sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Attributes.
    Stat(UfsPath),
    /// Attributes and first bytes.
    Head(UfsPath),
    /// One page of a listing, by its number.
    List(UfsPath, usize),
    /// Bytes: offset and length.
    Read(UfsPath, u64, u64),
}

/// How a request goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails.
    Fail(ErrorKind),
    /// A read gives only so many bytes and then fails as the trait demands.
    Short(u64),
}

/// Decides for each request whether it goes wrong.
pub type FaultHook = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

/// Requests so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// `stat` without the bytes.
    pub stats: AtomicUsize,
    /// `stat_and_read`.
    pub heads: AtomicUsize,
    /// Pages of listings.
    pub lists: AtomicUsize,
    /// Reads.
    pub reads: AtomicUsize,
    /// Bytes given by reads.
    pub read_bytes: AtomicU64,
    /// Requests under way now.
    pub running: AtomicUsize,
    /// The most that ever were.
    pub most_running: AtomicUsize,
}

impl Counts {
    /// `stat` and `stat_and_read` together.
    pub fn lookups(&self) -> usize {
        self.stats.load(Ordering::SeqCst) + self.heads.load(Ordering::SeqCst)
    }

    /// Pages of listings.
    pub fn lists(&self) -> usize {
        self.lists.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Object {
    bytes: Bytes,
    version: Version,
    mtime: Timestamp,
}

/// A directory whose entries `00000000`, `00000001`, … exist by rule; their content is their name.
#[derive(Debug, Clone, Copy)]
struct Synthetic {
    entries: u64,
}

/// The storage. Configure it, then share it by `Arc`.
pub struct MemoryStorage {
    uri: UfsUri,
    objects: Mutex<BTreeMap<Vec<u8>, Object>>,
    directories: Mutex<BTreeSet<Vec<u8>>>,
    synthetic: Mutex<BTreeMap<Vec<u8>, Synthetic>>,
    next_version: AtomicU64,
    latency_micros: AtomicU64,
    batch: AtomicU32,
    with_attrs: AtomicBool,
    faults: Mutex<Option<Arc<FaultHook>>>,
    gate: tokio::sync::Semaphore,
    gated: AtomicBool,
    counts: Arc<Counts>,
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self {
            uri: UfsUri::parse("memory://test").unwrap_or_else(|error| unreachable!("a constant: {error}")),
            objects: Mutex::default(),
            directories: Mutex::new(BTreeSet::from([Vec::new()])),
            synthetic: Mutex::default(),
            next_version: AtomicU64::new(1),
            latency_micros: AtomicU64::new(0),
            batch: AtomicU32::new(1000),
            with_attrs: AtomicBool::new(true),
            faults: Mutex::default(),
            gate: tokio::sync::Semaphore::new(0),
            gated: AtomicBool::new(false),
            counts: Arc::default(),
        }
    }
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Requests so far.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Every answer comes after `latency`.
    pub fn set_latency(&self, latency: Duration) {
        self.latency_micros.store(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Entries of one page of a listing.
    pub fn set_batch(&self, entries: u32) {
        self.batch.store(entries.max(1), Ordering::SeqCst);
    }

    /// Whether listings come with attributes.
    pub fn set_listing_attrs(&self, with: bool) {
        self.with_attrs.store(with, Ordering::SeqCst);
    }

    /// Has every request ask `hook` whether it goes wrong; `None` ends that.
    pub fn set_faults(&self, hook: Option<Arc<FaultHook>>) {
        *self.faults.lock() = hook;
    }

    /// From now on each request waits until [`let_pass`](Self::let_pass) lets it through.
    pub fn close_gate(&self) {
        self.gated.store(true, Ordering::SeqCst);
    }

    /// Lets `requests` of the waiting requests, or of those to come, through the closed gate.
    pub fn let_pass(&self, requests: usize) {
        self.gate.add_permits(requests);
    }

    /// Writes an object and the directories above it; returns its new version.
    pub fn put(&self, path: &str, bytes: impl Into<Bytes>) -> Version {
        let key = normal(path);
        let number = self.next_version.fetch_add(1, Ordering::SeqCst);
        let version = Version::new(format!("v{number}"));
        let mtime = Timestamp { sec: 1_700_000_000 + i64::try_from(number).unwrap_or(0), nsec: 0 };
        self.make_parents(&key);
        self.objects.lock().insert(key, Object { bytes: bytes.into(), version: version.clone(), mtime });
        version
    }

    /// Makes a directory and those above it.
    pub fn make_dir(&self, path: &str) {
        let key = normal(path);
        self.make_parents(&key);
        self.directories.lock().insert(key);
    }

    /// Makes a directory of `entries` files that exist by rule, named by their number in eight digits, with their name
    /// as content.
    pub fn make_synthetic(&self, path: &str, entries: u64) {
        let key = normal(path);
        self.make_parents(&key);
        self.directories.lock().insert(key.clone());
        self.synthetic.lock().insert(key, Synthetic { entries });
    }

    /// Removes an object.
    pub fn remove(&self, path: &str) {
        self.objects.lock().remove(&normal(path));
    }

    fn make_parents(&self, key: &[u8]) {
        let mut directories = self.directories.lock();
        for (at, byte) in key.iter().enumerate() {
            if *byte == b'/' {
                directories.insert(key[..at].to_vec());
            }
        }
    }

    fn object(&self, path: &UfsPath) -> Option<Object> {
        if let Some(object) = self.objects.lock().get(path.as_bytes()) {
            return Some(object.clone());
        }
        let (dir, name) = (path.parent()?, path.name()?);
        let synthetic = self.synthetic.lock().get(dir.as_bytes()).copied()?;
        let number: u64 = std::str::from_utf8(name).ok()?.parse().ok()?;
        (name.len() == 8 && number < synthetic.entries).then(|| rule_object(number))
    }

    fn attr_of(object: &Object) -> Attr {
        Attr::of_object(FileKind::File, object.bytes.len() as u64, object.mtime, object.version.clone())
    }

    fn dir_attr() -> Attr {
        Attr::of_object(FileKind::Directory, 0, Timestamp::default(), Version::none())
    }

    fn find(&self, path: &UfsPath) -> Result<(Attr, Bytes)> {
        if let Some(object) = self.object(path) {
            return Ok((Self::attr_of(&object), object.bytes));
        }
        if self.directories.lock().contains(path.as_bytes()) {
            return Ok((Self::dir_attr(), Bytes::new()));
        }
        Err(Error::new(ErrorKind::NotFound, format!("{path}: no such object")))
    }

    /// Counts, waits and fails as configured; the guard ends the request.
    async fn begin(&self, request: &Request) -> Result<(Running, Option<u64>)> {
        let running = Running::new(self.counts.clone());
        if self.gated.load(Ordering::SeqCst)
            && let Ok(permit) = self.gate.acquire().await
        {
            permit.forget();
        }
        let latency = self.latency_micros.load(Ordering::SeqCst);
        if latency > 0 {
            tokio::time::sleep(Duration::from_micros(latency)).await;
        }
        let hook = self.faults.lock().clone();
        match hook.and_then(|hook| hook(request)) {
            Some(Fault::Fail(kind)) => Err(Error::new(kind, format!("{request:?} fails by order"))),
            Some(Fault::Short(bytes)) => Ok((running, Some(bytes))),
            None => Ok((running, None)),
        }
    }
}

struct Running(Arc<Counts>);

impl Running {
    fn new(counts: Arc<Counts>) -> Self {
        let now = counts.running.fetch_add(1, Ordering::SeqCst) + 1;
        counts.most_running.fetch_max(now, Ordering::SeqCst);
        Self(counts)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn normal(path: &str) -> Vec<u8> {
    path.split('/').filter(|name| !name.is_empty()).collect::<Vec<_>>().join("/").into_bytes()
}

fn rule_object(number: u64) -> Object {
    Object {
        bytes: Bytes::from(format!("{number:08}")),
        version: Version::new(format!("rule-{number}")),
        mtime: Timestamp { sec: 1_600_000_000, nsec: 0 },
    }
}

struct MemoryListing {
    storage: Arc<Shared>,
    path: UfsPath,
    page: usize,
    source: Source,
}

/// What a listing needs of its storage: a second handle on the same state.
struct Shared {
    batch: usize,
    with_attrs: bool,
    counts: Arc<Counts>,
    faults: Option<Arc<FaultHook>>,
    latency: Duration,
}

enum Source {
    Entries(std::vec::IntoIter<DirEntry>),
    Rule { next: u64, entries: u64 },
}

#[async_trait]
impl Listing for MemoryListing {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        self.storage.counts.lists.fetch_add(1, Ordering::SeqCst);
        let _running = Running::new(self.storage.counts.clone());
        if !self.storage.latency.is_zero() {
            tokio::time::sleep(self.storage.latency).await;
        }
        let request = Request::List(self.path.clone(), self.page);
        if let Some(Fault::Fail(kind)) = self.storage.faults.as_ref().and_then(|hook| hook(&request)) {
            return Err(Error::new(kind, format!("{request:?} fails by order")));
        }
        self.page += 1;
        let mut batch: Vec<DirEntry> = match &mut self.source {
            Source::Entries(entries) => entries.take(self.storage.batch).collect(),
            Source::Rule { next, entries } => {
                let until = (*next + self.storage.batch as u64).min(*entries);
                let batch = (*next..until)
                    .map(|number| DirEntry {
                        name: format!("{number:08}").into_bytes().into(),
                        kind: FileKind::File,
                        attr: Some(Arc::new(MemoryStorage::attr_of(&rule_object(number)))),
                    })
                    .collect();
                *next = until;
                batch
            }
        };
        if !self.storage.with_attrs {
            batch.iter_mut().for_each(|entry| entry.attr = None);
        }
        Ok((!batch.is_empty()).then_some(batch))
    }
}

#[async_trait]
impl UnderStorage for MemoryStorage {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    async fn probe(&self) -> Result<()> {
        Ok(())
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        self.counts.stats.fetch_add(1, Ordering::SeqCst);
        let _running = self.begin(&Request::Stat(path.clone())).await?;
        self.find(path).map(|(attr, _)| attr)
    }

    async fn stat_and_read(&self, path: &UfsPath, max: u32) -> Result<Head> {
        self.counts.heads.fetch_add(1, Ordering::SeqCst);
        let _running = self.begin(&Request::Head(path.clone())).await?;
        let (attr, bytes) = self.find(path)?;
        let len = bytes.len().min(max as usize);
        Ok(Head { attr, bytes: bytes.slice(..len) })
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        if self.object(path).is_some() {
            return Err(Error::new(ErrorKind::NotADirectory, format!("{path} is a file")));
        }
        let dir = path.as_bytes();
        if !self.directories.lock().contains(dir) {
            return Err(Error::new(ErrorKind::NotFound, format!("{path}: no such directory")));
        }
        let source = match self.synthetic.lock().get(dir) {
            Some(synthetic) => Source::Rule { next: 0, entries: synthetic.entries },
            None => {
                let name_in = |key: &[u8]| -> Option<Box<[u8]>> {
                    let rest = if dir.is_empty() { key } else { key.strip_prefix(dir)?.strip_prefix(b"/")? };
                    (!rest.is_empty() && !rest.contains(&b'/')).then(|| rest.into())
                };
                let mut entries = BTreeMap::new();
                for (key, object) in self.objects.lock().iter() {
                    if let Some(name) = name_in(key) {
                        let attr = Some(Arc::new(Self::attr_of(object)));
                        entries.insert(name.clone(), DirEntry { name, kind: FileKind::File, attr });
                    }
                }
                for key in self.directories.lock().iter() {
                    if let Some(name) = name_in(key) {
                        let attr = Some(Arc::new(Self::dir_attr()));
                        entries.entry(name.clone()).or_insert(DirEntry { name, kind: FileKind::Directory, attr });
                    }
                }
                Source::Entries(entries.into_values().collect::<Vec<_>>().into_iter())
            }
        };
        let shared = Shared {
            batch: self.batch.load(Ordering::SeqCst) as usize,
            with_attrs: self.with_attrs.load(Ordering::SeqCst),
            counts: self.counts.clone(),
            faults: self.faults.lock().clone(),
            latency: Duration::from_micros(self.latency_micros.load(Ordering::SeqCst)),
        };
        Ok(Box::new(MemoryListing { storage: Arc::new(shared), path: path.clone(), page: 0, source }))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        self.counts.reads.fetch_add(1, Ordering::SeqCst);
        let (_running, short) = self.begin(&Request::Read(path.clone(), offset, length)).await?;
        let object =
            self.object(path).ok_or_else(|| Error::new(ErrorKind::Stale, format!("{path}: the object is gone")))?;
        if !version.is_none() && object.version != *version {
            return Err(Error::new(ErrorKind::Stale, format!("{path}: version {version} is gone")));
        }
        let outside = || Error::new(ErrorKind::InvalidArgument, format!("{path}: {offset}+{length} is outside"));
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let end = start.checked_add(usize::try_from(length).map_err(|_| outside())?).ok_or_else(outside)?;
        let bytes = object.bytes.get(start..end).ok_or_else(outside)?;
        let give = short.map_or(bytes.len(), |short| bytes.len().min(usize::try_from(short).unwrap_or(usize::MAX)));
        for piece in bytes[..give].chunks(16 << 10) {
            self.counts.read_bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
            if !sink.push(piece) {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
        if give < bytes.len() {
            return Err(Error::new(ErrorKind::Corrupt, format!("{path}: {give} bytes where {length} were due")));
        }
        Ok(())
    }
}
