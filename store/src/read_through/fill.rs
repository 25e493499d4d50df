//! One request to the storage, and the pages that it fills.

use super::open::Pages;
use common::{
    Error, ErrorKind, Result,
    page::{PageLoad, PageWriter},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{sync::OwnedSemaphorePermit, time::timeout};
use ufs::ReadSink;

/// Fetches pages that follow each other, from `first` on. All of them have ended when it returns, whatever happens.
pub(super) async fn fill(
    pages: Arc<Pages>,
    first: u64,
    loads: Vec<(Arc<PageLoad>, PageWriter)>,
    permit: Option<OwnedSemaphorePermit>,
) {
    let _permit = permit;
    let reads = pages.reads.clone();
    // The first page may have begun with bytes that came with a lookup.
    let begun = loads.first().map_or(0, |(load, writer)| load.len() - writer.missing());
    let offset = first * pages.page_size() + begun as u64;
    let length = loads.iter().map(|(_, writer)| writer.missing() as u64).sum();
    let mut sink =
        Filler { pages: pages.clone(), next: first, loads: loads.into(), arrived: Arc::default(), surplus: 0 };
    let result = match timeout(reads.options.deadline, reads.requests.clone().acquire_owned()).await {
        Ok(Ok(_request)) => {
            reads.counters.requests.fetch_add(1, Relaxed);
            request(&pages, offset, length, &mut sink).await
        }
        _ => Err(Error::new(ErrorKind::TimedOut, format!("{}: too many requests are under way", pages.path))),
    };
    let arrived = sink.arrived.load(Relaxed);
    reads.counters.fetched_bytes.fetch_add(arrived, Relaxed);
    common::metrics::metrics().missed_read_bytes.inc_by(arrived);
    let result = match result {
        Ok(()) if sink.surplus > 0 => Err(Error::new(
            ErrorKind::Corrupt,
            format!("{}: the storage gave {} bytes more than the {length} asked for", pages.path, sink.surplus),
        )),
        other => other,
    };
    if let Err(error) = &result {
        reads.counters.failures.fetch_add(1, Relaxed);
        if error.kind() == ErrorKind::Stale {
            pages.went_stale(error);
        }
    }
    sink.end(result);
}

/// The read itself, which fails after the deadline without a byte.
async fn request(pages: &Pages, offset: u64, length: u64, sink: &mut Filler) -> Result<()> {
    let deadline = pages.reads.options.deadline;
    let arrived = sink.arrived.clone();
    let read = pages.reads.ufs.read(&pages.path, &pages.version, offset, length, sink);
    tokio::pin!(read);
    let mut seen = 0;
    loop {
        if let Ok(result) = timeout(deadline, &mut read).await {
            return result;
        }
        let now = arrived.load(Relaxed);
        if now == seen {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("{}: no byte came for {deadline:?} ({now} of {length} before)", pages.path),
            ));
        }
        seen = now;
    }
}

/// Fills page after page.
struct Filler {
    pages: Arc<Pages>,
    next: u64,
    loads: VecDeque<(Arc<PageLoad>, PageWriter)>,
    arrived: Arc<AtomicU64>,
    /// Bytes that came beyond the last page.
    surplus: usize,
}

impl ReadSink for Filler {
    fn push(&mut self, mut bytes: &[u8]) -> bool {
        self.arrived.fetch_add(bytes.len() as u64, Relaxed);
        while !bytes.is_empty() {
            let Some((_, writer)) = self.loads.front_mut() else {
                self.surplus += bytes.len();
                return false;
            };
            let taken = writer.append(bytes);
            bytes = &bytes[taken..];
            if writer.missing() == 0 && (self.loads.len() > 1 || !bytes.is_empty()) {
                // The last page ends only with the request: a storage that gives too much is not to be trusted.
                if self.loads.len() == 1 {
                    self.surplus += bytes.len();
                    return false;
                }
                self.finish_front();
            }
        }
        true
    }
}

impl Filler {
    /// Ends the front page, which has all its bytes.
    fn finish_front(&mut self) {
        let Some((load, writer)) = self.loads.pop_front() else { return };
        let page = self.next;
        self.next += 1;
        if self.pages.writes_inline()
            && let Some(stored) = &self.pages.stored
        {
            // Before the load ends: who waits for the end finds the page on disk. Readers have its bytes already.
            stored.write_page(page, load.filled());
        }
        match writer.finish() {
            Ok(()) => self.pages.settle(page, load),
            Err(_) => self.pages.leave(page, &load),
        }
    }

    fn end(mut self, result: Result<()>) {
        let error = match result {
            Ok(()) => {
                while self.loads.front().is_some_and(|(_, writer)| writer.missing() == 0) {
                    self.finish_front();
                }
                let missing: usize = self.loads.iter().map(|(_, writer)| writer.missing()).sum();
                Error::new(
                    ErrorKind::Corrupt,
                    format!("{}: the storage ended {missing} bytes before the end of the range", self.pages.path),
                )
            }
            Err(error) => error,
        };
        for (load, writer) in std::mem::take(&mut self.loads) {
            // First out of the table: who is told of the failure and asks again starts anew.
            self.pages.leave(self.next, &load);
            self.next += 1;
            writer.fail(error.clone());
        }
    }
}
