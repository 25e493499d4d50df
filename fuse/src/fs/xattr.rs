//! Extended attributes, as the storage has them.

use super::{Fs, inode::Inode};
use bytes::Bytes;
use common::{
    Error, ErrorKind, Result,
    change::{Changes, SetXattr},
};
use nix::errno::Errno;
use std::{fs::File, sync::Arc};

impl Fs {
    /// Whether the storage has extended attributes at all.
    pub fn has_xattrs(&self) -> bool {
        self.worker().changes().is_some()
    }

    /// Who knows them; reading them is no change.
    fn attributes(&self) -> Result<&dyn Changes> {
        self.worker()
            .changes()
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "this storage has no extended attributes"))
    }

    fn open_local(inode: &Inode) -> Option<Arc<File>> {
        inode.state.lock().open.as_ref().and_then(|shared| shared.local.clone())
    }

    /// The value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute` when there is none.
    pub async fn xattr(&self, id: u64, name: &[u8]) -> Result<Bytes> {
        let (changes, inode) = (self.attributes()?, self.inode(id)?);
        if let Some(file) = Self::open_local(&inode) {
            return ufs::local::xattr(&*file, name).map(Bytes::from).map_err(|errno| failed(&inode, errno));
        }
        loop {
            let path = self.place(&inode)?;
            let done = match self.held(&inode, &path) {
                Ok(Some(held)) => {
                    ufs::local::xattr(&*held.file, name).map(Bytes::from).map_err(|errno| failed(&inode, errno))
                }
                Ok(None) => self.bounded(&inode, changes.xattr(&path, name)).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                done => return done,
            }
        }
    }

    /// The names of all extended attributes, each ended by a NUL.
    ///
    /// # Errors
    /// Whatever the storage says.
    pub async fn xattrs(&self, id: u64) -> Result<Vec<u8>> {
        let (changes, inode) = (self.attributes()?, self.inode(id)?);
        if let Some(file) = Self::open_local(&inode) {
            return ufs::local::xattrs(&*file).map(joined).map_err(|errno| failed(&inode, errno));
        }
        loop {
            let path = self.place(&inode)?;
            let done = match self.held(&inode, &path) {
                Ok(Some(held)) => ufs::local::xattrs(&*held.file).map_err(|errno| failed(&inode, errno)),
                Ok(None) => self.bounded(&inode, changes.xattrs(&path)).await,
                Err(error) => Err(error),
            };
            match done {
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                done => return done.map(joined),
            }
        }
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// As setxattr(2).
    pub async fn set_xattr(&self, id: u64, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let (changes, inode) = (self.changes()?, self.inode(id)?);
        self.unsettled(&inode);
        if let Some(file) = Self::open_local(&inode) {
            return ufs::local::set_xattr(&*file, name, value, how).map_err(|errno| failed(&inode, errno));
        }
        loop {
            let (path, done) = {
                let _still = self.tree.read().await;
                let path = self.place(&inode)?;
                let done = match self.held(&inode, &path) {
                    Ok(Some(held)) => {
                        ufs::local::set_xattr(&*held.file, name, value, how).map_err(|errno| failed(&inode, errno))
                    }
                    Ok(None) => self.bounded(&inode, changes.set_xattr(&path, name, value, how)).await,
                    Err(error) => Err(error),
                };
                (path, done)
            };
            match done {
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                done => return done,
            }
        }
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute` when there is none.
    pub async fn remove_xattr(&self, id: u64, name: &[u8]) -> Result<()> {
        let (changes, inode) = (self.changes()?, self.inode(id)?);
        self.unsettled(&inode);
        if let Some(file) = Self::open_local(&inode) {
            return ufs::local::remove_xattr(&*file, name).map_err(|errno| failed(&inode, errno));
        }
        loop {
            let (path, done) = {
                let _still = self.tree.read().await;
                let path = self.place(&inode)?;
                let done = match self.held(&inode, &path) {
                    Ok(Some(held)) => {
                        ufs::local::remove_xattr(&*held.file, name).map_err(|errno| failed(&inode, errno))
                    }
                    Ok(None) => self.bounded(&inode, changes.remove_xattr(&path, name)).await,
                    Err(error) => Err(error),
                };
                (path, done)
            };
            match done {
                Err(error) if self.has_moved(&inode, &path, &error).await => {}
                done => return done,
            }
        }
    }
}

fn joined(names: Vec<Vec<u8>>) -> Vec<u8> {
    let mut all = Vec::new();
    for name in names {
        all.extend_from_slice(&name);
        all.push(0);
    }
    all
}

fn failed(inode: &Arc<Inode>, errno: Errno) -> Error {
    Error::os(inode.path(), errno as i32)
}
