//! The way to one worker for changes: a connection of its own, and the session that holds files open there.
//!
//! Apart from the connection for metadata, because that one is given up after two seconds of silence, which costs a reader
//! a detour, and would cost a writer its file. A worker that stands still for longer than [`PATIENCE`] is lost.
//!
//! Invariants: bytes on their way to a worker are bounded; a session that ended is replaced for new files only.

use super::{super::link::Link, handle::FileView, shown};
use bytes::Bytes;
use common::{
    Error, ErrorKind, Result,
    rpc::{
        self,
        worker::{HoldRequest, changes_client::ChangesClient},
    },
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::Semaphore, task::AbortHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// How often a worker is asked for a sign of life while files are open there, and how long it may take for it.
const PULSE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a session may take to begin.
const BEGIN: Duration = Duration::from_secs(10);
/// Bytes on their way to one worker.
const WINDOW: usize = 64 << 20;

/// Why a request has no good answer.
#[derive(Debug)]
pub enum Failure {
    /// The worker, or its storage, said so.
    Told(Error),
    /// Nothing was done.
    NotBegun(Error),
    /// The worker is gone; whether it was done is not known.
    Lost(Error),
}

impl Failure {
    /// The error, whatever it means.
    pub fn into_error(self) -> Error {
        match self {
            Failure::Told(error) | Failure::NotBegun(error) | Failure::Lost(error) => error,
        }
    }
}

/// See the module.
pub struct Lane {
    channel: Channel,
    name: String,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    window: Arc<Semaphore>,
}

impl Lane {
    /// A lane to `endpoint`; nothing is connected yet. `name`: this client's, for the worker's log.
    pub fn new(endpoint: Endpoint, name: &str) -> Self {
        let channel =
            endpoint.http2_keep_alive_interval(PULSE).keep_alive_timeout(PATIENCE).tcp_nodelay(true).connect_lazy();
        Self {
            channel,
            name: name.to_owned(),
            session: tokio::sync::Mutex::default(),
            window: Arc::new(Semaphore::new(WINDOW >> 10)),
        }
    }

    fn client(&self) -> ChangesClient<Channel> {
        ChangesClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    /// Makes a request. It has no deadline but that of who waits for it: a worker that is gone is noticed.
    pub async fn ask<T>(
        &self,
        link: &Arc<Link>,
        call: impl AsyncFnOnce(&mut ChangesClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Failure> {
        match call(&mut self.client()).await {
            Ok(response) => {
                link.answered();
                Ok(response.into_inner())
            }
            Err(status) => {
                let error = rpc::error_of(&status);
                if status.code() == tonic::Code::Unimplemented && !rpc::is_told(&status) {
                    let why = format!("{} is of a version that takes no writes", shown(link));
                    return Err(Failure::NotBegun(Error::new(ErrorKind::Unsupported, why)));
                }
                if !rpc::is_told(&status) {
                    link.failed(&error);
                }
                Err(match rpc::may_be_done(&status) {
                    false => Failure::NotBegun(error),
                    true if rpc::is_told(&status) => Failure::Told(error),
                    true => Failure::Lost(error),
                })
            }
        }
    }

    /// The session at this worker, begun if there is none.
    pub async fn session(&self, link: &Arc<Link>) -> Result<Arc<Session>, Failure> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.ended.is_cancelled()) {
            return Ok(session.clone());
        }
        *session = None;
        let late = || {
            let error = Error::new(ErrorKind::TimedOut, format!("{} begins no session", shown(link)));
            link.failed(&error);
            Failure::NotBegun(error)
        };
        let name = self.name.clone();
        let begun = self.ask(link, async move |client| client.hold(HoldRequest { name }).await);
        let mut stream = tokio::time::timeout(BEGIN, begun).await.map_err(|_| late())?.map_err(|failure| {
            // A session that may have begun has nothing open.
            Failure::NotBegun(failure.into_error())
        })?;
        let first = tokio::time::timeout(BEGIN, stream.message()).await.map_err(|_| late())?;
        let id = match first {
            Ok(Some(held)) if !held.session.is_empty() => held.session,
            Ok(_) => return Err(late()),
            Err(status) => return Err(Failure::NotBegun(rpc::error_of(&status))),
        };
        let ended = CancellationToken::new();
        let end = ended.clone();
        let held = tokio::spawn(async move {
            // Nothing more comes: it ends with the worker, or with the way to it.
            while let Ok(Some(_)) = stream.message().await {}
            end.cancel();
        });
        let fresh = Arc::new(Session { id, ended, held: held.abort_handle(), views: Mutex::default() });
        *session = Some(fresh.clone());
        Ok(fresh)
    }

    /// Waits until so many bytes may be on their way.
    pub async fn room(&self, bytes: usize) -> Result<tokio::sync::OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(1024).clamp(1, WINDOW >> 10)).unwrap_or(u32::MAX);
        let room = self.window.clone().acquire_many_owned(units).await;
        room.map_err(|_| Error::new(ErrorKind::Unavailable, "the connection is closed"))
    }
}

/// Files are open at the worker for as long as it lasts.
pub struct Session {
    id: Vec<u8>,
    ended: CancellationToken,
    held: AbortHandle,
    /// What is known of files that are open in it, by device and inode: all handles of a file share it.
    views: Mutex<HashMap<(u64, u64), Weak<FileView>>>,
}

impl Session {
    /// Its name, for requests.
    pub fn id(&self) -> Vec<u8> {
        self.id.clone()
    }

    /// What is known of a file, shared by all that have it open.
    pub fn view(&self, file: (u64, u64), fresh: impl FnOnce() -> FileView) -> Arc<FileView> {
        if file == (0, 0) {
            return Arc::new(fresh());
        }
        let mut views = self.views.lock();
        if let Some(view) = views.get(&file).and_then(Weak::upgrade) {
            return view;
        }
        // Those of closed files are cleared when the table has doubled.
        if views.len() >= 1024 && views.len() == views.capacity() {
            views.retain(|_, view| view.strong_count() > 0);
        }
        let view = Arc::new(fresh());
        views.insert(file, Arc::downgrade(&view));
        view
    }

    /// Whether it has ended, and with it everything that was open.
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Returns when it has ended.
    pub async fn end(&self) {
        self.ended.cancelled().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.held.abort();
    }
}

/// Bytes as a request carries them, with their checksum.
pub fn checked(data: Bytes) -> (Bytes, u32) {
    let checksum = crc32c::crc32c(&data);
    (data, checksum)
}
