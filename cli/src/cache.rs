//! `alluxio cache`: what the workers have cached.

use crate::cluster::{self, Cluster, block_on};
use crate::fs::format;
use common::conf::Conf;
use common::rpc::worker::FreeCacheRequest;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Only cached copies are dropped: the files stay in their under storages, and the next read caches them anew.

Examples:
  alluxio cache free /s3/dir
  alluxio cache free s3://bucket/prefix/file
  alluxio cache free --all";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Drop what all live workers have cached of paths
    Free(FreeArgs),
}

#[derive(Debug, clap::Args)]
struct FreeArgs {
    /// Drop everything
    #[arg(long, conflicts_with = "paths")]
    all: bool,
    /// Files or directories: paths of the namespace (/mount/dir) or URIs of mounted under storages
    #[arg(required_unless_present = "all", value_name = "PATH")]
    paths: Vec<String>,
}

pub fn run(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Command::Free(args) = args.command;
    block_on(async {
        let cluster = Cluster::connect(conf).await?;
        let mut requests = Vec::new();
        if args.all {
            requests.push(("everything".to_owned(), FreeCacheRequest::default()));
        } else {
            let table = cluster.mounts.read().await?;
            // All are looked up before the first is freed, so that a mistyped one costs nothing.
            for text in &args.paths {
                let located = table.locate(text)?;
                let (storage, path) = (located.uri.text(), located.path.as_bytes().to_vec());
                requests.push((text.clone(), FreeCacheRequest { storage, path }));
            }
        }
        let live = cluster.live().await?;
        for (what, request) in requests {
            // Not only the owner is asked: files of a directory have many, and a ring that changed leaves copies behind.
            let answers = cluster::ask_all(live.clone(), conf, async |link| {
                cluster::ask(&link, async |client| client.free_cache(request.clone()).await).await
            });
            let (mut bytes, mut holders, mut failure) = (0, 0, None);
            for (_, answer) in answers.await {
                match answer {
                    Ok(answer) => {
                        bytes += answer.bytes;
                        holders += u64::from(answer.bytes > 0);
                    }
                    Err(error) => failure = Some(error),
                }
            }
            writeln!(out, "Freed {bytes} bytes ({}) of {what} on {holders} workers", format::human(bytes))?;
            if let Some(error) = failure {
                return Err(error.context(format!("{what} is not freed everywhere")));
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}
