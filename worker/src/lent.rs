//! Files that somebody else on this host has on disk as a whole and lends: a worker's cached file, by its descriptor.
//!
//! What is lent is remembered for later opens, a bounded number of files at a time. The lender keeps the bytes as they
//! are while the lease lives.

use async_trait::async_trait;
use common::{
    Attr, Error, FileId, Result, UfsPath, Version,
    page::PageLoad,
    worker::{FileLease, PagedFile},
};
use lru::LruCache;
use parking_lot::Mutex;
use std::{num::NonZeroUsize, os::unix::fs::FileExt, sync::Arc};
use ufs::UnderStorage;

/// Leases kept for files that may be opened again; each holds a descriptor.
const KEPT: usize = 2048;

/// What was lent lately.
pub(crate) struct Lent {
    leases: Mutex<LruCache<UfsPath, FileLease>>,
}

impl Lent {
    pub fn new() -> Self {
        Self { leases: Mutex::new(LruCache::new(NonZeroUsize::new(KEPT).unwrap_or(NonZeroUsize::MIN))) }
    }

    /// The lease on this version, if it was lent before.
    pub fn get(&self, path: &UfsPath, version: &Version) -> Option<FileLease> {
        let mut leases = self.leases.lock();
        let lease = leases.get(path)?;
        if lease.version() == version {
            return Some(lease.clone());
        }
        leases.pop(path);
        None
    }

    /// Asks the storage for the file.
    pub async fn ask(&self, storage: &Arc<dyn UnderStorage>, path: &UfsPath, attr: &Attr) -> Option<FileLease> {
        if let Some(lease) = self.get(path, &attr.version) {
            return Some(lease);
        }
        let lease = storage.lend(path, attr).await?;
        // A file of another length is not the one that was asked for, whatever the lender says.
        if lease.file().metadata().ok()?.len() != attr.size {
            return None;
        }
        let evicted = self.leases.lock().push(path.clone(), lease.clone());
        drop(evicted);
        Some(lease)
    }
}

/// A file whose bytes are all in a lent file; `inner` is asked when that fails.
pub(crate) struct LentFile {
    pub inner: Arc<dyn PagedFile>,
    pub lease: FileLease,
}

#[async_trait]
impl PagedFile for LentFile {
    fn file_id(&self) -> FileId {
        self.inner.file_id()
    }

    fn attr(&self) -> &Arc<Attr> {
        self.inner.attr()
    }

    fn page_size(&self) -> u32 {
        self.inner.page_size()
    }

    fn read_present(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.lease.file().read_at(&mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if done == 0 => {
                    let error = Error::io("the worker's cached file", error);
                    tracing::warn!(%error, "read another way");
                    return self.inner.read_present(offset, buffer);
                }
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn is_present(&self, _page: u64) -> bool {
        true
    }

    fn page_now(&self, page: u64) -> Option<Arc<PageLoad>> {
        self.inner.page_now(page)
    }

    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>> {
        self.inner.demand(page).await
    }

    fn prefetch(&self, _first: u64, count: u64) -> u64 {
        count
    }

    fn export(&self) -> Option<FileLease> {
        Some(self.lease.clone())
    }

    async fn complete(&self) -> Result<()> {
        Ok(())
    }
}
