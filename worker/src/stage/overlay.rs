//! Listings with the files that are written and not in the storage yet.

use super::Stage;
use async_trait::async_trait;
use common::{
    Attr, ErrorKind, FileKind, Result, UfsPath,
    worker::{DirEntry, Listing},
};
use std::{collections::BTreeMap, sync::Arc};

/// `listing` of `path` with what the stage has of it.
pub(crate) fn unpublished(
    stage: &Stage,
    path: &UfsPath,
    listing: Result<Box<dyn Listing>>,
) -> Result<Box<dyn Listing>> {
    let files = stage.unpublished(path);
    if files.is_empty() {
        return listing;
    }
    match listing {
        Ok(inner) => Ok(Box::new(Overlay { inner: Some(inner), files })),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Box::new(Overlay { inner: None, files })),
        Err(error) => Err(error),
    }
}

struct Overlay {
    inner: Option<Box<dyn Listing>>,
    files: BTreeMap<Box<[u8]>, Arc<Attr>>,
}

#[async_trait]
impl Listing for Overlay {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        if let Some(inner) = &mut self.inner {
            if let Some(mut batch) = inner.next().await? {
                for entry in &mut batch {
                    if let Some(attr) = self.files.remove(&entry.name) {
                        entry.kind = attr.kind;
                        entry.attr = Some(attr);
                    }
                }
                return Ok(Some(batch));
            }
            self.inner = None;
        }
        let rest = std::mem::take(&mut self.files);
        let entry = |(name, attr)| DirEntry { name, kind: FileKind::File, attr: Some(attr) };
        let rest: Vec<DirEntry> = rest.into_iter().map(entry).collect();
        Ok((!rest.is_empty()).then_some(rest))
    }
}
