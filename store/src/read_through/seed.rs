//! Pages that came with a lookup: the whole of a small file, without a request of its own.

use super::open::Pages;
use crate::Stored;
use common::budget::Purpose;

impl Pages {
    /// Takes over `bytes`, the first ones of this version, when they are all of a file of one page; else nothing.
    pub fn seed(&self, bytes: &[u8]) {
        if self.count() != 1 || bytes.len() < self.page_len(0) {
            return;
        }
        let bytes = &bytes[..self.page_len(0)];
        if self.writes_inline()
            && let Some(stored) = &self.stored
            && matches!(stored.write_page(0, bytes), Stored::Written | Stored::Present | Stored::Busy)
        {
            return;
        }
        // Not stored: kept in memory while there is plenty, since a reader is likely to follow.
        let Some((load, mut writer)) = self.reads.pool.try_load(bytes.len(), Purpose::Prefetch) else { return };
        if !self.enter_if_absent(0, &load) {
            return;
        }
        writer.append(bytes);
        if writer.finish().is_ok() {
            self.settle(0, load);
        }
    }
}
