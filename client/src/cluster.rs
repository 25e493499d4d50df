//! The namespace of a cluster as one under storage: its mounts are top-level directories, and what lies below them
//! comes from the workers that the ring names.
//!
//! Because it is an [`UnderStorage`], everything above it is what an embedded mount has too: the client's own page
//! cache, prefetch, the metadata cache, passthrough.
//!
//! For each request: the worker that owns the path, then the next ones on the ring, then (if allowed) the storage itself.
//! A worker whose breaker is open is skipped at once. A read that failed half-way goes on where it stopped, in the same
//! version; what the storage said (no such file, permission denied, stale) is an answer and not a failure of the worker.

mod breaker;
mod changes;
mod data;
mod link;
mod listing;
mod mounted;
mod view;
mod writing;

pub use breaker::Breaker;
pub use changes::{Heard, Hub};
pub use data::{DataConnection, Dial, FileKey};
pub use link::{Link, LinkOptions};
pub use view::{View, Workers, ring_of};

use crate::{
    etcd::{Etcd, EtcdOptions},
    membership::{Membership, unknown_cluster},
    mount_table::{MountEntry, MountTableStore},
};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    change::Changes,
    conf::{Conf, keys},
    worker::{DirEntry, FileLease, Listing},
};
use mounted::Mounted;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::task::AbortHandle;
use ufs::{ChangeListener, Changed, ReadSink, UnderStorage};

/// How a client uses a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Virtual nodes of each worker on the ring.
    pub virtual_nodes: u32,
    /// Whether capacities count on the ring.
    pub provider: keys::cluster::RingProvider,
    /// Only live workers are on the ring.
    pub dynamic_ring: bool,
    /// The storage itself is read when no worker answers.
    pub ufs_fallback: bool,
    /// On how many workers a file may be cached.
    pub replicas: usize,
    /// The size of the parts of a file that are placed separately; none: files are placed as a whole.
    pub segment: Option<u64>,
    /// Whether changes are made, through workers.
    pub writes: bool,
    /// How workers are talked to.
    pub link: LinkOptions,
}

impl ClusterOptions {
    /// What the configuration says.
    ///
    /// # Errors
    /// Certificates that cannot be used.
    pub fn from_conf(conf: &Conf) -> Result<Self> {
        let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Self {
            virtual_nodes: u32::try_from(conf.get(&keys::cluster::RING_VIRTUAL_NODES)).unwrap_or(u32::MAX),
            provider: conf.get(&keys::cluster::RING_PROVIDER),
            dynamic_ring: conf.get(&keys::cluster::DYNAMIC_RING_ENABLED),
            ufs_fallback: conf.get(&keys::cluster::UFS_FALLBACK_ENABLED),
            replicas: count(conf.get(&keys::cluster::REPLICATION_MIN)).max(1),
            segment: conf
                .get(&keys::cluster::SEGMENT_ENABLED)
                .then(|| conf.get(&keys::cluster::SEGMENT_SIZE).bytes().max(1)),
            writes: conf.get(&keys::cluster::CLUSTER_WRITES),
            link: LinkOptions::from_conf(conf)?,
        })
    }
}

/// The namespace.
pub struct Namespace {
    uri: UfsUri,
    view: Arc<View>,
    options: ClusterOptions,
    conf: Conf,
    mounted: Mutex<HashMap<String, (MountEntry, Arc<Mounted>)>>,
    since: Timestamp,
    /// Drops mounts that were removed.
    pruning: AbortHandle,
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.pruning.abort();
    }
}

impl Namespace {
    /// The namespace of the cluster of this name, reached as `conf` says. `at`: the path in it that becomes the root (`/` for all of it).
    ///
    /// # Errors
    /// etcd cannot be reached, the configuration is not complete, or the cluster has neither workers nor mounts.
    pub async fn connect(conf: &Conf, cluster: &str, at: &UfsPath) -> Result<Arc<Self>> {
        let etcd = Etcd::connect(&EtcdOptions::from_conf(conf)?).await?;
        let membership = Membership::new(etcd.clone(), cluster)?;
        let options = ClusterOptions::from_conf(conf)?;
        let view = View::follow(&membership, MountTableStore::new(etcd.clone(), cluster), options.clone()).await?;
        if view.mounts().is_empty() && membership.view().await?.workers.is_empty() {
            return Err(unknown_cluster(&etcd, cluster).await);
        }
        let uri = UfsUri::parse(&format!("alluxio://{cluster}/{}", String::from_utf8_lossy(at.as_bytes())))?;
        Ok(Arc::new_cyclic(|weak: &std::sync::Weak<Self>| {
            let (weak, mut mounts) = (weak.clone(), view.mounts_changing());
            let pruning = tokio::spawn(async move {
                while mounts.changed().await.is_ok() {
                    let Some(namespace) = weak.upgrade() else { return };
                    namespace.prune();
                }
            });
            Self {
                uri,
                view,
                options,
                conf: conf.clone(),
                mounted: Mutex::default(),
                since: Timestamp::now(),
                pruning: pruning.abort_handle(),
            }
        }))
    }

    /// Has the workers that own `path` forget what they know of it (`below`: and of everything below it), since it was
    /// changed by something else than the cluster, and tell whoever caches it.
    ///
    /// # Errors
    /// `NotFound` when it lies in no mount, `Unavailable` when no worker answers.
    pub async fn refresh(&self, path: &UfsPath, below: bool) -> Result<()> {
        match self.route(path)? {
            Some((mounted, path)) => mounted.refresh(&path, below).await,
            None => Err(Self::is_root(path)),
        }
    }

    /// Mounts that are opened here.
    pub fn open_mounts(&self) -> usize {
        self.mounted.lock().len()
    }

    /// What it knows of the cluster.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Which mount a path lies in, and where below it; none for the root of the namespace.
    fn route(&self, path: &UfsPath) -> Result<Option<(Arc<Mounted>, UfsPath)>> {
        let above = UfsPath::parse(self.uri.path())?;
        let mut names = above.names().chain(path.names());
        let Some(first) = names.next() else { return Ok(None) };
        let point = format!("/{}", String::from_utf8_lossy(first));
        let mounts = self.view.mounts();
        let entry = mounts
            .get(&point)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{path}: nothing is mounted at {point}")))?;
        let rest: Vec<&[u8]> = names.collect();
        Ok(Some((self.mounted(&point, entry)?, UfsPath::parse(rest.join(&b'/'))?)))
    }

    fn mounted(&self, point: &str, entry: &MountEntry) -> Result<Arc<Mounted>> {
        let mut mounted = self.mounted.lock();
        if let Some((known, there)) = mounted.get(point)
            && known == entry
        {
            return Ok(there.clone());
        }
        let fresh = Arc::new(Mounted::new(entry, self.view.clone(), self.options.clone(), &self.conf)?);
        // One that was removed meanwhile serves this request and is not kept.
        if self.view.mounts().get(point) == Some(entry) {
            mounted.insert(point.to_owned(), (entry.clone(), fresh.clone()));
        }
        Ok(fresh)
    }

    /// Drops what the mount table no longer has. What is being read goes on.
    fn prune(&self) {
        let mounts = self.view.mounts();
        let mut gone = Vec::new();
        self.mounted.lock().retain(|point, (entry, mounted)| {
            let stays = mounts.get(point) == Some(entry);
            if !stays {
                gone.push(mounted.clone());
            }
            stays
        });
        drop(gone);
    }

    /// What a worker's report means here, in paths of this namespace; none when it is about nothing that is mounted.
    fn translate(&self, heard: &Heard) -> Option<Changed> {
        let Heard::Change(change) = heard else {
            return Some(Changed { paths: vec![UfsPath::root()], below: true });
        };
        let above = UfsPath::parse(self.uri.path()).ok()?;
        let mut paths = Vec::new();
        for (point, entry) in &*self.view.mounts() {
            // Both in the form in which a URI names itself.
            if !UfsUri::parse(&entry.ufs).is_ok_and(|uri| uri.text() == change.storage) {
                continue;
            }
            for path in &change.paths {
                let full = [point.trim_start_matches('/').as_bytes(), path.as_slice()].join(&b'/');
                let Ok(full) = UfsPath::parse(full) else { continue };
                match strip(&full, &above) {
                    Some(path) => paths.push(path),
                    // A directory above the root that is mounted here changed, with all that is below it.
                    None if change.below && strip(&above, &full).is_some() => paths.push(UfsPath::root()),
                    None => {}
                }
            }
        }
        (!paths.is_empty()).then_some(Changed { paths, below: change.below })
    }

    fn root(&self) -> Attr {
        let mut attr = Attr::of_object(FileKind::Directory, 0, self.since, Version::none());
        attr.mode = 0o755;
        attr
    }

    fn is_root(path: &UfsPath) -> Error {
        Error::new(ErrorKind::IsADirectory, format!("{path} is a directory"))
    }
}

/// `path` as seen from `above`, when it lies there.
fn strip(path: &UfsPath, above: &UfsPath) -> Option<UfsPath> {
    let mut names = path.names();
    for name in above.names() {
        if names.next() != Some(name) {
            return None;
        }
    }
    UfsPath::parse(names.collect::<Vec<_>>().join(&b'/')).ok()
}

#[async_trait]
impl UnderStorage for Namespace {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    async fn probe(&self) -> Result<()> {
        match self.route(&UfsPath::root())? {
            Some((mounted, path)) => mounted.stat(&path).await.map(|_| ()),
            None => Ok(()),
        }
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        match self.route(path)? {
            Some((mounted, path)) => mounted.stat(&path).await,
            None => Ok(self.root()),
        }
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        if let Some((mounted, path)) = self.route(path)? {
            return mounted.list(&path).await;
        }
        let mounts = self.view.mounts();
        let entries = mounts.keys().map(|point| DirEntry {
            name: point.trim_start_matches('/').as_bytes().into(),
            kind: FileKind::Directory,
            attr: Some(Arc::new(self.root())),
        });
        Ok(Box::new(Mounts(Some(entries.collect()))))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        match self.route(path)? {
            Some((mounted, path)) => mounted.read(&path, version, offset, length, sink).await,
            None => Err(Self::is_root(path)),
        }
    }

    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        match self.route(path)? {
            Some((mounted, path)) => mounted.read_link(&path).await,
            None => Err(Self::is_root(path)),
        }
    }

    fn changes(&self) -> Option<&dyn Changes> {
        self.options.writes.then_some(self)
    }

    fn on_change(self: Arc<Self>, tell: ChangeListener) {
        let namespace = Arc::downgrade(&self);
        self.view.hub().listen(Box::new(move |heard| {
            if let Some(changed) = namespace.upgrade().and_then(|namespace| namespace.translate(heard)) {
                tell(&changed);
            }
        }));
    }

    fn lends(&self) -> bool {
        self.options.link.short_circuit && self.view.workers().may_be_here()
    }

    async fn lend(&self, path: &UfsPath, attr: &Attr) -> Option<FileLease> {
        let (mounted, path) = self.route(path).ok()??;
        mounted.lend(&path, attr).await
    }
}

/// The mounts as a listing.
struct Mounts(Option<Vec<DirEntry>>);

#[async_trait]
impl Listing for Mounts {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        Ok(self.0.take().filter(|entries| !entries.is_empty()))
    }
}
