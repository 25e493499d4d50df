//! A data connection to a worker: many requests under way at once on one socket.
//!
//! Invariants:
//! - a payload is handed on only after its checksum was verified;
//! - memory is bounded: bytes asked for and not yet consumed never exceed a limit for each connection;
//! - requests under way never exceed what the worker allows ([`Message::Welcome`]), those that were given up here and that
//!   the worker still answers included; pings are not counted, so that they always get through;
//! - a worker that stands still is noticed: when nothing arrives for [`SILENCE`] it is pinged, and when even that brings
//!   nothing the connection is given up. A worker that waits for a slow storage answers pings and is waited for.

use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    tls::ClientTls,
    wire::{self, DATA_PREFIX, FrameReader, Kind, Message, Socket},
};
use lru::LruCache;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
};
use ufs::ReadSink;

/// After so long without a frame the worker is asked whether it is there; after as long again it is given up.
pub const SILENCE: Duration = Duration::from_secs(1);
/// Bytes asked for and not yet consumed, for each connection.
const WINDOW: usize = 64 << 20;
/// Bytes asked for by one request.
const REQUEST: u64 = 8 << 20;
/// Requests under way on one connection, whatever more a worker would allow.
const MOST_IN_FLIGHT: usize = 4096;
/// Handles kept open for reuse, for each connection.
const HANDLES: usize = 1024;

/// One version of one file at a worker.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct FileKey {
    /// The storage's URI as the mount table has it.
    pub storage: Arc<str>,
    /// The path below it.
    pub path: UfsPath,
    /// The version.
    pub version: common::Version,
}

/// Whom a connection is made to, and how.
#[derive(Clone, Copy)]
pub struct Dial<'d> {
    /// The identifier that the worker must have: at its address, or at its domain socket's, another one may answer.
    pub worker: [u8; 16],
    /// This client, for the worker's log.
    pub name: &'d str,
    /// How long one request may go without progress though the worker answers pings.
    pub patience: Duration,
    /// TLS, for connections over the network.
    pub tls: Option<&'d ClientTls>,
}

/// What arrives for a request.
enum Arrival {
    Data { offset: u64, last: bool, bytes: Vec<u8> },
    Message(Message, Option<OwnedFd>),
}

/// A connection. Shared by `Arc`; ends when dropped.
pub struct DataConnection {
    shared: Arc<Shared>,
    reader: AbortHandle,
    handles: Mutex<LruCache<FileKey, u32>>,
    patience: Duration,
}

struct Shared {
    socket: Arc<Socket>,
    sending: tokio::sync::Mutex<()>,
    waiting: Mutex<HashMap<u32, Waiting>>,
    next: AtomicU32,
    window: Arc<Semaphore>,
    /// Requests that may be under way; none before the worker has said how many.
    slots: Arc<Semaphore>,
    /// Why the connection ended.
    end: Mutex<Option<Error>>,
    broken: AtomicBool,
    started: Instant,
    /// Milliseconds after `started` at which the last frame arrived.
    heard: AtomicU64,
    outstanding: AtomicU64,
}

/// A request whose answer has not come, or not all of it.
struct Waiting {
    /// None: nobody waits for it any more.
    sender: Option<mpsc::UnboundedSender<Arrival>>,
    /// Held until the worker has answered; pings have none.
    slot: Option<OwnedSemaphorePermit>,
}

impl DataConnection {
    /// Connects by TCP.
    pub async fn tcp(host: &str, port: u16, dial: Dial<'_>) -> Result<Self> {
        let what = format!("worker at {host}:{port}");
        let connect = tokio::net::TcpStream::connect((host, port));
        let stream =
            within(SILENCE * 2, &what, async { connect.await.map_err(|error| unavailable(&what, error)) }).await?;
        let socket = match dial.tls {
            Some(tls) => {
                let stream = within(SILENCE * 2, &what, tls.connect(host, stream)).await;
                Socket::tls(stream.map_err(|error| error.context(&what))?, SILENCE * 5)?
            }
            None => Socket::tcp(stream.into_std().map_err(|error| Error::io(&what, error))?, SILENCE * 5)?,
        };
        Self::begin(socket, &what, dial).await
    }

    /// Connects by the worker's domain socket; fails at once when nobody listens there.
    pub async fn domain(path: &Path, dial: Dial<'_>) -> Result<Self> {
        let what = format!("worker at {}", path.display());
        let connect = tokio::net::UnixStream::connect(path);
        let stream =
            within(SILENCE * 2, &what, async { connect.await.map_err(|error| unavailable(&what, error)) }).await?;
        let stream = stream.into_std().map_err(|error| Error::io(&what, error))?;
        Self::begin(Socket::domain(stream, SILENCE * 5)?, &what, dial).await
    }

    async fn begin(socket: Socket, what: &str, dial: Dial<'_>) -> Result<Self> {
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared {
            socket: socket.clone(),
            sending: tokio::sync::Mutex::new(()),
            waiting: Mutex::default(),
            next: AtomicU32::new(1),
            window: Arc::new(Semaphore::new(WINDOW >> 10)),
            slots: Arc::new(Semaphore::new(0)),
            end: Mutex::new(None),
            broken: AtomicBool::new(false),
            started: Instant::now(),
            heard: AtomicU64::new(0),
            outstanding: AtomicU64::new(0),
        });
        let reader = tokio::spawn({
            let shared = shared.clone();
            async move {
                let error = match receive(&shared, FrameReader::new(socket)).await {
                    Ok(()) => Error::new(ErrorKind::Unavailable, "the worker ended the connection"),
                    Err(error) => error,
                };
                tracing::debug!(%error, "a data connection ended");
                shared.end(error);
            }
        })
        .abort_handle();
        let capacity = NonZeroUsize::new(HANDLES).unwrap_or(NonZeroUsize::MIN);
        let handles = Mutex::new(LruCache::new(capacity));
        let connection = Self { shared, reader, handles, patience: dial.patience };
        let welcome = connection.ask_uncounted(&Message::Hello { name: dial.name.to_owned() }).await;
        match welcome.map_err(|error| error.context(what))? {
            (Message::Welcome { worker, .. }, _) if worker != dial.worker => {
                Err(Error::new(ErrorKind::Unavailable, format!("{what}: another worker answers there")))
            }
            (Message::Welcome { in_flight, .. }, _) => {
                let slots = usize::try_from(in_flight).unwrap_or(usize::MAX).clamp(1, MOST_IN_FLIGHT);
                connection.shared.slots.add_permits(slots);
                Ok(connection)
            }
            (other, _) => Err(unexpected(what, &other)),
        }
    }

    /// Whether it can still be used.
    pub fn is_usable(&self) -> bool {
        !self.shared.broken.load(Ordering::Acquire)
    }

    /// Bytes asked for and not yet arrived.
    pub fn outstanding(&self) -> u64 {
        self.shared.outstanding.load(Ordering::Relaxed)
    }

    /// Whether it is a domain socket.
    pub fn is_domain(&self) -> bool {
        self.shared.socket.is_domain()
    }

    /// Makes sure that the worker answers.
    pub async fn ping(&self) -> Result<()> {
        match within(SILENCE * 2, "ping", self.ask_uncounted(&Message::Ping)).await? {
            (Message::Pong, _) => Ok(()),
            (other, _) => Err(unexpected("ping", &other)),
        }
    }

    /// Reads a range into `sink`, in order. Returns how many bytes were pushed, with the error when it ended early.
    pub async fn read(
        &self,
        key: &FileKey,
        attr: &Attr,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> (u64, Result<()>) {
        let mut done = 0;
        while done < length {
            let part = (length - done).min(REQUEST);
            let (pushed, outcome) = self.read_part(key, attr, offset + done, part, sink).await;
            done += pushed;
            match outcome {
                Ok(true) => {}
                Ok(false) => return (done, Ok(())),
                Err(error) => return (done, Err(error)),
            }
        }
        (done, Ok(()))
    }

    /// Whether the sink wants more.
    async fn read_part(
        &self,
        key: &FileKey,
        attr: &Attr,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> (u64, Result<bool>) {
        let mut pushed = 0;
        let outcome = async {
            let handle = self.handle(key, attr).await?;
            let units = u32::try_from(length.div_ceil(1024)).unwrap_or(u32::MAX);
            let _window = self
                .shared
                .window
                .clone()
                .acquire_many_owned(units)
                .await
                .map_err(|_| Error::new(ErrorKind::Unavailable, "the connection is closed"))?;
            let request = Request::start(&self.shared, Some(self.slot().await?));
            let mut request = request.with_bytes(length);
            request.send(&Message::Read { handle, offset, length: length as u32 }).await?;
            loop {
                match request.next(self.patience).await? {
                    Arrival::Data { offset: at, last, bytes } => {
                        let due = offset + pushed;
                        if at != due || pushed + bytes.len() as u64 > length {
                            return Err(Error::new(
                                ErrorKind::Corrupt,
                                format!("the worker sent {} bytes at {at} where {due} was due", bytes.len()),
                            ));
                        }
                        pushed += bytes.len() as u64;
                        let more = sink.push(&bytes);
                        request.consumed(bytes);
                        if !more {
                            return Ok(false);
                        }
                        if last {
                            break;
                        }
                    }
                    Arrival::Message(Message::Failure { code, message }, _) => {
                        let error = wire::error_of(code, message);
                        if error.kind() == ErrorKind::BadHandle {
                            self.handles.lock().pop(key);
                        }
                        return Err(error);
                    }
                    Arrival::Message(other, _) => return Err(unexpected("read", &other)),
                }
            }
            if pushed == length {
                Ok(true)
            } else {
                Err(Error::new(ErrorKind::Corrupt, format!("the worker sent {pushed} bytes of {length}")))
            }
        }
        .await;
        (pushed, outcome)
    }

    /// The whole file on the worker's disk, when it is there (domain sockets only); none when it is not.
    pub async fn export(&self, key: &FileKey, attr: &Attr) -> Result<Option<OwnedFd>> {
        if !self.is_domain() {
            return Ok(None);
        }
        let handle = self.handle(key, attr).await?;
        match self.ask(&Message::Export { handle }).await? {
            (Message::Exported, Some(file)) => Ok(Some(file)),
            (Message::Exported, None) => Err(Error::new(ErrorKind::Corrupt, "the descriptor is missing")),
            (Message::Failure { code, message }, _) => match wire::error_of(code, message) {
                error if error.kind() == ErrorKind::Unsupported => Ok(None),
                error => Err(error),
            },
            (other, _) => Err(unexpected("export", &other)),
        }
    }

    async fn handle(&self, key: &FileKey, attr: &Attr) -> Result<u32> {
        if let Some(handle) = self.handles.lock().get(key) {
            return Ok(*handle);
        }
        let open = Message::Open {
            storage: key.storage.as_bytes().to_vec(),
            path: key.path.as_bytes().to_vec(),
            version: key.version.as_str().to_owned(),
            size: attr.size,
            mtime_sec: attr.mtime.sec,
            mtime_nsec: attr.mtime.nsec,
        };
        match self.ask(&open).await? {
            (Message::Opened { handle }, _) => {
                let evicted = self.handles.lock().push(key.clone(), handle);
                if let Some((other, old)) = evicted
                    && (other != *key || old != handle)
                {
                    Request::start(&self.shared, None).send(&Message::Close { handle: old }).await?;
                }
                Ok(handle)
            }
            (Message::Failure { code, message }, _) => Err(wire::error_of(code, message)),
            (other, _) => Err(unexpected("open", &other)),
        }
    }

    async fn ask(&self, message: &Message) -> Result<(Message, Option<OwnedFd>)> {
        let slot = self.slot().await?;
        self.ask_with(message, Some(slot)).await
    }

    /// Asks what must get through however many requests are under way.
    async fn ask_uncounted(&self, message: &Message) -> Result<(Message, Option<OwnedFd>)> {
        self.ask_with(message, None).await
    }

    async fn ask_with(
        &self,
        message: &Message,
        slot: Option<OwnedSemaphorePermit>,
    ) -> Result<(Message, Option<OwnedFd>)> {
        let mut request = Request::start(&self.shared, slot);
        request.send(message).await?;
        match request.next(self.patience).await? {
            Arrival::Message(message, descriptor) => Ok((message, descriptor)),
            Arrival::Data { .. } => Err(Error::new(ErrorKind::Corrupt, "data that nobody asked for")),
        }
    }

    /// Waits until the worker takes one more request. A worker that stands still is noticed here too, since those who
    /// had the requests under way may be gone.
    async fn slot(&self) -> Result<OwnedSemaphorePermit> {
        if let Ok(slot) = self.shared.slots.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let begun = Instant::now();
        loop {
            match tokio::time::timeout(SILENCE, self.shared.slots.clone().acquire_owned()).await {
                Ok(Ok(slot)) => return Ok(slot),
                Ok(Err(_)) => return Err(self.shared.ended()),
                Err(_) if begun.elapsed() > self.patience => {
                    return Err(Error::new(
                        ErrorKind::TimedOut,
                        format!("the worker finished none of the requests under way for {:?}", self.patience),
                    ));
                }
                Err(_) if self.shared.silent_for() >= SILENCE => {
                    if let Err(error) = self.ping().await {
                        self.shared.end(error.clone());
                        return Err(error);
                    }
                }
                Err(_) => {}
            }
        }
    }
}

impl Drop for DataConnection {
    fn drop(&mut self) {
        self.reader.abort();
        self.shared.end(Error::new(ErrorKind::Unavailable, "the connection was given up"));
    }
}

/// One request and the answers to it. When it is dropped before its answer is complete the answer is skipped, and its slot
/// stays taken until then: the worker is still at work.
struct Request<'c> {
    shared: &'c Arc<Shared>,
    number: u32,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    outstanding: u64,
}

impl<'c> Request<'c> {
    fn start(shared: &'c Arc<Shared>, slot: Option<OwnedSemaphorePermit>) -> Self {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, arrivals) = mpsc::unbounded_channel();
        shared.waiting.lock().insert(number, Waiting { sender: Some(sender), slot });
        Self { shared, number, arrivals, outstanding: 0 }
    }

    fn with_bytes(mut self, bytes: u64) -> Self {
        self.outstanding = bytes;
        self.shared.outstanding.fetch_add(bytes, Ordering::Relaxed);
        self
    }

    fn consumed(&mut self, bytes: Vec<u8>) {
        let count = (bytes.len() as u64).min(self.outstanding);
        self.outstanding -= count;
        self.shared.outstanding.fetch_sub(count, Ordering::Relaxed);
        buffers::give_back(bytes);
    }

    async fn send(&self, message: &Message) -> Result<()> {
        if self.shared.broken.load(Ordering::Acquire) {
            return Err(self.shared.ended());
        }
        let frame = message.encode(self.number)?;
        let _turn = self.shared.sending.lock().await;
        let mut whole = Whole { shared: self.shared, sent: false };
        self.shared.socket.send(&[&frame]).await?;
        whole.sent = true;
        Ok(())
    }

    /// The next answer. Fails when the connection ends, when the worker stands still, or when there is no progress for
    /// `patience` though it is alive.
    async fn next(&mut self, patience: Duration) -> Result<Arrival> {
        let begun = Instant::now();
        let mut pinged = None;
        loop {
            match tokio::time::timeout(SILENCE, self.arrivals.recv()).await {
                // The answer to the ping below, which goes under this request's number.
                Ok(Some(Arrival::Message(Message::Pong, _))) if pinged.take().is_some() => continue,
                Ok(Some(arrival)) => return Ok(arrival),
                Ok(None) => return Err(self.shared.ended()),
                Err(_) => {}
            }
            if begun.elapsed() > patience {
                return Err(Error::new(ErrorKind::TimedOut, format!("the worker gave nothing for {patience:?}")));
            }
            if self.shared.silent_for() < SILENCE {
                pinged = None;
            } else if pinged.is_none() {
                pinged = Some(());
                self.send(&Message::Ping).await?;
            } else {
                let error = Error::new(ErrorKind::Unavailable, "the worker stands still");
                self.shared.end(error.clone());
                return Err(error);
            }
        }
    }
}

/// A frame of which only a part was sent ends the connection: what followed would be taken for its rest.
struct Whole<'c> {
    shared: &'c Shared,
    sent: bool,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if !self.sent {
            self.shared.end(Error::new(ErrorKind::Unavailable, "a request could not be sent as a whole"));
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        {
            let mut waiting = self.shared.waiting.lock();
            match waiting.get_mut(&self.number) {
                Some(answer) if answer.slot.is_some() => answer.sender = None,
                Some(_) => drop(waiting.remove(&self.number)),
                None => {}
            }
        }
        self.shared.outstanding.fetch_sub(self.outstanding, Ordering::Relaxed);
        while let Ok(arrival) = self.arrivals.try_recv() {
            if let Arrival::Data { bytes, .. } = arrival {
                buffers::give_back(bytes);
            }
        }
    }
}

impl Shared {
    fn silent_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    fn hear(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    fn deliver(&self, request: u32, arrival: Arrival) {
        let last = match &arrival {
            Arrival::Data { last, .. } => *last,
            // Requests that wait for long ping under their own number.
            Arrival::Message(message, _) => *message != Message::Pong,
        };
        let mut waiting = self.waiting.lock();
        let Some(answer) = waiting.get(&request) else { return };
        let slotted = answer.slot.is_some();
        if let Some(sender) = &answer.sender {
            // Whoever waited may be gone this very moment.
            let _ = sender.send(arrival);
        } else if let Arrival::Data { bytes, .. } = arrival {
            buffers::give_back(bytes);
        }
        if last && slotted {
            waiting.remove(&request);
        }
    }

    /// Ends the connection; the first reason counts. Wakes everybody who waits.
    fn end(&self, error: Error) {
        self.end.lock().get_or_insert(error);
        self.broken.store(true, Ordering::Release);
        self.slots.close();
        self.waiting.lock().clear();
    }

    fn ended(&self) -> Error {
        match &*self.end.lock() {
            Some(error) => Error::new(ErrorKind::Unavailable, format!("the connection ended: {error}")),
            None => Error::new(ErrorKind::Unavailable, "the connection ended"),
        }
    }
}

async fn receive(shared: &Shared, mut reader: FrameReader) -> Result<()> {
    while let Some(header) = reader.header().await? {
        shared.hear();
        if header.kind != Kind::Data {
            let message = reader.message(&header).await?;
            let descriptor = (message == Message::Exported).then(|| reader.descriptor()).flatten();
            shared.deliver(header.request, Arrival::Message(message, descriptor));
            continue;
        }
        let prefix = reader.data_prefix(&header).await?;
        let mut bytes = buffers::take(header.length as usize - DATA_PREFIX);
        reader.fill(&mut bytes).await?;
        shared.hear();
        if crc32c::crc32c(&bytes) != prefix.checksum {
            let error = Error::new(ErrorKind::Corrupt, "bytes changed on the way from the worker");
            shared.deliver(header.request, Arrival::Message(wire::failure_of(&error), None));
            buffers::give_back(bytes);
            continue;
        }
        shared.deliver(header.request, Arrival::Data { offset: prefix.offset, last: prefix.last, bytes });
    }
    Ok(())
}

/// Receive buffers kept for reuse: fresh memory of this size would cost page faults each time.
mod buffers {
    use parking_lot::Mutex;

    /// 16 MiB at most with the usual pieces.
    const KEPT: usize = 16;
    const LARGEST: usize = 1 << 20;
    static IDLE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

    pub fn take(length: usize) -> Vec<u8> {
        let mut buffer = IDLE.lock().pop().unwrap_or_default();
        if buffer.len() < length {
            buffer.resize(length, 0);
        } else {
            buffer.truncate(length);
        }
        buffer
    }

    pub fn give_back(buffer: Vec<u8>) {
        if buffer.capacity() <= LARGEST && buffer.capacity() > 0 {
            let mut idle = IDLE.lock();
            if idle.len() < KEPT {
                idle.push(buffer);
            }
        }
    }
}

async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .map_err(|_| Error::new(ErrorKind::TimedOut, format!("{what}: no answer within {limit:?}")))?
}

fn unavailable(what: &str, error: std::io::Error) -> Error {
    Error::with_source(ErrorKind::Unavailable, format!("{what}: {error}"), error)
}

fn unexpected(what: &str, message: &Message) -> Error {
    Error::new(ErrorKind::Corrupt, format!("{what}: the worker answered with {:?}", message.kind()))
}
