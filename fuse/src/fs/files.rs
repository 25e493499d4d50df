//! What is asked about names and files: lookup, attributes, links, permissions.

use super::{
    Entry, Fs,
    inode::{Identity, Inode, Shared, Told},
};
use bytes::Bytes;
use common::{Attr, Error, ErrorKind, FileKind, Result, UfsPath, Version, attr::LocalId, worker::Freshness};
use std::{fs::File, sync::Arc};

/// Whether an open inode may go on standing for what its name leads to now.
enum Fit {
    Same,
    /// The same local file, written to since.
    Changed,
    Other,
}

/// The attributes of an open file, or where to get them.
enum Open {
    /// Those that it was opened with, or has been given since.
    Attr(Arc<Attr>),
    /// Whatever this file of this host has now.
    Local(Arc<File>),
}

impl Fs {
    /// Looks `name` up in a directory. `NotFound` is as certain as any answer: the kernel may keep it.
    pub fn lookup_now(&self, parent: u64, name: &[u8]) -> Option<Result<Entry>> {
        let parent = match self.inode(parent) {
            Ok(parent) => parent,
            Err(error) => return Some(Err(error)),
        };
        loop {
            let path = match self.child(&parent, name) {
                Ok(path) => path,
                Err(error) => return Some(Err(error)),
            };
            let error = match self.worker().attr_now(&path)? {
                Ok(attr) => return Some(Ok(self.entry(&parent, name, attr))),
                Err(error) => error,
            };
            if !may_have_moved(&error) || parent.local.is_none() {
                return Some(Err(error));
            }
            // While a directory moves, nobody can say what is there.
            let _still = self.tree.try_read().ok()?;
            if self.child(&parent, name).is_ok_and(|now| now == path) {
                return Some(Err(error));
            }
        }
    }

    /// Looks `name` up, asking the worker.
    ///
    /// # Errors
    /// `NotFound`, `NameTooLong`, or whatever the storage says.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry> {
        let parent = self.inode(parent)?;
        loop {
            let path = self.child(&parent, name)?;
            match self.bounded(&parent, self.worker().attr(&path, Freshness::Cached)).await {
                Ok(attr) => return Ok(self.entry(&parent, name, attr)),
                Err(error) if may_have_moved(&error) && parent.local.is_some() => {
                    let _still = self.tree.read().await;
                    if self.child(&parent, name).is_ok_and(|now| now == path) {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The path of a name in a directory.
    pub(super) fn child(&self, parent: &Arc<Inode>, name: &[u8]) -> Result<UfsPath> {
        self.place(parent)?.join(name)
    }

    /// The path of an inode.
    pub(super) fn place(&self, inode: &Arc<Inode>) -> Result<UfsPath> {
        if inode.is_nameless() {
            return Err(Error::new(ErrorKind::Stale, format!("{}: was removed", inode.path())));
        }
        Ok(inode.path())
    }

    /// Whether a call that failed may have failed because `inode` is no longer at `path`. Waits for renames under way.
    pub(super) async fn has_moved(&self, inode: &Arc<Inode>, path: &UfsPath, error: &Error) -> bool {
        if !may_have_moved(error) {
            return false;
        }
        if inode.local.is_some() {
            drop(self.tree.write().await);
        }
        !inode.is_nameless() && inode.path() != *path
    }

    /// The node for a name whose file has these attributes, counted once more.
    pub(super) fn entry(&self, parent: &Arc<Inode>, name: &[u8], attr: Arc<Attr>) -> Entry {
        loop {
            let known = self.same_file(parent, name, &attr);
            let inode = self.inodes.remember(parent, name, (attr.kind, attr.local), known.as_ref(), 1);
            if let Some(entry) = tell(&inode, &attr) {
                return entry;
            }
            // It goes on standing for what is open, and the name gets another.
            self.inodes.detach(&inode);
            self.forget(inode.id, 1);
        }
    }

    /// The inode that stands for this file of this host under another name.
    fn same_file(&self, parent: &Inode, name: &[u8], attr: &Attr) -> Option<Arc<Inode>> {
        let file = attr.local.filter(|_| attr.nlink > 1 && attr.kind != FileKind::Directory)?;
        if self.inodes.find(parent.id, name).is_some_and(|inode| inode.local == Some(file)) {
            return None;
        }
        let known = self.inodes.find_file(file)?;
        // Its number may have been given to another file since, unless it is held open or still found at its name.
        let held = known.state.lock().open.as_ref().and_then(|shared| shared.local.clone());
        let is_it = match held {
            Some(held) => ufs::local::attr_of(&*held).is_ok_and(|attr| attr.local == Some(file)),
            None => {
                !known.is_nameless()
                    && matches!(self.worker().attr_now(&known.path()), Some(Ok(attr)) if attr.local == Some(file))
            }
        };
        is_it.then_some(known)
    }

    /// The node for a name of which only the kind is known, counted once more, with attributes that nobody may rely on.
    pub(super) fn bare_entry(&self, parent: &Arc<Inode>, name: &[u8], kind: FileKind) -> Entry {
        let inode = self.inodes.remember(parent, name, (kind, None), None, 1);
        let open = inode.state.lock().open.as_ref().map(|shared| shared.attr.clone());
        let attr =
            open.unwrap_or_else(|| Arc::new(Attr::of_object(kind, 0, common::Timestamp::default(), Version::none())));
        Entry { id: inode.id, attr, lasting: false }
    }

    /// The attributes of a node. While a file is open they are those of what is open.
    pub fn getattr_now(&self, id: u64) -> Option<Result<Entry>> {
        let inode = match self.inode(id) {
            Ok(inode) => inode,
            Err(error) => return Some(Err(error)),
        };
        if let Some(entry) = self.attr_of_open(&inode) {
            return Some(entry);
        }
        let path = match self.place(&inode) {
            Ok(path) => path,
            Err(error) => return Some(Err(error)),
        };
        match self.worker().attr_now(&path)? {
            Ok(attr) => Some(self.current(&inode, &attr)),
            // Perhaps it moves just now.
            Err(error) if may_have_moved(&error) && inode.local.is_some() => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// The attributes of a node, asking the worker.
    ///
    /// # Errors
    /// `Stale` when the node's name leads to another file by now and nothing of the old one is known; `NotFound`.
    pub async fn getattr(&self, id: u64) -> Result<Entry> {
        let inode = self.inode(id)?;
        loop {
            if let Some(entry) = self.attr_of_open(&inode) {
                return entry;
            }
            let path = self.place(&inode)?;
            match self.bounded(&inode, self.worker().attr(&path, Freshness::Cached)).await {
                Ok(attr) => return self.current(&inode, &attr),
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What is told of `inode` while it is open: nobody is asked but the open file itself.
    pub(super) fn attr_of_open(&self, inode: &Arc<Inode>) -> Option<Result<Entry>> {
        let open = {
            let state = inode.state.lock();
            match (state.open.as_deref(), &state.gone) {
                (Some(shared), _) => open_attr(shared),
                (None, Some(gone)) => Open::Attr(gone.clone()),
                (None, None) => return None,
            }
        };
        let attr = match open {
            Open::Attr(attr) => attr,
            Open::Local(file) => match ufs::local::attr_of(&*file) {
                Ok(attr) => Arc::new(attr),
                Err(errno) => return Some(Err(Error::os(inode.path(), errno as i32))),
            },
        };
        let mut state = inode.state.lock();
        let mut lasting = true;
        if let Some(shared) = state.open.as_deref_mut() {
            lasting = shared.writers == 0;
            if matches!(shared.identity, Identity::Local(_)) {
                shared.attr = attr.clone();
                state.told = lasting.then(|| Told::of(&attr));
            }
        }
        Some(Ok(Entry { id: inode.id, attr, lasting }))
    }

    /// What to answer for `inode` when its path has these attributes now.
    pub(super) fn current(&self, inode: &Arc<Inode>, attr: &Arc<Attr>) -> Result<Entry> {
        let same = attr.kind == inode.kind && (inode.local.is_none() || inode.local == attr.local);
        tell(inode, attr)
            .filter(|_| same)
            .ok_or_else(|| Error::new(ErrorKind::Stale, format!("{}: another file has taken its place", inode.path())))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `InvalidArgument` when it is none.
    pub async fn read_link(&self, id: u64) -> Result<Bytes> {
        let inode = self.inode(id)?;
        loop {
            let path = self.place(&inode)?;
            match self.bounded(&inode, self.worker().read_link(&path)).await {
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                done => return done,
            }
        }
    }

    /// Whether access of this kind is possible at all: `mask` as of access(2). Who may do it, the kernel checks.
    ///
    /// # Errors
    /// `ReadOnly` for writing to a mount that takes no writes, `PermissionDenied` for executing a file that nobody may
    /// execute.
    pub fn access(&self, attr: &Attr, mask: i32) -> Result<()> {
        if mask & libc::W_OK != 0 {
            self.changes()?;
        }
        if mask & libc::X_OK != 0 && attr.is_file() && attr.mode & 0o111 == 0 {
            return Err(Error::new(ErrorKind::PermissionDenied, "nobody may execute this file"));
        }
        Ok(())
    }
}

/// Whether such an error may come of looking where a file no longer is.
fn may_have_moved(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::TooManyLinks | ErrorKind::Stale)
}

/// Notes which attributes the kernel is told. None, and nothing is noted, when this inode cannot stand for them: another
/// version is open, or the kernel keeps the target of another link for it.
pub(super) fn tell(inode: &Inode, attr: &Arc<Attr>) -> Option<Entry> {
    let mut state = inode.state.lock();
    let mut told = Entry { id: inode.id, attr: attr.clone(), lasting: true };
    match attr.kind {
        FileKind::File => {
            if let Some(shared) = state.open.as_deref_mut() {
                match fit(shared, attr) {
                    Fit::Same => {}
                    Fit::Changed => shared.attr = attr.clone(),
                    Fit::Other => return None,
                }
                if let Some(staged) = &shared.staged {
                    told.attr = staged.attr();
                }
                told.lasting = shared.writers == 0;
            }
        }
        FileKind::Symlink if state.told.as_ref().is_some_and(|told| changed_link(told, attr)) => return None,
        FileKind::Symlink => {}
        _ => return Some(told),
    }
    let known = told.lasting && !attr.version.is_none();
    if !known {
        state.told = None;
    } else if state.told.as_ref().is_none_or(|told| told.version != attr.version) {
        state.told = Some(Told::of(attr));
    }
    Some(told)
}

/// Whether this is another link than the one of which the kernel may keep the target. A target never changes, and for a
/// local one no more than that is asked: to rename a link makes it no other.
fn changed_link(told: &Told, attr: &Attr) -> bool {
    match attr.local {
        Some(_) => (told.size, told.mtime) != (attr.size, attr.mtime),
        None => told.version != attr.version,
    }
}

fn open_attr(shared: &Shared) -> Open {
    match (&shared.staged, &shared.local) {
        (Some(staged), _) => Open::Attr(staged.attr()),
        (None, Some(file)) => Open::Local(file.clone()),
        // An open version cannot change.
        (None, None) => Open::Attr(shared.attr.clone()),
    }
}

fn fit(shared: &Shared, attr: &Attr) -> Fit {
    let same = |version: &Version| !version.is_none() && *version == attr.version;
    match &shared.identity {
        Identity::Staged => Fit::Same,
        _ if same(&shared.attr.version) => Fit::Same,
        Identity::Local(file) if is_file(attr, *file) => Fit::Changed,
        Identity::Unversioned { size, mtime } if (*size, *mtime) == (attr.size, attr.mtime) => Fit::Same,
        _ => Fit::Other,
    }
}

fn is_file(attr: &Attr, file: LocalId) -> bool {
    attr.local == Some(file)
}
