//! What is known of a file: kind, size, times, owner, and the version that its bytes belong to.

use std::{fmt, sync::Arc, time::SystemTime};

/// The kinds of file that POSIX knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file or an object.
    File,
    /// A directory or a common prefix.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl FileKind {
    /// The kind in the format bits (`S_IFMT`) of a mode.
    pub fn from_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => FileKind::Directory,
            libc::S_IFLNK => FileKind::Symlink,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            libc::S_IFCHR => FileKind::CharDevice,
            libc::S_IFBLK => FileKind::BlockDevice,
            _ => FileKind::File,
        }
    }
}

/// A point in time: seconds since 1970 (may be negative) and nanoseconds within the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

impl Timestamp {
    /// Now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// As the standard library has it.
    pub fn to_system_time(self) -> SystemTime {
        let nanos = std::time::Duration::from_nanos(u64::from(self.nsec));
        if self.sec >= 0 {
            SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(self.sec.unsigned_abs()) + nanos
        } else {
            SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(self.sec.unsigned_abs()) + nanos
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self { sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nsec: after.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX - 1);
                match before.subsec_nanos() {
                    0 => Self { sec: -whole, nsec: 0 },
                    nanos => Self { sec: -whole - 1, nsec: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

/// Names one state of a file's bytes: an etag, or size, times and inode of a POSIX file. Opaque; equal versions have equal bytes.
///
/// The empty version means that the storage names none: then nothing can be pinned, and a reader compares size and time only.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(Arc<str>);

impl Version {
    /// A version by its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// No version known.
    pub fn none() -> Self {
        static NONE: std::sync::OnceLock<Version> = std::sync::OnceLock::new();
        NONE.get_or_init(|| Version::new("")).clone()
    }

    /// Whether the storage named none.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({})", self.0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which file of this host it is, whatever its names: hard links share it, and two files that exist at one time never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LocalId {
    /// Device.
    pub dev: u64,
    /// Inode on that device.
    pub ino: u64,
}

/// The attributes of one file, as its under storage has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Kind of file.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Last change of the bytes.
    pub mtime: Timestamp,
    /// Last change of the attributes.
    pub ctime: Timestamp,
    /// Last access, where the storage keeps it; else equal to `mtime`.
    pub atime: Timestamp,
    /// Permission bits with set-id and sticky (07777), without the kind.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of links.
    pub nlink: u32,
    /// Device number of a device file, else 0.
    pub rdev: u64,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// The version of the bytes.
    pub version: Version,
    /// Which file it is, when it lies on this host.
    pub local: Option<LocalId>,
}

impl Attr {
    /// Attributes of an object or prefix, which has only a kind, a size and one time. Mode 0755 or 0644, owned by this process;
    /// with [`set_object_group`] that group's, which may write too.
    pub fn of_object(kind: FileKind, size: u64, mtime: Timestamp, version: Version) -> Self {
        let (uid, mut gid) = process_owner();
        let (mut mode, nlink) = if kind == FileKind::Directory { (0o755, 2) } else { (0o644, 1) };
        if let Some(group) = OBJECT_GROUP.get() {
            gid = *group;
            mode |= 0o020;
        }
        Self {
            kind,
            size,
            mtime,
            ctime: mtime,
            atime: mtime,
            mode,
            uid,
            gid,
            nlink,
            rdev: 0,
            blocks: size.div_ceil(512),
            version,
            local: None,
        }
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileKind::File
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

static OBJECT_GROUP: std::sync::OnceLock<u32> = std::sync::OnceLock::new();

/// Has all objects belong to `group`, as one who mounts for that group asks (fsGroup in Kubernetes). Once, at the start.
pub fn set_object_group(group: u32) {
    // A second group would be a defect of the caller; the first one stays.
    let _ = OBJECT_GROUP.set(group);
}

/// The user and group that this process acts as.
pub fn process_owner() -> (u32, u32) {
    static OWNER: std::sync::OnceLock<(u32, u32)> = std::sync::OnceLock::new();
    // SAFETY: geteuid and getegid take no arguments, touch no memory and cannot fail.
    *OWNER.get_or_init(|| unsafe { (libc::geteuid(), libc::getegid()) })
}

/// Space and entries of a storage, for statfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks free.
    pub free: u64,
    /// Blocks free to an ordinary user.
    pub available: u64,
    /// Files in all, 0 when unknown.
    pub files: u64,
    /// Files that may still be made, 0 when unknown.
    pub files_free: u64,
    /// The longest name.
    pub name_max: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_before_1970_survive_the_round_trip() {
        for time in [
            SystemTime::UNIX_EPOCH - Duration::from_nanos(1),
            SystemTime::UNIX_EPOCH - Duration::from_secs(5),
            SystemTime::UNIX_EPOCH,
            SystemTime::UNIX_EPOCH + Duration::new(7, 9),
        ] {
            assert_eq!(Timestamp::from(time).to_system_time(), time);
        }
    }
}
