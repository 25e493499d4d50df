//! A file of a directory on this host, open for writing on behalf of somebody elsewhere.
//!
//! Every call goes to the open descriptor, on a thread for blocking calls: a disk that hangs keeps nobody else waiting.
//! What was written is the kernel's, as after write(2): the end of this process loses none of it.

use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    change::{SetAttr, WriteHandle},
    worker::LocalFile,
};
use nix::errno::Errno;
use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::FileExt},
    sync::Arc,
};

/// An open file.
pub(super) struct LocalHandle {
    file: Arc<File>,
    /// The attributes when it was opened, for a descriptor that does not tell.
    opened: Arc<Attr>,
    path: UfsPath,
}

impl LocalHandle {
    pub fn new(local: LocalFile, path: &UfsPath) -> Self {
        Self { file: local.file, opened: local.attr, path: path.clone() }
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(&File) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || call(&file)).await {
            Ok(done) => done.map_err(|errno| Error::os(format_args!("{what} {}", self.path), errno as i32)),
            Err(gone) => Err(Error::new(ErrorKind::Io, format!("{what} {}: {gone}", self.path))),
        }
    }
}

#[async_trait]
impl WriteHandle for LocalHandle {
    fn attr(&self) -> Arc<Attr> {
        ufs::local::attr_of(&*self.file).map_or_else(|_| self.opened.clone(), Arc::new)
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let read = move |file: &File| {
            let mut bytes = vec![0; length];
            let mut done = 0;
            while done < length {
                match file.read_at(&mut bytes[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(count) => done += count,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
                }
            }
            bytes.truncate(done);
            Ok(Bytes::from(bytes))
        };
        self.call("read", read).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.call("write", move |file| ufs::local::write_all(file, offset, &data, false)).await
    }

    async fn append(&self, data: Bytes) -> Result<()> {
        self.call("append to", move |file| ufs::local::write_all(file, 0, &data, true)).await
    }

    async fn truncate(&self, size: u64) -> Result<()> {
        let change = SetAttr { size: Some(size), ..SetAttr::default() };
        self.call("truncate", move |file| ufs::local::set_attr(file, &change).map(drop)).await
    }

    async fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        self.call("allocate", move |file| ufs::local::allocate(file, mode, offset, length)).await
    }

    async fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        self.call("seek in", move |file| ufs::local::seek(file, offset, hole)).await
    }

    async fn flush(&self) -> Result<()> {
        // To close a descriptor of the file is what has a network file system send what it kept back, and say how that went.
        let close = |file: &File| {
            let other = nix::unistd::dup(file.as_fd())?;
            nix::unistd::close(other)
        };
        self.call("close", close).await
    }

    async fn set_attr(&self, change: &SetAttr) -> Result<Option<Arc<Attr>>> {
        let change = *change;
        let changed = self.call("change", move |file| ufs::local::set_attr(file, &change)).await?;
        Ok(Some(Arc::new(changed)))
    }

    async fn sync(&self, data_only: bool) -> Result<()> {
        let sync = move |file: &File| {
            if data_only { nix::unistd::fdatasync(file.as_fd()) } else { nix::unistd::fsync(file.as_fd()) }
        };
        self.call("sync", sync).await
    }
}
