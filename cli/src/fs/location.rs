//! `fs location`: which workers own a path. Nobody is asked: the ring follows from who is registered.

use crate::cluster::{Cluster, Owners};
use common::conf::{Conf, keys::cluster as keys};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  alluxio fs location /s3/dir/file
  alluxio fs location --replicas 3 s3://bucket/dir/file")]
pub struct Args {
    /// A path of the namespace (/mount/dir/file) or a URI of an under storage (s3://bucket/dir/file)
    path: String,
    /// How many workers to name, in the order in which they are asked [default: alluxio.user.file.replication.min]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    replicas: Option<u64>,
}

pub async fn location(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(conf).await?;
    let key = match args.path.contains("://") && !args.path.starts_with("alluxio://") {
        true => common::UfsUri::parse(&args.path)?.text(),
        false => cluster.mounts.read().await?.resolve(&args.path)?,
    };
    let replicas = args.replicas.unwrap_or_else(|| conf.get(&keys::REPLICATION_MIN));
    let owners = Owners::of(&cluster, conf).await?;
    for (identity, entry) in owners.lookup(key.as_bytes(), usize::try_from(replicas).unwrap_or(usize::MAX)) {
        writeln!(out, "{identity}\t{}", entry.shown())?;
    }
    Ok(ExitCode::SUCCESS)
}
