//! Lists a directory in batches: `getdents64` into one buffer, and one `fstatat` for each entry.
//!
//! Memory is one buffer and one batch, whatever the size of the directory. The system calls run on a blocking thread,
//! because a batch may take long on a cold disk.

use super::attr::attr;
use crate::deadline::blocking;
use async_trait::async_trait;
use common::{
    Error, FileKind, Result,
    worker::{DirEntry, Listing},
};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FileStat, fstatat},
};
use std::{
    ffi::CStr,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// Entries of a batch, at least, unless the directory ends.
const BATCH: usize = 1024;
/// Bytes for the kernel to put entries in; more than one call's worth for small names.
const BUFFER: usize = 32 << 10;
/// Bytes of an entry before its name: inode, offset, length, kind.
const ENTRY_HEAD: usize = 8 + 8 + 2 + 1;

/// A directory of this host being listed.
pub struct PosixListing {
    /// Not there while a batch is being read, or after one was given up.
    state: Option<State>,
    what: String,
    deadline: Duration,
}

struct State {
    directory: OwnedFd,
    buffer: Box<[u8]>,
    ended: bool,
}

impl PosixListing {
    /// Lists the open `directory`, called `what` in errors; each batch may take `deadline`.
    pub fn new(directory: OwnedFd, what: String, deadline: Duration) -> Self {
        let state = State { directory, buffer: vec![0; BUFFER].into(), ended: false };
        Self { state: Some(state), what, deadline }
    }
}

#[async_trait]
impl Listing for PosixListing {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        let Some(mut state) = self.state.take() else {
            return Err(Error::new(
                common::ErrorKind::Cancelled,
                format!("list {}: was given up after an error", self.what),
            ));
        };
        if state.ended {
            self.state = Some(state);
            return Ok(None);
        }
        let (state, batch) = blocking(self.deadline, &self.what, move || {
            let batch = state.batch();
            (state, batch)
        })
        .await?;
        let batch = batch.map_err(|errno| Error::os(format_args!("list {}", self.what), errno as i32))?;
        self.state = Some(state);
        Ok((!batch.is_empty()).then_some(batch))
    }
}

impl State {
    fn batch(&mut self) -> Result<Vec<DirEntry>, Errno> {
        let mut batch = Vec::with_capacity(64);
        while batch.len() < BATCH && !self.ended {
            let filled = self.fill()?;
            self.ended = filled == 0;
            let mut rest = &self.buffer[..filled];
            while let Some((entry, after)) = self.entry(rest) {
                rest = after;
                batch.extend(entry);
            }
        }
        Ok(batch)
    }

    fn fill(&mut self) -> Result<usize, Errno> {
        loop {
            // SAFETY: the descriptor is open, and the kernel writes at most `len` bytes into the buffer, which is ours.
            let filled = unsafe {
                libc::syscall(
                    libc::SYS_getdents64,
                    self.directory.as_raw_fd(),
                    self.buffer.as_mut_ptr(),
                    self.buffer.len(),
                )
            };
            match Errno::result(filled) {
                Ok(filled) => return Ok(usize::try_from(filled).unwrap_or(0)),
                Err(Errno::EINTR) => {}
                // Removed while being listed: it has no entries left.
                Err(Errno::ENOENT) => return Ok(0),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The first entry in `bytes` (none for `.`, `..` and what vanished meanwhile) and what follows it.
    fn entry<'a>(&self, bytes: &'a [u8]) -> Option<(Option<DirEntry>, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes([*bytes.get(16)?, *bytes.get(17)?]));
        let kind = *bytes.get(18)?;
        let name = CStr::from_bytes_until_nul(bytes.get(ENTRY_HEAD..length)?).ok()?;
        let after = &bytes[length..];
        if matches!(name.to_bytes(), b"." | b"..") {
            return Some((None, after));
        }
        let entry = match fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(known(name, &stat)),
            Err(Errno::ENOENT) => None,
            // Shown all the same; a lookup of it says what is wrong.
            Err(_) => Some(DirEntry { name: name.to_bytes().into(), kind: kind_of(kind), attr: None }),
        };
        Some((entry, after))
    }
}

fn known(name: &CStr, stat: &FileStat) -> DirEntry {
    let attr = attr(stat);
    DirEntry { name: name.to_bytes().into(), kind: attr.kind, attr: Some(Arc::new(attr)) }
}

fn kind_of(dirent: u8) -> FileKind {
    match dirent {
        libc::DT_DIR => FileKind::Directory,
        libc::DT_LNK => FileKind::Symlink,
        libc::DT_FIFO => FileKind::Fifo,
        libc::DT_SOCK => FileKind::Socket,
        libc::DT_CHR => FileKind::CharDevice,
        libc::DT_BLK => FileKind::BlockDevice,
        _ => FileKind::File,
    }
}
