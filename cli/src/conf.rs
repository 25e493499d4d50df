//! `alluxio conf`: what the configuration is, where each value comes from, what there is to configure, and the one thing
//! that can be changed in running processes: what they log.

use crate::log_level;
use common::conf::{self, Conf, Role, keys, nearest};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  alluxio conf get                                         every key with its value
  alluxio conf get alluxio.user.client.cache.size          one value
  alluxio conf get --source --process fuse                 where each value of the FUSE daemon was set
  alluxio conf docs > docs/CONFIGURATION.md                the documentation of all keys
  alluxio conf log --name ufs --level DEBUG                what the running workers log";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the effective value of one key, or of all; secrets are hidden
    Get {
        /// The key, or one of its aliases; without it, all keys are printed as key=value
        key: Option<String>,
        /// Print where each value was set, too
        #[arg(long)]
        source: bool,
        /// The process whose configuration is meant: its own environment variable is read
        #[arg(long, value_enum, default_value = "client")]
        process: Process,
        /// Print the documentation of the keys instead
        #[arg(long, conflicts_with_all = ["key", "source"])]
        docs: bool,
    },
    /// Print the documentation of all keys and mount options as Markdown
    Docs,
    /// Change what running workers and mounts log, or print what they log
    Log(log_level::Args),
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Process {
    Client,
    Fuse,
    Worker,
    Coordinator,
}

impl From<Process> for Role {
    fn from(process: Process) -> Self {
        match process {
            Process::Client => Role::Client,
            Process::Fuse => Role::Fuse,
            Process::Worker => Role::Worker,
            Process::Coordinator => Role::Coordinator,
        }
    }
}

pub fn run(args: Args, load: impl Fn(Role) -> anyhow::Result<Conf>, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Log(args) => return log_level::run(args, || load(Role::Client), out),
        Command::Docs | Command::Get { docs: true, .. } => out.write_all(conf::docs().as_bytes())?,
        Command::Get { key: Some(key), source, process, .. } => {
            let Some((value, origin)) = load(process.into())?.show(&key) else {
                let hint = match nearest(&key, keys::names()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "`alluxio conf get` lists all keys".to_owned(),
                };
                anyhow::bail!("{key} is no known key and nobody set it; {hint}");
            };
            let value = value.unwrap_or_default();
            if source { writeln!(out, "{value} ({origin})")? } else { writeln!(out, "{value}")? }
        }
        Command::Get { key: None, source, process, .. } => {
            let conf = load(process.into())?;
            for decl in keys::all() {
                let Some((value, origin)) = conf.show(decl.name) else { continue };
                let value = value.unwrap_or_default();
                if source {
                    writeln!(out, "{}={value} ({origin})", decl.name)?;
                } else {
                    writeln!(out, "{}={value}", decl.name)?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
