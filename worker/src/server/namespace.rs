//! The storages that a worker serves: those of the cluster's mount table, which is followed while the worker runs.
//!
//! Invariants:
//! - all storages share one page store and one memory budget;
//! - a storage whose entry is unchanged is left alone by a refresh; one that went away serves the requests that have it;
//! - a storage that cannot be opened costs itself only, and is tried again at each refresh;
//! - when the table cannot be read the last one stays.

use super::changes::{Changed, Changes};
use crate::{EmbeddedWorker, WorkerOptions};
pub use client::mount_table::storage_options;
use client::mount_table::{MountEntry, MountTable, MountTableStore};
use common::{
    Attr, Error, ErrorKind, Result, UfsPath, UfsUri,
    conf::{Conf, keys},
    page::PagePool,
    redact,
    worker::{Freshness, OpenedFile, PagedFile, Worker},
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};
use store::{PageStore, ReadOptions, ReadThrough};
use tokio::{runtime::Handle, sync::broadcast};
use ufs::UnderStorage;

/// How often the mount table is read.
const REFRESH: Duration = Duration::from_secs(2);
/// Requests for unknown storages have the table read, with pauses of so long.
const REFRESH_ON_DEMAND: Duration = Duration::from_millis(500);

/// A storage that is served.
pub struct Mounted {
    uri: Arc<str>,
    entry: Option<MountEntry>,
    worker: Arc<EmbeddedWorker>,
    pages: Arc<ReadThrough>,
    changes: Arc<Changes>,
}

impl Mounted {
    /// Its metadata.
    pub fn worker(&self) -> &Arc<EmbeddedWorker> {
        &self.worker
    }

    /// The file in the version that the client knows.
    ///
    /// # Errors
    /// `Stale` when the storage has another version.
    pub async fn open_version(&self, path: &UfsPath, wanted: &Attr) -> Result<Arc<dyn PagedFile>> {
        let known = self.worker.attr(path, Freshness::Cached).await;
        let attr = match known {
            Ok(attr) if same_version(&attr, wanted) => attr,
            // The client may know more than this cache: the storage decides.
            _ => {
                self.worker.forget(path);
                let fresh = self.worker.attr(path, Freshness::Storage).await?;
                if fresh.is_file() && !same_version(&fresh, wanted) {
                    return Err(Error::new(
                        ErrorKind::Stale,
                        format!("{}{path}: the storage has another version by now", redact::uri(&self.uri)),
                    ));
                }
                if let Ok(known) = known
                    && !same_version(&known, &fresh)
                {
                    // Others may have been told what this worker knew.
                    self.published(std::slice::from_ref(path), false);
                }
                fresh
            }
        };
        self.open_pages(path, attr)
    }

    /// The file in the version that the storage has, with nothing but what the page store has of it.
    pub async fn open_stored(&self, path: &UfsPath) -> Result<Arc<dyn PagedFile>> {
        let attr = self.worker.attr(path, Freshness::Cached).await?;
        if !attr.is_file() {
            return Err(Self::no_file(&self.uri, path, &attr));
        }
        Ok(self.pages.open(path, attr))
    }

    fn no_file(uri: &str, path: &UfsPath, attr: &Attr) -> Error {
        let kind = if attr.is_dir() { ErrorKind::IsADirectory } else { ErrorKind::InvalidArgument };
        Error::new(kind, format!("{}{path} is no regular file", redact::uri(uri)))
    }

    fn open_pages(&self, path: &UfsPath, attr: Arc<Attr>) -> Result<Arc<dyn PagedFile>> {
        if !attr.is_file() {
            return Err(Self::no_file(&self.uri, path, &attr));
        }
        // The lookup may have brought first bytes along, which make up the whole of a small file.
        if !self.worker.storage().is_local()
            && let Some(Ok(OpenedFile::Paged(file))) = self.worker.open_now(path)
            && same_version(file.attr(), &attr)
        {
            return Ok(file);
        }
        Ok(self.pages.open(path, attr))
    }
}

/// Equal versions have equal bytes, so that size and time need only be looked at where the storage names no versions.
fn same_version(one: &Attr, other: &Attr) -> bool {
    if one.version.is_none() && other.version.is_none() {
        one.size == other.size && one.mtime == other.mtime
    } else {
        one.version == other.version
    }
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mounted({})", redact::uri(&self.uri))
    }
}

/// See the module.
pub struct Namespace {
    store: Arc<PageStore>,
    pool: Arc<PagePool>,
    conf: Conf,
    handle: Handle,
    table: Option<MountTableStore>,
    mounted: RwLock<HashMap<String, Arc<Mounted>>>,
    /// Storages that could not be opened, and why: said once.
    broken: Mutex<HashMap<String, String>>,
    refreshed: tokio::sync::Mutex<Option<Instant>>,
    changes: Arc<Changes>,
}

impl Namespace {
    /// A namespace without storages. `table`: where they come from.
    pub fn new(
        store: Arc<PageStore>,
        pool: Arc<PagePool>,
        conf: Conf,
        handle: Handle,
        table: Option<MountTableStore>,
    ) -> Arc<Self> {
        let changes = Changes::new(&handle);
        Arc::new(Self {
            store,
            pool,
            conf,
            handle,
            table,
            mounted: RwLock::default(),
            broken: Mutex::default(),
            refreshed: tokio::sync::Mutex::new(None),
            changes,
        })
    }

    /// The page store.
    pub fn store(&self) -> &Arc<PageStore> {
        &self.store
    }

    /// The buffers of pages.
    pub fn pool(&self) -> &Arc<PagePool> {
        &self.pool
    }

    /// Who is told of changes.
    pub fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    /// What changes from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    /// The storage with this URI; one that is not known may have been mounted just now, so the table is looked at.
    ///
    /// # Errors
    /// `Unavailable` when it is not mounted here, or could not be opened: another worker may know it.
    pub async fn find(&self, uri: &str) -> Result<Arc<Mounted>> {
        let uri = UfsUri::parse(uri)?.text();
        if let Some(found) = self.mounted.read().get(&uri) {
            return Ok(found.clone());
        }
        if let Err(error) = self.refresh_since(Instant::now()).await {
            tracing::debug!(%error, "the mount table is not read for the moment");
        }
        if let Some(found) = self.mounted.read().get(&uri) {
            return Ok(found.clone());
        }
        let why = self.broken.lock().get(&uri).cloned().unwrap_or_else(|| "not in the mount table".into());
        Err(Error::new(ErrorKind::Unavailable, format!("{}: not served by this worker: {why}", redact::uri(&uri))))
    }

    /// Follows the mount table for as long as the future is polled.
    pub async fn follow(&self) {
        let mut away = false;
        loop {
            tokio::time::sleep(REFRESH).await;
            match self.refresh_after(REFRESH_ON_DEMAND).await {
                Ok(()) if away => {
                    tracing::info!("the mount table is followed again");
                    away = false;
                }
                Err(error) if !away => {
                    tracing::warn!(%error, "the mount table is not followed for the moment; the last one stays");
                    away = true;
                }
                _ => {}
            }
        }
    }

    /// Reads the mount table, unless that was done within `age`.
    pub async fn refresh_after(&self, age: Duration) -> Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let mut refreshed = self.refreshed.lock().await;
        if refreshed.is_some_and(|at| at.elapsed() < age) {
            return Ok(());
        }
        let outcome = table.read().await;
        *refreshed = Some(Instant::now());
        self.apply(&outcome?);
        Ok(())
    }

    /// Reads the mount table, unless that was done since `asked`: who asks may have added a mount just before. Not more
    /// often than [`REFRESH_ON_DEMAND`], so it may wait for so long.
    async fn refresh_since(&self, asked: Instant) -> Result<()> {
        let Some(table) = &self.table else { return Ok(()) };
        let mut refreshed = self.refreshed.lock().await;
        if let Some(at) = *refreshed {
            if at >= asked {
                return Ok(());
            }
            tokio::time::sleep(REFRESH_ON_DEMAND.saturating_sub(at.elapsed())).await;
        }
        let begun = Instant::now();
        let outcome = table.read().await;
        *refreshed = Some(begun);
        self.apply(&outcome?);
        Ok(())
    }

    /// Serves exactly what `table` has.
    pub fn apply(&self, table: &MountTable) {
        let mut wanted = HashMap::new();
        for (point, entry) in &table.mounts {
            match UfsUri::parse(&entry.ufs) {
                Ok(uri) => {
                    wanted.insert(uri.text(), (uri, entry));
                }
                Err(error) => tracing::warn!(%error, "mount {point} makes no sense and is not served"),
            }
        }
        self.broken.lock().retain(|uri, _| wanted.contains_key(uri));
        // Those that go are dropped after the lock.
        let gone: Vec<_> = {
            let mut mounted = self.mounted.write();
            let gone: Vec<_> = mounted
                .iter()
                .filter(|(uri, one)| {
                    one.entry.is_some() && wanted.get(*uri).is_none_or(|(_, entry)| Some(*entry) != one.entry.as_ref())
                })
                .map(|(uri, _)| uri.clone())
                .collect();
            gone.iter().filter_map(|uri| mounted.remove(uri)).collect()
        };
        for one in &gone {
            tracing::info!("{} is no longer served as it was", redact::uri(&one.uri));
        }
        for (uri, (parsed, entry)) in wanted {
            if self.mounted.read().contains_key(&uri) {
                continue;
            }
            match self.open(&parsed, entry) {
                Ok(storage) => {
                    self.broken.lock().remove(&uri);
                    tracing::info!("{} is served", redact::uri(&uri));
                    self.serve(storage, Some(entry.clone()));
                }
                Err(error) => {
                    let why = error.to_string();
                    if self.broken.lock().insert(uri.clone(), why.clone()).as_ref() != Some(&why) {
                        tracing::warn!("{} is not served: {why}", redact::uri(&uri));
                    }
                }
            }
        }
    }

    fn open(&self, uri: &UfsUri, entry: &MountEntry) -> Result<Arc<dyn UnderStorage>> {
        let options = storage_options(&self.conf, uri, entry)?;
        let _inside = self.handle.enter();
        ufs::open(uri, &options)
    }

    /// Serves `storage`; without an entry, whatever the mount table says.
    pub fn serve(&self, storage: Arc<dyn UnderStorage>, entry: Option<MountEntry>) -> Arc<Mounted> {
        let conf = &self.conf;
        let concurrency = usize::try_from(conf.get(&keys::user::UFS_CONCURRENCY)).unwrap_or(64).max(2);
        let read = ReadOptions {
            page_size: self.store.page_size(),
            deadline: conf.get(&keys::user::UFS_DEADLINE),
            concurrency,
            prefetch_concurrency: concurrency - concurrency / 4,
            ..ReadOptions::default()
        };
        let uri: Arc<str> = storage.uri().text().into();
        let pages =
            ReadThrough::new(storage.clone(), Some(self.store.clone()), self.pool.clone(), read, self.handle.clone());
        let worker = EmbeddedWorker::new(
            storage,
            Arc::new(pages.clone()),
            self.pool.budget().clone(),
            WorkerOptions::from_conf(conf),
            self.handle.clone(),
        );
        let (weak, changes, storage) = (Arc::downgrade(&worker), self.changes.clone(), uri.clone());
        pages.on_stale(move |path| {
            if let Some(worker) = weak.upgrade() {
                worker.forget(path);
            }
            changes.add(&storage, std::slice::from_ref(path), false, true);
        });
        let mounted = Arc::new(Mounted { uri: uri.clone(), entry, worker, pages, changes: self.changes.clone() });
        let before = self.mounted.write().insert(uri.to_string(), mounted.clone());
        drop(before);
        mounted
    }
}

impl Mounted {
    /// Has everybody in the cluster forget what they cached of these paths (`below`: and of everything below them), since
    /// this worker changed them, or found them changed. To be called once the storage has the change, by whoever makes
    /// changes through this worker: with the path itself where a file was written, made or removed, with both names where
    /// one was renamed, and with `below` for directories that were renamed or removed. Never waits.
    pub fn published(&self, paths: &[UfsPath], below: bool) {
        self.spread(paths, below, true);
    }

    /// The same where another worker has told of it: it goes to this worker's subscribers and no further.
    pub(super) fn heard(&self, paths: &[UfsPath], below: bool) {
        self.spread(paths, below, false);
    }

    fn spread(&self, paths: &[UfsPath], below: bool, relay: bool) {
        for path in paths {
            if below {
                self.worker.forget_below(path);
            } else {
                self.worker.forget(path);
            }
        }
        self.changes.add(&self.uri, paths, below, relay);
    }
}
