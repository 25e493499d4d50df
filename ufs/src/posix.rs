//! A directory of this host.
//!
//! Invariants: nothing outside the directory is ever reached and no symbolic link is followed ([`beneath`]); nothing is
//! cached, so every answer is what the file system says now; errors carry the errno of the call. Files are handed out
//! open ([`UnderStorage::open_now`]), so reading them needs this code no more.
//!
//! When the directory was removed and made anew, or its NFS handle went stale, it is opened again by its path.

pub(crate) mod attr;
mod beneath;
pub(crate) mod caller;
mod change;
mod list;

use self::{attr::attr, beneath::Beneath, list::PosixListing};
use crate::{
    deadline::blocking,
    options::UfsOptions,
    storage::{Head, ReadSink, UnderStorage},
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, StatFs, UfsPath, UfsUri, Version,
    change::Changes,
    worker::{Listing, LocalFile},
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::stat::{fstat, fstatat},
};
use std::{
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStringExt, fs::FileExt},
    },
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Bytes read at once when a file is copied out.
const CHUNK: u64 = 1 << 20;

/// A directory of this host as an under storage.
pub struct Posix {
    uri: UfsUri,
    path: PathBuf,
    beneath: ArcSwap<Beneath>,
    /// Whether `O_NOATIME` may still be tried: it is for the owner of a file only.
    without_atime: AtomicBool,
    deadline: Duration,
}

impl Posix {
    /// Opens the directory that `uri` names. Fails with the errno when there is none or it may not be used.
    pub fn open(uri: &UfsUri, options: &UfsOptions) -> Result<Self> {
        let path = PathBuf::from(format!("/{}", uri.path()));
        let beneath = Beneath::open(&path).map_err(|errno| {
            let error = Error::os(uri, errno as i32);
            match errno {
                Errno::ENOENT => error.context("no such directory; make it or name another"),
                Errno::ENOTDIR => error.context("only a directory can be mounted"),
                _ => error,
            }
        })?;
        Ok(Self {
            uri: uri.clone(),
            path,
            beneath: ArcSwap::from_pointee(beneath),
            without_atime: AtomicBool::new(true),
            deadline: options.deadline,
        })
    }

    /// Makes `call` below the directory; when the directory itself is gone, opens it anew and tries once more.
    fn below<T>(&self, call: impl Fn(&Beneath) -> Result<T, Errno>) -> Result<T, Errno> {
        let beneath = self.beneath.load();
        match call(&beneath) {
            Err(errno @ (Errno::ENOENT | Errno::ESTALE)) if is_gone(&beneath) => {
                let Ok(anew) = Beneath::open(&self.path) else { return Err(errno) };
                let anew = Arc::new(anew);
                self.beneath.store(anew.clone());
                call(&anew)
            }
            result => result,
        }
    }

    fn failed(&self, call: &str, path: &UfsPath, errno: Errno) -> Error {
        Error::os(format_args!("{call} {}", self.shown(path)), errno as i32)
    }

    fn shown(&self, path: &UfsPath) -> String {
        String::from_utf8_lossy(&self.uri.full_path(path)).into_owned()
    }

    fn attr_at(&self, path: &UfsPath) -> Result<Attr> {
        self.below(|beneath| {
            let single = !path.is_root() && !path.as_bytes().contains(&b'/');
            if single {
                // One name cannot lead anywhere else.
                return fstatat(beneath.root(), path.as_path(), AtFlags::AT_SYMLINK_NOFOLLOW);
            }
            if path.is_root() {
                // Not fstat, which would go on to answer for a directory that was removed.
                return match fstat(beneath.root()) {
                    Ok(stat) if stat.st_nlink == 0 => Err(Errno::ENOENT),
                    done => done,
                };
            }
            fstat(beneath.walk(path, OFlag::O_PATH)?)
        })
        .map(|stat| attr(&stat))
        .map_err(|errno| self.failed("stat", path, errno))
    }

    fn open_at(&self, path: &UfsPath) -> Result<LocalFile> {
        // Opening must not wait for the other end of a pipe, and must not make a terminal ours.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let mut opened = Err(Errno::EPERM);
        if self.without_atime.load(Ordering::Relaxed) {
            opened = self.below(|beneath| beneath.walk(path, flags | OFlag::O_NOATIME));
        }
        if matches!(opened, Err(Errno::EPERM)) {
            opened = self.below(|beneath| beneath.walk(path, flags));
            if opened.is_ok() {
                self.without_atime.store(false, Ordering::Relaxed);
            }
        }
        if matches!(opened, Err(Errno::EAGAIN)) {
            // Another process has a lease on this regular file; the kernel makes it give way in bounded time.
            opened = self.below(|beneath| beneath.walk(path, flags & !OFlag::O_NONBLOCK));
        }
        let file = opened.map_err(|errno| self.failed("open", path, errno))?;
        let attr = attr(&fstat(&file).map_err(|errno| self.failed("open", path, errno))?);
        let refused = |kind, why| Err(Error::new(kind, format!("open {}: {why}", self.shown(path))));
        match attr.kind {
            FileKind::File => Ok(LocalFile { file: Arc::new(File::from(file)), attr: Arc::new(attr) }),
            FileKind::Directory => refused(ErrorKind::IsADirectory, "is a directory"),
            _ => refused(ErrorKind::InvalidArgument, "is a pipe or device, which only the kernel of its host opens"),
        }
    }

    fn directory_at(&self, path: &UfsPath) -> Result<OwnedFd> {
        self.below(|beneath| beneath.walk(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK))
            .map_err(|errno| self.failed("list", path, errno))
    }
}

fn is_gone(beneath: &Beneath) -> bool {
    fstat(beneath.root()).map_or(true, |stat| stat.st_nlink == 0)
}

#[async_trait]
impl UnderStorage for Posix {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    fn is_local(&self) -> bool {
        true
    }

    async fn probe(&self) -> Result<()> {
        let root = UfsPath::root();
        self.directory_at(&root).map(drop)
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        self.attr_at(path)
    }

    async fn stat_and_read(&self, path: &UfsPath, _max: u32) -> Result<Head> {
        Ok(Head { attr: self.attr_at(path)?, bytes: Bytes::new() })
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let directory = self.directory_at(path)?;
        Ok(Box::new(PosixListing::new(directory, self.shown(path), self.deadline)))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        let LocalFile { file, attr: found } = self.open_at(path)?;
        let stale = || Error::new(ErrorKind::Stale, format!("read {}: it changed meanwhile", self.shown(path)));
        if !version.is_none() && found.version != *version {
            return Err(stale());
        }
        let what = format!("read {}", self.shown(path));
        let mut buffer = Vec::new();
        let mut done = 0;
        while done < length {
            let (file, at) = (file.clone(), offset + done);
            // Bounded by CHUNK.
            buffer.resize((length - done).min(CHUNK) as usize, 0);
            let chunk = blocking(self.deadline, &what, move || {
                file.read_exact_at(&mut buffer, at).map(|()| (buffer, fstat(file.as_fd())))
            })
            .await?;
            let (bytes, now) = chunk.map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => stale(),
                _ => Error::io(&what, error),
            })?;
            // Looked at after the bytes were read: had they changed before, the version would differ.
            let now = now.map_err(|errno| self.failed("read", path, errno))?;
            if attr::version(&now) != found.version {
                return Err(stale());
            }
            done += bytes.len() as u64;
            if !sink.push(&bytes) {
                return Ok(());
            }
            buffer = bytes;
        }
        Ok(())
    }

    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        self.below(|beneath| {
            // An empty name reads the link behind an O_PATH descriptor, which no rename can exchange.
            let link = beneath.walk(path, OFlag::O_PATH)?;
            readlinkat(&link, "").map_err(|errno| if errno == Errno::ENOENT { Errno::EINVAL } else { errno })
        })
        .map(|target| Bytes::from(target.into_vec()))
        .map_err(|errno| self.failed("read link", path, errno))
    }

    fn changes(&self) -> Option<&dyn Changes> {
        Some(self)
    }

    fn stat_fs(&self) -> Option<StatFs> {
        let found = nix::sys::statvfs::fstatvfs(self.beneath.load().root()).ok()?;
        Some(StatFs {
            block_size: u32::try_from(found.fragment_size()).unwrap_or(4096),
            blocks: found.blocks(),
            free: found.blocks_free(),
            available: found.blocks_available(),
            files: found.files(),
            files_free: found.files_free(),
            name_max: u32::try_from(found.name_max()).unwrap_or(255),
        })
    }

    fn stat_now(&self, path: &UfsPath) -> Option<Result<Attr>> {
        Some(self.attr_at(path))
    }

    fn open_now(&self, path: &UfsPath) -> Option<Result<LocalFile>> {
        Some(self.open_at(path))
    }
}

#[cfg(test)]
mod tests;
