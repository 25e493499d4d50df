//! Google, Azure, Aliyun and Hadoop storages, through OpenDAL.
//!
//! OpenDAL folds `a//b` to `a/b` and cuts white space off the ends of a path, so names that begin or end a path with
//! white space are refused here instead of leading to another file, and keys with empty segments are not seen: for those
//! services the rule of [`crate::object::names`] does not hold, and docs/SEMANTICS.md says so. An object and a directory
//! of one name: the object is seen.
//!
//! A version is the etag where the service has one, else size and time. Where the service takes `If-Match` each range
//! carries it; elsewhere the attributes are compared before and after the bytes were read.
//!
//! Attributes and first bytes come in two requests here, not in one as from S3. gs, abfs, oss and webhdfs were run against
//! imitations (`tests/services`) that answer as the documentation of the services says; hdfs was never run against a real
//! one, see `services/hdfs.rs`.

mod config;
#[cfg(feature = "hdfs")]
mod hdfs;
mod transport;

use crate::{
    deadline::{timed_out, within},
    observe::observe,
    options::UfsOptions,
    retry::Attempts,
    storage::{ReadSink, UnderStorage},
};
use async_trait::async_trait;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    metrics::{UfsOp, metrics},
    worker::{DirEntry, Listing},
};
use futures::{StreamExt, TryStreamExt};
use opendal::{EntryMode, Lister, Metadata, Operator};
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::Semaphore;

pub use config::SCHEMES;

/// Entries of a batch at most.
const BATCH: usize = 1000;
/// The longest that the first look may take: somebody waits for the mount.
const PROBE: Duration = Duration::from_secs(12);

/// A storage behind OpenDAL.
pub struct Service {
    uri: UfsUri,
    operator: Operator,
    options: UfsOptions,
    places: Semaphore,
    /// Whether ranges can be asked for with `If-Match`.
    conditional: bool,
    started: Timestamp,
}

impl Service {
    /// The storage at `uri`. Nothing is sent yet.
    pub fn open(uri: &UfsUri, options: &UfsOptions) -> Result<Self> {
        let operator = config::operator(uri, options)?;
        let conditional = operator.info().capability().read_with_if_match;
        Ok(Self {
            uri: uri.clone(),
            operator,
            options: options.clone(),
            places: Semaphore::new(options.concurrency.max(1)),
            conditional,
            started: Timestamp::now(),
        })
    }

    fn shown(&self, path: &UfsPath) -> String {
        String::from_utf8_lossy(&self.uri.full_path(path)).into_owned()
    }

    /// The path as OpenDAL takes it, without a `/` at the end.
    fn key<'a>(&self, path: &'a UfsPath) -> Result<&'a str> {
        let text = std::str::from_utf8(path.as_bytes()).ok();
        text.filter(|text| text.trim() == *text).ok_or_else(|| {
            let why = "names that are no UTF-8, or begin or end with white space, do not work here";
            Error::new(ErrorKind::NotFound, format!("{}: {why}", self.shown(path)))
        })
    }

    /// Makes a call of OpenDAL, with its bounds, again while that may help.
    async fn call<T, F>(&self, op: UfsOp, what: &str, attempts: &mut Attempts, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = opendal::Result<T>>,
    {
        loop {
            metrics().ufs_requests.of(op).inc();
            let wait = attempts.left().min(self.options.deadline);
            let error = match tokio::time::timeout(wait, call()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) if !error.is_temporary() => return Err(failed(what, error)),
                Ok(Err(error)) => failed(what, error),
                Err(_) => timed_out(wait, what),
            };
            attempts.again(error).await?;
        }
    }

    async fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        let wait = self.options.give_up;
        match tokio::time::timeout(wait, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(timed_out(wait, &self.uri.to_string())),
        }
    }

    async fn look(&self, op: UfsOp, path: &UfsPath) -> Result<Attr> {
        if path.is_root() {
            return Ok(Attr::of_object(FileKind::Directory, 0, self.started, Version::none()));
        }
        let what = format!("stat {}", self.shown(path));
        let key = self.key(path)?;
        let _place = self.place().await?;
        let mut attempts = Attempts::new(&self.options, 0);
        match self.call(op, &what, &mut attempts, || self.operator.stat(key)).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                let key = format!("{key}/");
                let directory = self.call(op, &what, &mut attempts, || self.operator.stat(&key)).await?;
                if directory.is_dir() { Ok(self.attr(&directory)) } else { Err(error) }
            }
            found => Ok(self.attr(&found?)),
        }
    }

    fn attr(&self, metadata: &Metadata) -> Attr {
        attr(metadata, self.started)
    }
}

fn attr(metadata: &Metadata, started: Timestamp) -> Attr {
    let modified = metadata.last_modified().map(|time| Timestamp::from(SystemTime::from(time)));
    if metadata.mode() == EntryMode::DIR {
        return Attr::of_object(FileKind::Directory, 0, modified.unwrap_or(started), Version::none());
    }
    // Whole seconds: a listing may have more digits than a header.
    let modified = Timestamp { sec: modified.map_or(0, |time| time.sec), nsec: 0 };
    let size = metadata.content_length();
    let version = match metadata.etag().filter(|etag| !etag.is_empty()) {
        Some(etag) => Version::new(etag),
        None => Version::new(format!("@{size}-{}", modified.sec)),
    };
    Attr::of_object(FileKind::File, size, modified, version)
}

/// Whether a failure of the network lies behind it, which not every service marks as passing.
fn is_network(error: &opendal::Error) -> bool {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |error| error.source()).any(|error| error.is::<std::io::Error>())
}

/// The error that OpenDAL reports, in our terms. Its context lines are left out: they may quote whole answers.
fn failed(what: &str, error: opendal::Error) -> Error {
    let (kind, advice) = match error.kind() {
        opendal::ErrorKind::NotFound => (ErrorKind::NotFound, "there is no such file, directory or bucket"),
        opendal::ErrorKind::PermissionDenied => {
            (ErrorKind::PermissionDenied, "access is denied; check the credentials and their permissions")
        }
        opendal::ErrorKind::IsADirectory => (ErrorKind::IsADirectory, "is a directory"),
        opendal::ErrorKind::NotADirectory => (ErrorKind::NotADirectory, "is no directory"),
        opendal::ErrorKind::ConfigInvalid => (ErrorKind::InvalidArgument, "the settings of the storage are wrong"),
        opendal::ErrorKind::Unsupported => (ErrorKind::Unsupported, "the service has no such operation"),
        opendal::ErrorKind::RateLimited => (ErrorKind::Unavailable, "the service is overloaded"),
        opendal::ErrorKind::ConditionNotMatch | opendal::ErrorKind::RangeNotSatisfied => {
            (ErrorKind::Stale, "it changed meanwhile")
        }
        _ if error.is_temporary() || is_network(&error) => {
            (ErrorKind::Unavailable, "the service cannot be reached or failed")
        }
        _ => (ErrorKind::Io, "the service failed"),
    };
    let said: String = error.message().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    Error::new(kind, format!("{what}: {advice} ({said})"))
}

#[async_trait]
impl UnderStorage for Service {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    async fn probe(&self) -> Result<()> {
        let what = self.uri.to_string();
        let look = async {
            let mut attempts = Attempts::new(&self.options, 0).limited(PROBE);
            let mut lister = self.call(UfsOp::Probe, &what, &mut attempts, || self.operator.lister("/")).await?;
            match lister.next().await {
                Some(Err(error)) => Err(failed(&what, error)),
                _ => Ok(()),
            }
        };
        observe(UfsOp::Probe, within(PROBE, &what, look)).await
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        observe(UfsOp::Stat, self.look(UfsOp::Stat, path)).await
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let what = format!("list {}", self.shown(path));
        let key = self.key(path)?;
        let base = if key.is_empty() { String::new() } else { format!("{key}/") };
        let mut attempts = Attempts::new(&self.options, 0);
        let at = if base.is_empty() { "/" } else { base.as_str() };
        let start = self.call(UfsOp::List, &what, &mut attempts, || self.operator.lister(at));
        let lister = observe(UfsOp::List, start).await?;
        let mut listing = ServiceListing {
            lister,
            base,
            what,
            options: self.options.clone(),
            started: self.started,
            first: None,
            end: None,
        };
        listing.first = listing.batch().await?;
        // Object stores list nothing for what is not there, and for what is a file.
        if listing.first.is_none() && !path.is_root() && !self.look(UfsOp::List, path).await?.is_dir() {
            return Err(Error::new(ErrorKind::NotADirectory, format!("list {}: is a file", self.shown(path))));
        }
        Ok(Box::new(listing))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        observe(UfsOp::Read, self.read_range(path, version, offset, length, sink)).await
    }
}

impl Service {
    async fn read_range(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        let what = format!("read {}", self.shown(path));
        let stale = || Error::new(ErrorKind::Stale, format!("{what}: it changed since it was opened"));
        let gone = |error: Error| if error.kind() == ErrorKind::NotFound { stale() } else { error };
        let key = self.key(path)?;
        let etag = Some(version.as_str()).filter(|etag| self.conditional && !etag.is_empty() && !etag.starts_with('@'));
        let unguarded = etag.is_none() && !version.is_none();
        if unguarded && self.look(UfsOp::Read, path).await.map_err(gone)?.version != *version {
            return Err(stale());
        }
        let _place = self.place().await?;
        let mut attempts = Attempts::new(&self.options, length);
        let (mut at, end) = (offset, offset.saturating_add(length));
        while at < end {
            let reader = || async {
                let mut with = self.operator.reader_with(key);
                if let Some(etag) = etag {
                    with = with.if_match(etag);
                }
                with.await?.into_stream(at..end).await
            };
            let mut stream = self.call(UfsOp::Read, &what, &mut attempts, reader).await.map_err(gone)?;
            let error = loop {
                let wait = attempts.left().min(self.options.deadline);
                let buffer = match tokio::time::timeout(wait, stream.try_next()).await {
                    Err(_) => break timed_out(wait, &what),
                    Ok(Err(error)) if error.is_temporary() => break failed(&what, error),
                    Ok(Err(error)) => return Err(gone(failed(&what, error))),
                    Ok(Ok(None)) if at == end => break Error::new(ErrorKind::Io, ""),
                    Ok(Ok(None)) => {
                        break Error::new(ErrorKind::Io, format!("{what}: the answer ended {} bytes early", end - at));
                    }
                    Ok(Ok(Some(buffer))) => buffer,
                };
                attempts.progress();
                for bytes in buffer {
                    let fits = bytes.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                    at += fits as u64;
                    metrics().ufs_read_bytes.inc_by(fits as u64);
                    if fits > 0 && !sink.push(&bytes[..fits]) {
                        return Ok(());
                    }
                }
            };
            if at < end {
                attempts.again(error).await?;
            }
        }
        if unguarded && self.look(UfsOp::Read, path).await.map_err(gone)?.version != *version {
            return Err(stale());
        }
        Ok(())
    }
}

/// A directory being listed.
struct ServiceListing {
    lister: Lister,
    base: String,
    what: String,
    options: UfsOptions,
    started: Timestamp,
    first: Option<Vec<DirEntry>>,
    /// The end, be it by an error.
    end: Option<Result<()>>,
}

impl ServiceListing {
    async fn batch(&mut self) -> Result<Option<Vec<DirEntry>>> {
        let mut batch = Vec::new();
        while self.end.is_none() && batch.len() < BATCH {
            // What has arrived already is not held back for what has not.
            let next = if batch.is_empty() {
                // The transport makes requests again within that time.
                match tokio::time::timeout(self.options.give_up, self.lister.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.end = Some(Err(timed_out(self.options.give_up, &self.what)));
                        break;
                    }
                }
            } else {
                match futures::FutureExt::now_or_never(self.lister.next()) {
                    Some(next) => next,
                    None => break,
                }
            };
            match next {
                Some(Ok(entry)) => batch.extend(self.entry(&entry)),
                Some(Err(error)) => self.end = Some(Err(failed(&self.what, error))),
                None => self.end = Some(Ok(())),
            }
        }
        match &self.end {
            Some(Err(error)) if batch.is_empty() => Err(error.clone()),
            _ => Ok((!batch.is_empty()).then_some(batch)),
        }
    }

    fn entry(&self, entry: &opendal::Entry) -> Option<DirEntry> {
        let name = entry.path().strip_prefix(self.base.as_str())?;
        let name = name.strip_suffix('/').unwrap_or(name);
        if name.is_empty() || name.contains('/') {
            return None;
        }
        let metadata = entry.metadata();
        let kind = if metadata.mode() == EntryMode::DIR { FileKind::Directory } else { FileKind::File };
        // A listing that tells neither time nor etag is not enough to tell versions apart.
        let enough = kind == FileKind::Directory || metadata.last_modified().is_some();
        let attr = enough.then(|| Arc::new(attr(metadata, self.started)));
        Some(DirEntry { name: name.as_bytes().into(), kind, attr })
    }
}

#[async_trait]
impl Listing for ServiceListing {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        match self.first.take() {
            Some(batch) => Ok(Some(batch)),
            None => self.batch().await,
        }
    }
}
