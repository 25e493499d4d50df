//! Accepting connections on threads of its own, and dropping them on demand.
//!
//! Shared by the S3 server and the servers of [`crate::credentials`]: each brings a [`Handler`]. The port stays bound while paused, so that
//! no other process takes it; connections that arrive then are reset.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::body::Response;
use crate::connection::{Connection, Socket, Transport, reset_on_close};

/// Answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Called for each connection that was accepted.
    fn connected(&self) {}

    /// Answers one request; dropped when the connection ends before.
    fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        connection: Arc<Connection>,
    ) -> impl Future<Output = Response> + Send;
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Paused,
    Stopped,
}

/// The state, and how often it was left: a connection ends when a pause happened since, even one that is over already.
#[derive(Clone, Copy, Debug)]
struct Gate {
    state: State,
    pauses: u64,
}

/// Where and how to listen.
pub(crate) struct Settings {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) threads: usize,
    pub(crate) max_connections: usize,
    pub(crate) tls: Option<TlsAcceptor>,
}

/// A listening socket with its threads; dropping it stops them.
pub(crate) struct Listener {
    address: SocketAddr,
    gate: watch::Sender<Gate>,
    runtime: Option<Runtime>,
}

impl Listener {
    /// Binds and starts.
    pub(crate) fn start<H: Handler>(settings: Settings, handler: Arc<H>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .thread_name("s3server")
            .enable_all()
            .build()
            .context("cannot start the server's threads")?;
        let listener = {
            let _inside = runtime.enter();
            let wanted = SocketAddr::new(settings.address, settings.port);
            let socket = if wanted.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            socket.set_reuseaddr(true)?;
            socket.bind(wanted).with_context(|| format!("cannot bind {wanted}"))?;
            socket.listen(1024).with_context(|| format!("cannot listen on {wanted}"))?
        };
        let address = listener.local_addr()?;
        let (gate, watcher) = watch::channel(Gate { state: State::Open, pauses: 0 });
        let permits = Arc::new(Semaphore::new(settings.max_connections.max(1)));
        runtime.spawn(accept(listener, handler, watcher, settings.tls, permits));
        Ok(Listener { address, gate, runtime: Some(runtime) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resets all connections, and new ones as they come.
    pub(crate) fn pause(&self) {
        self.gate.send_modify(|gate| *gate = Gate { state: State::Paused, pauses: gate.pauses + 1 });
    }

    pub(crate) fn resume(&self) {
        self.gate.send_modify(|gate| gate.state = State::Open);
    }

    /// Resets all connections, frees the port and ends the threads.
    pub(crate) fn stop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        self.gate.send_modify(|gate| gate.state = State::Stopped);
        // A runtime must not be shut down from inside another one, and tests may well be async: a thread of its own is always allowed to.
        let ended = std::thread::Builder::new()
            .name("s3server-stop".into())
            .spawn(move || runtime.shutdown_timeout(Duration::from_secs(10)));
        if let Ok(thread) = ended {
            let _ = thread.join();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept<H: Handler>(
    listener: TcpListener,
    handler: Arc<H>,
    mut gate: watch::Receiver<Gate>,
    tls: Option<TlsAcceptor>,
    permits: Arc<Semaphore>,
) {
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = gate.wait_for(|gate| gate.state == State::Stopped) => return,
        };
        match accepted {
            Ok((stream, _)) if gate.borrow().state != State::Open => {
                let _ = stream.set_zero_linger();
            }
            Ok((stream, _)) => {
                handler.connected();
                tokio::spawn(serve(stream, handler.clone(), gate.clone(), tls.clone(), permit));
            }
            Err(error) => {
                // Descriptors may have run out; they come back as connections end.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serve<H: Handler>(
    stream: TcpStream,
    handler: Arc<H>,
    mut gate: watch::Receiver<Gate>,
    tls: Option<TlsAcceptor>,
    _permit: OwnedSemaphorePermit,
) {
    let _ = stream.set_nodelay(true);
    let pauses = gate.borrow().pauses;
    let transport = match tls {
        None => Transport::Plain(stream),
        Some(acceptor) => match tokio::time::timeout(Duration::from_secs(30), acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
            Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => return tracing::debug!("TLS handshake took too long"),
        },
    };
    let connection = Arc::new(Connection::new());
    let socket = Socket::new(transport, connection.clone());
    let descriptor = socket.descriptor();
    let service = {
        let connection = connection.clone();
        service_fn(move |request| {
            let (handler, connection) = (handler.clone(), connection.clone());
            async move { Ok::<_, Infallible>(handler.answer(request, connection).await) }
        })
    };
    let mut serving = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(socket), service)
    );
    tokio::select! {
        result = serving.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = connection.aborted() => {}
        _ = gate.wait_for(|gate| gate.state != State::Open || gate.pauses != pauses) => {}
    }
    // `serving` still owns the socket, so the descriptor is the connection's.
    reset_on_close(descriptor);
}
