//! Walks below a directory without ever leaving it.
//!
//! Every path is resolved by the kernel in one `openat2` that refuses symbolic links and anything outside the directory,
//! so a link inside the storage is shown as a link and never walked by this process, whatever another process renames
//! meanwhile. Where `openat2` is missing (Linux before 5.6) or forbidden (old container profiles) the same is done name
//! by name with `O_NOFOLLOW`.

use common::UfsPath;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::Mode,
};
use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// A directory and the way to walk below it.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    by_name: bool,
}

impl Beneath {
    /// Opens the directory at `path` (whose own links are followed: it is what the user named).
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())?;
        let probe = openat2(&root, ".", how(flags));
        let by_name = matches!(probe, Err(Errno::ENOSYS | Errno::EPERM));
        Ok(Self { root, by_name })
    }

    /// The same directory walked name by name.
    #[cfg(test)]
    pub fn by_name(mut self) -> Self {
        self.by_name = true;
        self
    }

    /// The directory itself.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what lies at `path` with `flags`; `O_NOFOLLOW` and `O_CLOEXEC` are added. A link on the way, or at the end
    /// without `O_PATH`, is `ELOOP` (on the way possibly `ENOTDIR`).
    pub fn walk(&self, path: &UfsPath, flags: OFlag) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if path.is_root() {
            return openat(&self.root, ".", flags, Mode::empty());
        }
        if self.by_name {
            return self.walk_by_name(path, flags);
        }
        // EAGAIN means that a rename elsewhere kept the kernel from being sure; it passes.
        for _ in 0..32 {
            match openat2(&self.root, path.as_path(), how(flags)) {
                Err(Errno::EAGAIN) if !flags.contains(OFlag::O_NONBLOCK) => {}
                Err(Errno::EINTR) => {}
                done => return done,
            }
        }
        Err(Errno::EAGAIN)
    }

    fn walk_by_name(&self, path: &UfsPath, flags: OFlag) -> Result<OwnedFd, Errno> {
        let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut names = path.names().map(OsStr::from_bytes).peekable();
        let mut at: Option<OwnedFd> = None;
        while let Some(name) = names.next() {
            let last = names.peek().is_none();
            let here = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
            at = Some(openat(here, name, if last { flags } else { step }, Mode::empty())?);
        }
        at.ok_or(Errno::ENOENT)
    }
}

fn how(flags: OFlag) -> OpenHow {
    OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
}
