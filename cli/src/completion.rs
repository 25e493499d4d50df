//! `alluxio completion`: what a shell needs to complete our commands.

use clap::CommandFactory;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  alluxio completion bash > /etc/bash_completion.d/alluxio\n  source <(alluxio completion zsh)"
)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub fn run(args: Args, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    // The generator panics when its writer fails, as a pipe may: it gets memory, and the pipe gets the whole.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "alluxio", &mut script);
    out.write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
