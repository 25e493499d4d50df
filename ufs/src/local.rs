//! Open files of this host: what is asked of a descriptor, and what is changed through one.
//!
//! A descriptor means its file whatever becomes of the file's names, so everything here works on files that were renamed
//! or removed, and nothing here walks a path: where a call of the kernel takes only paths, it is given
//! `/proc/self/fd/N`, which leads to the file of the descriptor and nowhere else. Descriptors opened with `O_PATH` do for
//! everything but reading, writing and syncing.

pub use crate::posix::caller::without_keeping_set_id;

use crate::posix::attr::attr;
use common::{
    Attr, Timestamp,
    change::{SetAttr, SetTime, SetXattr},
};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::{
        stat::{Mode, fstat},
        statfs::fstatfs,
    },
    unistd::{Gid, Uid, fchownat, linkat},
};
use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::Write as _,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// Set-id bits.
const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// The attributes of the file now.
///
/// # Errors
/// As fstat(2).
pub fn attr_of(file: impl AsFd) -> Result<Attr, Errno> {
    fstat(file).map(|stat| attr(&stat))
}

/// Opens the file once more, also when it has no name any more.
///
/// # Errors
/// As open(2).
pub fn reopen(file: impl AsFd, flags: i32) -> Result<File, Errno> {
    let path = ProcPath::of(file.as_fd());
    let flags =
        OFlag::from_bits_truncate(flags & (libc::O_ACCMODE | libc::O_TRUNC)) | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(path.as_c_str(), flags, Mode::empty()).map(File::from)
}

/// Changes attributes, and returns them all.
///
/// # Errors
/// As the calls that it is made of. An earlier part may have been done when a later one fails, as by the calls themselves.
pub fn set_attr(file: impl AsFd, change: &SetAttr) -> Result<Attr, Errno> {
    let file = file.as_fd();
    let path = ProcPath::of(file);
    // Owner before mode: to change the owner clears set-id bits.
    if change.uid.is_some() || change.gid.is_some() {
        let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
        fchownat(file, c"", uid, gid, AtFlags::AT_EMPTY_PATH)?;
    }
    if let Some(mode) = change.mode {
        chmod(&path, mode)?;
    }
    if let Some(size) = change.size {
        truncate(file, &path, size)?;
    }
    if change.drop_set_id {
        drop_set_id(file, &path)?;
    }
    if change.atime.is_some() || change.mtime.is_some() {
        let times = [spec(change.atime), spec(change.mtime)];
        // SAFETY: the descriptor is open, the empty name ends with NUL, and `times` has the two elements that are read.
        let done = unsafe { libc::utimensat(file.as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
        Errno::result(done)?;
    }
    attr_of(file)
}

/// Clears set-id bits, as the kernel does when a user without privilege writes to the file. Capabilities of a file fall
/// whoever writes, so the file system below has dropped them itself.
///
/// # Errors
/// As fstat(2) and chmod(2).
pub fn drop_privileges(file: impl AsFd) -> Result<(), Errno> {
    let file = file.as_fd();
    drop_set_id(file, &ProcPath::of(file))
}

/// Gives the file one more name, a symbolic link too.
///
/// # Errors
/// As linkat(2); ENOENT when it has no name any more.
pub fn link(file: impl AsFd, directory: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    let path = ProcPath::of(file.as_fd());
    linkat(AT_FDCWD, path.as_c_str(), directory, name, AtFlags::AT_SYMLINK_FOLLOW)
}

/// Whether close(2) may be the first to tell that writing failed. File systems of local disks have nothing to tell then;
/// those of a network have.
pub fn tells_at_close(file: impl AsFd) -> bool {
    const SILENT: [i64; 9] = [
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        libc::TMPFS_MAGIC,
        libc::F2FS_SUPER_MAGIC,
        libc::OVERLAYFS_SUPER_MAGIC,
        RAMFS_MAGIC,
        ZFS_MAGIC,
        BCACHEFS_MAGIC,
    ];
    const RAMFS_MAGIC: i64 = 0x8584_58f6;
    const ZFS_MAGIC: i64 = 0x2fc1_2fc1;
    const BCACHEFS_MAGIC: i64 = 0xca45_1a4e;
    !fstatfs(file).is_ok_and(|found| SILENT.contains(&found.filesystem_type().0))
}

/// What close(2) of this descriptor would tell, without closing it.
///
/// # Errors
/// As close(2).
pub fn close_once(file: &File) -> Result<(), Errno> {
    let copy = file.try_clone().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
    match nix::unistd::close(copy) {
        // It is closed all the same.
        Err(Errno::EINTR) => Ok(()),
        done => done,
    }
}

fn drop_set_id(file: BorrowedFd<'_>, path: &ProcPath) -> Result<(), Errno> {
    let mode = fstat(file)?.st_mode;
    // Without the right of the group to execute, the bit of the group has another meaning and stays.
    let group = if mode & libc::S_IXGRP == 0 { libc::S_ISGID } else { 0 };
    if mode & SET_ID & !group == 0 || mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(());
    }
    chmod(path, mode & (0o1777 | group))
}

fn chmod(path: &ProcPath, mode: u32) -> Result<(), Errno> {
    // SAFETY: the path ends with NUL.
    Errno::result(unsafe { libc::chmod(path.as_ptr(), mode & 0o7777) }).map(drop)
}

fn truncate(file: BorrowedFd<'_>, path: &ProcPath, size: u64) -> Result<(), Errno> {
    let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
    match nix::unistd::ftruncate(file, size) {
        // Not open for writing; whether it may be truncated all the same depends on the file.
        Err(Errno::EINVAL | Errno::EBADF) => {}
        done => return done,
    }
    // SAFETY: the path ends with NUL.
    Errno::result(unsafe { libc::truncate64(path.as_ptr(), size) }).map(drop)
}

fn spec(time: Option<SetTime>) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, libc::UTIME_OMIT),
        Some(SetTime::Now) => (0, libc::UTIME_NOW),
        Some(SetTime::At(Timestamp { sec, nsec })) => (sec, i64::from(nsec)),
    };
    libc::timespec { tv_sec, tv_nsec }
}

/// Writes all of `data` at `offset`, or at the end when `append`.
///
/// # Errors
/// As pwritev2(2). Some of it may have been written then; the number of bytes is lost, as with a buffered write.
pub fn write_all(file: impl AsFd, offset: u64, data: &[u8], append: bool) -> Result<(), Errno> {
    let file = file.as_fd();
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        let part = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        let at = i64::try_from(offset + done as u64).map_err(|_| Errno::EFBIG)?;
        let flags = if append { libc::RWF_APPEND } else { 0 };
        // SAFETY: the descriptor is open, and the one vector points to `rest`, which is only read and lives through the
        // call.
        let written = unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, at, flags) };
        match Errno::result(written) {
            Ok(0) => return Err(Errno::EIO),
            // Never negative after the check.
            Ok(written) => done += written.unsigned_abs(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// fallocate(2).
///
/// # Errors
/// As the call.
pub fn allocate(file: impl AsFd, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
    let file = file.as_fd();
    let (offset, length) = (offset.try_into().map_err(|_| Errno::EFBIG)?, length.try_into().map_err(|_| Errno::EFBIG)?);
    loop {
        // SAFETY: the descriptor is open, the rest are numbers.
        match Errno::result(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, length) }) {
            Err(Errno::EINTR) => {}
            done => return done.map(drop),
        }
    }
}

/// The next data, or hole, at `offset` or after it.
///
/// # Errors
/// As lseek(2): ENXIO beyond the end.
pub fn seek(file: impl AsFd, offset: u64, hole: bool) -> Result<u64, Errno> {
    let file = file.as_fd();
    let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let whence = if hole { libc::SEEK_HOLE } else { libc::SEEK_DATA };
    // SAFETY: the descriptor is open, the rest are numbers. Its position is nobody's: all else reads and writes at
    // offsets.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) };
    Errno::result(found).map(i64::unsigned_abs)
}

/// copy_file_range(2): copies up to `length` bytes, and returns how many.
///
/// # Errors
/// As the call.
pub fn copy(from: impl AsFd, at: u64, to: impl AsFd, to_at: u64, length: usize) -> Result<usize, Errno> {
    let offset = |at: u64| i64::try_from(at).map_err(|_| Errno::EFBIG);
    let (mut at, mut to_at) = (offset(at)?, offset(to_at)?);
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: both descriptors are open, and both offsets live through the call.
    let copied = unsafe { libc::copy_file_range(from, &mut at, to, &mut to_at, length, 0) };
    Errno::result(copied).map(isize::unsigned_abs)
}

/// The value of an extended attribute.
///
/// # Errors
/// As getxattr(2): ENODATA when there is none.
pub fn xattr(file: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let (path, name) = (ProcPath::of(file.as_fd()), CString::new(name).map_err(|_| Errno::EINVAL)?);
    // SAFETY: both names end with NUL, and at most `len` bytes are written to the buffer, which has that many.
    filled(|buffer, len| unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), len) })
}

/// The names of all extended attributes.
///
/// # Errors
/// As listxattr(2).
pub fn xattrs(file: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let path = ProcPath::of(file.as_fd());
    // SAFETY: the path ends with NUL, and at most `len` bytes are written to the buffer, which has that many.
    let names = filled(|buffer, len| unsafe { libc::listxattr(path.as_ptr(), buffer.cast(), len) })?;
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Sets an extended attribute.
///
/// # Errors
/// As setxattr(2).
pub fn set_xattr(file: impl AsFd, name: &[u8], value: &[u8], how: SetXattr) -> Result<(), Errno> {
    let (path, name) = (ProcPath::of(file.as_fd()), CString::new(name).map_err(|_| Errno::EINVAL)?);
    let flags = match how {
        SetXattr::Any => 0,
        SetXattr::Create => libc::XATTR_CREATE,
        SetXattr::Replace => libc::XATTR_REPLACE,
    };
    // SAFETY: both names end with NUL, and the value has the length given.
    Errno::result(unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) })
        .map(drop)
}

/// Removes an extended attribute.
///
/// # Errors
/// As removexattr(2): ENODATA when there is none.
pub fn remove_xattr(file: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let (path, name) = (ProcPath::of(file.as_fd()), CString::new(name).map_err(|_| Errno::EINVAL)?);
    // SAFETY: both names end with NUL.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Calls until a buffer of the size that was asked for is filled.
fn filled(call: impl Fn(*mut u8, usize) -> isize) -> Result<Vec<u8>, Errno> {
    // Most values fit at once.
    let mut buffer = vec![0; 256];
    loop {
        match Errno::result(call(buffer.as_mut_ptr(), buffer.len())) {
            Ok(length) => {
                buffer.truncate(length.unsigned_abs());
                return Ok(buffer);
            }
            Err(Errno::ERANGE) => {
                let needed = Errno::result(call(std::ptr::null_mut(), 0))?.unsigned_abs();
                buffer.resize(needed.max(buffer.len() + 1), 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

/// `/proc/self/fd/N`, on the stack.
struct ProcPath([u8; 32]);

impl ProcPath {
    fn of(file: BorrowedFd<'_>) -> Self {
        let mut text = [0; 32];
        // At most 14 + 10 bytes, so that a NUL follows.
        let written = write!(&mut text[..31], "/proc/self/fd/{}", file.as_raw_fd());
        debug_assert!(written.is_ok());
        Self(text)
    }

    fn as_ptr(&self) -> *const libc::c_char {
        self.as_c_str().as_ptr()
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

#[cfg(test)]
mod tests;
