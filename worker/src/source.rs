//! Where the worker gets the pages of a file from: the one place that knows the room `store`.

use bytes::Bytes;
use common::{Attr, UfsPath, worker::PagedFile};
use std::sync::Arc;
use store::ReadThrough;

/// Space of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes that it holds.
    pub used: u64,
    /// Files that it holds pages of.
    pub files: u64,
}

/// Opens files by page.
pub trait PageSource: Send + Sync + 'static {
    /// The file at `path` in the version of `attr`. Makes no request. `head`: its first bytes, when they are known.
    fn open(&self, path: &UfsPath, attr: Arc<Attr>, head: Option<Bytes>) -> Arc<dyn PagedFile>;

    /// The space of the cache on disk; none when there is no cache.
    fn space(&self) -> Option<Space>;
}

impl PageSource for Arc<ReadThrough> {
    fn open(&self, path: &UfsPath, attr: Arc<Attr>, head: Option<Bytes>) -> Arc<dyn PagedFile> {
        match head {
            Some(head) => self.open_seeded(path, attr, &head),
            None => ReadThrough::open(self, path, attr),
        }
    }

    fn space(&self) -> Option<Space> {
        let stats = self.store()?.stats();
        Some(Space { capacity: stats.capacity, used: stats.used, files: stats.files })
    }
}
