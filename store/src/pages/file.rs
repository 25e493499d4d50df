//! One stored file: which pages of one version are present, and the reads and writes of them.
//!
//! Each page has one atomic word: its checksum and a few flags. Words change under the file's state lock, apart from the
//! marks of use; readers look at them without it. A page is only ever written by who has set its BUSY flag.

mod descriptor;

use super::{
    dir::{CacheDir, on_disk},
    journal::Record,
    names::Key,
    order::Queued,
    shared::Shared,
};
use common::{FileId, Result, Version};
use descriptor::PageFile;
use nix::errno::Errno;
use parking_lot::{Mutex, RwLock};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicBool, AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
};

/// The bytes are on the file.
pub(super) const PRESENT: u64 = 1 << 32;
/// The checksum was compared, or computed, by this process.
pub(super) const VERIFIED: u64 = 1 << 33;
/// Somebody writes or punches the page.
pub(super) const BUSY: u64 = 1 << 34;
/// Read since eviction last looked.
pub(super) const USED: u64 = 1 << 35;

/// Pages in a chunk, the unit of the order of eviction.
pub(super) const CHUNK: u64 = 64;

/// What became of a page that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is present now.
    Written,
    /// It was present already.
    Present,
    /// Somebody else writes it just now.
    Busy,
    /// It was not stored: no space, or the directory is out of use.
    Bypassed,
}

/// 64 pages of a file.
pub(super) struct Chunk {
    pub words: Box<[AtomicU64]>,
    /// Time of the last use, by the store's logical clock.
    pub used: AtomicU64,
    /// Whether it is in the order of eviction; changes under the state lock.
    pub queued: AtomicBool,
}

/// What changes only under its lock.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Raised each time the file on disk is given up as a whole.
    pub generation: u64,
    pub present: u64,
    pub present_bytes: u64,
    pub unverified: u64,
    /// A descriptor of the file on disk was handed out: it is never punched or rewritten.
    pub exported: bool,
    /// The file on disk is being unlinked: nothing may be written meanwhile.
    pub unlinking: bool,
    /// A file was made on disk.
    pub on_disk: bool,
    /// The journal knows the file.
    pub journaled: bool,
}

/// The pages of one version of one file. There is at most one object for it in a store.
pub struct StoredFile {
    key: Key,
    version: Version,
    size: u64,
    page_size: u32,
    full_path: Box<[u8]>,
    dir: Arc<CacheDir>,
    shared: Arc<Shared>,
    /// Names the file in the journal.
    pub(super) slot: u64,
    chunks: Box<[OnceLock<Box<Chunk>>]>,
    /// Raised whenever a page is taken away, before its bytes go.
    pub(super) epoch: AtomicU64,
    pub(super) state: Mutex<State>,
    pub(super) open: RwLock<Option<Arc<PageFile>>>,
    /// The descriptor was used since it last might have been closed.
    fresh: AtomicBool,
    pub(super) leases: AtomicUsize,
    /// Weak reference to itself, for the order of eviction and the set of open files.
    me: std::sync::Weak<StoredFile>,
}

impl StoredFile {
    pub(super) fn new(
        key: Key,
        version: Version,
        size: u64,
        page_size: u32,
        full_path: Box<[u8]>,
        dir: Arc<CacheDir>,
        shared: &Arc<Shared>,
    ) -> Arc<Self> {
        let slot = dir.journal.new_slot();
        Self::with_slot(key, version, size, page_size, full_path, dir, shared, slot)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn with_slot(
        key: Key,
        version: Version,
        size: u64,
        page_size: u32,
        full_path: Box<[u8]>,
        dir: Arc<CacheDir>,
        shared: &Arc<Shared>,
        slot: u64,
    ) -> Arc<Self> {
        let chunks = size.div_ceil(u64::from(page_size)).div_ceil(CHUNK);
        Arc::new_cyclic(|me| Self {
            key,
            version,
            size,
            page_size,
            full_path,
            dir,
            shared: shared.clone(),
            slot,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            epoch: AtomicU64::new(0),
            state: Mutex::default(),
            open: RwLock::new(None),
            fresh: AtomicBool::new(false),
            leases: AtomicUsize::new(0),
            me: me.clone(),
        })
    }

    /// The file's identity.
    pub fn file_id(&self) -> FileId {
        self.key.id
    }

    /// The version of the bytes.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The full path in the under storage, as it was given when the file was first opened.
    pub fn full_path(&self) -> &[u8] {
        &self.full_path
    }

    /// Pages of the file.
    pub fn pages(&self) -> u64 {
        self.size.div_ceil(u64::from(self.page_size))
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn dir(&self) -> &Arc<CacheDir> {
        &self.dir
    }

    /// Bytes of this page.
    pub(super) fn page_len(&self, page: u64) -> u64 {
        (self.size - page * u64::from(self.page_size)).min(u64::from(self.page_size))
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = (usize, &Chunk)> {
        self.chunks.iter().enumerate().filter_map(|(at, chunk)| Some((at, &**chunk.get()?)))
    }

    pub(super) fn chunk(&self, at: usize) -> Option<&Chunk> {
        Some(&**self.chunks.get(at)?.get()?)
    }

    fn chunk_or_new(&self, at: usize) -> Option<&Chunk> {
        let pages = self.pages();
        let chunk = self.chunks.get(at)?.get_or_init(|| {
            let count = (pages - at as u64 * CHUNK).min(CHUNK);
            Box::new(Chunk {
                words: (0..count).map(|_| AtomicU64::new(0)).collect(),
                used: AtomicU64::new(0),
                queued: AtomicBool::new(false),
            })
        });
        Some(&**chunk)
    }

    pub(super) fn word(&self, page: u64) -> Option<&AtomicU64> {
        self.chunk((page / CHUNK) as usize)?.words.get((page % CHUNK) as usize)
    }

    /// Whether the page can be read from here.
    pub fn is_present(&self, page: u64) -> bool {
        !self.dir.health.is_down() && self.word(page).is_some_and(|word| word.load(Acquire) & PRESENT != 0)
    }

    /// Whether the directory takes pages now, and works well enough for a caller to wait for it.
    pub fn takes_writes(&self) -> bool {
        self.dir.health.state() == super::HealthState::Normal && !self.dir.closed.load(Relaxed)
    }

    /// How many pages are present.
    pub fn present(&self) -> u64 {
        self.state.lock().present
    }

    /// Whether what is missing would fit without anything else having to go, and the file is small enough to be worth it.
    pub fn has_room(&self) -> bool {
        let missing = (self.pages() - self.present()) * on_disk(u64::from(self.page_size));
        self.size <= self.dir.capacity / 8 && self.dir.has_room(missing)
    }

    /// Whether every page is present.
    pub fn is_complete(&self) -> bool {
        !self.dir.health.is_down() && self.state.lock().present == self.pages()
    }

    /// Notes a use of the whole file, for the order of eviction.
    pub fn touch(&self) {
        let now = self.shared.tick();
        for (_, chunk) in self.chunks() {
            chunk.used.store(now, Relaxed);
        }
    }

    /// Copies present bytes from `offset` on into `buffer`: the run of present pages, cut at the end of the file or of
    /// the buffer; 0 when there are none. Damage and failures of the disk count as absence.
    ///
    /// # Errors
    /// Only when this process has no descriptor or memory left for it.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if self.dir.health.is_down() || offset >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        let wanted = (self.size - offset).min(buffer.len() as u64);
        // A page that is taken away meanwhile makes one more turn; whoever is that unlucky three times asks the storage.
        for _ in 0..3 {
            let epoch = self.epoch.load(Acquire);
            let length = self.present_run(offset, wanted)? as usize;
            if length == 0 {
                return Ok(0);
            }
            let Some(open) = self.handle(false)? else { return Ok(0) };
            let result = read_full(&open.file, &mut buffer[..length], offset);
            fence(SeqCst);
            if self.epoch.load(Acquire) != epoch {
                continue;
            }
            match result {
                Ok(read) if read == length => {
                    self.note_use(offset, length as u64);
                    self.shared.counters.read(length as u64);
                    return Ok(length);
                }
                Ok(_) => {
                    tracing::warn!("page file of {} is shorter than its pages; it is given up", self.name());
                    self.shared.counters.corrupt();
                }
                Err(error) => self.dir.failed("read of a page", errno(&error)),
            }
            self.evict_all();
            return Ok(0);
        }
        Ok(0)
    }

    /// The length of the run of present pages from `offset` on, `wanted` at most; pages not verified yet are verified.
    fn present_run(&self, offset: u64, wanted: u64) -> Result<u64> {
        let page_size = u64::from(self.page_size);
        let end = offset + wanted;
        let mut at = offset;
        while at < end {
            let page = at / page_size;
            let Some(word) = self.word(page) else { break };
            let value = word.load(Acquire);
            if value & PRESENT == 0 || (value & VERIFIED == 0 && !self.verify(page)?) {
                break;
            }
            at = ((page + 1) * page_size).min(end);
        }
        Ok(at - offset)
    }

    pub(super) fn note_use(&self, offset: u64, length: u64) {
        let page_size = u64::from(self.page_size);
        let (first, last) = (offset / page_size, (offset + length - 1) / page_size);
        let now = self.shared.now();
        for page in first..=last {
            if let Some(chunk) = self.chunk((page / CHUNK) as usize) {
                if chunk.used.load(Relaxed) != now {
                    chunk.used.store(now, Relaxed);
                }
                if let Some(word) = chunk.words.get((page % CHUNK) as usize)
                    && word.load(Relaxed) & USED == 0
                {
                    word.fetch_or(USED, Relaxed);
                }
            }
        }
    }

    /// Compares a page's checksum, for its first use after a restart. What is wrong is dropped.
    pub(super) fn verify(&self, page: u64) -> Result<bool> {
        let Some(word) = self.word(page) else { return Ok(false) };
        let mut bytes = vec![0; self.page_len(page) as usize];
        for _ in 0..3 {
            let epoch = self.epoch.load(Acquire);
            let value = word.load(Acquire);
            if value & PRESENT == 0 {
                return Ok(false);
            }
            let Some(open) = self.handle(false)? else { return Ok(false) };
            let result = read_full(&open.file, &mut bytes, page * u64::from(self.page_size));
            fence(SeqCst);
            if self.epoch.load(Acquire) != epoch {
                continue;
            }
            match result {
                Ok(read) if read == bytes.len() && crc32c::crc32c(&bytes) == value as u32 => {
                    let mut state = self.state.lock();
                    if self.epoch.load(Acquire) == epoch && word.load(Relaxed) & (PRESENT | VERIFIED) == PRESENT {
                        word.fetch_or(VERIFIED, Release);
                        state.unverified -= 1;
                    }
                    return Ok(word.load(Relaxed) & PRESENT != 0);
                }
                Ok(_) => {
                    tracing::warn!("page {page} of {} is damaged on disk; it is fetched again", self.name());
                    self.shared.counters.corrupt();
                }
                Err(error) => self.dir.failed("read of a page", errno(&error)),
            }
            self.drop_page(page, epoch);
            return Ok(false);
        }
        Ok(false)
    }

    /// Writes a whole page and marks it present. Calls the system, evicts when there is no space; never waits for
    /// readers. The bytes must be those of this version.
    pub fn write_page(&self, page: u64, bytes: &[u8]) -> Stored {
        if page >= self.pages() || bytes.len() as u64 != self.page_len(page) {
            debug_assert!(false, "page {page} of {} bytes", bytes.len());
            return Stored::Bypassed;
        }
        let outcome = self.try_write(page, bytes);
        match outcome {
            Stored::Written => {
                self.shared.counters.stored_bytes.fetch_add(bytes.len() as u64, Relaxed);
            }
            Stored::Bypassed => self.shared.counters.bypassed(bytes.len() as u64),
            Stored::Present | Stored::Busy => {}
        }
        outcome
    }

    fn try_write(&self, page: u64, bytes: &[u8]) -> Stored {
        if self.dir.health.is_down() || self.dir.closed.load(Relaxed) {
            return Stored::Bypassed;
        }
        let at = (page / CHUNK) as usize;
        let Some(chunk) = self.chunk_or_new(at) else { return Stored::Bypassed };
        let word = &chunk.words[(page % CHUNK) as usize];
        if word.load(Acquire) & PRESENT != 0 {
            return Stored::Present;
        }
        let before = word.fetch_or(BUSY, Acquire);
        if before & BUSY != 0 {
            return Stored::Busy;
        }
        let busy = Busy(word);
        if before & PRESENT != 0 {
            return Stored::Present;
        }
        let cost = on_disk(bytes.len() as u64);
        let claimed = self.dir.claim(cost) || (self.dir.make_room(cost) && self.dir.claim(cost));
        if !claimed {
            return Stored::Bypassed;
        }
        let claim = Claim { dir: &self.dir, bytes: cost };
        let (open, generation) = match self.handle_for_write() {
            Ok(Some(open)) => open,
            Ok(None) => return Stored::Bypassed,
            Err(error) => {
                self.dir.failed("open of a page file", error);
                return Stored::Bypassed;
            }
        };
        let offset = page * u64::from(self.page_size);
        if let Err(error) = open.file.write_all_at(bytes, offset) {
            self.dir.failed("write of a page", errno(&error));
            // What was written of it shall not take space that nobody counts.
            if !self.state.lock().exported {
                let _ = super::evict::punch(&open.file, offset, bytes.len() as u64);
            }
            return Stored::Bypassed;
        }
        let crc = crc32c::crc32c(bytes);
        let mut state = self.state.lock();
        if state.generation != generation || state.unlinking {
            // The file was evicted meanwhile: the bytes went to one that is unlinked, and go with its descriptor.
            drop(state);
            drop(open);
            drop(claim);
            return Stored::Bypassed;
        }
        word.store(u64::from(crc) | PRESENT | VERIFIED, Release);
        std::mem::forget(busy);
        std::mem::forget(claim);
        if state.present == 0 {
            self.dir.file_count.fetch_add(1, Relaxed);
        }
        state.present += 1;
        state.present_bytes += cost;
        self.dir.page_count.fetch_add(1, Relaxed);
        let now = self.shared.tick();
        chunk.used.store(now, Relaxed);
        if !chunk.queued.swap(true, Relaxed)
            && let Some(file) = self.me.upgrade()
        {
            self.dir.order.push(now, Queued { file, chunk: at });
        }
        if state.journaled {
            self.dir.record(&Record::Pages { slot: self.slot, pages: &[(page, crc)] });
        } else {
            state.journaled = true;
            self.dir.record(&self.record(&[(page, crc)]));
        }
        Stored::Written
    }

    /// The record that makes the journal know this file.
    pub(super) fn record<'a>(&'a self, pages: &'a [(u64, u32)]) -> Record<'a> {
        Record::File {
            slot: self.slot,
            id: self.key.id,
            size: self.size,
            page_size: self.page_size,
            version: self.version.as_str().as_bytes(),
            path: &self.full_path,
            pages,
        }
    }

    /// The present pages and their checksums, for rewriting the journal.
    pub(super) fn present_pages(&self) -> Vec<(u64, u32)> {
        let mut pages = Vec::new();
        for (at, chunk) in self.chunks() {
            for (index, word) in chunk.words.iter().enumerate() {
                let value = word.load(Acquire);
                if value & PRESENT != 0 {
                    pages.push((at as u64 * CHUNK + index as u64, value as u32));
                }
            }
        }
        pages
    }

    /// Takes over what the journal says is present. Before the store is in use.
    pub(super) fn adopt(&self, pages: &[(u64, u32)]) {
        let mut state = self.state.lock();
        let mut bytes = 0;
        for (page, crc) in pages.iter().filter(|(page, _)| *page < self.pages()) {
            let at = (page / CHUNK) as usize;
            let Some(chunk) = self.chunk_or_new(at) else { continue };
            chunk.words[(page % CHUNK) as usize].store(u64::from(*crc) | PRESENT, Release);
            state.present += 1;
            bytes += on_disk(self.page_len(*page));
            let now = self.shared.tick();
            chunk.used.store(now, Relaxed);
            if !chunk.queued.swap(true, Relaxed)
                && let Some(file) = self.me.upgrade()
            {
                self.dir.order.push(now, Queued { file, chunk: at });
            }
        }
        state.unverified = state.present;
        state.present_bytes = bytes;
        state.on_disk = true;
        state.journaled = true;
        self.dir.adopt(bytes);
        self.dir.page_count.fetch_add(state.present, Relaxed);
        if state.present > 0 {
            self.dir.file_count.fetch_add(1, Relaxed);
        }
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(&self.full_path).into_owned()
    }
}

impl Drop for StoredFile {
    fn drop(&mut self) {
        self.shared.remove(self);
        let state = self.state.get_mut();
        if state.on_disk && state.present == 0 && !state.unlinking {
            // Made for a page that could not be written.
            let _ = self.dir.unlink(&self.key);
        }
    }
}

impl std::fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredFile({:?} {:?})", self.key.id, self.version)
    }
}

/// Clears the BUSY flag when a write is given up.
struct Busy<'a>(&'a AtomicU64);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_and(!BUSY, Release);
    }
}

/// Gives claimed space back when a write is given up.
struct Claim<'a> {
    dir: &'a CacheDir,
    bytes: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.dir.release(self.bytes);
    }
}

fn read_full(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<usize> {
    let mut total = 0;
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => break,
            Ok(read) => {
                total += read;
                offset += read as u64;
                buffer = &mut buffer[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}
