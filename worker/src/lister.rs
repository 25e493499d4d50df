//! Makes listings: for readers, for lookups ([`crate::parents`]) and ahead of walks ([`crate::walk`]), each directory
//! once at a time, and puts what they find into the metadata cache.

use crate::{
    cache::{Known, MetadataCache},
    clock::{Clock, Moment},
    flight::{CachedListing, Flight, FlightReader, Outcome},
    options::WorkerOptions,
    outage::Outage,
    parents::{Advice, Parents},
    walk::Walker,
};
use common::{ErrorKind, FileKind, Result, UfsPath, worker::Listing};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Handle, sync::Semaphore};
use ufs::UnderStorage;

/// Who wants a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A reader, who takes the entries.
    Reader,
    /// A lookup of one of its names, as others before.
    Lookup,
    /// A walk that is expected to come here.
    Walk,
    /// Nobody yet: it was in use, and grew too old with another that is.
    Refresh,
}

impl Wanted {
    /// Batches that may be fetched while nobody reads the listing.
    fn allowance(self) -> usize {
        match self {
            // One by itself, so that the flight does not stop before its reader has joined.
            Wanted::Reader => 1,
            Wanted::Lookup => 32,
            Wanted::Walk | Wanted::Refresh => 8,
        }
    }
}

/// Directories that are refreshed after one lookup found its own too old, at most.
const REFRESHED: usize = 256;
/// Listings made for it at the same time.
const REFRESH_PARALLEL: usize = 16;

/// What is known is looked through for them no more often than this.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

/// Directories that wait to be listed anew, the next one at the end, and how many of them are being listed.
#[derive(Default)]
struct Refresher {
    waiting: Vec<UfsPath>,
    running: usize,
    looked: Option<Moment>,
}

/// Makes and shares listings.
pub(crate) struct Lister {
    storage: Arc<dyn UnderStorage>,
    cache: Arc<MetadataCache>,
    clock: Clock,
    requests: Arc<Semaphore>,
    outage: Arc<Outage>,
    walker: Walker,
    refresher: Mutex<Refresher>,
    parents: Parents,
    flights: Mutex<HashMap<UfsPath, Arc<Flight>>>,
    limit: usize,
    handle: Handle,
    /// Whether listings of this storage come with attributes, so that they can answer lookups.
    with_attrs: AtomicBool,
}

impl Lister {
    pub(crate) fn new(
        storage: Arc<dyn UnderStorage>,
        cache: Arc<MetadataCache>,
        requests: Arc<Semaphore>,
        outage: Arc<Outage>,
        options: &WorkerOptions,
        handle: Handle,
    ) -> Arc<Self> {
        let ahead = if cache.is_useful() { options.walk_ahead } else { 0 };
        Arc::new(Self {
            storage,
            cache,
            clock: options.clock.clone(),
            requests,
            outage,
            walker: Walker::new(options.clock.clone(), options.walk_parallel, ahead, options.metadata_entries / 4),
            refresher: Mutex::default(),
            parents: Parents::new(options.clock.clone()),
            flights: Mutex::default(),
            limit: options.directory_entries.min(options.metadata_entries / 2).max(1),
            handle,
            with_attrs: AtomicBool::new(true),
        })
    }

    /// Whether a listing can answer lookups.
    pub(crate) fn answers_lookups(&self) -> bool {
        self.with_attrs.load(Ordering::Relaxed) && self.cache.is_useful()
    }

    /// What to do about a lookup in `dir` whose name is not known.
    pub(crate) fn missed(&self, dir: &UfsPath) -> Advice {
        self.parents.missed(dir.as_bytes())
    }

    /// From now on nobody joins a listing of `path` that is under way: it may not have seen a change.
    pub(crate) fn detach(&self, path: &UfsPath) {
        self.flights.lock().remove(path);
    }

    /// The same for everything below `path`.
    pub(crate) fn detach_tree(&self, path: &UfsPath) {
        self.flights.lock().retain(|listed, _| !listed.is_within(path));
    }

    /// The listing of `path` that is under way.
    pub(crate) fn under_way(&self, path: &UfsPath) -> Option<Arc<Flight>> {
        self.flights.lock().get(path).cloned()
    }

    /// Joins the listing of `path` under way, or starts one (then the second is true).
    pub(crate) fn start(self: &Arc<Self>, path: &UfsPath, wanted: Wanted) -> (Arc<Flight>, bool) {
        let flight = {
            let mut flights = self.flights.lock();
            if let Some(flight) = flights.get(path) {
                flight.encourage(wanted.allowance());
                return (flight.clone(), false);
            }
            let flight = Flight::new(wanted.allowance());
            flights.insert(path.clone(), flight.clone());
            flight
        };
        let (lister, path, running) = (self.clone(), path.clone(), flight.clone());
        self.handle.spawn(async move { lister.run(path, running, wanted).await });
        (flight, true)
    }

    async fn run(self: Arc<Self>, path: UfsPath, flight: Arc<Flight>, wanted: Wanted) {
        let ticket = self.cache.ticket();
        let outcome = flight.run(&self.storage, &path, &self.requests, self.limit).await;
        // Into the cache first, then out of the flights: in between nobody finds it in neither.
        match &outcome {
            Outcome::Complete(batches) | Outcome::Partial(batches) => {
                let mut files = batches.iter().flat_map(|batch| batch.iter());
                if let Some(first) = files.find(|entry| entry.kind == FileKind::File) {
                    self.with_attrs.store(first.attr.is_some(), Ordering::Relaxed);
                }
                let complete = matches!(outcome, Outcome::Complete(_));
                self.cache.put_listing(&path, batches.clone(), complete, ticket);
            }
            Outcome::Failed(error) if error.kind() == ErrorKind::NotFound => {
                self.cache.put(&path, Known::Missing, ticket);
            }
            Outcome::Failed(error) => {
                self.outage.noticed(error);
            }
        }
        {
            let mut flights = self.flights.lock();
            if flights.get(&path).is_some_and(|current| Arc::ptr_eq(current, &flight)) {
                flights.remove(&path);
            }
        }
        let complete = match &outcome {
            Outcome::Complete(batches) => Some(batches),
            _ => None,
        };
        if wanted == Wanted::Lookup && (complete.is_none() || !self.answers_lookups()) {
            self.parents.useless(path.as_bytes());
        }
        if let Some(batches) = complete {
            self.walker.listed(&path, batches, wanted == Wanted::Walk);
        }
        match wanted {
            Wanted::Walk => self.walker.ended(),
            Wanted::Refresh => self.refresher.lock().running -= 1,
            Wanted::Reader | Wanted::Lookup => {}
        }
        self.walk();
        self.refresh();
    }

    /// A lookup found the listing of its directory too old. Others that were in use grew old at the same time, and whoever
    /// reads files all over a tree would wait for each of them in turn: they are made anew now, side by side.
    pub(crate) fn refresh_others(self: &Arc<Self>) {
        let now = self.clock.now();
        {
            let mut refresher = self.refresher.lock();
            let lately = refresher.looked.is_some_and(|looked| now.since(looked) < REFRESH_PAUSE);
            if lately || !refresher.waiting.is_empty() {
                return;
            }
            refresher.looked = Some(now);
        }
        let mut found = self.cache.worth_refreshing(REFRESHED);
        found.reverse();
        self.refresher.lock().waiting = found;
        self.refresh();
    }

    /// Starts the listings that wait, as many as may be under way.
    fn refresh(self: &Arc<Self>) {
        loop {
            let path = {
                let mut refresher = self.refresher.lock();
                if refresher.running >= REFRESH_PARALLEL {
                    return;
                }
                let Some(path) = refresher.waiting.pop() else { return };
                refresher.running += 1;
                path
            };
            // A lookup may have been here first.
            let started = self.cache.is_worth_refreshing(&path) && self.start(&path, Wanted::Refresh).1;
            if !started {
                self.refresher.lock().running -= 1;
            }
        }
    }

    /// The listing of `path` for a reader.
    pub(crate) async fn list(self: &Arc<Self>, path: &UfsPath) -> Result<Box<dyn Listing>> {
        let snapshot = self.cache.listing(path);
        let entries_of = |dir: &UfsPath| self.cache.listing(dir).map(|snapshot| snapshot.batches().to_vec());
        self.walker.demanded(path, snapshot.is_some(), entries_of);
        let listing: Box<dyn Listing> = match snapshot {
            Some(snapshot) => {
                self.walk();
                Box::new(CachedListing::new(snapshot))
            }
            None => {
                let (flight, _) = self.start(path, Wanted::Reader);
                self.walk();
                let (storage, requests) = (self.storage.clone(), self.requests.clone());
                Box::new(FlightReader::join(flight, storage, requests, path.clone()).await?)
            }
        };
        Ok(listing)
    }

    /// Starts the listings that the walker wants now.
    fn walk(self: &Arc<Self>) {
        while let Some(path) = self.walker.next() {
            if let Some(snapshot) = self.cache.listing(&path) {
                self.walker.listed(&path, snapshot.batches(), true);
                self.walker.ended();
                continue;
            }
            let (_, started) = self.start(&path, Wanted::Walk);
            if !started {
                self.walker.ended();
            }
        }
    }
}
