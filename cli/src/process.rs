//! `alluxio process`: the processes of a cluster, in the foreground or as daemons.

mod daemon;
mod lock;

use crate::cluster::{Cluster, block_on};
use anyhow::Context as _;
use client::ring::WorkerIdentity;
use common::conf::{Conf, ConfValue, Role, keys};
use lock::ProcessLock;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use worker::server::{Server, ServerOptions, identity};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  alluxio process start worker
  alluxio process start worker --daemon --log-file /var/log/alluxio/worker.log
  alluxio -D alluxio.worker.rpc.port=39999 process start worker
  alluxio process stop worker
  alluxio process remove-worker -n worker-b785d1f0-9886-3821-a4eb-6bee226c35b7";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start a process and stay in the foreground until it is stopped
    Start(StartArgs),
    /// Stop a process gracefully
    Stop {
        /// Which
        #[arg(value_enum)]
        kind: Kind,
    },
    /// End the registration of a worker that is not live any more
    RemoveWorker {
        /// The worker, as `alluxio info nodes` names it
        #[arg(short = 'n', long = "name", value_name = "WORKER")]
        name: String,
    },
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    /// Which
    #[arg(value_enum)]
    kind: Kind,
    /// Go into the background once it serves
    #[arg(long)]
    daemon: bool,
    /// Where a daemon logs to [default: ${alluxio.home}/logs/worker.log]
    #[arg(long, value_name = "FILE", requires = "daemon")]
    log_file: Option<PathBuf>,
    /// How long etcd is waited for at the start, for example 30s
    #[arg(long, value_name = "TIME", default_value = "5min", value_parser = duration)]
    wait: Duration,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    /// Serves metadata and cached data
    Worker,
}

fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse(text)
}

pub fn run(args: Args, load: impl Fn(Role) -> anyhow::Result<Conf>, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Start(StartArgs { kind: Kind::Worker, daemon: true, log_file, wait }) => {
            let conf = load(Role::Worker)?;
            let log = log_file.unwrap_or_else(|| conf.get(&keys::general::HOME).join("logs/worker.log"));
            writeln!(out, "{}", daemon::start(&log, wait)?)?;
        }
        Command::Start(StartArgs { kind: Kind::Worker, wait, .. }) => worker(&load(Role::Worker)?, wait, out)?,
        Command::Stop { kind: Kind::Worker } => {
            let identity = load(Role::Worker)?.get(&keys::worker::IDENTITY_FILE);
            let process = lock::stop(&identity)?;
            writeln!(out, "Successfully stopped the worker (process {process})")?;
        }
        Command::RemoveWorker { name } => {
            let identity = WorkerIdentity::parse(name.trim()).with_context(|| {
                format!("{name:?} is no worker; `alluxio info nodes` names them, for example worker-b785d1f0-9886-3821-a4eb-6bee226c35b7")
            })?;
            let conf = load(Role::Client)?;
            block_on(async { Ok(Cluster::connect(&conf).await?.membership.remove(identity).await?) })?;
            writeln!(out, "Successfully removed worker: {}", name.trim())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a worker until SIGTERM or SIGINT.
fn worker(conf: &Conf, wait: Duration, out: &mut impl Write) -> anyhow::Result<()> {
    let options = ServerOptions::from_conf(conf, wait)?;
    // The identity first: what is wrong with its place is then said of the identity file.
    identity::load_or_create(&options.identity_file)?;
    let lock = ProcessLock::take(&options.identity_file)?;
    daemon::raise_descriptor_limit();
    let threads = std::thread::available_parallelism().map_or(4, usize::from).clamp(4, 32);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .thread_name("alluxio-worker")
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let started = tokio::select! {
            started = Server::start(options) => started?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        writeln!(out, "{}", announcement(&started))?;
        out.flush()?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("the worker stops");
        started.stop().await;
        Ok(())
    });
    // A disk that hangs in a call must not keep a stopped worker alive.
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(lock);
    outcome
}

/// The line that says that the worker serves, and where.
fn announcement(server: &Server) -> String {
    let entry = server.entry();
    let address = &entry.address;
    let mut line = format!(
        "{} serves at {}:{} (data {}, web {}",
        entry.identity, address.host, address.rpc_port, address.data_port, address.web_port
    );
    if !address.domain_socket_path.is_empty() {
        line.push_str(&format!(", domain socket {}", address.domain_socket_path));
    }
    line.push(')');
    line
}
