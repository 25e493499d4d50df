//! Requests that change something, and those about what is being written.

use super::{
    Adapter, Backed, GENERATION, attr_timeout, backed, convert,
    convert::{errno, file_attr},
    open_flags, registrar, reply_attr, reply_empty, reply_entry,
    run::{Timer, caught},
};
use crate::fs::{Entry, Fs, Opened};
use bytes::Bytes;
use common::{
    Error, ErrorKind, FileKind, Result,
    change::{Caller, NewNode, RenameMode, SetAttr, SetTime, SetXattr},
    metrics::FuseOp,
};
use fuser::{
    Errno, FileHandle, INodeNo, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

/// Who sent a request.
pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

pub(super) fn time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time.into()),
    }
}

/// What mknod(2) asks for; none for what it does not make.
pub(super) fn node(mode: u32, rdev: u32) -> Option<NewNode> {
    let device = convert::device_number(rdev);
    match FileKind::from_mode(mode) {
        FileKind::File => Some(NewNode::File),
        FileKind::Fifo => Some(NewNode::Fifo),
        FileKind::Socket => Some(NewNode::Socket),
        FileKind::CharDevice => Some(NewNode::CharDevice(device)),
        FileKind::BlockDevice => Some(NewNode::BlockDevice(device)),
        FileKind::Directory | FileKind::Symlink => None,
    }
}

impl Adapter {
    pub(super) fn set_attr(&self, request: &Request, id: u64, change: SetAttr, reply: ReplyAttr) {
        let timer = Timer::start(FuseOp::SetAttr);
        let (fs, caller) = (self.fs.clone(), caller(request));
        self.drive(async move {
            let done = fs.set_attr(id, change, caller).await;
            reply_attr(&fs, timer, done, reply);
        });
    }

    pub(super) fn make(
        &self,
        op: FuseOp,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        node: NewNode,
        mode: u32,
        reply: ReplyEntry,
    ) {
        let timer = Timer::start(op);
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(async move {
            let made = fs.make(parent.0, &name, &node, mode & 0o7777, caller).await;
            // A name whose directory is gone is not to be kept as missing.
            match made {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    reply.error(errno(&error));
                    timer.failed();
                }
                made => reply_entry(&fs, timer, made, reply),
            }
        });
    }

    pub(super) fn remove(&self, op: FuseOp, parent: u64, name: &OsStr, reply: ReplyEmpty) {
        let timer = Timer::start(op);
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        let directory = matches!(op, FuseOp::RmDir);
        self.drive(async move {
            let done = if directory { fs.rmdir(parent, &name).await } else { fs.unlink(parent, &name).await };
            reply_empty(timer, done, reply);
        });
    }

    pub(super) fn move_name(
        &self,
        (parent, name): (u64, &OsStr),
        (new_parent, new_name): (u64, &OsStr),
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let timer = Timer::start(FuseOp::Rename);
        let how = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            // Whiteouts are for file systems below an overlay.
            reply.error(Errno::EINVAL);
            return timer.failed();
        };
        let fs = self.fs.clone();
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        self.drive(async move {
            let done = fs.rename((parent, &name), (new_parent, &new_name), how).await;
            reply_empty(timer, done, reply);
        });
    }

    pub(super) fn create_and_open(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        mode: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let timer = Timer::start(FuseOp::Create);
        let (fs, caller, name) = (self.fs.clone(), caller(request), name.as_bytes().to_vec());
        self.drive(async move {
            let mut through = None;
            let registrar = registrar(&fs, &reply, &mut through);
            let created = fs.create(parent.0, &name, flags, mode, caller, registrar).await;
            reply_create(&fs, flags, timer, created, reply);
        });
    }

    pub(super) fn write_to(
        &self,
        handle: u64,
        offset: u64,
        data: &[u8],
        how: WriteFlags,
        flags: OpenFlags,
        reply: ReplyWrite,
    ) {
        let timer = Timer::start(FuseOp::Write);
        // What was mapped and is written back has its place, however the file was opened.
        let append = flags.0 & libc::O_APPEND != 0 && !how.contains(WriteFlags::FUSE_WRITE_CACHE);
        let drop_set_id = how.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        caught(|| match self.fs.write_now(handle, offset, data, append, drop_set_id) {
            Some(written) => reply_write(timer, written.map(|()| data.len() as u64), reply),
            None => {
                let (fs, data) = (self.fs.clone(), Bytes::copy_from_slice(data));
                self.drive(async move {
                    let length = data.len() as u64;
                    let written = fs.write(handle, offset, data, append, drop_set_id).await;
                    reply_write(timer, written.map(|()| length), reply);
                });
            }
        });
    }

    pub(super) fn copy(
        &self,
        request: &Request,
        from: (u64, u64, u64),
        to: (u64, u64, u64),
        length: u64,
        reply: ReplyWrite,
    ) {
        let timer = Timer::start(FuseOp::Other);
        let (fs, caller) = (self.fs.clone(), caller(request));
        self.drive(async move {
            let copied = fs.copy(from, to, length, caller).await;
            reply_write(timer, copied, reply);
        });
    }

    pub(super) fn flush_handle(&self, id: u64, handle: u64, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::Flush);
        let fs = self.fs.clone();
        self.drive(async move {
            let done = fs.flush(id, handle).await;
            reply_empty(timer, done, reply);
        });
    }

    pub(super) fn sync(&self, id: u64, handle: u64, data_only: bool, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::Fsync);
        let fs = self.fs.clone();
        self.drive(async move {
            let done = fs.sync(id, handle, data_only).await;
            reply_empty(timer, done, reply);
        });
    }

    pub(super) fn sync_directory(&self, id: u64, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::FsyncDir);
        let fs = self.fs.clone();
        self.drive(async move {
            let done = fs.sync_directory(id).await;
            reply_empty(timer, done, reply);
        });
    }

    pub(super) fn seek(&self, id: u64, handle: u64, offset: i64, whence: i32, reply: ReplyLseek) {
        let timer = Timer::start(FuseOp::Seek);
        let (Ok(offset), libc::SEEK_DATA | libc::SEEK_HOLE) = (u64::try_from(offset), whence) else {
            reply.error(if offset < 0 { Errno::ENXIO } else { Errno::EINVAL });
            return timer.failed();
        };
        let fs = self.fs.clone();
        self.drive(async move {
            match fs.seek(id, handle, offset, whence == libc::SEEK_HOLE).await {
                Ok(found) => {
                    reply.offset(i64::try_from(found).unwrap_or(i64::MAX));
                    timer.done();
                }
                Err(error) => {
                    reply.error(errno(&error));
                    timer.failed();
                }
            }
        });
    }

    pub(super) fn xattr(&self, id: u64, name: &[u8], size: u32, reply: ReplyXattr) {
        if !self.fs.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let timer = Timer::start(FuseOp::GetXattr);
        let (fs, name) = (self.fs.clone(), name.to_vec());
        self.drive(async move {
            let value = fs.xattr(id, &name).await;
            reply_xattr(timer, value.as_deref().map_err(Error::clone), size, reply);
        });
    }

    pub(super) fn xattrs(&self, id: u64, size: u32, reply: ReplyXattr) {
        if !self.fs.has_xattrs() {
            return reply.error(Errno::ENOSYS);
        }
        let timer = Timer::start(FuseOp::ListXattr);
        let fs = self.fs.clone();
        self.drive(async move {
            let names = fs.xattrs(id).await;
            reply_xattr(timer, names.as_deref().map_err(Error::clone), size, reply);
        });
    }

    pub(super) fn set_xattr(&self, id: u64, name: &OsStr, value: &[u8], flags: i32, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::SetXattr);
        let how = match flags {
            0 => SetXattr::Any,
            libc::XATTR_CREATE => SetXattr::Create,
            libc::XATTR_REPLACE => SetXattr::Replace,
            _ => {
                reply.error(Errno::EINVAL);
                return timer.failed();
            }
        };
        let (fs, name, value) = (self.fs.clone(), name.as_bytes().to_vec(), value.to_vec());
        self.drive(async move {
            let done = fs.set_xattr(id, &name, &value, how).await;
            reply_empty(timer, done, reply);
        });
    }

    pub(super) fn remove_xattr(&self, id: u64, name: &OsStr, reply: ReplyEmpty) {
        let timer = Timer::start(FuseOp::RemoveXattr);
        let (fs, name) = (self.fs.clone(), name.as_bytes().to_vec());
        self.drive(async move {
            let done = fs.remove_xattr(id, &name).await;
            reply_empty(timer, done, reply);
        });
    }
}

fn reply_create(fs: &Fs, how: i32, timer: Timer, created: Result<(Entry, Opened)>, reply: ReplyCreate) {
    let (entry, opened) = match created {
        Ok(created) => created,
        Err(error) => {
            reply.error(errno(&error));
            return timer.failed();
        }
    };
    let (attr, handle, flags) = (file_attr(entry.id, &entry.attr), FileHandle(opened.handle), open_flags(&opened));
    // fuser has one time for the name and the attributes.
    let timeout = attr_timeout(fs, &entry).min(fs.options().entry_timeout);
    fs.note_opened(entry.id, &opened, how);
    match opened.backing.as_ref().map(|backing| backed(backing.token())) {
        Some(Some(Backed::Here(id))) => reply.created_passthrough(&timeout, &attr, GENERATION, handle, flags, id),
        Some(Some(Backed::Elsewhere(id))) => {
            // SAFETY: as for an open.
            let id = unsafe { reply.wrap_backing(id) };
            reply.created_passthrough(&timeout, &attr, GENERATION, handle, flags, &id);
            let _ = id.into_raw();
        }
        // Invariant: tokens are made by the adapter's registrars alone.
        Some(None) => {
            reply.error(Errno::EIO);
            return timer.failed();
        }
        None => reply.created(&timeout, &attr, GENERATION, handle, flags),
    }
    timer.done();
}

fn reply_write(timer: Timer, written: Result<u64>, reply: ReplyWrite) {
    match written {
        Ok(length) => {
            // Neither a request nor what is copied at once has as much.
            reply.written(u32::try_from(length).unwrap_or(u32::MAX));
            timer.done();
        }
        Err(error) => {
            reply.error(errno(&error));
            timer.failed();
        }
    }
}

fn reply_xattr(timer: Timer, value: Result<&[u8]>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) => {
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            if size == 0 {
                reply.size(length);
            } else if size < length {
                reply.error(Errno::ERANGE);
            } else {
                reply.data(value);
            }
            timer.done();
        }
        Err(error) => {
            reply.error(errno(&error));
            timer.failed();
        }
    }
}
