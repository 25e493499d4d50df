//! An object store whose files look as its attribute objects say.
//!
//! Invariants: attribute objects are never shown; a directory without one costs no request more when it is listed, and one
//! with it one request more each time that it changed.

use super::{
    Stage,
    attributes::{Attributes, NAME, View},
};
use crate::clock::Clock;
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, StatFs, UfsPath, UfsUri, Version,
    change::Changes,
    worker::{DirEntry, FileLease, Listing, LocalFile},
};
use std::{sync::Arc, time::Duration};
use ufs::{Head, ObjectWrites, ReadSink, UnderStorage};

/// Entries that are held back until it is known whether the directory has an attribute object.
const HELD: usize = 8192;

/// See the module.
pub struct Dressed {
    inner: Arc<dyn UnderStorage>,
    attributes: Arc<Attributes>,
}

impl Dressed {
    /// `storage` as its attribute objects say, and those; what has none is given back as it is. `age`: for how long what is
    /// known of them counts.
    pub fn over(
        storage: Arc<dyn UnderStorage>,
        clock: Clock,
        age: Duration,
    ) -> (Arc<dyn UnderStorage>, Arc<Attributes>) {
        let attributes = Attributes::new(storage.clone(), clock, age);
        if !Stage::suits(&storage) {
            return (storage, attributes);
        }
        (Arc::new(Self { inner: storage, attributes: attributes.clone() }), attributes)
    }

    fn hidden(&self, path: &UfsPath) -> Result<()> {
        if path.name() == Some(NAME.as_bytes()) {
            return Err(Error::new(ErrorKind::NotFound, format!("{path}: no such file or directory")));
        }
        Ok(())
    }

    async fn dress(&self, path: &UfsPath, view: Result<View>, attr: &mut Attr) -> Result<()> {
        if let Some(name) = path.name() {
            view?.dress(name, attr);
        }
        Ok(())
    }

    async fn view(&self, path: &UfsPath) -> Result<View> {
        match path.parent() {
            Some(directory) => self.attributes.of(&directory, None).await,
            None => Ok(View::default()),
        }
    }
}

#[async_trait]
impl UnderStorage for Dressed {
    fn uri(&self) -> &UfsUri {
        self.inner.uri()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    async fn probe(&self) -> Result<()> {
        self.inner.probe().await
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        self.hidden(path)?;
        let (attr, view) = tokio::join!(self.inner.stat(path), self.view(path));
        let mut attr = attr?;
        self.dress(path, view, &mut attr).await?;
        Ok(attr)
    }

    async fn stat_and_read(&self, path: &UfsPath, max: u32) -> Result<Head> {
        self.hidden(path)?;
        let (head, view) = tokio::join!(self.inner.stat_and_read(path, max), self.view(path));
        let mut head = head?;
        self.dress(path, view, &mut head.attr).await?;
        if !head.attr.is_file() {
            head.bytes = Bytes::new();
        }
        Ok(head)
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let inner = self.inner.list(path).await?;
        let attributes = self.attributes.clone();
        Ok(Box::new(DressedListing {
            inner,
            attributes,
            path: path.clone(),
            view: None,
            held: Vec::new(),
            ended: false,
        }))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        self.inner.read(path, version, offset, length, sink).await
    }

    async fn read_link(&self, path: &UfsPath) -> Result<Bytes> {
        let attr = self.stat(path).await?;
        if attr.kind != FileKind::Symlink {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{path} is no symbolic link")));
        }
        let mut target = Vec::new();
        self.inner.read(path, &attr.version, 0, attr.size, &mut target).await?;
        Ok(target.into())
    }

    fn changes(&self) -> Option<&dyn Changes> {
        self.inner.changes()
    }

    fn objects(&self) -> Option<&dyn ObjectWrites> {
        self.inner.objects()
    }

    fn stat_fs(&self) -> Option<StatFs> {
        self.inner.stat_fs()
    }

    fn stat_now(&self, path: &UfsPath) -> Option<Result<Attr>> {
        self.inner.stat_now(path)
    }

    fn open_now(&self, path: &UfsPath) -> Option<Result<LocalFile>> {
        self.inner.open_now(path)
    }

    fn lends(&self) -> bool {
        self.inner.lends()
    }

    async fn lend(&self, path: &UfsPath, attr: &Attr) -> Option<FileLease> {
        self.inner.lend(path, attr).await
    }
}

struct DressedListing {
    inner: Box<dyn Listing>,
    attributes: Arc<Attributes>,
    path: UfsPath,
    /// Known once the listing is past the name of the attribute object.
    view: Option<View>,
    held: Vec<DirEntry>,
    ended: bool,
}

impl DressedListing {
    fn dressed(&self, mut batch: Vec<DirEntry>) -> Vec<DirEntry> {
        let Some(view) = self.view.as_ref().filter(|view| !view.is_empty()) else { return batch };
        for entry in &mut batch {
            if let Some(attr) = &entry.attr {
                let mut dressed = (**attr).clone();
                view.dress(&entry.name, &mut dressed);
                entry.kind = dressed.kind;
                if dressed != **attr {
                    entry.attr = Some(Arc::new(dressed));
                }
            }
        }
        batch
    }
}

#[async_trait]
impl Listing for DressedListing {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        while !self.ended {
            let Some(mut batch) = self.inner.next().await? else {
                self.ended = true;
                break;
            };
            if self.view.is_some() {
                return Ok(Some(self.dressed(batch)));
            }
            // Keys come in order: either it is here, or something that comes after it, or more is to come.
            let own = batch.iter().position(|entry| *entry.name == *NAME.as_bytes());
            let past = batch.iter().any(|entry| *entry.name > *NAME.as_bytes());
            if let Some(at) = own {
                let attr = batch.remove(at).attr;
                let version = attr.map(|attr| attr.version.clone());
                self.view = Some(self.attributes.of(&self.path, version.as_ref().map(Some)).await?);
            } else if past {
                self.view = Some(self.attributes.of(&self.path, Some(None)).await?);
            } else if self.held.len() > HELD {
                self.view = Some(self.attributes.of(&self.path, None).await?);
            }
            self.held.append(&mut batch);
            if self.view.is_some() && !self.held.is_empty() {
                let held = std::mem::take(&mut self.held);
                return Ok(Some(self.dressed(held)));
            }
        }
        if self.held.is_empty() {
            return Ok(None);
        }
        self.view = Some(self.attributes.of(&self.path, Some(None)).await?);
        let held = std::mem::take(&mut self.held);
        Ok(Some(self.dressed(held)))
    }
}
