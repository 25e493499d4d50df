//! One directory being listed once for everybody: readers of the listing, lookups of its names, and those who list ahead.
//!
//! A flight collects batches up to a limit. Readers take them by index as they arrive, so a second reader costs no
//! second listing. A directory beyond the limit streams by: the first reader that reaches the limit goes on with the
//! storage's listing, others list for themselves and skip the names that they had.
//!
//! Invariants: a flight ends exactly once; batches are never changed after they were added and each is sorted by name;
//! memory is bounded by the limit, not by the directory.

use async_trait::async_trait;
use common::{
    Error, ErrorKind, Result, UfsPath,
    worker::{DirEntry, Listing},
};
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::{Notify, Semaphore};
use ufs::UnderStorage;

/// How a flight ended.
enum End {
    /// Every entry is there.
    Complete,
    /// The storage failed.
    Failed(Error),
    /// It stopped before the end; the rest of the listing is here until a reader takes it.
    Stopped(Option<Box<dyn Listing>>),
}

#[derive(Default)]
struct State {
    batches: Vec<Arc<[DirEntry]>>,
    len: usize,
    end: Option<End>,
}

/// A listing under way, shared by `Arc`.
pub(crate) struct Flight {
    state: Mutex<State>,
    arrived: Notify,
    readers: AtomicUsize,
    /// Batches that may still be fetched while nobody reads the listing.
    allowance: AtomicUsize,
}

/// What a finished flight found.
pub(crate) enum Outcome {
    /// All entries.
    Complete(Vec<Arc<[DirEntry]>>),
    /// Some of them.
    Partial(Vec<Arc<[DirEntry]>>),
    /// None, because of this.
    Failed(Error),
}

/// What a flight says of a name.
pub(crate) enum Found {
    /// This entry.
    Entry(DirEntry),
    /// The listing is complete without it.
    Missing,
    /// The listing ended without telling.
    Unknown,
}

impl Flight {
    /// A flight that nobody reads yet, which may fetch `allowance` batches for whoever comes.
    pub(crate) fn new(allowance: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            readers: AtomicUsize::new(0),
            allowance: AtomicUsize::new(allowance),
        })
    }

    /// Lets it fetch `batches` more while nobody reads: somebody looked for one of its names.
    pub(crate) fn encourage(&self, batches: usize) {
        self.allowance.fetch_add(batches, Ordering::Relaxed);
    }

    /// Lists `path`, up to `limit` entries, and returns what was found. Run once per flight, in a task of its own.
    pub(crate) async fn run(
        &self,
        storage: &Arc<dyn UnderStorage>,
        path: &UfsPath,
        requests: &Semaphore,
        limit: usize,
    ) -> Outcome {
        // If this future is dropped (the runtime ends), whoever waits must not wait for ever.
        let guard = EndGuard(self);
        let end = self.collect(storage, path, requests, limit).await;
        let outcome = {
            let mut state = self.state.lock();
            let outcome = match &end {
                End::Complete => Outcome::Complete(state.batches.clone()),
                End::Stopped(_) => Outcome::Partial(state.batches.clone()),
                End::Failed(error) => Outcome::Failed(error.clone()),
            };
            state.end.get_or_insert(end);
            outcome
        };
        drop(guard);
        outcome
    }

    async fn collect(
        &self,
        storage: &Arc<dyn UnderStorage>,
        path: &UfsPath,
        requests: &Semaphore,
        limit: usize,
    ) -> End {
        let mut listing = {
            let _permit = requests.acquire().await;
            match storage.list(path).await {
                Ok(listing) => listing,
                Err(error) => return End::Failed(error),
            }
        };
        loop {
            if self.readers.load(Ordering::Acquire) == 0 {
                let left = self.allowance.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1));
                if left.is_err() {
                    return End::Stopped(Some(listing));
                }
            }
            let next = {
                let _permit = requests.acquire().await;
                listing.next().await
            };
            match next {
                Ok(Some(mut batch)) => {
                    batch.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                    let full = {
                        let mut state = self.state.lock();
                        state.len += batch.len();
                        if !batch.is_empty() {
                            state.batches.push(batch.into());
                        }
                        state.len >= limit
                    };
                    self.arrived.notify_waiters();
                    if full {
                        return End::Stopped(Some(listing));
                    }
                }
                Ok(None) => return End::Complete,
                Err(error) => return End::Failed(error),
            }
        }
    }

    /// Waits until this name is found, or the flight has ended.
    pub(crate) async fn find(&self, name: &[u8]) -> Found {
        let mut seen = 0;
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let state = self.state.lock();
                for batch in &state.batches[seen..] {
                    if let Ok(at) = batch.binary_search_by(|entry| (*entry.name).cmp(name)) {
                        return Found::Entry(batch[at].clone());
                    }
                }
                seen = state.batches.len();
                match &state.end {
                    Some(End::Complete) => return Found::Missing,
                    Some(_) => return Found::Unknown,
                    None => {}
                }
            }
            arrived.await;
        }
    }

    /// Waits until there is a first batch or the flight has ended; fails when it ended so without any.
    async fn first(&self) -> Result<()> {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            {
                let state = self.state.lock();
                match &state.end {
                    _ if !state.batches.is_empty() => return Ok(()),
                    Some(End::Failed(error)) => return Err(error.clone()),
                    Some(_) => return Ok(()),
                    None => {}
                }
            }
            arrived.await;
        }
    }
}

/// Ends a flight that was given up, and wakes everybody when it is gone.
struct EndGuard<'a>(&'a Flight);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.state.lock().end.get_or_insert_with(|| {
            End::Failed(Error::new(ErrorKind::Cancelled, "the listing was given up because the worker stops"))
        });
        self.0.arrived.notify_waiters();
    }
}

/// A reader of a flight.
pub(crate) struct FlightReader {
    flight: Arc<Flight>,
    storage: Arc<dyn UnderStorage>,
    requests: Arc<Semaphore>,
    path: UfsPath,
    index: usize,
    rest: Option<Rest>,
}

struct Rest {
    listing: Box<dyn Listing>,
    /// The names in these batches were given already.
    skip: Vec<Arc<[DirEntry]>>,
}

impl FlightReader {
    /// Joins a flight; its first batch or its failure is there when this returns.
    pub(crate) async fn join(
        flight: Arc<Flight>,
        storage: Arc<dyn UnderStorage>,
        requests: Arc<Semaphore>,
        path: UfsPath,
    ) -> Result<Self> {
        flight.readers.fetch_add(1, Ordering::AcqRel);
        // Made before the wait, so that its drop takes the reader off again if the wait is given up.
        let reader = Self { flight, storage, requests, path, index: 0, rest: None };
        reader.flight.first().await?;
        Ok(reader)
    }

    async fn next_of_flight(&mut self) -> Result<Option<Vec<DirEntry>>> {
        loop {
            let arrived = self.flight.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let rest = {
                let mut state = self.flight.state.lock();
                if let Some(batch) = state.batches.get(self.index) {
                    self.index += 1;
                    return Ok(Some(batch.to_vec()));
                }
                let State { batches, end, .. } = &mut *state;
                match end {
                    Some(End::Complete) => return Ok(None),
                    Some(End::Failed(error)) => return Err(error.clone()),
                    Some(End::Stopped(listing)) => Some((listing.take(), batches.clone())),
                    None => None,
                }
            };
            match rest {
                Some((Some(listing), _)) => {
                    self.rest = Some(Rest { listing, skip: Vec::new() });
                    return Ok(Some(Vec::new()));
                }
                Some((None, skip)) => {
                    let _permit = self.requests.acquire().await;
                    self.rest = Some(Rest { listing: self.storage.list(&self.path).await?, skip });
                    return Ok(Some(Vec::new()));
                }
                None => arrived.await,
            }
        }
    }
}

impl Drop for FlightReader {
    fn drop(&mut self) {
        self.flight.readers.fetch_sub(1, Ordering::AcqRel);
    }
}

#[async_trait]
impl Listing for FlightReader {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        loop {
            let batch = match &mut self.rest {
                None => self.next_of_flight().await?,
                Some(rest) => {
                    let next = {
                        let _permit = self.requests.acquire().await;
                        rest.listing.next().await?
                    };
                    next.map(|mut batch| {
                        let had = |entry: &DirEntry| {
                            let in_batch =
                                |batch: &Arc<[DirEntry]>| batch.binary_search_by(|e| e.name.cmp(&entry.name)).is_ok();
                            rest.skip.iter().any(in_batch)
                        };
                        batch.retain(|entry| !had(entry));
                        batch
                    })
                }
            };
            match batch {
                Some(batch) if batch.is_empty() => {}
                other => return Ok(other),
            }
        }
    }
}

/// A listing that is answered from the cache.
pub(crate) struct CachedListing {
    snapshot: Arc<crate::cache::Snapshot>,
    index: usize,
}

impl CachedListing {
    /// The entries of `snapshot`.
    pub(crate) fn new(snapshot: Arc<crate::cache::Snapshot>) -> Self {
        Self { snapshot, index: 0 }
    }
}

#[async_trait]
impl Listing for CachedListing {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        let batch = self.snapshot.batches().get(self.index);
        self.index += 1;
        Ok(batch.map(|batch| batch.to_vec()))
    }
}
