//! Sixteen readers over one store, one worker and one budget, against the model.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use client::{Client, ClientOptions, FileReader, Opened};
use common::{
    Attr, ErrorKind, UfsPath,
    budget::MemoryBudget,
    page::PagePool,
    worker::{FileLease, Freshness, PagedFile, Worker as _},
};
use parking_lot::Mutex;
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use store::{DirOptions, PageStore, ReadOptions, ReadThrough, StoreOptions};
use worker::{EmbeddedWorker, PageSource, Space, WorkerOptions};

use crate::faulty::{Faulty, Rates, bytes_of, number_of, path_of};

const READERS: usize = 16;
/// How long a case may take. Only a hang takes as long.
const LIMIT: Duration = Duration::from_secs(120);

/// What one run is made of.
#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    page_size: u32,
    /// The memory budget, in pages.
    budget_pages: usize,
    /// The capacity of the page store, in pages; 0: no store.
    store_pages: u64,
    /// File sizes, in parts of a thousand of a page.
    sizes: Vec<u64>,
    rates: Rates,
    /// Of the prefetch, in pages.
    window: u64,
    complete: bool,
    sync: Option<u64>,
}

fn cases() -> impl Strategy<Value = Case> {
    let rates = (0..25u32, 0..40u32, 0..2u32, 0..8u32).prop_map(|(faults, slow, stall, change)| Rates {
        faults,
        slow,
        stall,
        change,
    });
    let sizes =
        prop::collection::vec(prop_oneof![Just(0), Just(1000), 1..1000u64, 1000..12_000u64, Just(25_000)], 3..10);
    (
        (any::<u64>(), prop_oneof![Just(4096u32), Just(16_384), Just(65_536)]),
        (
            prop_oneof![Just(6usize), Just(16), Just(64), Just(512)],
            prop_oneof![Just(0u64), Just(8), Just(40), Just(4000)],
        ),
        sizes,
        rates,
        (
            prop_oneof![Just(0u64), Just(4), Just(32)],
            any::<bool>(),
            prop_oneof![Just(None), Just(Some(0)), Just(Some(20))],
        ),
    )
        .prop_map(|((seed, page_size), (budget_pages, store_pages), sizes, rates, (window, complete, sync))| {
            Case { seed, page_size, budget_pages, store_pages, sizes, rates, window, complete, sync }
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if tests::full() { 300 } else { 32 },
        failure_persistence: None,
        max_shrink_iters: 40,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_read_gives_one_version_or_an_error(case in cases()) {
        run(&case);
    }
}

/// Takes the place of what joins worker and store in the program.
struct Source(Arc<ReadThrough>);

impl PageSource for Source {
    fn open(&self, path: &UfsPath, attr: Arc<Attr>, head: Option<Bytes>) -> Arc<dyn PagedFile> {
        match head {
            Some(head) => self.0.open_seeded(path, attr, &head),
            None => self.0.open(path, attr),
        }
    }

    fn space(&self) -> Option<Space> {
        None
    }
}

/// The system under test, for as long as a process would live.
struct System {
    budget: Arc<MemoryBudget>,
    pool: Arc<PagePool>,
    reads: Arc<ReadThrough>,
    client: Arc<Client>,
}

impl System {
    fn new(case: &Case, storage: &Arc<Faulty>, dir: &Path) -> Self {
        let budget = MemoryBudget::new(case.budget_pages * case.page_size as usize);
        let pool = PagePool::new(budget.clone());
        let store = (case.store_pages > 0).then(|| {
            PageStore::open(StoreOptions {
                dirs: vec![DirOptions { path: dir.to_owned(), capacity: case.store_pages * u64::from(case.page_size) }],
                page_size: case.page_size,
                max_queued_bytes: 8 * case.page_size as usize,
                journal_delay: Duration::from_millis(5),
                ..StoreOptions::default()
            })
            .expect("a page store")
        });
        let options = ReadOptions {
            page_size: case.page_size,
            deadline: Duration::from_millis(300),
            max_request_bytes: 4 * u64::from(case.page_size),
            concurrency: 12,
            prefetch_concurrency: 8,
            ..ReadOptions::default()
        };
        let handle = tokio::runtime::Handle::current();
        let reads = ReadThrough::new(storage.clone(), store, pool.clone(), options, handle.clone());
        let options = WorkerOptions {
            sync_interval: case.sync.map(Duration::from_millis).or(Some(Duration::from_secs(5))),
            head_bytes: 2 * case.page_size,
            head_total: 4 * case.page_size as usize,
            listing_patience: Duration::from_millis(2),
            ..WorkerOptions::default()
        };
        let worker =
            EmbeddedWorker::new(storage.clone(), Arc::new(Source(reads.clone())), budget.clone(), options, handle);
        reads.on_stale({
            let worker = Arc::downgrade(&worker);
            move |path| {
                if let Some(worker) = worker.upgrade() {
                    worker.forget(path);
                }
            }
        });
        let options = ClientOptions {
            sibling_max_size: if case.window > 4 { 2 * u64::from(case.page_size) } else { 0 },
            sibling_parallel: 6,
            prefetch_window: case.window * u64::from(case.page_size),
            prefetch_extents: 3,
            complete_on_open: case.complete,
            retry_deadline: Duration::from_secs(2),
            retries: 2,
            prefetch_total: 2 * case.window * u64::from(case.page_size),
        };
        let client = Client::new(worker, budget.clone(), options, tokio::runtime::Handle::current());
        System { budget, pool, reads, client }
    }

    /// Drops everything and waits until all memory is given back, the disk's writers included.
    async fn end(self) {
        let System { budget, pool, reads, client } = self;
        reads.trim();
        drop((client, reads));
        let end = tokio::time::Instant::now() + Duration::from_secs(60);
        while budget.used() > 0 {
            assert!(tokio::time::Instant::now() < end, "{} bytes of the budget are never given back", budget.used());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        pool.trim();
        assert_eq!(pool.idle_bytes(), 0);
    }
}

fn run(case: &Case) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let sizes: Vec<u64> = case.sizes.iter().map(|size| size * u64::from(case.page_size) / 1000).collect();
    let storage = Faulty::new(&sizes, case.rates, case.seed);
    let places: Arc<Mutex<BTreeMap<usize, String>>> = Arc::default();
    // Twice with the same directory: what the first life has stored the second one may serve.
    for life in 0..2u64 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let system = System::new(case, &storage, dir.path());
            let budget = system.budget.clone();
            let work = life_of(case, &storage, &system, life, &places);
            if tokio::time::timeout(LIMIT, work).await.is_err() {
                panic!(
                    "life {life} hangs: {} of {} bytes are reserved, {:?}, readers: {:#?}",
                    budget.used(),
                    budget.limit(),
                    storage.counts,
                    places.lock()
                );
            }
            system.end().await;
        });
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
}

async fn life_of(
    case: &Case,
    storage: &Arc<Faulty>,
    system: &System,
    life: u64,
    places: &Arc<Mutex<BTreeMap<usize, String>>>,
) {
    storage.calm(false);
    let outcomes = Arc::<Outcomes>::default();
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let random = StdRng::seed_from_u64(case.seed ^ (number as u64 * 1000 + life));
            let reader = Reader {
                number,
                random,
                files: case.sizes.len(),
                page_size: u64::from(case.page_size),
                storage: storage.clone(),
                client: system.client.clone(),
                places: places.clone(),
                outcomes: outcomes.clone(),
            };
            tokio::spawn(reader.run())
        })
        .collect();
    for reader in readers {
        if let Err(error) = reader.await {
            std::panic::resume_unwind(error.into_panic());
        }
        let (used, idle, limit) = (system.budget.used(), system.pool.idle_bytes(), system.budget.limit());
        assert!(used <= limit && idle <= limit, "{used} bytes in use and {idle} kept of {limit}");
    }
    if std::env::var_os("READPATH_SHOW").is_some() {
        println!("{outcomes:?} {:?}", storage.counts);
    }
    // Even of the worst storages some reads come back.
    assert!(outcomes.right.load(Relaxed) > 0, "{outcomes:?} {:?}", storage.counts);
    // Once all is calm every file can be read, in its newest version.
    storage.calm(true);
    for number in 0..case.sizes.len() {
        let path = path_of(number);
        let mut last = None;
        let done = async {
            loop {
                match read_whole(system, &path).await {
                    Ok((version, bytes)) if version == storage.newest(&path) => return bytes,
                    Ok((version, _)) => {
                        last = Some(format!("version {version} is shown for {}", storage.newest(&path)))
                    }
                    Err(error) => last = Some(format!("{error:?}")),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let bytes = match tokio::time::timeout(Duration::from_secs(30), done).await {
            Ok(bytes) => bytes,
            Err(_) => panic!("{path} cannot be read although all is calm: {last:?}"),
        };
        let version = storage.newest(&path);
        let expected = bytes_of(&path, version, 0, storage.size_of(&path, version) as usize);
        assert!(bytes == expected, "{path}: {} bytes, not {}", bytes.len(), expected.len());
    }
    assert_eq!(storage.violation(), None);
}

async fn read_whole(system: &System, path: &UfsPath) -> common::Result<(usize, Vec<u8>)> {
    let (reader, _) = parts(system.client.open(path, Freshness::Storage).await?);
    let version = number_of(&reader.attr().version);
    let size = reader.attr().size as usize;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let data = reader.read_at(bytes.len() as u64, 100_000).await?;
        assert!(!data.is_empty(), "{path} ends at {} of {size}", bytes.len());
        bytes.extend_from_slice(&data);
    }
    Ok((version, bytes))
}

fn parts(opened: Opened) -> (FileReader, Option<FileLease>) {
    match opened {
        Opened::Local(local) => panic!("a local file: {local:?}"),
        Opened::Complete { lease, reader } => (reader, Some(lease)),
        Opened::Paged(reader) => (reader, None),
    }
}

/// One of the readers: opens files and reads them in the ways that programs do.
struct Reader {
    number: usize,
    random: StdRng,
    files: usize,
    page_size: u64,
    storage: Arc<Faulty>,
    client: Arc<Client>,
    places: Arc<Mutex<BTreeMap<usize, String>>>,
    outcomes: Arc<Outcomes>,
}

/// How the reads of a run ended.
#[derive(Debug, Default)]
struct Outcomes {
    right: AtomicU64,
    stale: AtomicU64,
    failed: AtomicU64,
    given_up: AtomicU64,
    exported: AtomicU64,
}

impl Reader {
    async fn run(mut self) {
        for _ in 0..8 {
            let path = path_of(self.random.random_range(0..self.files));
            self.place(format!("opens {path}"));
            if self.random.random_range(0..10) == 0 {
                self.list().await;
            }
            let fresh = if self.random.random_range(0..3) == 0 { Freshness::Storage } else { Freshness::Cached };
            let opened = match self.client.open_now(&path) {
                Some(opened) if fresh == Freshness::Cached => opened,
                _ => self.client.open(&path, fresh).await,
            };
            let (reader, lease) = match opened {
                Ok(opened) => parts(opened),
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::NotFound, "{path} was there all the time");
                    continue;
                }
            };
            let attr = reader.attr().clone();
            let version = number_of(&attr.version);
            assert_eq!(attr.size, self.storage.size_of(&path, version), "{path}: the size of another version");
            if let Some(lease) = lease {
                check_whole(&lease, &path, version, attr.size);
            }
            self.read(&path, version, attr.size, reader).await;
        }
        self.place("is done".into());
    }

    async fn list(&mut self) {
        let Ok(mut listing) = self.client.worker().list(&UfsPath::root()).await else { return };
        let mut found = 0;
        while let Ok(Some(entries)) = listing.next().await {
            found += entries.len();
            assert!(found <= self.files, "more entries than files");
        }
    }

    async fn read(&mut self, path: &UfsPath, version: usize, size: u64, reader: FileReader) {
        if self.random.random_range(0..4) == 0 {
            self.place(format!("completes {path}"));
            let _ = reader.paged().complete().await;
            if let Some(lease) = reader.export() {
                self.outcomes.exported.fetch_add(1, Relaxed);
                check_whole(&lease, path, version, size);
            }
        }
        let way = self.random.random_range(0..4);
        let mut at = if way == 0 { 0 } else { self.random.random_range(0..=size) };
        for turn in 0..14 {
            let length = match self.random.random_range(0..4) {
                0 => self.random.random_range(1..100),
                1 => self.random.random_range(1..self.page_size),
                2 => self.page_size,
                _ => self.random.random_range(1..4 * self.page_size),
            } as usize;
            self.place(format!("reads {length} at {at} of {path} ({size} bytes, version {version}, turn {turn})"));
            let read = reader.read_at(at, length);
            let answer = if self.random.random_range(0..12) == 0 {
                // Goes away in the middle, as a killed program does.
                match tokio::time::timeout(Duration::from_micros(self.random.random_range(0..1500)), read).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        self.outcomes.given_up.fetch_add(1, Relaxed);
                        continue;
                    }
                }
            } else {
                read.await
            };
            match answer {
                Ok(data) => {
                    let due = size.saturating_sub(at).min(length as u64) as usize;
                    self.outcomes.right.fetch_add(1, Relaxed);
                    assert!(
                        *data == bytes_of(path, version, at, due),
                        "{path}: wrong bytes at {at}, {} of {due}",
                        data.len()
                    );
                }
                Err(error) if error.kind() == ErrorKind::Stale => {
                    self.outcomes.stale.fetch_add(1, Relaxed);
                    assert_ne!(self.storage.newest(path), version, "{path}: version {version} is still there");
                    return;
                }
                Err(_) => drop(self.outcomes.failed.fetch_add(1, Relaxed)),
            }
            at = match way {
                0 => at + length as u64,
                1 => at + 3 * self.page_size,
                _ => self.random.random_range(0..=size),
            };
            if at > size + self.page_size {
                at = 0;
            }
        }
    }

    fn place(&self, place: String) {
        self.places.lock().insert(self.number, place);
    }
}

/// A file that was handed out as complete holds the bytes of its version.
fn check_whole(lease: &FileLease, path: &UfsPath, version: usize, size: u64) {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; size as usize + 1];
    let count = lease.file().read_at(&mut bytes, 0).expect("a cached file can be read");
    assert!(bytes[..count] == bytes_of(path, version, 0, size as usize), "{path}: the cached file is wrong");
}
