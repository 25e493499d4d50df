//! Names: made, linked, moved and removed.
//!
//! Each change is made first and noted in the inode table then, while the directory is locked by the kernel, so nobody
//! asks for the name in between. Only the path of the directory itself may change meanwhile, see [`Fs::tree`](super::Fs).

use super::{Entry, Fs, inode::Inode};
use common::{
    Attr, FileKind, Result, UfsPath,
    change::{Caller, NewNode, RenameMode, SetAttr},
};
use std::sync::Arc;

impl Fs {
    /// Makes a directory, special file, symbolic link or empty file.
    ///
    /// # Errors
    /// `AlreadyExists`; whatever the storage says.
    pub async fn make(&self, parent: u64, name: &[u8], node: &NewNode, mode: u32, caller: Caller) -> Result<Entry> {
        let changes = self.changes()?;
        let parent = self.inode(parent)?;
        let _still = self.tree.read().await;
        let path = self.child(&parent, name)?;
        let attr = self.bounded(&parent, changes.make(&path, node, mode, caller)).await?;
        Ok(self.made(&parent, name, attr))
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// `Unsupported` where there are no hard links; whatever the storage says.
    pub async fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<Entry> {
        let changes = self.changes()?;
        let (inode, parent) = (self.inode(id)?, self.inode(parent)?);
        loop {
            let (existing, linked) = {
                let _still = self.tree.read().await;
                let existing = self.place(&inode)?;
                let path = self.child(&parent, name)?;
                let made = match self.held(&inode, &existing) {
                    Ok(held) => match held.and_then(|held| changes.link_held(&held.file, &path)) {
                        Some(made) => made,
                        None => self.bounded(&parent, changes.link(&existing, &path)).await,
                    },
                    Err(error) => Err(error),
                };
                match made {
                    Ok(attr) => {
                        let linked = (attr.kind, attr.local);
                        let inode = self.inodes.remember(&parent, name, linked, Some(&inode), 1);
                        self.look_again(&inode).await;
                        return Ok(self.changed(&inode, &attr));
                    }
                    Err(error) => (existing, error),
                }
            };
            if !self.has_moved(&inode, &existing, &linked).await {
                return Err(linked);
            }
        }
    }

    /// Removes a name that is no directory.
    ///
    /// # Errors
    /// Whatever the storage says.
    pub async fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let changes = self.changes()?;
        let parent = self.inode(parent)?;
        let _still = self.tree.read().await;
        let path = self.child(&parent, name)?;
        let last = self.last_seen(&parent, name, &path);
        self.bounded(&parent, changes.remove_file(&path)).await?;
        if let Some(inode) = self.removed(&parent, name, last) {
            self.look_again(&inode).await;
        }
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotEmpty`; whatever the storage says.
    pub async fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let changes = self.changes()?;
        let parent = self.inode(parent)?;
        let _still = self.tree.read().await;
        let path = self.child(&parent, name)?;
        let last = self.last_seen(&parent, name, &path);
        self.bounded(&parent, changes.remove_directory(&path)).await?;
        self.removed(&parent, name, last);
        Ok(())
    }

    /// What a local file that is not opened through the daemon will show once this name of it is gone.
    fn last_seen(&self, parent: &Inode, name: &[u8], path: &UfsPath) -> Option<Arc<Attr>> {
        let inode = self.inodes.find(parent.id, name)?;
        if inode.local.is_none() || matches!(inode.kind, FileKind::File | FileKind::Symlink) {
            return None;
        }
        let mut attr = (*self.worker().attr_now(path)?.ok()?).clone();
        attr.nlink = if attr.is_dir() { 0 } else { attr.nlink.saturating_sub(1) };
        Some(Arc::new(attr))
    }

    fn removed(&self, parent: &Arc<Inode>, name: &[u8], last: Option<Arc<Attr>>) -> Option<Arc<Inode>> {
        let inode = self.inodes.remove(parent, name)?;
        self.lost(&inode, last);
        Some(inode)
    }

    /// Has the handle of a file that is open elsewhere learn how many names it has now.
    async fn look_again(&self, inode: &Arc<Inode>) {
        let staged = inode.state.lock().open.as_ref().and_then(|shared| shared.staged.clone());
        if let Some(staged) = staged {
            // The change itself is made; what it does not learn now it learns with the next call.
            let _ = self.bounded(inode, staged.set_attr(&SetAttr::default())).await;
        }
    }

    fn lost(&self, inode: &Arc<Inode>, last: Option<Arc<Attr>>) {
        self.unsettled(inode);
        if inode.is_nameless() {
            inode.state.lock().gone = last;
        }
    }

    /// Renames.
    ///
    /// # Errors
    /// Whatever the storage says; `TimedOut` when other changes under way keep a directory from being moved.
    pub async fn rename(&self, from: (u64, &[u8]), to: (u64, &[u8]), how: RenameMode) -> Result<()> {
        let changes = self.changes()?;
        let (old_parent, new_parent) = (self.inode(from.0)?, self.inode(to.0)?);
        let (old, new) = (from.1, to.1);
        let moved = [
            self.inodes.find(old_parent.id, old),
            self.inodes.find(new_parent.id, new).filter(|_| how == RenameMode::Exchange),
        ];
        let tree = moved.iter().flatten().any(|inode| inode.kind == FileKind::Directory && inode.local.is_some());
        let (mut _still, mut _alone) = (None, None);
        if tree {
            _alone = Some(self.bounded(&old_parent, async { Ok(self.tree.write().await) }).await?);
        } else {
            _still = Some(self.tree.read().await);
        }
        let (old_path, new_path) = (self.child(&old_parent, old)?, self.child(&new_parent, new)?);
        let exchange = how == RenameMode::Exchange;
        let last = if exchange { None } else { self.last_seen(&new_parent, new, &new_path) };
        self.bounded(&old_parent, changes.rename(&old_path, &new_path, how)).await?;
        let beaten = self.inodes.rename((&old_parent, old), (&new_parent, new), exchange);
        for inode in moved.iter().flatten() {
            self.unsettled(inode);
        }
        if let Some(beaten) = &beaten {
            self.lost(beaten, last);
            self.look_again(beaten).await;
        }
        Ok(())
    }

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// Whatever the storage says.
    pub async fn sync_directory(&self, id: u64) -> Result<()> {
        let Ok(changes) = self.changes() else { return Ok(()) };
        let inode = self.inode(id)?;
        loop {
            let path = self.place(&inode)?;
            match self.bounded(&inode, changes.sync(&path)).await {
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                done => return done,
            }
        }
    }
}
