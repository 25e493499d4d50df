//! Changes below a directory of this host, each by the system call of the same name.
//!
//! The directory that holds a name is opened below the root without following links, and the last name is given to the
//! `*at` call as it is, which follows none either. Calls that end soon on a disk that works are made at once, as
//! reading attributes is; what waits for a disk (syncing) is made on a thread for blocking calls, with a deadline. So a
//! network file system that hangs holds up the calls that it is asked, each with the thread that takes it, as it would
//! hold up the programs that asked; to give them up would leave nobody knowing whether the change was made.

use super::{Posix, attr::attr, caller::Acting};
use crate::{deadline::blocking, local};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    change::{Caller, Changes, NewNode, OpenedForWriting, RenameMode, SetAttr, SetXattr},
    worker::LocalFile,
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat2},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat},
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};
use std::{
    ffi::OsStr,
    fs::File,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    sync::Arc,
};

/// Flags of open(2) that mean the same here as there. The kernel itself sees to the rest: to `O_APPEND` with each write,
/// to `O_SYNC` by asking for a sync after it.
const KEPT: i32 = libc::O_TRUNC | libc::O_EXCL;

/// Flags of every open: it waits for no pipe, takes no terminal, follows no link.
const ALWAYS: OFlag = OFlag::O_NONBLOCK.union(OFlag::O_NOCTTY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A name and the open directory that holds it.
struct Place<'a> {
    directory: OwnedFd,
    name: &'a OsStr,
}

impl Posix {
    /// Makes `call` with the directory of `path` and its last name.
    fn at<T>(&self, what: &str, path: &UfsPath, call: impl Fn(&Place<'_>) -> Result<T, Errno>) -> Result<T> {
        let Some(name) = path.name() else {
            return Err(self.failed(what, path, Errno::EBUSY));
        };
        let parent = path.parent().unwrap_or_else(UfsPath::root);
        self.below(|beneath| {
            let directory = beneath.walk(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            call(&Place { directory, name: OsStr::from_bytes(name) })
        })
        .map_err(|errno| self.failed(what, path, errno))
    }

    /// Makes `call` with whatever is at `path`, opened without any right but to change what needs no opening.
    fn with<T>(&self, what: &str, path: &UfsPath, call: impl Fn(OwnedFd) -> Result<T, Errno>) -> Result<T> {
        self.below(|beneath| call(beneath.walk(path, OFlag::O_PATH)?)).map_err(|errno| self.failed(what, path, errno))
    }

    fn regular(&self, path: &UfsPath, file: OwnedFd) -> Result<OpenedForWriting> {
        let attr = local::attr_of(&file).map_err(|errno| self.failed("open", path, errno))?;
        if !attr.is_file() {
            let why = format!("open {}: only the kernel of its host opens what is no regular file", self.shown(path));
            let kind = if attr.is_dir() { ErrorKind::IsADirectory } else { ErrorKind::InvalidArgument };
            return Err(Error::new(kind, why));
        }
        Ok(OpenedForWriting::Local(LocalFile { file: Arc::new(File::from(file)), attr: Arc::new(attr) }))
    }
}

/// Opens for reading and writing, or as `flags` say where this process may not do both.
fn widest<T>(flags: i32, open: impl Fn(OFlag) -> Result<T, Errno>) -> Result<T, Errno> {
    let kept = OFlag::from_bits_truncate(flags & KEPT) | ALWAYS;
    match open(OFlag::O_RDWR | kept) {
        Err(Errno::EACCES | Errno::EPERM) if flags & libc::O_ACCMODE != libc::O_RDWR => {
            // To write to a file that can only be appended to, it must be said.
            open(OFlag::from_bits_truncate(flags & (libc::O_ACCMODE | libc::O_APPEND)) | kept)
        }
        done => done,
    }
}

fn mode(mode: u32) -> Mode {
    Mode::from_bits_truncate(mode & 0o7777)
}

#[async_trait]
impl Changes for Posix {
    async fn create(&self, path: &UfsPath, flags: i32, bits: u32, caller: Caller) -> Result<OpenedForWriting> {
        let made = self.at("create", path, |place| {
            let acting = Acting::start(caller);
            // What is there already is not for this thread to open: it has rights that the caller may not have.
            let how = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | ALWAYS;
            let file = openat(&place.directory, place.name, how, mode(bits))?;
            if acting.masked {
                local::set_attr(&file, &SetAttr { mode: Some(bits), ..SetAttr::default() })?;
            }
            Ok(file)
        });
        match made {
            Ok(file) => self.regular(path, file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && flags & libc::O_EXCL == 0 => {
                Err(Error::new(ErrorKind::Stale, format!("create {}: it was made just now", self.shown(path))))
            }
            Err(error) => Err(error),
        }
    }

    async fn open(&self, path: &UfsPath, flags: i32) -> Result<OpenedForWriting> {
        let file = widest(flags & !libc::O_EXCL, |flags| self.below(|beneath| beneath.walk(path, flags)));
        self.regular(path, file.map_err(|errno| self.failed("open", path, errno))?)
    }

    async fn make(&self, path: &UfsPath, node: &NewNode, bits: u32, caller: Caller) -> Result<Arc<Attr>> {
        let made = self.at("make", path, |Place { directory, name }| {
            let acting = Acting::start(caller);
            let special = |kind, device| mknodat(directory, *name, kind, mode(bits), device);
            match node {
                NewNode::Directory => mkdirat(directory, *name, mode(bits))?,
                NewNode::Symlink(target) => symlinkat(OsStr::from_bytes(target), directory, *name)?,
                NewNode::File => special(SFlag::S_IFREG, 0)?,
                NewNode::Fifo => special(SFlag::S_IFIFO, 0)?,
                NewNode::Socket => special(SFlag::S_IFSOCK, 0)?,
                NewNode::CharDevice(device) => special(SFlag::S_IFCHR, *device)?,
                NewNode::BlockDevice(device) => special(SFlag::S_IFBLK, *device)?,
            }
            if acting.masked && !matches!(node, NewNode::Symlink(_)) {
                fchmodat(directory, *name, mode(bits), FchmodatFlags::FollowSymlink)?;
            }
            fstatat(directory, *name, AtFlags::AT_SYMLINK_NOFOLLOW)
        })?;
        Ok(Arc::new(attr(&made)))
    }

    async fn link(&self, existing: &UfsPath, path: &UfsPath) -> Result<Arc<Attr>> {
        let Some(old) = existing.name() else { return Err(self.failed("link", existing, Errno::EPERM)) };
        let parent = existing.parent().unwrap_or_else(UfsPath::root);
        let linked = self.at("link", path, |Place { directory, name }| {
            let from = self.beneath.load().walk(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            linkat(&from, OsStr::from_bytes(old), directory, *name, AtFlags::empty())?;
            fstatat(directory, *name, AtFlags::AT_SYMLINK_NOFOLLOW)
        })?;
        Ok(Arc::new(attr(&linked)))
    }

    fn hold(&self, path: &UfsPath) -> Option<Result<LocalFile>> {
        let held = self.with("change", path, |file| Ok((local::attr_of(&file)?, file)));
        Some(held.map(|(attr, file)| LocalFile { file: Arc::new(File::from(file)), attr: Arc::new(attr) }))
    }

    fn link_held(&self, file: &File, path: &UfsPath) -> Option<Result<Arc<Attr>>> {
        let linked = self.at("link", path, |Place { directory, name }| {
            local::link(file, directory, name)?;
            fstatat(directory, *name, AtFlags::AT_SYMLINK_NOFOLLOW)
        });
        Some(linked.map(|stat| Arc::new(attr(&stat))))
    }

    async fn remove_file(&self, path: &UfsPath) -> Result<()> {
        self.at("unlink", path, |place| unlinkat(&place.directory, place.name, UnlinkatFlags::NoRemoveDir))
    }

    async fn remove_directory(&self, path: &UfsPath) -> Result<()> {
        self.at("rmdir", path, |place| unlinkat(&place.directory, place.name, UnlinkatFlags::RemoveDir))
    }

    async fn rename(&self, from: &UfsPath, to: &UfsPath, how: RenameMode) -> Result<()> {
        let Some(old) = from.name() else { return Err(self.failed("rename", from, Errno::EBUSY)) };
        let parent = from.parent().unwrap_or_else(UfsPath::root);
        let flags = match how {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::RENAME_NOREPLACE,
            RenameMode::Exchange => RenameFlags::RENAME_EXCHANGE,
        };
        self.at("rename", to, |Place { directory, name }| {
            let source = self.beneath.load().walk(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
            renameat2(&source, OsStr::from_bytes(old), directory, *name, flags)
        })
    }

    async fn set_attr(&self, path: &UfsPath, change: SetAttr) -> Result<Arc<Attr>> {
        self.with("change", path, |file| local::set_attr(file, &change)).map(Arc::new)
    }

    async fn xattr(&self, path: &UfsPath, name: &[u8]) -> Result<Bytes> {
        self.with("getxattr", path, |file| local::xattr(file, name)).map(Bytes::from)
    }

    async fn xattrs(&self, path: &UfsPath) -> Result<Vec<Vec<u8>>> {
        self.with("listxattr", path, local::xattrs)
    }

    async fn set_xattr(&self, path: &UfsPath, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        self.with("setxattr", path, |file| local::set_xattr(file, name, value, how))
    }

    async fn remove_xattr(&self, path: &UfsPath, name: &[u8]) -> Result<()> {
        self.with("removexattr", path, |file| local::remove_xattr(file, name))
    }

    async fn sync(&self, directory: &UfsPath) -> Result<()> {
        let open = self.directory_at(directory)?;
        let what = format!("sync {}", self.shown(directory));
        let all = directory.is_root();
        let synced =
            blocking(
                self.deadline,
                &what,
                move || {
                    if all { nix::unistd::syncfs(&open) } else { nix::unistd::fsync(&open) }
                },
            );
        synced.await?.map_err(|errno| self.failed("sync", directory, errno))
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
