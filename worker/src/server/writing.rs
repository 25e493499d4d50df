//! Changes of storages by RPC: the service `Changes` of common/proto/worker.proto.
//!
//! - [`local`]: a file of a directory on this host, open for writing; [`sessions`]: which files are open, for whom.
//!
//! Invariants:
//! - a request that was begun is carried out to its end, whoever goes away meanwhile; one that was not says so;
//! - once a change was answered this worker knows nothing that is older than it, and whoever caches is told;
//! - files are open for as long as their caller takes the answer to `Hold`, and no longer;
//! - nothing is written whose checksum is wrong.

mod local;
mod sessions;

use super::namespace::{Mounted, Namespace};
use bytes::Bytes;
use common::{
    Error, ErrorKind, FileKind, Result, UfsPath,
    change::{Caller, Changes, OpenedForWriting, RenameMode, SetXattr, WriteHandle},
    rpc::{
        self, node_of, status_before, status_of,
        worker::{
            AlterReply, AlterRequest, FileState, Held, HoldRequest, OpenReply, OpenRequest, UseReply, UseRequest,
            WriteRequest, alter_request::Change, changes_server::Changes as Service, use_request::Use,
        },
    },
    worker::{Freshness, Worker},
};
use futures::{Stream, stream};
use local::LocalHandle;
use sessions::{OpenFile, Sessions};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Bytes that one request reads at most.
const READ_MOST: u32 = 4 << 20;
/// What a request may take. Callers are less patient; this is for those that went away.
const DEADLINE: Duration = Duration::from_secs(3600);

/// The service.
pub struct Writing {
    namespace: Arc<Namespace>,
    enabled: bool,
    sessions: Arc<Sessions>,
    end: CancellationToken,
}

impl Writing {
    /// Serves changes of what `namespace` has, if that is `enabled`; sessions end with `end`. `handles`: files that one of
    /// them may have open.
    pub fn new(namespace: Arc<Namespace>, enabled: bool, handles: usize, end: CancellationToken) -> Self {
        Self { namespace, enabled, sessions: Sessions::new(handles), end }
    }

    /// What a request is about, checked before anything is done.
    async fn find(&self, storage: &str, path: &[u8]) -> Result<(Arc<Mounted>, UfsPath), Status> {
        let found = async {
            if !self.enabled {
                return Err(Error::new(
                    ErrorKind::ReadOnly,
                    "this worker takes no writes: set alluxio.cluster.writes.enabled to true for it",
                ));
            }
            let mounted = self.namespace.find(storage).await?;
            if mounted.worker().changes().is_none() {
                return Err(Error::new(
                    ErrorKind::ReadOnly,
                    "storages of this kind are not written through workers in this version",
                ));
            }
            Ok((mounted, UfsPath::parse(path)?))
        };
        found.await.map_err(|error| status_before(&error))
    }

    fn file(&self, session: &[u8], handle: u64) -> Result<Arc<OpenFile>, Status> {
        self.sessions.file(session, handle).map_err(|error| status_before(&error))
    }
}

/// Carries `work` out to its end, also when whoever asked for it goes away.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<Response<T>, Status> {
    let done = tokio::spawn(tokio::time::timeout(DEADLINE, work)).await;
    match done {
        Ok(Ok(Ok(answer))) => Ok(Response::new(answer)),
        Ok(Ok(Err(error))) => Err(status_of(&error)),
        Ok(Err(_)) => Err(status_of(&Error::new(ErrorKind::TimedOut, format!("not done within {DEADLINE:?}")))),
        Err(gone) => Err(status_of(&Error::new(ErrorKind::Io, format!("the call was given up: {gone}")))),
    }
}

/// Does `work`, which changes what `mounted` has. In a directory on this host that is system calls, which may hang: they are
/// not made on a thread that others need.
async fn at_storage<T: Send + 'static>(
    mounted: &Mounted,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    if !mounted.worker().storage().is_local() {
        return work.await;
    }
    let runtime = tokio::runtime::Handle::current();
    let done = tokio::task::spawn_blocking(move || runtime.block_on(work)).await;
    done.map_err(|gone| Error::new(ErrorKind::Io, format!("the call was given up: {gone}")))?
}

fn changes_of(mounted: &Mounted) -> Result<&dyn Changes> {
    mounted.worker().changes().ok_or_else(|| Error::new(ErrorKind::ReadOnly, "takes no writes"))
}

fn caller(caller: Option<rpc::worker::Caller>) -> Result<Caller> {
    caller.map(Caller::from).ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "the request names no caller"))
}

/// The state of an open file after whatever was done to it before this call.
fn state_of(file: &dyn WriteHandle) -> FileState {
    static STAMP: AtomicU64 = AtomicU64::new(1);
    // Before the file is looked at: of two such looks the one with the higher stamp has seen what the other one's request did.
    let stamp = STAMP.fetch_add(1, Ordering::SeqCst);
    let attr = file.attr();
    let (device, inode) = attr.local.map_or((0, 0), |file| (file.dev, file.ino));
    FileState { stamp, attr: Some((&*attr).into()), device, inode }
}

/// Makes a change, and tells of which paths it was one, with what is below them or not.
async fn carry_out(changes: &dyn Changes, path: &UfsPath, change: Change) -> Result<(AlterReply, Vec<UfsPath>, bool)> {
    let own = || vec![path.clone()];
    let attr = |attr: Arc<common::Attr>| AlterReply { attr: Some((&*attr).into()), ..AlterReply::default() };
    let nothing = AlterReply::default;
    Ok(match change {
        Change::Make(make) => {
            let node = node_of(&make)?;
            let made = changes.make(path, &node, make.mode & 0o7777, caller(make.caller)?).await?;
            (attr(made), own(), false)
        }
        Change::Link(existing) => {
            let existing = UfsPath::parse(existing)?;
            let linked = changes.link(&existing, path).await?;
            (attr(linked), vec![path.clone(), existing], false)
        }
        Change::RemoveFile(_) => {
            changes.remove_file(path).await?;
            (nothing(), own(), false)
        }
        Change::RemoveDirectory(_) => {
            changes.remove_directory(path).await?;
            (nothing(), own(), true)
        }
        Change::Rename(rename) => {
            let to = UfsPath::parse(rename.to)?;
            let how = match rename.mode {
                0 => RenameMode::Replace,
                libc::RENAME_NOREPLACE => RenameMode::NoReplace,
                libc::RENAME_EXCHANGE => RenameMode::Exchange,
                other => {
                    return Err(Error::new(ErrorKind::InvalidArgument, format!("no rename has the flags {other}")));
                }
            };
            changes.rename(path, &to, how).await?;
            (nothing(), vec![path.clone(), to], true)
        }
        Change::SetAttr(change) => (attr(changes.set_attr(path, change.into()).await?), own(), false),
        Change::Xattr(name) => {
            let value = changes.xattr(path, &name).await?.to_vec();
            (AlterReply { value, ..nothing() }, Vec::new(), false)
        }
        Change::Xattrs(_) => {
            let names = changes.xattrs(path).await?;
            (AlterReply { names, ..nothing() }, Vec::new(), false)
        }
        Change::SetXattr(set) => {
            let how = match i32::try_from(set.flags) {
                Ok(0) => SetXattr::Any,
                Ok(libc::XATTR_CREATE) => SetXattr::Create,
                Ok(libc::XATTR_REPLACE) => SetXattr::Replace,
                _ => return Err(Error::new(ErrorKind::InvalidArgument, "unknown flags of setxattr")),
            };
            changes.set_xattr(path, &set.name, &set.value, how).await?;
            (nothing(), own(), false)
        }
        Change::RemoveXattr(name) => {
            changes.remove_xattr(path, &name).await?;
            (nothing(), own(), false)
        }
        Change::Sync(_) => {
            changes.sync(path).await?;
            (nothing(), Vec::new(), false)
        }
    })
}

#[tonic::async_trait]
impl Service for Writing {
    type HoldStream = Pin<Box<dyn Stream<Item = Result<Held, Status>> + Send>>;

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<Self::HoldStream>, Status> {
        let session = self.sessions.begin(&request.into_inner().name);
        let first = Held { session: session.id().to_vec() };
        let end = self.end.clone();
        // Dropped with its session when nobody takes it any more.
        let held = stream::unfold((Some(first), session, end), |(first, session, end)| async {
            match first {
                Some(first) => Some((Ok(first), (None, session, end))),
                None => {
                    end.cancelled().await;
                    None
                }
            }
        });
        Ok(Response::new(Box::pin(held)))
    }

    async fn open(&self, request: Request<OpenRequest>) -> Result<Response<OpenReply>, Status> {
        let request = request.into_inner();
        let (mounted, path) = self.find(&request.storage, &request.path).await?;
        let session = self.sessions.find(&request.session).map_err(|error| status_before(&error))?;
        let create = match request.create {
            None => None,
            Some(create) => {
                let caller = caller(create.caller).map_err(|error| status_before(&error))?;
                Some((create.mode & 0o7777, caller, create.unnamed))
            }
        };
        let flags = request.flags;
        to_the_end(async move {
            let (storage, at) = (mounted.clone(), path.clone());
            let opened = at_storage(&mounted, async move {
                let changes = changes_of(&storage)?;
                match create {
                    None => changes.open(&at, flags).await,
                    Some((mode, caller, false)) => changes.create(&at, flags, mode, caller).await,
                    Some((mode, caller, true)) => changes.create_unnamed(&at, flags, mode, caller).await,
                }
            });
            let file: Arc<dyn WriteHandle> = match opened.await? {
                OpenedForWriting::Local(local) => Arc::new(LocalHandle::new(local, &path)),
                OpenedForWriting::Staged(staged) => staged,
            };
            if create.is_some() || flags & libc::O_TRUNC != 0 {
                mounted.published(std::slice::from_ref(&path), false);
            }
            let state = state_of(&*file);
            let handle = session.insert(OpenFile::new(mounted, path, file))?;
            Ok(OpenReply { handle, state: Some(state) })
        })
        .await
    }

    async fn alter(&self, request: Request<AlterRequest>) -> Result<Response<AlterReply>, Status> {
        let request = request.into_inner();
        let (mounted, path) = self.find(&request.storage, &request.path).await?;
        let Some(change) = request.change else {
            return Err(status_before(&Error::new(ErrorKind::Unsupported, "a change that this worker does not know")));
        };
        to_the_end(async move {
            let (storage, at) = (mounted.clone(), path.clone());
            // To sync waits on a thread of its own already.
            let waits = matches!(change, Change::Sync(_));
            let work = async move { carry_out(changes_of(&storage)?, &at, change).await };
            let done = if waits { work.await } else { at_storage(&mounted, work).await };
            let (reply, paths, mut below) = done?;
            if below && paths.len() > 1 {
                // Of what was renamed only a directory has something below it.
                let mut directories = false;
                for path in &paths {
                    let attr = mounted.worker().attr(path, Freshness::Storage).await;
                    directories |= attr.map_or_else(
                        |error| error.kind() != ErrorKind::NotFound,
                        |attr| attr.kind == FileKind::Directory,
                    );
                }
                below = directories;
            }
            if !paths.is_empty() {
                mounted.published(&paths, below);
            }
            Ok(reply)
        })
        .await
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<UseReply>, Status> {
        let WriteRequest { session, handle, offset, append, data, checksum } = request.into_inner();
        let file = self.file(&session, handle)?;
        if crc32c::crc32c(&data) != checksum {
            let error = Error::new(ErrorKind::Corrupt, "bytes changed on the way to the worker; nothing was written");
            return Err(status_before(&error));
        }
        to_the_end(async move {
            file.changes();
            if append {
                file.file.append(data).await?
            } else {
                file.file.write(offset, data).await?
            }
            Ok(UseReply { state: Some(state_of(&*file.file)), ..UseReply::default() })
        })
        .await
    }

    async fn r#use(&self, request: Request<UseRequest>) -> Result<Response<UseReply>, Status> {
        let UseRequest { session, handle, r#use } = request.into_inner();
        let Some(how) = r#use else {
            return Err(status_before(&Error::new(ErrorKind::Unsupported, "a use that this worker does not know")));
        };
        if matches!(how, Use::Close(_)) {
            self.sessions.close(&session, handle);
            return Ok(Response::new(UseReply::default()));
        }
        let open = self.file(&session, handle)?;
        to_the_end(async move {
            let file = &open.file;
            let mut reply = UseReply::default();
            match how {
                Use::Read(range) => {
                    reply.data = read(&**file, range.offset, range.length).await?;
                    reply.checksum = crc32c::crc32c(&reply.data);
                }
                Use::Truncate(size) => {
                    open.changes();
                    file.truncate(size).await?;
                }
                Use::Allocate(wanted) => {
                    open.changes();
                    file.allocate(wanted.mode, wanted.offset, wanted.length).await?;
                }
                Use::Seek(seek) => reply.position = file.seek(seek.offset, seek.hole).await?,
                Use::Flush(_) => {
                    let flushed = file.flush().await;
                    open.publish();
                    flushed?;
                }
                Use::Sync(sync) => {
                    let synced = file.sync(sync.data_only).await;
                    open.publish();
                    synced?;
                }
                Use::SetAttr(change) => {
                    open.changes();
                    if file.set_attr(&change.into()).await?.is_none() {
                        return Err(Error::new(ErrorKind::Unsupported, "attributes are changed by path here"));
                    }
                    open.publish();
                }
                Use::Close(_) => {}
            }
            reply.state = Some(state_of(&**file));
            Ok(reply)
        })
        .await
    }
}

async fn read(file: &dyn WriteHandle, offset: u64, length: u32) -> Result<Bytes> {
    if length > READ_MOST {
        let why = format!("a read of {length} bytes; {READ_MOST} are the most");
        return Err(Error::new(ErrorKind::InvalidArgument, why));
    }
    file.read(offset, length as usize).await
}
