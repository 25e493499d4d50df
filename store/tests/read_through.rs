//! Reading through a storage that fails, lies, is slow and changes: each read gives the bytes of its version or an
//! error, pages are fetched once, and all memory comes back.

use async_trait::async_trait;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    budget::MemoryBudget,
    page::PagePool,
    worker::{Listing, PagedFile},
};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use store::{DirOptions, PageStore, ReadOptions, ReadThrough, StoreOptions};
use tokio::sync::Semaphore;
use ufs::{ReadSink, UnderStorage};

const PAGE: u64 = 16384;

/// What the storage does to one read.
#[derive(Debug, Clone, PartialEq)]
enum Fault {
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
struct Object {
    version: u64,
    bytes: Arc<Vec<u8>>,
}

/// A storage in memory.
struct Faulty {
    uri: UfsUri,
    objects: Mutex<HashMap<UfsPath, Object>>,
    faults: Mutex<VecDeque<Fault>>,
    /// Each read takes one permit before its first byte.
    gate: Semaphore,
    requests: Mutex<Vec<(u64, u64)>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

fn content(name: &str, version: u64, size: u64) -> Vec<u8> {
    let seed = name.bytes().fold(version + 3, |sum, byte| sum.wrapping_mul(131).wrapping_add(u64::from(byte)));
    (0..size).map(|at| ((at + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8).collect()
}

fn path(name: &str) -> UfsPath {
    UfsPath::parse(name).unwrap()
}

impl Faulty {
    fn new() -> Arc<Self> {
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

    fn closed() -> Arc<Self> {
        let storage = Self::new();
        storage.gate.forget_permits(Semaphore::MAX_PERMITS);
        storage
    }

    fn put(&self, name: &str, version: u64, size: u64) -> Arc<Attr> {
        let bytes = Arc::new(content(name, version, size));
        self.objects.lock().insert(path(name), Object { version, bytes });
        let time = Timestamp { sec: 1000, nsec: 0 };
        Arc::new(Attr::of_object(FileKind::File, size, time, Version::new(version.to_string())))
    }

    fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().extend(faults);
    }

    fn requests(&self) -> usize {
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
    async fn give(
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
struct Rig {
    storage: Arc<Faulty>,
    reads: Arc<ReadThrough>,
    pool: Arc<PagePool>,
    _dir: Option<tempfile::TempDir>,
}

#[derive(Clone)]
struct Setup {
    capacity: u64,
    budget: u64,
    queue: usize,
    options: ReadOptions,
}

impl Default for Setup {
    fn default() -> Self {
        let options = ReadOptions { page_size: PAGE as u32, max_request_bytes: 4 * PAGE, ..ReadOptions::default() };
        Self { capacity: 1000 * PAGE, budget: 256 * PAGE, queue: 64 * PAGE as usize, options }
    }
}

impl Setup {
    fn without_store() -> Self {
        Self { capacity: 0, ..Self::default() }
    }

    fn rig(&self, storage: Arc<Faulty>) -> Rig {
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

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Rig {
    fn open(&self, name: &str, attr: &Arc<Attr>) -> Arc<dyn PagedFile> {
        self.reads.open(&path(name), attr.clone())
    }

    /// All memory comes back once nobody reads.
    async fn all_memory_is_back(&self) {
        until("memory is given back", || {
            self.reads.trim();
            self.pool.budget().used() == 0
        })
        .await;
    }
}

/// Reads as the client does: from disk, else from a page in memory.
async fn read(file: &dyn PagedFile, offset: u64, len: usize) -> Result<Vec<u8>> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_fetched_once_for_all_its_readers() {
    for setup in [Setup::default(), Setup::without_store()] {
        let rig = setup.rig(Faulty::closed());
        let attr = rig.storage.put("x", 1, 3 * PAGE);
        let wanted = content("x", 1, 3 * PAGE);
        let mut readers = Vec::new();
        for number in 0..40_u64 {
            // Several opens are one file.
            let file = rig.open("x", &attr);
            readers.push(tokio::spawn(async move { read(&*file, PAGE + number * 10, 100).await }));
        }
        until("the request is made", || rig.storage.requests() == 1).await;
        rig.storage.gate.add_permits(1);
        for (number, reader) in readers.into_iter().enumerate() {
            let at = PAGE as usize + number * 10;
            assert!(reader.await.unwrap().unwrap() == wanted[at..at + 100]);
        }
        assert_eq!(*rig.storage.requests.lock(), [(PAGE, PAGE)]);
        rig.all_memory_is_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_stored_and_not_asked_for_again() {
    let rig = Setup::default().rig(Faulty::new());
    let size = 10 * PAGE + 77;
    let attr = rig.storage.put("dir/x", 1, size);
    let wanted = content("dir/x", 1, size);
    let file = rig.open("dir/x", &attr);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    until("all pages are stored", || (0..11).all(|page| file.is_present(page))).await;
    until("they leave memory", || (0..11).all(|page| file.page_now(page).is_none())).await;
    let before = rig.storage.requests();
    let mut bytes = vec![0; size as usize];
    assert_eq!(file.read_present(0, &mut bytes).unwrap(), size as usize);
    assert!(bytes == wanted);
    assert!(file.demand(3).await.unwrap().is_none());
    assert!(file.export().is_some());
    file.complete().await.unwrap();
    assert_eq!(rig.storage.requests(), before);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_small_reads_in_sequence_fetch_a_page_once() {
    let rig = Setup::without_store().rig(Faulty::new());
    let size = 20 * PAGE;
    let attr = rig.storage.put("x", 1, size);
    let wanted = content("x", 1, size);
    let file = rig.open("x", &attr);
    for at in (0..size).step_by(1024) {
        assert!(read(&*file, at, 1024).await.unwrap() == wanted[at as usize..at as usize + 1024]);
    }
    assert_eq!(rig.storage.requests(), 20);
    assert!(file.export().is_none());
    assert_eq!(file.complete().await.unwrap_err().kind(), ErrorKind::Unsupported);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_makes_few_requests_within_its_share_and_demands_join_them() {
    let rig = Setup::default().rig(Faulty::closed());
    let size = 64 * PAGE;
    let attr = rig.storage.put("x", 1, size);
    let wanted = content("x", 1, size);
    let file = rig.open("x", &attr);
    assert_eq!(file.prefetch(0, 32), 32);
    until("they are made", || rig.storage.requests() == 8).await;
    assert!(rig.storage.requests.lock().iter().all(|(_, length)| *length == 4 * PAGE));
    assert_eq!(file.prefetch(0, 32), 32, "again: nothing new");
    let load = file.demand(5).await.unwrap().unwrap();
    assert_eq!(rig.storage.requests(), 8);
    rig.storage.gate.add_permits(1000);
    assert!(load.wait_end().await.unwrap() == &wanted[5 * PAGE as usize..6 * PAGE as usize]);
    drop(load);
    // As much as the budget leaves, and it never says more than it has.
    let all = file.prefetch(0, 64);
    assert!((32..=64).contains(&all));
    // Cut at the end of the file; taken as soon as the store has caught up.
    until("the last page is taken", || file.prefetch(63, 100) == 1).await;
    assert_eq!(file.prefetch(64, 1), 0);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_stops_where_memory_does() {
    let setup = Setup { budget: 8 * PAGE, ..Setup::without_store() };
    let rig = setup.rig(Faulty::closed());
    let attr = rig.storage.put("x", 1, 64 * PAGE);
    let file = rig.open("x", &attr);
    assert_eq!(file.prefetch(0, 64), 6, "a quarter is left to those who wait");
    let demanded = file.demand(40).await.unwrap();
    assert!(demanded.is_some());
    assert!(rig.pool.budget().used() <= rig.pool.budget().limit());
    rig.storage.gate.add_permits(1000);
    drop(demanded);
    let wanted = content("x", 1, 64 * PAGE);
    assert!(read(&*file, 0, 64 * PAGE as usize).await.unwrap() == wanted);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_reach_every_reader_and_the_next_one_tries_again() {
    let faults = [
        (Fault::Fail(ErrorKind::Unavailable), ErrorKind::Unavailable),
        (Fault::Fail(ErrorKind::PermissionDenied), ErrorKind::PermissionDenied),
        (Fault::Short(1), ErrorKind::Corrupt),
        (Fault::Short(PAGE), ErrorKind::Corrupt),
        (Fault::Long(1), ErrorKind::Corrupt),
        (Fault::Break(100), ErrorKind::Unavailable),
        (Fault::Hang, ErrorKind::TimedOut),
    ];
    for setup in [Setup::default(), Setup::without_store()] {
        let options = ReadOptions { deadline: Duration::from_millis(300), ..setup.options.clone() };
        let rig = Setup { options, ..setup }.rig(Faulty::closed());
        for (number, (fault, kind)) in faults.iter().enumerate() {
            let name = format!("x{number}");
            let attr = rig.storage.put(&name, 1, PAGE);
            let wanted = content(&name, 1, PAGE);
            let file = rig.open(&name, &attr);
            rig.storage.next([fault.clone()]);
            let mut readers = Vec::new();
            let load = file.demand(0).await.unwrap().unwrap();
            for _ in 0..5 {
                let load = file.demand(0).await.unwrap().unwrap();
                readers.push(tokio::spawn(async move { load.wait_end().await.map(<[u8]>::to_vec) }));
            }
            rig.storage.gate.add_permits(1);
            for reader in readers {
                assert_eq!(reader.await.unwrap().unwrap_err().kind(), *kind, "{fault:?}");
            }
            assert_eq!(load.wait_end().await.unwrap_err().kind(), *kind);
            drop(load);
            assert!(!file.is_present(0), "{fault:?}");
            rig.storage.gate.add_permits(1);
            assert!(read(&*file, 0, PAGE as usize).await.unwrap() == wanted, "{fault:?}");
        }
        rig.all_memory_is_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_arrived_are_given_before_the_page_is_complete() {
    let rig = Setup::default().rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 2 * PAGE);
    let file = rig.open("x", &attr);
    rig.storage.next([Fault::Break(5000)]);
    let load = file.demand(0).await.unwrap().unwrap();
    assert!(load.wait(100..5000).await.unwrap() == &content("x", 1, PAGE)[100..5000]);
    assert_eq!(load.wait(100..5001).await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(load);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_object_is_stale_for_good_but_what_is_stored_stays_readable() {
    let rig = Setup::default().rig(Faulty::new());
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    rig.reads.on_stale(move |path| heard.lock().push(path.clone()));
    let attr = rig.storage.put("x", 1, 4 * PAGE);
    let old = rig.open("x", &attr);
    assert!(read(&*old, 0, 10).await.is_ok());
    until("the first page is stored", || old.is_present(0)).await;
    let new_attr = rig.storage.put("x", 2, 4 * PAGE);
    assert_eq!(read(&*old, PAGE, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    let before = rig.storage.requests();
    assert_eq!(read(&*old, 2 * PAGE, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(old.prefetch(1, 3), 0);
    assert_eq!(rig.storage.requests(), before, "nobody asks again");
    assert_eq!(*told.lock(), [path("x")]);
    assert!(read(&*old, 0, 10).await.unwrap() == content("x", 1, 10));
    let new = rig.open("x", &new_attr);
    assert!(read(&*new, 0, 4 * PAGE as usize).await.unwrap() == content("x", 2, 4 * PAGE));
    // An object that is back in its old state can be opened again.
    rig.storage.put("x", 1, 4 * PAGE);
    let again = rig.open("x", &attr);
    assert!(read(&*again, 0, 4 * PAGE as usize).await.unwrap() == content("x", 1, 4 * PAGE));
    drop((old, new, again));
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_is_complete_after_one_request_and_a_seeded_one_after_none() {
    let rig = Setup::default().rig(Faulty::new());
    for (number, size) in [1, 100, PAGE - 1, PAGE].into_iter().enumerate() {
        let name = format!("small{number}");
        let attr = rig.storage.put(&name, 1, size);
        let before = rig.storage.requests();
        let file = rig.open(&name, &attr);
        let other = rig.open(&name, &attr);
        let (one, two) = tokio::join!(file.complete(), other.complete());
        one.and(two).unwrap();
        assert_eq!(rig.storage.requests(), before + 1);
        check_lease(&*file, &content(&name, 1, size));

        let name = format!("seeded{number}");
        let attr = rig.storage.put(&name, 1, size);
        let mut bytes = content(&name, 1, size);
        let file = rig.reads.open_seeded(&path(&name), attr, &bytes.clone().into());
        file.complete().await.unwrap();
        check_lease(&*file, &bytes);
        assert_eq!(rig.storage.requests(), before + 1, "no request for a seeded file");

        // A part is no seed.
        let name = format!("part{number}");
        let attr = rig.storage.put(&name, 1, size + 1);
        bytes = content(&name, 1, size);
        let file = rig.reads.open_seeded(&path(&name), attr, &bytes.clone().into());
        assert!(!file.is_present(0) && file.page_now(0).is_none());
    }
    let attr = rig.storage.put("few", 1, 5 * PAGE - 3);
    let file = rig.open("few", &attr);
    file.complete().await.unwrap();
    check_lease(&*file, &content("few", 1, 5 * PAGE - 3));
    rig.storage.next([Fault::Fail(ErrorKind::PermissionDenied)]);
    let attr = rig.storage.put("refused", 1, 10);
    assert_eq!(rig.open("refused", &attr).complete().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    for size in [0, 100 * PAGE] {
        let attr = rig.storage.put("other", 1, size);
        assert_eq!(rig.open("other", &attr).complete().await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    rig.all_memory_is_back().await;
}

fn check_lease(file: &dyn PagedFile, wanted: &[u8]) {
    let lease = file.export().unwrap();
    let mut bytes = vec![0; wanted.len() + 1];
    let read = std::os::unix::fs::FileExt::read_at(&**lease.file(), &mut bytes, 0).unwrap();
    assert!(bytes[..read] == *wanted);
    assert_eq!(lease.version(), &file.attr().version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_page_begins_with_the_bytes_of_the_lookup_and_only_the_rest_is_fetched() {
    let rig = Setup::default().rig(Faulty::closed());
    let size = 3 * PAGE + 5;
    let wanted = content("x", 1, size);
    let attr = rig.storage.put("x", 1, size);
    let file = rig.reads.open_seeded(&path("x"), attr.clone(), &wanted[..1000].to_vec().into());
    assert_eq!(rig.storage.requests(), 0, "an open alone fetches nothing");
    let load = file.demand(0).await.unwrap().unwrap();
    assert!(load.wait(0..1000).await.unwrap() == &wanted[..1000], "before the storage answers");
    until("the rest is asked for", || rig.storage.requests() == 1).await;
    assert_eq!(rig.storage.requests.lock().clone(), [(1000, PAGE - 1000)]);
    rig.storage.gate.add_permits(1000);
    drop(load);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    drop(file);

    // A fetch that fails leaves nothing behind: the next one is of the whole page.
    let attr = rig.storage.put("y", 1, size);
    let wanted = content("y", 1, size);
    let file = rig.reads.open_seeded(&path("y"), attr, &wanted[..1000].to_vec().into());
    rig.storage.next([Fault::Fail(ErrorKind::PermissionDenied)]);
    let load = file.demand(0).await.unwrap().unwrap();
    assert_eq!(load.wait_end().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(load);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_without_a_store_lives_in_memory_for_a_while() {
    let rig = Setup::without_store().rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 100);
    let file = rig.reads.open_seeded(&path("x"), attr, &content("x", 1, 100).into());
    assert!(read(&*file, 0, 100).await.unwrap() == content("x", 1, 100));
    assert_eq!(rig.storage.requests(), 0);
    rig.reads.trim();
    assert!(read(&*file, 0, 100).await.unwrap() == content("x", 1, 100));
    assert_eq!(rig.storage.requests(), 1);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_cancels_nobody() {
    let setup = Setup { budget: PAGE, ..Setup::without_store() };
    let rig = setup.rig(Faulty::closed());
    let attr = rig.storage.put("x", 1, 2 * PAGE);
    let wanted = content("x", 1, 2 * PAGE);
    let file = rig.open("x", &attr);
    // Holds all memory.
    let first = file.demand(0).await.unwrap().unwrap();
    let spawn = || {
        let file = file.clone();
        tokio::spawn(async move { read(&*file, PAGE, 100).await })
    };
    // One of these waits for memory, the others for it. Whichever goes, the rest go on.
    let readers: Vec<_> = (0..6).map(|_| spawn()).collect();
    tokio::task::yield_now().await;
    for reader in &readers[..3] {
        reader.abort();
    }
    // More than two: without memory to keep the page, a reader that comes late has it fetched again.
    rig.storage.gate.add_permits(1000);
    assert!(first.wait_end().await.unwrap() == &wanted[..PAGE as usize]);
    drop(first);
    for reader in readers.into_iter().skip(3) {
        assert!(reader.await.unwrap().unwrap() == wanted[PAGE as usize..PAGE as usize + 100]);
    }
    assert!(rig.storage.requests() >= 2);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_share_a_tiny_budget() {
    for setup in [Setup::default(), Setup::without_store()] {
        // Less memory than readers, and a store that takes one page at a time and holds few.
        let capacity = if setup.capacity > 0 { 12 * PAGE } else { 0 };
        let rig = Arc::new(Setup { budget: 4 * PAGE, queue: 1, capacity, ..setup }.rig(Faulty::new()));
        let size = 30 * PAGE;
        let attrs: Vec<_> = (0..4).map(|at| rig.storage.put(&format!("x{at}"), 1, size)).collect();
        let most = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        for number in 0..48_u64 {
            let (rig, attrs, most) = (rig.clone(), attrs.clone(), most.clone());
            readers.push(tokio::spawn(async move {
                for step in 0..12_u64 {
                    let at = (number + step) as usize % attrs.len();
                    let name = format!("x{at}");
                    let file = rig.open(&name, &attrs[at]);
                    let offset = (number * 7919 + step * 104_729) % size;
                    if step % 3 == 0 {
                        file.prefetch(offset / PAGE, 4);
                    }
                    let bytes = read(&*file, offset, 2 * PAGE as usize).await.unwrap();
                    most.fetch_max(rig.pool.budget().used() as u64, SeqCst);
                    let end = (offset + 2 * PAGE).min(size) as usize;
                    assert!(bytes == content(&name, 1, size)[offset as usize..end]);
                }
            }));
        }
        for reader in readers {
            tokio::time::timeout(Duration::from_secs(120), reader).await.expect("readers wait for each other").unwrap();
        }
        assert!(most.load(SeqCst) <= 4 * PAGE);
        rig.all_memory_is_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_bounded() {
    let setup = Setup::default();
    let options = ReadOptions { concurrency: 4, prefetch_concurrency: 2, ..setup.options.clone() };
    let rig = Setup { options, ..setup }.rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 200 * PAGE);
    rig.storage.next(std::iter::repeat_n(Fault::Slow, 400));
    let file = rig.open("x", &attr);
    let readers: Vec<_> = (0..50)
        .map(|at| {
            let file = file.clone();
            tokio::spawn(async move {
                file.prefetch(at * 4, 8);
                read(&*file, at * 4 * PAGE, 4 * PAGE as usize).await
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert!(rig.storage.most.load(SeqCst) <= 4);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_memory_is_given_back() {
    let setup = Setup::without_store();
    let options = ReadOptions { idle_after: Duration::from_millis(5), ..setup.options.clone() };
    let rig = Setup { options, ..setup }.rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 20 * PAGE);
    let file = rig.open("x", &attr);
    read(&*file, 0, 20 * PAGE as usize).await.unwrap();
    until("memory is given back without being asked for", || {
        rig.pool.budget().used() == 0 && rig.pool.idle_bytes() == 0
    })
    .await;
}

#[derive(Debug, Clone)]
enum Step {
    Read { file: usize, offset: u64, len: usize },
    Prefetch { file: usize, first: u64, count: u64 },
    Complete { file: usize },
    Change { file: usize },
    Reopen { file: usize },
    Fault(Fault),
}

const SIZES: [u64; 4] = [10, PAGE, 3 * PAGE + 1, 40 * PAGE - 5];

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..SIZES.len();
    let fault = prop_oneof![
        Just(Fault::Fail(ErrorKind::Unavailable)),
        (1..2 * PAGE).prop_map(Fault::Short),
        (1..100_usize).prop_map(Fault::Long),
        (0..2 * PAGE).prop_map(Fault::Break),
        Just(Fault::Slow),
    ];
    prop_oneof![
        8 => (file(), 0..40 * PAGE, 1..60_000_usize).prop_map(|(file, offset, len)| Step::Read { file, offset, len }),
        3 => (file(), 0..40_u64, 1..40_u64).prop_map(|(file, first, count)| Step::Prefetch { file, first, count }),
        2 => file().prop_map(|file| Step::Complete { file }),
        1 => file().prop_map(|file| Step::Change { file }),
        2 => file().prop_map(|file| Step::Reopen { file }),
        3 => fault.prop_map(Step::Fault),
    ]
}

async fn play(steps: &[Step], setup: &Setup) {
    let rig = Arc::new(setup.rig(Faulty::new()));
    let name = |file: usize| format!("dir/{file}");
    let mut versions = [1_u64; SIZES.len()];
    let open = |file: usize, version: u64| {
        let attr = rig.storage.put(&name(file), version, SIZES[file]);
        (version, rig.open(&name(file), &attr))
    };
    let mut files: Vec<_> = (0..SIZES.len()).map(|file| open(file, 1)).collect();
    let mut readers = Vec::new();
    for step in steps {
        match step {
            Step::Read { file, offset, len } => {
                let (version, paged) = files[*file].clone();
                let (name, offset, len, size) = (name(*file), *offset % SIZES[*file], *len, SIZES[*file]);
                // All reads run at the same time, and with what comes after.
                readers.push(tokio::spawn(async move {
                    let end = (offset + len as u64).min(size) as usize;
                    match read(&*paged, offset, len).await {
                        Ok(bytes) => {
                            assert!(bytes == content(&name, version, size)[offset as usize..end], "wrong bytes")
                        }
                        Err(error) => assert!(
                            matches!(error.kind(), ErrorKind::Stale | ErrorKind::Unavailable | ErrorKind::Corrupt),
                            "{error:?}"
                        ),
                    }
                }));
                tokio::task::yield_now().await;
            }
            Step::Prefetch { file, first, count } => {
                let (_, paged) = &files[*file];
                assert!(paged.prefetch(*first, *count) <= *count);
            }
            Step::Complete { file } => {
                let (version, paged) = &files[*file];
                if paged.complete().await.is_ok()
                    && let Some(lease) = paged.export()
                {
                    let mut bytes = vec![0; SIZES[*file] as usize];
                    std::os::unix::fs::FileExt::read_exact_at(&**lease.file(), &mut bytes, 0).unwrap();
                    assert!(bytes == content(&name(*file), *version, SIZES[*file]));
                }
            }
            Step::Change { file } => {
                versions[*file] += 1;
                rig.storage.put(&name(*file), versions[*file], SIZES[*file]);
            }
            Step::Reopen { file } => files[*file] = open(*file, versions[*file]),
            Step::Fault(fault) => rig.storage.next([fault.clone()]),
        }
    }
    for reader in readers {
        tokio::time::timeout(Duration::from_secs(60), reader).await.expect("a reader hangs").unwrap();
    }
    // Without faults everything can be read in its last version.
    rig.storage.faults.lock().clear();
    for (file, size) in SIZES.iter().enumerate() {
        let (version, paged) = open(file, versions[file]);
        // A fetch that had its fault already may still be on its way to the readers.
        let mut tries = 0;
        let bytes = loop {
            match read(&*paged, 0, *size as usize).await {
                Ok(bytes) => break bytes,
                Err(error) => assert!(tries < 100, "{error:?}"),
            }
            tries += 1;
        };
        assert!(bytes == content(&name(file), version, *size), "wrong bytes at the end");
    }
    drop(files);
    rig.all_memory_is_back().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_give_the_bytes_of_their_version_or_an_error(steps in prop::collection::vec(step(), 1..50), kind in 0..3) {
        let setup = match kind {
            0 => Setup::default(),
            1 => Setup { capacity: 6 * PAGE, budget: 8 * PAGE, queue: 2 * PAGE as usize, ..Setup::default() },
            _ => Setup { budget: 8 * PAGE, ..Setup::without_store() },
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(&steps, &setup));
    }
}
