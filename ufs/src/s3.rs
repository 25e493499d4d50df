//! Buckets of S3 and of everything that speaks its language.
//!
//! A client of our own, because the read path needs what general libraries hide: attributes and first bytes in one
//! request, exact keys, `If-Match` on every range, and bounds on each wait. Invariants are those of [`UnderStorage`];
//! keys and paths follow [`crate::object::names`].
//!
//! What is there at a name is asked with two requests at the same time, HEAD (or GET) for the object and a listing of
//! one key for the directory: both may exist, and then the directory has the name. Without
//! [`S3Options::check_directory`](crate::options::S3Options) the second is made only when there is no object, or an
//! empty one; an object beside a directory of its name is then shown right only by listings.

mod body;
mod client;
mod credentials;
mod endpoint;
mod errors;
mod list;
mod read;
mod sign;
mod transport;
mod write;
mod xml;

use self::{
    client::S3Client,
    credentials::Credentials,
    endpoint::Endpoint,
    list::{S3Listing, Scope},
};
use crate::{
    deadline::within,
    object::{
        names::{Place, place_of},
        writes::ObjectWrites,
    },
    observe::observe,
    options::UfsOptions,
    retry::Attempts,
    storage::{Head, ReadSink, UnderStorage},
};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version, metrics::UfsOp, worker::Listing,
};
use std::{future::Future, sync::Arc, time::Duration};

/// The longest key.
const KEY_MAX: usize = 1024;
/// The longest that the first look at a bucket may take: somebody waits for the mount.
const PROBE: Duration = Duration::from_secs(10);

/// A bucket, or what is below a prefix of it.
pub struct S3 {
    uri: UfsUri,
    client: Arc<S3Client>,
    /// Where it was looked for first.
    host: String,
    /// Empty, or with a `/` at the end.
    prefix: String,
    /// What is known of any directory.
    directory: Arc<Attr>,
}

/// What a path may be.
enum Target {
    Root,
    Directory(String),
    File(String),
    Either(String),
    Long { base: String, pieces: Vec<String>, begin: String },
}

impl S3 {
    /// The bucket (and prefix) of `uri`. Nothing is sent yet.
    pub fn open(uri: &UfsUri, options: &UfsOptions) -> Result<Self> {
        let environment = &options.environment;
        let profile = options.s3.profile.as_deref();
        let region = match &options.s3.region {
            Some(region) => region.clone(),
            None => ["AWS_REGION", "AWS_DEFAULT_REGION"]
                .into_iter()
                .find_map(|name| environment.get(name).map(str::to_owned))
                .or_else(|| environment.profile_setting(profile, "region"))
                .unwrap_or_else(|| "us-east-1".to_owned()),
        };
        let endpoint = Endpoint::new(uri.authority(), &options.s3, environment, &region)?;
        let host = endpoint.host.clone();
        let credentials = Credentials::new(&options.s3, environment, &region)?;
        let client = Arc::new(S3Client::new(endpoint, credentials, options)?);
        let prefix = if uri.path().is_empty() { String::new() } else { format!("{}/", uri.path()) };
        let directory = Attr::of_object(FileKind::Directory, 0, Timestamp::now(), Version::none());
        Ok(Self { uri: uri.clone(), host, client, prefix, directory: Arc::new(directory) })
    }

    fn target(&self, path: &UfsPath) -> Result<Target> {
        let target = if path.is_root() {
            Target::Root
        } else {
            match place_of(path).ok_or_else(|| self.missing(path))? {
                Place::Plain(key) if key.is_empty() || key.ends_with('/') => {
                    Target::Directory(format!("{}{key}/", self.prefix))
                }
                Place::Plain(key) => Target::Either(format!("{}{key}", self.prefix)),
                Place::File(key) => Target::File(format!("{}{key}", self.prefix)),
                Place::Long { prefix, pieces, begin } => {
                    Target::Long { base: format!("{}{prefix}", self.prefix), pieces, begin }
                }
            }
        };
        match &target {
            Target::Directory(key) | Target::File(key) | Target::Either(key) if key.len() > KEY_MAX => Err(Error::new(
                ErrorKind::NameTooLong,
                format!("{}: {} bytes; keys of S3 have {KEY_MAX} at most", self.shown(path), key.len()),
            )),
            _ => Ok(target),
        }
    }

    fn shown(&self, path: &UfsPath) -> String {
        String::from_utf8_lossy(&self.uri.full_path(path)).into_owned()
    }

    fn missing(&self, path: &UfsPath) -> Error {
        Error::new(ErrorKind::NotFound, format!("{}: no such file or directory", self.shown(path)))
    }

    /// Whether there is any key with this prefix.
    async fn any(&self, op: UfsOp, what: &str, prefix: &str) -> Result<bool> {
        let query = [("encoding-type", "url"), ("list-type", "2"), ("max-keys", "1"), ("prefix", prefix)];
        let page = list::fetch(&self.client, op, what, &query, Attempts::new(&self.client.options, 0)).await?;
        Ok(!page.objects.is_empty() || !page.prefixes.is_empty())
    }

    fn directory(&self) -> Head {
        Head { attr: (*self.directory).clone(), bytes: Bytes::new() }
    }

    /// Attributes, and the first bytes when `max` is not 0.
    async fn look(&self, op: UfsOp, path: &UfsPath, max: u32) -> Result<Head> {
        let what = format!("stat {}", self.shown(path));
        match self.target(path)? {
            Target::Root => Ok(self.directory()),
            Target::Directory(prefix) => match self.any(op, &what, &prefix).await? {
                true => Ok(self.directory()),
                false => Err(self.missing(path)),
            },
            Target::Long { base, pieces, begin } => {
                let scope = Scope { base, begin, lead: pieces, what };
                let (mut listing, _) = S3Listing::start(self.client.clone(), scope, self.directory.clone()).await?;
                listing.next().await?.map(|_| self.directory()).ok_or_else(|| self.missing(path))
            }
            Target::File(key) if key.ends_with('/') => match self.object(op, &what, &key, max).await? {
                // An empty one marks the directory, and is shown as that alone.
                Head { attr, .. } if attr.size == 0 => Err(self.missing(path)),
                head => Ok(head),
            },
            Target::File(key) => {
                let prefix = format!("{key}/");
                match tokio::join!(self.object(op, &what, &key, max), self.any(op, &what, &prefix)) {
                    (Ok(_), Ok(false)) => Err(self.missing(path)),
                    (Ok(head), Ok(true)) => Ok(head),
                    (Err(error), _) | (_, Err(error)) => Err(error),
                }
            }
            Target::Either(key) => {
                let prefix = format!("{key}/");
                let found = self.either(self.object(op, &what, &key, max), self.any(op, &what, &prefix)).await?;
                found.ok_or_else(|| self.missing(path))
            }
        }
    }

    /// What is at a name, by asking for the object and for the directory.
    async fn either(
        &self,
        object: impl Future<Output = Result<Head>>,
        directory: impl Future<Output = Result<bool>>,
    ) -> Result<Option<Head>> {
        let (object, directory) = if self.client.options.s3.check_directory {
            let (object, directory) = tokio::join!(object, directory);
            (object, Some(directory))
        } else {
            let object = object.await;
            let ask = match &object {
                Ok(head) => head.attr.size == 0,
                Err(error) => error.kind() == ErrorKind::NotFound,
            };
            (object, if ask { Some(directory.await) } else { None })
        };
        match (object, directory) {
            (_, Some(Ok(true))) => Ok(Some(self.directory())),
            // Keys may permit to read objects and not to list them.
            (Ok(head), _) => Ok(Some(head)),
            (Err(error), Some(Ok(false)) | None) if error.kind() == ErrorKind::NotFound => Ok(None),
            (Err(error), Some(Err(listing))) if error.kind() == ErrorKind::NotFound => Err(listing),
            (Err(error), _) => Err(error),
        }
    }

    async fn object(&self, op: UfsOp, what: &str, key: &str, max: u32) -> Result<Head> {
        if max == 0 {
            let attr = read::head(&self.client, op, what, key).await?;
            return Ok(Head { attr, bytes: Bytes::new() });
        }
        read::first_bytes(&self.client, what, key, max).await
    }

    async fn start_listing(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let what = format!("list {}", self.shown(path));
        let plain = |base: String| Scope { base, begin: String::new(), lead: Vec::new(), what: what.clone() };
        let (scope, object) = match self.target(path)? {
            Target::Root => (plain(self.prefix.clone()), None),
            Target::Directory(prefix) => (plain(prefix), None),
            Target::Either(key) => (plain(format!("{key}/")), Some(key)),
            Target::Long { base, pieces, begin } => (Scope { base, begin, lead: pieces, what: what.clone() }, None),
            Target::File(_) => return Err(Error::new(ErrorKind::NotADirectory, format!("{what}: is a file"))),
        };
        let (listing, found) = S3Listing::start(self.client.clone(), scope, self.directory.clone()).await?;
        if found || path.is_root() {
            return Ok(Box::new(listing));
        }
        if let Some(key) = object
            && read::head(&self.client, UfsOp::List, &what, &key).await.is_ok()
        {
            return Err(Error::new(ErrorKind::NotADirectory, format!("{what}: is a file")));
        }
        Err(self.missing(path))
    }
}

#[async_trait]
impl UnderStorage for S3 {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    fn objects(&self) -> Option<&dyn ObjectWrites> {
        Some(self)
    }

    async fn probe(&self) -> Result<()> {
        let what = self.uri.to_string();
        let attempts = Attempts::new(&self.client.options, 0).limited(PROBE);
        let query = [("list-type", "2"), ("max-keys", "1"), ("prefix", self.prefix.as_str())];
        let look = async { list::fetch(&self.client, UfsOp::Probe, &what, &query, attempts).await };
        let page = observe(UfsOp::Probe, within(PROBE + PROBE / 4, &what, look)).await?;
        if !self.prefix.is_empty() && page.objects.is_empty() && page.prefixes.is_empty() {
            tracing::warn!("{}: there is nothing below this prefix", self.uri);
        }
        Ok(())
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        observe(UfsOp::Stat, self.look(UfsOp::Stat, path, 0)).await.map(|head| head.attr)
    }

    async fn stat_and_read(&self, path: &UfsPath, max: u32) -> Result<Head> {
        observe(UfsOp::StatAndRead, self.look(UfsOp::StatAndRead, path, max)).await
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        observe(UfsOp::List, self.start_listing(path)).await
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        let what = format!("read {}", self.shown(path));
        match self.target(path)? {
            Target::Either(key) | Target::File(key) => {
                observe(UfsOp::Read, read::range(&self.client, &what, &key, version, offset, length, sink)).await
            }
            _ => Err(Error::new(ErrorKind::IsADirectory, format!("{what}: is a directory"))),
        }
    }
}
