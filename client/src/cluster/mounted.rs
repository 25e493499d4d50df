//! One mount of the namespace: requests to the workers that own its paths, and to the storage itself when they fail.

use super::{ClusterOptions, data::FileKey, link::Link, view::View};
use crate::mount_table::MountEntry;
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, UfsPath, UfsUri, Version,
    conf::{Conf, Source},
    metrics::metrics,
    rpc::{self, is_worker_failure, worker as proto},
    worker::{DirEntry, FileLease, Listing},
};
use std::sync::{Arc, OnceLock};
use tonic::Streaming;
use ufs::{ReadSink, UfsOptions, UnderStorage};

/// Workers asked for one request before the storage itself is: the owner and those after it.
const ATTEMPTS: usize = 3;

/// A mount.
pub struct Mounted {
    uri: UfsUri,
    storage: Arc<str>,
    view: Arc<View>,
    options: ClusterOptions,
    conf: Conf,
    /// The storage itself, opened when it is first needed.
    direct: OnceLock<Result<Arc<dyn UnderStorage>>>,
}

impl Mounted {
    /// The mount that `entry` describes; its options go before those of `conf`.
    pub fn new(entry: &MountEntry, view: Arc<View>, options: ClusterOptions, conf: &Conf) -> Result<Self> {
        let mut builder = conf.to_builder();
        for (key, value) in &entry.properties {
            builder = builder.set(key, value, Source::CommandLine(format!("the mount of {}", entry.ufs)));
        }
        let conf = builder.load().map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, format!("the options of the mount of {}: {error}", entry.ufs))
        })?;
        let uri = UfsUri::parse(&entry.ufs)?;
        Ok(Self { storage: uri.to_string().into(), uri, view, options, conf, direct: OnceLock::new() })
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
        self.direct("stat")?.stat(path).await
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

    /// The entries of a directory, from its owner. A worker that fails before its first batch is replaced by the next one,
    /// or by the storage; one that fails later fails the listing, and whoever lists again asks another.
    pub async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let request = || proto::ListRequest { storage: self.storage.to_string(), path: path.as_bytes().to_vec() };
        for link in self.owners(path, ATTEMPTS) {
            match link.call(async |client| client.list(request()).await).await {
                Ok(stream) => {
                    let mut listing = Remote { stream, link: link.clone(), patience: self.options.link.patience };
                    // The first batch decides whether this worker can list at all.
                    match listing.next().await {
                        Ok(first) => return Ok(Box::new(Begun { first, rest: listing })),
                        Err(error) if is_worker_failure(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
                Err(error) if is_worker_failure(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.direct("list")?.list(path).await
    }

    /// A range, from whoever can give it.
    pub async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        let key = FileKey { storage: self.storage.clone(), path: path.clone(), version: version.clone() };
        // The worker compares versions; size and time go along for storages without versions.
        let attr = Attr::of_object(FileKind::File, offset + length, Default::default(), version.clone());
        let mut counting = Counting { sink, pushed: 0, wants_more: true };
        for link in self.readers(path) {
            let (at, left) = (offset + counting.pushed, length - counting.pushed);
            let spread = at / (8 << 20);
            let mut failed = true;
            let outcome = match link.data(spread).await {
                Ok(connection) => {
                    let (pushed, outcome) = connection.read(&key, &attr, at, left, &mut counting).await;
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
                Err(error) => return Err(error),
            }
            if !counting.wants_more {
                return Ok(());
            }
        }
        let (at, left) = (offset + counting.pushed, length - counting.pushed);
        self.direct("read")?.read(path, version, at, left, &mut counting).await
    }

    /// The file on the disk of a worker on this host that may have it, when all of it is there.
    pub async fn lend(&self, path: &UfsPath, attr: &Attr) -> Option<FileLease> {
        let key = FileKey { storage: self.storage.clone(), path: path.clone(), version: attr.version.clone() };
        for link in self.readers(path).into_iter().take(self.options.replicas).filter(|link| link.may_be_here()) {
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
    fn owners(&self, path: &UfsPath, count: usize) -> Vec<Arc<Link>> {
        let mut owners = self.view.workers().of(&self.uri.full_path(path), count);
        owners.retain(|link| link.is_up());
        owners
    }

    /// Workers to read from: the replicas, those on this host and the least busy first, then the others in ring order.
    fn readers(&self, path: &UfsPath) -> Vec<Arc<Link>> {
        let mut owners = self.view.workers().of(&self.uri.full_path(path), self.options.replicas.max(ATTEMPTS));
        let replicas = self.options.replicas.min(owners.len());
        owners[..replicas].sort_by_key(|link| (!link.is_here(), link.outstanding()));
        owners.retain(|link| link.is_up());
        owners
    }

    fn direct(&self, what: &str) -> Result<&Arc<dyn UnderStorage>> {
        if !self.options.ufs_fallback {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "cannot {what} in {}: no worker answers, and alluxio.dora.client.ufs.fallback.enabled is false",
                    self.uri
                ),
            ));
        }
        let direct = self.direct.get_or_init(|| ufs::open(&self.uri, &UfsOptions::from_conf(&self.conf, &self.uri)));
        direct.as_ref().map_err(Clone::clone)
    }
}

/// Counts what a sink was given, so that another worker can go on from there.
struct Counting<'s> {
    sink: &'s mut dyn ReadSink,
    pushed: u64,
    wants_more: bool,
}

impl ReadSink for Counting<'_> {
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.pushed += bytes.len() as u64;
        self.wants_more = self.sink.push(bytes);
        self.wants_more
    }
}

/// A listing that a worker sends.
struct Remote {
    stream: Streaming<proto::ListReply>,
    link: Arc<Link>,
    patience: std::time::Duration,
}

#[async_trait]
impl Listing for Remote {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        loop {
            let batch = match tokio::time::timeout(self.patience, self.stream.message()).await {
                Ok(Ok(Some(batch))) => batch,
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(status)) => return Err(rpc::error_of(&status)),
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::TimedOut,
                        format!("worker {} stopped in the middle of a listing", self.link.entry().shown()),
                    ));
                }
            };
            let entries: Vec<DirEntry> = batch
                .entries
                .into_iter()
                .map(|entry| DirEntry {
                    name: entry.name.into(),
                    kind: FileKind::from_mode(entry.kind),
                    attr: entry.attr.map(|attr| Arc::new(Attr::from(attr))),
                })
                .collect();
            if !entries.is_empty() {
                return Ok(Some(entries));
            }
        }
    }
}

/// A listing whose first batch is there already.
struct Begun {
    first: Option<Vec<DirEntry>>,
    rest: Remote,
}

#[async_trait]
impl Listing for Begun {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.rest.next().await,
        }
    }
}
