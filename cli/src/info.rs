//! `alluxio info`: about this program and the workers of its cluster.

mod report;

use crate::cluster::{Cluster, block_on};
use common::conf::Conf;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  alluxio info version\n  alluxio info nodes\n  alluxio info report\n  alluxio info report capacity --format json"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the version
    Version,
    /// Print the registered workers and whether they are live
    Nodes,
    /// Print how the cluster does
    Report(report::Args),
}

pub fn run(args: Args, load: impl FnOnce() -> anyhow::Result<Conf>, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Version => writeln!(out, "{}", env!("CARGO_PKG_VERSION"))?,
        Command::Nodes => {
            let conf = load()?;
            let view = block_on(async {
                let cluster = Cluster::connect(&conf).await?;
                let view = cluster.membership.view().await?;
                if view.workers.is_empty() {
                    // The table is right all the same: it is empty.
                    crate::complain(&format!("warning: {}", cluster.nobody(&view).await));
                }
                Ok(view)
            })?;
            writeln!(out, "WorkerId\tAddress\tStatus")?;
            for (identity, state) in &view.workers {
                let status = if state.live { "ONLINE" } else { "OFFLINE" };
                writeln!(out, "{identity}\t{}\t{status}", state.entry.shown())?;
            }
        }
        Command::Report(args) => report::run(&args, &load()?, out)?,
    }
    Ok(ExitCode::SUCCESS)
}
