//! The descriptor of a stored file: opened when it is needed, closed when it is idle, handed out as a lease.

use super::{PRESENT, StoredFile, VERIFIED, errno};
use crate::pages::dir::CacheDir;
use common::{Error, Result, worker::FileLease};
use nix::errno::Errno;
use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
};

/// An open page file, with the space that its bytes take once it is unlinked.
pub(in crate::pages) struct PageFile {
    pub file: Arc<File>,
    dir: Arc<CacheDir>,
    pub unlinked_bytes: AtomicU64,
}

impl Drop for PageFile {
    fn drop(&mut self) {
        let bytes = self.unlinked_bytes.load(Relaxed);
        if bytes > 0 {
            self.dir.unpin(bytes);
        }
    }
}

impl StoredFile {
    /// The whole file, once every page is present and verified; see [`FileLease`]. It calls the system only when the
    /// descriptor is not open, or to verify pages after a restart.
    pub fn export(&self) -> Option<FileLease> {
        if self.size == 0 || !self.is_complete() {
            return None;
        }
        if self.state.lock().unverified > 0 {
            let unverified =
                |page: &u64| self.word(*page).is_some_and(|word| word.load(Acquire) & (PRESENT | VERIFIED) == PRESENT);
            for page in (0..self.pages()).filter(unverified) {
                if !self.verify(page).unwrap_or(false) {
                    return None;
                }
            }
        }
        let open = self.handle(false).ok()??;
        let file = self.me.upgrade()?;
        {
            let mut state = self.state.lock();
            let current = self.open.read().as_ref().is_some_and(|now| Arc::ptr_eq(now, &open));
            if state.present != self.pages() || state.unverified > 0 || state.unlinking || !current {
                return None;
            }
            state.exported = true;
            self.leases.fetch_add(1, Relaxed);
        }
        self.touch();
        let held = open.file.clone();
        Some(FileLease::new(held, self.version.clone(), Arc::new(Lease { file, _open: open })))
    }

    /// The descriptor; opened when it is not. `None`: there is nothing on disk (any more).
    pub(in crate::pages) fn handle(&self, create: bool) -> Result<Option<Arc<PageFile>>> {
        match self.try_handle(create) {
            Ok(found) => Ok(found.map(|(open, _)| open)),
            Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => {
                Err(Error::os(format_args!("open of the page file of {}", self.name()), error as i32))
            }
            Err(error) => {
                self.dir.failed("open of a page file", error);
                self.evict_all();
                Ok(None)
            }
        }
    }

    pub(super) fn handle_for_write(&self) -> Result<Option<(Arc<PageFile>, u64)>, Errno> {
        // The first try may find that the file on disk was lost and give it up; the second makes it anew.
        match self.try_handle(true)? {
            Some(found) => Ok(Some(found)),
            None => self.try_handle(true),
        }
    }

    fn try_handle(&self, create: bool) -> Result<Option<(Arc<PageFile>, u64)>, Errno> {
        if !create && let Some(open) = &*self.open.read() {
            if !self.fresh.load(Relaxed) {
                self.fresh.store(true, Relaxed);
            }
            return Ok(Some((open.clone(), 0)));
        }
        let (generation, complete, create) = {
            let state = self.state.lock();
            if state.unlinking {
                return Ok(None);
            }
            if let Some(open) = &*self.open.read() {
                return Ok(Some((open.clone(), state.generation)));
            }
            (state.generation, state.present == self.pages(), create && !state.on_disk)
        };
        let Some(file) = self.dir.open_pages(&self.key, create)? else {
            // Evicted since we looked: then nothing is wrong. Otherwise somebody removed the file.
            let lost = {
                let state = self.state.lock();
                state.generation == generation && state.on_disk && !state.unlinking
            };
            if lost {
                self.shared.counters.corrupt();
                self.evict_all();
            }
            return Ok(None);
        };
        if complete && file.metadata().map_err(|error| errno(&error))?.size() < self.size {
            if self.state.lock().generation != generation {
                return Ok(None);
            }
            tracing::warn!("page file of {} is shorter than its pages; it is given up", self.name());
            self.shared.counters.corrupt();
            self.evict_all();
            return Ok(None);
        }
        let open =
            Arc::new(PageFile { file: Arc::new(file), dir: self.dir.clone(), unlinked_bytes: AtomicU64::new(0) });
        {
            let mut state = self.state.lock();
            if state.generation != generation || state.unlinking {
                return Ok(None);
            }
            let mut slot = self.open.write();
            if let Some(other) = &*slot {
                return Ok(Some((other.clone(), generation)));
            }
            *slot = Some(open.clone());
            state.on_disk = true;
            self.fresh.store(true, Relaxed);
        }
        if let Some(me) = self.me.upgrade() {
            self.shared.opened(&me);
        }
        Ok(Some((open, generation)))
    }

    /// Closes the descriptor unless it was used lately (then only the mark goes, if not `forced`) or a lease needs it.
    /// False: it stays open.
    pub(in crate::pages) fn close_idle(&self, forced: bool) -> bool {
        if self.leases.load(Relaxed) > 0 || (self.fresh.swap(false, Relaxed) && !forced) {
            return false;
        }
        let closed = {
            // Under the state lock, so that no export is half way.
            let _state = self.state.lock();
            if self.leases.load(Relaxed) > 0 {
                return false;
            }
            self.open.write().take()
        };
        drop(closed);
        true
    }
}

/// Keeps an exported file from eviction, and its space counted, while somebody holds it.
struct Lease {
    file: Arc<StoredFile>,
    _open: Arc<PageFile>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.file.touch();
        self.file.leases.fetch_sub(1, Relaxed);
    }
}
