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
//! A file of this host may be written to at any time, also beside the mount, and is told apart by its identity, not its
//! version; what matters of it is that the kernel knows its size. While it is open for writing the kernel keeps none of
//! its attributes, so there is nothing that could be old.
//!
//! The kernel may keep the pages of a file over an open (FOPEN_KEEP_CACHE) when they are those of the version that is being
//! opened. That is certain once a handle of this version has been read from or released: by then the kernel has dropped
//! what was there before its open.

use super::{
    Fs,
    content::Content,
    inode::{Identity, Inode, Mode, Shared, State, Told},
};
use crate::passthrough::{Backing, Registrar, Source};
use common::{
    Attr, Error, ErrorKind, Result,
    conf::keys::fuse::KernelCache,
    metrics::{PassthroughBacking, metrics},
    worker::{Freshness, LocalFile},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The number of every handle that passes through and only reads: the daemon is asked nothing about such a handle but to
/// release it, and seldom to sync it or to look for holes.
pub const PASSTHROUGH_HANDLE: u64 = 0;

/// A local file that changes all the time is not refused again within this time.
const REFUSE_AGAIN: Duration = Duration::from_secs(1);

/// An open file that is read through the daemon.
pub(super) struct FileHandle {
    pub(super) inode: Arc<Inode>,
    pub(super) attr: Arc<Attr>,
    pub(super) content: Content,
    /// Whether it was opened for writing.
    pub(super) writes: bool,
    /// Whether the kernel drops its old pages at this open, and that it has done so is not yet proved.
    pub(super) unproved: AtomicBool,
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
    /// Whether each close(2) is to be told, since it may fail.
    pub flush: bool,
}

impl Fs {
    /// Opens a file for reading from what is known; `None`: the worker must be asked.
    pub fn open_now(&self, id: u64, registrar: &dyn Registrar) -> Option<Result<Opened>> {
        let inode = match self.inode(id) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        if let Some(opened) = self.open_staged(&inode) {
            return Some(opened);
        }
        let path = match self.place(&inode) {
            Ok(path) => path,
            Err(_) => return None,
        };
        if self.passes() {
            match self.worker().attr_now(&path) {
                Some(Ok(attr)) => {
                    if let Some(done) = self.open_kept(&inode, &attr) {
                        return Some(done);
                    }
                }
                // Perhaps it moves just now.
                Some(Err(error)) if inode.local.is_none() => return Some(Err(error)),
                Some(Err(_)) => return None,
                None => {}
            }
        }
        match self.client.open_now(&path)? {
            Ok(file) => Some(self.conclude(&inode, file, registrar)),
            Err(_) if inode.local.is_some() => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Opens a file for reading, asking the worker.
    ///
    /// # Errors
    /// `Stale` when the kernel must look the name up again; ENFILE beyond the limit of handles; whatever the storage says.
    pub async fn open(&self, id: u64, registrar: &dyn Registrar) -> Result<Opened> {
        let inode = self.inode(id)?;
        loop {
            if let Some(opened) = self.open_staged(&inode) {
                return opened;
            }
            if let Some(file) = self.reopened(&inode, libc::O_RDONLY) {
                return self.conclude(&inode, client::Opened::Local(file?), registrar);
            }
            let path = self.place(&inode)?;
            match self.bounded(&inode, self.client.open(&path, Freshness::Cached)).await {
                Ok(file) => return self.conclude(&inode, file, registrar),
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A further handle of what is being written on this host: it reads what the others wrote.
    fn open_staged(&self, inode: &Arc<Inode>) -> Option<Result<Opened>> {
        let mut state = inode.state.lock();
        let shared = state.open.as_deref_mut()?;
        let staged = shared.staged.clone()?;
        if let Err(error) = self.limit.take() {
            return Some(Err(error));
        }
        shared.handles += 1;
        let attr = staged.attr();
        drop(state);
        Some(Ok(self.through_daemon(inode, Content::Staged(staged), attr, false)))
    }

    /// A removed file that somebody has open, opened once more.
    pub(super) fn reopened(&self, inode: &Arc<Inode>, flags: i32) -> Option<Result<LocalFile>> {
        if !inode.is_nameless() {
            return None;
        }
        let open = inode.state.lock().open.as_ref().and_then(|shared| shared.local.clone())?;
        let opened = ufs::local::reopen(&*open, flags).and_then(|file| {
            let attr = Arc::new(ufs::local::attr_of(&file)?);
            Ok(LocalFile { file: Arc::new(file), attr })
        });
        Some(opened.map_err(|errno| Error::os(inode.path(), errno as i32)))
    }

    /// A handle without passthrough whose pages the kernel does not keep from before.
    pub(super) fn through_daemon(&self, inode: &Arc<Inode>, content: Content, attr: Arc<Attr>, writes: bool) -> Opened {
        let flush = matches!(content, Content::Staged(_));
        let direct_io = self.options.kernel_cache == KernelCache::Direct;
        let unproved = AtomicBool::new(false);
        let handle = self.files.insert(FileHandle { inode: inode.clone(), content, writes, unproved, attr });
        Opened { handle, backing: None, keep_cache: false, direct_io, flush }
    }

    /// Whether files may pass through on this mount.
    pub(super) fn passes(&self) -> bool {
        self.passthrough.is_on() && self.options.kernel_cache != KernelCache::Direct
    }

    /// The short way: the inode passes through already, or a backing file of this version is kept for it.
    fn open_kept(&self, inode: &Arc<Inode>, attr: &Arc<Attr>) -> Option<Result<Opened>> {
        if attr.version.is_none() {
            return None;
        }
        let mut state = inode.state.lock();
        if is_news(&state.told, attr) || state.told.is_none() && attr.local.is_none() {
            return None;
        }
        let same = |identity: &Identity, version: &common::Version| match identity {
            Identity::Local(file) => attr.local == Some(*file),
            _ => *version == attr.version,
        };
        match &mut state.open {
            Some(shared) => {
                let Mode::Passthrough(backing) = &shared.mode else { return None };
                if !same(&shared.identity, &shared.attr.version) {
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
                if !same(&backing.identity, &backing.attr.version) {
                    drop(state);
                    drop(backing);
                    return None;
                }
                if let Err(error) = self.limit.take() {
                    return Some(Err(error));
                }
                *none = Some(Box::new(Shared {
                    handles: 1,
                    writers: 0,
                    identity: backing.identity.clone(),
                    attr: attr.clone(),
                    mode: Mode::Passthrough(backing.clone()),
                    local: backing.local.clone(),
                    staged: None,
                }));
                Some(Ok(passing(backing)))
            }
        }
    }

    /// Makes a handle of an open file.
    fn conclude(&self, inode: &Arc<Inode>, file: client::Opened, registrar: &dyn Registrar) -> Result<Opened> {
        let attr = file.attr().clone();
        let identity = identity(&file);
        self.expect(inode, &identity)?;
        let (open_already, news) = {
            let mut state = inode.state.lock();
            (state.open.is_some(), news(&mut state, &attr, &identity))
        };
        if news == News::Refuse {
            // What the worker remembers must not be older than what it opened, else the lookup tells the old version again.
            let path = inode.path();
            if matches!(self.worker().attr_now(&path), Some(Ok(known)) if known.version != attr.version) {
                self.worker().forget(&path);
            }
            return Err(changed(inode));
        }
        // Registered before the lock is taken for good: it is an ioctl. Another open may be faster; then ours is dropped.
        let candidate = if open_already || !self.may_pass(&attr) { None } else { source(&file) }
            .and_then(|source| self.register(source, identity.clone(), attr.clone(), registrar))
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
                        format!("{}: another version of it is still open", inode.path()),
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
                        writers: 0,
                        identity: identity.clone(),
                        attr: attr.clone(),
                        mode,
                        local,
                        staged: None,
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
            writes: false,
            unproved: AtomicBool::new(!keep_cache && !direct_io && !attr.version.is_none()),
            attr,
        });
        Ok(Opened { handle, backing: None, keep_cache, direct_io, flush: false })
    }

    /// Whether a file may pass through: one with set-id bits may not on a mount that takes writes, since the kernel would
    /// leave them set for whoever writes to it.
    pub(super) fn may_pass(&self, attr: &Attr) -> bool {
        const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
        self.passes() && (attr.mode & SET_ID == 0 || self.changes().is_err())
    }

    /// Registers a file with the kernel. Where somebody may write to it later, the kernel does so as one without privilege:
    /// set-id bits that are set while it is open fall then.
    pub(super) fn register(
        &self,
        source: Source,
        identity: Identity,
        attr: Arc<Attr>,
        registrar: &dyn Registrar,
    ) -> Option<Backing> {
        let register = || self.passthrough.register(source, identity, attr, registrar);
        if self.changes().is_ok() { ufs::local::without_keeping_set_id(register) } else { register() }
    }

    /// Refuses to take another file for the one that this inode stands for.
    pub(super) fn expect(&self, inode: &Arc<Inode>, identity: &Identity) -> Result<()> {
        match (identity, inode.local) {
            (Identity::Local(found), Some(expected)) if *found != expected => Err(changed(inode)),
            _ => Ok(()),
        }
    }

    /// Ends a handle.
    ///
    /// # Errors
    /// `BadHandle` when there is none with this number.
    pub fn release(&self, id: u64, handle: u64) -> Result<()> {
        let (inode, writes) = if handle == PASSTHROUGH_HANDLE {
            (self.inode(id)?, false)
        } else {
            let handle = self.files.remove(handle)?;
            handle.prove();
            (handle.inode.clone(), handle.writes)
        };
        self.limit.give();
        let gone = {
            let mut state = inode.state.lock();
            match &mut state.open {
                Some(shared) if shared.handles > 1 => {
                    shared.handles -= 1;
                    shared.writers -= u64::from(writes && shared.writers > 0);
                    (None, None)
                }
                last => match last.take() {
                    Some(shared) => {
                        let kept = match shared.mode.clone() {
                            Mode::Passthrough(backing) if !backing.writable && !inode.is_nameless() => {
                                self.passthrough.keep(inode.id, backing)
                            }
                            Mode::Passthrough(backing) => Some(backing),
                            Mode::Daemon => None,
                        };
                        (kept, Some(shared))
                    }
                    None => (None, None),
                },
            }
        };
        // To close may take its time, and needs no lock.
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

pub(super) fn passing(backing: Arc<Backing>) -> Opened {
    let sort = if backing.is_cached() { PassthroughBacking::Cache } else { PassthroughBacking::Source };
    metrics().passthrough_opens.of(sort).inc();
    Opened { handle: PASSTHROUGH_HANDLE, backing: Some(backing), keep_cache: false, direct_io: false, flush: false }
}

/// How the version of an open compares with what the kernel was told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The same, as far as anybody knows.
    None,
    /// Another: the kernel must look again.
    Refuse,
    /// Another, but of a local file that was refused just now and keeps changing: it is opened, and its reads do not rely
    /// on the size that the kernel knows.
    Tolerate,
}

pub(super) fn news(state: &mut State, attr: &Attr, identity: &Identity) -> News {
    if !is_news(&state.told, attr) {
        return News::None;
    }
    if matches!(identity, Identity::Local(_)) && state.refused.is_some_and(|refused| refused.elapsed() < REFUSE_AGAIN) {
        return News::Tolerate;
    }
    state.refused = Some(Instant::now());
    News::Refuse
}

/// Whether the kernel was told something else than `attr`: of an object another version, of a local file another size or
/// time of change.
fn is_news(told: &Option<Told>, attr: &Attr) -> bool {
    let Some(told) = told else { return false };
    match attr.local {
        Some(_) => (told.size, told.mtime) != (attr.size, attr.mtime),
        None => !attr.version.is_none() && told.version != attr.version,
    }
}

pub(super) fn changed(inode: &Arc<Inode>) -> Error {
    Error::new(ErrorKind::Stale, format!("{}: it has changed since it was looked up", inode.path()))
}

fn identity(file: &client::Opened) -> Identity {
    let attr = file.attr();
    match attr.local {
        Some(file) => Identity::Local(file),
        None if attr.version.is_none() => Identity::Unversioned { size: attr.size, mtime: attr.mtime },
        None => Identity::Version(attr.version.clone()),
    }
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
