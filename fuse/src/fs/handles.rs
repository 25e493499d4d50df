//! Open handles: numbers that the kernel holds for open files and directories, and the limit on them.

use common::{Error, ErrorKind, Result};
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

const SHARDS: usize = 16;

/// How many handles may be open at once.
#[derive(Debug)]
pub struct Limit {
    used: AtomicUsize,
    most: usize,
}

impl Limit {
    /// At most `most` handles.
    pub fn new(most: usize) -> Self {
        Self { used: AtomicUsize::new(0), most }
    }

    /// Counts one more. Fails with ENFILE when that is one too many; then nothing was counted.
    pub fn take(&self) -> Result<()> {
        if self.used.fetch_add(1, Ordering::Relaxed) < self.most {
            return Ok(());
        }
        self.give();
        Err(Error::new(
            ErrorKind::Os(libc::ENFILE),
            format!("{} files are open, more than alluxio.fuse.max.open.handles allows", self.most),
        ))
    }

    /// Counts one more, for as long as it is not known whether the handle will be.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn slot(&self) -> Result<Slot<'_>> {
        self.take().map(|()| Slot(self))
    }

    /// Counts one less.
    pub fn give(&self) {
        // Never below none: after a takeover the kernel may end a handle again that its process had ended.
        let less = |used: usize| used.checked_sub(1);
        // None were open then, and nothing is to be done.
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// How many are open.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// One handle that is counted. Given back when it is dropped.
#[derive(Debug)]
pub struct Slot<'a>(&'a Limit);

impl Slot<'_> {
    /// The handle is there, and counted until its release.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.give();
    }
}

/// Handles of one sort. Numbers count up from 1 and are never used twice.
pub struct Handles<T> {
    shards: Vec<RwLock<HashMap<u64, Arc<T>>>>,
    next: AtomicU64,
}

impl<T> Handles<T> {
    /// None yet.
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), next: AtomicU64::new(1) }
    }

    fn shard(&self, number: u64) -> &RwLock<HashMap<u64, Arc<T>>> {
        &self.shards[(number % SHARDS as u64) as usize]
    }

    /// A number for `handle`.
    pub fn insert(&self, handle: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(number).write().insert(number, Arc::new(handle));
        number
    }

    /// `handle`, under the number that the kernel knows it by.
    pub fn insert_as(&self, number: u64, handle: T) {
        self.next.fetch_max(number + 1, Ordering::Relaxed);
        self.shard(number).write().insert(number, Arc::new(handle));
    }

    /// Gives no number below this one.
    pub fn begin_at(&self, number: u64) {
        self.next.fetch_max(number, Ordering::Relaxed);
    }

    /// The handle with this number; `BadHandle` when there is none.
    pub fn get(&self, number: u64) -> Result<Arc<T>> {
        self.shard(number).read().get(&number).cloned().ok_or_else(|| unknown(number))
    }

    /// Takes the handle out.
    pub fn remove(&self, number: u64) -> Result<Arc<T>> {
        self.shard(number).write().remove(&number).ok_or_else(|| unknown(number))
    }
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn unknown(number: u64) -> Error {
    Error::new(ErrorKind::BadHandle, format!("no open handle has the number {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_not_reused_and_unknown_ones_are_refused() {
        let handles = Handles::new();
        let first = handles.insert("a");
        assert_eq!(*handles.get(first).unwrap(), "a");
        assert_eq!(*handles.remove(first).unwrap(), "a");
        assert_eq!(handles.get(first).unwrap_err().kind(), ErrorKind::BadHandle);
        assert_ne!(handles.insert("b"), first);
    }

    #[test]
    fn the_limit_holds_and_is_given_back() {
        let limit = Limit::new(2);
        limit.take().unwrap();
        limit.take().unwrap();
        assert_eq!(limit.take().unwrap_err().errno(), libc::ENFILE);
        limit.give();
        limit.take().unwrap();
        assert_eq!(limit.used(), 2);
    }
}
