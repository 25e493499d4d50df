//! Everything at and below a place, directory by directory, in bounded memory but for the names of directories that
//! are still to be listed.

use super::place::Place;
use common::worker::Listing;
use common::{Attr, ErrorKind, UfsPath};
use std::sync::Arc;

/// Something that was found.
pub struct Found {
    /// Its path in the storage.
    pub path: UfsPath,
    /// What is known of it.
    pub attr: Arc<Attr>,
}

/// Directories that are still to be listed, the next one last, and the one that is being listed.
pub struct Walk<'p> {
    place: &'p Place,
    first: Option<Found>,
    pending: Vec<UfsPath>,
    listing: Option<(UfsPath, Box<dyn Listing>)>,
}

impl<'p> Walk<'p> {
    /// Begins at the place, which must be there.
    pub async fn of(place: &'p Place) -> anyhow::Result<Self> {
        let attr = place.attr().await?;
        let pending = if attr.is_dir() { vec![place.path.clone()] } else { Vec::new() };
        let first = Some(Found { path: place.path.clone(), attr: Arc::new(attr) });
        Ok(Self { place, first, pending, listing: None })
    }

    /// The next entries: first the place itself, then those of each directory, a directory before what is in it.
    pub async fn next(&mut self) -> anyhow::Result<Option<Vec<Found>>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(vec![first]));
        }
        loop {
            let Some((directory, listing)) = &mut self.listing else {
                let Some(directory) = self.pending.pop() else { return Ok(None) };
                match self.place.storage.list(&directory).await {
                    Ok(listing) => self.listing = Some((directory, listing)),
                    // It was there when its parent was listed; somebody removed it.
                    Err(error) if error.kind() == ErrorKind::NotFound && directory != self.place.path => {}
                    Err(error) => return Err(error.into()),
                }
                continue;
            };
            let Some(entries) = listing.next().await? else {
                self.listing = None;
                continue;
            };
            let mut found = Vec::with_capacity(entries.len());
            for entry in entries {
                let path = directory.join(&entry.name)?;
                let attr = match entry.attr {
                    Some(attr) => attr,
                    None => match self.place.storage.stat(&path).await {
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        attr => Arc::new(attr?),
                    },
                };
                if attr.is_dir() {
                    self.pending.push(path.clone());
                }
                found.push(Found { path, attr });
            }
            if !found.is_empty() {
                return Ok(Some(found));
            }
        }
    }
}
