//! From the project's types to fuser's.

use common::{Attr, Error, FileKind, Timestamp};
use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::time::SystemTime;

/// What stat(2) shows as the best size of a read.
const BLOCK_SIZE: u32 = 1 << 20;

pub(super) fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.errno())
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn file_attr(id: u64, attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.to_system_time(),
        mtime: attr.mtime.to_system_time(),
        ctime: attr.ctime.to_system_time(),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: u16::try_from(attr.mode & 0o7777).unwrap_or(0),
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.rdev),
        blksize: if attr.is_file() { BLOCK_SIZE } else { 4096 },
        flags: 0,
    }
}

/// A node of which nothing but its kind is told.
pub(super) fn bare(id: u64, kind: FileKind) -> FileAttr {
    file_attr(id, &Attr::of_object(kind, 0, Timestamp::default(), common::Version::none()))
}

/// The answer to a lookup of a name that does not exist, which the kernel may keep: node 0.
pub(super) fn negative() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The protocol's device number: 12 bits of major, 20 of minor, as `new_encode_dev` of the kernel packs them.
fn device(rdev: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    u32::try_from((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)).unwrap_or(0)
}

/// The device number that the protocol packs so.
pub(super) fn device_number(packed: u32) -> u64 {
    let packed = u64::from(packed);
    nix::sys::stat::makedev((packed >> 8) & 0xfff, (packed & 0xff) | ((packed >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_come_back_as_they_were() {
        for (major, minor) in [(1, 3), (8, 0x12345), (0xfff, 0xf_ffff)] {
            let number = nix::sys::stat::makedev(major, minor);
            assert_eq!(device_number(device(number)), number);
        }
    }

    #[test]
    fn device_numbers_are_packed_as_the_kernel_does() {
        assert_eq!(device(nix::sys::stat::makedev(10, 229)), (10 << 8) | 229);
        assert_eq!(device(nix::sys::stat::makedev(8, 0x12345)), 0x45 | (8 << 8) | (0x12300 << 12));
        assert_eq!(device(0), 0);
    }
}
