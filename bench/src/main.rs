//! Side-by-side measurements: the mount against the native directory, against rclone and s3fs, and against a bare client.
//!
//! Everything of a row is measured in one run, the candidates in turn within each repetition, so that the ratios hold
//! on a machine that is shared and noisy. Absolute figures mean nothing beyond their row. README.md says what each row
//! measures and which traps were met.

mod bare;
mod cleanup;
mod cluster;
mod data;
mod machine;
mod mounts;
mod rows;
mod server;
mod table;
mod work;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use std::{fs, path::PathBuf, process::ExitCode};

/// Measures alluxio-fuse and clusters side by side with the native directory, rclone, s3fs, bare sockets and a bare S3 client.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Internal>,
    /// A fraction of the data, for a first impression.
    #[arg(long)]
    quick: bool,
    /// Hardly any data: shows that every row runs, not how fast anything is.
    #[arg(long, hide = true, conflicts_with = "quick")]
    tiny: bool,
    /// How often each candidate is measured; the median counts.
    #[arg(long, default_value_t = 5)]
    repetitions: usize,
    /// Where data, caches and mount points go (needs 12 GiB; removed at the end).
    #[arg(long, default_value = "/var/tmp")]
    scratch: PathBuf,
    /// Also writes the report to this file.
    #[arg(long)]
    report: Option<PathBuf>,
    /// Prints the names of the rows and ends.
    #[arg(long)]
    list: bool,
    /// Rows to measure, by their beginnings, for example `seq-warm small`. All when none is named.
    rows: Vec<String>,
}

#[derive(Subcommand)]
enum Internal {
    /// The S3 server that is measured against (started by the benchmark itself).
    #[command(hide = true)]
    Serve { data: PathBuf, latency_ms: u64 },
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if let Some(Internal::Serve { data, latency_ms }) = arguments.command {
        return server::serve(&data, latency_ms);
    }
    let wanted = rows::select(&arguments.rows)?;
    if arguments.list {
        wanted.iter().for_each(|row| println!("{}", row.name));
        return Ok(());
    }
    ensure!(nix::unistd::geteuid().is_root(), "the benchmark mounts and drops caches: run it as root");
    let ours = std::env::current_exe()?.with_file_name("alluxio-fuse");
    ensure!(ours.is_file(), "{} is missing: build it with `cargo build --release -p fuse`", ours.display());
    let sizes = match (arguments.tiny, arguments.quick) {
        (true, _) => data::Sizes::TINY,
        (_, true) => data::Sizes::QUICK,
        _ => data::Sizes::FULL,
    };
    let free = machine::free_bytes(&arguments.scratch)?;
    let reads = wanted.iter().any(|row| row.reads);
    // Who only writes does so to three large files at most, and to small ones.
    let needed = if reads { sizes.scratch } else { 4 * sizes.large };
    ensure!(
        free >= needed,
        "{} has {} MiB free, the run needs {}: name another directory with --scratch",
        arguments.scratch.display(),
        free >> 20,
        needed >> 20
    );
    let scratch = tempfile::Builder::new().prefix("alluxio-bench-").tempdir_in(&arguments.scratch)?;
    // As the table of mounts has it.
    let scratch_path = scratch.path().canonicalize()?;
    cleanup::on_signals(scratch_path.clone())?;

    let root = scratch_path.join("data");
    if reads {
        eprintln!("making data in {}", root.display());
        data::make(&root, &sizes)?;
    }
    if !arguments.tiny {
        machine::drop_caches()?;
    }
    let context = rows::Context {
        places: mounts::Places { scratch: scratch_path.clone(), ours },
        memory: machine::Memory::new(&scratch_path, !arguments.tiny)?,
        sizes,
        repetitions: arguments.repetitions.max(1),
        data: root,
    };
    let mut report = format!(
        "{}; {} sizes, {} repetitions, alluxio-fuse {}\n",
        machine::describe(),
        sizes.label,
        context.repetitions,
        env!("CARGO_PKG_VERSION"),
    );
    println!("{report}");
    let (mut verdicts, mut failed) = (Vec::new(), Vec::new());
    for wanted in wanted {
        cleanup::pause_if_stopped();
        eprintln!("{}…", wanted.name);
        cleanup::within(wanted.name, rows::MINUTES_PER_ROW);
        let text = match (wanted.measure)(&context, wanted.name) {
            Ok(row) => {
                verdicts.extend(row.verdicts());
                row.render()
            }
            Err(error) => {
                failed.push(wanted.name);
                format!("\n### {}\n\nFAILED: {error:#}\n", wanted.name)
            }
        };
        println!("{text}");
        report.push_str(&text);
    }
    let text = table::summary(&verdicts);
    println!("{text}");
    report.push_str(&text);
    if let Some(path) = arguments.report {
        fs::write(&path, report).with_context(|| format!("write {}", path.display()))?;
    }
    if !failed.is_empty() {
        bail!("rows that could not be measured: {}", failed.join(", "));
    }
    Ok(())
}
