//! `alluxio mount`: which under storage stands at which name of the cluster's namespace.

use crate::cluster::{Cluster, block_on};
use anyhow::Context as _;
use client::mount_table::MountEntry;
use common::conf::{Conf, keys::user};
use common::{UfsUri, redact};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Mount points are names below /; neither they nor their under storages may nest. Running mounts follow a change.

Examples:
  alluxio mount add --path /s3 --ufs-uri s3://bucket/prefix --option alluxio.underfs.s3.region=eu-west-1
  alluxio mount list
  alluxio mount remove --path /s3";

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Mount an under storage
    Add {
        /// The mount point, for example /s3
        #[arg(long)]
        path: String,
        /// The under storage, for example s3://bucket/prefix
        #[arg(long)]
        ufs_uri: String,
        /// An option for this mount, over the configuration's
        #[arg(long = "option", value_name = "KEY=VALUE", value_parser = crate::define)]
        options: Vec<(String, String)>,
        /// Mount even if the under storage does not answer
        #[arg(long)]
        force: bool,
    },
    /// Print the mounts; secrets are hidden
    List,
    /// Unmount
    Remove {
        /// The mount point
        #[arg(long)]
        path: String,
    },
}

pub fn run(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    block_on(async {
        match args.command {
            Command::Add { path, ufs_uri, options, force } => {
                let uri = UfsUri::parse(&ufs_uri)?;
                let entry = MountEntry { ufs: uri.text(), properties: BTreeMap::from_iter(options) };
                let mounts = Cluster::connect(conf).await?.mounts;
                // A mount that breaks a rule is refused before anything is asked of its storage.
                mounts.read().await?.add(&path, entry.clone())?;
                if !force {
                    probe(conf, &uri, &entry).await.with_context(|| {
                        format!("{} cannot be used (--force mounts it all the same)", redact::uri(&ufs_uri))
                    })?;
                }
                mounts.change(|table| table.add(&path, entry.clone())).await?;
                writeln!(out, "Mounted {} at {path}", redact::uri(&entry.ufs))?;
            }
            Command::List => {
                let table = Cluster::connect(conf).await?.mounts.read().await?;
                writeln!(out, "Listing all mount points")?;
                for (path, entry) in &table.mounts {
                    // The entry shows itself without secrets.
                    let shown = entry.to_string();
                    let (ufs, properties) = shown.split_once(' ').unwrap_or((&shown, ""));
                    writeln!(out, "{ufs} on {path} {properties}")?;
                }
            }
            Command::Remove { path } => {
                let removed = Cluster::connect(conf).await?.mounts.change(|table| table.remove(&path)).await?;
                writeln!(out, "Unmounted {path}, where {} was", redact::uri(&removed.ufs))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn probe(conf: &Conf, uri: &UfsUri, entry: &MountEntry) -> anyhow::Result<()> {
    let options = worker::server::namespace::storage_options(conf, uri, entry)?;
    let storage = ufs::open(uri, &options)?;
    let limit = conf.get(&user::UFS_DEADLINE);
    match tokio::time::timeout(limit, storage.probe()).await {
        Ok(answer) => Ok(answer?),
        Err(_) => anyhow::bail!("no answer within {limit:?}"),
    }
}
