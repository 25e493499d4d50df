//! `alluxio`: the command line. A module for each group of commands; this one parses, dispatches and reports.
//!
//! Exit codes: 0 success; 1 failure, or `fs test` found the answer to be no; 2 wrong usage, or `fs test` could not find
//! out. A reader of the output that goes away early (`alluxio fs cat … | head`) is no failure. Results go to standard
//! output; one line for each error and warning goes to standard error.

mod cache;
mod cluster;
mod completion;
mod conf;
mod exec;
mod fs;
mod info;
mod log_level;
mod mount;
mod process;

use clap::{Parser, Subcommand};
use common::conf::{Conf, Role, Source};
use common::logging::{self, LogOptions};
use std::io::{self, Write};
use std::process::ExitCode;

/// Run the parts of a cluster; look at its configuration, its mounts, its files and what it has cached.
#[derive(Debug, Parser)]
#[command(name = "alluxio", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    /// Set a configuration key for this command, for example -D alluxio.underfs.s3.region=eu-west-1
    #[arg(short = 'D', long = "define", value_name = "KEY=VALUE", global = true, value_parser = define)]
    defines: Vec<(String, String)>,

    /// What to log to standard error: off, error, warn, info, debug, trace, or directives such as info,ufs=debug
    /// [default: warn; info for processes that it starts]
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  alluxio conf get alluxio.user.client.cache.size
  alluxio fs ls /data
  alluxio -D alluxio.underfs.s3.endpoint=http://localhost:9000 fs cat s3://bucket/file
  alluxio process start worker --daemon
  alluxio mount add --path /data --ufs-uri s3://bucket/prefix
  alluxio info report
  alluxio fs check-cached /data
  alluxio exec basicIOTest";

#[derive(Debug, Subcommand)]
enum Command {
    /// What the workers have cached
    Cache(cache::Args),
    /// Configuration: effective values, documentation, the log level of running processes
    Conf(conf::Args),
    /// Try the cluster out
    Exec(exec::Args),
    /// Files and directories of under storages and of the namespace
    Fs(fs::Args),
    /// About this program and its cluster
    Info(info::Args),
    /// Change what running workers and mounts log (the same as `conf log`)
    #[command(name = "logLevel")]
    LogLevel(log_level::Args),
    /// The mounts of the cluster's namespace
    Mount(mount::Args),
    /// Start and stop the processes of a cluster
    Process(process::Args),
    /// Try the cluster out (the same as `exec basicIOTest`)
    #[command(name = "runTests")]
    RunTests(exec::io_test::Args),
    /// Print the completions for a shell
    Completion(completion::Args),
}

fn define(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let result = run(cli, &mut out).and_then(|code| {
        out.flush()?;
        Ok(code)
    });
    // Whatever is left in the buffer belongs to output that failed already.
    drop(out.into_parts());
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&with_causes(&error));
            ExitCode::from(error.downcast_ref::<fs::Undecided>().map_or(1, |_| 2))
        }
    }
}

fn run(cli: Cli, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let usual = if matches!(cli.command, Command::Process(_)) { "info" } else { "warn" };
    let filter = cli.log_level.as_deref().unwrap_or(usual).to_owned();
    logging::init(&LogOptions { filter, ..LogOptions::default() })?;
    let load = |role: Role| -> anyhow::Result<Conf> {
        let mut builder = Conf::builder().process(role);
        for (key, value) in &cli.defines {
            builder = builder.set(key, value, Source::CommandLine(format!("-D {key}")));
        }
        let conf = builder.load()?;
        conf.warnings().iter().for_each(|line| complain(&format!("warning: {line}")));
        Ok(conf)
    };
    match cli.command {
        Command::Cache(args) => cache::run(args, &load(Role::Client)?, out),
        Command::Conf(args) => conf::run(args, load, out),
        Command::Exec(args) => exec::run(args, &load(Role::Client)?, out),
        Command::Fs(args) => fs::run(args, &load(Role::Client)?, out),
        Command::Info(args) => info::run(args, || load(Role::Client), out),
        Command::LogLevel(args) => log_level::run(args, || load(Role::Client), out),
        Command::Mount(args) => mount::run(args, &load(Role::Client)?, out),
        Command::Process(args) => process::run(args, load, out),
        Command::RunTests(args) => exec::io_test::run(args, &load(Role::Client)?, out),
        Command::Completion(args) => completion::run(args, out),
    }
}

/// One line to standard error; if even that is closed there is nobody to tell.
fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "alluxio: {}", line.replace('\n', " "));
}

/// An error with what caused it. The project's own errors say all of it themselves: what is behind them is not repeated.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        if cause.is::<common::Error>() {
            break;
        }
    }
    text
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
