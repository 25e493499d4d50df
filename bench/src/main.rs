//! Side-by-side measurements: the mount against the native directory, against rclone and s3fs, and against a bare client.
//!
//! Everything of a row is measured in one run, the candidates in turn within each repetition, so that the ratios hold
//! on a machine that is shared and noisy. Absolute figures mean nothing beyond their row.

#![allow(missing_docs)]

mod bare;
mod data;
mod machine;
mod mounts;
mod rows;
mod server;
mod table;
mod work;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use std::{fs, path::PathBuf};

const SMALL_PER_DIRECTORY: usize = 1_000;
const FIRSTS_PER_DIRECTORY: usize = 5;

/// Measures alluxio-fuse side by side with the native directory, rclone, s3fs and a bare S3 client.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,
    /// A tenth of the data, for a first impression.
    #[arg(long)]
    quick: bool,
    /// How often each candidate is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Where data, caches and mount points go (needs 8 GiB; removed at the end).
    #[arg(long, default_value = "/var/tmp")]
    scratch: PathBuf,
    /// Also writes the report to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Rows to measure, by their beginnings, for example `seq-warm small`. All when none is named.
    rows: Vec<String>,
}

#[derive(Subcommand)]
enum Internal {
    /// The S3 server that is measured against (started by the benchmark itself).
    #[command(hide = true)]
    Serve { data: PathBuf, latency_ms: u64 },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Internal::Serve { data, latency_ms }) = arguments.command {
        return server::serve(&data, latency_ms);
    }
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark mounts and drops caches: run it as root");
    let ours = std::env::current_exe()?.with_file_name("alluxio-fuse");
    ensure!(ours.is_file(), "{} is missing: build it with `cargo build --release -p fuse`", ours.display());
    let sizes = data::Sizes::new(arguments.quick);
    let scratch = tempfile::Builder::new().prefix("alluxio-bench-").tempdir_in(&arguments.scratch)?;
    let root = scratch.path().join("data");

    eprintln!("making data in {}", root.display());
    for bucket in ["large", "streams", "small", "walked", "firsts"] {
        fs::create_dir_all(root.join(bucket)).with_context(|| format!("make {bucket}"))?;
    }
    data::large(&root.join("large/file"), sizes.large)?;
    for number in 0..4 {
        data::large(&root.join(format!("streams/file{number}")), sizes.large / 2)?;
    }
    data::tree(&root.join("small"), sizes.small, 100 << 10, SMALL_PER_DIRECTORY)?;
    data::tree(&root.join("walked"), sizes.walked, 1, 1_000)?;
    data::tree(&root.join("firsts"), sizes.firsts, 4 << 20, FIRSTS_PER_DIRECTORY)?;
    machine::drop_caches()?;
    machine::occupy_memory(scratch.path(), 12)?;

    let context = rows::Context {
        places: mounts::Places { scratch: scratch.path().to_owned(), ours },
        sizes,
        repetitions: arguments.repetitions.max(1),
        data: root,
        wanted: arguments.rows,
    };
    let mut report = format!(
        "{}; {} sizes, {} repetitions, {}\n",
        machine::describe(),
        if arguments.quick { "small" } else { "full" },
        context.repetitions,
        env!("CARGO_PKG_VERSION"),
    );
    println!("{report}");
    for group in rows::GROUPS {
        for row in group(&context)? {
            let text = row.render();
            println!("{text}");
            report.push_str(&text);
        }
    }
    if let Some(path) = arguments.report {
        fs::write(&path, report).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
