//! Taking pages away: by eviction, and when they prove damaged.
//!
//! The order of steps is what readers rely on: words cleared, then the epoch raised, then the bytes punched or unlinked.

use super::{
    dir::{CacheDir, on_disk},
    file::{BUSY, CHUNK, PRESENT, StoredFile, USED, VERIFIED},
    journal::Record,
    order::Queued,
};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
};
use std::{
    fs::File,
    sync::atomic::{
        Ordering::{Acquire, Relaxed, Release, SeqCst},
        fence,
    },
};

/// Files of at most so many pages go as a whole: one unlink instead of holes.
const WHOLE: u64 = 16;

/// Frees the disk space of a range of a page file.
pub(super) fn punch(file: &File, offset: u64, length: u64) -> Result<(), Errno> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let offset = i64::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let length = i64::try_from(length).map_err(|_| Errno::EFBIG)?;
    loop {
        match fallocate(file, flags, offset, length) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

impl CacheDir {
    /// Evicts so that `bytes` can be claimed. False when another thread is at it, or nothing more can be evicted.
    pub fn make_room(&self, bytes: u64) -> bool {
        if !self.look_at_space() {
            return false;
        }
        let Some(_evicting) = self.evicting.try_lock() else { return false };
        let over = (self.used() + bytes).saturating_sub(self.capacity);
        let wanted = over.max(self.short_of(bytes)).max(self.surplus());
        if wanted == 0 {
            return true;
        }
        let freed = self.evict(wanted);
        self.look_at_space();
        freed > 0
    }

    /// Evicts what the watermarks and the disk's reserve ask for.
    pub fn evict_surplus(&self) {
        let _evicting = self.evicting.lock();
        let surplus = self.surplus();
        if surplus > 0 {
            self.evict(surplus);
            self.look_at_space();
        }
    }

    /// Evicts about `bytes`, least recently used first; returns how much. The caller holds `evicting`.
    fn evict(&self, bytes: u64) -> u64 {
        let (mut freed, mut leased) = (0, Vec::new());
        // Each chunk comes up at most twice: used since it was queued, and again in its true place.
        let mut turns = 2 * self.order.len() + 2;
        while freed < bytes && turns > 0 && !self.health.is_down() {
            turns -= 1;
            let Some((time, queued)) = self.order.pop() else { break };
            let Some(chunk) = queued.file.chunk(queued.chunk) else { continue };
            let used = chunk.used.load(Relaxed);
            if used > time {
                self.order.push(used, queued);
            } else if queued.file.leases.load(Relaxed) > 0 {
                leased.push(queued);
            } else {
                freed += queued.file.evict_chunk(queued.chunk, bytes - freed);
                self.requeue(queued);
            }
        }
        // Files that somebody reads through a descriptor are left alone as long as others can go: unlinking them frees
        // nothing before they are closed.
        for queued in leased {
            if freed < bytes {
                freed += queued.file.evict_chunk(queued.chunk, bytes - freed);
            }
            self.requeue(queued);
        }
        freed
    }

    /// Puts a chunk that still has pages back into the order.
    fn requeue(&self, queued: Queued) {
        let Some(chunk) = queued.file.chunk(queued.chunk) else { return };
        // Under the state lock: a page that is being stored now either sees the flag cleared or is seen here.
        let state = queued.file.state.lock();
        let keep = chunk.words.iter().any(|word| word.load(Relaxed) & PRESENT != 0);
        chunk.queued.store(keep, Relaxed);
        drop(state);
        if keep {
            self.order.push(chunk.used.load(Relaxed), queued);
        }
    }
}

impl StoredFile {
    /// Evicts about `bytes` from a chunk; from the whole file when it is small or may not be punched.
    fn evict_chunk(&self, at: usize, bytes: u64) -> u64 {
        let whole = self.pages() <= WHOLE || !self.dir().can_punch.load(Relaxed) || self.state.lock().exported;
        if whole { self.evict_all_counted() } else { self.evict_pages(at, bytes) }
    }

    fn evict_all_counted(&self) -> u64 {
        let (pages, bytes) = self.evict_all();
        self.dir().shared.counters.evicted(pages, bytes);
        bytes
    }

    /// Gives the file on disk up as a whole; returns its pages and bytes. Leases keep the bytes that they lead to.
    pub(super) fn evict_all(&self) -> (u64, u64) {
        let (open, pages, bytes) = {
            let mut state = self.state.lock();
            if state.unlinking || !state.on_disk {
                return (0, 0);
            }
            for (_, chunk) in self.chunks() {
                for word in &chunk.words {
                    word.fetch_and(BUSY, Release);
                }
            }
            let (pages, bytes) = (state.present, state.present_bytes);
            state.present = 0;
            state.present_bytes = 0;
            state.unverified = 0;
            state.generation += 1;
            state.exported = false;
            state.unlinking = true;
            if std::mem::take(&mut state.journaled) {
                self.dir().record(&Record::DropFile { slot: self.slot });
            }
            let open = self.open.write().take();
            self.epoch.fetch_add(1, SeqCst);
            (open, pages, bytes)
        };
        let dir = self.dir();
        dir.page_count.fetch_sub(pages, Relaxed);
        if pages > 0 {
            dir.file_count.fetch_sub(1, Relaxed);
        }
        if let Err(error) = dir.unlink(self.key()) {
            dir.failed("unlink of a page file", error);
        }
        {
            let mut state = self.state.lock();
            state.unlinking = false;
            state.on_disk = false;
        }
        match open {
            Some(open) => {
                dir.pin(bytes);
                open.unlinked_bytes.store(bytes, Relaxed);
            }
            None => dir.release(bytes),
        }
        (pages, bytes)
    }

    /// Punches pages of one chunk, about `bytes` of them, those first that were not read lately.
    fn evict_pages(&self, at: usize, bytes: u64) -> u64 {
        let Some(chunk) = self.chunk(at) else { return 0 };
        let page_size = u64::from(self.page_size());
        let (mut taken, mut freed) = (Vec::new(), 0);
        {
            let mut state = self.state.lock();
            if state.exported || state.unlinking {
                return 0;
            }
            for even_used in [false, true] {
                for (index, word) in chunk.words.iter().enumerate() {
                    let value = word.load(Acquire);
                    if freed >= bytes || value & PRESENT == 0 || value & BUSY != 0 || (value & USED != 0 && !even_used)
                    {
                        continue;
                    }
                    // Busy until its hole is punched, so that nobody writes it meanwhile.
                    if word.compare_exchange(value, BUSY, SeqCst, Relaxed).is_err() {
                        continue;
                    }
                    let page = at as u64 * CHUNK + index as u64;
                    state.present -= 1;
                    state.present_bytes -= on_disk(self.page_len(page));
                    state.unverified -= u64::from(value & VERIFIED == 0);
                    freed += on_disk(self.page_len(page));
                    taken.push(page);
                }
            }
            for word in &chunk.words {
                word.fetch_and(!USED, Relaxed);
            }
            self.epoch.fetch_add(1, SeqCst);
            if !taken.is_empty() && state.journaled {
                self.dir().record(&Record::DropPages { slot: self.slot, pages: &taken });
            }
            if !taken.is_empty() && state.present == 0 {
                self.dir().file_count.fetch_sub(1, Relaxed);
            }
        }
        fence(SeqCst);
        let empty = self.state.lock().present == 0;
        let dir = self.dir();
        let count = taken.len() as u64;
        dir.page_count.fetch_sub(count, Relaxed);
        let mut punched = true;
        if !empty && !taken.is_empty() {
            punched = match dir.open_pages(self.key(), false) {
                Ok(Some(file)) => runs(&mut taken.clone()).into_iter().all(|(first, pages)| {
                    match punch(&file, first * page_size, pages * page_size) {
                        Ok(()) => true,
                        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                            dir.can_punch.store(false, Relaxed);
                            false
                        }
                        Err(error) => {
                            dir.failed("punch of a page", error);
                            false
                        }
                    }
                }),
                Ok(None) => false,
                Err(error) => {
                    dir.failed("open of a page file", error);
                    false
                }
            };
        }
        for page in taken {
            chunk.words[(page % CHUNK) as usize].fetch_and(!BUSY, Release);
        }
        dir.release(freed);
        dir.shared.counters.evicted(count, freed);
        if empty || !punched {
            // Nothing left, or the space would be lost to holes that cannot be made.
            freed += self.evict_all_counted();
        }
        freed
    }

    /// Drops one damaged page, unless something changed since `epoch`.
    pub(super) fn drop_page(&self, page: u64, epoch: u64) {
        let Some(chunk) = self.chunk((page / CHUNK) as usize) else { return };
        let word = &chunk.words[(page % CHUNK) as usize];
        let mut state = self.state.lock();
        if self.epoch.load(Acquire) != epoch || state.unlinking {
            return;
        }
        if state.exported || state.present == 1 {
            drop(state);
            self.evict_all();
            return;
        }
        let value = word.load(Acquire);
        if value & PRESENT == 0 {
            return;
        }
        word.fetch_and(BUSY, Release);
        state.present -= 1;
        state.unverified -= u64::from(value & VERIFIED == 0);
        let bytes = on_disk(self.page_len(page));
        state.present_bytes -= bytes;
        self.epoch.fetch_add(1, SeqCst);
        self.dir().record(&Record::DropPages { slot: self.slot, pages: &[page] });
        drop(state);
        self.dir().page_count.fetch_sub(1, Relaxed);
        self.dir().release(bytes);
    }
}

/// Sorts page numbers into runs of (first, count).
fn runs(pages: &mut [u64]) -> Vec<(u64, u64)> {
    pages.sort_unstable();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == *page => *count += 1,
            _ => runs.push((*page, 1)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    #[test]
    fn neighbours_are_punched_together() {
        assert_eq!(super::runs(&mut [7, 2, 3, 9, 8, 1]), [(1, 3), (7, 3)]);
        assert_eq!(super::runs(&mut []), []);
    }
}
