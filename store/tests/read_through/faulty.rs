//! A storage in memory that fails, lies, is slow and changes, with a store and what reads through them.

use super::PAGE;
use async_trait::async_trait;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    budget::MemoryBudget,
    page::PagePool,
    worker::{Listing, PagedFile},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use store::{DirOptions, PageStore, ReadOptions, ReadThrough, StoreOptions};
use tokio::sync::Semaphore;
use ufs::{ReadSink, UnderStorage};

/// What the storage does to one read.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fault {
    None,
    Fail(ErrorKind),
    /// Ends so many bytes early, without an error.
    Short(u64),
    /// Gives so many bytes too many.
    Long(usize),
    /// Fails after so many bytes.
    Break(u64),
    /// Gives a few bytes at a time, and lets others run in between.
    Slow,
    /// Never answers.
    Hang,
}

#[derive(Clone)]
pub(super) struct Object {
    pub(super) version: u64,
    pub(super) bytes: Arc<Vec<u8>>,
}

/// A storage in memory.
pub(super) struct Faulty {
    pub(super) uri: UfsUri,
    pub(super) objects: Mutex<HashMap<UfsPath, Object>>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    /// Each read takes one permit before its first byte.
    pub(super) gate: Semaphore,
    pub(super) requests: Mutex<Vec<(u64, u64)>>,
    pub(super) running: AtomicUsize,
    pub(super) most: AtomicUsize,
}

pub(super) fn content(name: &str, version: u64, size: u64) -> Vec<u8> {
    let seed = name.bytes().fold(version + 3, |sum, byte| sum.wrapping_mul(131).wrapping_add(u64::from(byte)));
    (0..size).map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8).collect()
}

pub(super) fn path(name: &str) -> UfsPath {
    UfsPath::parse(name).unwrap()
}

impl Faulty {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            uri: UfsUri::parse("s3://bucket/prefix").unwrap(),
            objects: Mutex::default(),
            faults: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            requests: Mutex::default(),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    pub(super) fn closed() -> Arc<Self> {
        let storage = Self::new();
        storage.gate.forget_permits(Semaphore::MAX_PERMITS);
        storage
    }

    pub(super) fn put(&self, name: &str, version: u64, size: u64) -> Arc<Attr> {
        let bytes = Arc::new(content(name, version, size));
        self.objects.lock().insert(path(name), Object { version, bytes });
        let time = Timestamp { sec: 1000, nsec: 0 };
        Arc::new(Attr::of_object(FileKind::File, size, time, Version::new(version.to_string())))
    }

    pub(super) fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().extend(faults);
    }

    pub(super) fn requests(&self) -> usize {
        self.requests.lock().len()
    }
}

#[async_trait]
impl UnderStorage for Faulty {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    async fn probe(&self) -> Result<()> {
        Ok(())
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        Err(Error::new(ErrorKind::Unsupported, format!("stat of {path}")))
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        Err(Error::new(ErrorKind::Unsupported, format!("list of {path}")))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        self.requests.lock().push((offset, length));
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(running, SeqCst);
        let result = self.give(path, version, offset, length, sink).await;
        self.running.fetch_sub(1, SeqCst);
        result
    }
}

impl Faulty {
    pub(super) async fn give(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        self.gate.acquire().await.unwrap().forget();
        let fault = self.faults.lock().pop_front().unwrap_or(Fault::None);
        let found = self.objects.lock().get(path).cloned();
        let Some(object) = found.filter(|object| object.version.to_string() == version.as_str()) else {
            return Err(Error::new(ErrorKind::Stale, format!("{path} has changed")));
        };
        let bytes = &object.bytes[offset as usize..(offset + length) as usize];
        match fault {
            Fault::None => {
                sink.push(bytes);
            }
            Fault::Fail(kind) => return Err(Error::new(kind, "as the test wants it")),
            Fault::Short(by) => {
                sink.push(&bytes[..length.saturating_sub(by) as usize]);
            }
            Fault::Long(by) => {
                let mut long = bytes.to_vec();
                long.resize(long.len() + by, 0xdd);
                sink.push(&long);
            }
            Fault::Break(after) => {
                sink.push(&bytes[..after.min(length) as usize]);
                return Err(Error::new(ErrorKind::Unavailable, "the connection broke"));
            }
            Fault::Slow => {
                for part in bytes.chunks(1000) {
                    tokio::task::yield_now().await;
                    if !sink.push(part) {
                        break;
                    }
                }
            }
            Fault::Hang => std::future::pending().await,
        }
        Ok(())
    }
}

/// A storage, a store and what reads through them.
pub(super) struct Rig {
    pub(super) storage: Arc<Faulty>,
    pub(super) reads: Arc<ReadThrough>,
    pub(super) pool: Arc<PagePool>,
    pub(super) _dir: Option<tempfile::TempDir>,
}

#[derive(Clone)]
pub(super) struct Setup {
    pub(super) capacity: u64,
    pub(super) budget: u64,
    pub(super) queue: usize,
    pub(super) options: ReadOptions,
}

impl Default for Setup {
    fn default() -> Self {
        let options = ReadOptions { page_size: PAGE as u32, max_request_bytes: 4 * PAGE, ..ReadOptions::default() };
        Self { capacity: 1000 * PAGE, budget: 256 * PAGE, queue: 64 * PAGE as usize, options }
    }
}

impl Setup {
    pub(super) fn without_store() -> Self {
        Self { capacity: 0, ..Self::default() }
    }

    pub(super) fn rig(&self, storage: Arc<Faulty>) -> Rig {
        let pool = PagePool::new(MemoryBudget::new(self.budget as usize));
        let (dir, store) = if self.capacity == 0 {
            (None, None)
        } else {
            let dir = tempfile::tempdir().unwrap();
            let store = PageStore::open(StoreOptions {
                dirs: vec![DirOptions { path: dir.path().to_owned(), capacity: self.capacity }],
                page_size: PAGE as u32,
                max_queued_bytes: self.queue,
                ..StoreOptions::default()
            });
            (Some(dir), Some(store.unwrap()))
        };
        let handle = tokio::runtime::Handle::current();
        let reads = ReadThrough::new(storage.clone(), store, pool.clone(), self.options.clone(), handle);
        Rig { storage, reads, pool, _dir: dir }
    }
}

pub(super) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Rig {
    pub(super) fn open(&self, name: &str, attr: &Arc<Attr>) -> Arc<dyn PagedFile> {
        self.reads.open(&path(name), attr.clone())
    }

    /// All memory comes back once nobody reads.
    pub(super) async fn all_memory_is_back(&self) {
        until("memory is given back", || {
            self.reads.trim();
            self.pool.budget().used() == 0
        })
        .await;
    }
}

/// Reads as the client does: from disk, else from a page in memory.
pub(super) async fn read(file: &dyn PagedFile, offset: u64, len: usize) -> Result<Vec<u8>> {
    let size = file.attr().size;
    let end = (offset + len as u64).min(size);
    let page_size = u64::from(file.page_size());
    let mut out = Vec::new();
    let mut at = offset;
    while at < end {
        let mut buffer = vec![0; (end - at) as usize];
        let got = file.read_present(at, &mut buffer)?;
        if got > 0 {
            out.extend_from_slice(&buffer[..got]);
            at += got as u64;
            continue;
        }
        let page = at / page_size;
        let load = match file.page_now(page) {
            Some(load) => load,
            None => match file.demand(page).await? {
                Some(load) => load,
                None => continue,
            },
        };
        let start = (at - page * page_size) as usize;
        let stop = (end - page * page_size).min(load.len() as u64) as usize;
        out.extend_from_slice(load.wait(start..stop).await?);
        at = page * page_size + stop as u64;
    }
    Ok(out)
}
