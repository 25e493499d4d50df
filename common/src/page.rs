//! A page on its way: one buffer that one writer fills from the front while any number of readers take what has arrived.
//!
//! This is what lets the first byte of a cold file reach its reader before the page is complete, and what lets several
//! readers, the page store and a reply share one copy of the bytes.
//!
//! Invariants:
//! - bytes below [`PageLoad::filled`] never change; only the one [`PageWriter`] touches those above;
//! - a load ends exactly once: complete (all bytes there) or failed; a writer that is dropped before has failed it;
//! - the buffer's memory is covered by a [`Reservation`] as long as the load lives; idle buffers in the pool are covered
//!   too: those in use and those kept together never exceed the budget's limit.

use crate::{
    budget::{MemoryBudget, Purpose, Reservation},
    error::{Error, ErrorKind, Result},
};
use parking_lot::Mutex;
use std::{
    alloc::{Layout, alloc, dealloc},
    ops::Range,
    ptr::NonNull,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;

const ALIGN: usize = 4096;

/// A piece of memory, a multiple of 4 KiB, aligned for O_DIRECT.
struct Buffer {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a Buffer owns its allocation exclusively, like a Box<[u8]>.
unsafe impl Send for Buffer {}
// SAFETY: a shared Buffer gives no access to its bytes; access goes through PageLoad, which orders it.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn layout(capacity: usize) -> Option<Layout> {
        Layout::from_size_align(capacity, ALIGN).ok()
    }

    fn allocate(capacity: usize) -> Option<Self> {
        let layout = Self::layout(capacity)?;
        // SAFETY: the capacity is a positive multiple of ALIGN (see PagePool::class), so the layout has a size.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        Some(Self { start, capacity })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.capacity) {
            // SAFETY: allocated in `allocate` with this very layout, and freed once.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Gives out page buffers within a [`MemoryBudget`], and keeps some for reuse (fresh memory costs page faults).
pub struct PagePool {
    budget: Arc<MemoryBudget>,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    buffers: Vec<Buffer>,
    bytes: usize,
}

impl PagePool {
    /// A pool over `budget`.
    pub fn new(budget: Arc<MemoryBudget>) -> Arc<Self> {
        Arc::new(Self { budget, idle: Mutex::default() })
    }

    /// The budget that the buffers are counted in.
    pub fn budget(&self) -> &Arc<MemoryBudget> {
        &self.budget
    }

    /// A buffer for `len` bytes without waiting; none when memory is short.
    pub fn try_load(self: &Arc<Self>, len: usize, purpose: Purpose) -> Option<(Arc<PageLoad>, PageWriter)> {
        let reservation = self.budget.try_reserve(Self::class(len), purpose)?;
        self.load(len, reservation).ok()
    }

    /// A buffer for `len` bytes, waiting in line for memory. The caller holds no other page (see [`crate::budget`]).
    pub async fn demand_load(self: &Arc<Self>, len: usize) -> Result<(Arc<PageLoad>, PageWriter)> {
        let reservation = self.budget.reserve(Self::class(len)).await?;
        self.load(len, reservation)
    }

    /// Gives the memory of idle buffers back to the system. Called when nothing was read for a while.
    pub fn trim(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
    }

    /// Bytes kept for reuse.
    pub fn idle_bytes(&self) -> usize {
        self.idle.lock().bytes
    }

    fn class(len: usize) -> usize {
        len.max(1).div_ceil(ALIGN) * ALIGN
    }

    fn load(self: &Arc<Self>, len: usize, reservation: Reservation) -> Result<(Arc<PageLoad>, PageWriter)> {
        let capacity = Self::class(len);
        let buffer = self
            .take(capacity)
            .ok_or_else(|| Error::new(ErrorKind::NoMemory, format!("no memory for a page of {len} bytes")))?;
        let load = Arc::new(PageLoad {
            buffer: Some(buffer),
            len,
            filled: AtomicUsize::new(0),
            end: OnceLock::new(),
            arrived: Notify::new(),
            pool: self.clone(),
            reservation: Some(reservation),
        });
        let writer = PageWriter { load: Some(load.clone()), at: 0 };
        Ok((load, writer))
    }

    fn take(&self, capacity: usize) -> Option<Buffer> {
        let (found, surplus) = {
            let mut idle = self.idle.lock();
            let found = idle.buffers.iter().rposition(|buffer| buffer.capacity == capacity);
            let found = found.map(|at| idle.buffers.swap_remove(at));
            if let Some(buffer) = &found {
                idle.bytes -= buffer.capacity;
            }
            (found, self.surplus(&mut idle))
        };
        drop(surplus);
        found.or_else(|| Buffer::allocate(capacity))
    }

    /// Takes out idle buffers until those in use (this one's reservation included) and those kept fit the limit.
    fn surplus(&self, idle: &mut Idle) -> Vec<Buffer> {
        let mut out = Vec::new();
        while !idle.buffers.is_empty() && self.budget.used() + idle.bytes > self.budget.limit() {
            if let Some(buffer) = idle.buffers.pop() {
                idle.bytes -= buffer.capacity;
                out.push(buffer);
            }
        }
        out
    }

    fn give_back(&self, buffer: Buffer, reservation: Reservation) {
        let surplus = {
            let mut idle = self.idle.lock();
            idle.bytes += buffer.capacity;
            idle.buffers.push(buffer);
            // The reservation ends only now, under the lock: in use plus idle counts this buffer at least once.
            drop(reservation);
            self.surplus(&mut idle)
        };
        drop(surplus);
    }
}

/// A page that is being filled, or is full. Shared by `Arc`.
pub struct PageLoad {
    buffer: Option<Buffer>,
    len: usize,
    filled: AtomicUsize,
    end: OnceLock<Result<()>>,
    arrived: Notify,
    pool: Arc<PagePool>,
    reservation: Option<Reservation>,
}

impl PageLoad {
    /// Bytes that the page will have.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the page has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes that have arrived so far.
    pub fn filled(&self) -> &[u8] {
        let filled = self.filled.load(Ordering::Acquire);
        match &self.buffer {
            // SAFETY: bytes below `filled` were written before the Release store of `filled` and never change after it.
            Some(buffer) => unsafe { std::slice::from_raw_parts(buffer.start.as_ptr(), filled) },
            None => &[],
        }
    }

    /// How it ended; none while it is being filled.
    pub fn end(&self) -> Option<&Result<()>> {
        self.end.get()
    }

    /// Whether all bytes are there.
    pub fn is_complete(&self) -> bool {
        matches!(self.end.get(), Some(Ok(())))
    }

    /// Waits until the bytes of `range` (within the page) are there and returns them, or why they will not come.
    pub async fn wait(&self, range: Range<usize>) -> Result<&[u8]> {
        debug_assert!(range.start <= range.end && range.end <= self.len);
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            if let Some(bytes) = self.filled().get(range.clone()) {
                return Ok(bytes);
            }
            match self.end.get() {
                Some(Err(error)) => return Err(error.clone()),
                // Complete and yet too short for the range: the range lies outside the page.
                Some(Ok(())) => {
                    return Err(Error::new(ErrorKind::InvalidArgument, "range outside the page"));
                }
                None => arrived.await,
            }
        }
    }

    /// Waits until it has ended.
    pub async fn wait_end(&self) -> Result<&[u8]> {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            match self.end.get() {
                Some(Ok(())) => return Ok(self.filled()),
                Some(Err(error)) => return Err(error.clone()),
                None => arrived.await,
            }
        }
    }
}

impl Drop for PageLoad {
    fn drop(&mut self) {
        if let (Some(buffer), Some(reservation)) = (self.buffer.take(), self.reservation.take()) {
            self.pool.give_back(buffer, reservation);
        }
    }
}

impl std::fmt::Debug for PageLoad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageLoad({} of {})", self.filled.load(Ordering::Relaxed), self.len)
    }
}

/// The one writer of a [`PageLoad`]. Dropped before [`finish`](Self::finish), it fails the load (`Cancelled`).
#[derive(Debug)]
pub struct PageWriter {
    load: Option<Arc<PageLoad>>,
    at: usize,
}

impl PageWriter {
    /// Bytes still missing.
    pub fn missing(&self) -> usize {
        self.load.as_ref().map_or(0, |load| load.len - self.at)
    }

    /// Appends as much of `bytes` as the page still takes and wakes the readers; returns how much that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let Some(load) = &self.load else { return 0 };
        let take = bytes.len().min(load.len - self.at);
        if let Some(buffer) = &load.buffer {
            // SAFETY: at + take <= len <= capacity; the bytes from `at` on are touched by this only writer, and no reader
            // looks at them before the Release store below.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.start.as_ptr().add(self.at), take);
            }
        }
        self.at += take;
        load.filled.store(self.at, Ordering::Release);
        load.arrived.notify_waiters();
        take
    }

    /// Lets `fill` write into the rest of the page (a read(2), say); it returns how many bytes from the front it wrote.
    ///
    /// # Errors
    /// Whatever `fill` fails with; the page is then as before.
    pub fn fill_with(&mut self, fill: impl FnOnce(&mut [u8]) -> Result<usize>) -> Result<usize> {
        let Some(load) = &self.load else { return Ok(0) };
        let Some(buffer) = &load.buffer else { return Ok(0) };
        let rest = load.len - self.at;
        // SAFETY: within the allocation, and touched by this only writer. The bytes are initialised first: fresh
        // memory has no defined content, and a &mut [u8] must.
        let space = unsafe {
            let start = buffer.start.as_ptr().add(self.at);
            std::ptr::write_bytes(start, 0, rest);
            std::slice::from_raw_parts_mut(start, rest)
        };
        let wrote = fill(space)?.min(rest);
        self.at += wrote;
        load.filled.store(self.at, Ordering::Release);
        load.arrived.notify_waiters();
        Ok(wrote)
    }

    /// Ends the load: complete when every byte is there, else failed (`Corrupt`: the storage gave too few).
    pub fn finish(mut self) -> Result<()> {
        let Some(load) = self.load.take() else { return Ok(()) };
        let end = if self.at == load.len {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Corrupt,
                format!("the storage gave {} bytes where {} were due", self.at, load.len),
            ))
        };
        conclude(&load, end.clone());
        end
    }

    /// Ends the load with this failure.
    pub fn fail(mut self, error: Error) {
        if let Some(load) = self.load.take() {
            conclude(&load, Err(error));
        }
    }
}

impl Drop for PageWriter {
    fn drop(&mut self) {
        if let Some(load) = self.load.take() {
            conclude(&load, Err(Error::new(ErrorKind::Cancelled, "the fetch of this page was given up")));
        }
    }
}

fn conclude(load: &PageLoad, end: Result<()>) {
    // Set once: the writer is unique and gives up its load when it ends.
    let _ = load.end.set(end);
    load.arrived.notify_waiters();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn readers_get_what_has_arrived_before_the_page_is_complete() {
        let pool = PagePool::new(MemoryBudget::new(1 << 20));
        let (load, mut writer) = pool.try_load(10, Purpose::Demand).unwrap();
        assert_eq!(writer.append(b"hello"), 5);
        assert_eq!(load.wait(1..4).await.unwrap(), b"ell");
        let late = tokio::spawn({
            let load = load.clone();
            async move { load.wait(4..10).await.map(<[u8]>::to_vec) }
        });
        assert_eq!(writer.append(b" worlds"), 5, "no more than the page takes");
        writer.finish().unwrap();
        assert_eq!(late.await.unwrap().unwrap(), b"o worl");
        assert!(load.is_complete());
    }

    #[tokio::test]
    async fn a_short_body_and_a_dropped_writer_fail_every_reader() {
        let pool = PagePool::new(MemoryBudget::new(1 << 20));
        let (load, mut writer) = pool.try_load(10, Purpose::Demand).unwrap();
        writer.append(b"abc");
        assert_eq!(writer.finish().unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(load.wait(0..10).await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(load.wait(0..3).await.unwrap(), b"abc", "what has arrived is right all the same");
        let (load, writer) = pool.try_load(10, Purpose::Demand).unwrap();
        drop(writer);
        assert_eq!(load.wait_end().await.unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[test]
    fn buffers_in_use_and_idle_ones_stay_within_the_limit() {
        let pool = PagePool::new(MemoryBudget::new(16 * ALIGN));
        let many: Vec<_> = (0..16).map(|_| pool.try_load(ALIGN, Purpose::Demand).unwrap()).collect();
        assert!(pool.try_load(1, Purpose::Demand).is_none());
        drop(many);
        assert_eq!(pool.idle_bytes(), 16 * ALIGN);
        let large = pool.try_load(9 * ALIGN, Purpose::Demand).unwrap();
        assert!(pool.budget().used() + pool.idle_bytes() <= pool.budget().limit());
        drop(large);
        assert!(pool.idle_bytes() <= pool.budget().limit());
        pool.trim();
        assert_eq!(pool.idle_bytes(), 0);
    }
}
