//! `alluxio exec`: tries that show whether a cluster works.

pub mod io_test;

use common::conf::Conf;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  alluxio exec basicIOTest
  alluxio exec basicIOTest --path /s3/dataset --files 10
  alluxio exec runTests --directory /mnt/alluxio/scratch")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read files of the namespace through the workers, and compare them with the under storage
    #[command(name = "basicIOTest", visible_alias = "runTests")]
    BasicIoTest(io_test::Args),
}

pub fn run(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Command::BasicIoTest(args) = args.command;
    io_test::run(args, conf, out)
}
