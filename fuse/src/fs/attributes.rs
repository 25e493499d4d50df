//! Attributes that are changed. What is open is changed through its descriptor or handle, so that it does not matter where
//! it is by now, or whether it is anywhere.

use super::{Entry, Fs, changing::loses_set_id, inode::Inode};
use common::{
    Attr, Error, Result,
    change::{Caller, SetAttr},
};
use std::{fs::File, sync::Arc};

impl Fs {
    /// Changes attributes.
    ///
    /// # Errors
    /// `ReadOnly`; whatever the storage says.
    pub async fn set_attr(&self, id: u64, mut change: SetAttr, caller: Caller) -> Result<Entry> {
        let changes = self.changes()?;
        let inode = self.inode(id)?;
        change.drop_set_id |= change.size.is_some() && loses_set_id(caller);
        if change.mode.is_some() {
            // Whether it may pass through is to be decided anew.
            self.passthrough.drop_kept(id);
        }
        let (local, staged) = match &inode.state.lock().open {
            Some(shared) => (shared.local.clone(), shared.staged.clone()),
            None => (None, None),
        };
        if let Some(file) = local {
            let attr = self.set_attr_of(&inode, &file, &change)?;
            return Ok(self.changed(&inode, &attr));
        }
        if let Some(staged) = &staged
            && let Some(attr) = self.bounded(&inode, staged.set_attr(&change)).await?
        {
            return Ok(self.changed(&inode, &attr));
        }
        if let Some(staged) = staged
            && let Some(size) = change.size.take()
        {
            self.bounded(&inode, staged.truncate(size)).await?;
            if change == (SetAttr { drop_set_id: change.drop_set_id, ..SetAttr::default() }) {
                return Ok(self.changed(&inode, &staged.attr()));
            }
        }
        loop {
            let (path, done) = {
                let _still = self.tree.read().await;
                let path = self.place(&inode)?;
                let done = match self.held(&inode, &path) {
                    Ok(Some(held)) => self.set_attr_of(&inode, &held.file, &change),
                    Ok(None) => self.bounded(&inode, changes.set_attr(&path, change)).await,
                    Err(error) => Err(error),
                };
                (path, done)
            };
            match done {
                Ok(attr) => return Ok(self.changed(&inode, &attr)),
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn set_attr_of(&self, inode: &Arc<Inode>, file: &File, change: &SetAttr) -> Result<Arc<Attr>> {
        match ufs::local::set_attr(file, change) {
            Ok(attr) => Ok(Arc::new(attr)),
            Err(errno) => Err(Error::os(inode.path(), errno as i32)),
        }
    }
}
