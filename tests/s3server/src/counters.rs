//! What the server did: requests by operation, statuses, bytes, and a log of the last requests.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::operation::Operation;

/// One request in the log; it is there from the moment the request's head was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was asked for.
    pub operation: Operation,
    /// The HTTP method.
    pub method: String,
    /// The bucket, empty for the service itself.
    pub bucket: String,
    /// The key, for listings the prefix.
    pub key: String,
    /// The Range header as sent.
    pub range: Option<String>,
}

/// Counters shared by all connections.
pub(crate) struct Counters {
    operations: [AtomicU64; Operation::ALL.len()],
    statuses: Vec<AtomicU64>,
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
    active: AtomicUsize,
    most_active: AtomicUsize,
    log: Mutex<VecDeque<Record>>,
    log_size: usize,
}

impl Counters {
    /// Counters at zero that keep the last `log_size` requests.
    pub(crate) fn new(log_size: usize) -> Self {
        Counters {
            operations: [const { AtomicU64::new(0) }; Operation::ALL.len()],
            statuses: (0..600).map(|_| AtomicU64::new(0)).collect(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            most_active: AtomicUsize::new(0),
            log: Mutex::new(VecDeque::new()),
            log_size,
        }
    }

    /// Counts a request and logs it; the answer is counted by dropping the guard.
    pub(crate) fn begin(self: &std::sync::Arc<Self>, operation: Operation, record: impl FnOnce() -> Record) -> Active {
        self.operations[operation as usize].fetch_add(1, Relaxed);
        let active = self.active.fetch_add(1, Relaxed) + 1;
        self.most_active.fetch_max(active, Relaxed);
        if self.log_size > 0 {
            let record = record();
            let mut log = self.log.lock();
            if log.len() >= self.log_size {
                log.pop_front();
            }
            log.push_back(record);
        }
        Active(self.clone())
    }

    pub(crate) fn status(&self, status: u16) {
        if let Some(count) = self.statuses.get(usize::from(status)) {
            count.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn connection(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn of(&self, operation: Operation) -> u64 {
        self.operations[operation as usize].load(Relaxed)
    }

    pub(crate) fn total(&self) -> u64 {
        self.operations.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub(crate) fn of_status(&self, status: u16) -> u64 {
        self.statuses.get(usize::from(status)).map_or(0, |count| count.load(Relaxed))
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(crate) fn active(&self) -> usize {
        self.active.load(Relaxed)
    }

    pub(crate) fn most_active(&self) -> usize {
        self.most_active.load(Relaxed)
    }

    pub(crate) fn log(&self) -> Vec<Record> {
        self.log.lock().iter().cloned().collect()
    }

    /// Back to zero, except for the number of requests that are being answered.
    pub(crate) fn reset(&self) {
        for count in self.operations.iter().chain(&self.statuses) {
            count.store(0, Relaxed);
        }
        for count in [&self.sent, &self.received, &self.connections] {
            count.store(0, Relaxed);
        }
        self.most_active.store(self.active(), Relaxed);
        self.log.lock().clear();
    }
}

/// A request whose answer's head is not finished.
pub(crate) struct Active(std::sync::Arc<Counters>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}
