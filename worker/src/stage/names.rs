//! Names: making, opening, removing, renaming, and the attributes of what they name.
//!
//! A directory is what keys have in front of a `/`; one that this process made, or took something out of, has a mark (an
//! empty object with the directory's prefix as its key), so that it stays when it is empty.

use super::{
    Stage,
    attributes::{Look, NAME, bits_of},
    file::{Base, Staged},
    handle::Handle,
    journal::{MoveRecord, Record},
    turns::Claim,
    upload::rand_bits,
};
use crate::cache::Known;
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath,
    change::{Caller, Changes, NewNode, OpenedForWriting, RenameMode, SetAttr, SetTime, SetXattr},
};
use std::sync::Arc;
use ufs::{Condition, Metadata};

/// The longest value of an extended attribute, and of all of a file together.
const XATTR_MAX: usize = 64 << 10;
/// The longest name of one.
const XATTR_NAME_MAX: usize = 255;
/// The longest target of a symbolic link.
const LINK_MAX: usize = 4095;

fn taken(path: &UfsPath) -> Error {
    Error::new(ErrorKind::AlreadyExists, format!("{path}: the name is taken"))
}

fn missing(path: &UfsPath) -> Error {
    Error::new(ErrorKind::NotFound, format!("{path}: no such file or directory"))
}

fn no_attribute(path: &UfsPath, name: &[u8]) -> Error {
    let name = String::from_utf8_lossy(name);
    Error::new(ErrorKind::NoAttribute, format!("{path}: no extended attribute {name}"))
}

/// The changes of an object store; see [`common::change`].
pub(crate) struct ObjectChanges(pub(crate) Arc<Stage>);

impl Stage {
    /// What is at a path; none when nothing is.
    pub(super) async fn at(&self, path: &UfsPath, fresh: bool) -> Result<Option<Arc<Attr>>> {
        if let Some(attr) = self.attr_now(path) {
            return Ok(Some(attr));
        }
        match self.caches.attr(path, fresh).await {
            Ok(attr) => Ok(Some(attr)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fails for names that nobody can use.
    pub(super) fn check(&self, path: &UfsPath) -> Result<String> {
        if path.name() == Some(NAME.as_bytes()) {
            let why = "this name is reserved for the attributes of the directory";
            return Err(Error::new(ErrorKind::NotPermitted, format!("{path}: {why}")));
        }
        self.objects().key(path)
    }

    /// Sees to it that a directory stays when its last entry goes.
    pub(super) async fn keep_directory(&self, directory: &UfsPath) -> Result<()> {
        if directory.is_root() {
            return Ok(());
        }
        let mark = self.objects().prefix(directory)?;
        if self.marked.lock().get(&mark).is_some() {
            return Ok(());
        }
        if self.objects().find(&mark).await?.is_none() {
            self.objects().put(&mark, &Bytes::new().into(), &Metadata::new(), &Condition::Any).await?;
        }
        self.marked.lock().put(mark, ());
        Ok(())
    }

    /// Forgets that a directory has a mark.
    pub(super) fn unmark(&self, prefix: &str) {
        self.marked.lock().pop(prefix);
    }

    async fn open_staged(self: &Arc<Self>, path: &UfsPath, flags: i32) -> Result<OpenedForWriting> {
        let truncated = flags & libc::O_TRUNC != 0;
        let staged = match self.staged(path) {
            Some(staged) if staged.state.lock().is_dirty() => staged,
            _ => {
                let attr = self.at(path, !truncated).await?.ok_or_else(|| missing(path))?;
                match attr.kind {
                    FileKind::File => {}
                    FileKind::Directory => {
                        return Err(Error::new(ErrorKind::IsADirectory, format!("{path} is a directory")));
                    }
                    FileKind::Symlink => {
                        return Err(Error::new(ErrorKind::TooManyLinks, format!("{path} is a symbolic link")));
                    }
                    _ => return Err(Error::new(ErrorKind::Unsupported, format!("{path} is a special file"))),
                }
                let look = self.attributes.look(path, Some(&attr.version)).await?.unwrap_or_default();
                let base = Base { path: path.clone(), version: attr.version.clone() };
                let same = self.staged(path).filter(|staged| staged.state.lock().base.as_ref() == Some(&base));
                match same {
                    Some(staged) => staged,
                    None => {
                        let staged = Staged::new(self, self.fresh_id(), path.clone(), Some(base), attr.size, look);
                        staged.state.lock().mtime = attr.mtime;
                        let staged = Arc::new(staged);
                        self.files.lock().insert(path.clone(), staged.clone());
                        staged
                    }
                }
            }
        };
        let handle = Handle::new(self, &staged);
        if truncated && staged.state.lock().size > 0 {
            staged.truncate(0).await?;
        }
        Ok(OpenedForWriting::Staged(Arc::new(handle)))
    }

    async fn make_object(self: &Arc<Self>, path: &UfsPath, body: Bytes, look: Look) -> Result<Arc<Attr>> {
        let key = self.check(path)?;
        let metadata = look.metadata(self.objects().limits().metadata_max);
        let stored = self.objects().put(&key, &body.into(), &metadata, &Condition::Any).await?;
        self.attributes.set(path, Some(&stored.version), &look).await?;
        self.caches.stored(path);
        self.at(path, false).await?.ok_or_else(|| missing(path))
    }

    /// Takes a staged file from its name, which is gone.
    pub(super) fn removed(self: &Arc<Self>, path: &UfsPath) {
        let Some(staged) = self.files.lock().remove(path) else { return };
        let (upload, closed) = {
            let mut state = staged.state.lock();
            state.removed = true;
            (state.upload.take(), state.opens == 0)
        };
        if let (Some(upload), Ok(key)) = (upload, self.objects().key(path)) {
            self.give_up(key, upload.id);
        }
        staged.unnote(self);
        if closed {
            staged.discard(self);
        }
    }

    async fn rename_file(self: &Arc<Self>, from: &UfsPath, to: &UfsPath) -> Result<()> {
        let (from_key, to_key) = (self.check(from)?, self.check(to)?);
        if let Some(staged) = self.staged(from) {
            let fresh = {
                let state = staged.state.lock();
                // What was tried may be in the storage, whatever the answer was.
                state.base.is_none() && !state.journalled && state.upload.is_none() && !state.publishing
            };
            if fresh {
                // Nothing of it is in the storage: it gets there by its new name.
                let _alone = staged.gate.write().await;
                let replaced = {
                    let mut files = self.files.lock();
                    files.remove(from);
                    staged.state.lock().path = to.clone();
                    files.insert(to.clone(), staged.clone())
                };
                if let Some(replaced) = replaced {
                    replaced.state.lock().removed = true;
                    replaced.unnote(self);
                }
                return Ok(());
            }
            staged.publish_in_turn(self, false).await?;
        }
        let found = self.objects().find(&from_key).await?.ok_or_else(|| missing(from))?;
        let look = self.attributes.look(from, Some(&found.version)).await?.unwrap_or_default();
        self.keep_directory(&from.parent().unwrap_or_else(UfsPath::root)).await?;
        let id = self.fresh_id();
        let mut record = MoveRecord { from: from_key.clone(), to: to_key.clone(), directory: false, copied: false };
        self.journal.append(id, Record::Move(record.clone()), false)?;
        let copied = match self.objects().copy(&from_key, &found.version, found.size, &to_key).await {
            Ok(copied) => copied,
            Err(error) => {
                self.journal.append(id, Record::Done, false)?;
                return Err(error);
            }
        };
        self.attributes.set(to, Some(&copied.version), &look).await?;
        record.copied = true;
        self.journal.append(id, Record::Move(record), false)?;
        // What was staged for the name that is replaced counts no more.
        self.removed(to);
        if let Some(staged) = self.staged(from) {
            let mut files = self.files.lock();
            files.remove(from);
            files.insert(to.clone(), staged.clone());
            let mut state = staged.state.lock();
            state.path = to.clone();
            state.base = Some(Base { path: to.clone(), version: copied.version.clone() });
        }
        self.objects().delete(&from_key).await?;
        self.attributes.change(from, None).await?;
        self.journal.append(id, Record::Done, false)
    }

    /// Changes the look of what is at a path, and returns its attributes.
    async fn change_look(
        self: &Arc<Self>,
        path: &UfsPath,
        change: impl FnOnce(&mut Look, FileKind) -> Result<()> + Send,
    ) -> Result<Arc<Attr>> {
        if let Some(staged) = self.staged(path) {
            let dirty = staged.state.lock().is_dirty();
            if dirty {
                let mut look = staged.state.lock().look.clone();
                change(&mut look, FileKind::File)?;
                staged.state.lock().look = look;
                return Ok(Arc::new(staged.attr()));
            }
        }
        let attr = self.at(path, false).await?.ok_or_else(|| missing(path))?;
        let version = (!attr.is_dir()).then_some(&attr.version);
        let mut look = self.attributes.look(path, version).await?.unwrap_or_default();
        if look.kind.is_none() && !matches!(attr.kind, FileKind::File | FileKind::Directory) {
            look.kind = Some(bits_of(attr.kind));
        }
        change(&mut look, attr.kind)?;
        self.attributes.set(path, version, &look).await?;
        if let Some(staged) = self.staged(path) {
            staged.state.lock().look = look.clone();
        }
        let mut dressed = Attr::of_object(
            if attr.is_dir() { FileKind::Directory } else { FileKind::File },
            attr.size,
            attr.mtime,
            attr.version.clone(),
        );
        if look.mtime.is_none() {
            dressed.mtime = attr.mtime;
        }
        look.apply(&mut dressed);
        dressed.ctime = Timestamp::now();
        let dressed = Arc::new(dressed);
        self.caches.changed(path, Some(Known::Attr(dressed.clone())));
        Ok(dressed)
    }

    async fn look_of(&self, path: &UfsPath) -> Result<Look> {
        if let Some(staged) = self.staged(path) {
            let state = staged.state.lock();
            if state.is_dirty() {
                return Ok(state.look.clone());
            }
        }
        let attr = self.at(path, false).await?.ok_or_else(|| missing(path))?;
        let version = (!attr.is_dir()).then_some(&attr.version);
        Ok(self.attributes.look(path, version).await?.unwrap_or_default())
    }
}

#[async_trait]
impl Changes for ObjectChanges {
    async fn create(&self, path: &UfsPath, flags: i32, mode: u32, caller: Caller) -> Result<OpenedForWriting> {
        let stage = &self.0;
        stage.check(path)?;
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
        let _turn = self.0.turns.take(vec![Claim::name(path)]).await;
        self.0.open_staged(path, flags).await
    }

    async fn make(&self, path: &UfsPath, node: &NewNode, mode: u32, caller: Caller) -> Result<Arc<Attr>> {
        let stage = &self.0;
        stage.check(path)?;
        let _turn = stage.turns.take(vec![Claim::name(path)]).await;
        if stage.at(path, false).await?.is_some() {
            return Err(taken(path));
        }
        let look = |kind| Look::made(kind, mode, caller.uid, caller.gid);
        let device = |kind, rdev| Look { rdev: Some(rdev), ..Look::made(kind, mode, caller.uid, caller.gid) };
        match node {
            NewNode::Directory => {
                let mark = stage.objects().prefix(path)?;
                stage.objects().put(&mark, &Bytes::new().into(), &Metadata::new(), &Condition::Any).await?;
                stage.marked.lock().put(mark, ());
                stage.attributes.set(path, None, &look(FileKind::Directory)).await?;
                let mut attr = Attr::of_object(FileKind::Directory, 0, Timestamp::now(), common::Version::none());
                look(FileKind::Directory).apply(&mut attr);
                let attr = Arc::new(attr);
                stage.caches.changed(path, Some(Known::Attr(attr.clone())));
                Ok(attr)
            }
            NewNode::Symlink(target) => {
                if target.is_empty() || target.len() > LINK_MAX {
                    let why = format!("the target of a link has 1 to {LINK_MAX} bytes");
                    return Err(Error::new(ErrorKind::NameTooLong, format!("{path}: {why}")));
                }
                stage.make_object(path, target.clone(), look(FileKind::Symlink)).await
            }
            NewNode::File => stage.make_object(path, Bytes::new(), look(FileKind::File)).await,
            // The body differs from that of an empty file, so that the two never have the same version.
            NewNode::Fifo => stage.make_object(path, special(b"fifo"), look(FileKind::Fifo)).await,
            NewNode::Socket => stage.make_object(path, special(b"socket"), look(FileKind::Socket)).await,
            NewNode::CharDevice(number) => {
                stage.make_object(path, special(b"device"), device(FileKind::CharDevice, *number)).await
            }
            NewNode::BlockDevice(number) => {
                stage.make_object(path, special(b"device"), device(FileKind::BlockDevice, *number)).await
            }
        }
    }

    async fn link(&self, existing: &UfsPath, _path: &UfsPath) -> Result<Arc<Attr>> {
        Err(Error::new(ErrorKind::Unsupported, format!("{existing}: object stores have no hard links")))
    }

    async fn remove_file(&self, path: &UfsPath) -> Result<()> {
        let stage = &self.0;
        let key = stage.check(path)?;
        let _turn = stage.turns.take(vec![Claim::name(path)]).await;
        let attr = stage.at(path, false).await?.ok_or_else(|| missing(path))?;
        if attr.is_dir() {
            return Err(Error::new(ErrorKind::IsADirectory, format!("{path} is a directory")));
        }
        // Who has it open goes on with what is here.
        if let Some(staged) = stage.staged(path) {
            let (open, size) = {
                let state = staged.state.lock();
                (state.opens > 0, state.base_valid)
            };
            if open && size <= stage.options.put_max {
                staged.bring(0..size).await?;
            }
        }
        let never = stage.staged(path).is_some_and(|staged| {
            let state = staged.state.lock();
            state.base.is_none() && !state.journalled && !state.publishing
        });
        if !never {
            stage.keep_directory(&path.parent().unwrap_or_else(UfsPath::root)).await?;
            stage.objects().delete(&key).await?;
        }
        stage.removed(path);
        stage.attributes.change(path, None).await?;
        stage.caches.changed(path, Some(Known::Missing));
        Ok(())
    }

    async fn remove_directory(&self, path: &UfsPath) -> Result<()> {
        let stage = &self.0;
        if path.is_root() {
            return Err(Error::new(ErrorKind::Busy, "the root is mounted"));
        }
        let _turn = stage.turns.take(vec![Claim::tree(path)]).await;
        let attr = stage.at(path, false).await?.ok_or_else(|| missing(path))?;
        if !attr.is_dir() {
            return Err(Error::new(ErrorKind::NotADirectory, format!("{path} is no directory")));
        }
        let own = stage.own_keys(path).await?;
        stage.keep_directory(&path.parent().unwrap_or_else(UfsPath::root)).await?;
        stage.objects().delete_all(&own).await?;
        let prefix = stage.objects().prefix(path)?;
        stage.unmark(&prefix);
        stage.attributes.forget_tree(&prefix);
        stage.attributes.change(path, None).await?;
        stage.caches.changed_tree(path);
        stage.caches.changed(path, Some(Known::Missing));
        Ok(())
    }

    async fn rename(&self, from: &UfsPath, to: &UfsPath, mode: RenameMode) -> Result<()> {
        let stage = &self.0;
        if mode == RenameMode::Exchange {
            let why = "object stores cannot exchange two names";
            return Err(Error::new(ErrorKind::Unsupported, format!("{from}, {to}: {why}")));
        }
        if from.is_root() || to.is_root() {
            return Err(Error::new(ErrorKind::Busy, "the root is mounted"));
        }
        stage.check(to)?;
        if to != from && to.is_within(from) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{to} is below {from}")));
        }
        let _turn = stage.turns.take(vec![Claim::tree(from), Claim::tree(to)]).await;
        let source = stage.at(from, false).await?.ok_or_else(|| missing(from))?;
        let target = stage.at(to, false).await?;
        if target.is_some() && mode == RenameMode::NoReplace {
            return Err(taken(to));
        }
        if from == to {
            return Ok(());
        }
        match (source.is_dir(), target.as_ref().map(|target| target.is_dir())) {
            (true, Some(false)) => {
                return Err(Error::new(ErrorKind::NotADirectory, format!("{to} is no directory")));
            }
            (false, Some(true)) => return Err(Error::new(ErrorKind::IsADirectory, format!("{to} is a directory"))),
            (true, _) => stage.rename_directory(from, to, target.is_some()).await?,
            (false, _) => stage.rename_file(from, to).await?,
        }
        stage.caches.changed_tree(from);
        stage.caches.changed_tree(to);
        stage.caches.changed(to, None);
        stage.caches.changed(from, Some(Known::Missing));
        Ok(())
    }

    async fn set_attr(&self, path: &UfsPath, change: SetAttr) -> Result<Arc<Attr>> {
        let stage = &self.0;
        let _turn = stage.turns.take(vec![Claim::name(path)]).await;
        if let Some(size) = change.size {
            stage.check(path)?;
            let opened = stage.open_staged(path, 0).await?;
            let staged = stage.staged(path).ok_or_else(|| missing(path))?;
            if staged.state.lock().size != size {
                staged.truncate(size).await?;
            }
            let alone = staged.state.lock().opens == 1;
            if alone {
                staged.publish_in_turn(stage, true).await?;
            }
            drop(opened);
        }
        let only_size = SetAttr { size: change.size, ..SetAttr::default() };
        if change == only_size {
            return stage.at(path, false).await?.ok_or_else(|| missing(path));
        }
        let time = |time: SetTime| match time {
            SetTime::Now => Timestamp::now(),
            SetTime::At(at) => at,
        };
        let changed = stage.change_look(path, |look, kind| {
            if let Some(mode) = change.mode {
                look.set_mode(kind, mode);
            }
            look.set_owner(change.uid, change.gid);
            let pair = |at: Timestamp| (at.sec, at.nsec);
            look.mtime = change.mtime.map(|at| pair(time(at))).or(look.mtime);
            look.atime = change.atime.map(|at| pair(time(at))).or(look.atime);
            Ok(())
        });
        changed.await
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

/// The body of a special file: equal bytes have equal versions on some services, and looks go by versions.
fn special(kind: &[u8]) -> Bytes {
    [kind, format!(" {:016x}\n", rand_bits()).as_bytes()].concat().into()
}
