//! A file system of which every operation is done in its [turn](super::turn).

use super::turn::{Turns, Work};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::{ffi::OsStr, io, os::fd::OwnedFd, path::Path, time::Duration, time::SystemTime};

/// Reads and writes of more than this are long: copying them takes longer than waking another thread.
const LONG: usize = 128 << 10;

/// `F`, in turns.
pub struct InTurn<F> {
    inner: F,
    turns: Turns,
}

impl<F> InTurn<F> {
    /// `inner`, of which the requests come through `device` (a duplicate of the descriptor that fuser reads). A thread that
    /// expects another request at once looks for it for `look` before it sleeps; zero: not at all.
    pub fn new(inner: F, device: OwnedFd, look: Duration) -> Self {
        Self { inner, turns: Turns::new(device, look) }
    }
}

fn copying(length: usize) -> Work {
    if length > LONG { Work::Long } else { Work::Some }
}

/// Declares operations: how they may behave, name and arguments.
macro_rules! operations {
    ($($work:expr => fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {
        $(
            fn $name(&self, request: &Request, $($argument: $type),*) {
                self.turns.take($work, || self.inner.$name(request, $($argument),*));
            }
        )*
    };
}

impl<F: Filesystem> Filesystem for InTurn<F> {
    fn init(&mut self, request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.inner.init(request, config)
    }

    fn destroy(&mut self) {
        self.inner.destroy();
    }

    operations! {
        Work::Quick => fn lookup(parent: INodeNo, name: &OsStr, reply: ReplyEntry);
        Work::Quick => fn forget(ino: INodeNo, lookups: u64);
        Work::Quick => fn getattr(ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr);
        Work::Some => fn setattr(
            ino: INodeNo,
            mode: Option<u32>,
            uid: Option<u32>,
            gid: Option<u32>,
            size: Option<u64>,
            atime: Option<TimeOrNow>,
            mtime: Option<TimeOrNow>,
            ctime: Option<SystemTime>,
            fh: Option<FileHandle>,
            crtime: Option<SystemTime>,
            chgtime: Option<SystemTime>,
            bkuptime: Option<SystemTime>,
            flags: Option<BsdFileFlags>,
            reply: ReplyAttr,
        );
        Work::Some => fn readlink(ino: INodeNo, reply: ReplyData);
        Work::Some => fn mknod(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry);
        Work::Some => fn mkdir(parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry);
        Work::Some => fn unlink(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        Work::Some => fn rmdir(parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
        Work::Some => fn symlink(parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry);
        Work::Some => fn rename(
            parent: INodeNo,
            name: &OsStr,
            new_parent: INodeNo,
            new_name: &OsStr,
            flags: RenameFlags,
            reply: ReplyEmpty,
        );
        Work::Some => fn link(ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry);
        Work::Quick => fn open(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        copying(size as usize) => fn read(
            ino: INodeNo,
            fh: FileHandle,
            offset: u64,
            size: u32,
            flags: OpenFlags,
            lock_owner: Option<LockOwner>,
            reply: ReplyData,
        );
        copying(data.len()) => fn write(
            ino: INodeNo,
            fh: FileHandle,
            offset: u64,
            data: &[u8],
            write_flags: WriteFlags,
            flags: OpenFlags,
            lock_owner: Option<LockOwner>,
            reply: ReplyWrite,
        );
        Work::Some => fn flush(ino: INodeNo, fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty);
        Work::Quick => fn release(
            ino: INodeNo,
            fh: FileHandle,
            flags: OpenFlags,
            lock_owner: Option<LockOwner>,
            flush: bool,
            reply: ReplyEmpty,
        );
        Work::Long => fn fsync(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        Work::Quick => fn opendir(ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
        Work::Some => fn readdir(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory);
        Work::Some => fn readdirplus(ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus);
        Work::Quick => fn releasedir(ino: INodeNo, fh: FileHandle, flags: OpenFlags, reply: ReplyEmpty);
        Work::Long => fn fsyncdir(ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty);
        Work::Quick => fn statfs(ino: INodeNo, reply: ReplyStatfs);
        Work::Some => fn setxattr(
            ino: INodeNo,
            name: &OsStr,
            value: &[u8],
            flags: i32,
            position: u32,
            reply: ReplyEmpty,
        );
        Work::Some => fn getxattr(ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
        Work::Some => fn listxattr(ino: INodeNo, size: u32, reply: ReplyXattr);
        Work::Some => fn removexattr(ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
        Work::Quick => fn access(ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty);
        Work::Some => fn create(
            parent: INodeNo,
            name: &OsStr,
            mode: u32,
            umask: u32,
            flags: i32,
            reply: ReplyCreate,
        );
        Work::Quick => fn getlk(
            ino: INodeNo,
            fh: FileHandle,
            lock_owner: LockOwner,
            start: u64,
            end: u64,
            typ: i32,
            pid: u32,
            reply: ReplyLock,
        );
        Work::Quick => fn setlk(
            ino: INodeNo,
            fh: FileHandle,
            lock_owner: LockOwner,
            start: u64,
            end: u64,
            typ: i32,
            pid: u32,
            sleep: bool,
            reply: ReplyEmpty,
        );
        Work::Some => fn bmap(ino: INodeNo, block_size: u32, index: u64, reply: ReplyBmap);
        Work::Some => fn ioctl(
            ino: INodeNo,
            fh: FileHandle,
            flags: IoctlFlags,
            command: u32,
            data: &[u8],
            out_size: u32,
            reply: ReplyIoctl,
        );
        Work::Some => fn poll(
            ino: INodeNo,
            fh: FileHandle,
            notifier: PollNotifier,
            events: PollEvents,
            flags: PollFlags,
            reply: ReplyPoll,
        );
        Work::Long => fn fallocate(
            ino: INodeNo,
            fh: FileHandle,
            offset: u64,
            length: u64,
            mode: i32,
            reply: ReplyEmpty,
        );
        Work::Some => fn lseek(ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek);
        Work::Long => fn copy_file_range(
            ino_in: INodeNo,
            fh_in: FileHandle,
            offset_in: u64,
            ino_out: INodeNo,
            fh_out: FileHandle,
            offset_out: u64,
            length: u64,
            flags: CopyFileRangeFlags,
            reply: ReplyWrite,
        );
    }
}
