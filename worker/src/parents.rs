//! When to list a directory instead of asking for its entries one by one.
//!
//! The first miss in a directory is answered by one request for that path (with its first bytes, since an open is
//! likely to follow). A second one soon after shows somebody going through the directory: it is listed, and the
//! listing answers the others. A directory whose listing helped nothing (too long, no attributes, failed) is left alone for a while.

use crate::clock::{Clock, Moment};
use lru::LruCache;
use parking_lot::Mutex;
use std::{num::NonZeroUsize, time::Duration};

/// Misses within this time belong together.
const TOGETHER: Duration = Duration::from_secs(10);
/// For how long a directory is not listed again after a listing that did not help.
const REST: Duration = Duration::from_secs(60);
/// Directories that are remembered.
const REMEMBERED: usize = 4096;

/// What to do about a miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// The first here: ask for the path, and its first bytes.
    First,
    /// Ask for the path.
    Ask,
    /// List the directory.
    List,
}

struct Note {
    misses: u32,
    last: Moment,
    rest_until: Option<Moment>,
}

/// What is remembered of directories in which something was not known.
pub(crate) struct Parents {
    clock: Clock,
    notes: Mutex<LruCache<Box<[u8]>, Note>>,
}

impl Parents {
    pub(crate) fn new(clock: Clock) -> Self {
        let capacity = NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN);
        Self { clock, notes: Mutex::new(LruCache::new(capacity)) }
    }

    /// Records that an entry of `dir` was looked for and not known.
    pub(crate) fn missed(&self, dir: &[u8]) -> Advice {
        let now = self.clock.now();
        let mut notes = self.notes.lock();
        let Some(note) = notes.get_mut(dir) else {
            notes.put(dir.into(), Note { misses: 1, last: now, rest_until: None });
            return Advice::First;
        };
        if now.since(note.last) > TOGETHER {
            note.misses = 0;
        }
        note.misses = note.misses.saturating_add(1);
        note.last = now;
        match note.rest_until {
            Some(until) if now < until => Advice::Ask,
            _ if note.misses >= 2 => Advice::List,
            _ => Advice::First,
        }
    }

    /// Records that the listing of `dir` did not answer what was looked for.
    pub(crate) fn useless(&self, dir: &[u8]) {
        let now = self.clock.now();
        let note = Note { misses: 0, last: now, rest_until: Some(now.plus(REST)) };
        self.notes.lock().put(dir.into(), note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_miss_lists_and_a_useless_listing_rests() {
        let clock = Clock::manual();
        let parents = Parents::new(clock.clone());
        assert_eq!(parents.missed(b"d"), Advice::First);
        clock.advance(TOGETHER + Duration::from_secs(1));
        assert_eq!(parents.missed(b"d"), Advice::First, "too long ago to belong together");
        assert_eq!(parents.missed(b"d"), Advice::List);
        parents.useless(b"d");
        assert_eq!(parents.missed(b"d"), Advice::Ask);
        assert_eq!(parents.missed(b"other"), Advice::First);
        clock.advance(REST);
        assert_eq!(parents.missed(b"d"), Advice::First);
        assert_eq!(parents.missed(b"d"), Advice::List);
    }
}
