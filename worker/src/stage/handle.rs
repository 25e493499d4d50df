//! The handles that write a staged file, and the pages that read it before it is in the storage.

use super::{Stage, file::Staged};
use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, FileId, Result,
    change::WriteHandle,
    page::PageLoad,
    worker::{FileLease, PagedFile},
};
use std::sync::{Arc, Weak};

/// An open file. The file goes from the stage with its last handle, once it is in the storage.
pub(crate) struct Handle {
    staged: Arc<Staged>,
    stage: Weak<Stage>,
}

impl Handle {
    pub(crate) fn new(stage: &Arc<Stage>, staged: &Arc<Staged>) -> Self {
        staged.state.lock().opens += 1;
        Self { staged: staged.clone(), stage: Arc::downgrade(stage) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let late = {
            let mut state = self.staged.state.lock();
            state.opens -= 1;
            state.opens == 0 && state.is_dirty()
        };
        let Some(stage) = self.stage.upgrade() else { return };
        if late {
            // Written through a mapping after the close, or kept after a failure.
            self.staged.retry_later(&stage);
        } else {
            stage.let_go(&self.staged);
        }
    }
}

#[async_trait]
impl WriteHandle for Handle {
    fn attr(&self) -> Arc<Attr> {
        Arc::new(self.staged.attr())
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.staged.read(offset, length).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<()> {
        self.staged.write(offset, data).await
    }

    async fn append(&self, data: Bytes) -> Result<()> {
        self.staged.append(data).await
    }

    async fn truncate(&self, size: u64) -> Result<()> {
        self.staged.truncate(size).await
    }

    async fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        self.staged.allocate(mode, offset, length).await
    }

    async fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        self.staged.seek(offset, hole)
    }

    async fn flush(&self) -> Result<()> {
        let stage = self.staged.stage()?;
        if stage.options.writeback {
            if self.staged.state.lock().is_dirty() {
                {
                    let _alone = self.staged.gate.write().await;
                    self.staged.note(&stage, true).await?;
                }
                self.staged.retry_later(&stage);
            }
            return Ok(());
        }
        self.staged.publish_told(false).await
    }

    async fn sync(&self, _data_only: bool) -> Result<()> {
        self.staged.publish_told(true).await
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }
}

/// A file that is not in the storage as it is here, opened for reading.
pub(crate) struct StagedPages {
    staged: Handle,
    id: FileId,
    attr: Arc<Attr>,
    page_size: u32,
}

impl StagedPages {
    pub(crate) fn new(stage: &Arc<Stage>, staged: &Arc<Staged>, page_size: u32) -> Self {
        let attr = Arc::new(staged.attr());
        let id = stage.storage.uri().file_id(&staged.path());
        Self { staged: Handle::new(stage, staged), id, attr, page_size }
    }
}

#[async_trait]
impl PagedFile for StagedPages {
    fn file_id(&self) -> FileId {
        self.id
    }

    fn attr(&self) -> &Arc<Attr> {
        &self.attr
    }

    fn page_size(&self) -> u32 {
        self.page_size
    }

    fn read_present(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let left = usize::try_from(self.attr.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        self.staged.staged.read_now(offset, &mut buffer[..length])
    }

    fn is_present(&self, page: u64) -> bool {
        let start = page * u64::from(self.page_size);
        self.staged.staged.is_here(start..(start + u64::from(self.page_size)).min(self.attr.size))
    }

    fn page_now(&self, _page: u64) -> Option<Arc<PageLoad>> {
        None
    }

    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>> {
        let start = page * u64::from(self.page_size);
        let end = (start + u64::from(self.page_size)).min(self.attr.size);
        if self.staged.staged.bring(start..end).await? {
            return Ok(None);
        }
        // There is no room in the stage: this reader gets the page in memory.
        let Some(stage) = self.staged.stage.upgrade() else { return Ok(None) };
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        let (load, mut writer) = stage.pages.demand_load(length).await?;
        writer.append(&self.staged.staged.read(start, length).await?);
        writer.finish()?;
        Ok(Some(load))
    }

    fn prefetch(&self, _first: u64, count: u64) -> u64 {
        count
    }

    fn export(&self) -> Option<FileLease> {
        None
    }

    async fn complete(&self) -> Result<()> {
        Err(common::Error::new(common::ErrorKind::Unsupported, "a file that is being written is not exported"))
    }
}
