//! A worker as a process of its own: serves metadata and data of all storages of a cluster to many clients.
//!
//! - [`options`]: what is configured; [`identity`]: who the worker is, across restarts;
//! - [`namespace`]: the storages, following the mount table in etcd, over one page store and one memory budget;
//! - [`data`]: the binary protocol on TCP and on the domain socket; `rpc`: metadata and control; `web`: `/metrics`;
//! - [`changes`]: tells clients and other workers of what changed.
//!
//! Invariants:
//! - it registers only once everything is served, and ends its registration before it stops serving;
//! - whatever goes wrong at the start is one line, and nothing of it stays behind;
//! - etcd is needed to start, not to go on.

pub mod changes;
pub mod data;
pub mod identity;
pub mod namespace;
pub mod options;
mod rpc;
mod web;
mod writing;

pub use options::{Cluster, Limits, ServerOptions};

use client::{
    cluster::{ClusterOptions, View},
    etcd::{Etcd, EtcdOptions},
    membership::{Membership, Registration, RegistrationOptions, WorkerEntry, WorkerNetAddress},
    mount_table::MountTableStore,
};
use common::{
    Error, ErrorKind, Result,
    budget::MemoryBudget,
    limited::{Held, LimitedListener},
    metrics::metrics,
    page::PagePool,
    rpc::worker::{changes_server::ChangesServer, worker_server::WorkerServer},
    tls::ServerTls,
};
use data::{DataServer, DomainSocket};
use identity::Claim;
use namespace::Namespace;
use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use store::{PageStore, StoreOptions};
use tokio::{net::TcpListener, runtime::Handle, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The longest pause between two attempts to reach etcd at the start.
const ETCD_PAUSE: Duration = Duration::from_secs(5);
/// After so long without a byte a connection for metadata is ended. Clients that are there answer pings more often.
const RPC_IDLE: Duration = Duration::from_secs(90);
/// The longest request to write.
const WRITE_MOST: usize = 8 << 20;

/// A worker that serves. [`stop`](Self::stop) ends it in order; when it is dropped its tasks end where they are.
pub struct Server {
    entry: WorkerEntry,
    namespace: Arc<Namespace>,
    data: Arc<DataServer>,
    registration: Option<Registration>,
    /// The identity is this process's own for as long as it is held.
    claim: Claim,
    end: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

/// The ports, taken before anything else is done.
struct Ports {
    rpc: TcpListener,
    data: TcpListener,
    web: TcpListener,
    domain: Option<DomainSocket>,
    tls: Option<ServerTls>,
}

impl Server {
    /// Starts a worker; returns once it is registered and serves. Call it on a runtime with several threads.
    ///
    /// # Errors
    /// One line: the identity file, a port, the page store, etcd or the registration.
    pub async fn start(options: ServerOptions) -> Result<Self> {
        let identity = identity::load_or_create(&options.identity_file)?;
        let claim = Claim::take(&options.identity_file, &identity)?;
        let tls = options.tls.as_ref().map(ServerTls::load).transpose()?;
        let ports = bind(&options, &identity.to_string(), tls).await?;
        let store = open_store(options.store.clone()).await?;
        let (membership, table) = match &options.cluster {
            Cluster::Etcd { options: etcd, name, wait } => {
                let etcd = reach(etcd, *wait).await?;
                (Some(Membership::new(etcd.clone(), name)?), Some(MountTableStore::new(etcd, name)))
            }
            Cluster::Alone(_) => (None, None),
        };
        let budget = MemoryBudget::new(options.memory);
        metrics().budget_limit_bytes.set(i64::try_from(budget.limit()).unwrap_or(i64::MAX));
        let (pool, conf) = (PagePool::new(budget), options.conf.clone());
        let namespace = Namespace::new(store, pool, conf, Handle::current(), table.clone());
        match &options.cluster {
            Cluster::Etcd { .. } => namespace.refresh_after(Duration::ZERO).await?,
            Cluster::Alone(table) => namespace.apply(table),
        }
        let entry = WorkerEntry { identity, address: address(&options, &ports)? };
        if let (Some(membership), Some(table)) = (&membership, table) {
            let mut how = ClusterOptions::from_conf(&options.conf)?;
            how.link.name = identity.to_string();
            how.link.short_circuit = false;
            let view = View::follow(membership, table, how).await?;
            namespace.changes().relay_to(view, identity);
        }
        let mut server = Self::serve(ports, entry, namespace, claim, &options)?;
        if let Some(membership) = membership {
            match server.register(&membership, &options).await {
                Ok(registration) => server.registration = Some(registration),
                Err(error) => {
                    server.stop().await;
                    return Err(error);
                }
            }
        }
        Ok(server)
    }

    fn serve(
        ports: Ports,
        entry: WorkerEntry,
        namespace: Arc<Namespace>,
        claim: Claim,
        options: &ServerOptions,
    ) -> Result<Self> {
        let end = CancellationToken::new();
        let identifier = entry.identity.identifier;
        let data = DataServer::new(namespace.clone(), identifier, options.limits.clone());
        data.listen_tcp(ports.data, ports.tls.clone());
        if let Some(domain) = ports.domain {
            data.listen_domain(domain, options.domain_uids.clone())?;
        }
        let service = WorkerServer::new(rpc::Rpc::new(namespace.clone(), identifier, end.clone()));
        let writing = ChangesServer::new(writing::Writing::new(
            namespace.clone(),
            options.writes,
            options.limits.writing,
            end.clone(),
        ))
        .max_decoding_message_size(WRITE_MOST);
        let incoming = LimitedListener::new(ports.rpc, options.limits.rpc_connections, Held::Idle(RPC_IDLE)).incoming();
        let mut builder = tonic::transport::Server::builder();
        if let Some(tls) = &ports.tls {
            builder = builder
                .tls_config(tls.rpc())
                .map_err(|error| Error::new(ErrorKind::InvalidArgument, format!("TLS for metadata: {error}")))?;
        } else {
            tracing::info!(
                "whoever reaches {} can read what this worker serves; see alluxio.network.tls.enabled and alluxio.worker.bind.host",
                entry.shown()
            );
        }
        let rpc = builder
            .http2_keepalive_interval(Some(Duration::from_secs(30)))
            .http2_keepalive_timeout(Some(Duration::from_secs(20)))
            .concurrency_limit_per_connection(256)
            .max_concurrent_streams(Some(1024))
            .initial_stream_window_size(Some(2 << 20))
            .initial_connection_window_size(Some(8 << 20))
            .add_service(service)
            .add_service(writing)
            .serve_with_incoming_shutdown(incoming, end.clone().cancelled_owned());
        let rpc = tokio::spawn(async move {
            if let Err(error) = rpc.await {
                tracing::error!(%error, "metadata is no longer served");
            }
        });
        let web = tokio::spawn(web::serve(ports.web, namespace.clone(), end.clone()));
        let followed = namespace.clone();
        let over = end.clone();
        let follow = tokio::spawn(async move {
            tokio::select! {
                () = followed.follow() => {}
                () = over.cancelled() => {}
            }
        });
        Ok(Self { entry, namespace, data, registration: None, claim, end, tasks: vec![rpc, web, follow] })
    }

    async fn register(&mut self, membership: &Membership, options: &ServerOptions) -> Result<Registration> {
        let how = RegistrationOptions {
            failure_timeout: options.failure_timeout,
            may_move: options.may_move,
            // Whoever served there with this very file is dead, since this process holds its lock.
            former: self.claim.former().to_vec(),
            capacity: self.namespace.store().stats().capacity,
        };
        // Noted first: a process that dies right after it registered must be known to its successor.
        self.claim.note_also(&self.entry.address)?;
        let start = Instant::now();
        loop {
            match membership.register(self.entry.clone(), how.clone()).await {
                // A pod that was killed and came back elsewhere is in its own way until its old lease has run out.
                Err(error)
                    if error.kind() == ErrorKind::AlreadyExists
                        && options.may_move
                        && start.elapsed() < options.failure_timeout * 2 =>
                {
                    tracing::warn!(%error, "tried again until the old lease has run out");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Ok(registration) => {
                    self.claim.note_only(&self.entry.address)?;
                    return Ok(registration);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Who it is and where it is reached, with the ports that it really has.
    pub fn entry(&self) -> &WorkerEntry {
        &self.entry
    }

    /// The storages that it serves.
    pub fn namespace(&self) -> &Arc<Namespace> {
        &self.namespace
    }

    /// The data server, for figures.
    pub fn data(&self) -> &Arc<DataServer> {
        &self.data
    }

    /// Ends it: no more registered, nothing new is taken, what is under way is answered as long as the limits say, the
    /// page store is written out.
    pub async fn stop(mut self) {
        if let Some(registration) = self.registration.take()
            && let Err(error) = registration.shut_down().await
        {
            tracing::warn!(%error, "the registration ends by itself, since etcd cannot be told");
        }
        self.end.cancel();
        self.data.stop().await;
        for mut task in std::mem::take(&mut self.tasks) {
            // Connections that do not end by themselves are cut.
            if tokio::time::timeout(Duration::from_secs(2), &mut task).await.is_err() {
                task.abort();
            }
        }
        let store = self.namespace.store().clone();
        if let Err(error) = tokio::task::spawn_blocking(move || store.shutdown()).await {
            tracing::warn!(%error, "the page store is not written out");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.cancel();
        self.data.cut();
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({} at {})", self.entry.identity, self.entry.shown())
    }
}

/// Takes the ports, and says which one cannot be had.
async fn bind(options: &ServerOptions, identity: &str, tls: Option<ServerTls>) -> Result<Ports> {
    let tcp = async |key: &str, port: u16| {
        TcpListener::bind((options.bind.as_str(), port)).await.map_err(|error| match error.kind() {
            std::io::ErrorKind::AddrInUse => Error::io(
                format_args!("{key}={port}: the port cannot be had (stop who has it, or choose another port)"),
                error,
            ),
            std::io::ErrorKind::PermissionDenied => {
                Error::io(format_args!("{key}={port}: the port cannot be had (choose another port)"), error)
            }
            _ => Error::io(
                format_args!("alluxio.worker.bind.host={}: no address of this host (0.0.0.0 for all)", options.bind),
                error,
            ),
        })
    };
    let domain = options.domain.as_ref().map(|address| -> PathBuf {
        if options.domain_as_uuid { address.join(identity.trim_start_matches("worker-")) } else { address.clone() }
    });
    Ok(Ports {
        rpc: tcp("alluxio.worker.rpc.port", options.rpc_port).await?,
        data: tcp("alluxio.worker.data.port", options.data_port).await?,
        web: tcp("alluxio.worker.web.port", options.web_port).await?,
        domain: domain.map(|path| DomainSocket::bind(&path)).transpose()?,
        tls,
    })
}

async fn open_store(options: StoreOptions) -> Result<Arc<PageStore>> {
    let store = tokio::task::spawn_blocking(move || PageStore::open(options))
        .await
        .map_err(|error| Error::new(ErrorKind::Io, format!("the page store: {error}")))?
        .map_err(|error| error.context("alluxio.worker.page.store.dirs and .sizes"))?;
    let stats = store.stats();
    let problems: Vec<String> = stats.dirs.iter().filter_map(|dir| dir.problem.clone()).collect();
    if store.is_off() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("no directory of alluxio.worker.page.store.dirs can be used: {}", problems.join("; ")),
        ));
    }
    for problem in problems {
        tracing::warn!("a directory of the page store is left out: {problem}");
    }
    Ok(store)
}

/// Reaches etcd within `wait`. What it refuses (a password, a certificate) is not tried again.
async fn reach(options: &EtcdOptions, wait: Duration) -> Result<Etcd> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        match Etcd::connect(options).await {
            Ok(etcd) => return Ok(etcd),
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let left = wait.saturating_sub(start.elapsed());
                if left.is_zero() {
                    return Err(error.context(format_args!("not started within {wait:?} (--wait)")));
                }
                tracing::warn!(%error, "etcd is needed to start; tried again for {} s more", left.as_secs());
                tokio::time::sleep(pause.min(left)).await;
                pause = (pause * 2).min(ETCD_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

fn address(options: &ServerOptions, ports: &Ports) -> Result<WorkerNetAddress> {
    let port = |listener: &TcpListener| {
        listener.local_addr().map(|address| address.port()).map_err(|error| Error::io("a port of the worker", error))
    };
    let (rpc_port, data_port) = (port(&ports.rpc)?, port(&ports.data)?);
    // A worker that listens at one address only is reached there.
    let bound = ports.rpc.local_addr().map(|address| address.ip()).ok().filter(|ip| !ip.is_unspecified());
    let own = || bound.as_ref().map_or_else(|| own_address(&options.cluster), IpAddr::to_string);
    let domain = ports.domain.as_ref().map(|domain| domain.path().to_string_lossy().into_owned());
    Ok(WorkerNetAddress {
        host: options.hostname.clone().unwrap_or_else(own),
        rpc_port,
        // With TLS there is no other way in.
        secure_rpc_port: if ports.tls.is_some() { rpc_port } else { 0 },
        data_port,
        netty_data_port: data_port,
        web_port: port(&ports.web)?,
        domain_socket_path: domain.unwrap_or_default(),
        ..WorkerNetAddress::default()
    })
}

/// The address of this host from which etcd is reached: others in the cluster reach the worker there.
fn own_address(cluster: &Cluster) -> String {
    let endpoint = match cluster {
        Cluster::Etcd { options, .. } => options.endpoints.first().map(String::as_str).unwrap_or_default(),
        Cluster::Alone(_) => "",
    };
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest).trim_end_matches('/');
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:2379") };
    // Connecting a datagram socket sends nothing: the kernel only chooses the way, and with it the address.
    let chosen = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect(host.as_str())?;
        socket.local_addr()
    });
    chosen.map_or_else(|_| Ipv4Addr::LOCALHOST.to_string(), |address| address.ip().to_string())
}
