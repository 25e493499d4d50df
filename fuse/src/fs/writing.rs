//! Files that are written: opened or made for it, written to, made durable.
//!
//! A file of this host is written by the kernel itself where it may pass through, else through the open file here. An
//! object is written through a handle of its worker, which decides when it becomes visible; whoever else opens it here
//! meanwhile shares that handle's bytes.

use super::{
    Entry, Fs,
    changing::loses_set_id,
    content::{Content, lost},
    inode::{Identity, Inode, Mode, Shared},
    open::{News, Opened, PASSTHROUGH_HANDLE, changed, news, passing},
};
use crate::passthrough::{Registrar, Source};
use bytes::Bytes;
use common::{
    Error, ErrorKind, Result,
    change::{Caller, OpenedForWriting, SetAttr, WriteHandle},
    metrics::metrics,
    worker::LocalFile,
};
use nix::errno::Errno;
use std::{fs::File, sync::Arc};

/// Whether a handle that is opened with these flags writes.
fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// What a handle's calls go to.
enum Target {
    /// The handle's own open file, so that it is told of errors as every open file is: once each.
    Local(Arc<File>),
    /// The open file of somebody else, for a handle that passes through and only reads.
    Shared(Arc<File>),
    Staged(Arc<dyn WriteHandle>),
    /// What is only read, and has this size.
    Cached(u64),
}

/// An open for writing that is to become a handle.
struct Wanted {
    flags: i32,
    caller: Caller,
    /// The file was made by it.
    new: bool,
}

impl Fs {
    /// Whether an open with these flags changes something, or may later.
    pub fn opens_for_writing(flags: i32) -> bool {
        writes(flags) || flags & (libc::O_TRUNC | libc::O_CREAT) != 0
    }

    /// Opens a file for writing.
    ///
    /// # Errors
    /// `ReadOnly`; `Stale` when the kernel must look the name up again; ENFILE beyond the limit of handles; whatever the
    /// storage says.
    pub async fn open_for_writing(
        &self,
        id: u64,
        flags: i32,
        caller: Caller,
        registrar: &dyn Registrar,
    ) -> Result<Opened> {
        let changes = self.changes()?;
        let inode = self.inode(id)?;
        // A file of this host is truncated once it is known to be the one that was asked for.
        let first = if inode.local.is_some() { flags & !libc::O_TRUNC } else { flags };
        let wanted = Wanted { flags, caller, new: false };
        loop {
            if let Some(staged) = self.shared_handle(&inode) {
                if flags & libc::O_TRUNC != 0 {
                    self.bounded(&inode, staged.truncate(0)).await?;
                    self.lose_set_id(&inode, &staged, caller).await?;
                }
                return self.conclude_staged(&inode, staged, flags);
            }
            if let Some(file) = self.reopened(&inode, first) {
                return self.conclude_local(&inode, file?, &wanted, registrar);
            }
            self.make_room_for_writer(&inode)?;
            let (path, opened) = {
                let _still = self.tree.read().await;
                let path = self.place(&inode)?;
                let opened = self.bounded(&inode, changes.open(&path, first)).await;
                (path, opened)
            };
            match opened {
                Ok(opened) => return self.conclude_writing(&inode, opened, &wanted, registrar),
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes a file and opens it, or opens the one that is there.
    ///
    /// # Errors
    /// As [`open_for_writing`](Self::open_for_writing); `AlreadyExists` with `O_EXCL`.
    pub async fn create(
        &self,
        parent: u64,
        name: &[u8],
        flags: i32,
        mode: u32,
        caller: Caller,
        registrar: &dyn Registrar,
    ) -> Result<(Entry, Opened)> {
        let changes = self.changes()?;
        let parent = self.inode(parent)?;
        let _still = self.tree.read().await;
        let path = self.child(&parent, name)?;
        let created = self.bounded(&parent, changes.create(&path, flags, mode & 0o7777, caller)).await?;
        let mut entry = self.made(&parent, name, created.attr());
        let opened = match self.inode(entry.id) {
            Ok(inode) => self.conclude_writing(&inode, created, &Wanted { flags, caller, new: true }, registrar),
            Err(error) => Err(error),
        };
        match opened {
            Ok(opened) => {
                entry.lasting &= !writes(flags);
                Ok((entry, opened))
            }
            Err(error) => {
                self.forget(entry.id, 1);
                Err(error)
            }
        }
    }

    /// The handle that is open already, when it serves further opens.
    fn shared_handle(&self, inode: &Inode) -> Option<Arc<dyn WriteHandle>> {
        let staged = inode.state.lock().open.as_ref().and_then(|shared| shared.staged.clone())?;
        staged.is_shared().then_some(staged)
    }

    /// Takes set-id bits from a file whose bytes this user changed.
    async fn lose_set_id(&self, inode: &Arc<Inode>, staged: &Arc<dyn WriteHandle>, caller: Caller) -> Result<()> {
        if loses_set_id(caller) { self.drop_set_id(inode, &**staged).await } else { Ok(()) }
    }

    async fn drop_set_id(&self, inode: &Arc<Inode>, staged: &dyn WriteHandle) -> Result<()> {
        const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;
        if staged.attr().mode & SET_ID == 0 {
            return Ok(());
        }
        let change = SetAttr { drop_set_id: true, ..SetAttr::default() };
        self.bounded(inode, staged.set_attr(&change)).await.map(drop)
    }

    /// Frees the name of an object that is being read: who writes it does so under another inode, since what the readers
    /// have open stays as it is.
    fn make_room_for_writer(&self, inode: &Arc<Inode>) -> Result<()> {
        let read = inode
            .state
            .lock()
            .open
            .as_ref()
            .is_some_and(|shared| !matches!(shared.identity, Identity::Local(_) | Identity::Staged));
        if read {
            self.inodes.detach(inode);
            return Err(changed(inode));
        }
        Ok(())
    }

    fn conclude_writing(
        &self,
        inode: &Arc<Inode>,
        opened: OpenedForWriting,
        wanted: &Wanted,
        registrar: &dyn Registrar,
    ) -> Result<Opened> {
        match opened {
            OpenedForWriting::Local(file) => self.conclude_local(inode, file, wanted, registrar),
            OpenedForWriting::Staged(staged) => self.conclude_staged(inode, staged, wanted.flags),
        }
    }

    fn conclude_local(
        &self,
        inode: &Arc<Inode>,
        opened: LocalFile,
        wanted: &Wanted,
        registrar: &dyn Registrar,
    ) -> Result<Opened> {
        let LocalFile { file, mut attr } = opened;
        let identity = attr.local.map(Identity::Local).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("{}: a file of this host has no identity", inode.path()))
        })?;
        self.expect(inode, &identity)?;
        let slot = self.limit.slot()?;
        let truncates = wanted.flags & libc::O_TRUNC != 0 && !wanted.new;
        if truncates {
            let drop_set_id = loses_set_id(wanted.caller);
            let change = SetAttr { size: Some(0), drop_set_id, ..SetAttr::default() };
            attr = Arc::new(ufs::local::set_attr(&*file, &change).map_err(|errno| failed(inode, errno))?);
        }
        let writers = u64::from(writes(wanted.flags));
        let fresh = {
            let mut state = inode.state.lock();
            // What is truncated or new has the size that the kernel thinks. Of anything else it must know it, or what a
            // program writes at the end would not be there.
            let known = truncates || wanted.new;
            if !known && news(&mut state, &attr, &identity) == News::Refuse {
                return Err(changed(inode));
            }
            state.open.is_none()
        };
        let candidate = (fresh && self.may_pass(&attr))
            .then(|| self.register(Source::Writable(file.clone()), identity.clone(), attr.clone(), registrar))
            .flatten()
            .map(Arc::new);
        let mode = {
            let mut state = inode.state.lock();
            state.cached = None;
            match &mut state.open {
                Some(shared) if shared.identity != identity => return Err(changed(inode)),
                Some(shared) => {
                    shared.handles += 1;
                    shared.writers += writers;
                    shared.attr = attr.clone();
                    shared.local = Some(file.clone());
                }
                none => {
                    *none = Some(Box::new(Shared {
                        handles: 1,
                        writers,
                        identity,
                        attr: attr.clone(),
                        mode: candidate.clone().map_or(Mode::Daemon, Mode::Passthrough),
                        local: Some(file.clone()),
                        staged: None,
                    }));
                }
            }
            state.told = None;
            state.open.as_ref().map_or(Mode::Daemon, |shared| shared.mode.clone())
        };
        slot.keep();
        let passes = match mode {
            Mode::Passthrough(backing) if writers == 0 => return Ok(passing(backing)),
            Mode::Passthrough(backing) => Some(passing(backing)),
            Mode::Daemon => None,
        };
        // Also where the kernel writes: what went wrong with it is told to each open file, so each handle needs its own.
        let flush = writers > 0 && self.closing.tells(&file, &attr);
        let through = self.through_daemon(inode, Content::Local(file), attr, writers > 0);
        Ok(match passes {
            Some(passes) => Opened { handle: through.handle, flush, ..passes },
            None => {
                metrics().cached_opens.inc();
                Opened { flush, ..through }
            }
        })
    }

    fn conclude_staged(&self, inode: &Arc<Inode>, staged: Arc<dyn WriteHandle>, flags: i32) -> Result<Opened> {
        self.limit.take()?;
        let attr = staged.attr();
        let writers = u64::from(writes(flags));
        {
            let mut state = inode.state.lock();
            (state.cached, state.told) = (None, None);
            match &mut state.open {
                Some(shared) if shared.identity != Identity::Staged => {
                    drop(state);
                    self.limit.give();
                    self.inodes.detach(inode);
                    return Err(changed(inode));
                }
                Some(shared) => {
                    shared.handles += 1;
                    shared.writers += writers;
                    // The newest is the one that is known to work.
                    shared.staged = Some(staged.clone());
                }
                none => {
                    *none = Some(Box::new(Shared {
                        handles: 1,
                        writers,
                        identity: Identity::Staged,
                        attr: attr.clone(),
                        mode: Mode::Daemon,
                        local: None,
                        staged: Some(staged.clone()),
                    }));
                }
            }
        }
        metrics().cached_opens.inc();
        Ok(self.through_daemon(inode, Content::Staged(staged), attr, writers > 0))
    }

    fn target(&self, id: u64, handle: u64) -> Result<(Arc<Inode>, Target)> {
        if handle != PASSTHROUGH_HANDLE {
            let handle = self.files.get(handle)?;
            let target = match &handle.content {
                Content::Local(file) => Target::Local(file.clone()),
                Content::Staged(staged) => Target::Staged(staged.clone()),
                Content::Pages(_) => Target::Cached(handle.attr.size),
                Content::Lost if handle.writes => return Err(lost(&handle)),
                Content::Lost => Target::Cached(handle.attr.size),
            };
            return Ok((handle.inode.clone(), target));
        }
        let inode = self.inode(id)?;
        let target = match inode.state.lock().open.as_deref() {
            Some(Shared { local: Some(file), .. }) => Target::Shared(file.clone()),
            Some(shared) => Target::Cached(shared.attr.size),
            None => return Err(Error::new(ErrorKind::BadHandle, format!("{}: is not open", inode.path()))),
        };
        Ok((inode, target))
    }

    /// Writes to a file of this host; `None`: the handle's worker takes it ([`write`](Self::write)). `append`: at the end,
    /// wherever that is. `drop_set_id`: the writer has no privilege.
    pub fn write_now(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        append: bool,
        drop_set_id: bool,
    ) -> Option<Result<()>> {
        let handle = match self.files.get(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        let file = match &handle.content {
            Content::Local(file) => file,
            Content::Staged(_) => return None,
            Content::Pages(_) => return Some(Err(read_only_handle(&handle.inode))),
            Content::Lost => return Some(Err(lost(&handle))),
        };
        let mut written = ufs::local::write_all(&**file, offset, data, append);
        if written.is_ok() && drop_set_id {
            written = ufs::local::drop_privileges(&**file);
        }
        if written.is_ok() {
            metrics().fuse_write_bytes.inc_by(data.len() as u64);
        }
        Some(written.map_err(|errno| failed(&handle.inode, errno)))
    }

    /// Writes through the handle's worker; the flags as of [`write_now`](Self::write_now).
    ///
    /// # Errors
    /// Whatever the storage says; `NoSpace` when the stage is full.
    pub async fn write(&self, handle: u64, offset: u64, data: Bytes, append: bool, drop_set_id: bool) -> Result<()> {
        let handle = self.files.get(handle)?;
        let Content::Staged(staged) = &handle.content else { return Err(read_only_handle(&handle.inode)) };
        let length = data.len() as u64;
        let work = async { if append { staged.append(data).await } else { staged.write(offset, data).await } };
        self.bounded(&handle.inode, work).await?;
        metrics().fuse_write_bytes.inc_by(length);
        if drop_set_id { self.drop_set_id(&handle.inode, &**staged).await } else { Ok(()) }
    }

    /// What close(2) promises, for one descriptor of a handle.
    ///
    /// # Errors
    /// Why what was written could not be published.
    pub async fn flush(&self, id: u64, handle: u64) -> Result<()> {
        let (inode, target) = self.target(id, handle)?;
        match target {
            Target::Staged(staged) if staged.keeps_deadlines() => staged.flush().await,
            Target::Staged(staged) => self.bounded(&inode, staged.flush()).await,
            Target::Local(file) if self.files.get(handle)?.writes => {
                self.on_thread(&inode, move || Ok(ufs::local::close_once(&file)?)).await
            }
            _ => Ok(()),
        }
    }

    /// What fsync(2) promises.
    ///
    /// # Errors
    /// Whatever the storage says.
    pub async fn sync(&self, id: u64, handle: u64, data_only: bool) -> Result<()> {
        let sync = move |file: &File| if data_only { file.sync_data() } else { file.sync_all() };
        let (inode, target) = self.target(id, handle)?;
        match target {
            Target::Staged(staged) if staged.keeps_deadlines() => staged.sync(data_only).await,
            Target::Staged(staged) => self.bounded(&inode, staged.sync(data_only)).await,
            Target::Local(file) => self.on_thread(&inode, move || sync(&file)).await,
            // Opened anew: to be told of an error through the file of another handle would take it from that one.
            Target::Shared(file) => {
                let anew = move || sync(&ufs::local::reopen(&*file, libc::O_RDONLY)?);
                self.on_thread(&inode, anew).await
            }
            // Nothing of what is only read waits for a disk.
            Target::Cached(_) => Ok(()),
        }
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// `Unsupported` for modes that the storage has not.
    pub async fn allocate(
        &self,
        (id, handle): (u64, u64),
        mode: i32,
        offset: u64,
        length: u64,
        caller: Caller,
    ) -> Result<()> {
        self.changes()?;
        let (inode, target) = self.target(id, handle)?;
        match target {
            Target::Staged(staged) => {
                self.bounded(&inode, staged.allocate(mode, offset, length)).await?;
                self.lose_set_id(&inode, &staged, caller).await
            }
            Target::Shared(_) | Target::Cached(_) => Err(read_only_handle(&inode)),
            Target::Local(file) => {
                let allocate = move || {
                    ufs::local::allocate(&*file, mode, offset, length)?;
                    if loses_set_id(caller) {
                        ufs::local::drop_privileges(&*file)?;
                    }
                    Ok(())
                };
                self.on_thread(&inode, allocate).await
            }
        }
    }

    /// lseek(2) for data or a hole; what is read by page is one piece of data.
    ///
    /// # Errors
    /// ENXIO beyond the end.
    pub async fn seek(&self, id: u64, handle: u64, offset: u64, hole: bool) -> Result<u64> {
        let (inode, target) = self.target(id, handle)?;
        match target {
            Target::Staged(staged) => self.bounded(&inode, staged.seek(offset, hole)).await,
            Target::Local(file) | Target::Shared(file) => {
                ufs::local::seek(&*file, offset, hole).map_err(|errno| failed(&inode, errno))
            }
            Target::Cached(size) if offset >= size => {
                Err(Error::new(ErrorKind::Os(libc::ENXIO), format!("{}: {offset} is beyond the end", inode.path())))
            }
            Target::Cached(size) => Ok(if hole { size } else { offset }),
        }
    }

    /// copy_file_range(2) between two open files of this host. Returns how many bytes were copied.
    ///
    /// # Errors
    /// `Unsupported` when one of them is not of this host; then the program copies itself.
    pub async fn copy(
        &self,
        (from_id, from, from_at): (u64, u64, u64),
        (to_id, to, to_at): (u64, u64, u64),
        length: u64,
        caller: Caller,
    ) -> Result<u64> {
        /// Of one call, so that it ends.
        const MOST: u64 = 64 << 20;
        self.changes()?;
        let unsupported = || Error::new(ErrorKind::Unsupported, "only files of this host are copied so");
        let (_, Target::Local(source) | Target::Shared(source)) = self.target(from_id, from)? else {
            return Err(unsupported());
        };
        let (inode, Target::Local(target)) = self.target(to_id, to)? else { return Err(unsupported()) };
        // Bounded by MOST.
        let length = length.min(MOST) as usize;
        let copy = move || {
            let copied = ufs::local::copy(&*source, from_at, &*target, to_at, length)?;
            if loses_set_id(caller) {
                ufs::local::drop_privileges(&*target)?;
            }
            Ok(copied as u64)
        };
        self.on_thread(&inode, copy).await
    }

    /// Makes a call that waits for a disk, within the deadline.
    async fn on_thread<T: Send + 'static>(
        &self,
        inode: &Arc<Inode>,
        call: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let called = async {
            match tokio::task::spawn_blocking(call).await {
                Ok(done) => done.map_err(|error| Error::io(inode.path(), error)),
                Err(gone) => Err(Error::with_source(ErrorKind::Io, "the call was given up", gone)),
            }
        };
        self.bounded(inode, called).await
    }
}

fn read_only_handle(inode: &Arc<Inode>) -> Error {
    Error::new(ErrorKind::BadHandle, format!("{}: is not open for writing", inode.path()))
}

fn failed(inode: &Arc<Inode>, errno: Errno) -> Error {
    Error::os(inode.path(), errno as i32)
}
