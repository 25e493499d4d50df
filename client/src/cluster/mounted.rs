//! One mount of the namespace: requests to the workers that own its paths, and to the storage itself when they fail.

use super::{ClusterOptions, data::FileKey, link::Link, listing::Entries, view::View};
use crate::mount_table::{MountEntry, storage_options};
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, UfsPath, UfsUri, Version,
    conf::Conf,
    metrics::metrics,
    rpc::{is_worker_failure, worker as proto},
    worker::{FileLease, Listing},
};
use std::sync::{Arc, OnceLock};
use ufs::{ReadSink, UfsOptions, UnderStorage};

/// Workers asked for one request before the storage itself is: the owner and those after it.
pub(super) const ATTEMPTS: usize = 3;

/// A mount.
pub struct Mounted {
    uri: UfsUri,
    storage: Arc<str>,
    view: Arc<View>,
    pub(super) options: ClusterOptions,
    ufs: UfsOptions,
    /// The storage itself, opened when it is first needed.
    direct: OnceLock<Result<Arc<dyn UnderStorage>>>,
}

impl Mounted {
    /// The mount that `entry` describes; its options go before those of `conf`.
    pub fn new(entry: &MountEntry, view: Arc<View>, options: ClusterOptions, conf: &Conf) -> Result<Self> {
        let uri = UfsUri::parse(&entry.ufs)?;
        let ufs = storage_options(conf, &uri, entry)?;
        Ok(Self { storage: uri.text().into(), uri, view, options, ufs, direct: OnceLock::new() })
    }

    /// The storage's URI, as workers are told of it.
    pub fn storage(&self) -> &Arc<str> {
        &self.storage
    }

    /// Attributes, from the owner.
    pub async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        let request = || proto::GetAttrRequest {
            storage: self.storage.to_string(),
            path: path.as_bytes().to_vec(),
            fresh: false,
        };
        for link in self.owners(path, ATTEMPTS) {
            match link.call(async |client| client.get_attr(request()).await).await {
                Ok(reply) => {
                    return reply
                        .attr
                        .map(Attr::from)
                        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "an answer without attributes"));
                }
                Err(error) if is_worker_failure(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.direct("stat")?.stat(path).await.map(remote)
    }

    /// The target of a link, from the owner.
    pub async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        let request = || proto::ReadLinkRequest { storage: self.storage.to_string(), path: path.as_bytes().to_vec() };
        for link in self.owners(path, ATTEMPTS) {
            match link.call(async |client| client.read_link(request()).await).await {
                Ok(reply) => return Ok(reply.target.into()),
                Err(error) if is_worker_failure(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.direct("read the link")?.read_link(path).await
    }

    /// The entries of a directory, from its owner. When a worker fails, before its first batch or in the middle, the next
    /// one goes on, or the storage.
    pub async fn list(self: &Arc<Self>, path: &UfsPath) -> Result<Box<dyn Listing>> {
        Ok(Box::new(Entries::begin(self.clone(), path.clone()).await?))
    }

    /// Has the owner of `path` forget what it knows of it, and tell whoever caches it.
    pub async fn refresh(&self, path: &UfsPath, below: bool) -> Result<()> {
        let request = || proto::RefreshRequest {
            storage: self.storage.to_string(),
            paths: vec![path.as_bytes().to_vec()],
            below,
            relayed: false,
        };
        for link in self.owners(path, ATTEMPTS) {
            match link.call(async |client| client.refresh(request()).await).await {
                Ok(_) => return Ok(()),
                Err(error) if is_worker_failure(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("{}: no worker answers", self.uri)))
    }

    /// A range, from whoever can give it: each segment of it from the workers that it belongs to.
    pub async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        let Some(segment) = self.options.segment else {
            return self.read_segment(path, version, (0, offset, length), &mut Counting::new(sink)).await;
        };
        let (mut at, end) = (offset, offset + length);
        let mut counting = Counting::new(sink);
        while at < end && counting.wants_more {
            let number = at / segment;
            let stop = end.min((number + 1).saturating_mul(segment));
            counting.pushed = 0;
            self.read_segment(path, version, (number, at, stop - at), &mut counting).await?;
            at = stop;
        }
        Ok(())
    }

    /// A range that lies in one segment, given by its number.
    async fn read_segment(
        &self,
        path: &UfsPath,
        version: &Version,
        (segment, offset, length): (u64, u64, u64),
        counting: &mut Counting<'_>,
    ) -> Result<()> {
        let key = FileKey { storage: self.storage.clone(), path: path.clone(), version: version.clone() };
        // The worker compares versions; size and time go along for storages without versions.
        let attr = Attr::of_object(FileKind::File, offset + length, Default::default(), version.clone());
        for link in self.readers(path, segment) {
            let (at, left) = (offset + counting.pushed, length - counting.pushed);
            let spread = at / (8 << 20);
            let mut failed = true;
            let outcome = match link.data(spread).await {
                Ok(connection) => {
                    let (pushed, outcome) = connection.read(&key, &attr, at, left, counting).await;
                    let counter = if connection.is_domain() {
                        &metrics().read_domain_bytes
                    } else {
                        &metrics().read_remote_bytes
                    };
                    counter.inc_by(pushed);
                    // A worker that tells why it cannot read has not failed itself.
                    failed = !connection.is_usable();
                    outcome
                }
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => {
                    link.answered();
                    return Ok(());
                }
                Err(error) if failed => link.failed(&error),
                Err(error) if is_worker_failure(&error) => {}
                // Its handles are gone with a restart: the next connection opens anew.
                Err(error) if error.kind() == ErrorKind::BadHandle => {}
                // It is the worker that has no room for one more.
                Err(error) if error.kind() == ErrorKind::TooManyFiles => {}
                Err(error) => return Err(error),
            }
            if !counting.wants_more {
                return Ok(());
            }
        }
        let (at, left) = (offset + counting.pushed, length - counting.pushed);
        self.direct("read")?.read(path, version, at, left, counting).await
    }

    /// The file on the disk of a worker on this host that may have it, when all of it is there.
    pub async fn lend(&self, path: &UfsPath, attr: &Attr) -> Option<FileLease> {
        if self.options.segment.is_some_and(|segment| attr.size > segment) {
            // No worker has all of it.
            return None;
        }
        let key = FileKey { storage: self.storage.clone(), path: path.clone(), version: attr.version.clone() };
        for link in self.readers(path, 0).into_iter().take(self.options.replicas).filter(|link| link.may_be_here()) {
            let lent = async {
                let connection = link.data(0).await?;
                Ok::<_, Error>(connection.export(&key, attr).await?.map(|file| (connection, file)))
            };
            match lent.await {
                Ok(Some((connection, file))) => {
                    link.answered();
                    return Some(FileLease::new(Arc::new(file.into()), attr.version.clone(), connection));
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%path, %error, "not lent"),
            }
        }
        None
    }

    /// Workers that may be asked for a path, in the order of the ring.
    pub(super) fn owners(&self, path: &UfsPath, count: usize) -> Vec<Arc<Link>> {
        let mut owners = self.view.workers().of(&self.uri.full_path(path), count);
        owners.retain(|link| link.is_up());
        owners
    }

    /// Workers that changes of a path may go to: those that are thought to be away too, but last, since a change has no
    /// other way.
    pub(super) fn writers(&self, path: &UfsPath) -> Vec<Arc<Link>> {
        let mut owners = self.view.workers().of(&self.uri.full_path(path), ATTEMPTS);
        owners.sort_by_key(|link| !link.is_up());
        owners
    }

    /// Workers to read a segment from: the replicas, those on this host and the least busy first, then the others in ring
    /// order. The first segment belongs to the workers of the file itself.
    fn readers(&self, path: &UfsPath, segment: u64) -> Vec<Arc<Link>> {
        let mut key = self.uri.full_path(path);
        if segment > 0 {
            // No path has such an end: it has a byte that none may have.
            key.extend_from_slice(format!("\0{segment}").as_bytes());
        }
        let mut owners = self.view.workers().of(&key, self.options.replicas.max(ATTEMPTS));
        let replicas = self.options.replicas.min(owners.len());
        owners[..replicas].sort_by_key(|link| (!link.is_here(), link.outstanding()));
        owners.retain(|link| link.is_up());
        owners
    }

    pub(super) fn direct(&self, what: &str) -> Result<&Arc<dyn UnderStorage>> {
        if !self.options.ufs_fallback {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "cannot {what} in {}: no worker answers, and alluxio.dora.client.ufs.fallback.enabled is false",
                    self.uri
                ),
            ));
        }
        let direct = self.direct.get_or_init(|| ufs::open(&self.uri, &self.ufs));
        direct.as_ref().map_err(Clone::clone)
    }
}

/// The attributes of a storage that was asked directly, as a worker would have told them: to whoever sits above, a file is
/// the same whoever told of it.
pub(super) fn remote(attr: Attr) -> Attr {
    Attr { local: None, ..attr }
}

/// Counts what a sink was given, so that another worker can go on from there.
struct Counting<'s> {
    sink: &'s mut dyn ReadSink,
    pushed: u64,
    wants_more: bool,
}

impl<'s> Counting<'s> {
    fn new(sink: &'s mut dyn ReadSink) -> Self {
        Self { sink, pushed: 0, wants_more: true }
    }
}

impl ReadSink for Counting<'_> {
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.pushed += bytes.len() as u64;
        self.wants_more = self.sink.push(bytes);
        self.wants_more
    }
}
