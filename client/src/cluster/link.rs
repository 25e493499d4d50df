//! One worker as this client sees it: its connections, and whether it is worth asking.
//!
//! Connections are made when they are first needed and replaced when they broke. Whether the worker is on this host is
//! found out, not guessed from names: its domain socket answers here, with its identity, or it does not. Where it did not
//! it is tried again now and then while the worker is used, in the background, and connections over the network are
//! replaced once it does.

use super::{
    breaker::Breaker,
    changes::{Hub, Subscription},
    data::{DataConnection, Dial, SILENCE},
    writing::lane::Lane,
};
use crate::membership::WorkerEntry;
use common::{
    Error, ErrorKind, Result,
    conf::{
        Conf,
        keys::{cluster as keys, user},
    },
    rpc::{self, worker::worker_client::WorkerClient},
    tls::ClientTls,
};
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

/// Data connections for each worker by TCP: one stream is bound by one core's copying, several are not.
const CONNECTIONS: usize = 4;
/// How often a domain socket that did not answer is tried again while the worker is used.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Whether the worker is on this host.
mod here {
    /// Not tried yet.
    pub const UNKNOWN: u8 = 0;
    /// Its domain socket answers.
    pub const YES: u8 = 1;
    /// It did not when it was last tried.
    pub const NO: u8 = 2;
}

/// How workers are talked to.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// This client, for the workers' logs.
    pub name: String,
    /// Whether domain sockets are tried.
    pub short_circuit: bool,
    /// How long a worker that answers pings may take for one piece of data or metadata (its storage may be slow).
    pub patience: Duration,
    /// TLS, for what goes over the network.
    pub tls: Option<ClientTls>,
    /// Users whose domain sockets are trusted, beside root and this process's own.
    pub socket_owners: Vec<u32>,
}

impl LinkOptions {
    /// What the configuration says.
    ///
    /// # Errors
    /// Certificates that cannot be used.
    pub fn from_conf(conf: &Conf) -> Result<Self> {
        Ok(Self {
            name: format!("client {}", std::process::id()),
            short_circuit: conf.get(&keys::SHORT_CIRCUIT_ENABLED),
            patience: conf.get(&user::UFS_DEADLINE).min(Duration::from_secs(30)),
            tls: ClientTls::from_conf(conf)?,
            socket_owners: conf
                .get(&keys::DOMAIN_SOCKET_OWNERS)
                .into_iter()
                .filter_map(|uid| u32::try_from(uid).ok())
                .collect(),
        })
    }
}

/// A worker.
pub struct Link {
    entry: WorkerEntry,
    options: LinkOptions,
    breaker: Breaker,
    slots: [tokio::sync::Mutex<Option<Arc<DataConnection>>>; CONNECTIONS],
    /// The connections in use, for a look without waiting.
    current: Mutex<Vec<Arc<DataConnection>>>,
    /// See [`here`].
    here: AtomicU8,
    /// When the domain socket was last tried in vain.
    looked: Mutex<Option<Instant>>,
    looking: AtomicBool,
    /// Hears of changes, from the first call for metadata on.
    subscription: Option<Subscription>,
    channel: Channel,
    lane: Lane,
}

impl Link {
    /// A link to the worker; nothing is connected yet.
    ///
    /// # Errors
    /// The worker's address makes no sense.
    pub fn new(entry: WorkerEntry, options: LinkOptions) -> Result<Arc<Self>> {
        Self::make(entry, options, None)
    }

    /// The same, with somebody who is told of changes that the worker reports.
    pub(super) fn telling(entry: WorkerEntry, options: LinkOptions, hub: Arc<Hub>) -> Result<Arc<Self>> {
        Self::make(entry, options, Some(hub))
    }

    fn make(entry: WorkerEntry, options: LinkOptions, hub: Option<Arc<Hub>>) -> Result<Arc<Self>> {
        let address = &entry.address;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        // An address of version 6 stands in brackets.
        let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
        let uri = format!("{scheme}://{host}:{}", address.rpc_port);
        let mut endpoint = Endpoint::from_shared(uri.clone()).map_err(|error| {
            Error::with_source(ErrorKind::InvalidArgument, format!("{uri} is no address: {error}"), error)
        })?;
        if let Some(tls) = &options.tls {
            endpoint = endpoint
                .tls_config(tls.rpc(&address.host))
                .map_err(|error| Error::new(ErrorKind::InvalidArgument, format!("TLS with {uri}: {error}")))?;
        }
        let endpoint = endpoint.connect_timeout(SILENCE * 2);
        let lane = Lane::new(endpoint.clone(), &options.name);
        let channel =
            endpoint.http2_keep_alive_interval(SILENCE).keep_alive_timeout(SILENCE).tcp_nodelay(true).connect_lazy();
        Ok(Arc::new(Self {
            entry,
            options,
            breaker: Breaker::default(),
            slots: Default::default(),
            current: Mutex::default(),
            here: AtomicU8::new(here::UNKNOWN),
            looked: Mutex::default(),
            looking: AtomicBool::new(false),
            subscription: hub.map(Subscription::new),
            channel,
            lane,
        }))
    }

    /// Who and where.
    pub fn entry(&self) -> &WorkerEntry {
        &self.entry
    }

    /// Whether it may be asked.
    pub fn is_up(&self) -> bool {
        self.breaker.is_closed()
    }

    /// Whether it is known to be on this host.
    pub fn is_here(&self) -> bool {
        self.here.load(Ordering::Relaxed) == here::YES
    }

    /// Whether it is on this host, or that was not found out yet.
    pub fn may_be_here(&self) -> bool {
        self.domain_path().is_some() && self.here.load(Ordering::Relaxed) != here::NO
    }

    /// Whether what it answered is watched for changes.
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscription.as_ref().is_some_and(Subscription::is_begun)
    }

    /// Bytes asked of it and not yet arrived.
    pub fn outstanding(&self) -> u64 {
        self.current.lock().iter().map(|connection| connection.outstanding()).sum()
    }

    /// The way to it for changes.
    pub fn lane(&self) -> &Lane {
        &self.lane
    }

    /// Calls for metadata.
    pub fn metadata(&self) -> WorkerClient<Channel> {
        WorkerClient::new(self.channel.clone())
    }

    /// Makes a call for metadata with a deadline. A worker that gives no answer of its own has failed, and is left alone
    /// from then on; one that reports what the storage said has not.
    pub async fn call<T>(
        self: &Arc<Self>,
        call: impl AsyncFnOnce(&mut WorkerClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T> {
        let mut client = self.metadata();
        if let Some(subscription) = &self.subscription {
            // Whatever is answered from here on is told of when it changes.
            subscription.begin(&client, &self.entry).await;
        }
        match tokio::time::timeout(self.options.patience, call(&mut client)).await {
            Ok(Ok(response)) => {
                self.breaker.answered();
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                let error = rpc::error_of(&status);
                if !rpc::is_told(&status) {
                    self.failed(&error);
                }
                Err(error)
            }
            Err(_) => {
                let error = Error::new(
                    ErrorKind::TimedOut,
                    format!("worker {} gave no answer within {:?}", self.entry.shown(), self.options.patience),
                );
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// A data connection for a request, made if there is none; `key` spreads files over the connections.
    pub async fn data(self: &Arc<Self>, key: u64) -> Result<Arc<DataConnection>> {
        let mut slot = self.slots[(key % CONNECTIONS as u64) as usize].lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.is_usable()) {
            self.look_again();
            // Who was found on this host meanwhile is no longer asked over the network.
            if connection.is_domain() || !self.is_here() {
                return Ok(connection.clone());
            }
        }
        // What is under way on the old one goes on there.
        *slot = None;
        let connection = Arc::new(self.connect().await?);
        {
            let mut current = self.current.lock();
            current.retain(|old| old.is_usable() && Arc::strong_count(old) > 1);
            current.push(connection.clone());
        }
        *slot = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<DataConnection> {
        if let Some(path) = self.domain_path()
            && self.here.load(Ordering::Relaxed) != here::NO
        {
            match DataConnection::domain(&path, self.dial()).await {
                Ok(connection) => {
                    self.here.store(here::YES, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => {
                    if error.kind() == ErrorKind::PermissionDenied {
                        tracing::warn!(worker = %self.entry.identity, %error, "its domain socket is not used");
                    } else {
                        tracing::debug!(worker = %self.entry.identity, %error, "not on this host");
                    }
                    *self.looked.lock() = Some(Instant::now());
                    self.here.store(here::NO, Ordering::Relaxed);
                }
            }
        }
        let address = &self.entry.address;
        let connected = DataConnection::tcp(&address.host, address.data_port, self.dial()).await;
        connected.map_err(|error| match self.options.tls {
            None if address.secure_rpc_port != 0 => {
                error.context("the worker takes connections by TLS only (alluxio.network.tls.enabled is false here)")
            }
            _ => error,
        })
    }

    fn dial(&self) -> Dial<'_> {
        Dial {
            worker: self.entry.identity.identifier,
            name: &self.options.name,
            patience: self.options.patience,
            tls: self.options.tls.as_ref(),
            owners: &self.options.socket_owners,
        }
    }

    /// Tries the domain socket again in the background, when it is time for that.
    fn look_again(self: &Arc<Self>) {
        if self.here.load(Ordering::Relaxed) != here::NO {
            return;
        }
        let Some(path) = self.domain_path() else { return };
        if self.looked.lock().is_some_and(|at| at.elapsed() < LOOK_AGAIN) || self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let link = self.clone();
        tokio::spawn(async move {
            if DataConnection::domain(&path, link.dial()).await.is_ok() {
                tracing::info!(worker = %link.entry.identity, "its domain socket answers here: it is on this host");
                link.here.store(here::YES, Ordering::Relaxed);
            }
            *link.looked.lock() = Some(Instant::now());
            link.looking.store(false, Ordering::Release);
        });
    }

    fn domain_path(&self) -> Option<PathBuf> {
        let path = &self.entry.address.domain_socket_path;
        (self.options.short_circuit && !path.is_empty()).then(|| PathBuf::from(path))
    }

    /// The worker answered as a worker should.
    pub fn answered(&self) {
        self.breaker.answered();
    }

    /// The worker failed: it is left alone until a probe reaches it.
    pub fn failed(self: &Arc<Self>, error: &Error) {
        if !self.breaker.failed() {
            return;
        }
        tracing::warn!(worker = %self.entry.identity, address = %self.entry.shown(), %error, "a worker is not asked for the moment");
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            for probe in 0.. {
                tokio::time::sleep(Breaker::pause(probe)).await;
                let Some(link) = weak.upgrade() else { return };
                if link.probe().await.is_ok() {
                    link.breaker.answered();
                    tracing::info!(worker = %link.entry.identity, "the worker answers again");
                    return;
                }
            }
        });
    }

    /// A new connection and a call, since a worker that does one and not the other is of no use.
    async fn probe(&self) -> Result<()> {
        self.connect().await?.ping().await?;
        let limit = SILENCE * 2;
        let mut client = self.metadata();
        let call = client.status(rpc::worker::StatusRequest {});
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer.map(|_| ()).map_err(|status| rpc::error_of(&status)),
            Err(_) => Err(Error::new(ErrorKind::TimedOut, "probe")),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({} at {})", self.entry.identity, self.entry.shown())
    }
}
