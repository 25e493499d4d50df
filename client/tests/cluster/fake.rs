//! A worker of the tests' own: it speaks both protocols and does exactly what a test tells it to.

use client::membership::{WorkerEntry, WorkerNetAddress};
use client::ring::WorkerIdentity;
use common::{
    Attr, FileKind, Timestamp, Version,
    rpc::{kind_bits, worker as proto},
    wire::{DataPrefix, FrameReader, Message, Socket},
};
use proto::worker_server::{Worker, WorkerServer};
use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, broadcast},
};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tonic::{Request, Response, Status};

/// What it does, and what it saw.
pub struct State {
    pub identity: WorkerIdentity,
    /// What it allows on a connection.
    pub in_flight: AtomicU32,
    /// Reads wait for permits.
    pub gate: Semaphore,
    /// Reads under way now, and at most.
    pub reading: AtomicUsize,
    pub most: AtomicUsize,
    pub reads: AtomicUsize,
    pub pings: AtomicUsize,
    /// Connections by TCP and by the domain socket.
    pub by_tcp: AtomicUsize,
    pub by_domain: AtomicUsize,
    /// Lets opens be answered, one for each permit.
    pub open_gate: Semaphore,
    pub opening: AtomicUsize,
    /// Handles that were given up.
    pub closed: AtomicUsize,
    /// Lengths of the frames that answer a read, the last of them marked, instead of one frame with all of it.
    pub frames: Mutex<Option<Vec<usize>>>,
    /// Whether an unasked Pong under the read's own number goes before its answer.
    pub pongs: std::sync::atomic::AtomicBool,
    /// The names that listings give, in batches; then they end, or fail.
    pub names: Mutex<Vec<Vec<String>>>,
    pub listing_fails: std::sync::atomic::AtomicBool,
    pub listings: AtomicUsize,
    pub lookups: AtomicUsize,
    pub changes: broadcast::Sender<proto::Change>,
}

/// The worker; ends when dropped.
pub struct FakeWorker {
    pub state: Arc<State>,
    pub entry: WorkerEntry,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl FakeWorker {
    /// Serves on ports of its own. `domain`: the address of a domain socket, where nobody listens until [`listen_domain`](Self::listen_domain).
    pub async fn start(number: u8, domain: Option<&Path>) -> Self {
        let identity = WorkerIdentity { identifier: [number; 16], version: 1 };
        let state = Arc::new(State {
            identity,
            in_flight: AtomicU32::new(64),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            reading: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            reads: AtomicUsize::new(0),
            pings: AtomicUsize::new(0),
            by_tcp: AtomicUsize::new(0),
            by_domain: AtomicUsize::new(0),
            open_gate: Semaphore::new(Semaphore::MAX_PERMITS),
            opening: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            frames: Mutex::default(),
            pongs: false.into(),
            names: Mutex::default(),
            listing_fails: false.into(),
            listings: AtomicUsize::new(0),
            lookups: AtomicUsize::new(0),
            changes: broadcast::channel(64).0,
        });
        let (data, rpc) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let entry = WorkerEntry {
            identity,
            address: WorkerNetAddress {
                host: "127.0.0.1".into(),
                rpc_port: rpc.local_addr().unwrap().port(),
                data_port: data.local_addr().unwrap().port(),
                domain_socket_path: domain.map(|path| path.display().to_string()).unwrap_or_default(),
                ..Default::default()
            },
        };
        let served = state.clone();
        let data = tokio::spawn(async move {
            while let Ok((stream, _)) = data.accept().await {
                served.by_tcp.fetch_add(1, Ordering::SeqCst);
                let socket = Socket::tcp(stream.into_std().unwrap(), Duration::from_secs(60)).unwrap();
                tokio::spawn(serve(served.clone(), socket));
            }
        });
        let service = WorkerServer::new(Rpc(state.clone()));
        let incoming = tonic::transport::server::TcpIncoming::from(rpc);
        let rpc = tokio::spawn(async move {
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        Self { state, entry, tasks: vec![data.abort_handle(), rpc.abort_handle()] }
    }

    /// From now on the domain socket answers.
    pub fn listen_domain(&mut self) {
        let listener = UnixListener::bind(&self.entry.address.domain_socket_path).unwrap();
        let state = self.state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                state.by_domain.fetch_add(1, Ordering::SeqCst);
                let socket = Socket::domain(stream.into_std().unwrap(), Duration::from_secs(60)).unwrap();
                tokio::spawn(serve(state.clone(), socket));
            }
        });
        self.tasks.push(task.abort_handle());
    }
}

impl Drop for FakeWorker {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The byte at a place of every file.
pub fn byte_at(offset: u64) -> u8 {
    (offset % 251) as u8
}

async fn serve(state: Arc<State>, socket: Socket) {
    let socket = Arc::new(socket);
    let sending = Arc::new(tokio::sync::Mutex::new(()));
    let mut frames = FrameReader::new(socket.clone());
    while let Ok(Some(header)) = frames.header().await {
        let Ok(message) = frames.message(&header).await else { return };
        let answer = match message {
            Message::Hello { .. } => Message::Welcome {
                worker: state.identity.identifier,
                page_size: 1 << 20,
                in_flight: state.in_flight.load(Ordering::SeqCst),
            },
            Message::Ping => {
                state.pings.fetch_add(1, Ordering::SeqCst);
                Message::Pong
            }
            Message::Open { .. } => {
                let (state, socket, sending) = (state.clone(), socket.clone(), sending.clone());
                tokio::spawn(async move {
                    state.opening.fetch_add(1, Ordering::SeqCst);
                    state.open_gate.acquire().await.unwrap().forget();
                    let opened = Message::Opened { handle: 1 }.encode(header.request).unwrap();
                    let _turn = sending.lock().await;
                    let _ = socket.send(&[&opened]).await;
                });
                continue;
            }
            Message::Close { .. } => {
                state.closed.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            Message::Read { offset, length, .. } => {
                let reading = state.reading.fetch_add(1, Ordering::SeqCst) + 1;
                state.most.fetch_max(reading, Ordering::SeqCst);
                let (state, socket, sending) = (state.clone(), socket.clone(), sending.clone());
                tokio::spawn(async move {
                    state.gate.acquire().await.unwrap().forget();
                    let bytes: Vec<u8> = (offset..offset + u64::from(length)).map(byte_at).collect();
                    state.reading.fetch_sub(1, Ordering::SeqCst);
                    state.reads.fetch_add(1, Ordering::SeqCst);
                    let lengths = state.frames.lock().unwrap().clone().unwrap_or_else(|| vec![bytes.len()]);
                    let _turn = sending.lock().await;
                    if state.pongs.load(Ordering::SeqCst) {
                        let _ = socket.send(&[&Message::Pong.encode(header.request).unwrap()]).await;
                    }
                    let mut at = 0;
                    for (number, length) in lengths.iter().copied().enumerate() {
                        let piece: Vec<u8> = (at..at + length as u64).map(|at| byte_at(offset + at)).collect();
                        let last = number + 1 == lengths.len();
                        let prefix = DataPrefix { offset: offset + at, checksum: crc32c::crc32c(&piece), last };
                        let _ = socket.send(&[&prefix.encode(header.request, length), &piece]).await;
                        at += length as u64;
                    }
                });
                continue;
            }
            _ => continue,
        };
        let _turn = sending.lock().await;
        if socket.send(&[&answer.encode(header.request).unwrap()]).await.is_err() {
            return;
        }
    }
}

struct Rpc(Arc<State>);

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Rpc {
    type ListStream = Streamed<proto::ListReply>;
    type SubscribeStream = Streamed<proto::Change>;

    async fn get_attr(&self, _: Request<proto::GetAttrRequest>) -> Result<Response<proto::GetAttrReply>, Status> {
        self.0.lookups.fetch_add(1, Ordering::SeqCst);
        let attr = Attr::of_object(FileKind::File, 1 << 40, Timestamp::default(), Version::new("1"));
        Ok(Response::new(proto::GetAttrReply { attr: Some((&attr).into()) }))
    }

    async fn list(&self, _: Request<proto::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.0.listings.fetch_add(1, Ordering::SeqCst);
        let entry = |name: String| proto::Entry { name: name.into(), kind: kind_bits(FileKind::File), attr: None };
        let batch = |names: Vec<String>| Ok(proto::ListReply { entries: names.into_iter().map(entry).collect() });
        let mut batches: Vec<_> = self.0.names.lock().unwrap().clone().into_iter().map(batch).collect();
        if self.0.listing_fails.load(Ordering::SeqCst) {
            batches.push(Err(Status::unavailable("the worker dies")));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(batches))))
    }

    async fn subscribe(&self, _: Request<proto::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let changes = BroadcastStream::new(self.0.changes.subscribe());
        Ok(Response::new(Box::pin(changes.map(|change| change.map_err(|_| Status::resource_exhausted("behind"))))))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusReply>, Status> {
        Ok(Response::new(proto::StatusReply::default()))
    }

    async fn read_link(&self, _: Request<proto::ReadLinkRequest>) -> Result<Response<proto::ReadLinkReply>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    async fn refresh(&self, _: Request<proto::RefreshRequest>) -> Result<Response<proto::RefreshReply>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    async fn set_log_level(
        &self,
        _: Request<proto::SetLogLevelRequest>,
    ) -> Result<Response<proto::SetLogLevelReply>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    async fn free_cache(&self, _: Request<proto::FreeCacheRequest>) -> Result<Response<proto::FreeCacheReply>, Status> {
        Err(Status::unimplemented("not in tests"))
    }

    async fn check_cached(
        &self,
        _: Request<proto::CheckCachedRequest>,
    ) -> Result<Response<proto::CheckCachedReply>, Status> {
        Err(Status::unimplemented("not in tests"))
    }
}
