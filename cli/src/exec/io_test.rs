//! `exec basicIOTest`: etcd, every live worker, and files of every mount, each read through the workers, read again, read
//! at random places, and compared with what the under storage itself says. With `--directory` also a file that is written
//! to a directory of this host (of a mount, that is), read back and removed.
//!
//! Each step is a line; a step that fails does not keep the others from being tried.

use crate::cluster::{self, Cluster, block_on};
use crate::fs::content::{digest, each_piece};
use crate::fs::format;
use crate::fs::place::{NAMESPACE, Place};
use crate::fs::walk::Walk;
use anyhow::{Context as _, ensure};
use client::mount_table::Located;
use common::Attr;
use common::conf::{Conf, Size};
use common::rpc::worker::StatusRequest;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Entries that are looked at in search of files.
const LOOK: usize = 20_000;
/// Bytes of a read at a random place, and how many there are for each file.
const PIECE: u64 = 4096;
const PIECES: u64 = 16;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  alluxio exec basicIOTest
  alluxio exec basicIOTest --path /s3/dataset --files 10 --bytes 1GB
  alluxio exec basicIOTest --directory /mnt/alluxio/scratch")]
pub struct Args {
    /// Read below this path of the namespace [default: all mounts]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Write, read and remove a file in this directory of this host, too
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Read so many files of each mount
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    files: u16,
    /// Read no files larger than this, and write one of this size at most
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size)]
    bytes: u64,
}

fn size(text: &str) -> Result<u64, String> {
    use common::conf::ConfValue;
    Size::parse(text).map(Size::bytes)
}

/// The outcome so far.
struct Report<'o, W> {
    out: &'o mut W,
    failed: u32,
}

impl<W: Write> Report<'_, W> {
    fn step(&mut self, what: &str, outcome: anyhow::Result<String>) -> std::io::Result<()> {
        match outcome {
            Ok(detail) => writeln!(self.out, "ok      {what}: {detail}")?,
            Err(error) => {
                self.failed += 1;
                writeln!(self.out, "FAILED  {what}: {}", crate::with_causes(&error).replace('\n', " "))?;
            }
        }
        self.out.flush()
    }
}

pub fn run(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut report = Report { out, failed: 0 };
    block_on(async {
        let cluster = Cluster::connect(conf).await?;
        let table = cluster.mounts.read().await?;
        let places = match &args.path {
            Some(path) => vec![table.locate(path)?],
            None => table.mounts.keys().map(|point| table.locate(point)).collect::<Result<_, _>>()?,
        };
        let live = cluster.live().await?;
        report.step("etcd", Ok(format!("{} live workers, {} mounts", live.len(), table.mounts.len())))?;
        let answers = cluster::ask_all(live, conf, async |link| {
            let begun = Instant::now();
            let status = cluster::ask(&link, async |client| client.status(StatusRequest {}).await).await?;
            link.data(0).await?.ping().await?;
            let (used, capacity) = (format::human(status.used), format::human(status.capacity));
            Ok(format!("metadata and data answer in {} ms, {used} of {capacity} used", begun.elapsed().as_millis()))
        });
        for (entry, answer) in answers.await {
            report.step(&format!("{} at {}", entry.identity, entry.shown()), answer)?;
        }
        if places.is_empty() {
            report.step("mounts", Err(anyhow::anyhow!("nothing is mounted; add a mount with `alluxio mount add`")))?;
        }
        for located in places {
            mount(&args, conf, &located, &mut report).await?;
        }
        Ok(())
    })?;
    if let Some(directory) = &args.directory {
        let begun = Instant::now();
        let bytes = args.bytes.min(64 << 20);
        let outcome = write_and_read(directory, bytes).map(|()| rate(bytes * 2, begun));
        report.step(&format!("write, read, remove in {}", directory.display()), outcome)?;
    }
    let failed = report.failed;
    writeln!(out, "{}", if failed == 0 { "Passed the test!" } else { "Failed the test!" })?;
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Reads some files of one mount.
async fn mount(args: &Args, conf: &Conf, located: &Located, report: &mut Report<'_, impl Write>) -> anyhow::Result<()> {
    let shown =
        format!("{}{}", located.point, if located.path.is_root() { String::new() } else { located.path.to_string() });
    let found = async {
        let place = Place::parse(&format!("{NAMESPACE}{shown}"), conf).await?;
        let files = some_files(&place, args).await?;
        ensure!(!files.is_empty(), "no file of 1 to {} bytes is there; put one there, or raise --bytes", args.bytes);
        Ok((place, files))
    };
    let (place, files) = match found.await {
        Ok(found) => found,
        Err(error) => {
            report.step(&format!("list {shown}"), Err(error))?;
            return Ok(());
        }
    };
    report.step(&format!("list {shown}"), Ok(format!("{} files to read", files.len())))?;
    for (path, attr) in files {
        let file = Place { storage: place.storage.clone(), path: path.clone(), shown: String::new() };
        report.step(
            &format!("read {}", format::name(path.to_string().as_bytes())),
            check(conf, located, &file, &attr).await,
        )?;
    }
    Ok(())
}

async fn some_files(place: &Place, args: &Args) -> anyhow::Result<Vec<(common::UfsPath, Attr)>> {
    let mut walk = Walk::of(place).await?;
    let (mut files, mut seen) = (Vec::new(), 0);
    while let Some(batch) = walk.next().await? {
        seen += batch.len();
        let fitting = |attr: &Attr| attr.is_file() && attr.size > 0 && attr.size <= args.bytes;
        for found in batch.into_iter().filter(|found| fitting(&found.attr)) {
            files.push((found.path, (*found.attr).clone()));
            if files.len() == usize::from(args.files) {
                return Ok(files);
            }
        }
        if seen > LOOK {
            break;
        }
    }
    Ok(files)
}

/// One file: twice as a whole and at random places through the workers, once from the storage itself.
async fn check(conf: &Conf, located: &Located, file: &Place, attr: &Attr) -> anyhow::Result<String> {
    let options = worker::server::namespace::storage_options(conf, &located.uri, &located.entry)?;
    let storage = ufs::open(&located.uri, &options)?;
    let names: Vec<&[u8]> = file.path.names().skip(1).collect();
    let source = Place { storage, path: common::UfsPath::parse(names.join(&b'/'))?, shown: String::new() };
    let direct = source.attr().await.context("the under storage")?;
    let expected = digest::<Sha256>(&source, &direct).await.context("the under storage")?;
    let attr = &if direct.size == attr.size { attr.clone() } else { file.attr().await? };
    let mut took = Vec::new();
    for pass in ["first", "second"] {
        let begun = Instant::now();
        let read = digest::<Sha256>(file, attr).await.with_context(|| format!("the {pass} read"))?;
        ensure!(
            read == expected,
            "the {pass} read through the workers differs from the under storage: {read} for {expected}"
        );
        took.push(rate(attr.size, begun));
    }
    let mut random = StdRng::seed_from_u64(attr.size);
    let begun = Instant::now();
    for _ in 0..PIECES {
        let offset = random.next_u64() % attr.size;
        let end = (offset + PIECE).min(attr.size);
        let (mut through, mut there) = (Vec::new(), Vec::new());
        each_piece(file, attr, offset, end, |bytes| {
            through.extend_from_slice(bytes);
            Ok(())
        })
        .await?;
        each_piece(&source, &direct, offset, end, |bytes| {
            there.extend_from_slice(bytes);
            Ok(())
        })
        .await?;
        ensure!(through == there, "the bytes at {offset} differ from the under storage");
    }
    let random = begun.elapsed().as_millis();
    Ok(format!(
        "{} equal to the under storage; first {}, second {}, {PIECES} random pieces in {random} ms",
        format::human(attr.size),
        took[0],
        took[1]
    ))
}

fn write_and_read(directory: &Path, size: u64) -> anyhow::Result<()> {
    let path = directory.join(format!(".alluxio-io-test.{}", std::process::id()));
    let outcome = (|| {
        let mut file = std::fs::File::create_new(&path).context("create a file")?;
        let mut random = StdRng::seed_from_u64(size);
        let mut buffer = vec![0; 1 << 20];
        let mut written = Sha256::new();
        let mut left = size;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            random.fill_bytes(&mut buffer[..part]);
            written.update(&buffer[..part]);
            file.write_all(&buffer[..part]).context("write")?;
            left -= part as u64;
        }
        file.sync_all().context("fsync")?;
        drop(file);
        let mut file = std::fs::File::open(&path).context("open")?;
        let mut read = Sha256::new();
        loop {
            match file.read(&mut buffer).context("read")? {
                0 => break,
                count => read.update(&buffer[..count]),
            }
        }
        ensure!(written.finalize() == read.finalize(), "other bytes were read than written");
        std::fs::remove_file(&path).context("remove the file")
    })();
    if outcome.is_err() {
        // It may not have been made at all.
        let _ = std::fs::remove_file(&path);
    }
    outcome
}

fn rate(bytes: u64, begun: Instant) -> String {
    let seconds = begun.elapsed().as_secs_f64().max(1e-6);
    format!("{}/s", format::human((bytes as f64 / seconds) as u64))
}
