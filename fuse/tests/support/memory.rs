//! An under storage in memory behind the worker interface, for tests of the file system: it says exactly what it is told
//! to, waits for nothing, and counts what it is asked.

use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileId, FileKind, Result, StatFs, Timestamp, UfsPath, Version,
    attr::LocalId,
    budget::{MemoryBudget, Purpose},
    change::{Caller, Changes, NewNode, OpenedForWriting, RenameMode, SetAttr, SetXattr, WriteHandle},
    page::{PageLoad, PagePool},
    worker::{DirEntry, FileLease, Freshness, Listing, LocalFile, OpenedFile, PagedFile, Worker},
};
use std::{
    collections::BTreeMap,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// The worker.
pub struct MemoryWorker {
    nodes: Mutex<BTreeMap<UfsPath, Node>>,
    pool: Arc<PagePool>,
    next_version: AtomicU64,
    /// Whether attributes are known without asking.
    pub knows: AtomicBool,
    /// Whether listings come without attributes.
    pub bare: AtomicBool,
    /// Whether files can be completed and exported.
    pub caches: AtomicBool,
    /// Whether it takes changes, by staging files.
    pub writable: AtomicBool,
    /// How often something was published.
    pub published: AtomicU64,
    staged: Mutex<BTreeMap<UfsPath, std::sync::Weak<Staged>>>,
    /// Itself, for what it hands out.
    me: std::sync::Weak<MemoryWorker>,
    /// How often it was asked to list.
    pub listings: AtomicU64,
    /// How often a file was opened.
    pub opens: AtomicU64,
    page_size: u32,
}

#[derive(Clone)]
struct Node {
    attr: Arc<Attr>,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Directory,
    /// A directory of so many generated entries.
    Generated(u64),
    Link(Bytes),
    Bytes(Arc<Vec<u8>>),
    Local(Arc<std::fs::File>),
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

impl MemoryWorker {
    /// Nothing but a root; pages of `page_size` bytes.
    pub fn new(page_size: u32) -> Arc<Self> {
        let worker = Arc::new_cyclic(|me| Self {
            nodes: Mutex::default(),
            pool: PagePool::new(MemoryBudget::new(64 << 20)),
            next_version: AtomicU64::new(1),
            knows: AtomicBool::new(true),
            bare: AtomicBool::new(false),
            caches: AtomicBool::new(false),
            listings: AtomicU64::new(0),
            opens: AtomicU64::new(0),
            writable: AtomicBool::new(false),
            published: AtomicU64::new(0),
            staged: Mutex::default(),
            me: me.clone(),
            page_size,
        });
        worker.put("", FileKind::Directory, 0, Body::Directory);
        worker
    }

    fn put(&self, at: &str, kind: FileKind, size: u64, body: Body) {
        let number = self.next_version.fetch_add(1, Ordering::Relaxed);
        let mtime = Timestamp { sec: 1_600_000_000 + number as i64, nsec: 0 };
        let attr = Arc::new(Attr::of_object(kind, size, mtime, Version::new(format!("v{number}"))));
        self.nodes.lock().unwrap().insert(path(at), Node { attr, body });
    }

    /// Makes a directory.
    pub fn directory(&self, at: &str) {
        self.put(at, FileKind::Directory, 0, Body::Directory);
    }

    /// Makes a directory of `count` generated files.
    pub fn generated(&self, at: &str, count: u64) {
        self.put(at, FileKind::Directory, 0, Body::Generated(count));
    }

    /// Makes or replaces a file.
    pub fn file(&self, at: &str, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.put(at, FileKind::File, bytes.len() as u64, Body::Bytes(Arc::new(bytes)));
    }

    /// Makes or replaces a file that is one of this host; its attributes are those it has now.
    pub fn local(&self, at: &str, file: Arc<std::fs::File>) {
        let size = file.metadata().unwrap().len();
        self.put(at, FileKind::File, size, Body::Local(file));
        self.refresh(at);
    }

    /// Gives a local file the times and size that it has now, and a new version.
    pub fn refresh(&self, at: &str) {
        use std::os::unix::fs::MetadataExt;
        let mut nodes = self.nodes.lock().unwrap();
        let node = nodes.get_mut(&path(at)).unwrap();
        let Body::Local(file) = &node.body else { panic!("{at} is not local") };
        let meta = file.metadata().unwrap();
        let mut attr = (*node.attr).clone();
        attr.size = meta.size();
        attr.mtime = Timestamp { sec: meta.mtime(), nsec: meta.mtime_nsec() as u32 };
        attr.ctime = Timestamp { sec: meta.ctime(), nsec: meta.ctime_nsec() as u32 };
        attr.version = Version::new(format!("{:?}{:?}{}{}", attr.mtime, attr.ctime, attr.size, meta.ino()));
        attr.local = Some(LocalId { dev: meta.dev(), ino: meta.ino() });
        node.attr = Arc::new(attr);
    }

    /// Makes a symbolic link.
    pub fn link(&self, at: &str, target: &str) {
        let target = Bytes::copy_from_slice(target.as_bytes());
        self.put(at, FileKind::Symlink, target.len() as u64, Body::Link(target));
    }

    /// Removes what is there.
    pub fn remove(&self, at: &str) {
        self.nodes.lock().unwrap().remove(&path(at));
    }

    fn node(&self, at: &UfsPath) -> Result<Node> {
        let nodes = self.nodes.lock().unwrap();
        if let Some(node) = nodes.get(at) {
            return Ok(node.clone());
        }
        if let Some(parent) = at.parent()
            && let Some(Node { body: Body::Generated(count), .. }) = nodes.get(&parent)
            && let Some(entry) = generated_entry(at.name().unwrap(), *count)
        {
            return Ok(Node { attr: entry.attr.unwrap(), body: Body::Bytes(Arc::new(Vec::new())) });
        }
        Err(Error::new(ErrorKind::NotFound, format!("{at}: no such file")))
    }

    fn opened(&self, at: &UfsPath) -> Result<OpenedFile> {
        self.opens.fetch_add(1, Ordering::Relaxed);
        let node = self.node(at)?;
        match node.body {
            Body::Bytes(bytes) => Ok(OpenedFile::Paged(Arc::new(MemoryFile {
                id: FileId::of(at.as_bytes()),
                attr: node.attr,
                bytes,
                page_size: self.page_size,
                pool: self.pool.clone(),
                caches: self.caches.load(Ordering::Relaxed),
                whole: Mutex::new(None),
            }))),
            Body::Local(file) => Ok(OpenedFile::Local(LocalFile { file, attr: node.attr })),
            Body::Link(_) => Err(Error::new(ErrorKind::TooManyLinks, "a link")),
            _ => Err(Error::new(ErrorKind::IsADirectory, "a directory")),
        }
    }
}

fn generated_entry(name: &[u8], count: u64) -> Option<DirEntry> {
    let number: u64 = std::str::from_utf8(name).ok()?.strip_prefix("entry")?.parse().ok()?;
    (number < count).then(|| {
        let attr = Attr::of_object(FileKind::File, 0, Timestamp { sec: 1, nsec: 0 }, Version::new("g"));
        DirEntry { name: name.into(), kind: FileKind::File, attr: Some(Arc::new(attr)) }
    })
}

struct Batches(Vec<DirEntry>);

#[async_trait]
impl Listing for Batches {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        // As from a network: not at once.
        tokio::task::yield_now().await;
        let rest = self.0.split_off(self.0.len().min(100));
        let batch = std::mem::replace(&mut self.0, rest);
        Ok((!batch.is_empty()).then_some(batch))
    }
}

struct Generated {
    next: u64,
    count: u64,
}

#[async_trait]
impl Listing for Generated {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        let end = self.count.min(self.next + 1000);
        let batch: Vec<_> =
            (self.next..end).filter_map(|at| generated_entry(format!("entry{at}").as_bytes(), self.count)).collect();
        self.next = end;
        Ok((!batch.is_empty()).then_some(batch))
    }
}

#[async_trait]
impl Worker for MemoryWorker {
    fn attr_now(&self, path: &UfsPath) -> Option<Result<Arc<Attr>>> {
        self.knows.load(Ordering::Relaxed).then(|| self.node(path).map(|node| node.attr))
    }

    async fn attr(&self, path: &UfsPath, _: Freshness) -> Result<Arc<Attr>> {
        tokio::task::yield_now().await;
        self.node(path).map(|node| node.attr)
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        self.listings.fetch_add(1, Ordering::Relaxed);
        if let Body::Generated(count) = self.node(path)?.body {
            return Ok(Box::new(Generated { next: 0, count }));
        }
        let bare = self.bare.load(Ordering::Relaxed);
        let nodes = self.nodes.lock().unwrap();
        let entries = nodes.iter().filter(|(child, _)| child.parent().as_ref() == Some(path));
        let entries = entries.map(|(child, node)| DirEntry {
            name: child.name().unwrap().into(),
            kind: node.attr.kind,
            attr: (!bare).then(|| node.attr.clone()),
        });
        Ok(Box::new(Batches(entries.collect())))
    }

    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        match self.node(path)?.body {
            Body::Link(target) => Ok(target),
            _ => Err(Error::new(ErrorKind::InvalidArgument, "no link")),
        }
    }

    fn open_now(&self, path: &UfsPath) -> Option<Result<OpenedFile>> {
        self.knows.load(Ordering::Relaxed).then(|| self.opened(path))
    }

    async fn open(&self, path: &UfsPath, _: Freshness) -> Result<OpenedFile> {
        tokio::task::yield_now().await;
        self.opened(path)
    }

    fn changes(&self) -> Option<&dyn Changes> {
        self.writable.load(Ordering::Relaxed).then_some(self as &dyn Changes)
    }

    fn stat_fs(&self) -> StatFs {
        StatFs { block_size: 4096, blocks: 1000, free: 400, available: 300, files: 7, files_free: 0, name_max: 255 }
    }

    fn forget(&self, _: &UfsPath) {}
}

struct MemoryFile {
    id: FileId,
    attr: Arc<Attr>,
    bytes: Arc<Vec<u8>>,
    page_size: u32,
    pool: Arc<PagePool>,
    caches: bool,
    whole: Mutex<Option<FileLease>>,
}

#[async_trait]
impl PagedFile for MemoryFile {
    fn file_id(&self) -> FileId {
        self.id
    }

    fn attr(&self) -> &Arc<Attr> {
        &self.attr
    }

    fn page_size(&self) -> u32 {
        self.page_size
    }

    fn read_present(&self, _: u64, _: &mut [u8]) -> Result<usize> {
        Ok(0)
    }

    fn is_present(&self, _: u64) -> bool {
        false
    }

    fn page_now(&self, _: u64) -> Option<Arc<PageLoad>> {
        None
    }

    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>> {
        tokio::task::yield_now().await;
        let start = (page * u64::from(self.page_size)) as usize;
        let bytes = &self.bytes[start..self.bytes.len().min(start + self.page_size as usize)];
        let (load, mut writer) = self.pool.try_load(bytes.len(), Purpose::Demand).unwrap();
        writer.append(bytes);
        writer.finish()?;
        Ok(Some(load))
    }

    fn prefetch(&self, _: u64, count: u64) -> u64 {
        count
    }

    fn export(&self) -> Option<FileLease> {
        self.whole.lock().unwrap().clone()
    }

    async fn complete(&self) -> Result<()> {
        if !self.caches {
            return Err(Error::new(ErrorKind::Unsupported, "no cache"));
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.bytes).unwrap();
        let lease = FileLease::new(Arc::new(file), self.attr.version.clone(), Arc::new(()));
        *self.whole.lock().unwrap() = Some(lease);
        Ok(())
    }
}

/// A file that is being written; its handles share it.
struct Staged {
    worker: Arc<MemoryWorker>,
    path: UfsPath,
    bytes: Mutex<Vec<u8>>,
}

impl MemoryWorker {
    fn stage(&self, path: &UfsPath, truncate: bool) -> Result<OpenedForWriting> {
        let known = self.staged.lock().unwrap().get(path).and_then(std::sync::Weak::upgrade);
        let staged = match known {
            Some(staged) => staged,
            None => {
                let bytes = match self.node(path)?.body {
                    Body::Bytes(bytes) => (*bytes).clone(),
                    _ => return Err(Error::new(ErrorKind::IsADirectory, "no file")),
                };
                let worker = self.me.upgrade().unwrap();
                let staged = Arc::new(Staged { worker, path: path.clone(), bytes: Mutex::new(bytes) });
                self.staged.lock().unwrap().insert(path.clone(), Arc::downgrade(&staged));
                staged
            }
        };
        if truncate {
            staged.bytes.lock().unwrap().clear();
        }
        Ok(OpenedForWriting::Staged(staged))
    }
}

#[async_trait]
impl WriteHandle for Staged {
    fn attr(&self) -> Arc<Attr> {
        let size = self.bytes.lock().unwrap().len() as u64;
        Arc::new(Attr::of_object(FileKind::File, size, Timestamp::default(), Version::none()))
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let bytes = self.bytes.lock().unwrap();
        let start = bytes.len().min(offset as usize);
        Ok(Bytes::copy_from_slice(&bytes[start..bytes.len().min(start + length)]))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        let mut bytes = self.bytes.lock().unwrap();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(&data);
        Ok(())
    }

    async fn append(&self, data: Bytes) -> Result<()> {
        self.bytes.lock().unwrap().extend_from_slice(&data);
        Ok(())
    }

    async fn truncate(&self, size: u64) -> Result<()> {
        self.bytes.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }

    async fn allocate(&self, _: i32, _: u64, _: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "not here"))
    }

    async fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        let size = self.bytes.lock().unwrap().len() as u64;
        Ok(if hole { size } else { offset })
    }

    async fn flush(&self) -> Result<()> {
        let bytes = self.bytes.lock().unwrap().clone();
        if bytes.starts_with(b"refuse") {
            return Err(Error::new(ErrorKind::QuotaExceeded, "by the test"));
        }
        self.worker.published.fetch_add(1, Ordering::Relaxed);
        self.worker.file(std::str::from_utf8(self.path.as_bytes()).unwrap(), bytes);
        Ok(())
    }

    async fn sync(&self, _: bool) -> Result<()> {
        self.flush().await
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "not here"))
}

#[async_trait]
impl Changes for MemoryWorker {
    async fn create(&self, path: &UfsPath, flags: i32, _: u32, _: Caller) -> Result<OpenedForWriting> {
        if self.node(path).is_err() {
            self.file(std::str::from_utf8(path.as_bytes()).unwrap(), "");
        } else if flags & libc::O_EXCL != 0 {
            return Err(Error::new(ErrorKind::AlreadyExists, "is there"));
        }
        self.stage(path, flags & libc::O_TRUNC != 0)
    }

    async fn open(&self, path: &UfsPath, flags: i32) -> Result<OpenedForWriting> {
        self.stage(path, flags & libc::O_TRUNC != 0)
    }

    async fn make(&self, _: &UfsPath, _: &NewNode, _: u32, _: Caller) -> Result<Arc<Attr>> {
        not_here()
    }

    async fn link(&self, _: &UfsPath, _: &UfsPath) -> Result<Arc<Attr>> {
        not_here()
    }

    async fn remove_file(&self, path: &UfsPath) -> Result<()> {
        self.node(path)?;
        self.nodes.lock().unwrap().remove(path);
        Ok(())
    }

    async fn remove_directory(&self, _: &UfsPath) -> Result<()> {
        not_here()
    }

    async fn rename(&self, from: &UfsPath, to: &UfsPath, _: RenameMode) -> Result<()> {
        let mut nodes = self.nodes.lock().unwrap();
        let node = nodes.remove(from).ok_or_else(|| Error::new(ErrorKind::NotFound, "not there"))?;
        nodes.insert(to.clone(), node);
        Ok(())
    }

    async fn set_attr(&self, path: &UfsPath, _: SetAttr) -> Result<Arc<Attr>> {
        self.node(path).map(|node| node.attr)
    }

    async fn xattr(&self, _: &UfsPath, _: &[u8]) -> Result<Bytes> {
        not_here()
    }

    async fn xattrs(&self, _: &UfsPath) -> Result<Vec<Vec<u8>>> {
        not_here()
    }

    async fn set_xattr(&self, _: &UfsPath, _: &[u8], _: &[u8], _: SetXattr) -> Result<()> {
        not_here()
    }

    async fn remove_xattr(&self, _: &UfsPath, _: &[u8]) -> Result<()> {
        not_here()
    }

    async fn sync(&self, _: &UfsPath) -> Result<()> {
        Ok(())
    }
}
