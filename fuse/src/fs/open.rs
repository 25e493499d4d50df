//! Opening and releasing files: which file a handle has, how it is read, and what the kernel may keep of it.
//!
//! The kernel allows one way of reading per inode at a time: either all its open handles pass through to one and the
//! same backing file, or none does. The first open decides and it stays so until the last release ([`Shared`]).
//!
//! The kernel takes a file's size from the attributes that it was told last, not from the open. So an open that finds
//! another version than the kernel was told of is answered `Stale`, once: the kernel then looks the name up again, is told
//! of the new version, and opens again. The same answer, with the path freed for a new inode, keeps a second version away
//! from an inode whose first version is still open.
//!
//! The kernel may keep the pages of a file over an open (FOPEN_KEEP_CACHE) when they are those of the version that is being
//! opened. That is certain once a handle of this version has been read from or released: by then the kernel has dropped
//! what was there before its open.

use super::{
    Fs,
    content::Content,
    inode::{Identity, Inode, Mode, Shared, State},
};
use crate::passthrough::{Backing, Registrar, Source};
use common::{
    Attr, Error, ErrorKind, Result, Version,
    conf::keys::fuse::KernelCache,
    metrics::{PassthroughBacking, metrics},
    worker::Freshness,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The number of every handle that passes through: the daemon is asked nothing about such a handle but to release it.
pub const PASSTHROUGH_HANDLE: u64 = 0;

/// A local file that changes all the time is not refused again within this time.
const REFUSE_AGAIN: Duration = Duration::from_secs(1);

/// An open file that is read through the daemon.
pub(super) struct FileHandle {
    pub(super) inode: Arc<Inode>,
    pub(super) attr: Arc<Attr>,
    pub(super) content: Content,
    /// Whether the kernel drops its old pages at this open, and that it has done so is not yet proved.
    unproved: AtomicBool,
}

/// What the kernel is told of an open.
pub struct Opened {
    /// The handle's number.
    pub handle: u64,
    /// The backing file to pass through to.
    pub backing: Option<Arc<Backing>>,
    /// Whether the kernel may keep the pages that it has.
    pub keep_cache: bool,
    /// Whether reads go by the kernel's cache.
    pub direct_io: bool,
}

impl Fs {
    /// Opens a file from what is known; `None`: the worker must be asked. `flags` as of open(2).
    pub fn open_now(&self, id: u64, flags: i32, registrar: &dyn Registrar) -> Option<Result<Opened>> {
        let inode = match self.inode(id).and_then(|inode| reading(flags).map(|()| inode)) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        if self.passes() {
            match self.worker().attr_now(&inode.path) {
                Some(Ok(attr)) => {
                    if let Some(done) = self.open_kept(&inode, &attr) {
                        return Some(done);
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {}
            }
        }
        let file = self.client.open_now(&inode.path)?;
        Some(file.and_then(|file| self.conclude(&inode, file, registrar)))
    }

    /// Opens a file, asking the worker.
    ///
    /// # Errors
    /// `ReadOnly` for writing; `Stale` when the kernel must look the name up again; ENFILE beyond the limit of handles;
    /// whatever the storage says.
    pub async fn open(&self, id: u64, flags: i32, registrar: &dyn Registrar) -> Result<Opened> {
        reading(flags)?;
        let inode = self.inode(id)?;
        let file = self.bounded(&inode, self.client.open(&inode.path, Freshness::Cached)).await?;
        self.conclude(&inode, file, registrar)
    }

    /// Whether files may pass through on this mount.
    fn passes(&self) -> bool {
        self.passthrough.is_on() && self.options.kernel_cache != KernelCache::Direct
    }

    /// The short way: the inode passes through already, or a backing file of this version is kept for it.
    fn open_kept(&self, inode: &Arc<Inode>, attr: &Arc<Attr>) -> Option<Result<Opened>> {
        if attr.version.is_none() {
            return None;
        }
        let mut state = inode.state.lock();
        if state.told.as_ref() != Some(&attr.version) {
            return None;
        }
        match &mut state.open {
            Some(shared) => {
                let Mode::Passthrough(backing) = &shared.mode else { return None };
                if shared.attr.version != attr.version {
                    return None;
                }
                if let Err(error) = self.limit.take() {
                    return Some(Err(error));
                }
                shared.handles += 1;
                Some(Ok(passing(backing.clone())))
            }
            none => {
                let backing = self.passthrough.take(inode.id)?;
                if backing.attr.version != attr.version {
                    drop(state);
                    drop(backing);
                    return None;
                }
                if let Err(error) = self.limit.take() {
                    return Some(Err(error));
                }
                *none = Some(Box::new(Shared {
                    handles: 1,
                    identity: backing.identity.clone(),
                    attr: attr.clone(),
                    mode: Mode::Passthrough(backing.clone()),
                    local: backing.local.clone(),
                }));
                Some(Ok(passing(backing)))
            }
        }
    }

    /// Makes a handle of an open file.
    fn conclude(&self, inode: &Arc<Inode>, file: client::Opened, registrar: &dyn Registrar) -> Result<Opened> {
        let attr = file.attr().clone();
        let identity = identity(&file)?;
        let (open_already, news) = {
            let mut state = inode.state.lock();
            (state.open.is_some(), news(&mut state, &attr, &identity))
        };
        if news == News::Refuse {
            // What the worker remembers must not be older than what it opened, else the lookup tells the old version again.
            if matches!(self.worker().attr_now(&inode.path), Some(Ok(known)) if known.version != attr.version) {
                self.worker().forget(&inode.path);
            }
            return Err(changed(inode));
        }
        // Registered before the lock is taken for good: it is an ioctl. Another open may be faster; then ours is dropped.
        let candidate = if open_already || !self.passes() { None } else { source(&file) }
            .and_then(|source| self.passthrough.register(source, identity.clone(), attr.clone(), registrar))
            .map(Arc::new);
        self.limit.take()?;
        let (mode, keep_cache) = {
            let mut state = inode.state.lock();
            // The kernel may have been told of another version since this was looked at first.
            let changed_since = news == News::None && is_news(&state.told, &attr);
            match &mut state.open {
                Some(shared) if shared.identity != identity => {
                    drop(state);
                    self.limit.give();
                    self.inodes.detach(inode);
                    return Err(Error::new(
                        ErrorKind::Stale,
                        format!("{}: another version of it is still open", inode.path),
                    ));
                }
                _ if changed_since => {
                    drop(state);
                    self.limit.give();
                    return Err(changed(inode));
                }
                Some(shared) => {
                    shared.handles += 1;
                    shared.attr = attr.clone();
                }
                none => {
                    let mode = candidate.clone().map_or(Mode::Daemon, Mode::Passthrough);
                    let local = match &file {
                        client::Opened::Local(local) => Some(local.file.clone()),
                        _ => None,
                    };
                    *none = Some(Box::new(Shared {
                        handles: 1,
                        identity: identity.clone(),
                        attr: attr.clone(),
                        mode,
                        local,
                    }));
                }
            }
            let mode = state.open.as_ref().map_or(Mode::Daemon, |shared| shared.mode.clone());
            let known = !attr.version.is_none() && state.cached.as_ref() == Some(&attr.version);
            if !known && matches!(mode, Mode::Daemon) {
                state.cached = None;
            }
            (mode, known)
        };
        drop(candidate);
        if let Mode::Passthrough(backing) = mode {
            return Ok(passing(backing));
        }
        metrics().cached_opens.inc();
        // A local file may say that it is empty and have something to read all the same (in /proc), or grow.
        let unsized_local = matches!(file, client::Opened::Local(_)) && attr.size == 0;
        let direct_io = unsized_local || news == News::Tolerate || self.options.kernel_cache == KernelCache::Direct;
        let keep_cache = !direct_io && (keep_cache || self.options.kernel_cache == KernelCache::Keep);
        let handle = self.files.insert(FileHandle {
            inode: inode.clone(),
            content: match file {
                client::Opened::Local(local) => Content::Local(local.file),
                client::Opened::Complete { reader, .. } | client::Opened::Paged(reader) => Content::Pages(reader),
            },
            unproved: AtomicBool::new(!keep_cache && !direct_io && !attr.version.is_none()),
            attr,
        });
        Ok(Opened { handle, backing: None, keep_cache, direct_io })
    }

    /// Ends a handle.
    ///
    /// # Errors
    /// `BadHandle` when there is none with this number.
    pub fn release(&self, id: u64, handle: u64) -> Result<()> {
        let inode = if handle == PASSTHROUGH_HANDLE {
            self.inode(id)?
        } else {
            let handle = self.files.remove(handle)?;
            handle.prove();
            handle.inode.clone()
        };
        self.limit.give();
        let gone = {
            let mut state = inode.state.lock();
            match &mut state.open {
                Some(shared) if shared.handles > 1 => {
                    shared.handles -= 1;
                    None
                }
                last => last.take().map(|shared| match shared.mode {
                    Mode::Passthrough(backing) if !inode.is_detached() => self.passthrough.keep(inode.id, backing),
                    Mode::Passthrough(backing) => Some(backing),
                    Mode::Daemon => None,
                }),
            }
        };
        drop(gone);
        Ok(())
    }
}

impl FileHandle {
    /// Called when the kernel has shown that this handle's open is behind it.
    pub(super) fn prove(&self) {
        if self.unproved.load(Ordering::Relaxed) && self.unproved.swap(false, Ordering::Relaxed) {
            self.inode.state.lock().cached = Some(self.attr.version.clone());
        }
    }
}

fn passing(backing: Arc<Backing>) -> Opened {
    let sort = if backing.is_cached() { PassthroughBacking::Cache } else { PassthroughBacking::Source };
    metrics().passthrough_opens.of(sort).inc();
    Opened { handle: PASSTHROUGH_HANDLE, backing: Some(backing), keep_cache: false, direct_io: false }
}

/// How the version of an open compares with what the kernel was told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum News {
    /// The same, as far as anybody knows.
    None,
    /// Another: the kernel must look again.
    Refuse,
    /// Another, but of a local file that was refused just now and keeps changing: it is opened, and its reads do not rely
    /// on the size that the kernel knows.
    Tolerate,
}

fn news(state: &mut State, attr: &Attr, identity: &Identity) -> News {
    if !is_news(&state.told, attr) {
        return News::None;
    }
    if matches!(identity, Identity::Local { .. })
        && state.refused.is_some_and(|refused| refused.elapsed() < REFUSE_AGAIN)
    {
        return News::Tolerate;
    }
    state.refused = Some(Instant::now());
    News::Refuse
}

/// Whether the kernel was told of another version than that of `attr`.
fn is_news(told: &Option<Version>, attr: &Attr) -> bool {
    !attr.version.is_none() && told.as_ref().is_some_and(|told| *told != attr.version)
}

fn changed(inode: &Inode) -> Error {
    Error::new(ErrorKind::Stale, format!("{}: it has changed since it was looked up", inode.path))
}

fn reading(flags: i32) -> Result<()> {
    if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_TRUNC | libc::O_CREAT) != 0 {
        return Err(super::read_only());
    }
    Ok(())
}

fn identity(file: &client::Opened) -> Result<Identity> {
    if let client::Opened::Local(local) = file {
        let stat = nix::sys::stat::fstat(&local.file).map_err(|errno| Error::os("an open file", errno as i32))?;
        return Ok(Identity::Local { dev: stat.st_dev, ino: stat.st_ino });
    }
    let attr = file.attr();
    Ok(if attr.version.is_none() {
        Identity::Unversioned { size: attr.size, mtime: attr.mtime }
    } else {
        Identity::Version(attr.version.clone())
    })
}

/// What may be registered of an open file: all its bytes must be there.
fn source(file: &client::Opened) -> Option<Source> {
    match file {
        client::Opened::Local(local) => Some(Source::Local(local.file.clone())),
        client::Opened::Complete { lease, reader } => {
            (*lease.version() == reader.attr().version).then(|| Source::Lease(lease.clone()))
        }
        client::Opened::Paged(_) => None,
    }
}
