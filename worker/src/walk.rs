//! Listing ahead of a walk. `find`, `du` and `rsync` list one directory after the other and wait for each; with a
//! storage that answers after 20 ms most of their time is that wait.
//!
//! A walk is recognised when directories are listed whose parents were listed shortly before. From then on the
//! directories that come next in order of depth are listed in the background, and the listings asked for later are
//! found in the metadata cache.
//!
//! Invariants: this module only decides (it makes no request and holds no lock while one is made); what is decided
//! ahead of the reader is bounded by a credit that only the reader's own listings renew, and by a number of entries.

use crate::clock::{Clock, Moment};
use common::{FileKind, UfsPath, worker::DirEntry};
use lru::LruCache;
use parking_lot::Mutex;
use std::{collections::VecDeque, num::NonZeroUsize, sync::Arc, time::Duration};

/// Listings further apart than this belong to different walks.
const TOGETHER: Duration = Duration::from_secs(5);
/// Directories that wait to be listed ahead.
const WAITING: usize = 4096;
/// Directories listed by readers that are remembered.
const REMEMBERED: usize = 512;
/// Listings ahead that each listing of the reader pays for.
const CREDIT_EACH: usize = 8;

struct Visit {
    at: Moment,
    /// Directories below it that were listed after it.
    followers: u32,
    /// Listed parents in a row above it.
    depth: u32,
    /// Whether the directories in it have been put in line.
    expanded: bool,
}

struct State {
    visits: LruCache<UfsPath, Visit>,
    /// Directories to list, the next one at the back.
    line: VecDeque<UfsPath>,
    /// Directories listed ahead and not yet asked for, with their number of entries.
    ahead: LruCache<UfsPath, usize>,
    ahead_entries: usize,
    credit: usize,
    running: usize,
    last: Option<Moment>,
}

/// Decides what to list ahead.
pub(crate) struct Walker {
    clock: Clock,
    parallel: usize,
    credit_limit: usize,
    entry_limit: usize,
    state: Mutex<State>,
}

impl Walker {
    /// A walker that keeps `parallel` listings under way, at most `ahead` directories and `entries` names ahead.
    pub(crate) fn new(clock: Clock, parallel: usize, ahead: usize, entries: usize) -> Self {
        let bound = |count: usize| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
        Self {
            clock,
            parallel,
            credit_limit: ahead,
            entry_limit: entries,
            state: Mutex::new(State {
                visits: LruCache::new(bound(REMEMBERED)),
                line: VecDeque::new(),
                ahead: LruCache::new(bound(ahead)),
                ahead_entries: 0,
                credit: 0,
                running: 0,
                last: None,
            }),
        }
    }

    /// A reader lists `path`; `cached`: the listing was there. `entries_of` gives the complete listing of a directory
    /// if it is known. Follow with [`next`](Self::next).
    pub(crate) fn demanded(
        &self,
        path: &UfsPath,
        cached: bool,
        entries_of: impl Fn(&UfsPath) -> Option<Vec<Arc<[DirEntry]>>>,
    ) {
        if self.parallel == 0 || self.credit_limit == 0 {
            return;
        }
        let now = self.clock.now();
        let (hit, ancestors) = {
            let mut state = self.state.lock();
            if state.last.is_some_and(|last| now.since(last) > TOGETHER) {
                state.line.clear();
                state.ahead.clear();
                state.ahead_entries = 0;
                state.credit = 0;
                state.visits.clear();
            }
            state.last = Some(now);
            let hit = match state.ahead.pop(path) {
                Some(entries) => {
                    state.ahead_entries -= entries;
                    true
                }
                None => false,
            };
            // The reader is there by itself: no need to list it ahead. It is near the end of the line if anywhere.
            let from = state.line.len().saturating_sub(64);
            if let Some(at) = state.line.range(from..).position(|waiting| waiting == path) {
                state.line.remove(from + at);
            }
            let mut depth = 0;
            let mut followers = 0;
            if let Some(parent) = path.parent().and_then(|parent| state.visits.get_mut(&parent)) {
                parent.followers += 1;
                followers = parent.followers;
                depth = parent.depth + 1;
            }
            state.visits.put(path.clone(), Visit { at: now, followers: 0, depth, expanded: hit });
            let walking = hit || ((followers >= 2 || depth >= 2) && !cached);
            if !walking {
                return;
            }
            state.credit = (state.credit + CREDIT_EACH).min(self.credit_limit);
            let mut ancestors = Vec::new();
            let mut below = path.clone();
            while !hit && let Some(dir) = below.parent() {
                match state.visits.get_mut(&dir) {
                    Some(visit) if !visit.expanded && now.since(visit.at) <= TOGETHER => {
                        visit.expanded = true;
                        ancestors.push((dir.clone(), below.clone()));
                    }
                    _ => {}
                }
                below = dir;
            }
            (hit, ancestors)
        };
        if hit {
            return;
        }
        // The highest first: what is put in line later is listed sooner.
        for (dir, below) in ancestors.into_iter().rev() {
            if let Some(batches) = entries_of(&dir) {
                self.line_up(&dir, &batches, below.name());
            }
        }
    }

    /// The listing of `path` is complete: the directories in it come next, if this is part of a walk. `ahead`: it was
    /// asked for by [`next`](Self::next).
    pub(crate) fn listed(&self, path: &UfsPath, batches: &[Arc<[DirEntry]>], ahead: bool) {
        {
            let mut state = self.state.lock();
            if ahead {
                let entries = batches.iter().map(|batch| batch.len()).sum::<usize>() + 1;
                if state.visits.peek(path).is_none() {
                    if let Some((_, old)) = state.ahead.push(path.clone(), entries) {
                        state.ahead_entries -= old;
                    }
                    state.ahead_entries += entries;
                }
            } else {
                if state.credit == 0 {
                    return;
                }
                match state.visits.get_mut(path) {
                    Some(visit) if !visit.expanded => visit.expanded = true,
                    _ => return,
                }
            }
        }
        self.line_up(path, batches, None);
    }

    /// One listing that [`next`](Self::next) asked for is over, well or badly.
    pub(crate) fn ended(&self) {
        let mut state = self.state.lock();
        state.running = state.running.saturating_sub(1);
    }

    /// The next directory to list ahead, if any should be now. The caller reports its end by [`ended`](Self::ended).
    pub(crate) fn next(&self) -> Option<UfsPath> {
        let mut state = self.state.lock();
        if state.running >= self.parallel || state.credit == 0 || state.ahead_entries >= self.entry_limit {
            return None;
        }
        let path = state.line.pop_back()?;
        state.credit -= 1;
        state.running += 1;
        Some(path)
    }

    fn line_up(&self, dir: &UfsPath, batches: &[Arc<[DirEntry]>], after: Option<&[u8]>) {
        let directories: Vec<UfsPath> = batches
            .iter()
            .flat_map(|batch| batch.iter())
            .filter(|entry| entry.kind == FileKind::Directory)
            .skip_while(|entry| after.is_some_and(|after| *entry.name <= *after))
            .take(WAITING)
            .filter_map(|entry| dir.join(&entry.name).ok())
            .collect();
        let mut state = self.state.lock();
        state.line.extend(directories.into_iter().rev());
        while state.line.len() > WAITING {
            state.line.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> UfsPath {
        UfsPath::parse(text).unwrap()
    }

    fn dirs(names: &[&str]) -> Vec<Arc<[DirEntry]>> {
        let entry = |name: &&str| DirEntry { name: name.as_bytes().into(), kind: FileKind::Directory, attr: None };
        vec![names.iter().map(entry).collect::<Vec<_>>().into()]
    }

    #[test]
    fn one_listing_is_no_walk_and_the_second_child_is() {
        let walker = Walker::new(Clock::manual(), 4, 64, 1000);
        let root = dirs(&["a", "b", "c", "d"]);
        let known = |dir: &UfsPath| dir.is_root().then(|| root.clone());
        walker.demanded(&path(""), false, known);
        walker.listed(&path(""), &root, false);
        assert_eq!(walker.next(), None);
        walker.demanded(&path("a"), false, known);
        assert_eq!(walker.next(), None);
        walker.demanded(&path("b"), false, known);
        assert_eq!(walker.next(), Some(path("c")));
        walker.listed(&path("c"), &dirs(&["x", "y"]), true);
        assert_eq!(walker.next(), Some(path("c/x")), "depth first");
        assert_eq!(walker.next(), Some(path("c/y")));
        assert_eq!(walker.next(), Some(path("d")));
        assert_eq!(walker.next(), None, "four under way");
    }

    #[test]
    fn what_is_listed_ahead_is_bounded_until_the_reader_follows() {
        let walker = Walker::new(Clock::manual(), 1000, 20, 1000);
        let names: Vec<String> = (0..500).map(|at| format!("{at:03}")).collect();
        let root = dirs(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let known = |dir: &UfsPath| dir.is_root().then(|| root.clone());
        walker.demanded(&path(""), false, known);
        walker.demanded(&path("000"), false, known);
        let mut made = 0;
        for (at, name) in names.iter().enumerate().take(100).skip(1) {
            walker.demanded(&path(name), false, known);
            while let Some(next) = walker.next() {
                walker.listed(&next, &[], true);
                walker.ended();
                made += 1;
            }
            assert!(made <= at * CREDIT_EACH);
        }
        assert!(made > 90, "{made}");
        while walker.next().is_some() {
            made += 1;
        }
        assert!(made <= 499);
    }

    #[test]
    fn a_walk_that_ended_leaves_nothing_to_do() {
        let clock = Clock::manual();
        let walker = Walker::new(clock.clone(), 4, 64, 1000);
        let root = dirs(&["a", "b", "c", "d"]);
        let known = |dir: &UfsPath| dir.is_root().then(|| root.clone());
        for dir in ["", "a", "b"] {
            walker.demanded(&path(dir), false, known);
        }
        clock.advance(TOGETHER * 2);
        walker.demanded(&path("elsewhere"), false, known);
        assert_eq!(walker.next(), None);
    }
}
