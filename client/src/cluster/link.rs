//! One worker as this client sees it: its connections, and whether it is worth asking.
//!
//! Connections are made when they are first needed and replaced when they broke. Whether the worker is on this host is
//! found out, not guessed from names: its domain socket answers here, or it does not.

use super::{
    breaker::Breaker,
    data::{DataConnection, SILENCE},
};
use crate::membership::WorkerEntry;
use common::{
    Error, ErrorKind, Result,
    rpc::{self, worker::worker_client::WorkerClient},
};
use parking_lot::Mutex;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tonic::transport::{Channel, Endpoint};

/// Data connections for each worker by TCP: one stream is bound by one core's copying, several are not.
const CONNECTIONS: usize = 4;

/// How workers are talked to.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// This client, for the workers' logs.
    pub name: String,
    /// Whether domain sockets are tried.
    pub short_circuit: bool,
    /// How long a worker that answers pings may take for one piece of data or metadata (its storage may be slow).
    pub patience: Duration,
}

/// A worker.
pub struct Link {
    entry: WorkerEntry,
    options: LinkOptions,
    breaker: Breaker,
    slots: [tokio::sync::Mutex<Option<Arc<DataConnection>>>; CONNECTIONS],
    /// The connections in use, for a look without waiting.
    current: Mutex<Vec<Arc<DataConnection>>>,
    /// 0: not tried, 1: answers here, 2: does not.
    here: AtomicU8,
    channel: Channel,
}

impl Link {
    /// A link to the worker; nothing is connected yet.
    pub fn new(entry: WorkerEntry, options: LinkOptions) -> Result<Arc<Self>> {
        let address = &entry.address;
        let uri = format!("http://{}:{}", address.host, address.rpc_port);
        let endpoint = Endpoint::from_shared(uri.clone()).map_err(|error| {
            Error::with_source(ErrorKind::InvalidArgument, format!("{uri} is no address: {error}"), error)
        })?;
        let channel = endpoint
            .connect_timeout(SILENCE * 2)
            .http2_keep_alive_interval(SILENCE)
            .keep_alive_timeout(SILENCE)
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Arc::new(Self {
            entry,
            options,
            breaker: Breaker::default(),
            slots: Default::default(),
            current: Mutex::default(),
            here: AtomicU8::new(0),
            channel,
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
        self.here.load(Ordering::Relaxed) == 1
    }

    /// Whether it is on this host, or that was not found out yet.
    pub fn may_be_here(&self) -> bool {
        self.domain_path().is_some() && self.here.load(Ordering::Relaxed) != 2
    }

    /// Bytes asked of it and not yet arrived.
    pub fn outstanding(&self) -> u64 {
        self.current.lock().iter().map(|connection| connection.outstanding()).sum()
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
    pub async fn data(&self, key: u64) -> Result<Arc<DataConnection>> {
        let mut slot = self.slots[(key % CONNECTIONS as u64) as usize].lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.connect().await?);
        self.current.lock().retain(|old| old.is_usable());
        self.current.lock().push(connection.clone());
        *slot = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<DataConnection> {
        let (name, patience) = (self.options.name.as_str(), self.options.patience);
        if let Some(path) = self.domain_path()
            && self.here.load(Ordering::Relaxed) != 2
        {
            match DataConnection::domain(&path, name, patience).await {
                Ok(connection) => {
                    self.here.store(1, Ordering::Relaxed);
                    return Ok(connection);
                }
                // It was here, and is being started again perhaps: TCP may answer, and the next connection tries again.
                Err(_) if self.is_here() => {}
                Err(error) => {
                    tracing::debug!(worker = %self.entry.identity, %error, "not on this host");
                    self.here.store(2, Ordering::Relaxed);
                }
            }
        }
        DataConnection::tcp(&self.entry.address.host, self.entry.address.data_port, name, patience).await
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
