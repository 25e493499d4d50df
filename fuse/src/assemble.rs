//! Builds what a mount consists of: under storage, page store, worker, client, file system, adapter.
//!
//! Invariant: when [`filesystem`] returns, the under storage has answered once (its root can be used with these
//! credentials), so that a mount never comes up over something that cannot work. When it fails, nothing of it goes on.

mod upkeep;

use crate::{
    adapter::Adapter,
    fs::{Fs, FsOptions},
    passthrough::stack_depth,
};
use client::{Client, ClientOptions, cluster::Namespace};
use common::{
    Error, ErrorKind, Result, UfsPath, UfsUri,
    budget::MemoryBudget,
    conf::{
        Conf,
        keys::{fuse, user},
    },
    page::PagePool,
    worker::Worker,
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{DirOptions, PageStore, ReadOptions, ReadThrough, StoreOptions};
use tokio::runtime::Runtime;
use ufs::{Changed, Secret, UfsOptions, UnderStorage};
use upkeep::Upkeep;
use worker::{EmbeddedWorker, Stage, StageOptions, WorkerOptions, stage::Dressed};

/// The scheme under which the namespace of a cluster is mounted: `alluxio://<cluster name>/<path>`.
pub const CLUSTER_SCHEME: &str = "alluxio";

/// What an operation may take beyond the deadline of the storage, for requests that follow each other.
const PATIENCE: u32 = 4;

/// What is to be mounted, and how.
#[derive(Debug, Clone)]
pub struct MountPlan {
    /// The root of the under storage.
    pub uri: UfsUri,
    /// The configuration, options of the mount included (timeouts, kernel cache, passthrough, threads).
    pub conf: Conf,
    /// Settings of the service behind OpenDAL by its own names; they override those from `conf`.
    pub ufs_options: Vec<(String, String)>,
    /// Whether the mount takes no writes. One whose storage takes none takes none either way.
    pub read_only: bool,
}

/// A file system that is ready to be mounted.
///
/// Take it down in this order: end the FUSE session (which drops the adapter), drop `fs`, then
/// `runtime.shutdown_timeout(..)`, then `store`. It must not be dropped inside an asynchronous task.
pub struct MountedParts {
    /// What fuser serves; give it to `fuser::Session::from_fd` or `Session::new`.
    pub adapter: Adapter,
    /// The file system below it: [`Fs::status`] for the state file and `/metrics`.
    pub fs: Arc<Fs>,
    /// Where the asynchronous work runs; `runtime.handle()` serves the web endpoint too.
    pub runtime: Runtime,
    /// How many threads should take requests (`fuser::Config::n_threads`; never `clone_fd`).
    pub threads: usize,
    /// The page store, for figures; none when there is nothing to cache or the cache is off.
    pub store: Option<Arc<PageStore>>,
    /// The stage of files that are written to an object store; drain it before the runtime ends.
    pub stage: Option<Arc<Stage>>,
}

/// The parts that a test may bring itself.
pub struct Parts {
    /// Who serves metadata and data.
    pub worker: Arc<dyn Worker>,
    /// How the file system behaves.
    pub options: FsOptions,
    /// How files are read.
    pub client: ClientOptions,
    /// Memory for reading, in bytes.
    pub memory: usize,
}

/// Builds everything that `plan` asks for and probes the under storage. Blocks; call it outside of asynchronous tasks and
/// after the process has forked into the background (it starts threads).
///
/// # Errors
/// One line that names the thing and the cause: the storage that does not answer, the directory that is missing, the
/// cache directory that cannot be used.
pub fn filesystem(plan: &MountPlan) -> Result<MountedParts> {
    let runtime = runtime(processors())?;
    match build(plan, &runtime) {
        Ok(built) => Ok(mounted(built, runtime)),
        Err(error) => {
            // Whatever may hang in a call to the system is not waited for.
            runtime.shutdown_background();
            Err(error)
        }
    }
}

/// What is built before anything is served.
struct Built {
    fs: Arc<Fs>,
    store: Option<Arc<PageStore>>,
    stage: Option<Arc<Stage>>,
    upkeep: Upkeep,
}

fn build(plan: &MountPlan, runtime: &Runtime) -> Result<Built> {
    let conf = &plan.conf;
    let handle = runtime.handle().clone();
    let _inside = handle.enter();
    let mut options = UfsOptions::from_conf(conf, &plan.uri);
    options.service.extend(plan.ufs_options.iter().map(|(name, value)| (name.clone(), Secret::new(value.as_str()))));
    let storage = open_storage(plan, &options, runtime)?;
    let staging = StageOptions::from_conf(conf);
    let mut settings = worker_options(conf);
    // Others write too, and what they closed must be seen by the next open: the owner is asked each time.
    let shared = plan.uri.scheme() == CLUSTER_SCHEME && storage.changes().is_some() && !plan.read_only;
    if shared {
        (settings.sync_interval, settings.negative_ttl) = (Some(Duration::ZERO), Duration::ZERO);
    }
    // Until objects are written, nothing is asked of how they look.
    let dressed = conf
        .get(&user::OBJECT_WRITES)
        .then(|| Dressed::over(storage.clone(), settings.clock.clone(), staging.attributes_age));
    let (storage, attributes) = match dressed {
        Some((storage, attributes)) => (storage, Some(attributes)),
        None => (storage, None),
    };
    probe(&*storage, conf, runtime)?;
    let budget = MemoryBudget::new(length(conf.get(&user::MEMORY_LIMIT).bytes()));
    // What lies on this host is read where it is.
    let store = if storage.is_local() { None } else { page_store(conf)? };
    let pages = ReadThrough::new(
        storage.clone(),
        store.clone(),
        PagePool::new(budget.clone()),
        read_options(conf, &options),
        handle.clone(),
    );
    let worker = EmbeddedWorker::over(storage.clone(), &pages, budget.clone(), settings, handle.clone());
    let stage = match attributes.filter(|_| storage.objects().is_some() && !plan.read_only) {
        Some(attributes) => match worker.take_changes(attributes, staging) {
            Ok(stage) => Some(stage),
            // Nobody asked for it, so it keeps nobody from reading.
            Err(error) if !conf.is_set(&user::STAGE_DIR) && !conf.is_set(&user::OBJECT_WRITES) => {
                tracing::warn!(
                    "mounted for reading only: {error}; to write give a directory by alluxio.user.stage.dir"
                );
                None
            }
            Err(error) => {
                let hint = "; give a directory by alluxio.user.stage.dir, or mount with -o ro";
                return Err(Error::new(error.kind(), format!("{error}{hint}")));
            }
        },
        None => None,
    };
    let local = storage.is_local().then(|| PathBuf::from(format!("/{}", plan.uri.path())));
    let mut fs_options = FsOptions { read_only: plan.read_only, ..FsOptions::from_conf(conf, local.as_deref()) };
    if shared {
        let none = Duration::ZERO;
        (fs_options.attr_timeout, fs_options.entry_timeout, fs_options.negative_timeout) = (none, none, none);
    }
    let client_options = client_options(conf, fs_options.passthrough && store.is_some());
    let client = Client::new(worker.clone(), budget, client_options, handle);
    let fs = Fs::new(client, fs_options);
    // Where nothing is kept there is nothing to forget; and a kernel that is told of its own changes drops inodes that it uses.
    if !shared {
        follow_changes(storage, &worker, &fs);
    }
    let upkeep = Upkeep::new(&fs, Some((&worker, &pages)));
    Ok(Built { fs, store, stage, upkeep })
}

/// The storage that is mounted: an under storage, or the namespace of a cluster.
fn open_storage(plan: &MountPlan, options: &UfsOptions, runtime: &Runtime) -> Result<Arc<dyn UnderStorage>> {
    if plan.uri.scheme() != CLUSTER_SCHEME {
        return ufs::open(&plan.uri, options);
    }
    let path = UfsPath::parse(plan.uri.path())?;
    let namespace = runtime.block_on(Namespace::connect(&plan.conf, plan.uri.authority(), &path))?;
    Ok(namespace)
}

/// Has what others change forgotten: by the worker first, so that whoever asks next is told what is new, then by the kernel.
fn follow_changes(storage: Arc<dyn UnderStorage>, worker: &Arc<EmbeddedWorker>, fs: &Arc<Fs>) {
    let (worker, fs) = (Arc::downgrade(worker), Arc::downgrade(fs));
    storage.on_change(Box::new(move |changed: &Changed| {
        let (Some(worker), Some(fs)) = (worker.upgrade(), fs.upgrade()) else { return };
        for path in &changed.paths {
            if changed.below {
                worker.forget_below(path);
            } else {
                worker.forget(path);
            }
        }
        fs.changed_elsewhere(&changed.paths, changed.below);
    }));
}

fn probe(storage: &dyn UnderStorage, conf: &Conf, runtime: &Runtime) -> Result<()> {
    // A little less than the start as a whole may take, so that this line is the one that is printed.
    let limit = conf.get(&fuse::MOUNT_TIMEOUT).mul_f64(0.8).min(conf.get(&user::UFS_DEADLINE));
    match runtime.block_on(async { tokio::time::timeout(limit, storage.probe()).await }) {
        Ok(answer) => answer,
        Err(_) => Err(Error::new(
            ErrorKind::TimedOut,
            format!("{} did not answer within {limit:?}; check the address and the network", storage.uri()),
        )),
    }
}

fn page_store(conf: &Conf) -> Result<Option<Arc<PageStore>>> {
    let paths = conf.get(&user::CLIENT_CACHE_DIRS);
    let share = conf.get(&user::CLIENT_CACHE_SIZE).bytes() / paths.len().max(1) as u64;
    let sizes = conf.get(&user::CLIENT_CACHE_SIZES);
    let dirs = paths
        .into_iter()
        .enumerate()
        .map(|(at, path)| DirOptions { path, capacity: sizes.get(at).map_or(share, |size| size.bytes()) });
    let dirs: Vec<_> = dirs.filter(|dir| dir.capacity > 0).collect();
    if dirs.is_empty() {
        return Ok(None);
    }
    let options = StoreOptions {
        dirs,
        page_size: page_size(conf),
        high_watermark: conf.get(&user::CLIENT_CACHE_WATERMARK_HIGH).0,
        low_watermark: conf.get(&user::CLIENT_CACHE_WATERMARK_LOW).0,
        ..StoreOptions::default()
    };
    let store = PageStore::open(options)?;
    Ok((!store.is_off()).then_some(store))
}

fn page_size(conf: &Conf) -> u32 {
    u32::try_from(conf.get(&user::CLIENT_CACHE_PAGE_SIZE).bytes()).unwrap_or(1 << 20)
}

fn read_options(conf: &Conf, ufs: &UfsOptions) -> ReadOptions {
    let concurrency = ufs.concurrency.max(2);
    ReadOptions {
        page_size: page_size(conf),
        deadline: conf.get(&user::UFS_DEADLINE),
        concurrency,
        prefetch_concurrency: concurrency - concurrency / 4,
        complete_share: conf.get(&user::CLIENT_CACHE_COMPLETE_RATIO).0,
        ..ReadOptions::default()
    }
}

fn worker_options(conf: &Conf) -> WorkerOptions {
    let entries = length(conf.get(&user::METADATA_CACHE_MAX_SIZE));
    let ages =
        [conf.get(&user::METADATA_SYNC_INTERVAL).after(), conf.get(&user::METADATA_CACHE_EXPIRATION_TIME).after()];
    let sync_interval = ages.into_iter().flatten().min();
    WorkerOptions {
        // Without entries nothing is remembered, as with an interval of nothing.
        sync_interval: if entries == 0 { Some(Duration::ZERO) } else { sync_interval },
        negative_ttl: conf.get(&user::METADATA_NEGATIVE_TTL),
        metadata_entries: entries,
        ..WorkerOptions::default()
    }
}

fn client_options(conf: &Conf, complete_on_open: bool) -> ClientOptions {
    let enabled = |on: bool, value: u64| if on { value } else { 0 };
    let prefetch = conf.get(&user::PREFETCH_ENABLED);
    let siblings = prefetch && conf.get(&user::PREFETCH_SIBLINGS_ENABLED);
    ClientOptions {
        prefetch_window: enabled(prefetch, conf.get(&user::PREFETCH_WINDOW).bytes()),
        sibling_max_size: enabled(siblings, conf.get(&user::PREFETCH_SIBLINGS_MAX_FILE_SIZE).bytes()),
        sibling_parallel: length(conf.get(&user::PREFETCH_SIBLINGS_CONCURRENCY)),
        complete_on_open,
        // A call that took all of the time that the storage has is not made again.
        retry_deadline: conf.get(&user::UFS_DEADLINE),
        ..ClientOptions::default()
    }
}

impl FsOptions {
    /// What `conf` says. `local`: the directory of the under storage, when it is one of this host.
    pub fn from_conf(conf: &Conf, local: Option<&Path>) -> Self {
        let cache = conf.get(&user::CLIENT_CACHE_DIRS);
        let stack_depth = match local {
            Some(directory) => stack_depth([directory]),
            None => stack_depth(cache.iter().map(PathBuf::as_path)),
        };
        Self {
            attr_timeout: conf.get(&fuse::ATTR_TIMEOUT),
            entry_timeout: conf.get(&fuse::ENTRY_TIMEOUT),
            negative_timeout: conf.get(&user::METADATA_NEGATIVE_TTL),
            kernel_cache: conf.get(&fuse::KERNEL_CACHE),
            passthrough: conf.get(&fuse::PASSTHROUGH) == fuse::Passthrough::Auto,
            stack_depth,
            max_handles: length(conf.get(&fuse::MAX_OPEN_HANDLES)),
            max_request: u32::try_from(conf.get(&fuse::MAX_REQUEST_SIZE).bytes()).unwrap_or(1 << 20),
            max_background: u16::try_from(conf.get(&fuse::MAX_BACKGROUND)).unwrap_or(u16::MAX),
            threads: match conf.get(&fuse::THREADS) {
                0 => processors(),
                threads => length(threads),
            },
            read_only: false,
            deadline: conf.get(&user::UFS_DEADLINE) * PATIENCE,
        }
    }
}

/// Builds a file system over a worker that exists already.
///
/// # Errors
/// The runtime's threads could not be started.
pub fn from_parts(parts: Parts) -> Result<MountedParts> {
    let runtime = runtime(2)?;
    let budget = MemoryBudget::new(parts.memory);
    let client = Client::new(parts.worker, budget, parts.client, runtime.handle().clone());
    let fs = Fs::new(client, parts.options);
    let upkeep = Upkeep::new(&fs, None);
    Ok(mounted(Built { fs, store: None, stage: None, upkeep }, runtime))
}

fn length(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Processors of this machine, as a number of threads: 2 at least, 8 at most.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8)
}

fn runtime(threads: usize) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_name("alluxio-fuse")
        .enable_all()
        .build()
        .map_err(|error| Error::io("the threads of the daemon", error))
}

fn mounted(built: Built, runtime: Runtime) -> MountedParts {
    let Built { fs, store, stage, upkeep } = built;
    upkeep.start(runtime.handle());
    let adapter = Adapter::new(fs.clone(), runtime.handle().clone());
    let threads = fs.options().threads;
    MountedParts { adapter, fs, runtime, threads, store, stage }
}
