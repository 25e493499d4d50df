//! Goes on with what the kernel holds from a process that died: nodes, open files, open directories.
//!
//! Invariants:
//! - a handle goes on with the same file, and of an object the same version, or not at all: then its reads are `Stale`, and
//!   of a handle that wrote everything is EIO, close(2) and fsync(2) among it, so that nothing is lost unheard;
//! - what passes through goes on with the file that the kernel has registered for it.

use super::{
    Fs,
    content::Content,
    directory::DirectoryHandle,
    inode::{Identity, Inode, Mode, Shared},
    open::{FileHandle, Opened, PASSTHROUGH_HANDLE},
    trail::{Held, OpenFile, Passing, Record, Trail},
};
use crate::passthrough::Registered;
use common::{Attr, FileKind, Version, change::OpenedForWriting, worker::Freshness};
use futures::{StreamExt, stream};
use std::{
    fs::File,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

/// Files that are opened again at the same time.
const AT_ONCE: usize = 32;
/// How long opening all of them may take; those that are not by then are lost. The programs wait meanwhile.
const LIMIT: Duration = Duration::from_secs(20);

impl Fs {
    /// Writes down what the kernel holds from now on.
    pub fn note_in(&self, trail: Arc<Trail>) {
        self.inodes.note_in(trail);
    }

    fn note(&self, record: impl FnOnce() -> Record) {
        if let Some(trail) = self.inodes.trail() {
            trail.note(&record());
        }
    }

    /// Notes what was agreed with the kernel.
    pub fn note_agreed(&self, agreed: super::trail::Agreed) {
        self.note(|| Record::Agreed(agreed));
    }

    /// Notes an open file, before the kernel is told of it.
    pub fn note_opened(&self, id: u64, opened: &Opened, flags: i32) {
        if self.inodes.trail().is_none() {
            return;
        }
        let Some(inode) = self.inodes.get(id) else { return };
        let attr = inode.state.lock().open.as_ref().map(|shared| shared.attr.clone());
        let Some(attr) = attr else { return };
        let registered = opened.backing.as_ref().and_then(|backing| backing.token().downcast_ref::<Registered>());
        self.note(|| {
            Record::Opened(OpenFile {
                id,
                handle: opened.handle,
                writes: flags & libc::O_ACCMODE != libc::O_RDONLY,
                backing: registered.map(|registered| registered.id),
                version: attr.version.as_str().to_owned(),
                size: attr.size,
                mtime: (attr.mtime.sec, attr.mtime.nsec),
            })
        });
    }

    /// Notes that a file was released.
    pub fn note_released(&self, id: u64, handle: u64) {
        self.note(|| Record::Released { id, handle });
    }

    /// Notes an open directory.
    pub fn note_directory(&self, handle: u64, id: u64) {
        self.note(|| Record::OpenedDirectory { handle, id });
    }

    /// Notes that a directory was released.
    pub fn note_directory_released(&self, handle: u64) {
        self.note(|| Record::ReleasedDirectory { handle });
    }

    /// Takes over what the kernel holds.
    pub async fn resume(&self, held: &Held) {
        self.inodes.resume(held);
        self.files.begin_at(held.next.1);
        self.directories.begin_at(held.next.2);
        for (handle, id) in &held.directories {
            if let Some(inode) = self.inodes.get(*id) {
                self.directories.insert_as(*handle, DirectoryHandle::fresh(inode));
                let _ = self.limit.take();
            }
        }
        let end = tokio::time::Instant::now() + LIMIT;
        stream::iter(held.passing.values())
            .for_each_concurrent(AT_ONCE, |passing| async move {
                self.resume_passing(passing, end).await;
            })
            .await;
        stream::iter(held.files.values())
            .for_each_concurrent(AT_ONCE, |file| async move {
                self.resume_file(file, end).await;
            })
            .await;
        if let Some(delegate) = self.passthrough.delegate() {
            let ids: Vec<u32> = held.passing.values().filter_map(|passing| passing.file.backing).collect();
            delegate.keep(&ids);
        }
    }

    /// The file of this host that an inode stands for.
    async fn local_again(&self, inode: &Arc<Inode>, writes: bool) -> Option<(Arc<File>, Arc<Attr>)> {
        let path = self.place(inode).ok()?;
        let (file, attr) = if writes {
            match self.changes().ok()?.open(&path, libc::O_RDWR).await.ok()? {
                OpenedForWriting::Local(local) => (local.file, local.attr),
                OpenedForWriting::Staged(_) => return None,
            }
        } else {
            match self.client.open(&path, Freshness::Cached).await.ok()? {
                client::Opened::Local(local) => (local.file, local.attr),
                _ => return None,
            }
        };
        (attr.local.is_some() && attr.local == inode.local).then_some((file, attr))
    }

    /// The attributes of an object that passes through.
    async fn attr_again(&self, inode: &Arc<Inode>, file: &OpenFile, end: tokio::time::Instant) -> Arc<Attr> {
        let found = match self.place(inode) {
            Ok(path) => tokio::time::timeout_at(end, self.worker().attr(&path, Freshness::Cached)).await.ok(),
            Err(_) => None,
        };
        let same = found.and_then(|found| found.ok()).filter(|attr| attr.version.as_str() == file.version);
        same.unwrap_or_else(|| told(file))
    }

    async fn resume_passing(&self, passing: &Passing, end: tokio::time::Instant) {
        let Passing { file, handles, writers } = passing;
        let (Some(inode), Some(id)) = (self.inodes.get(file.id), file.backing) else { return };
        let mut local = None;
        let (identity, attr) = match inode.local {
            Some(this) => {
                let found = tokio::time::timeout_at(end, self.local_again(&inode, *writers > 0)).await.ok().flatten();
                let attr = found.as_ref().map_or_else(|| told(file), |found| found.1.clone());
                local = found.map(|found| found.0);
                (Identity::Local(this), attr)
            }
            None => (Identity::Version(Version::new(file.version.as_str())), self.attr_again(&inode, file, end).await),
        };
        let Some(backing) = self.passthrough.resumed(id, identity.clone(), attr.clone(), local.clone(), *writers > 0)
        else {
            return;
        };
        for _ in 0..*handles {
            // More than the limit were never open.
            let _ = self.limit.take();
        }
        inode.state.lock().open = Some(Box::new(Shared {
            handles: *handles,
            writers: *writers,
            identity,
            attr,
            mode: Mode::Passthrough(Arc::new(backing)),
            local,
            staged: None,
        }));
    }

    async fn resume_file(&self, file: &OpenFile, end: tokio::time::Instant) {
        if file.handle == PASSTHROUGH_HANDLE {
            return;
        }
        let Some(inode) = self.inodes.get(file.id) else { return };
        let opened = tokio::time::timeout_at(end, self.open_again(&inode, file)).await.ok().flatten();
        if opened.is_none() {
            tracing::warn!("{}: an open file cannot be gone on with, and is an error for whoever has it", inode.path());
        }
        let (content, identity, attr) = match opened {
            Some(opened) => opened,
            None => {
                let version = Version::new(file.version.as_str());
                (Content::Lost, inode.local.map_or(Identity::Version(version), Identity::Local), told(file))
            }
        };
        let local = match &content {
            Content::Local(local) => Some(local.clone()),
            _ => None,
        };
        // One that passes through is counted already.
        if file.backing.is_none() {
            let _ = self.limit.take();
            let mut state = inode.state.lock();
            match &mut state.open {
                Some(shared) => {
                    shared.handles += 1;
                    shared.writers += u64::from(file.writes);
                    if local.is_some() {
                        shared.local = local;
                    }
                }
                none => {
                    *none = Some(Box::new(Shared {
                        handles: 1,
                        writers: u64::from(file.writes),
                        identity,
                        attr: attr.clone(),
                        mode: Mode::Daemon,
                        local,
                        staged: None,
                    }));
                }
            }
        }
        let unproved = AtomicBool::new(false);
        let handle = FileHandle { inode: inode.clone(), content, writes: file.writes, unproved, attr };
        self.files.insert_as(file.handle, handle);
    }

    /// What a handle had open, if it can still be had.
    async fn open_again(&self, inode: &Arc<Inode>, file: &OpenFile) -> Option<(Content, Identity, Arc<Attr>)> {
        if let Some(this) = inode.local {
            let (local, attr) = self.local_again(inode, file.writes).await?;
            return Some((Content::Local(local), Identity::Local(this), attr));
        }
        if file.writes {
            return None;
        }
        let path = self.place(inode).ok()?;
        let opened = self.client.open(&path, Freshness::Cached).await.ok()?;
        let attr = opened.attr().clone();
        let (identity, same) = if attr.version.is_none() {
            let identity = Identity::Unversioned { size: attr.size, mtime: attr.mtime };
            (identity, file.version.is_empty() && (attr.size, attr.mtime) == (file.size, file.mtime()))
        } else {
            (Identity::Version(attr.version.clone()), attr.version.as_str() == file.version)
        };
        match opened {
            client::Opened::Complete { reader, .. } | client::Opened::Paged(reader) if same => {
                Some((Content::Pages(reader), identity, attr))
            }
            _ => None,
        }
    }
}

/// The attributes that an open file had.
fn told(file: &OpenFile) -> Arc<Attr> {
    let version = Version::new(file.version.as_str());
    Arc::new(Attr::of_object(FileKind::File, file.size, file.mtime(), version))
}
