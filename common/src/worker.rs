//! The one interface to whoever serves metadata and cached data: a worker inside this process, or one far away.
//!
//! The client and the FUSE file system know only these traits. Calls whose names end in `_now` never wait: they answer
//! from memory or local disk, or say (`None`) that the asynchronous call is needed. The others may wait for the
//! storage, and always end, because every call on a storage has a deadline.

use crate::{
    attr::{Attr, FileKind, StatFs, Version},
    change::Changes,
    error::Result,
    page::PageLoad,
    path::{FileId, UfsPath},
};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Name, as bytes.
    pub name: Box<[u8]>,
    /// Kind; known even when the attributes are not.
    pub kind: FileKind,
    /// Attributes, when the listing came with them.
    pub attr: Option<Arc<Attr>>,
}

/// A directory being listed, a batch at a time. Memory is bounded by the batch, not by the directory.
#[async_trait]
pub trait Listing: Send {
    /// The next entries (never an empty batch, each name once, without `.` and `..`); `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>>;
}

/// Whether attributes may come from a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Cached ones do, while younger than the sync interval.
    Cached,
    /// Ask the storage.
    Storage,
}

/// Serves one under storage: its metadata, and its data by page.
#[async_trait]
pub trait Worker: Send + Sync + 'static {
    /// Attributes from memory while fresh; `Some(Err(NotFound))` when it is fresh knowledge that there is no such file.
    fn attr_now(&self, path: &UfsPath) -> Option<Result<Arc<Attr>>>;

    /// Attributes. Symbolic links are not followed.
    async fn attr(&self, path: &UfsPath, freshness: Freshness) -> Result<Arc<Attr>>;

    /// Starts to list a directory. The entries' attributes enter the metadata cache.
    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>>;

    /// The target of a symbolic link.
    async fn read_link(&self, path: &UfsPath) -> Result<Bytes>;

    /// Opens from what is known without waiting (a local file, or attributes that are fresh).
    fn open_now(&self, path: &UfsPath) -> Option<Result<OpenedFile>>;

    /// Opens a regular file; the version is the one that the storage has, or had within the sync interval.
    async fn open(&self, path: &UfsPath, freshness: Freshness) -> Result<OpenedFile>;

    /// What changes files here; `None`: this mount takes no writes.
    fn changes(&self) -> Option<&dyn Changes> {
        None
    }

    /// Space of the storage or of the cache; answered from memory.
    fn stat_fs(&self) -> StatFs;

    /// Drops what is cached about `path` (attributes, entries of its directory), since it proved wrong.
    fn forget(&self, path: &UfsPath);
}

/// An open file: on local disk as a whole, or to be had by page.
pub enum OpenedFile {
    /// The source file itself, on this host: nothing to cache.
    Local(LocalFile),
    /// Read by page.
    Paged(Arc<dyn PagedFile>),
}

impl OpenedFile {
    /// The attributes at the time of opening.
    pub fn attr(&self) -> &Arc<Attr> {
        match self {
            OpenedFile::Local(local) => &local.attr,
            OpenedFile::Paged(paged) => paged.attr(),
        }
    }
}

impl std::fmt::Debug for OpenedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenedFile::Local(_) => write!(f, "Local({:?})", self.attr().version),
            OpenedFile::Paged(_) => write!(f, "Paged({:?})", self.attr().version),
        }
    }
}

/// The source file itself, open for reading.
#[derive(Debug, Clone)]
pub struct LocalFile {
    /// The open file.
    pub file: Arc<File>,
    /// Its attributes.
    pub attr: Arc<Attr>,
}

/// One version of one file, read by page. All pages have `page_size` bytes but the last.
///
/// Every method keeps to the version of [`attr`](Self::attr): bytes of another version are never returned; when the
/// storage no longer has it the answer is `Stale`.
#[async_trait]
pub trait PagedFile: Send + Sync {
    /// The file's identity.
    fn file_id(&self) -> FileId;

    /// The attributes of this version.
    fn attr(&self) -> &Arc<Attr>;

    /// Bytes of a page.
    fn page_size(&self) -> u32;

    /// Copies what lies on local disk from `offset` on into `buffer`: the length of the run of present pages, cut at the
    /// end of the file or of the buffer; 0 when the page at `offset` is absent (or `offset` is at the end).
    /// Never waits for a storage. A page that fails its checksum counts as absent.
    fn read_present(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;

    /// Whether the page lies on local disk.
    fn is_present(&self, page: u64) -> bool;

    /// A page that is being fetched or waits to be stored, if there is one in memory.
    fn page_now(&self, page: u64) -> Option<Arc<PageLoad>>;

    /// Has the page fetched unless that is under way, and returns it as soon as the fetch has started: the caller waits
    /// on the load for the bytes it needs. The caller holds no other page while it waits (see [`crate::budget`]).
    /// `None`: it is on local disk by now, use [`read_present`](Self::read_present).
    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>>;

    /// Has `count` pages from `first` on fetched as far as memory allows, in few large requests; returns for how many
    /// pages (from `first` on, absent or not) that holds now. Never waits.
    fn prefetch(&self, first: u64, count: u64) -> u64;

    /// The whole file on local disk, once every page is present. While the lease lives its bytes stay as they are,
    /// whatever is evicted.
    fn export(&self) -> Option<FileLease>;

    /// A present page as it lies on disk, with its checksum, for who sends it on without reading it. None also when this
    /// kind of file has no such pages.
    fn stored_page(&self, page: u64) -> Option<StoredPage> {
        let _ = page;
        None
    }

    /// Has every page fetched and stored, for a file of at most a few pages; returns once `export` would succeed, or
    /// with the reason why it cannot (a cache that is off or full is `Unsupported`; reads go on without it).
    async fn complete(&self) -> Result<()>;
}

/// One page on local disk. While it is held the page is evicted last of all; were it evicted all the same, its bytes no
/// longer have the checksum, by which the receiver notices.
pub struct StoredPage {
    /// The file that holds it.
    pub file: Arc<File>,
    /// Where it begins in that file.
    pub offset: u64,
    /// Its bytes.
    pub length: usize,
    /// Their CRC32C.
    pub checksum: u32,
    /// What defers eviction.
    pub guard: Box<dyn Send + Sync>,
}

/// A file on local disk that is wholly present, and the promise that it stays so while the lease is held.
#[derive(Clone)]
pub struct FileLease {
    file: Arc<File>,
    version: Version,
    _guard: Arc<dyn Send + Sync>,
}

impl FileLease {
    /// A lease on `file`; `guard` is what keeps the promise.
    pub fn new(file: Arc<File>, version: Version, guard: Arc<dyn Send + Sync>) -> Self {
        Self { file, version, _guard: guard }
    }

    /// The file, open for reading.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The version that its bytes are.
    pub fn version(&self) -> &Version {
        &self.version
    }
}

impl AsFd for FileLease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
