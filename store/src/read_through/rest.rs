//! Fetches, in the background, what is missing of files that are nearly complete.
//!
//! Only a file that is wholly on disk passes through to the kernel. One that lacks a few pages (its reader skipped them, or
//! they came faster than the disk took them) would be read through the daemon for ever. So whenever a file is closed of
//! which most is present, its holes are queued here.
//!
//! Invariants:
//! - one file at a time, few pages at a time, with memory and requests that nobody else wants (prefetch);
//! - nothing is evicted for it: a file goes in only while its directory has room below the high watermark, and a file of
//!   more than an eighth of the directory never does;
//! - the queue is bounded, and a file that was tried is left alone for a while.

use super::{ReadThrough, open::Pages};
use common::{Attr, UfsPath};
use lru::LruCache;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// Files that may wait.
const QUEUE: usize = 64;
/// Pages asked for in one go.
const AHEAD: u64 = 4;
/// How long memory, a permit or the disk is waited for, before the next look.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks in vain after which a file is given up.
const PATIENCE: u32 = 100;
/// A file is not tried again so soon.
const TRIED_FOR: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Rest {
    /// The share of a file that must be present; 1: never mind.
    share: f64,
    inner: Mutex<Inner>,
}

struct Inner {
    queue: VecDeque<(UfsPath, Arc<Attr>)>,
    running: bool,
    tried: LruCache<UfsPath, Instant>,
}

impl Rest {
    pub fn new(share: f64) -> Self {
        let tried = LruCache::new(NonZeroUsize::MIN.saturating_add(4 * QUEUE));
        Self { share, inner: Mutex::new(Inner { queue: VecDeque::new(), running: false, tried }) }
    }

    /// Queues a file; true when somebody has to begin with the queue.
    fn push(&self, path: &UfsPath, attr: &Arc<Attr>) -> bool {
        let mut inner = self.inner.lock();
        let now = Instant::now();
        if inner.queue.len() >= QUEUE || inner.tried.peek(path).is_some_and(|at| now - *at < TRIED_FOR) {
            return false;
        }
        inner.tried.put(path.clone(), now);
        inner.queue.push_back((path.clone(), attr.clone()));
        !std::mem::replace(&mut inner.running, true)
    }

    fn pop(&self) -> Option<(UfsPath, Arc<Attr>)> {
        let mut inner = self.inner.lock();
        let next = inner.queue.pop_front();
        inner.running = next.is_some();
        next
    }
}

impl ReadThrough {
    /// A file was closed: what is missing of it is fetched if that is worth it.
    pub(super) fn closed(self: &Arc<Self>, pages: &Pages, attr: &Arc<Attr>) {
        if pages.lacks_little(self.rest.share) && self.rest.push(&pages.path, attr) {
            self.handle.spawn(work(Arc::downgrade(self)));
        }
    }
}

async fn work(reads: Weak<ReadThrough>) {
    while let Some(reads) = reads.upgrade() {
        let Some((path, attr)) = reads.rest.pop() else { return };
        let pages = reads.pages(&path, &attr);
        pages.fetch_rest(reads.rest.share).await;
    }
}

impl Pages {
    /// Whether most of the file is on disk, not all, and there is room for the rest.
    fn lacks_little(&self, share: f64) -> bool {
        let Some(stored) = &self.stored else { return false };
        if share >= 1.0 || self.count() < 2 || !stored.takes_writes() {
            return false;
        }
        let present = stored.present();
        present < self.count() && present as f64 >= self.count() as f64 * share && stored.has_room()
    }

    async fn fetch_rest(&self, share: f64) {
        let (mut page, mut patience) = (0, PATIENCE);
        while page < self.count() && patience > 0 {
            if self.is_present(page) {
                page += 1;
                continue;
            }
            if !self.lacks_little(share) {
                return;
            }
            let holes = (page..self.count()).take(AHEAD as usize).take_while(|page| !self.is_present(*page)).count();
            let under_way = self.prefetch(page, holes as u64) > 0;
            // Taking it from the table marks it as used: it leaves the memory once it is stored.
            match self.page_now(page).filter(|_| under_way) {
                Some(load) => {
                    if load.wait_end().await.is_err() {
                        return;
                    }
                    page += 1;
                }
                None => {
                    patience -= 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
