//! The metadata cache: what is known of paths, and since when.
//!
//! Knowledge has two forms. A *point* is the attributes of one path, or that it does not exist. A *snapshot* is the
//! entries of a directory as a listing gave them; a complete one also knows what the directory does not contain, and
//! answers the next listing. Both sit in sharded LRU maps, so that no lock is shared by all lookups.
//!
//! Invariants:
//! - nothing older than the sync interval is ever given out, no absence older than the negative time;
//! - of a point and a snapshot that speak of the same path the younger one counts;
//! - knowledge that was asked for before a [`forget`](MetadataCache::forget) never enters after it ([`Ticket`]);
//! - points and entries of snapshots together never exceed the limit by more than one directory.

mod snapshot;

pub use snapshot::Snapshot;

use crate::clock::{Clock, Moment};
use common::{Attr, UfsPath, worker::DirEntry};
use lru::LruCache;
use parking_lot::Mutex;
use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

const SHARDS: usize = 16;

/// One part of a map from paths, by its own lock.
type Shard<V> = Mutex<LruCache<Box<[u8]>, V>>;

/// What the cache says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It exists, with these attributes.
    Attr(Arc<Attr>),
    /// It does not exist.
    Missing,
}

/// When a request to the storage began; its answer enters the cache only if nothing was forgotten since.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    began: Moment,
    epoch: u64,
    changes: u64,
}

/// The numbers of the latest changes of paths, and of entries of directories.
struct Changes {
    paths: LruCache<Box<[u8]>, u64>,
    directories: LruCache<Box<[u8]>, u64>,
    /// Changes up to this number may be forgotten here.
    floor: u64,
}

/// How many changes are remembered.
const REMEMBERED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(8192).unwrap();

impl Changes {
    fn note(&mut self, directory: &[u8], path: &[u8], number: u64) {
        let full = |map: &LruCache<Box<[u8]>, u64>| map.len() >= REMEMBERED.get();
        if full(&self.paths) || full(&self.directories) {
            let oldest = [self.paths.pop_lru(), self.directories.pop_lru()];
            self.floor = oldest.into_iter().flatten().map(|(_, number)| number).chain([self.floor]).max().unwrap_or(0);
        }
        self.paths.put(path.into(), number);
        self.directories.put(directory.into(), number);
    }

    fn since(&self, map: &LruCache<Box<[u8]>, u64>, path: &[u8], ticket: u64) -> bool {
        self.floor > ticket || map.peek(path).is_some_and(|number| *number > ticket)
    }
}

struct Point {
    known: Known,
    at: Moment,
}

/// The cache. Shared by reference; all methods are cheap and never wait for anything but a shard's lock.
pub struct MetadataCache {
    clock: Clock,
    sync_interval: Option<Duration>,
    negative_ttl: Duration,
    limit: usize,
    hasher: RandomState,
    points: Vec<Shard<Point>>,
    snapshots: Vec<Shard<Arc<Snapshot>>>,
    listed: AtomicUsize,
    epoch: AtomicU64,
    number: AtomicU64,
    changes: Mutex<Changes>,
    hand: AtomicUsize,
    /// The storage cannot be reached.
    away: AtomicBool,
}

/// The bytes of the directory of `path` and its name in it; none for the root.
fn split(path: &UfsPath) -> Option<(&[u8], &[u8])> {
    let bytes = path.as_bytes();
    if bytes.is_empty() {
        return None;
    }
    Some(match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (&[], bytes),
    })
}

impl MetadataCache {
    /// A cache of at most `limit` names: a quarter of them for points, the rest for snapshots.
    pub fn new(clock: Clock, sync_interval: Option<Duration>, negative_ttl: Duration, limit: usize) -> Self {
        let points = (limit / 4).max(SHARDS);
        let per_shard = std::num::NonZeroUsize::new(points.div_ceil(SHARDS)).unwrap_or(std::num::NonZeroUsize::MIN);
        Self {
            clock,
            sync_interval,
            negative_ttl: sync_interval.map_or(negative_ttl, |sync| negative_ttl.min(sync)),
            limit: limit.saturating_sub(points).max(SHARDS),
            hasher: RandomState::new(),
            points: (0..SHARDS).map(|_| Mutex::new(LruCache::new(per_shard))).collect(),
            snapshots: (0..SHARDS).map(|_| Mutex::new(LruCache::unbounded())).collect(),
            listed: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            number: AtomicU64::new(0),
            changes: Mutex::new(Changes {
                paths: LruCache::new(REMEMBERED),
                directories: LruCache::new(REMEMBERED),
                floor: 0,
            }),
            hand: AtomicUsize::new(0),
            away: AtomicBool::new(false),
        }
    }

    /// While the storage is away what is known of files that exist counts whatever its age.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Release);
    }

    /// To be taken before a request to the storage whose answer shall be cached.
    pub fn ticket(&self) -> Ticket {
        Ticket {
            epoch: self.epoch.load(Ordering::Acquire),
            changes: self.number.load(Ordering::Acquire),
            began: self.clock.now(),
        }
    }

    /// Whether anything is ever answered from here (a sync interval of zero says no).
    pub fn is_useful(&self) -> bool {
        self.sync_interval != Some(Duration::ZERO)
    }

    /// What is known of `path` and still fresh.
    pub fn get(&self, path: &UfsPath) -> Option<Known> {
        let now = self.clock.now();
        let bytes = path.as_bytes();
        let point = {
            let mut shard = self.points[self.shard(bytes)].lock();
            shard.get(bytes).map(|point| (point.known.clone(), point.at))
        };
        let snapshot = split(path).and_then(|(dir, name)| {
            let snapshot = self.snapshots[self.shard(dir)].lock().get(dir).cloned()?;
            let older = point.as_ref().is_some_and(|(_, at)| *at >= snapshot.at);
            (!older).then_some((snapshot, name))
        });
        let listed = snapshot.as_ref().and_then(|(snapshot, name)| match snapshot.get(name) {
            Some(entry) => entry.attr.clone().map(|attr| (Known::Attr(attr), snapshot.at)),
            None if snapshot.complete => Some((Known::Missing, snapshot.at)),
            None => None,
        });
        let by_listing = listed.is_some();
        // The younger alone is asked for its freshness: what it contradicts is not heard again.
        let (known, _) = listed.or(point).filter(|(known, at)| self.fresh(known, *at, now))?;
        if by_listing && let Some((snapshot, _)) = &snapshot {
            snapshot.note_use();
        }
        Some(known)
    }

    /// Whether the entries of a directory are known, too old, in use, and had anew by one request.
    pub fn is_worth_refreshing(&self, path: &UfsPath) -> bool {
        let bytes = path.as_bytes();
        let snapshot = self.snapshots[self.shard(bytes)].lock().peek(bytes).cloned();
        snapshot.is_some_and(|snapshot| self.outdated(&snapshot))
    }

    /// Up to `count` directories that are worth refreshing, of those used last. Looks at all that are known.
    pub fn worth_refreshing(&self, count: usize) -> Vec<UfsPath> {
        let mut found = Vec::new();
        for shard in &self.snapshots {
            let shard = shard.lock();
            let outdated = shard.iter().filter(|(_, snapshot)| self.outdated(snapshot));
            found.extend(outdated.take(count).map(|(key, snapshot)| (snapshot.at, key.clone())));
        }
        found.sort_unstable_by_key(|(at, _)| std::cmp::Reverse(*at));
        found.truncate(count);
        found.into_iter().filter_map(|(_, key)| UfsPath::parse(&key).ok()).collect()
    }

    fn outdated(&self, snapshot: &Snapshot) -> bool {
        snapshot.is_worth_refreshing() && !self.within(self.sync_interval, snapshot.at, self.clock.now())
    }

    /// Records the answer of the storage to a question about one path.
    pub fn put(&self, path: &UfsPath, known: Known, ticket: Ticket) {
        if !self.is_useful() {
            return;
        }
        let bytes = path.as_bytes();
        let mut shard = self.points[self.shard(bytes)].lock();
        if self.epoch.load(Ordering::Acquire) != ticket.epoch {
            return;
        }
        let changes = self.changes.lock();
        if changes.since(&changes.paths, bytes, ticket.changes) {
            return;
        }
        drop(changes);
        match shard.get_mut(bytes) {
            Some(point) if point.at > ticket.began => {}
            Some(point) => *point = Point { known, at: ticket.began },
            None => {
                shard.put(bytes.into(), Point { known, at: ticket.began });
            }
        }
    }

    /// The complete entries of a directory, while fresh.
    pub fn listing(&self, path: &UfsPath) -> Option<Arc<Snapshot>> {
        let bytes = path.as_bytes();
        let snapshot = self.snapshots[self.shard(bytes)].lock().get(bytes).cloned()?;
        let fresh = self.is_away() || self.within(self.sync_interval, snapshot.at, self.clock.now());
        (snapshot.complete && fresh).then_some(snapshot)
    }

    /// Records what a listing gave: batches that are each sorted by name; `complete` when that was all.
    pub fn put_listing(&self, path: &UfsPath, batches: Vec<Arc<[DirEntry]>>, complete: bool, ticket: Ticket) {
        let len: usize = batches.iter().map(|batch| batch.len()).sum();
        if !self.is_useful() || len > self.limit {
            return;
        }
        let snapshot = Arc::new(Snapshot::new(batches, complete, ticket.began));
        let bytes = path.as_bytes();
        let index = self.shard(bytes);
        let old = {
            let mut shard = self.snapshots[index].lock();
            if self.epoch.load(Ordering::Acquire) != ticket.epoch {
                return;
            }
            let changes = self.changes.lock();
            if changes.since(&changes.directories, bytes, ticket.changes) {
                return;
            }
            drop(changes);
            // Counted under the lock: whoever takes it out again subtracts what was added here.
            self.listed.fetch_add(cost(len), Ordering::Relaxed);
            let old = shard.put(bytes.into(), snapshot);
            if let Some(old) = &old {
                self.listed.fetch_sub(cost(old.len), Ordering::Relaxed);
            }
            old
        };
        drop(old);
        self.evict(index, bytes);
    }

    /// Notes that this mount changed a name: what was asked before the change never enters after it. What is known of the
    /// other names in its directory stays. `entry`: what a listing shows from now on, attributes that are not given are
    /// asked for; none when the name is gone.
    pub fn change(&self, path: &UfsPath, entry: Option<DirEntry>) {
        let Some((directory, name)) = split(path) else { return self.forget(path) };
        let bytes = path.as_bytes();
        {
            let mut changes = self.changes.lock();
            // The number after the note: a ticket taken in between is refused, which is safe.
            let number = self.number.load(Ordering::Acquire) + 1;
            changes.note(directory, bytes, number);
            self.number.store(number, Ordering::Release);
        }
        let ticket = self.ticket();
        self.points[self.shard(bytes)].lock().pop(bytes);
        {
            let mut shard = self.snapshots[self.shard(directory)].lock();
            if let Some(snapshot) = shard.get_mut(directory) {
                let changed = snapshot.with(name, entry.as_ref());
                self.listed.fetch_add(cost(changed.len), Ordering::Relaxed);
                self.listed.fetch_sub(cost(snapshot.len), Ordering::Relaxed);
                *snapshot = Arc::new(changed);
            }
        }
        match entry.map(|entry| entry.attr) {
            Some(Some(attr)) => self.put(path, Known::Attr(attr), ticket),
            Some(None) => {}
            None => {
                self.forget_listing(bytes);
                self.put(path, Known::Missing, ticket);
            }
        }
    }

    /// Drops what is known of `path` itself, below it as a directory, and as an entry of its directory.
    pub fn forget(&self, path: &UfsPath) {
        // Raised first: a request that began before and ends after this call finds a newer epoch when it stores.
        self.epoch.fetch_add(1, Ordering::AcqRel);
        let bytes = path.as_bytes();
        self.points[self.shard(bytes)].lock().pop(bytes);
        self.forget_listing(bytes);
        if let Some((dir, _)) = split(path) {
            self.forget_listing(dir);
        }
    }

    /// Drops what is known of `path` and of everything below it. Looks at all that is known: for what happens rarely.
    pub fn forget_below(&self, path: &UfsPath) {
        self.forget(path);
        let above = path.as_bytes();
        let lies_below = |key: &[u8]| {
            above.is_empty() || key.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        };
        for shard in &self.points {
            let mut shard = shard.lock();
            let gone: Vec<_> = shard.iter().map(|(key, _)| key).filter(|key| lies_below(key)).cloned().collect();
            for key in gone {
                shard.pop(&key);
            }
        }
        for shard in &self.snapshots {
            let gone: Vec<_> = shard.lock().iter().map(|(key, _)| key).filter(|key| lies_below(key)).cloned().collect();
            for key in gone {
                self.forget_listing(&key);
            }
        }
    }

    /// Names known now.
    pub fn len(&self) -> usize {
        self.listed.load(Ordering::Relaxed) + self.points.iter().map(|shard| shard.lock().len()).sum::<usize>()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn forget_listing(&self, dir: &[u8]) {
        let old = {
            let mut shard = self.snapshots[self.shard(dir)].lock();
            let old = shard.pop(dir);
            if let Some(old) = &old {
                self.listed.fetch_sub(cost(old.len), Ordering::Relaxed);
            }
            old
        };
        drop(old);
    }

    /// Takes out the least recently used directories, shard after shard, until the limit holds; never the one just put.
    fn evict(&self, kept_shard: usize, kept: &[u8]) {
        let mut idle = 0;
        while self.listed.load(Ordering::Relaxed) > self.limit && idle < SHARDS {
            let index = self.hand.fetch_add(1, Ordering::Relaxed) % SHARDS;
            let out = {
                let mut shard = self.snapshots[index].lock();
                match shard.peek_lru() {
                    Some((key, _)) if index != kept_shard || **key != *kept => {
                        let out = shard.pop_lru();
                        if let Some((_, snapshot)) = &out {
                            self.listed.fetch_sub(cost(snapshot.len), Ordering::Relaxed);
                        }
                        out
                    }
                    _ => None,
                }
            };
            idle = if out.is_some() { 0 } else { idle + 1 };
        }
    }

    fn fresh(&self, known: &Known, at: Moment, now: Moment) -> bool {
        match known {
            Known::Attr(_) => self.is_away() || self.within(self.sync_interval, at, now),
            Known::Missing => self.within(Some(self.negative_ttl), at, now),
        }
    }

    fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    fn within(&self, limit: Option<Duration>, at: Moment, now: Moment) -> bool {
        limit.is_none_or(|limit| now.since(at) < limit)
    }

    fn shard(&self, key: &[u8]) -> usize {
        (self.hasher.hash_one(key) as usize) % SHARDS
    }
}

/// What a snapshot counts for: an empty directory takes room too.
fn cost(len: usize) -> usize {
    len + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::{FileKind, Timestamp, Version};
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn attr(size: u64) -> Arc<Attr> {
        Arc::new(Attr::of_object(FileKind::File, size, Timestamp::default(), Version::new(size.to_string())))
    }

    fn entry(name: &str, size: u64) -> DirEntry {
        DirEntry { name: name.as_bytes().into(), kind: FileKind::File, attr: Some(attr(size)) }
    }

    fn path(text: &str) -> UfsPath {
        UfsPath::parse(text).unwrap()
    }

    fn cache(clock: &Clock, sync: Option<u64>) -> MetadataCache {
        MetadataCache::new(clock.clone(), sync.map(Duration::from_secs), Duration::from_secs(2), 1000)
    }

    #[test]
    fn attributes_age_by_the_sync_interval_and_absence_by_its_own() {
        let clock = Clock::manual();
        let cache = cache(&clock, Some(10));
        cache.put(&path("a"), Known::Attr(attr(1)), cache.ticket());
        cache.put(&path("b"), Known::Missing, cache.ticket());
        clock.advance(Duration::from_secs(1));
        assert_eq!(cache.get(&path("a")), Some(Known::Attr(attr(1))));
        assert_eq!(cache.get(&path("b")), Some(Known::Missing));
        clock.advance(Duration::from_secs(1));
        assert_eq!(cache.get(&path("b")), None);
        clock.advance(Duration::from_secs(8));
        assert_eq!(cache.get(&path("a")), None);
    }

    #[test]
    fn without_a_sync_interval_attributes_last_and_with_zero_they_never_count() {
        let clock = Clock::manual();
        let for_ever = cache(&clock, None);
        for_ever.put(&path("a"), Known::Attr(attr(1)), for_ever.ticket());
        clock.advance(Duration::from_secs(1 << 30));
        assert!(for_ever.get(&path("a")).is_some());
        let never = cache(&clock, Some(0));
        never.put(&path("a"), Known::Attr(attr(1)), never.ticket());
        assert!(never.get(&path("a")).is_none());
    }

    #[test]
    fn a_complete_listing_knows_what_is_not_there() {
        let clock = Clock::manual();
        let cache = cache(&clock, Some(10));
        let batches = vec![vec![entry("a", 1), entry("c", 3)].into(), vec![entry("d", 4)].into()];
        cache.put_listing(&path("dir"), batches.clone(), false, cache.ticket());
        assert_eq!(cache.get(&path("dir/c")), Some(Known::Attr(attr(3))));
        assert_eq!(cache.get(&path("dir/b")), None, "an incomplete listing proves no absence");
        assert!(cache.listing(&path("dir")).is_none());
        cache.put_listing(&path("dir"), batches, true, cache.ticket());
        assert_eq!(cache.get(&path("dir/b")), Some(Known::Missing));
        assert_eq!(cache.get(&path("dir/d")), Some(Known::Attr(attr(4))));
        assert!(cache.listing(&path("dir")).is_some());
        clock.advance(Duration::from_secs(2));
        assert_eq!(cache.get(&path("dir/b")), None, "absence has its own age");
        assert!(cache.get(&path("dir/d")).is_some());
        clock.advance(Duration::from_secs(8));
        assert!(cache.get(&path("dir/d")).is_none());
        assert!(cache.listing(&path("dir")).is_none());
    }

    #[test]
    fn a_tree_is_forgotten_as_a_whole_and_nothing_else() {
        let clock = Clock::manual();
        let cache = cache(&clock, Some(10));
        for name in ["d", "d/x", "d/e/y", "da", "other/z"] {
            cache.put(&path(name), Known::Attr(attr(1)), cache.ticket());
        }
        cache.put_listing(&path("d/e"), vec![vec![entry("y", 1)].into()], true, cache.ticket());
        cache.put_listing(&path("other"), vec![vec![entry("z", 1)].into()], true, cache.ticket());
        cache.forget_below(&path("d"));
        for name in ["d", "d/x", "d/e/y"] {
            assert_eq!(cache.get(&path(name)), None, "{name}");
        }
        assert!(cache.listing(&path("d/e")).is_none());
        assert!(cache.get(&path("da")).is_some() && cache.listing(&path("other")).is_some());
        cache.forget_below(&path(""));
        assert!(cache.is_empty());
    }

    #[test]
    fn the_younger_knowledge_counts() {
        let clock = Clock::manual();
        let cache = cache(&clock, Some(10));
        cache.put_listing(&path(""), vec![vec![entry("a", 1)].into()], true, cache.ticket());
        clock.advance(Duration::from_secs(1));
        cache.put(&path("a"), Known::Attr(attr(2)), cache.ticket());
        assert_eq!(cache.get(&path("a")), Some(Known::Attr(attr(2))));
        clock.advance(Duration::from_secs(1));
        cache.put_listing(&path(""), vec![vec![entry("a", 3)].into()], true, cache.ticket());
        assert_eq!(cache.get(&path("a")), Some(Known::Attr(attr(3))));
    }

    #[test]
    fn an_answer_from_before_a_forget_does_not_enter() {
        let clock = Clock::manual();
        let cache = cache(&clock, None);
        let ticket = cache.ticket();
        cache.forget(&path("a"));
        cache.put(&path("a"), Known::Attr(attr(1)), ticket);
        cache.put_listing(&path(""), vec![vec![entry("a", 1)].into()], true, ticket);
        assert_eq!(cache.get(&path("a")), None);
        assert!(cache.is_empty());
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let clock = Clock::manual();
        let cache = cache(&clock, None);
        for dir in 0..200 {
            let entries: Vec<_> = (0..50).map(|name| entry(&format!("{name:03}"), 1)).collect();
            cache.put_listing(&path(&format!("d{dir}")), vec![entries.into()], true, cache.ticket());
            for name in 0..50 {
                cache.put(&path(&format!("p{dir}/{name}")), Known::Missing, cache.ticket());
            }
            assert!(cache.len() <= 1000 + SHARDS, "{}", cache.len());
        }
        assert!(cache.listing(&path("d199")).is_some(), "the newest stays");
        let huge: Vec<_> = (0..2000).map(|name| entry(&format!("{name:04}"), 1)).collect();
        cache.put_listing(&path("huge"), vec![huge.into()], true, cache.ticket());
        assert!(cache.listing(&path("huge")).is_none());
    }

    #[test]
    fn batches_out_of_order_are_searched_all_the_same() {
        let clock = Clock::manual();
        let cache = cache(&clock, None);
        let batches = vec![vec![entry("m", 1), entry("z", 2)].into(), vec![entry("a", 3)].into()];
        cache.put_listing(&path(""), batches, true, cache.ticket());
        for (name, size) in [("m", 1), ("z", 2), ("a", 3)] {
            assert_eq!(cache.get(&path(name)), Some(Known::Attr(attr(size))));
        }
        assert_eq!(cache.get(&path("b")), Some(Known::Missing));
    }

    type History = HashMap<(u8, u8), Vec<(u64, Option<u64>)>>;

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, u8),
        Remove(u8, u8),
        Ask(u8, u8),
        List(u8),
        Forget(u8, u8),
        Wait(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..3u8, 0..4u8).prop_map(|(d, n)| Step::Set(d, n)),
            (0..3u8, 0..4u8).prop_map(|(d, n)| Step::Remove(d, n)),
            (0..3u8, 0..4u8).prop_map(|(d, n)| Step::Ask(d, n)),
            (0..3u8).prop_map(Step::List),
            (0..3u8, 0..4u8).prop_map(|(d, n)| Step::Forget(d, n)),
            (1..4u8).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        /// Against a storage that changes behind the cache: an answer is always what the storage had at some moment
        /// within the interval.
        #[test]
        fn no_answer_is_older_than_its_interval(steps in steps()) {
            let clock = Clock::manual();
            let cache = cache(&clock, Some(5));
            let mut now = 0u64;
            let mut next = 1u64;
            // Every state that a path had: from when on, and the size (none: missing).
            let mut history = History::new();
            let at = |d: u8, n: u8| path(&format!("d{d}/n{n}"));
            for step in steps {
                match step {
                    Step::Set(d, n) => { history.entry((d, n)).or_default().push((now, Some(next))); next += 1; }
                    Step::Remove(d, n) => history.entry((d, n)).or_default().push((now, None)),
                    Step::Wait(seconds) => { now += u64::from(seconds); clock.advance(Duration::from_secs(u64::from(seconds))); }
                    Step::Forget(d, n) => {
                        cache.forget(&at(d, n));
                        prop_assert_eq!(cache.get(&at(d, n)), None);
                    }
                    Step::List(d) => {
                        let entries: Vec<_> = (0..4).filter_map(|n| {
                            let size = history.get(&(d, n))?.last()?.1?;
                            Some(entry(&format!("n{n}"), size))
                        }).collect();
                        let batches = if entries.is_empty() { vec![] } else { vec![entries.into()] };
                        cache.put_listing(&path(&format!("d{d}")), batches, true, cache.ticket());
                    }
                    Step::Ask(d, n) => {
                        let current = history.get(&(d, n)).and_then(|states| states.last()?.1);
                        match cache.get(&at(d, n)) {
                            None => {
                                let known = current.map_or(Known::Missing, |size| Known::Attr(attr(size)));
                                cache.put(&at(d, n), known, cache.ticket());
                            }
                            Some(known) => {
                                let (said, interval) = match &known {
                                    Known::Attr(attr) => (Some(attr.size), 5),
                                    Known::Missing => (None, 2),
                                };
                                let states = history.get(&(d, n)).cloned().unwrap_or_default();
                                let mut valid = states.is_empty() && said.is_none();
                                if let Some((first, _)) = states.first() {
                                    valid |= said.is_none() && now < first + interval;
                                }
                                for (index, (_, size)) in states.iter().enumerate() {
                                    let until = states.get(index + 1).map_or(u64::MAX, |next| next.0);
                                    valid |= *size == said && until.saturating_add(interval) > now;
                                }
                                prop_assert!(valid, "{:?} of {:?} at {}", known, states, now);
                            }
                        }
                    }
                }
            }
        }
    }
}
