//! The entries of a directory from whoever can list it: its owner, the next workers, the storage itself.
//!
//! A worker that fails in the middle is replaced by the next one, which lists from the beginning; names that were given
//! already are left out then. They are known by a hash of each while there are at most [`REMEMBERED`] of them; of a longer
//! listing by its last name, if names came in ascending order (as object stores list), and else the listing fails.
//!
//! Invariants: no name is given twice and none is left out that both lists have; memory is bounded.

use super::{
    link::Link,
    mounted::{ATTEMPTS, Mounted, remote},
};
use async_trait::async_trait;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, UfsPath,
    rpc::{self, is_worker_failure, worker as proto},
    worker::{DirEntry, Listing},
};
use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};
use tonic::Streaming;

/// Names that are remembered by their hashes: 32 MiB of them.
const REMEMBERED: usize = 4 << 20;

/// A directory being listed.
pub struct Entries {
    mounted: Arc<Mounted>,
    path: UfsPath,
    /// Workers that were not asked yet, the next one last.
    left: Vec<Arc<Link>>,
    source: Source,
    /// The first batch of the source, which was fetched to see whether it can list at all.
    first: Option<Vec<DirEntry>>,
    /// The source has no more.
    over: bool,
    given: Given,
    skip: Option<Skip>,
}

enum Source {
    Worker(Box<Streaming<proto::ListReply>>, Arc<Link>),
    Storage(Box<dyn Listing>),
}

impl Entries {
    /// Begins to list; returns once somebody has given the first entries, or said that there are none.
    pub async fn begin(mounted: Arc<Mounted>, path: UfsPath) -> Result<Self> {
        let mut left = mounted.owners(&path, ATTEMPTS);
        left.reverse();
        let (source, first) = open(&mounted, &path, &mut left).await?;
        let over = first.is_none();
        Ok(Self { mounted, path, left, source, first, over, given: Given::default(), skip: None })
    }

    async fn fetch(&mut self) -> Result<Option<Vec<DirEntry>>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.over {
            return Ok(None);
        }
        let failure = match &mut self.source {
            Source::Storage(listing) => return next_of(listing).await,
            Source::Worker(stream, link) => match receive(stream, link, &self.mounted).await {
                Err(error) if is_worker_failure(&error) => error,
                outcome => return outcome,
            },
        };
        let skip = self.given.to_skip().ok_or_else(|| failure.clone())?;
        tracing::debug!(path = %self.path, error = %failure, "a listing goes on elsewhere");
        let (source, first) = open(&self.mounted, &self.path, &mut self.left).await?;
        (self.source, self.skip, self.over) = (source, Some(skip), first.is_none());
        Ok(first)
    }
}

#[async_trait]
impl Listing for Entries {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        loop {
            let Some(mut batch) = self.fetch().await? else { return Ok(None) };
            if let Some(skip) = &mut self.skip {
                skip.leave_out(&mut batch, &self.given)?;
            }
            if !batch.is_empty() {
                self.given.add(&batch);
                return Ok(Some(batch));
            }
        }
    }
}

/// A source that has given its first batch, or has ended without one.
async fn open(
    mounted: &Arc<Mounted>,
    path: &UfsPath,
    left: &mut Vec<Arc<Link>>,
) -> Result<(Source, Option<Vec<DirEntry>>)> {
    while let Some(link) = left.pop() {
        let request = proto::ListRequest { storage: mounted.storage().to_string(), path: path.as_bytes().to_vec() };
        let begun = match link.call(async move |client| client.list(request).await).await {
            Ok(mut stream) => receive(&mut stream, &link, mounted).await.map(|first| (stream, first)),
            Err(error) => Err(error),
        };
        match begun {
            Ok((stream, first)) => return Ok((Source::Worker(Box::new(stream), link), first)),
            Err(error) if is_worker_failure(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let mut listing = mounted.direct("list")?.list(path).await?;
    let first = next_of(&mut listing).await?;
    Ok((Source::Storage(listing), first))
}

/// The next entries of the storage itself.
async fn next_of(listing: &mut Box<dyn Listing>) -> Result<Option<Vec<DirEntry>>> {
    let mut batch = listing.next().await?;
    for attr in batch.iter_mut().flatten().filter_map(|entry| entry.attr.as_mut()) {
        *attr = Arc::new(remote((**attr).clone()));
    }
    Ok(batch)
}

/// The next entries that a worker sends.
async fn receive(
    stream: &mut Streaming<proto::ListReply>,
    link: &Arc<Link>,
    mounted: &Mounted,
) -> Result<Option<Vec<DirEntry>>> {
    loop {
        let batch = match tokio::time::timeout(mounted.options.link.patience, stream.message()).await {
            Ok(Ok(Some(batch))) => batch,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(status)) => {
                let error = rpc::error_of(&status);
                if !rpc::is_told(&status) {
                    link.failed(&error);
                }
                return Err(error);
            }
            Err(_) => {
                let worker = link.entry().shown();
                let error =
                    Error::new(ErrorKind::TimedOut, format!("worker {worker} stopped in the middle of a listing"));
                link.failed(&error);
                return Err(error);
            }
        };
        let entries: Vec<DirEntry> = batch
            .entries
            .into_iter()
            .map(|entry| DirEntry {
                name: entry.name.into(),
                kind: FileKind::from_mode(entry.kind),
                attr: entry.attr.map(|attr| Arc::new(Attr::from(attr))),
            })
            .collect();
        if !entries.is_empty() {
            return Ok(Some(entries));
        }
    }
}

/// The names that were given.
struct Given {
    hasher: RandomState,
    /// None: there are too many.
    hashes: Option<Vec<u64>>,
    last: Box<[u8]>,
    ordered: bool,
}

impl Default for Given {
    fn default() -> Self {
        Self { hasher: RandomState::new(), hashes: Some(Vec::new()), last: Box::default(), ordered: true }
    }
}

impl Given {
    fn add(&mut self, batch: &[DirEntry]) {
        self.ordered &= ascends(&self.last, batch);
        if let Some(last) = batch.last() {
            self.last = last.name.clone();
        }
        if let Some(hashes) = &mut self.hashes {
            hashes.extend(batch.iter().map(|entry| self.hasher.hash_one(&entry.name)));
            if hashes.len() > REMEMBERED {
                self.hashes = None;
            }
        }
    }

    /// By what the names given so far can be left out of another listing; none when there is no way.
    fn to_skip(&self) -> Option<Skip> {
        match &self.hashes {
            Some(hashes) => {
                let mut sorted = hashes.clone();
                sorted.sort_unstable();
                Some(Skip::Hashes(sorted))
            }
            None => self.ordered.then(|| Skip::UpTo { name: self.last.clone(), seen: Box::default() }),
        }
    }
}

/// What to leave out of a listing that began anew.
enum Skip {
    /// Names with these hashes.
    Hashes(Vec<u64>),
    /// Names up to this one; the listing must ascend, `seen` is the last name of it.
    UpTo { name: Box<[u8]>, seen: Box<[u8]> },
}

impl Skip {
    fn leave_out(&mut self, batch: &mut Vec<DirEntry>, given: &Given) -> Result<()> {
        match self {
            Skip::Hashes(hashes) => {
                batch.retain(|entry| hashes.binary_search(&given.hasher.hash_one(&entry.name)).is_err());
            }
            Skip::UpTo { name, seen } => {
                if !ascends(seen, batch) {
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        "a worker failed in the middle of a long listing that is not in order; list again",
                    ));
                }
                if let Some(last) = batch.last() {
                    *seen = last.name.clone();
                }
                batch.retain(|entry| entry.name > *name);
            }
        }
        Ok(())
    }
}

/// Whether the names of `batch` follow `last` and each other in ascending order.
fn ascends(last: &[u8], batch: &[DirEntry]) -> bool {
    batch.first().is_none_or(|first| last.is_empty() || *first.name > *last)
        && batch.windows(2).all(|pair| pair[0].name < pair[1].name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(names: &[&str]) -> Vec<DirEntry> {
        let entry = |name: &&str| DirEntry { name: name.as_bytes().into(), kind: FileKind::File, attr: None };
        names.iter().map(entry).collect()
    }

    fn names(batch: &[DirEntry]) -> Vec<&str> {
        batch.iter().map(|entry| std::str::from_utf8(&entry.name).unwrap()).collect()
    }

    #[test]
    fn names_are_left_out_in_whatever_order_they_come() {
        let mut given = Given::default();
        given.add(&batch(&["c", "a"]));
        given.add(&batch(&["b"]));
        let mut skip = given.to_skip().unwrap();
        let mut again = batch(&["a", "d", "b", "c", "e"]);
        skip.leave_out(&mut again, &given).unwrap();
        assert_eq!(names(&again), ["d", "e"]);
    }

    #[test]
    fn long_listings_go_on_after_their_last_name_when_they_are_in_order() {
        let mut given = Given { hashes: None, ..Given::default() };
        given.add(&batch(&["a", "b"]));
        given.add(&batch(&["c"]));
        let mut skip = given.to_skip().unwrap();
        let mut again = batch(&["a", "b", "b2"]);
        skip.leave_out(&mut again, &given).unwrap();
        assert_eq!(names(&again), [""; 0]);
        let mut again = batch(&["c", "d"]);
        skip.leave_out(&mut again, &given).unwrap();
        assert_eq!(names(&again), ["d"]);
        assert!(skip.leave_out(&mut batch(&["a"]), &given).is_err(), "not in order: a name could be missed");
        given.add(&batch(&["b"]));
        assert!(given.to_skip().is_none());
    }
}
