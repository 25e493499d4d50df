//! What is asked about names and files: lookup, attributes, links, permissions.

use super::{
    Entry, Fs,
    inode::{Identity, Inode, Shared},
};
use bytes::Bytes;
use common::{Attr, Error, ErrorKind, FileKind, Result, UfsPath, Version, worker::Freshness};
use nix::sys::stat::FileStat;
use std::{fs::File, sync::Arc};

/// Whether an open inode may go on standing for what its path names now.
enum Fit {
    Same,
    /// The same local file, written to since.
    Changed,
    Other,
}

impl Fs {
    /// Looks `name` up in a directory. `NotFound` is as certain as any answer: the kernel may keep it.
    pub fn lookup_now(&self, parent: u64, name: &[u8]) -> Option<Result<Entry>> {
        let path = match self.child(parent, name) {
            Ok(path) => path,
            Err(error) => return Some(Err(error)),
        };
        let attr = self.worker().attr_now(&path)?;
        Some(attr.map(|attr| self.entry(&path, attr)))
    }

    /// Looks `name` up, asking the worker.
    ///
    /// # Errors
    /// `NotFound`, `NameTooLong`, or whatever the storage says.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry> {
        let path = self.child(parent, name)?;
        let parent = self.inode(parent)?;
        let attr = self.bounded(&parent, self.worker().attr(&path, Freshness::Cached)).await?;
        Ok(self.entry(&path, attr))
    }

    fn child(&self, parent: u64, name: &[u8]) -> Result<UfsPath> {
        let parent = self.inode(parent)?;
        match name {
            b"." => Ok(parent.path.clone()),
            b".." => Ok(parent.path.parent().unwrap_or_else(UfsPath::root)),
            name => parent.path.join(name),
        }
    }

    /// The node for a path with these attributes, counted once more.
    pub(super) fn entry(&self, path: &UfsPath, attr: Arc<Attr>) -> Entry {
        loop {
            let inode = self.inodes.remember(path, attr.kind, 1);
            if tell(&inode, &attr) {
                return Entry { id: inode.id, attr };
            }
            // It goes on standing for what is open, and the path gets another.
            self.inodes.detach(&inode);
            self.forget(inode.id, 1);
        }
    }

    /// The node for a path of which only the kind is known, counted once more, with attributes that nobody may rely on.
    pub(super) fn bare_entry(&self, path: &UfsPath, kind: FileKind) -> Entry {
        let inode = self.inodes.remember(path, kind, 1);
        let open = inode.state.lock().open.as_ref().map(|shared| shared.attr.clone());
        let attr =
            open.unwrap_or_else(|| Arc::new(Attr::of_object(kind, 0, common::Timestamp::default(), Version::none())));
        Entry { id: inode.id, attr }
    }

    /// The attributes of a node. While a file is open they are those of what is open.
    pub fn getattr_now(&self, id: u64) -> Option<Result<Arc<Attr>>> {
        let inode = match self.inode(id) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        if let Some(pinned) = pinned(&inode) {
            return Some(Ok(pinned));
        }
        let found = self.worker().attr_now(&inode.path)?;
        Some(self.current(&inode, found))
    }

    /// The attributes of a node, asking the worker.
    ///
    /// # Errors
    /// `Stale` when the node's path names another file by now and nothing of the old one is known; `NotFound`.
    pub async fn getattr(&self, id: u64) -> Result<Arc<Attr>> {
        let inode = self.inode(id)?;
        if let Some(pinned) = pinned(&inode) {
            return Ok(pinned);
        }
        let found = self.bounded(&inode, self.worker().attr(&inode.path, Freshness::Cached)).await;
        self.current(&inode, found)
    }

    /// What to answer for `inode` when its path has these attributes now.
    fn current(&self, inode: &Arc<Inode>, found: Result<Arc<Attr>>) -> Result<Arc<Attr>> {
        {
            let mut state = inode.state.lock();
            if let Some(shared) = &mut state.open {
                // Its path may be gone, or name another file: it is asked itself.
                match &found {
                    Ok(attr) if matches!(fit(shared, attr), Fit::Same | Fit::Changed) => shared.attr = attr.clone(),
                    _ => {
                        let attr = shared.local.as_deref().and_then(|file| attr_of(file, &shared.attr));
                        let attr = attr.unwrap_or_else(|| shared.attr.clone());
                        // These are not those of the file that the next open will find.
                        state.told = Some(Version::none());
                        return Ok(attr);
                    }
                }
            }
        }
        let attr = found?;
        if attr.kind != inode.kind || inode.is_detached() || !tell(inode, &attr) {
            return Err(Error::new(ErrorKind::Stale, format!("{}: another file has taken its place", inode.path)));
        }
        Ok(attr)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `InvalidArgument` when it is none.
    pub async fn read_link(&self, id: u64) -> Result<Bytes> {
        let inode = self.inode(id)?;
        self.bounded(&inode, self.worker().read_link(&inode.path)).await
    }

    /// Whether access of this kind is possible at all: `mask` as of access(2). Who may do it, the kernel checks.
    ///
    /// # Errors
    /// `ReadOnly` for writing, `PermissionDenied` for executing a file that nobody may execute.
    pub fn access(&self, attr: &Attr, mask: i32) -> Result<()> {
        if mask & libc::W_OK != 0 {
            return Err(super::read_only());
        }
        if mask & libc::X_OK != 0 && attr.is_file() && attr.mode & 0o111 == 0 {
            return Err(Error::new(ErrorKind::PermissionDenied, "nobody may execute this file"));
        }
        Ok(())
    }
}

/// Notes which attributes the kernel is told. False, and nothing is noted, when this inode cannot stand for them: another
/// version is open, or the kernel keeps the target of another link for it.
fn tell(inode: &Inode, attr: &Arc<Attr>) -> bool {
    let mut state = inode.state.lock();
    match attr.kind {
        FileKind::File => {
            if let Some(shared) = &mut state.open {
                match fit(shared, attr) {
                    Fit::Same => {}
                    Fit::Changed => shared.attr = attr.clone(),
                    Fit::Other => return false,
                }
            }
        }
        FileKind::Symlink if state.told.as_ref().is_some_and(|told| *told != attr.version) => return false,
        FileKind::Symlink => {}
        _ => return true,
    }
    if state.told.as_ref() != Some(&attr.version) {
        state.told = (!attr.version.is_none()).then(|| attr.version.clone());
    }
    true
}

/// The attributes of an open version: they cannot change, so nobody is asked.
fn pinned(inode: &Inode) -> Option<Arc<Attr>> {
    let state = inode.state.lock();
    let shared = state.open.as_ref()?;
    (!matches!(shared.identity, Identity::Local { .. })).then(|| shared.attr.clone())
}

fn fit(shared: &Shared, attr: &Attr) -> Fit {
    let same = |version: &Version| !version.is_none() && *version == attr.version;
    match &shared.identity {
        _ if same(&shared.attr.version) => Fit::Same,
        Identity::Local { .. } => match shared.local.as_deref().and_then(|file| attr_of(file, &shared.attr)) {
            // The open file shows the same change, so it is the one that was written to.
            Some(open) if (open.size, open.mtime, open.ctime) == (attr.size, attr.mtime, attr.ctime) => Fit::Changed,
            _ => Fit::Other,
        },
        Identity::Unversioned { size, mtime } if (*size, *mtime) == (attr.size, attr.mtime) => Fit::Same,
        _ => Fit::Other,
    }
}

/// The attributes of an open local file as they are now; the version is unknown.
fn attr_of(file: &File, before: &Attr) -> Option<Arc<Attr>> {
    let stat: FileStat = nix::sys::stat::fstat(file).ok()?;
    let time = |sec, nsec| common::Timestamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    Some(Arc::new(Attr {
        kind: before.kind,
        size: stat.st_size.unsigned_abs(),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        rdev: before.rdev,
        blocks: stat.st_blocks.unsigned_abs(),
        version: Version::none(),
    }))
}
