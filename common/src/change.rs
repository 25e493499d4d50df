//! What changes files: the interface for everything that writes, from the FUSE file system down to the storage.
//!
//! A directory of this host implements [`Changes`] itself; over an object store the worker does, by staging files on local
//! disk and publishing them. Whoever reads learns of a change from the attributes that each call returns, and from the
//! caches that the implementation itself keeps right.
//!
//! Invariants that every implementation keeps:
//! - a call that returned an error changed nothing that a later call could mistake for success;
//! - a change that was answered with success is seen by every later call through the same implementation;
//! - each call ends, since it has a deadline;
//! - no symbolic link is followed, in any component of a path.

use crate::{
    attr::{Attr, Timestamp},
    error::Result,
    path::UfsPath,
    worker::LocalFile,
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{fs::File, sync::Arc};

/// Who asks. What is made belongs to this user and group; the kernel has checked permissions already
/// (`default_permissions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What to make at a name that is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewNode {
    /// An empty regular file that is not opened (mknod).
    File,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device, with its number.
    CharDevice(u64),
    /// A block device, with its number.
    BlockDevice(u64),
    /// A symbolic link, with its target.
    Symlink(Bytes),
}

/// A time that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time at which the storage makes the change.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to change; what is `None` stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, without the kind.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size: truncate or extend with zeros.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<SetTime>,
    /// Time of last modification.
    pub mtime: Option<SetTime>,
    /// Whether set-id bits fall with it, as they do when a user without privilege changes the bytes.
    pub drop_set_id: bool,
}

/// What rename does when the new name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `AlreadyExists`.
    NoReplace,
    /// Exchange the two; both must exist.
    Exchange,
}

/// How an extended attribute is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetXattr {
    /// Make or replace it.
    Any,
    /// Fail with `AlreadyExists` when it exists.
    Create,
    /// Fail with `NoAttribute` when it does not.
    Replace,
}

/// A file opened for writing (and reading).
pub enum OpenedForWriting {
    /// The source file itself, on this host: written without the worker.
    Local(LocalFile),
    /// Written through the worker.
    Staged(Arc<dyn WriteHandle>),
}

impl OpenedForWriting {
    /// The attributes when it was opened; of a staged one, now.
    pub fn attr(&self) -> Arc<Attr> {
        match self {
            OpenedForWriting::Local(local) => local.attr.clone(),
            OpenedForWriting::Staged(handle) => handle.attr(),
        }
    }
}

/// An open file that is written through a worker. Handles of one file share its bytes: what one wrote the others read.
#[async_trait]
pub trait WriteHandle: Send + Sync {
    /// The attributes now, with the size and times as written so far.
    fn attr(&self) -> Arc<Attr>;

    /// At most `length` bytes from `offset`; fewer only at the end of the file.
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes>;

    /// Writes all of `data` at `offset`, beyond the end too (the gap reads as zeros). May wait for space, and then fails
    /// with `NoSpace`.
    async fn write(&self, offset: u64, data: Bytes) -> Result<()>;

    /// Writes all of `data` at the end, wherever that is by now (`O_APPEND`).
    async fn append(&self, data: Bytes) -> Result<()>;

    /// Truncates, or extends with zeros.
    async fn truncate(&self, size: u64) -> Result<()>;

    /// fallocate(2), `mode` as there; `Unsupported` for modes that the implementation has not.
    async fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()>;

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`; `Os(ENXIO)` beyond the end.
    async fn seek(&self, offset: u64, hole: bool) -> Result<u64>;

    /// What close(2) promises: everybody who opens the file from now on sees all of it. Comes once for each descriptor,
    /// so perhaps many times, and reports the failure of publishing.
    async fn flush(&self) -> Result<()>;

    /// Changes attributes of the open file, whatever its names are by now, and returns them all. `None`: that is done by
    /// its path.
    async fn set_attr(&self, change: &SetAttr) -> Result<Option<Arc<Attr>>> {
        let _ = change;
        Ok(None)
    }

    /// Whether this handle serves further opens of its file here. Otherwise each open asks [`Changes::open`].
    fn is_shared(&self) -> bool {
        false
    }

    /// What fsync(2) promises: [`flush`](Self::flush), and it outlives the loss of power.
    async fn sync(&self, data_only: bool) -> Result<()>;

    /// Whether [`flush`](Self::flush) and [`sync`](Self::sync) end by themselves, later the more there is to publish: then
    /// nobody else limits them.
    fn keeps_deadlines(&self) -> bool {
        false
    }
}

/// Changes below one under storage. Paths are relative to its root.
///
/// Errors are those of the system call of the same name (see [`crate::errno`]).
#[async_trait]
pub trait Changes: Send + Sync {
    /// Makes a regular file at a free name and opens it; `flags` as of open(2), `O_EXCL` among them or not: when the name is
    /// taken it is `AlreadyExists` with `O_EXCL`. Without, a file of this host is never opened here, since nobody has asked
    /// whether the caller may: it is `Stale`, upon which the kernel looks the name up and opens the file by itself. An
    /// object is opened.
    async fn create(&self, path: &UfsPath, flags: i32, mode: u32, caller: Caller) -> Result<OpenedForWriting>;

    /// Opens an existing regular file for writing, `O_TRUNC` and `O_APPEND` included; `flags` as of open(2).
    async fn open(&self, path: &UfsPath, flags: i32) -> Result<OpenedForWriting>;

    /// A file without a name in `directory` (`O_TMPFILE`).
    async fn create_unnamed(
        &self,
        directory: &UfsPath,
        flags: i32,
        mode: u32,
        caller: Caller,
    ) -> Result<OpenedForWriting> {
        let _ = (flags, mode, caller);
        Err(crate::Error::new(crate::ErrorKind::Unsupported, format!("{directory}: no files without a name here")))
    }

    /// Makes a directory, special file, symbolic link or empty file at a free name.
    async fn make(&self, path: &UfsPath, node: &NewNode, mode: u32, caller: Caller) -> Result<Arc<Attr>>;

    /// One more name for a file. `Unsupported` where there are no hard links.
    async fn link(&self, existing: &UfsPath, path: &UfsPath) -> Result<Arc<Attr>>;

    /// What is at `path`, held by a descriptor that neither reads nor writes (`O_PATH`): what is done through it is done to
    /// this very file, whatever becomes of its name. `None`: it is no file of this host, and is changed by its path.
    fn hold(&self, path: &UfsPath) -> Option<Result<LocalFile>> {
        let _ = path;
        None
    }

    /// One more name for what is held or open; `None` where [`hold`](Self::hold) is.
    fn link_held(&self, file: &File, path: &UfsPath) -> Option<Result<Arc<Attr>>> {
        let _ = (file, path);
        None
    }

    /// Removes a name that is no directory.
    async fn remove_file(&self, path: &UfsPath) -> Result<()>;

    /// Removes an empty directory.
    async fn remove_directory(&self, path: &UfsPath) -> Result<()>;

    /// Renames.
    async fn rename(&self, from: &UfsPath, to: &UfsPath, mode: RenameMode) -> Result<()>;

    /// Changes attributes and returns them all.
    async fn set_attr(&self, path: &UfsPath, change: SetAttr) -> Result<Arc<Attr>>;

    /// The value of an extended attribute; `NoAttribute` when there is none.
    async fn xattr(&self, path: &UfsPath, name: &[u8]) -> Result<Bytes>;

    /// The names of all extended attributes.
    async fn xattrs(&self, path: &UfsPath) -> Result<Vec<Vec<u8>>>;

    /// Sets an extended attribute.
    async fn set_xattr(&self, path: &UfsPath, name: &[u8], value: &[u8], how: SetXattr) -> Result<()>;

    /// Removes an extended attribute; `NoAttribute` when there is none.
    async fn remove_xattr(&self, path: &UfsPath, name: &[u8]) -> Result<()>;

    /// Makes everything durable that was answered with success: changes of this directory (fsync of a directory), or with
    /// the root those of all (syncfs).
    async fn sync(&self, directory: &UfsPath) -> Result<()>;
}
