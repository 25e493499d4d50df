//! Changes through a cluster: each is made by the worker that owns the path, on its storage.
//!
//! A change goes to the owner, and to the next workers on the ring as long as it is certain that nothing was done: the
//! worker could not be reached, or said so. A request whose answer is lost is made again elsewhere only where to make it
//! twice is to make it once; otherwise the caller is told that it is not known. Nothing is written beside the workers.
//!
//! - [`lane`]: the connection to one worker for this, and the session that holds files open; [`handle`]: an open file.
//!
//! Invariant: what failed is told to who wrote it, by the call itself or, at the latest, by the next flush of the file.

pub mod handle;
pub mod lane;

use super::{Namespace, link::Link, mounted::Mounted};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    change::{Caller, Changes, NewNode, OpenedForWriting, RenameMode, SetAttr, SetXattr},
    rpc::{
        make_of,
        worker::{self as proto, alter_request::Change},
    },
};
use lane::Failure;
use std::sync::Arc;

impl Mounted {
    /// Makes a change. `again`: it may be made twice.
    async fn alter(&self, path: &UfsPath, change: Change, again: bool) -> Result<proto::AlterReply> {
        let request = proto::AlterRequest {
            storage: self.storage().to_string(),
            path: path.as_bytes().to_vec(),
            change: Some(change),
        };
        let mut why = None;
        for link in self.writers(path) {
            match link.lane().ask(&link, async |client| client.alter(request.clone()).await).await {
                Ok(reply) => return Ok(reply),
                Err(failure) => why = Some(self.next(path, failure, again)?),
            }
        }
        Err(self.nobody(path, why))
    }

    /// Opens, or makes, a file for writing.
    async fn open_for_writing(
        self: &Arc<Self>,
        path: &UfsPath,
        flags: i32,
        create: Option<proto::Create>,
    ) -> Result<OpenedForWriting> {
        // To make a file that must not be there is the one thing here that cannot be done twice.
        let again = !(create.is_some() && flags & libc::O_EXCL != 0) && create.is_none_or(|create| !create.unnamed);
        let mut why = None;
        for link in self.writers(path) {
            let opened = match link.lane().session(&link).await {
                Ok(session) => {
                    let request = proto::OpenRequest {
                        session: session.id(),
                        storage: self.storage().to_string(),
                        path: path.as_bytes().to_vec(),
                        flags,
                        create,
                    };
                    // Goes on when nobody waits any more, so that what it opened is closed.
                    let (link, what) = (link.clone(), path.clone());
                    let opening = tokio::spawn(async move { handle::open(link, session, request, what).await });
                    opening.await.unwrap_or_else(|gone| {
                        Err(Failure::Lost(Error::new(ErrorKind::Io, format!("the call was given up: {gone}"))))
                    })
                }
                Err(failure) => Err(failure),
            };
            match opened {
                Ok(handle) => return Ok(OpenedForWriting::Staged(Arc::new(handle))),
                Err(failure) => why = Some(self.next(path, failure, again)?),
            }
        }
        Err(self.nobody(path, why))
    }

    /// The reason to go on to the next worker, or the error that ends it.
    fn next(&self, path: &UfsPath, failure: Failure, again: bool) -> Result<Error> {
        match failure {
            Failure::NotBegun(error) if error.kind() == ErrorKind::ReadOnly => Err(error),
            Failure::NotBegun(error) => Ok(error),
            Failure::Lost(error) if again => Ok(error),
            Failure::Lost(error) => Err(Error::new(
                ErrorKind::Io,
                format!(
                    "{path}: the worker was lost before it answered; whether the change was made is not known: {error}"
                ),
            )),
            Failure::Told(error) => Err(error),
        }
    }

    fn nobody(&self, path: &UfsPath, why: Option<Error>) -> Error {
        let why = why.map_or_else(|| "all of them are away".to_owned(), |error| error.to_string());
        Error::new(ErrorKind::Unavailable, format!("{path}: no worker of the cluster takes the change: {why}"))
    }
}

impl Namespace {
    /// The mount that a path lies in, and where. The namespace itself has no entries but mounts.
    fn within(&self, path: &UfsPath) -> Result<(Arc<Mounted>, UfsPath)> {
        match self.route(path) {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(Self::fixed(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Self::fixed(path)),
            Err(error) => Err(error),
        }
    }

    /// The same for a name that is to be made or removed.
    fn name_within(&self, path: &UfsPath) -> Result<(Arc<Mounted>, UfsPath)> {
        let (mounted, below) = self.within(path)?;
        if below.is_root() {
            return Err(Error::new(ErrorKind::Busy, format!("{path}: a storage is mounted here")));
        }
        Ok((mounted, below))
    }

    fn fixed(path: &UfsPath) -> Error {
        let why = "the root of the namespace has mounts only; see alluxio mount add";
        Error::new(ErrorKind::ReadOnly, format!("/{path}: {why}"))
    }

    async fn alter(&self, path: &UfsPath, change: Change, again: bool) -> Result<proto::AlterReply> {
        let (mounted, path) = self.name_within(path)?;
        mounted.alter(&path, change, again).await
    }
}

fn attr(reply: proto::AlterReply) -> Result<Arc<Attr>> {
    let attr = reply.attr.map(|attr| Arc::new(Attr::from(attr)));
    attr.ok_or_else(|| Error::new(ErrorKind::Corrupt, "an answer without attributes"))
}

#[async_trait]
impl Changes for Namespace {
    async fn create(&self, path: &UfsPath, flags: i32, mode: u32, caller: Caller) -> Result<OpenedForWriting> {
        let (mounted, path) = self.name_within(path)?;
        let create = proto::Create { mode, caller: Some(caller.into()), unnamed: false };
        mounted.open_for_writing(&path, flags, Some(create)).await
    }

    async fn open(&self, path: &UfsPath, flags: i32) -> Result<OpenedForWriting> {
        let (mounted, path) = self.name_within(path)?;
        mounted.open_for_writing(&path, flags, None).await
    }

    async fn create_unnamed(&self, path: &UfsPath, flags: i32, mode: u32, caller: Caller) -> Result<OpenedForWriting> {
        let (mounted, path) = self.within(path)?;
        let create = proto::Create { mode, caller: Some(caller.into()), unnamed: true };
        mounted.open_for_writing(&path, flags, Some(create)).await
    }

    async fn make(&self, path: &UfsPath, node: &NewNode, mode: u32, caller: Caller) -> Result<Arc<Attr>> {
        attr(self.alter(path, Change::Make(make_of(node, mode, caller)), false).await?)
    }

    async fn link(&self, existing: &UfsPath, path: &UfsPath) -> Result<Arc<Attr>> {
        let ((mounted, to), (other, from)) = (self.name_within(path)?, self.name_within(existing)?);
        if !Arc::ptr_eq(&mounted, &other) {
            return Err(crossing(existing, path));
        }
        attr(mounted.alter(&to, Change::Link(from.as_bytes().to_vec()), false).await?)
    }

    async fn remove_file(&self, path: &UfsPath) -> Result<()> {
        self.alter(path, Change::RemoveFile(proto::Nothing {}), false).await.map(drop)
    }

    async fn remove_directory(&self, path: &UfsPath) -> Result<()> {
        self.alter(path, Change::RemoveDirectory(proto::Nothing {}), false).await.map(drop)
    }

    async fn rename(&self, from: &UfsPath, to: &UfsPath, mode: RenameMode) -> Result<()> {
        let ((mounted, old), (other, new)) = (self.name_within(from)?, self.name_within(to)?);
        if !Arc::ptr_eq(&mounted, &other) {
            return Err(crossing(from, to));
        }
        let mode = match mode {
            RenameMode::Replace => 0,
            RenameMode::NoReplace => libc::RENAME_NOREPLACE,
            RenameMode::Exchange => libc::RENAME_EXCHANGE,
        };
        let rename = proto::Rename { to: new.as_bytes().to_vec(), mode };
        mounted.alter(&old, Change::Rename(rename), false).await.map(drop)
    }

    async fn set_attr(&self, path: &UfsPath, change: SetAttr) -> Result<Arc<Attr>> {
        let (mounted, path) = self.within(path)?;
        attr(mounted.alter(&path, Change::SetAttr((&change).into()), true).await?)
    }

    async fn xattr(&self, path: &UfsPath, name: &[u8]) -> Result<Bytes> {
        let Some((mounted, path)) = self.route(path)? else {
            return Err(Error::new(ErrorKind::NoAttribute, "the root of the namespace has no attributes"));
        };
        Ok(mounted.alter(&path, Change::Xattr(name.to_vec()), true).await?.value.into())
    }

    async fn xattrs(&self, path: &UfsPath) -> Result<Vec<Vec<u8>>> {
        let Some((mounted, path)) = self.route(path)? else { return Ok(Vec::new()) };
        Ok(mounted.alter(&path, Change::Xattrs(proto::Nothing {}), true).await?.names)
    }

    async fn set_xattr(&self, path: &UfsPath, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let (mounted, path) = self.within(path)?;
        let flags = match how {
            SetXattr::Any => 0,
            SetXattr::Create => libc::XATTR_CREATE,
            SetXattr::Replace => libc::XATTR_REPLACE,
        };
        let set = proto::SetXattr { name: name.to_vec(), value: value.to_vec(), flags: flags.unsigned_abs() };
        mounted.alter(&path, Change::SetXattr(set), how == SetXattr::Any).await.map(drop)
    }

    async fn remove_xattr(&self, path: &UfsPath, name: &[u8]) -> Result<()> {
        let (mounted, path) = self.within(path)?;
        mounted.alter(&path, Change::RemoveXattr(name.to_vec()), false).await.map(drop)
    }

    async fn sync(&self, directory: &UfsPath) -> Result<()> {
        let Some((mounted, path)) = self.route(directory)? else { return Ok(()) };
        mounted.alter(&path, Change::Sync(proto::Nothing {}), true).await.map(drop)
    }
}

fn crossing(from: &UfsPath, to: &UfsPath) -> Error {
    Error::new(ErrorKind::CrossDevice, format!("{from}, {to}: they lie in different mounts of the namespace"))
}

/// Whom a handle belongs to, for messages.
fn shown(link: &Link) -> String {
    format!("worker {}", link.entry().shown())
}
