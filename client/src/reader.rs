//! Reads one open file: from local disk, from pages that are arriving, or by asking for them.
//!
//! Invariants:
//! - a read is short only at the end of the file;
//! - a read that lies in one page in memory is answered with a slice of it, without a copy;
//! - while it waits for a page a read holds no other page, only its reply buffer (see [`crate::buffers`]);
//! - no lock is held over I/O or a wait.

use crate::{
    buffers::ReplyBuffer,
    shared::{ClientShared, Tally},
    streams::{Limits, Streams},
};
use common::{
    Attr, Error, ErrorKind, Result,
    metrics::metrics,
    page::PageLoad,
    worker::{FileLease, PagedFile},
};
use parking_lot::Mutex;
use std::{
    ops::{Deref, Range},
    sync::Arc,
    time::{Duration, Instant},
};

/// How often in a row a page may be said to be on disk and not be read from there. Each time it was evicted meanwhile; a
/// store that says so all the time must not keep a reader for ever.
const ROUNDS: u32 = 64;

/// Bytes that were read. Drop it soon: it holds memory of the budget.
pub enum ReadData {
    /// Nothing: at the end of the file.
    Empty,
    /// A piece of a page in memory.
    Page(Arc<PageLoad>, Range<usize>),
    /// Bytes of its own.
    Owned(ReplyBuffer),
}

impl Deref for ReadData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            ReadData::Empty => &[],
            // The range was within what had arrived when this was made, and that never shrinks.
            ReadData::Page(load, range) => load.filled().get(range.clone()).unwrap_or(&[]),
            ReadData::Owned(buffer) => buffer,
        }
    }
}

impl std::fmt::Debug for ReadData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReadData({} bytes)", self.len())
    }
}

/// One open file. Reads may come from several threads at once.
pub struct FileReader {
    file: Arc<dyn PagedFile>,
    shared: Arc<ClientShared>,
    size: u64,
    page_size: u64,
    streams: Mutex<Streams>,
    /// What this handle counts for in [`ClientShared::streams`].
    tally: Mutex<Tally>,
}

impl FileReader {
    /// A reader of `file`.
    pub fn new(file: Arc<dyn PagedFile>, shared: Arc<ClientShared>) -> Self {
        let size = file.attr().size;
        let page_size = u64::from(file.page_size()).max(1);
        Self { size, page_size, streams: Mutex::new(Streams::new(size)), tally: Mutex::default(), file, shared }
    }

    /// The attributes of the version that is read.
    pub fn attr(&self) -> &Arc<Attr> {
        self.file.attr()
    }

    /// The file by page.
    pub fn paged(&self) -> &Arc<dyn PagedFile> {
        &self.file
    }

    /// The whole file on local disk, once it is there (for passthrough).
    pub fn export(&self) -> Option<FileLease> {
        self.file.export()
    }

    /// Reads up to `len` bytes at `offset` from what is on local disk or has arrived in memory; never waits for a
    /// storage. `None`: go on with [`read`](Self::read). Recognises the pattern and starts prefetch, so it is called
    /// once for each request, before `read`.
    pub fn read_now(&self, offset: u64, len: usize) -> Option<Result<ReadData>> {
        let Some(end) = self.end(offset, len) else { return Some(Ok(ReadData::Empty)) };
        self.observe(offset, len as u64);
        let page = offset / self.page_size;
        let last = (end - 1) / self.page_size;
        // Memory first: it costs neither a system call nor a copy.
        if let Some(data) = self.piece_of(page, offset, end) {
            return Some(Ok(data));
        }
        if !self.file.is_present(page) {
            // Look before taking a buffer: the common reasons to fail are that the page is nowhere, or too short yet.
            if last == page || self.file.page_now(page).is_none() {
                return None;
            }
        }
        if last != page && !self.is_here(last) {
            return None;
        }
        let mut buffer = self.shared.buffers.try_get((end - offset) as usize)?;
        let mut at = offset;
        while at < end {
            match self.copy_now(at, &mut buffer.bytes_mut()[(at - offset) as usize..]) {
                Ok(0) => return None,
                Ok(copied) => at += copied as u64,
                Err(error) => return Some(Err(error)),
            }
        }
        Some(Ok(ReadData::Owned(buffer)))
    }

    /// Reads up to `len` bytes at `offset`, waiting for the storage where needed. Short only at the end of the file.
    ///
    /// # Errors
    /// `Stale` when the version is gone; what the storage failed with after some tries, for passing failures.
    pub async fn read(&self, offset: u64, len: usize) -> Result<ReadData> {
        let Some(end) = self.end(offset, len) else { return Ok(ReadData::Empty) };
        let page = offset / self.page_size;
        let last = (end - 1) / self.page_size;
        if page == last {
            return self.read_in_page(page, offset, end).await;
        }
        // All of them get under way at once; then they are taken one after the other.
        self.file.prefetch(page, last - page + 1);
        let mut buffer = self.shared.buffers.get((end - offset) as usize).await?;
        let (mut at, mut rounds) = (offset, 0);
        while at < end {
            let copied = self.copy_now(at, &mut buffer.bytes_mut()[(at - offset) as usize..])?;
            if copied > 0 {
                at += copied as u64;
                rounds = 0;
                continue;
            }
            let page = at / self.page_size;
            let stop = end.min((page + 1) * self.page_size);
            match self.await_page(page, self.within(page, at, stop)).await? {
                Some(load) => {
                    let bytes = load.filled().get(self.within(page, at, stop)).ok_or_else(lost)?;
                    buffer.bytes_mut()[(at - offset) as usize..(stop - offset) as usize].copy_from_slice(bytes);
                    at = stop;
                }
                // On disk by now.
                None if rounds < ROUNDS => rounds += 1,
                None => return Err(lost()),
            }
        }
        Ok(ReadData::Owned(buffer))
    }

    /// [`read_now`](Self::read_now), and [`read`](Self::read) when that has no answer.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<ReadData> {
        match self.read_now(offset, len) {
            Some(answer) => answer,
            None => self.read(offset, len).await,
        }
    }

    async fn read_in_page(&self, page: u64, offset: u64, end: u64) -> Result<ReadData> {
        for _ in 0..=ROUNDS {
            if let Some(data) = self.piece_of(page, offset, end) {
                return Ok(data);
            }
            if self.file.is_present(page) {
                let mut buffer = self.shared.buffers.get((end - offset) as usize).await?;
                let copied = self.file.read_present(offset, buffer.bytes_mut())?;
                if copied as u64 == end - offset {
                    return Ok(ReadData::Owned(buffer));
                }
            }
            let range = self.within(page, offset, end);
            if let Some(load) = self.await_page(page, range.clone()).await? {
                return Ok(ReadData::Page(load, range));
            }
        }
        Err(lost())
    }

    /// Has the page fetched and waits for `range` of it, with several tries. `None`: it is on local disk by now.
    async fn await_page(&self, page: u64, range: Range<usize>) -> Result<Option<Arc<PageLoad>>> {
        let deadline = Instant::now() + self.shared.options.retry_deadline;
        let mut tries = 0;
        loop {
            let answer = match self.file.demand(page).await {
                Ok(Some(load)) => match load.wait(range.clone()).await {
                    Ok(_) => Ok(Some(load)),
                    Err(error) => Err(error),
                },
                Ok(None) if self.file.is_present(page) => Ok(None),
                // Stored and evicted (or found damaged) in between: counts as a try, so that this loop ends.
                Ok(None) => Err(lost()),
                Err(error) => Err(error),
            };
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let pause = Duration::from_millis(10 << tries.min(6));
            if !error.kind().is_transient()
                || tries >= self.shared.options.retries
                || Instant::now() + pause >= deadline
            {
                return Err(error);
            }
            tries += 1;
            tokio::time::sleep(pause).await;
        }
    }

    /// The end of a read cut at the end of the file; none when nothing is left to read.
    fn end(&self, offset: u64, len: usize) -> Option<u64> {
        let end = offset.saturating_add(len as u64).min(self.size);
        (offset < end).then_some(end)
    }

    /// A range of the file as a range within its page.
    fn within(&self, page: u64, from: u64, to: u64) -> Range<usize> {
        let start = page * self.page_size;
        (from - start) as usize..(to - start) as usize
    }

    fn is_here(&self, page: u64) -> bool {
        self.file.is_present(page) || self.file.page_now(page).is_some()
    }

    /// The range as a slice of one page in memory, if it lies in one and has arrived.
    fn piece_of(&self, page: u64, offset: u64, end: u64) -> Option<ReadData> {
        if (end - 1) / self.page_size != page {
            return None;
        }
        let load = self.file.page_now(page)?;
        let range = self.within(page, offset, end);
        (load.filled().len() >= range.end).then(|| ReadData::Page(load, range))
    }

    /// Copies what is here without waiting, from `at` on; 0 when the page at `at` is not, or not far enough.
    fn copy_now(&self, at: u64, buffer: &mut [u8]) -> Result<usize> {
        let copied = self.file.read_present(at, buffer)?;
        if copied > 0 {
            return Ok(copied);
        }
        let page = at / self.page_size;
        let Some(load) = self.file.page_now(page) else { return Ok(0) };
        let from = (at - page * self.page_size) as usize;
        let Some(bytes) = load.filled().get(from..) else { return Ok(0) };
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        Ok(len)
    }

    /// Tells the streams of a request, and has fetched what they ask for.
    fn observe(&self, offset: u64, len: u64) {
        if self.size <= self.page_size {
            return;
        }
        let limits: Limits = self.shared.limits(self.page_size);
        let (asks, active) = {
            let mut streams = self.streams.lock();
            let asks = streams.observe(offset, len, &limits);
            (asks, streams.active())
        };
        self.shared.count(&mut self.tally.lock(), active);
        for (index, ask) in asks.iter().enumerate() {
            let absent: Vec<u64> = (ask.first..ask.first + ask.count).filter(|page| !self.is_here(*page)).collect();
            if absent.is_empty() {
                continue;
            }
            let taken = self.file.prefetch(ask.first, ask.count).min(ask.count);
            let asked = absent.iter().filter(|page| **page < ask.first + taken).count();
            metrics().prefetch_bytes.inc_by(asked as u64 * self.page_size);
            if taken < ask.count {
                // Memory is short: the rest is asked for again when the reader has moved on. Nearest last, since each
                // refusal moves the stream back to its ask.
                let mut streams = self.streams.lock();
                for later in asks[index + 1..].iter().rev() {
                    streams.refused(later, 0);
                }
                streams.refused(ask, taken);
                return;
            }
        }
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.shared.uncount(self.tally.get_mut());
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Cancelled, "the page was dropped before it could be read")
}

#[cfg(test)]
mod tests;
