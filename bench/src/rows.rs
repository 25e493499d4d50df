//! The rows of the table, and who takes part in them.

mod cluster;
mod cold;
mod footprint;
mod small;
mod walk;
mod warm;
mod write;

use crate::{
    data::Sizes,
    machine,
    mounts::{Mount, Places},
    server::Server,
    table::Row,
};
use anyhow::{Result, ensure};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A row that takes longer than this is given up, and the run with it: a mount hangs.
pub const MINUTES_PER_ROW: u32 = 30;
/// A peer gets this long for one measurement; what it does in it counts. Its rate is compared, not its total.
const LIMIT: Duration = Duration::from_secs(6);
/// What is measured whole is not stopped by time.
const WHOLE: Duration = Duration::from_secs(3600);

const NATIVE: &[&str] = &[Candidate::Native.name()];
const PEERS: &[&str] = &[Candidate::Rclone.name(), Candidate::S3fs.name()];
const DIRECTORY: &str = Candidate::Directory.name();
const S3: &str = Candidate::S3.name();

/// A row as it can be asked for.
pub struct Wanted {
    /// Its name.
    pub name: &'static str,
    /// Measures it; gets its name.
    pub measure: fn(&Context, &'static str) -> Result<Row>,
    /// Whether it reads the trees of [`data`](crate::data).
    pub reads: bool,
}

const fn row(name: &'static str, measure: fn(&Context, &'static str) -> Result<Row>) -> Wanted {
    Wanted { name, measure, reads: true }
}

const fn writing(name: &'static str, measure: fn(&Context, &'static str) -> Result<Row>) -> Wanted {
    Wanted { name, measure, reads: false }
}

/// All rows, in the order of the report.
const ROWS: &[Wanted] = &[
    row("seq-warm", warm::sequential),
    row("rand-warm", warm::random),
    row("small-warm", |context, name| small::warm(context, name, 0, 10.0)),
    row("small-cold", |context, name| small::cold(context, name, 0, 3.0)),
    row("small-warm-20ms", |context, name| small::warm(context, name, 20, 20.0)),
    row("small-cold-20ms", |context, name| small::cold(context, name, 20, 20.0)),
    row("seq-cold", |context, name| cold::sequential(context, name, 0)),
    row("first-byte", |context, name| cold::first_byte(context, name, 0)),
    row("seq-cold-20ms", |context, name| cold::sequential(context, name, 20)),
    row("first-byte-20ms", |context, name| cold::first_byte(context, name, 20)),
    row("find-warm", walk::warm),
    row("find-cold", walk::cold),
    row("idle", footprint::idle),
    row("streaming", footprint::streaming),
    row("cpu", footprint::cpu),
    row("start", footprint::start),
    writing("write-seq", write::sequential),
    writing("write-small", write::small),
    writing("write-rand", write::random),
    writing("write-tar", write::unpack),
    writing("write-clone", write::clone),
    row("cluster-seq-1", |context, name| cluster::sequential(context, name, 1)),
    row("cluster-seq-4", |context, name| cluster::sequential(context, name, 4)),
    row("cluster-rand", cluster::random),
    row("cluster-short-circuit", cluster::short_circuit),
    row("cluster-small", cluster::small),
    row("cluster-idle", cluster::idle),
    row("cluster-streaming", cluster::streaming),
];

/// The rows whose names begin with one of `prefixes`; all when there are none.
pub fn select(prefixes: &[String]) -> Result<Vec<&'static Wanted>> {
    for prefix in prefixes {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        ensure!(
            names.iter().any(|name| name.starts_with(prefix)),
            "no row begins with {prefix:?}: there are {}",
            names.join(", ")
        );
    }
    let wanted = |name: &str| prefixes.is_empty() || prefixes.iter().any(|prefix| name.starts_with(prefix));
    Ok(ROWS.iter().filter(|row| wanted(row.name)).collect())
}

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Candidate {
    /// The directory itself.
    Native,
    /// Our mount of the directory.
    Directory,
    /// The same without kernel passthrough.
    DirectoryOff,
    /// Our mount of the bucket.
    S3,
    /// rclone's mount of the bucket.
    Rclone,
    /// s3fs's mount of the bucket.
    S3fs,
}

impl Candidate {
    const ALL: &[Self] = &[Self::Native, Self::Directory, Self::S3, Self::Rclone, Self::S3fs];
    const ON_S3: &[Self] = &[Self::S3, Self::Rclone, Self::S3fs];

    /// As the table calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Directory => "ours, directory",
            Self::DirectoryOff => "ours, directory, passthrough off",
            Self::S3 => "ours, S3",
            Self::Rclone => "rclone, S3",
            Self::S3fs => "s3fs, S3",
        }
    }

    fn peer(self) -> bool {
        matches!(self, Self::Rclone | Self::S3fs)
    }

    /// How long a measurement of it may take.
    fn limit(self) -> Duration {
        if self.peer() { LIMIT } else { WHOLE }
    }
}

/// A candidate that is ready to be measured.
pub struct Ready {
    candidate: Candidate,
    path: PathBuf,
    mount: Option<Mount>,
}

impl Ready {
    fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self) -> &'static str {
        self.candidate.name()
    }

    fn pid(&self) -> Option<u32> {
        self.mount.as_ref().map(Mount::pid)
    }
}

/// What every row gets.
pub struct Context {
    /// Where things are.
    pub places: Places,
    /// Free memory, kept occupied.
    pub memory: machine::Memory,
    /// How much data.
    pub sizes: Sizes,
    /// Repetitions of each measurement.
    pub repetitions: usize,
    /// The directory whose sub-directories are also the server's buckets.
    pub data: PathBuf,
}

impl Context {
    /// An S3 server over the data, in a process of its own, that answers after `latency_ms`.
    fn server(&self, latency_ms: u64) -> Result<Server> {
        Server::start(&self.data, latency_ms)
    }

    /// Mounts a candidate with an empty cache; nothing when it is a peer that is not installed or does not mount.
    fn ready(&self, candidate: Candidate, bucket: &str, server: &Server) -> Result<Option<Ready>> {
        let directory = self.data.join(bucket);
        let (places, endpoint) = (&self.places, server.endpoint());
        let uri = directory.display().to_string();
        let mount = match candidate {
            Candidate::Native => return Ok(Some(Ready { candidate, path: directory, mount: None })),
            Candidate::Directory => places.ours("directory", &uri, &[]),
            Candidate::DirectoryOff => places.ours("directory-off", &uri, &["passthrough=off"]),
            Candidate::S3 => places.ours_s3("s3", endpoint, bucket),
            Candidate::Rclone if !machine::has("rclone") => return Ok(None),
            Candidate::Rclone => places.rclone("rclone", endpoint, bucket),
            Candidate::S3fs if !machine::has("s3fs") => return Ok(None),
            Candidate::S3fs => places.s3fs("s3fs", endpoint, bucket),
        };
        match mount {
            Ok(mount) => Ok(Some(Ready { candidate, path: mount.point().to_owned(), mount: Some(mount) })),
            Err(error) if candidate.peer() => {
                eprintln!("bench: {} is left out: {error:#}", candidate.name());
                Ok(None)
            }
            Err(error) => Err(error.context(candidate.name())),
        }
    }

    /// All of these that are to be had, mounted side by side.
    fn all_ready(&self, candidates: &[Candidate], bucket: &str, server: &Server) -> Result<Vec<Ready>> {
        candidates.iter().filter_map(|candidate| self.ready(*candidate, bucket, server).transpose()).collect()
    }

    /// Adds what `work` gives to the candidate's series. A peer that fails is left out, one of ours fails the row.
    fn measure(&self, row: &mut Row, ready: &Ready, work: impl FnOnce(&Path) -> Result<f64>) -> Result<()> {
        self.memory.settle()?;
        match work(ready.path()) {
            Ok(value) => row.add(ready.name(), value),
            Err(error) if ready.candidate.peer() => {
                eprintln!("bench: {}: {} failed: {error:#}", row.name, ready.name());
            }
            Err(error) => return Err(error.context(ready.name())),
        }
        Ok(())
    }

    /// Lets every candidate do `work` once, unmeasured. A peer that fails is dropped.
    fn warm_up(&self, candidates: &mut Vec<Ready>, mut work: impl FnMut(&Ready) -> Result<()>) -> Result<()> {
        let mut failure = None;
        candidates.retain(|ready| match work(ready) {
            Ok(()) => true,
            Err(error) if ready.candidate.peer() => {
                eprintln!("bench: {} is left out: {error:#}", ready.name());
                false
            }
            Err(error) => {
                failure.get_or_insert(error.context(ready.name()));
                true
            }
        });
        failure.map_or(Ok(()), Err)
    }
}
