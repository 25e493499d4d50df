//! A file that is open for writing at a worker.
//!
//! Nothing is kept back here: a write is answered when the worker has made it. When the worker is lost, so is its open
//! file. Then whatever was not flushed (or, to a sync, not synced) may be lost with it, and every further call fails with
//! an input/output error until the file is opened anew; only the flush of a file to which nothing was written since the
//! last one still succeeds.
//!
//! Invariants: attributes never go back, whatever the order in which answers arrive; a file that nobody has any more is
//! closed at the worker.

use super::{
    super::link::Link,
    lane::{Failure, Session, checked},
    shown,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    change::{SetAttr, WriteHandle},
    rpc::worker::{
        Allocate, FileState, Nothing, OpenRequest, Range, Seek, Sync as SyncUse, UseReply, UseRequest, WriteRequest,
        changes_client::ChangesClient, use_request::Use,
    },
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::runtime::Handle;
use tonic::transport::Channel;

/// Bytes of one request.
const PIECE: usize = 1 << 20;

/// What is known of a file that is open at a worker.
pub struct FileView {
    newest: Mutex<(u64, Arc<Attr>)>,
}

impl FileView {
    fn new(state: &FileState, attr: Attr) -> Self {
        Self { newest: Mutex::new((state.stamp, Arc::new(attr))) }
    }

    /// Takes a state in, unless a newer one is known.
    fn learn(&self, state: FileState) {
        let Some(attr) = state.attr else { return };
        let mut newest = self.newest.lock();
        if state.stamp > newest.0 {
            *newest = (state.stamp, Arc::new(attr.into()));
        }
    }
}

#[derive(Default)]
struct Course {
    /// Counts the changes.
    changes: u64,
    /// Up to which of them the last flush that succeeded promises, and the last sync.
    flushed: u64,
    synced: u64,
    /// Why it is of no use any more.
    lost: Option<Error>,
}

/// See the module.
pub struct RemoteHandle {
    link: Arc<Link>,
    session: Arc<Session>,
    handle: u64,
    view: Arc<FileView>,
    course: Mutex<Course>,
    path: UfsPath,
    /// Where it is closed: who drops it may be no task.
    runtime: Handle,
}

/// Opens a file at a worker.
pub async fn open(
    link: Arc<Link>,
    session: Arc<Session>,
    request: OpenRequest,
    path: UfsPath,
) -> Result<RemoteHandle, Failure> {
    let reply = link.lane().ask(&link, async move |client| client.open(request).await).await?;
    let corrupt = || Failure::Lost(Error::new(ErrorKind::Corrupt, "an answer without attributes"));
    let state = reply.state.ok_or_else(corrupt)?;
    let attr = Attr::from(state.attr.clone().ok_or_else(corrupt)?);
    let view = session.view((state.device, state.inode), || FileView::new(&state, attr));
    view.learn(state);
    Ok(RemoteHandle {
        session,
        handle: reply.handle,
        view,
        course: Mutex::default(),
        path,
        link,
        runtime: Handle::current(),
    })
}

impl RemoteHandle {
    async fn ask(
        &self,
        call: impl AsyncFnOnce(&mut ChangesClient<Channel>) -> Result<tonic::Response<UseReply>, tonic::Status>,
    ) -> Result<UseReply> {
        if let Some(lost) = &self.course.lock().lost {
            return Err(lost.clone());
        }
        if self.session.has_ended() {
            return Err(self.lose("the connection ended"));
        }
        let answer = tokio::select! {
            biased;
            answer = self.link.lane().ask(&self.link, call) => answer,
            () = self.session.end() => return Err(self.lose("the connection ended")),
        };
        match answer {
            Ok(mut reply) => {
                if let Some(state) = reply.state.take() {
                    self.view.learn(state);
                }
                Ok(reply)
            }
            Err(Failure::Lost(error)) => Err(self.lose(&error.to_string())),
            // The session is not known there (any more).
            Err(Failure::NotBegun(error) | Failure::Told(error)) if error.kind() == ErrorKind::BadHandle => {
                Err(self.lose(error.message()))
            }
            Err(Failure::Told(error)) => Err(error),
            // Corrupt on the way, or no way to it at the moment: nothing was done, and the file is not known to be lost.
            Err(Failure::NotBegun(error)) => Err(Error::new(ErrorKind::Io, format!("{}: {error}", self.path))),
        }
    }

    fn lose(&self, why: &str) -> Error {
        let mut course = self.course.lock();
        let lost = course.lost.get_or_insert_with(|| {
            let error = Error::new(
                ErrorKind::Io,
                format!(
                    "{}: {} was lost while the file was open for writing ({why}); open it again, and write again what \
                     was not closed or synced",
                    self.path,
                    shown(&self.link)
                ),
            );
            tracing::warn!("{error}");
            error
        });
        lost.clone()
    }

    async fn use_it(&self, how: Use) -> Result<UseReply> {
        let request = UseRequest { session: self.session.id(), handle: self.handle, r#use: Some(how) };
        self.ask(async move |client| client.r#use(request).await).await
    }

    async fn change(&self, how: Use) -> Result<UseReply> {
        self.touch();
        self.use_it(how).await
    }

    fn touch(&self) {
        self.course.lock().changes += 1;
    }

    async fn put(&self, offset: u64, data: Bytes, append: bool) -> Result<()> {
        self.touch();
        let _room = self.link.lane().room(data.len()).await?;
        let (data, checksum) = checked(data);
        let request = WriteRequest { session: self.session.id(), handle: self.handle, offset, append, data, checksum };
        self.ask(async move |client| client.write(request).await).await.map(drop)
    }

    /// Brings about what a flush promises, or (`sync`) a sync, which is a flush too.
    async fn settle(&self, how: Use, sync: bool) -> Result<()> {
        let seen = {
            let course = self.course.lock();
            let done = if sync { course.synced } else { course.flushed };
            if done == course.changes && (course.lost.is_some() || self.session.has_ended()) {
                return Ok(());
            }
            course.changes
        };
        let settled = self.use_it(how).await;
        // Only then, since whoever waits for it may give up, and the next one must not take it for done.
        if settled.is_ok() {
            let mut course = self.course.lock();
            course.flushed = course.flushed.max(seen);
            if sync {
                course.synced = course.synced.max(seen);
            }
        }
        settled.map(drop)
    }
}

#[async_trait]
impl WriteHandle for RemoteHandle {
    fn attr(&self) -> Arc<Attr> {
        self.view.newest.lock().1.clone()
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let mut all = BytesMut::new();
        loop {
            let wanted = (length - all.len()).min(PIECE);
            // Bounded by PIECE.
            let range = Range { offset: offset + all.len() as u64, length: wanted as u32 };
            let UseReply { data, checksum, .. } = self.use_it(Use::Read(range)).await?;
            if data.len() > wanted || crc32c::crc32c(&data) != checksum {
                return Err(Error::new(ErrorKind::Corrupt, "bytes changed on the way from the worker"));
            }
            let over = data.len() < wanted;
            if all.is_empty() && (over || wanted == length) {
                return Ok(data);
            }
            all.extend_from_slice(&data);
            if over || all.len() == length {
                return Ok(all.freeze());
            }
        }
    }

    async fn write(&self, offset: u64, mut data: Bytes) -> Result<()> {
        let mut at = offset;
        loop {
            let piece = data.split_to(data.len().min(PIECE));
            let length = piece.len() as u64;
            self.put(at, piece, false).await?;
            at += length;
            if data.is_empty() {
                return Ok(());
            }
        }
    }

    async fn append(&self, data: Bytes) -> Result<()> {
        // In one piece, since what others append must not come in between.
        self.put(0, data, true).await
    }

    async fn truncate(&self, size: u64) -> Result<()> {
        self.change(Use::Truncate(size)).await.map(drop)
    }

    async fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        self.change(Use::Allocate(Allocate { mode, offset, length })).await.map(drop)
    }

    async fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        Ok(self.use_it(Use::Seek(Seek { offset, hole })).await?.position)
    }

    async fn flush(&self) -> Result<()> {
        self.settle(Use::Flush(Nothing {}), false).await
    }

    async fn set_attr(&self, change: &SetAttr) -> Result<Option<Arc<Attr>>> {
        let how = Use::SetAttr(change.into());
        // Without a change it only asks.
        if *change == SetAttr::default() {
            self.use_it(how).await?
        } else {
            self.change(how).await?
        };
        Ok(Some(self.attr()))
    }

    fn is_shared(&self) -> bool {
        self.course.lock().lost.is_none() && !self.session.has_ended()
    }

    async fn sync(&self, data_only: bool) -> Result<()> {
        self.settle(Use::Sync(SyncUse { data_only }), true).await
    }
}

impl Drop for RemoteHandle {
    fn drop(&mut self) {
        if self.session.has_ended() {
            return;
        }
        let (link, session, handle) = (self.link.clone(), self.session.clone(), self.handle);
        self.runtime.spawn(async move {
            let request = UseRequest { session: session.id(), handle, r#use: Some(Use::Close(Nothing {})) };
            // What fails here is closed with the session.
            let _ = link.lane().ask(&link, async move |client| client.r#use(request).await).await;
        });
    }
}
