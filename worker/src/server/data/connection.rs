//! One connection: reads frames, keeps the handles, and has each request answered by a task of its own.

use super::{DataServer, answer};
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, Version,
    wire::{self, DataPrefix, FrameReader, MAX_DATA, Message, Socket},
    worker::{FileLease, PagedFile},
};
use parking_lot::Mutex;
use std::{collections::HashMap, fs::File, os::fd::AsRawFd, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Requests that a client is told it may have under way.
const IN_FLIGHT: u32 = 64;
/// Requests that are under way before nothing more is read from the socket. Above what clients are told, so that their
/// pings get through.
const IN_FLIGHT_MOST: usize = 128;
/// How long a client may take to introduce itself.
const HELLO: Duration = Duration::from_secs(10);
/// Requests of at most so many bytes are answered at once when they are present.
const AT_ONCE: u32 = 128 << 10;
/// Pages that one request may have fetched ahead.
const PREFETCH: u64 = 4096;

/// An open version of a file.
pub(super) struct Handle {
    pub file: Arc<dyn PagedFile>,
    /// Held for as long as the handle once the descriptor was given.
    lease: Mutex<Option<FileLease>>,
}

/// What the tasks of a connection share.
pub(super) struct Connection {
    pub server: Arc<DataServer>,
    socket: Arc<Socket>,
    /// Whoever sends a frame holds it: frames do not mix.
    sending: tokio::sync::Mutex<()>,
    handles: Mutex<Handles>,
    /// Bytes of pages in memory on their way, in units of 4 KiB.
    pub bytes: Arc<Semaphore>,
    /// Set when sending failed: the stream is of no use any more.
    pub broken: CancellationToken,
}

#[derive(Default)]
struct Handles {
    open: HashMap<u32, Arc<Handle>>,
    next: u32,
}

impl Connection {
    /// Sends a message. A failure ends the connection.
    pub async fn send(&self, request: u32, message: &Message) {
        let sent = match message.encode(request) {
            Ok(frame) => {
                let _sending = self.sending.lock().await;
                self.socket.send(&[&frame]).await
            }
            Err(error) => Err(error.into()),
        };
        self.check(sent);
    }

    pub async fn fail(&self, request: u32, error: &Error) {
        self.send(request, &wire::failure_of(error)).await;
    }

    /// Sends bytes of a file.
    pub async fn send_data(&self, request: u32, offset: u64, bytes: &[u8], last: bool) {
        let prefix = DataPrefix { offset, checksum: crc32c::crc32c(bytes), last };
        let head = prefix.encode(request, bytes.len());
        let _sending = self.sending.lock().await;
        self.check(self.socket.send(&[&head, bytes]).await);
    }

    /// Sends bytes of a file as they lie on disk.
    pub async fn send_stored(&self, request: u32, prefix: DataPrefix, page: &common::worker::StoredPage) {
        let head = prefix.encode(request, page.length);
        let _sending = self.sending.lock().await;
        let mut sent = self.socket.send_more(&[&head]).await;
        if sent.is_ok() {
            sent = self.socket.send_file(&page.file, page.offset, page.length).await;
        }
        self.check(sent);
    }

    fn check(&self, sent: Result<()>) {
        if let Err(error) = sent {
            tracing::debug!(%error, "a connection is given up");
            self.broken.cancel();
        }
    }

    fn handle(&self, handle: u32) -> Result<Arc<Handle>> {
        self.handles
            .lock()
            .open
            .get(&handle)
            .cloned()
            .ok_or_else(|| Error::new(ErrorKind::BadHandle, format!("no handle {handle} is open on this connection")))
    }

    async fn open(&self, storage: &[u8], path: &[u8], wanted: &Attr) -> Result<u32> {
        let storage = std::str::from_utf8(storage)
            .map_err(|_| Error::new(ErrorKind::InvalidArgument, "the storage's URI is no text"))?;
        let path = UfsPath::parse(path)?;
        let mounted = self.server.namespace.find(storage).await?;
        let file = match mounted.open_version(&path, wanted).await {
            Ok(file) => file,
            Err(error) => {
                if error.kind() == ErrorKind::Stale {
                    mounted.published(std::slice::from_ref(&path), false);
                }
                return Err(error);
            }
        };
        let mut handles = self.handles.lock();
        if handles.open.len() >= self.server.limits.handles {
            return Err(Error::new(
                ErrorKind::TooManyFiles,
                format!("{} handles are open on this connection; close some", handles.open.len()),
            ));
        }
        let mut handle = handles.next;
        while handles.open.contains_key(&handle) {
            handle = handle.wrapping_add(1);
        }
        handles.next = handle.wrapping_add(1);
        handles.open.insert(handle, Arc::new(Handle { file, lease: Mutex::new(None) }));
        Ok(handle)
    }

    /// Gives the descriptor of a file that is wholly present.
    async fn export(&self, request: u32, handle: &Arc<Handle>) -> Result<()> {
        if !self.socket.is_domain() {
            return Err(Error::new(ErrorKind::Unsupported, "descriptors are passed over the domain socket only"));
        }
        let file = handle.file.clone();
        // Pages of a former process are verified before they are given away: that reads them all.
        let exported = tokio::task::spawn_blocking(move || {
            let lease = file.export()?;
            // The store's own descriptor can be written through; what is given away cannot.
            let readable = File::open(format!("/proc/self/fd/{}", lease.file().as_raw_fd())).ok()?;
            Some((lease, readable))
        });
        let exported = exported.await.map_err(|error| Error::new(ErrorKind::Io, format!("export: {error}")))?;
        let Some((lease, readable)) = exported else {
            return Err(Error::new(ErrorKind::Unsupported, "the file is not wholly present"));
        };
        *handle.lease.lock() = Some(lease);
        let frame = Message::Exported.encode(request)?;
        let _sending = self.sending.lock().await;
        self.check(self.socket.send_with(&frame, &readable).await);
        Ok(())
    }
}

/// Serves one connection until it ends.
///
/// # Errors
/// `Corrupt` when the peer breaks the protocol; others when the socket fails.
pub(super) async fn serve(server: &Arc<DataServer>, socket: Socket, from: &str) -> Result<()> {
    let socket = Arc::new(socket);
    let mut frames = FrameReader::new(socket.clone());
    let connection = Arc::new(Connection {
        server: server.clone(),
        socket,
        sending: tokio::sync::Mutex::new(()),
        handles: Mutex::default(),
        bytes: Arc::new(Semaphore::new((server.limits.bytes / 4096).max(1))),
        broken: CancellationToken::new(),
    });
    if !greet(&connection, &mut frames, from).await? {
        return Ok(());
    }
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MOST));
    // Dropped with this function: then the tasks end where they are.
    let mut tasks = JoinSet::new();
    let mut scratch = Vec::new();
    let outcome = loop {
        while tasks.try_join_next().is_some() {}
        let header = tokio::select! {
            biased;
            () = connection.broken.cancelled() => break Ok(()),
            () = server.draining.cancelled() => break Ok(()),
            header = tokio::time::timeout(server.limits.idle, frames.header()) => header,
        };
        let header = match header {
            Ok(Ok(Some(header))) => header,
            Ok(Ok(None)) => break Ok(()),
            Ok(Err(error)) => break Err(error),
            Err(_) if tasks.is_empty() => break Ok(()),
            Err(_) => continue,
        };
        let message = match next_message(&mut frames, &header, server.limits.patience).await {
            Ok(message) => message,
            Err(error) => break Err(error),
        };
        let request = header.request;
        match message {
            Message::Ping => connection.send(request, &Message::Pong).await,
            Message::Close { handle } => drop(connection.handles.lock().open.remove(&handle)),
            Message::Prefetch { handle, first, count } => {
                // No answer: a handle that was closed meanwhile needs no pages.
                if let Ok(handle) = connection.handle(handle) {
                    handle.file.prefetch(first, u64::from(count).min(PREFETCH));
                }
            }
            Message::Read { handle, offset, length } => {
                let handle = match connection.handle(handle).and_then(|handle| check_range(handle, offset, length)) {
                    Ok(handle) => handle,
                    Err(error) => {
                        connection.fail(request, &error).await;
                        continue;
                    }
                };
                if length <= AT_ONCE
                    && answer::at_once(&connection, request, &handle, offset, length, &mut scratch).await
                {
                    continue;
                }
                let Some(permit) = in_line(&connection, &in_flight).await else { break Ok(()) };
                let connection = connection.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = answer::read(&connection, request, &handle, offset, length).await {
                        connection.fail(request, &error).await;
                    }
                });
            }
            Message::Open { storage, path, version, size, mtime_sec, mtime_nsec } => {
                let mtime = Timestamp { sec: mtime_sec, nsec: mtime_nsec };
                let version = if version.is_empty() { Version::none() } else { Version::new(version) };
                let wanted = Attr::of_object(FileKind::File, size, mtime, version);
                let Some(permit) = in_line(&connection, &in_flight).await else { break Ok(()) };
                let connection = connection.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    match connection.open(&storage, &path, &wanted).await {
                        Ok(handle) => connection.send(request, &Message::Opened { handle }).await,
                        Err(error) => connection.fail(request, &error).await,
                    }
                });
            }
            Message::Export { handle } => {
                let Some(permit) = in_line(&connection, &in_flight).await else { break Ok(()) };
                let connection = connection.clone();
                tasks.spawn(async move {
                    let _permit = permit;
                    let exported = match connection.handle(handle) {
                        Ok(handle) => connection.export(request, &handle).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = exported {
                        connection.fail(request, &error).await;
                    }
                });
            }
            other => {
                break Err(Error::new(ErrorKind::Corrupt, format!("a client sends no {:?} frames here", other.kind())));
            }
        }
    };
    if outcome.is_ok() && server.draining.is_cancelled() {
        // What was asked before the end is still answered.
        while tasks.join_next().await.is_some() {}
    }
    outcome
}

/// Exchanges Hello and Welcome. False: the peer went away without a word.
async fn greet(connection: &Connection, frames: &mut FrameReader, from: &str) -> Result<bool> {
    let hello = async {
        let Some(header) = frames.header().await? else { return Ok(None) };
        let message = frames.message(&checked(&header)?).await?;
        Ok::<_, Error>(Some((header.request, message)))
    };
    let (request, message) = match tokio::time::timeout(HELLO, hello).await {
        Ok(greeted) => match greeted? {
            Some(greeted) => greeted,
            None => return Ok(false),
        },
        Err(_) => return Err(Error::new(ErrorKind::TimedOut, "the peer did not introduce itself")),
    };
    let Message::Hello { name } = message else {
        return Err(Error::new(ErrorKind::Corrupt, "a connection begins with Hello"));
    };
    tracing::debug!("{name:?} connects from {from}");
    let server = &connection.server;
    let welcome = Message::Welcome {
        worker: server.identity,
        page_size: server.namespace.store().page_size(),
        in_flight: IN_FLIGHT,
    };
    connection.send(request, &welcome).await;
    Ok(true)
}

async fn next_message(frames: &mut FrameReader, header: &wire::Header, patience: Duration) -> Result<Message> {
    match tokio::time::timeout(patience, frames.message(&checked(header)?)).await {
        Ok(message) => message,
        Err(_) => Err(Error::new(ErrorKind::TimedOut, "the peer stopped in the middle of a frame")),
    }
}

/// Clients send no data: such a frame is not even read.
fn checked(header: &wire::Header) -> Result<wire::Header> {
    if header.kind == wire::Kind::Data {
        return Err(Error::new(ErrorKind::Corrupt, "a client sends no Data frames"));
    }
    Ok(*header)
}

/// Waits until there is room for one more request; nothing is read from the socket meanwhile.
async fn in_line(connection: &Connection, in_flight: &Arc<Semaphore>) -> Option<tokio::sync::OwnedSemaphorePermit> {
    tokio::select! {
        permit = in_flight.clone().acquire_owned() => permit.ok(),
        () = connection.broken.cancelled() => None,
    }
}

fn check_range(handle: Arc<Handle>, offset: u64, length: u32) -> Result<Arc<Handle>> {
    let size = handle.file.attr().size;
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= size);
    if !inside || length as usize > MAX_DATA {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("a read of {length} bytes at {offset} of a file of {size} bytes; {MAX_DATA} bytes are the most"),
        ));
    }
    Ok(handle)
}
