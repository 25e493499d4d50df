//! Bytes that came with a lookup: the whole of a small file, without a request of its own, or the beginning of a longer
//! one, so that its first read need not wait for another round trip.

use super::open::{Head, Pages};
use crate::Stored;
use bytes::Bytes;
use common::budget::Purpose;

impl Pages {
    /// Takes over `bytes`, the first ones of this version: all of a file of one page is stored; of a longer file they are
    /// kept, while there is memory, until its first page is fetched.
    pub fn seed(&self, bytes: &Bytes) {
        if self.count() == 0 || bytes.is_empty() {
            return;
        }
        if bytes.len() < self.page_len(0) {
            if !self.is_present(0)
                && let Some(memory) = self.reads.pool.budget().try_reserve(bytes.len(), Purpose::Prefetch)
            {
                self.put_head(Head { bytes: bytes.clone(), _memory: memory });
            }
            return;
        }
        if self.count() > 1 {
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
