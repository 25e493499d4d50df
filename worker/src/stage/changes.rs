//! The interface for everything that writes, over a stage. What asks the storage more than once runs in a task of its own.

use super::{Stage, attributes::Look, file::Staged, handle::Handle, names::taken, turns::Claim};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, UfsPath,
    change::{Caller, Changes, NewNode, OpenedForWriting, RenameMode, SetAttr, SetXattr},
};
use std::sync::Arc;

/// The longest value of an extended attribute, and of all of a file together.
const XATTR_MAX: usize = 64 << 10;
/// The longest name of one.
const XATTR_NAME_MAX: usize = 255;

fn no_attribute(path: &UfsPath, name: &[u8]) -> Error {
    let name = String::from_utf8_lossy(name);
    Error::new(ErrorKind::NoAttribute, format!("{path}: no extended attribute {name}"))
}

/// The changes of an object store; see [`common::change`].
pub(crate) struct ObjectChanges(pub(crate) Arc<Stage>);

#[async_trait]
impl Changes for ObjectChanges {
    async fn create(&self, path: &UfsPath, flags: i32, mode: u32, caller: Caller) -> Result<OpenedForWriting> {
        let stage = &self.0;
        stage.check(path)?;
        stage.may_write(path).await?;
        let _turn = stage.turns.take(vec![Claim::name(path)]).await;
        if stage.at(path, false).await?.is_some() {
            if flags & libc::O_EXCL != 0 {
                return Err(taken(path));
            }
            return stage.open_staged(path, flags).await;
        }
        let look = Look::made(FileKind::File, mode, caller.uid, caller.gid);
        let staged = Staged::new(stage, stage.fresh_id(), path.clone(), None, 0, look);
        // It is to be there when it is closed, be it empty.
        staged.state.lock().changed = 1;
        let staged = Arc::new(staged);
        let handle = Handle::new(stage, &staged);
        stage.files.lock().insert(path.clone(), staged);
        Ok(OpenedForWriting::Staged(Arc::new(handle)))
    }

    async fn open(&self, path: &UfsPath, flags: i32) -> Result<OpenedForWriting> {
        self.0.check(path)?;
        self.0.may_write(path).await?;
        let _turn = self.0.turns.take(vec![Claim::name(path)]).await;
        self.0.open_staged(path, flags).await
    }

    async fn make(&self, path: &UfsPath, node: &NewNode, mode: u32, caller: Caller) -> Result<Arc<Attr>> {
        let (stage, path, node) = (self.0.clone(), path.clone(), node.clone());
        self.0.whole(async move { stage.make(&path, &node, mode, caller).await }).await
    }

    async fn link(&self, existing: &UfsPath, _path: &UfsPath) -> Result<Arc<Attr>> {
        Err(Error::new(ErrorKind::Unsupported, format!("{existing}: object stores have no hard links")))
    }

    async fn remove_file(&self, path: &UfsPath) -> Result<()> {
        let (stage, path) = (self.0.clone(), path.clone());
        self.0.whole(async move { stage.remove_file(&path).await }).await
    }

    async fn remove_directory(&self, path: &UfsPath) -> Result<()> {
        let (stage, path) = (self.0.clone(), path.clone());
        self.0.whole(async move { stage.remove_directory(&path).await }).await
    }

    async fn rename(&self, from: &UfsPath, to: &UfsPath, mode: RenameMode) -> Result<()> {
        let (stage, from, to) = (self.0.clone(), from.clone(), to.clone());
        self.0.whole(async move { stage.rename(&from, &to, mode).await }).await
    }

    async fn set_attr(&self, path: &UfsPath, change: SetAttr) -> Result<Arc<Attr>> {
        let (stage, path) = (self.0.clone(), path.clone());
        self.0.whole(async move { stage.set_attr(&path, change).await }).await
    }

    async fn xattr(&self, path: &UfsPath, name: &[u8]) -> Result<Bytes> {
        let look = self.0.look_of(path).await?;
        let value = look.xattrs.get(&hex::encode(name)).ok_or_else(|| no_attribute(path, name))?;
        hex::decode(value).map(Bytes::from).map_err(|_| no_attribute(path, name))
    }

    async fn xattrs(&self, path: &UfsPath) -> Result<Vec<Vec<u8>>> {
        let look = self.0.look_of(path).await?;
        Ok(look.xattrs.keys().filter_map(|name| hex::decode(name).ok()).collect())
    }

    async fn set_xattr(&self, path: &UfsPath, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        if name.len() > XATTR_NAME_MAX {
            return Err(Error::os(format!("{path}: the name of the attribute has {} bytes", name.len()), libc::ERANGE));
        }
        if name.starts_with(b"system.") || name.starts_with(b"security.") {
            let name = String::from_utf8_lossy(name);
            return Err(Error::new(ErrorKind::Unsupported, format!("{path}: object stores keep no {name}")));
        }
        let _turn = self.0.turns.take(vec![Claim::name(path)]).await;
        let key = hex::encode(name);
        let set = self.0.change_look(path, |look, _| {
            match (how, look.xattrs.contains_key(&key)) {
                (SetXattr::Create, true) => return Err(taken(path)),
                (SetXattr::Replace, false) => return Err(no_attribute(path, name)),
                _ => {}
            }
            look.xattrs.insert(key.clone(), hex::encode(value));
            let total: usize = look.xattrs.iter().map(|(name, value)| (name.len() + value.len()) / 2).sum();
            if total > XATTR_MAX {
                let why = format!("all extended attributes together have {XATTR_MAX} bytes at most");
                return Err(Error::new(ErrorKind::NoSpace, format!("{path}: {why}")));
            }
            Ok(())
        });
        set.await.map(drop)
    }

    async fn remove_xattr(&self, path: &UfsPath, name: &[u8]) -> Result<()> {
        let _turn = self.0.turns.take(vec![Claim::name(path)]).await;
        let removed = self.0.change_look(path, |look, _| match look.xattrs.remove(&hex::encode(name)) {
            Some(_) => Ok(()),
            None => Err(no_attribute(path, name)),
        });
        removed.await.map(drop)
    }

    async fn sync(&self, directory: &UfsPath) -> Result<()> {
        self.0.sync_below(directory).await
    }
}
