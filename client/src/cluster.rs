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
mod data;
mod link;
mod mounted;
mod view;

pub use breaker::Breaker;
pub use data::{DataConnection, FileKey};
pub use link::{Link, LinkOptions};
pub use view::{View, Workers};

use crate::{
    etcd::{Etcd, EtcdOptions},
    membership::{Membership, unknown_cluster},
    mount_table::{MountEntry, MountTableStore},
};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    conf::{Conf, keys},
    worker::{DirEntry, FileLease, Listing},
};
use mounted::Mounted;
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use ufs::{ReadSink, UnderStorage};

/// How a client uses a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Virtual nodes of each worker on the ring.
    pub virtual_nodes: u32,
    /// Only live workers are on the ring.
    pub dynamic_ring: bool,
    /// The storage itself is read when no worker answers.
    pub ufs_fallback: bool,
    /// On how many workers a file may be cached.
    pub replicas: usize,
    /// How workers are talked to.
    pub link: LinkOptions,
}

impl ClusterOptions {
    /// What the configuration says.
    pub fn from_conf(conf: &Conf) -> Self {
        let cluster = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Self {
            virtual_nodes: u32::try_from(conf.get(&keys::cluster::RING_VIRTUAL_NODES)).unwrap_or(u32::MAX),
            dynamic_ring: conf.get(&keys::cluster::DYNAMIC_RING_ENABLED),
            ufs_fallback: conf.get(&keys::cluster::UFS_FALLBACK_ENABLED),
            replicas: cluster(conf.get(&keys::cluster::REPLICATION_MIN)).max(1),
            link: LinkOptions {
                name: format!("client {}", std::process::id()),
                short_circuit: conf.get(&keys::cluster::SHORT_CIRCUIT_ENABLED),
                patience: conf.get(&keys::user::UFS_DEADLINE).min(Duration::from_secs(30)),
            },
        }
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
}

impl Namespace {
    /// The namespace of the cluster of this name, reached as `conf` says. `at`: the path in it that becomes the root (`/` for all of it).
    ///
    /// # Errors
    /// etcd cannot be reached, the configuration is not complete, or the cluster has neither workers nor mounts.
    pub async fn connect(conf: &Conf, cluster: &str, at: &UfsPath) -> Result<Arc<Self>> {
        let etcd = Etcd::connect(&EtcdOptions::from_conf(conf)?).await?;
        let membership = Membership::new(etcd.clone(), cluster)?;
        let options = ClusterOptions::from_conf(conf);
        let view = View::follow(&membership, MountTableStore::new(etcd.clone(), cluster), options.clone()).await?;
        if view.mounts().is_empty() && membership.view().await?.workers.is_empty() {
            return Err(unknown_cluster(&etcd, cluster).await);
        }
        let uri = UfsUri::parse(&format!("alluxio://{cluster}/{}", String::from_utf8_lossy(at.as_bytes())))?;
        Ok(Arc::new(Self {
            uri,
            view,
            options,
            conf: conf.clone(),
            mounted: Mutex::default(),
            since: Timestamp::now(),
        }))
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
        mounted.insert(point.to_owned(), (entry.clone(), fresh.clone()));
        Ok(fresh)
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
