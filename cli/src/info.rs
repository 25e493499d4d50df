//! `alluxio info`: about this program.

use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  alluxio info version")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print the version
    Version,
}

pub fn run(args: Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Version => writeln!(out, "{}", env!("CARGO_PKG_VERSION"))?,
    }
    Ok(ExitCode::SUCCESS)
}
