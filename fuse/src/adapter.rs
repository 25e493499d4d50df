//! The thin layer between fuser and [`Fs`]: requests in, replies out.
//!
//! Each request is first tried without waiting, on the thread that took it. What must wait goes to the runtime with its
//! reply, and the thread takes the next request.
//!
//! Invariants:
//! - every request is answered exactly once: a reply that is dropped unsent, as by a panic, answers EIO;
//! - a panic never ends a thread that takes requests: each operation is caught;
//! - no future polled here blocks for long without yielding, since the first look at it happens on that thread;
//! - what the storage cannot do at all (extended attributes, holes) is answered ENOSYS, upon which the kernel stops asking.
//!
//! That a reply fails to arrive is not seen here (fuser logs it). It does no harm to lookup counts: the kernel waits for the
//! answer to a request that was taken, even for a process that is being killed, and only the end of the connection, which
//! ends the inode table too, makes it go unheard.

mod convert;
mod in_turn;
mod init;
pub mod notify;
mod run;
mod sink;
mod turn;
mod write;

pub use in_turn::InTurn;

use crate::{
    fs::{
        Entry, Fs, Opened, Read,
        trail::{Agreed, Held},
    },
    passthrough::{Registered, Registrar, Through, Token},
};
use bytes::Bytes;
use common::{
    Error, ErrorKind,
    change::{NewNode, SetAttr},
    metrics::FuseOp,
};
use convert::{errno, file_attr, negative};
use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use run::{Timer, caught};
use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::runtime::Handle;

/// Never reused node ids need no generations.
const GENERATION: Generation = Generation(0);

/// A file system as fuser serves it.
pub struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    /// What a predecessor agreed with the kernel, when this process takes over from one.
    agreed: Option<Agreed>,
}

impl Adapter {
    /// Serves `fs`; what must wait runs on `runtime`.
    pub fn new(fs: Arc<Fs>, runtime: Handle) -> Self {
        Self { fs, runtime, agreed: None }
    }

    /// Takes over from a process that died: what the kernel holds, as it agreed on it with that process. It blocks.
    pub fn resume(&mut self, held: &Held) {
        self.runtime.block_on(self.fs.resume(held));
        self.agreed = held.agreed;
    }

    /// The file system that it serves.
    pub fn fs(&self) -> &Arc<Fs> {
        &self.fs
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").finish_non_exhaustive()
    }
}

impl Registrar for ReplyCreate {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Token> {
        self.open_backing(file).map(|id| Arc::new(id) as Token)
    }
}

impl Registrar for ReplyOpen {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Token> {
        self.open_backing(file).map(|id| Arc::new(id) as Token)
    }
}

thread_local! {
    /// Where a thread that takes requests reads into, before it replies. It grows to the largest request, once.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn reply_entry(fs: &Fs, timer: Timer, found: common::Result<Entry>, reply: ReplyEntry) {
    let options = fs.options();
    match found {
        Ok(entry) => {
            let attr = file_attr(entry.id, &entry.attr);
            reply.entry_with_ttls(&attr_timeout(fs, &entry), &options.entry_timeout, &attr, GENERATION);
            timer.done();
        }
        Err(error) if error.kind() == ErrorKind::NotFound && !options.negative_timeout.is_zero() => {
            reply.entry_with_ttls(&Duration::ZERO, &options.negative_timeout, &negative(), GENERATION);
            timer.failed();
        }
        Err(error) => {
            reply.error(errno(&error));
            timer.failed();
        }
    }
}

/// How long the kernel may use the attributes of an entry.
fn attr_timeout(fs: &Fs, entry: &Entry) -> Duration {
    if entry.lasting { fs.options().attr_timeout } else { Duration::ZERO }
}

fn reply_attr(fs: &Fs, timer: Timer, found: common::Result<Entry>, reply: ReplyAttr) {
    match found {
        Ok(entry) => {
            reply.attr(&attr_timeout(fs, &entry), &file_attr(entry.id, &entry.attr));
            timer.done();
        }
        Err(error) => {
            reply.error(errno(&error));
            timer.failed();
        }
    }
}

/// Who registers files for the answer to an open.
fn registrar<'a>(
    fs: &Fs,
    reply: &'a (impl Registrar + 'static),
    through: &'a mut Option<Through>,
) -> &'a dyn Registrar {
    match fs.passthrough().delegate() {
        Some(delegate) => through.insert(Through(delegate.clone())),
        None => reply,
    }
}

/// What the kernel calls a registered file, as fuser has it for an answer: of one that somebody else registered it must be
/// turned [back](BackingId::into_raw) into its number, since this process cannot take it back.
enum Backed<'a> {
    Here(&'a BackingId),
    Elsewhere(u32),
}

fn backed(token: &Token) -> Option<Backed<'_>> {
    let here = token.downcast_ref::<BackingId>().map(Backed::Here);
    here.or_else(|| token.downcast_ref::<Registered>().map(|registered| Backed::Elsewhere(registered.id)))
}

fn reply_open(
    fs: &Fs,
    (ino, how): (INodeNo, OpenFlags),
    timer: Timer,
    opened: common::Result<Opened>,
    reply: ReplyOpen,
) {
    let opened = match opened {
        Ok(opened) => opened,
        Err(error) => {
            reply.error(errno(&error));
            return timer.failed();
        }
    };
    let flags = open_flags(&opened);
    fs.note_opened(ino.0, &opened, how.0);
    match opened.backing.as_ref().map(|backing| backed(backing.token())) {
        Some(Some(Backed::Here(id))) => reply.opened_passthrough(FileHandle(opened.handle), flags, id),
        Some(Some(Backed::Elsewhere(id))) => {
            // SAFETY: the id is of this connection, registered, and stays so while the token lives, which the open file holds.
            let id = unsafe { reply.wrap_backing(id) };
            reply.opened_passthrough(FileHandle(opened.handle), flags, &id);
            // Whoever registered it takes it back.
            let _ = id.into_raw();
        }
        Some(None) => {
            // Invariant: tokens are made by this module's registrar alone.
            reply.error(Errno::EIO);
            return timer.failed();
        }
        None => reply.opened(FileHandle(opened.handle), flags),
    }
    timer.done();
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_NOFLUSH, !opened.flush);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags
}

fn reply_data(timer: Timer, data: common::Result<&[u8]>, reply: ReplyData) {
    match data {
        Ok(data) => {
            reply.data(data);
            timer.done();
        }
        Err(error) => {
            reply.error(errno(&error));
            timer.failed();
        }
    }
}

fn reply_empty(timer: Timer, done: common::Result<()>, reply: ReplyEmpty) {
    match done {
        Ok(()) => {
            reply.ok();
            timer.done();
        }
        Err(error) => {
            reply.error(errno(&error));
            timer.failed();
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = init::negotiate(&self.fs, config);
        match self.agreed {
            None => self.fs.note_agreed(agreed),
            Some(before) if before == agreed => {}
            Some(_) => {
                return Err(io::Error::other("the kernel agreed on something else with the process before this one"));
            }
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.fs.passthrough().clear();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let timer = Timer::start(FuseOp::Lookup);
        caught(|| match self.fs.lookup_now(parent.0, name.as_bytes()) {
            Some(found) => reply_entry(&self.fs, timer, found, reply),
            None => {
                let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
                self.drive(async move {
                    let found = fs.lookup(parent.0, &name).await;
                    reply_entry(&fs, timer, found, reply);
                });
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        caught(|| self.fs.forget(ino.0, nlookup));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let timer = Timer::start(FuseOp::GetAttr);
        caught(|| match self.fs.getattr_now(ino.0) {
            Some(found) => reply_attr(&self.fs, timer, found, reply),
            None => {
                let fs = self.fs.clone();
                self.drive(async move {
                    let found = fs.getattr(ino.0).await;
                    reply_attr(&fs, timer, found, reply);
                });
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let timer = Timer::start(FuseOp::ReadLink);
        let fs = self.fs.clone();
        self.drive(async move {
            let target = fs.read_link(ino.0).await;
            reply_data(timer, target.as_deref().map_err(Error::clone), reply);
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let timer = Timer::start(FuseOp::Open);
        if Fs::opens_for_writing(flags.0) {
            let (fs, caller) = (self.fs.clone(), write::caller(req));
            return self.drive(async move {
                let mut through = None;
                let registrar = registrar(&fs, &reply, &mut through);
                let opened = fs.open_for_writing(ino.0, flags.0, caller, registrar).await;
                reply_open(&fs, (ino, flags), timer, opened, reply);
            });
        }
        let mut through = None;
        caught(|| match self.fs.open_now(ino.0, registrar(&self.fs, &reply, &mut through)) {
            Some(opened) => reply_open(&self.fs, (ino, flags), timer, opened, reply),
            None => {
                let fs = self.fs.clone();
                self.drive(async move {
                    let mut through = None;
                    let opened = fs.open(ino.0, registrar(&fs, &reply, &mut through)).await;
                    reply_open(&fs, (ino, flags), timer, opened, reply);
                });
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let timer = Timer::start(FuseOp::Read);
        let length = size as usize;
        caught(|| {
            BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < length {
                    buffer.resize(length, 0);
                }
                match self.fs.read_now(fh.0, offset, &mut buffer[..length]) {
                    Some(Ok(Read::Lent(read))) => reply_data(timer, Ok(&buffer[..read]), reply),
                    Some(Ok(Read::Own(data))) => reply_data(timer, Ok(&data), reply),
                    Some(Err(error)) => reply_data(timer, Err(error), reply),
                    None => {
                        let fs = self.fs.clone();
                        self.drive(async move {
                            let data = fs.read(fh.0, offset, length).await;
                            reply_data(timer, data.as_deref().map_err(Error::clone), reply);
                        });
                    }
                }
            });
        });
    }

    fn flush(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        self.flush_handle(ino.0, fh.0, reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let timer = Timer::start(FuseOp::Release);
        caught(|| {
            let done = self.fs.release(ino.0, fh.0);
            self.fs.note_released(ino.0, fh.0);
            reply_empty(timer, done, reply);
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.sync(ino.0, fh.0, datasync, reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let timer = Timer::start(FuseOp::OpenDir);
        caught(|| match self.fs.open_directory(ino.0) {
            Ok(opened) => {
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.cache);
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                self.fs.note_directory(opened.handle, ino.0);
                reply.opened(FileHandle(opened.handle), flags);
                timer.done();
            }
            Err(error) => {
                reply.error(errno(&error));
                timer.failed();
            }
        });
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let timer = Timer::start(FuseOp::ReadDir);
        self.list(timer, fh.0, offset, sink::Names(reply));
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let timer = Timer::start(FuseOp::ReadDirPlus);
        let options = self.fs.options();
        let timeout = options.attr_timeout.min(options.entry_timeout);
        self.list(timer, fh.0, offset, sink::Nodes { reply, timeout });
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::ReleaseDir);
        caught(|| {
            let done = self.fs.release_directory(fh.0);
            self.fs.note_directory_released(fh.0);
            reply_empty(timer, done, reply);
        });
    }

    fn fsyncdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync_directory(ino.0, reply);
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let timer = Timer::start(FuseOp::StatFs);
        caught(|| {
            let space = self.fs.stat_fs();
            reply.statfs(
                space.blocks,
                space.free,
                space.available,
                space.files,
                space.files_free,
                space.block_size,
                space.name_max,
                space.block_size,
            );
            timer.done();
        });
    }

    fn access(&self, _req: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::Access);
        let fs = self.fs.clone();
        self.drive(async move {
            let attr = match fs.getattr_now(ino.0) {
                Some(found) => found,
                None => fs.getattr(ino.0).await,
            };
            reply_empty(timer, attr.and_then(|entry| fs.access(&entry.attr, mask.bits())), reply);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.xattr(ino.0, name.as_bytes(), size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.xattrs(ino.0, size, reply);
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        self.seek(ino.0, fh.0, offset, whence, reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(write::time), mtime.map(write::time));
        let change = SetAttr { mode, uid, gid, size, atime, mtime, drop_set_id: false };
        self.set_attr(req, ino.0, change, reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match write::node(mode, rdev) {
            Some(node) => self.make(FuseOp::MkNod, req, (parent, name), node, mode, reply),
            None => reply.error(Errno::EINVAL),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.make(FuseOp::MkDir, req, (parent, name), NewNode::Directory, mode, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = Bytes::copy_from_slice(target.as_os_str().as_bytes());
        self.make(FuseOp::Symlink, req, (parent, name), NewNode::Symlink(target), 0o777, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(FuseOp::Unlink, parent.0, name, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(FuseOp::RmDir, parent.0, name, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.move_name((parent.0, name), (newparent.0, newname), flags, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let timer = Timer::start(FuseOp::Link);
        let (fs, name) = (self.fs.clone(), newname.as_bytes().to_vec());
        self.drive(async move {
            let linked = fs.link(ino.0, newparent.0, &name).await;
            reply_entry(&fs, timer, linked, reply);
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.write_to(fh.0, offset, data, write_flags, flags, reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.set_xattr(ino.0, name, value, flags, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove_xattr(ino.0, name, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.create_and_open(req, (parent, name), mode, flags, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let timer = Timer::start(FuseOp::Fallocate);
        let (fs, caller) = (self.fs.clone(), write::caller(req));
        self.drive(async move {
            let done = fs.allocate((ino.0, fh.0), mode, offset, length, caller).await;
            reply_empty(timer, done, reply);
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.copy(req, (ino_in.0, fh_in.0, offset_in), (ino_out.0, fh_out.0, offset_out), len, reply);
    }
}

impl Adapter {
    fn list(&self, timer: Timer, handle: u64, position: u64, mut sink: impl sink::Reply) {
        caught(|| match self.fs.read_directory_now(handle, position, &mut sink) {
            Ok(true) => sink.send(timer, Ok(())),
            Ok(false) => {
                let fs = self.fs.clone();
                self.drive(async move {
                    let listed = fs.read_directory(handle, position, &mut sink).await;
                    sink.send(timer, listed);
                });
            }
            Err(error) => sink.send(timer, Err(error)),
        });
    }
}
