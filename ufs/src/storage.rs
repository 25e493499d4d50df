//! What every under storage can do: the one trait that directories, S3 and the OpenDAL services implement.
//!
//! Invariants that every implementation keeps:
//! - each call ends: it has a deadline for connecting, for the first byte and for every further byte;
//! - [`read`](UnderStorage::read) gives bytes of exactly the version that it was asked for, or `Stale`; never a mixture,
//!   never too many, and an error when there are too few;
//! - a listing names each entry once, and hides none: names that no file can have are shown by the rule of
//!   `object/names.rs`.

use crate::object::writes::ObjectWrites;
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, Result, StatFs, UfsPath, UfsUri, Version,
    change::Changes,
    worker::{FileLease, Listing, LocalFile},
};
use std::sync::Arc;

/// Takes the bytes of a read in order, as they arrive.
pub trait ReadSink: Send {
    /// The next bytes. Once it returns false it wants no more, and the read ends early without error.
    fn push(&mut self, bytes: &[u8]) -> bool;
}

impl ReadSink for Vec<u8> {
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.extend_from_slice(bytes);
        true
    }
}

/// The first bytes of a file together with its attributes, from one request.
#[derive(Debug, Clone)]
pub struct Head {
    /// Attributes, with the version that the bytes belong to.
    pub attr: Attr,
    /// The first bytes; empty when the storage has no such combined request, or it is no file.
    pub bytes: Bytes,
}

/// Paths whose files somebody else changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The paths.
    pub paths: Vec<UfsPath>,
    /// Whether everything below them may have changed too: a directory was renamed, say.
    pub below: bool,
}

/// Is told of changes. It must not wait.
pub type ChangeListener = Box<dyn Fn(&Changed) + Send + Sync>;

/// An under storage, rooted at its URI.
#[async_trait]
pub trait UnderStorage: Send + Sync + 'static {
    /// The root.
    fn uri(&self) -> &UfsUri;

    /// Whether this is a directory on this host, whose files can be opened here ([`open_now`](Self::open_now)).
    fn is_local(&self) -> bool {
        false
    }

    /// One cheap request that fails with the precise reason when the root cannot be used (no such bucket or directory,
    /// wrong credentials, unreachable endpoint). Made when mounting.
    async fn probe(&self) -> Result<()>;

    /// The attributes of a file or directory; symbolic links are not followed.
    async fn stat(&self, path: &UfsPath) -> Result<Attr>;

    /// Attributes and, when `path` is a file, its first `max` bytes at most. One round trip where the storage can.
    async fn stat_and_read(&self, path: &UfsPath, max: u32) -> Result<Head> {
        let _ = max;
        Ok(Head { attr: self.stat(path).await?, bytes: Bytes::new() })
    }

    /// Starts to list a directory, page by page.
    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>>;

    /// Reads `length` bytes at `offset` of this version into `sink`. The range lies within the file.
    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()>;

    /// The target of a symbolic link.
    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        Err(Error::new(ErrorKind::InvalidArgument, format!("{path} is no symbolic link")))
    }

    /// What changes files here, for a storage with the semantics of POSIX. `None`: it has none of its own, see
    /// [`common::change`].
    fn changes(&self) -> Option<&dyn Changes> {
        None
    }

    /// Has `tell` called when somebody else has changed files here, for a storage that hears of that.
    fn on_change(self: Arc<Self>, tell: ChangeListener) {
        drop(tell);
    }

    /// How objects are changed here, for an object store that takes changes. `None`: it is read-only, or has
    /// [`changes`](Self::changes) of its own.
    fn objects(&self) -> Option<&dyn ObjectWrites> {
        None
    }

    /// Space of the storage, if it has a notion of it.
    fn stat_fs(&self) -> Option<StatFs> {
        None
    }

    /// [`stat`](Self::stat) without waiting, for a directory on this host.
    fn stat_now(&self, path: &UfsPath) -> Option<Result<Attr>> {
        let _ = path;
        None
    }

    /// Opens a regular file without waiting, for a directory on this host.
    fn open_now(&self, path: &UfsPath) -> Option<Result<LocalFile>> {
        let _ = path;
        None
    }

    /// Whether somebody on this host may have files of it on disk and lend them ([`lend`](Self::lend)).
    fn lends(&self) -> bool {
        false
    }

    /// The file at `path` in the version of `attr`, when somebody on this host has all of it on disk: its bytes stay as
    /// they are while the lease lives. None: read it as usual.
    async fn lend(&self, path: &UfsPath, attr: &Attr) -> Option<FileLease> {
        let _ = (path, attr);
        None
    }
}
