//! Changes of objects below FUSE: a worker with a stage over a real S3 server that misbehaves.

mod files;
mod losses;
mod machine;
mod names;
mod trouble;

use bytes::Bytes;
use common::{
    Attr, ErrorKind, FileKind, Result, UfsPath, UfsUri,
    budget::MemoryBudget,
    change::{Caller, Changes, OpenedForWriting, WriteHandle},
    page::PagePool,
    worker::{Freshness, OpenedFile, Worker},
};
use s3server::{Credentials, Options, Server};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use store::{ReadOptions, ReadThrough};
use tokio::runtime::{Handle, Runtime};
use ufs::{Environment, S3Options, Secret, UfsOptions};
use worker::{EmbeddedWorker, Stage, StageOptions, WorkerOptions, stage::Dressed};

const BUCKET: &str = "bkt";
const CALLER: Caller = Caller { uid: 0, gid: 0 };

fn server() -> Server {
    let credentials = vec![Credentials::new("AK", "SK")];
    Server::start(Options { credentials, ..Options::with_buckets([BUCKET]) }).unwrap()
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at + seed) % 251) as u8).collect()
}

/// A mount without FUSE: its worker, in a runtime that ends with it like a process that is killed.
struct Mount {
    worker: Arc<EmbeddedWorker>,
    stage: Arc<Stage>,
    runtime: Option<Runtime>,
}

fn options(directory: &Path) -> StageOptions {
    StageOptions {
        directory: directory.to_owned(),
        put_max: 6 << 20,
        part: 5 << 20,
        wait: Duration::from_millis(300),
        retry_first: Duration::from_millis(100),
        retry_longest: Duration::from_millis(500),
        ..StageOptions::default()
    }
}

impl Mount {
    fn new(server: &Server, directory: &Path) -> Self {
        Self::with(server, options(directory))
    }

    fn with(server: &Server, options: StageOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (worker, stage) = runtime.block_on(async { Self::build(server, options) });
        Self { worker, stage, runtime: Some(runtime) }
    }

    fn build(server: &Server, options: StageOptions) -> (Arc<EmbeddedWorker>, Arc<Stage>) {
        let s3 = S3Options {
            endpoint: Some(server.url()),
            access_key: Some("AK".into()),
            secret_key: Some(Secret::new("SK")),
            ..Default::default()
        };
        let ufs = UfsOptions {
            s3,
            environment: Arc::new(Environment::default()),
            deadline: Duration::from_secs(1),
            give_up: Duration::from_secs(3),
            retries: 2,
            ..Default::default()
        };
        let storage = ufs::open(&UfsUri::parse(&format!("s3://{BUCKET}/root")).unwrap(), &ufs).unwrap();
        let settings = WorkerOptions::default();
        let (storage, attributes) = Dressed::over(storage, settings.clock.clone(), Duration::from_secs(10));
        let budget = MemoryBudget::new(64 << 20);
        let handle = Handle::current();
        let pool = PagePool::new(budget.clone());
        let reads = ReadThrough::new(storage.clone(), None, pool, ReadOptions::default(), handle.clone());
        let worker = EmbeddedWorker::over(storage, &reads, budget, settings, handle);
        let stage = worker.take_changes(attributes, options).unwrap();
        (worker, stage)
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(future)
    }

    fn changes(&self) -> &dyn Changes {
        self.worker.changes().expect("takes changes")
    }

    fn create(&self, at: &str) -> Result<Arc<dyn WriteHandle>> {
        self.run(self.changes().create(&path(at), libc::O_RDWR | libc::O_CREAT, 0o644, CALLER)).map(staged)
    }

    fn open(&self, at: &str, flags: i32) -> Result<Arc<dyn WriteHandle>> {
        self.run(self.changes().open(&path(at), flags)).map(staged)
    }

    fn write(&self, at: &str, bytes: &[u8]) -> Result<()> {
        let handle = self.create(at)?;
        self.run(async {
            for (index, piece) in bytes.chunks(1 << 20).enumerate() {
                handle.write((index << 20) as u64, Bytes::copy_from_slice(piece)).await?;
            }
            handle.flush().await
        })
    }

    fn attr(&self, at: &str) -> Result<Arc<Attr>> {
        self.run(self.worker.attr(&path(at), Freshness::Cached))
    }

    fn exists(&self, at: &str) -> bool {
        match self.attr(at) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => panic!("{at}: {error}"),
        }
    }

    /// The bytes as a reader sees them who opens the file now.
    fn read(&self, at: &str) -> Result<Vec<u8>> {
        self.run(async {
            let opened = self.worker.open(&path(at), Freshness::Cached).await?;
            let OpenedFile::Paged(file) = opened else { panic!("{at} is local") };
            let mut bytes = vec![0; file.attr().size as usize];
            let mut at = 0;
            while at < bytes.len() {
                let page = at as u64 / u64::from(file.page_size());
                let got = file.read_present(at as u64, &mut bytes[at..])?;
                if got > 0 {
                    at += got;
                } else if let Some(load) = file.demand(page).await? {
                    let within = at as u64 - page * u64::from(file.page_size());
                    let end = (u64::from(file.page_size())).min(file.attr().size - page * u64::from(file.page_size()));
                    let got = load.wait(within as usize..end as usize).await?;
                    bytes[at..at + got.len()].copy_from_slice(got);
                    at += got.len();
                }
            }
            Ok(bytes)
        })
    }

    fn list(&self, at: &str) -> Result<BTreeMap<String, FileKind>> {
        self.run(async {
            let mut listing = self.worker.list(&path(at)).await?;
            let mut all = BTreeMap::new();
            while let Some(batch) = listing.next().await? {
                for entry in batch {
                    let name = String::from_utf8(entry.name.to_vec()).unwrap();
                    assert!(all.insert(name.clone(), entry.kind).is_none(), "{name} came twice");
                }
            }
            Ok(all)
        })
    }

    /// Ends as a process ends that is killed: nothing is finished, nothing is told.
    fn kill(mut self) {
        let runtime = self.runtime.take().unwrap();
        drop(self);
        runtime.shutdown_timeout(Duration::from_secs(10));
    }
}

fn staged(opened: OpenedForWriting) -> Arc<dyn WriteHandle> {
    match opened {
        OpenedForWriting::Staged(handle) => handle,
        OpenedForWriting::Local(_) => panic!("a local file of an object store"),
    }
}

fn object(server: &Server, key: &str) -> Option<Vec<u8>> {
    server.object(BUCKET, &format!("root/{key}")).map(|object| object.bytes().unwrap())
}

/// Waits until something holds, for half a minute.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{what}: not within 30 s");
}
