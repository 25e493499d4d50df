//! A data connection to a worker: many requests under way at once on one socket.
//!
//! Invariants:
//! - a payload is handed on only after its checksum was verified;
//! - memory is bounded: bytes asked for and not yet consumed never exceed a limit for each connection, and a worker that
//!   sends what was not asked for loses its connection ([`request`]);
//! - requests under way never exceed what the worker allows ([`Message::Welcome`]), those that were given up here and that
//!   the worker still answers included; pings are not counted, so that they always get through;
//! - a worker that stands still is noticed: when nothing arrives for [`SILENCE`], of whatever request, it is pinged, and
//!   when even that brings nothing the connection is given up. A worker that waits for a slow storage answers pings and is
//!   waited for.

mod buffers;
mod request;

use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    attr::process_owner,
    tls::ClientTls,
    wire::{self, FrameReader, Message, Socket, peer},
};
use lru::LruCache;
use parking_lot::Mutex;
use request::{Arrival, Request, Shared};
use std::{
    num::NonZeroUsize,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::OwnedSemaphorePermit, task::AbortHandle};
use ufs::ReadSink;

/// After so long without a frame the worker is asked whether it is there; after as long again it is given up.
pub const SILENCE: Duration = Duration::from_secs(1);
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
    /// Users whose domain sockets are trusted, beside root and this process's own.
    pub owners: &'d [u32],
}

/// A connection. Shared by `Arc`; ends when dropped.
pub struct DataConnection {
    shared: Arc<Shared>,
    reader: AbortHandle,
    handles: Mutex<LruCache<FileKey, u32>>,
    patience: Duration,
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
        let (pid, uid, _) = peer(stream.as_fd())?;
        if !is_trusted(uid, process_owner().0, dial.owners) {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "{what}: process {pid} of user {uid} listens there, who is neither root nor this process's user; \
                     if that is the worker, add {uid} to alluxio.user.domain.socket.trusted.uids"
                ),
            ));
        }
        let stream = stream.into_std().map_err(|error| Error::io(&what, error))?;
        Self::begin(Socket::domain(stream, SILENCE * 5)?, &what, dial).await
    }

    async fn begin(socket: Socket, what: &str, dial: Dial<'_>) -> Result<Self> {
        let socket = Arc::new(socket);
        let shared = Arc::new(Shared::over(socket.clone()));
        let reader = tokio::spawn({
            let shared = shared.clone();
            async move {
                let error = match request::receive(&shared, FrameReader::new(socket)).await {
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
        !self.shared.is_broken()
    }

    /// Bytes asked for and not yet arrived.
    pub fn outstanding(&self) -> u64 {
        self.shared.outstanding()
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
            let mut request = Request::start(&self.shared, Some(self.slot().await?), length);
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
                    self.shared.close_handle(old);
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
        let mut request = Request::start(&self.shared, slot, 0);
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
                Err(_) => self.shared.look().await?,
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

/// Whether what a process of `uid` gives is taken for the bytes of a worker by one of `own`.
fn is_trusted(uid: u32, own: u32, others: &[u32]) -> bool {
    uid == 0 || uid == own || others.contains(&uid)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_the_own_user_and_those_named_are_taken_for_workers() {
        assert!(is_trusted(0, 5, &[]) && is_trusted(5, 5, &[]) && is_trusted(7, 5, &[6, 7]));
        // Root trusts nobody else either.
        assert!(!is_trusted(8, 5, &[6, 7]) && !is_trusted(8, 0, &[]));
    }
}
