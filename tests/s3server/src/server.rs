//! The handle of a running server, for tests and benchmarks in the same process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use parking_lot::RwLock;

use crate::auth::Credentials;
use crate::bucket::{Bucket, Buckets, Condition, valid};
use crate::counters::{Counters, Record};
use crate::faults::{Fault, FaultId, Faults};
use crate::list;
use crate::listener::{Listener, Settings};
use crate::multipart::Uploads;
use crate::operation::Operation;
use crate::service::Service;
use crate::storage::synthetic::Synthetic;
use crate::storage::{Adopted, Description, Object, Writer, disk, memory};
use crate::tls::{TlsPem, acceptor};

/// How a server is to be. The default: a free port of 127.0.0.1, two threads, everything in memory, anybody may do anything.
#[derive(Clone, Debug)]
pub struct Options {
    /// Address to listen on.
    pub address: IpAddr,
    /// Port to listen on, 0 for a free one.
    pub port: u16,
    /// Threads that answer requests.
    pub threads: usize,
    /// Directory for what is uploaded, kept for the next server; memory when `None`.
    pub root: Option<PathBuf>,
    /// Buckets that exist from the start.
    pub buckets: Vec<String>,
    /// Keys that requests must be signed with; none: signatures are not looked at.
    pub credentials: Vec<Credentials>,
    /// The region that signatures must name; `None`: any, and the server says us-east-1.
    pub region: Option<String>,
    /// The domain whose host names are buckets (`bucket.domain`); `None`: any host name that begins with a bucket that exists.
    pub domain: Option<String>,
    /// Serve https with this certificate.
    pub tls: Option<TlsPem>,
    /// Time added before each answer.
    pub latency: Duration,
    /// Requests kept in the log.
    pub log_size: usize,
    /// Keys on a page of a listing at most.
    pub page_limit: usize,
    /// The least size in bytes of a part that is not the last.
    pub min_part_size: u64,
    /// Connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Answer `/-/counters`, `/-/reset` and `/-/latency?ms=N`.
    pub control: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            threads: 2,
            root: None,
            buckets: Vec::new(),
            credentials: Vec::new(),
            region: None,
            domain: None,
            tls: None,
            latency: Duration::ZERO,
            log_size: 4096,
            page_limit: 1000,
            min_part_size: 5 << 20,
            max_connections: 4096,
            control: false,
        }
    }
}

impl Options {
    /// The default with these buckets.
    pub fn with_buckets<S: Into<String>>(buckets: impl IntoIterator<Item = S>) -> Self {
        Options { buckets: buckets.into_iter().map(Into::into).collect(), ..Options::default() }
    }
}

/// A running server; dropping it stops it. All methods may be called from any thread, inside and outside of async code.
pub struct Server {
    service: Arc<Service>,
    listener: Listener,
    tls: bool,
}

impl Server {
    /// Starts a server.
    pub fn start(options: Options) -> anyhow::Result<Self> {
        let buckets = Buckets::new(options.root.clone())
            .with_context(|| format!("cannot use {:?} as root", options.root.as_deref().unwrap_or(Path::new(""))))?;
        let tls = options.tls.as_ref().map(acceptor).transpose()?;
        let service = Arc::new(Service {
            buckets,
            uploads: Uploads::new(options.min_part_size),
            counters: Arc::new(Counters::new(options.log_size)),
            faults: Faults::default(),
            credentials: RwLock::new(Arc::new(options.credentials)),
            region: options.region,
            domain: options.domain,
            page_limit: options.page_limit.clamp(1, 1000),
            latency: AtomicU64::new(micros(options.latency)),
            control: options.control,
            requests: AtomicU64::new(1),
        });
        let settings = Settings {
            address: options.address,
            port: options.port,
            threads: options.threads,
            max_connections: options.max_connections,
            tls,
        };
        for bucket in &options.buckets {
            create(&service, bucket)?;
        }
        let listener = Listener::start(settings, service.clone())?;
        Ok(Server { service, listener, tls: options.tls.is_some() })
    }

    /// Address and port.
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The endpoint, for instance `http://127.0.0.1:41234`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address())
    }

    /// Stops the server: connections are reset, the port is free. The objects can still be asked for.
    pub fn stop(&mut self) {
        self.listener.stop();
    }

    /// Imitates an outage: all connections are reset, and new ones as they come. The port stays taken.
    pub fn pause(&self) {
        self.listener.pause();
    }

    /// Ends the outage.
    pub fn resume(&self) {
        self.listener.resume();
    }

    /// Makes a bucket; one that exists stays as it is.
    pub fn create_bucket(&self, name: &str) -> anyhow::Result<()> {
        create(&self.service, name).map(|_| ())
    }

    fn bucket(&self, name: &str) -> anyhow::Result<Arc<Bucket>> {
        self.service.buckets.get(name).with_context(|| format!("there is no bucket {name}"))
    }

    fn insert(&self, bucket: &Bucket, key: &str, object: Object) -> anyhow::Result<Arc<Object>> {
        bucket.insert(key, object, &Condition::default()).map_err(|error| anyhow::anyhow!("{}", error.message()))
    }

    /// Puts an object (in memory, or below the root); the etag is its MD5.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) -> anyhow::Result<Arc<Object>> {
        self.put_with(bucket, key, bytes, &[])
    }

    /// As [`Server::put`], with headers to store (`x-amz-meta-…`, `content-type`).
    pub fn put_with(
        &self,
        bucket: &str,
        key: &str,
        bytes: impl Into<Bytes>,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Arc<Object>> {
        let bucket = self.bucket(bucket)?;
        let bytes = bytes.into();
        let headers = headers
            .iter()
            .map(|(name, value)| Ok((HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?)))
            .collect::<anyhow::Result<_>>()?;
        let description = Description { etag: memory::etag(&bytes), modified: SystemTime::now(), headers };
        let object = match bucket.directory() {
            None => memory::object(bytes, description),
            Some(directory) => {
                let mut writer = Writer::new(Some(directory), bytes.len() as u64)?;
                writer.write(&bytes)?;
                writer.object(key, description)?
            }
        };
        self.insert(&bucket, key, object)
    }

    /// Makes a file an object without copying it. The file must stay as it is; it is never removed. The etag follows from inode, size and
    /// time.
    pub fn put_file(&self, bucket: &str, key: &str, path: impl AsRef<Path>) -> anyhow::Result<Arc<Object>> {
        let path = path.as_ref();
        let metadata = path.metadata().with_context(|| format!("cannot use {}", path.display()))?;
        if !metadata.is_file() {
            bail!("{} is not a regular file", path.display());
        }
        let path = std::path::absolute(path)?;
        self.insert(&*self.bucket(bucket)?, key, disk::adopt(path, &metadata))
    }

    /// Makes every file below a directory an object without copying or reading it; keys are the paths below the directory.
    pub fn adopt(&self, bucket: &str, directory: impl AsRef<Path>) -> anyhow::Result<Adopted> {
        let directory = std::path::absolute(directory.as_ref())?;
        self.bucket(bucket)?.adopt(&directory).with_context(|| format!("cannot adopt {}", directory.display()))
    }

    /// Adds a family of objects that cost nothing.
    pub fn synthetic(&self, bucket: &str, family: Synthetic) -> anyhow::Result<()> {
        self.bucket(bucket)?.index.write().synthetic.push(family);
        Ok(())
    }

    /// Removes an object; whether it was there.
    pub fn delete(&self, bucket: &str, key: &str) -> anyhow::Result<bool> {
        self.bucket(bucket)?.remove(key, &Condition::default()).map_err(|error| anyhow::anyhow!("{}", error.message()))
    }

    /// The object with this key.
    pub fn object(&self, bucket: &str, key: &str) -> Option<Arc<Object>> {
        self.service.buckets.get(bucket)?.get(key)
    }

    /// All keys of a bucket in their order, none when there is no such bucket.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.service.buckets.get(bucket).map_or_else(Vec::new, |bucket| list::keys(&bucket.index.read()))
    }

    /// Uploads in parts that are neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.service.uploads.count()
    }

    /// Replaces the keys that the server accepts; requests that are under way are not concerned.
    pub fn set_credentials(&self, credentials: Vec<Credentials>) {
        *self.service.credentials.write() = Arc::new(credentials);
    }

    /// Sets the time added before each answer.
    pub fn set_latency(&self, latency: Duration) {
        self.service.latency.store(micros(latency), Ordering::Relaxed);
    }

    /// Adds a rule to misbehave.
    pub fn fault(&self, fault: Fault) -> FaultId {
        self.service.faults.add(fault)
    }

    /// Removes a rule. Answers that it bent already stay bent.
    pub fn clear_fault(&self, id: FaultId) {
        self.service.faults.remove(id);
    }

    /// Removes all rules.
    pub fn clear_faults(&self) {
        self.service.faults.clear();
    }

    /// How often a rule struck.
    pub fn fault_hits(&self, id: FaultId) -> u64 {
        self.service.faults.hits(id)
    }

    /// Requests of an operation since the last reset.
    pub fn count(&self, operation: Operation) -> u64 {
        self.service.counters.of(operation)
    }

    /// All requests since the last reset.
    pub fn requests(&self) -> u64 {
        self.service.counters.total()
    }

    /// Answers with this HTTP status since the last reset.
    pub fn answers(&self, status: u16) -> u64 {
        self.service.counters.of_status(status)
    }

    /// Bytes of bodies handed to connections since the last reset.
    pub fn bytes_sent(&self) -> u64 {
        self.service.counters.sent()
    }

    /// Bytes of bodies received since the last reset, frames of aws-chunked included.
    pub fn bytes_received(&self) -> u64 {
        self.service.counters.received()
    }

    /// Connections accepted since the last reset.
    pub fn connections(&self) -> u64 {
        self.service.counters.connections()
    }

    /// Requests that wait for the head of their answer.
    pub fn active(&self) -> usize {
        self.service.counters.active()
    }

    /// The most requests that waited at the same time since the last reset.
    pub fn most_active(&self) -> usize {
        self.service.counters.most_active()
    }

    /// The last requests, oldest first.
    pub fn log(&self) -> Vec<Record> {
        self.service.counters.log()
    }

    /// Sets all counters to zero and empties the log.
    pub fn reset_counters(&self) {
        self.service.counters.reset();
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn create(service: &Service, name: &str) -> anyhow::Result<Arc<Bucket>> {
    if !valid(name) {
        bail!("{name:?} is not the name of a bucket");
    }
    Ok(service.buckets.create(name).with_context(|| format!("cannot create the bucket {name}"))?.0)
}
