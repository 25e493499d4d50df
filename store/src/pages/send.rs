//! Pages that are sent on as they lie on disk: descriptor, place and checksum instead of bytes.

use super::file::{PRESENT, StoredFile, VERIFIED};
use common::worker::StoredPage;
use std::sync::{
    Arc,
    atomic::Ordering::{Acquire, Relaxed},
};

/// Puts a file last in the order of eviction while a page of it is on its way.
struct Sending(Arc<StoredFile>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.leases.fetch_sub(1, Relaxed);
    }
}

impl StoredFile {
    /// The page as it lies on disk, when it is present and its checksum was verified by this process.
    pub fn page_to_send(self: &Arc<Self>, page: u64) -> Option<StoredPage> {
        if !self.is_present(page) {
            return None;
        }
        let word = self.word(page)?;
        if word.load(Acquire) & VERIFIED == 0 && !self.verify(page).ok()? {
            return None;
        }
        let open = self.handle(false).ok()??;
        self.leases.fetch_add(1, Relaxed);
        let guard = Sending(self.clone());
        // Looked at again behind the guard: what is present now, on the descriptor that counts now, stays for a while.
        let value = word.load(Acquire);
        let current = self.open.read().as_ref().is_some_and(|now| Arc::ptr_eq(now, &open));
        if value & (PRESENT | VERIFIED) != PRESENT | VERIFIED || !current {
            return None;
        }
        let (offset, length) = (page * u64::from(self.page_size()), self.page_len(page));
        self.note_use(offset, length);
        Some(StoredPage {
            file: open.file.clone(),
            offset,
            length: length as usize,
            checksum: value as u32,
            guard: Box::new(guard),
        })
    }
}
