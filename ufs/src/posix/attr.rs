//! From what the kernel says of a file to [`Attr`].

use common::{Attr, FileKind, Timestamp, Version, attr::LocalId};
use nix::sys::stat::FileStat;
use std::io::Write;

/// The attributes in a `stat` structure. The version is size, change times of bytes and attributes, and inode: a file
/// that was replaced or written to has another one.
pub fn attr(stat: &FileStat) -> Attr {
    let kind = FileKind::from_mode(stat.st_mode);
    let device = matches!(kind, FileKind::CharDevice | FileKind::BlockDevice);
    Attr {
        kind,
        size: stat.st_size.unsigned_abs(),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        rdev: if device { stat.st_rdev } else { 0 },
        blocks: stat.st_blocks.unsigned_abs(),
        version: version(stat),
        local: Some(LocalId { dev: stat.st_dev, ino: stat.st_ino }),
    }
}

fn time(sec: i64, nsec: i64) -> Timestamp {
    Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) }
}

/// The version of the bytes behind a `stat` structure.
pub fn version(stat: &FileStat) -> Version {
    // On the stack: one allocation for each entry of a listing instead of two.
    let mut text = [0u8; 112];
    let mut rest = &mut text[..];
    let written = write!(
        rest,
        "{}-{}.{:09}-{}.{:09}-{}",
        stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec, stat.st_ino
    );
    let left = rest.len();
    match (written, std::str::from_utf8(&text[..text.len() - left])) {
        (Ok(()), Ok(text)) => Version::new(text),
        // Six 64-bit numbers with their separators have at most 105 characters, all ASCII.
        _ => Version::none(),
    }
}
