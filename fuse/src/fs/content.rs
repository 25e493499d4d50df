//! What an open handle reads from, and what a read gives.

use super::{Fs, inode::Inode, open::FileHandle};
use common::{
    Error, ErrorKind, Result,
    metrics::metrics,
    page::PageLoad,
    worker::{OpenedFile, PagedFile},
};
use std::{
    fs::File,
    ops::{Deref, Range},
    os::unix::fs::FileExt,
    sync::Arc,
};

/// Where the bytes of a handle come from.
pub(super) enum Content {
    /// The source file on this host.
    Local(Arc<File>),
    /// Pages.
    Paged(Arc<dyn PagedFile>),
}

/// The bytes that a read gives.
pub enum Data {
    /// In a buffer of their own.
    Buffer(Vec<u8>),
    /// Within a page, shared with whoever else reads it.
    Page(Arc<PageLoad>, Range<usize>),
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Data::Buffer(buffer) => buffer,
            // The range was waited for, and what has arrived in a page never changes.
            Data::Page(page, range) => page.filled().get(range.clone()).unwrap_or(&[]),
        }
    }
}

impl Content {
    pub(super) fn new(_fs: &Fs, _inode: &Inode, file: OpenedFile) -> Self {
        match file {
            OpenedFile::Local(local) => Content::Local(local.file),
            OpenedFile::Paged(paged) => Content::Paged(paged),
        }
    }
}

impl Fs {
    /// Reads from local disk or memory into `buffer`: how many bytes that were, fewer than asked only at the end of the
    /// file. `None`: some must be fetched.
    pub fn read_now(&self, handle: u64, offset: u64, buffer: &mut [u8]) -> Option<Result<usize>> {
        let handle = match self.files.get(handle) {
            Ok(handle) => handle,
            Err(error) => return Some(Err(error)),
        };
        handle.prove();
        let read = match &handle.content {
            Content::Local(file) => read_local(&handle, file, offset, buffer),
            Content::Paged(paged) => match read_present(&**paged, offset, buffer) {
                Ok(Some(read)) => Ok(read),
                Ok(None) => return None,
                Err(error) => Err(error),
            },
        };
        if let Ok(read) = read {
            metrics().fuse_read_bytes.inc_by(read as u64);
        }
        Some(read)
    }

    /// Reads `length` bytes at `offset`, fetching what is missing; fewer only at the end of the file.
    ///
    /// # Errors
    /// `Stale` when the version that the handle has is gone; whatever the storage says.
    pub async fn read(&self, handle: u64, offset: u64, length: usize) -> Result<Data> {
        let handle = self.files.get(handle)?;
        handle.prove();
        let data = match &handle.content {
            Content::Local(file) => {
                let mut buffer = vec![0; length];
                let read = read_local(&handle, file, offset, &mut buffer)?;
                buffer.truncate(read);
                Data::Buffer(buffer)
            }
            Content::Paged(paged) => self.bounded(&handle.inode, read_paged(&**paged, offset, length)).await?,
        };
        metrics().fuse_read_bytes.inc_by(data.len() as u64);
        Ok(data)
    }
}

fn read_local(handle: &FileHandle, file: &File, offset: u64, buffer: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(&handle.inode.path, error)),
        }
    }
    Ok(done)
}

fn wanted(paged: &dyn PagedFile, offset: u64, length: usize) -> usize {
    let rest = paged.attr().size.saturating_sub(offset);
    length.min(usize::try_from(rest).unwrap_or(usize::MAX))
}

fn read_present(paged: &dyn PagedFile, offset: u64, buffer: &mut [u8]) -> Result<Option<usize>> {
    let wanted = wanted(paged, offset, buffer.len());
    let mut done = 0;
    while done < wanted {
        match paged.read_present(offset + done as u64, &mut buffer[done..wanted])? {
            0 => return Ok(None),
            read => done += read,
        }
    }
    Ok(Some(done))
}

async fn read_paged(paged: &dyn PagedFile, offset: u64, length: usize) -> Result<Data> {
    let wanted = wanted(paged, offset, length);
    let page_size = u64::from(paged.page_size());
    let mut buffer = Vec::new();
    while buffer.len() < wanted {
        let at = offset + buffer.len() as u64;
        let page = at / page_size;
        let start = usize::try_from(at % page_size).unwrap_or(0);
        // A page may be evicted between its fetch and the read of it; that it happens again and again means trouble.
        let mut tries = 0;
        loop {
            if let Some(load) = paged.demand(page).await? {
                let end = load.len().min(start + wanted - buffer.len());
                let bytes = load.wait(start..end).await?;
                if buffer.is_empty() && bytes.len() == wanted {
                    return Ok(Data::Page(load, start..end));
                }
                buffer.extend_from_slice(bytes);
                break;
            }
            let have = buffer.len();
            buffer.resize(wanted, 0);
            let read = paged.read_present(at, &mut buffer[have..])?;
            buffer.truncate(have + read);
            if read > 0 {
                break;
            }
            tries += 1;
            if tries == 8 {
                return Err(Error::new(ErrorKind::Io, format!("page {page} vanishes as soon as it is there")));
            }
        }
    }
    Ok(Data::Buffer(buffer))
}
