//! What an open handle reads from, and how.

use super::{Fs, open::FileHandle};
use client::{FileReader, ReadData};
use common::{Error, ErrorKind, Result, change::WriteHandle, metrics::metrics};
use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

/// Where the bytes of a handle come from.
pub(super) enum Content {
    /// The source file on this host.
    Local(Arc<File>),
    /// Pages, with what fetches ahead of this handle.
    Pages(FileReader),
    /// What is being written through a worker.
    Staged(Arc<dyn WriteHandle>),
    /// What cannot be had any more: the process that had it open died, and its version or its changes with it.
    Lost,
}

/// What a read without waiting gave.
pub enum Read {
    /// So many bytes in the buffer that was lent for it.
    Lent(usize),
    /// Bytes of its own.
    Own(ReadData),
}

impl Fs {
    /// Reads up to `buffer.len()` bytes at `offset` from local disk or memory, fewer only at the end of the file.
    /// `None`: some must be fetched. A local file is read into `buffer`, anything else comes with memory of its own.
    pub fn read_now(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Option<Result<Read>> {
        let handle = match self.files.get(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        handle.prove();
        let read = match &handle.content {
            Content::Local(file) => read_local(&handle, file, offset, buffer).map(Read::Lent),
            Content::Pages(reader) => reader.read_now(offset, buffer.len())?.map(Read::Own),
            Content::Staged(_) => return None,
            Content::Lost => Err(lost(&handle)),
        };
        match &read {
            Ok(Read::Lent(length)) => count(*length),
            Ok(Read::Own(data)) => count(data.len()),
            Err(_) => {}
        }
        Some(read)
    }

    /// Reads up to `length` bytes at `offset`, fetching what is missing; fewer only at the end of the file.
    ///
    /// # Errors
    /// `Stale` when the version that the handle has is gone; whatever the storage says.
    pub async fn read(&self, handle: u64, offset: u64, length: usize) -> Result<ReadData> {
        let handle = self.files.get(handle)?;
        handle.prove();
        let data = match &handle.content {
            Content::Lost => return Err(lost(&handle)),
            Content::Local(file) => {
                let mut buffer = self.client.shared().buffers().get(length).await?;
                let read = read_local(&handle, file, offset, buffer.bytes_mut())?;
                buffer.truncate(read);
                ReadData::Owned(buffer)
            }
            Content::Pages(reader) => self.bounded(&handle.inode, reader.read(offset, length)).await?,
            Content::Staged(staged) => {
                let bytes = self.bounded(&handle.inode, staged.read(offset, length)).await?;
                let mut buffer = self.client.shared().buffers().get(bytes.len()).await?;
                buffer.bytes_mut().copy_from_slice(&bytes);
                ReadData::Owned(buffer)
            }
        };
        count(data.len());
        Ok(data)
    }
}

/// What is said of a handle that could not be taken over.
pub(super) fn lost(handle: &FileHandle) -> Error {
    let what = if handle.writes { "what was written and not synced is lost" } else { "its version is gone" };
    let kind = if handle.writes { ErrorKind::Io } else { ErrorKind::Stale };
    Error::new(kind, format!("{}: the process that had it open died, and {what}", handle.inode.path()))
}

fn count(bytes: usize) {
    metrics().fuse_read_bytes.inc_by(bytes as u64);
}

fn read_local(handle: &FileHandle, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(handle.inode.path(), error)),
        }
    }
    Ok(done)
}
