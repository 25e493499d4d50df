//! `alluxio fs`: files and directories. A path or a URI of an under storage is used directly: no cluster, mount or cache
//! takes part. `alluxio:///…` is the namespace of the cluster, read through its workers; `location` and `check-cached`
//! say who in the cluster owns a path and has it, `refresh` has the cluster look at it again.

mod cached;
pub mod content;
mod copy;
pub mod format;
mod list;
mod location;
pub mod place;
mod refresh;
mod status;
pub mod walk;

use common::conf::{Conf, ConfValue, Size};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
A place is a path of this host, a URI such as s3://bucket/dir/file, or alluxio:///mount/dir/file, which is read through
the workers of the cluster.

Examples:
  alluxio fs ls -R /data
  alluxio fs cat s3://bucket/file | wc -l
  alluxio fs head -c 4KB /data/file
  alluxio fs stat -f '%z %N' /data/file
  alluxio fs test -e s3://bucket/file && echo there
  alluxio fs checksum --algorithm sha256 /data/file
  alluxio fs cp -R s3://bucket/dir /local/dir
  alluxio fs cp alluxio:///s3/dir/file .
  alluxio fs location --replicas 3 /s3/dir/file
  alluxio fs check-cached /s3/dir
  alluxio fs refresh -R /s3/dir";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List files and directories
    Ls(list::Args),
    /// Print what is known of a file or directory
    Stat(status::StatArgs),
    /// Print whole files
    Cat(content::CatArgs),
    /// Print the beginning of a file
    Head(content::PartArgs),
    /// Print the end of a file
    Tail(content::PartArgs),
    /// Exit with 0 if a place is what the option says, with 1 if it is not
    Test(status::TestArgs),
    /// Print the checksum of a file
    Checksum(content::ChecksumArgs),
    /// Copy files and directories to this host
    Cp(copy::Args),
    /// Print the workers that own a path, in the order in which they are asked
    Location(location::Args),
    /// Have the cluster look again at what something else changed
    Refresh(refresh::Args),
    /// Print how much of files their workers have cached
    CheckCached(cached::Args),
}

/// `fs test` could not find out: its exit code tells that apart from "no".
#[derive(Debug)]
pub struct Undecided(common::Error);

impl std::fmt::Display for Undecided {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

impl std::error::Error for Undecided {}

pub fn run(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    crate::cluster::block_on(async {
        match args.command {
            Command::Ls(args) => list::ls(args, conf, out).await,
            Command::Stat(args) => status::stat(args, conf, out).await,
            Command::Cat(args) => content::cat(args, conf, out).await,
            Command::Head(args) => content::head(args, conf, out).await,
            Command::Tail(args) => content::tail(args, conf, out).await,
            Command::Test(args) => status::test(args, conf).await,
            Command::Checksum(args) => content::checksum(args, conf, out).await,
            Command::Cp(args) => copy::copy(args, conf, out).await,
            Command::CheckCached(args) => cached::check(args, conf, out).await,
            Command::Location(args) => location::location(args, conf, out).await,
            Command::Refresh(args) => refresh::refresh(args, conf, out).await,
        }
    })
}

/// A size on the command line.
fn size(text: &str) -> Result<u64, String> {
    Size::parse(text).map(Size::bytes)
}
