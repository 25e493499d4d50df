//! `alluxio conf log` and `alluxio logLevel`: what running workers and mounts log, changed until they end.

use crate::cluster::{self, Cluster, block_on};
use anyhow::ensure;
use client::membership::WorkerEntry;
use client::ring::WorkerIdentity;
use common::conf::{Conf, ConfValue, LogFilter};
use common::rpc::worker::SetLogLevelRequest;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The part of the program, such as ufs, store, worker, client or fuse [default: all of it]
    #[arg(long, alias = "logName", value_name = "NAME")]
    name: Option<String>,
    /// OFF, ERROR, WARN, INFO, DEBUG or TRACE; without it nothing is changed and the levels in force are printed
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// Whose log: workers (all live ones), worker-<id> or host:port of one, fuse (all mounts of this host and user), or
    /// the directory of one mount; several by commas
    #[arg(long, value_name = "TARGET", value_delimiter = ',', default_value = "workers")]
    target: Vec<String>,
}

const EXAMPLES: &str = "\
A line is printed for each process: who, and what it logs from then on. A restart brings the configured level back.

Examples:
  alluxio conf log --name ufs --level DEBUG
  alluxio conf log --level INFO --target worker-b785d1f0-9886-3821-a4eb-6bee226c35b7
  alluxio conf log --target workers,fuse
  alluxio logLevel --logName fuse --level TRACE --target /mnt/alluxio";

/// Who is meant.
enum Target {
    Workers,
    Worker(WorkerIdentity),
    Address(String),
    Mounts,
    Mount(PathBuf),
}

impl Target {
    fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "worker" | "workers" => Self::Workers,
            "fuse" => Self::Mounts,
            text if text.starts_with('/') => Self::Mount(Path::new(text).components().collect()),
            text => match WorkerIdentity::parse(text) {
                Some(identity) => Self::Worker(identity),
                None if text.contains(':') => Self::Address(text.to_owned()),
                None => anyhow::bail!(
                    "--target {text}: write workers, worker-<id>, host:port, fuse or the directory of a mount"
                ),
            },
        })
    }

    fn is_mount(&self) -> bool {
        matches!(self, Self::Mounts | Self::Mount(_))
    }

    fn means(&self, worker: &WorkerEntry) -> bool {
        match self {
            Self::Workers => true,
            Self::Worker(identity) => worker.identity.identifier == identity.identifier,
            Self::Address(address) => worker.shown() == *address,
            Self::Mounts | Self::Mount(_) => false,
        }
    }
}

pub fn run(args: Args, load: impl FnOnce() -> anyhow::Result<Conf>, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let (name, level) = (args.name.unwrap_or_default(), args.level.unwrap_or_default().to_ascii_lowercase());
    ensure!(
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte)),
        "--name {name}: write the name of a part, such as ufs or worker::server"
    );
    if !level.is_empty() {
        ensure!(
            ["off", "error", "warn", "info", "debug", "trace"].contains(&level.as_str()),
            "--level {level}: write OFF, ERROR, WARN, INFO, DEBUG or TRACE"
        );
        let directive = if name.is_empty() { level.clone() } else { format!("{name}={level}") };
        LogFilter::parse(&directive).map_err(|why| anyhow::anyhow!("--name {name} {why}"))?;
    }
    let targets = args.target.iter().map(|text| Target::parse(text)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut answers: Vec<(String, anyhow::Result<String>)> = Vec::new();
    if targets.iter().any(|target| !target.is_mount()) {
        answers.extend(workers(&targets, &args.target, &name, &level, &load()?)?);
    }
    for (target, text) in targets.iter().zip(&args.target) {
        let point = match target {
            Target::Mounts => None,
            Target::Mount(point) => Some(point.as_path()),
            _ => continue,
        };
        let found = fuse::command::log_level::set(point, &name, &level)?;
        ensure!(
            !found.is_empty(),
            "--target {text}: no mount of this user runs there; `alluxio-fuse status` shows them"
        );
        answers.extend(found.into_iter().map(|(point, answer)| {
            let point = point.display().to_string();
            let answer = answer.map_err(|why| anyhow::anyhow!("{point}: {why}"));
            (point, answer)
        }));
    }
    let mut failure = None;
    for (who, answer) in answers {
        match answer {
            Ok(directives) => writeln!(out, "{who}\t{directives}")?,
            // It names the process.
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn workers(
    targets: &[Target],
    texts: &[String],
    name: &str,
    level: &str,
    conf: &Conf,
) -> anyhow::Result<Vec<(String, anyhow::Result<String>)>> {
    block_on(async {
        let mut live = Cluster::connect(conf).await?.live().await?;
        for (target, text) in targets.iter().zip(texts) {
            ensure!(
                target.is_mount() || live.iter().any(|worker| target.means(worker)),
                "--target {text}: no such worker is live; `alluxio info nodes` lists them"
            );
        }
        live.retain(|worker| targets.iter().any(|target| target.means(worker)));
        let request = SetLogLevelRequest { target: name.to_owned(), level: level.to_owned() };
        let answers = cluster::ask_all(live, conf, async |link| {
            cluster::ask(&link, async |client| client.set_log_level(request.clone()).await).await
        });
        let answers = answers.await.into_iter();
        Ok(answers.map(|(entry, answer)| (entry.identity.to_string(), answer.map(|it| it.directives))).collect())
    })
}
