//! `fs cp`: files and directories from anywhere to this host.
//!
//! Invariants: a file appears under its name whole or not at all (it is written beside its place and renamed), and has the
//! bytes of one version; what was there before stays unless `--force` says otherwise; memory is bounded.

use super::content::each_piece;
use super::format;
use super::place::Place;
use super::walk::{Found, Walk};
use anyhow::{Context as _, ensure};
use common::conf::Conf;
use common::{Attr, FileKind};
use futures::{TryStreamExt, stream};
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

/// How often the progress is shown.
const TICK: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Files appear whole or not at all; what is there already is replaced with --force only.

Examples:
  alluxio fs cp s3://bucket/dir/file .
  alluxio fs cp -R --preserve --threads 16 s3://bucket/dataset /local/dataset
  alluxio fs cp -R alluxio:///s3/dataset /local     (through the workers, which cache it)")]
pub struct Args {
    /// Copy directories with all that is in them
    #[arg(short = 'R', visible_short_alias = 'r', long)]
    recursive: bool,
    /// Replace files that are there already
    #[arg(short, long)]
    force: bool,
    /// Keep permissions and times of change
    #[arg(short, long)]
    preserve: bool,
    /// Copy so many files at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    threads: u16,
    /// What to copy, and last the file or directory of this host to copy it to
    #[arg(required = true, num_args = 2.., value_name = "PLACE")]
    places: Vec<String>,
}

/// What was copied so far.
#[derive(Default)]
struct Done {
    files: AtomicU64,
    bytes: AtomicU64,
}

pub async fn copy(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Some((to, from)) = args.places.split_last() else { return Ok(ExitCode::from(2)) };
    let target = local(to)?;
    let into = target.is_dir();
    ensure!(into || from.len() == 1, "{to} is no directory; several places are copied into a directory only");
    let done = Done::default();
    let work = async {
        for text in from {
            let place = Place::parse(text, conf).await?;
            let target = if into { target.join(last_name(&place)?) } else { target.clone() };
            one(&args, &place, &target, &done).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::select! {
        outcome = work => outcome?,
        // What is half done is removed when it is dropped.
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted; files that are whole stay"),
        () = progress(&done) => {}
    }
    let bytes = done.bytes.load(Relaxed);
    writeln!(out, "Copied {} files, {bytes} bytes ({})", done.files.load(Relaxed), format::human(bytes))?;
    Ok(ExitCode::SUCCESS)
}

/// The destination, which has to be on this host.
fn local(to: &str) -> anyhow::Result<PathBuf> {
    let path = to.strip_prefix("file://").unwrap_or(to);
    ensure!(
        !path.contains("://"),
        "{to}: cp writes to this host only in this version; name a file or directory of this host, or upload with the storage's own client"
    );
    ensure!(!path.is_empty(), "the destination is empty; name a file or directory");
    Ok(PathBuf::from(path))
}

fn last_name(place: &Place) -> anyhow::Result<&OsStr> {
    let name = place.path.name().map(OsStr::from_bytes).or_else(|| {
        let shown = place.shown.rsplit("//").next()?.rsplit('/').next()?;
        (!shown.is_empty() && shown != "." && shown != "..").then_some(OsStr::new(shown))
    });
    name.with_context(|| format!("{}/ has no name of its own; name the destination", place.shown))
}

/// Copies one place to `target`.
async fn one(args: &Args, place: &Place, target: &Path, done: &Done) -> anyhow::Result<()> {
    let mut walk = Walk::of(place).await?;
    let is_dir = place.attr().await?.is_dir();
    ensure!(!is_dir || args.recursive, "{} is a directory; copy it with -R", place.shown);
    if is_dir && place.storage.is_local() {
        outside(place, target)?;
    }
    while let Some(batch) = walk.next().await? {
        // Directories come before what is in them, which their own listings bring later.
        let (dirs, files): (Vec<Found>, Vec<Found>) = batch.into_iter().partition(|found| found.attr.is_dir());
        for dir in dirs {
            directory(&at(place, &dir, target))?;
        }
        stream::iter(files.into_iter().map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(usize::from(args.threads), |found| async move {
                let target = at(place, &found, target);
                entry(args, place, &found, &target, done).await.with_context(|| target.display().to_string())
            })
            .await?;
    }
    Ok(())
}

/// Where something below `place` is copied to.
fn at(place: &Place, found: &Found, target: &Path) -> PathBuf {
    match found.path.as_path().strip_prefix(place.path.as_path()) {
        Ok(rest) if rest.as_os_str().is_empty() => target.to_owned(),
        Ok(rest) => target.join(rest),
        // Everything that a walk finds lies below where it began.
        Err(_) => target.join(found.path.as_path()),
    }
}

/// Refuses to copy a directory of this host into itself, which would never end.
fn outside(place: &Place, target: &Path) -> anyhow::Result<()> {
    let source = Path::new("/").join(place.storage.uri().path()).join(place.path.as_path());
    let mut above = target.to_owned();
    while !above.exists() && above.pop() {}
    let above = if above.as_os_str().is_empty() { PathBuf::from(".") } else { above };
    ensure!(
        !above.canonicalize().is_ok_and(|above| above.starts_with(&source)),
        "{} lies inside {}, which would be copied into itself",
        target.display(),
        place.shown
    );
    Ok(())
}

fn directory(path: &Path) -> anyhow::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.with_context(|| format!("{} cannot be made", path.display())),
    }
}

async fn entry(args: &Args, place: &Place, found: &Found, target: &Path, done: &Done) -> anyhow::Result<()> {
    let exists = target.symlink_metadata().is_ok();
    ensure!(args.force || !exists, "it is there already; --force replaces it");
    ensure!(!target.is_dir(), "it is a directory already");
    match found.attr.kind {
        FileKind::File => file(args, place, found, target, done).await?,
        FileKind::Symlink => {
            let link = place.storage.read_link(&found.path).await?;
            if exists {
                fs::remove_file(target)?;
            }
            std::os::unix::fs::symlink(OsStr::from_bytes(&link), target)?;
        }
        _ => anyhow::bail!("{} is neither a file nor a directory nor a symbolic link", found.path),
    }
    done.files.fetch_add(1, Relaxed);
    Ok(())
}

async fn file(args: &Args, place: &Place, found: &Found, target: &Path, done: &Done) -> anyhow::Result<()> {
    let part = Part::create(target)?;
    let source = Place { storage: place.storage.clone(), path: found.path.clone(), shown: String::new() };
    each_piece(&source, &found.attr, 0, found.attr.size, |bytes| {
        (&part.file).write_all(bytes)?;
        done.bytes.fetch_add(bytes.len() as u64, Relaxed);
        Ok(())
    })
    .await?;
    if args.preserve {
        preserve(&part.file, &found.attr)?;
    }
    part.keep(target)
}

fn preserve(file: &File, attr: &Attr) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(attr.mode & 0o777))?;
    let Ok(seconds) = u64::try_from(attr.mtime.sec) else { return Ok(()) };
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, attr.mtime.nsec));
    time.map_or(Ok(()), |time| file.set_times(FileTimes::new().set_modified(time)))
}

/// A file beside its place, removed unless it is kept.
struct Part {
    file: File,
    path: Option<PathBuf>,
}

impl Part {
    fn create(target: &Path) -> anyhow::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = format!(".alluxio-cp.{}.{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let path = parent.join(name);
        Ok(Self { file: File::options().write(true).create_new(true).open(&path)?, path: Some(path) })
    }

    fn keep(mut self, target: &Path) -> anyhow::Result<()> {
        if let Some(path) = &self.path {
            fs::rename(path, target)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // What cannot be removed was removed by somebody else, or the disk is gone.
            let _ = fs::remove_file(path);
        }
    }
}

/// Shows how far it is, on terminals only; never ends.
async fn progress(done: &Done) {
    if !io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut before = 0;
    loop {
        tokio::time::sleep(TICK).await;
        let bytes = done.bytes.load(Relaxed);
        let rate = (bytes - before) as f64 / TICK.as_secs_f64();
        before = bytes;
        // A terminal that is gone needs no progress.
        let _ = write!(
            io::stderr(),
            "\r{} files, {}, {}/s   \r",
            done.files.load(Relaxed),
            format::human(bytes),
            format::human(rate as u64)
        );
    }
}
