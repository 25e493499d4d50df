//! A storage in memory that misbehaves by a given seed: errors, short and long bodies, bodies that trickle or stall, and
//! objects that change at any moment.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, UfsUri, Version,
    worker::{DirEntry, Listing},
};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tests::content;
use ufs::{Head, ReadSink, UnderStorage};

/// How often what goes wrong, in parts of a hundred requests.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Failures before or within a body, bodies of a wrong length.
    pub faults: u32,
    /// Bodies that trickle.
    pub slow: u32,
    /// Bodies that stall until their reader gives up.
    pub stall: u32,
    /// Objects that are replaced before or while they are read.
    pub change: u32,
}

/// What a storage did, for the message of a failure.
#[derive(Debug, Default)]
pub struct Counts {
    pub reads: AtomicU64,
    pub faults: AtomicU64,
    pub changes: AtomicU64,
    pub stale: AtomicU64,
    pub running: AtomicU64,
}

/// The sizes of the versions of one file; the last one is there now.
type Versions = Vec<u64>;

pub struct Faulty {
    uri: UfsUri,
    files: Mutex<BTreeMap<UfsPath, Versions>>,
    random: Mutex<StdRng>,
    rates: Rates,
    calm: AtomicBool,
    violation: Mutex<Option<String>>,
    pub counts: Counts,
}

/// The bytes of a version of a file.
pub fn bytes_of(path: &UfsPath, version: usize, offset: u64, length: usize) -> Vec<u8> {
    content(&format!("{path} version {version}"), offset, length)
}

/// The number of a version.
pub fn number_of(version: &Version) -> usize {
    version.as_str().strip_prefix('v').and_then(|digits| digits.parse().ok()).expect("a version of this storage")
}

enum Course {
    Right,
    FailAfter(u64, ErrorKind),
    /// Ends as if all were well.
    EndAfter(u64),
    Surplus(usize),
    StaleAfter(u64),
    StallAfter(u64),
}

impl Faulty {
    pub fn new(sizes: &[u64], rates: Rates, seed: u64) -> Arc<Self> {
        let files = sizes.iter().enumerate().map(|(number, size)| (path_of(number), vec![*size])).collect();
        Arc::new(Self {
            uri: UfsUri::parse("memory://faulty/root").expect("a constant"),
            files: Mutex::new(files),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            rates,
            calm: AtomicBool::new(false),
            violation: Mutex::default(),
            counts: Counts::default(),
        })
    }

    /// From now on everything goes well and nothing changes, or not.
    pub fn calm(&self, yes: bool) {
        self.calm.store(yes, Ordering::SeqCst);
    }

    /// The size of a version.
    pub fn size_of(&self, path: &UfsPath, version: usize) -> u64 {
        self.files.lock()[path][version]
    }

    /// The newest version of a file.
    pub fn newest(&self, path: &UfsPath) -> usize {
        self.files.lock()[path].len() - 1
    }

    fn chance(&self, percent: u32) -> bool {
        !self.calm.load(Ordering::SeqCst) && self.random.lock().random_range(0..100) < percent
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.lock().random_range(0..limit.max(1))
    }

    fn error(&self, what: &UfsPath) -> Error {
        let kinds = [
            ErrorKind::Unavailable,
            ErrorKind::TimedOut,
            ErrorKind::Io,
            ErrorKind::Corrupt,
            ErrorKind::PermissionDenied,
        ];
        let kind = kinds[self.below(kinds.len() as u64) as usize];
        Error::new(kind, format!("{what} fails by order"))
    }

    fn maybe_change(&self, path: &UfsPath) {
        if self.chance(self.rates.change) {
            self.change(path);
        }
    }

    /// Replaces the file by one of another size, or of the same.
    fn change(&self, path: &UfsPath) {
        let mut files = self.files.lock();
        if let Some(versions) = files.get_mut(path) {
            let size = versions[versions.len() - 1];
            let mut random = self.random.lock();
            versions.push(match random.random_range(0..3) {
                0 => size,
                1 => size / 2 + random.random_range(0..100),
                _ => size + random.random_range(0..20_000),
            });
            self.counts.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What somebody asked for against the trait, if anybody did.
    pub fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    fn course(&self, length: u64) -> Course {
        if self.chance(self.rates.stall) {
            return Course::StallAfter(self.below(length));
        }
        if self.chance(self.rates.change) {
            return Course::StaleAfter(self.below(length));
        }
        if !self.chance(self.rates.faults) {
            return Course::Right;
        }
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        let after = self.below(length + 1);
        let kind = [ErrorKind::Unavailable, ErrorKind::Io, ErrorKind::TimedOut][self.below(3) as usize];
        match self.below(4) {
            0 => Course::FailAfter(0, kind),
            1 => Course::FailAfter(after, kind),
            2 if after < length => Course::EndAfter(after),
            _ => Course::Surplus(1 + self.below(5000) as usize),
        }
    }

    fn attr(&self, path: &UfsPath) -> Result<Attr> {
        if path.is_root() {
            return Ok(Attr::of_object(FileKind::Directory, 0, Timestamp::default(), Version::none()));
        }
        let files = self.files.lock();
        let versions =
            files.get(path).ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{path}: no such object")))?;
        Ok(attr_of(versions))
    }
}

fn attr_of(versions: &Versions) -> Attr {
    let number = versions.len() - 1;
    let mtime = Timestamp { sec: 1_700_000_000 + number as i64, nsec: 0 };
    Attr::of_object(FileKind::File, versions[number], mtime, Version::new(format!("v{number}")))
}

/// The path of a file by its number.
pub fn path_of(number: usize) -> UfsPath {
    UfsPath::parse(format!("file-{number:02}")).expect("a plain name")
}

struct Running<'a>(&'a Counts);

impl<'a> Running<'a> {
    fn new(counts: &'a Counts) -> Self {
        counts.running.fetch_add(1, Ordering::Relaxed);
        Running(counts)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Entries(std::vec::IntoIter<DirEntry>);

#[async_trait]
impl Listing for Entries {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        let batch: Vec<_> = self.0.by_ref().take(3).collect();
        Ok((!batch.is_empty()).then_some(batch))
    }
}

#[async_trait]
impl UnderStorage for Faulty {
    fn uri(&self) -> &UfsUri {
        &self.uri
    }

    async fn probe(&self) -> Result<()> {
        Ok(())
    }

    async fn stat(&self, path: &UfsPath) -> Result<Attr> {
        let _running = Running::new(&self.counts);
        if self.chance(self.rates.slow) {
            tokio::time::sleep(Duration::from_micros(self.below(2000))).await;
        }
        if self.chance(self.rates.faults) {
            return Err(self.error(path));
        }
        self.maybe_change(path);
        self.attr(path)
    }

    async fn stat_and_read(&self, path: &UfsPath, max: u32) -> Result<Head> {
        let attr = self.stat(path).await?;
        if !attr.is_file() {
            return Ok(Head { attr, bytes: Bytes::new() });
        }
        // Fewer bytes than there are is allowed.
        let mut length = attr.size.min(u64::from(max));
        if self.chance(self.rates.faults) {
            length = self.below(length);
        }
        let bytes = bytes_of(path, number_of(&attr.version), 0, length as usize).into();
        self.maybe_change(path);
        Ok(Head { attr, bytes })
    }

    async fn list(&self, path: &UfsPath) -> Result<Box<dyn Listing>> {
        if self.chance(self.rates.faults) {
            return Err(self.error(path));
        }
        let files = self.files.lock();
        let entries: Vec<DirEntry> = files
            .iter()
            .map(|(path, versions)| DirEntry {
                name: path.name().unwrap_or_default().into(),
                kind: FileKind::File,
                attr: Some(Arc::new(attr_of(versions))),
            })
            .collect();
        Ok(Box::new(Entries(entries.into_iter())))
    }

    async fn read(
        &self,
        path: &UfsPath,
        version: &Version,
        offset: u64,
        length: u64,
        sink: &mut dyn ReadSink,
    ) -> Result<()> {
        let _running = Running::new(&self.counts);
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        self.maybe_change(path);
        let stale = || {
            self.counts.stale.fetch_add(1, Ordering::Relaxed);
            Error::new(ErrorKind::Stale, format!("{path}: version {version} is gone"))
        };
        if self.attr(path)?.version != *version {
            return Err(stale());
        }
        let number = number_of(version);
        let size = self.size_of(path, number);
        if offset + length > size {
            // A panic would be lost in a task of somebody's.
            let violation = format!("{path}: {offset}+{length} lies outside of version {version} with {size} bytes");
            *self.violation.lock() = Some(violation.clone());
            return Err(Error::new(ErrorKind::InvalidArgument, violation));
        }
        let course = self.course(length);
        let slow = self.chance(self.rates.slow);
        let until = match course {
            Course::FailAfter(after, _)
            | Course::EndAfter(after)
            | Course::StaleAfter(after)
            | Course::StallAfter(after) => after,
            Course::Right | Course::Surplus(_) => length,
        };
        let mut at = 0;
        while at < until {
            let step = (1 + self.below(40_000)).min(until - at);
            if !sink.push(&bytes_of(path, number, offset + at, step as usize)) {
                return Ok(());
            }
            at += step;
            if slow {
                tokio::time::sleep(Duration::from_micros(self.below(3000))).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
        match course {
            Course::FailAfter(_, kind) => Err(Error::new(kind, format!("{path} breaks off by order"))),
            Course::StaleAfter(_) => {
                self.change(path);
                Err(stale())
            }
            Course::StallAfter(_) => {
                // The trait demands a deadline; whoever trusts in that alone would wait here.
                tokio::time::sleep(Duration::from_secs(20)).await;
                Err(Error::new(ErrorKind::TimedOut, format!("{path} stalls by order")))
            }
            Course::Surplus(count) => {
                sink.push(&vec![0xEE; count]);
                Ok(())
            }
            Course::Right | Course::EndAfter(_) => Ok(()),
        }
    }
}
