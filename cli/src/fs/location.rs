//! `fs location`: which workers own a path. Nobody is asked: the ring follows from who is registered.

use crate::cluster::Cluster;
use client::cluster::ring_of;
use common::conf::{Conf, keys::cluster as keys};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path of the namespace (/mount/dir/file) or a URI of an under storage (s3://bucket/dir/file)
    path: String,
    /// How many workers to name, in the order in which they are asked [default: alluxio.user.file.replication.min]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    replicas: Option<u64>,
}

pub async fn location(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(conf).await?;
    let key = match args.path.contains("://") {
        true => common::UfsUri::parse(&args.path)?.to_string(),
        false => cluster.mounts.read().await?.resolve(&args.path)?,
    };
    let view = cluster.membership.view().await?;
    let workers = view.identities(conf.get(&keys::DYNAMIC_RING_ENABLED));
    anyhow::ensure!(!workers.is_empty(), "no worker is live; `alluxio info nodes` shows who is registered");
    let nodes = u32::try_from(conf.get(&keys::RING_VIRTUAL_NODES)).unwrap_or(u32::MAX);
    let replicas = args.replicas.unwrap_or_else(|| conf.get(&keys::REPLICATION_MIN));
    let ring = ring_of(&view, &workers, conf.get(&keys::RING_PROVIDER), nodes);
    let owners = ring.lookup(key.as_bytes(), usize::try_from(replicas).unwrap_or(usize::MAX));
    for identity in owners {
        if let Some(state) = view.workers.get(&identity) {
            writeln!(out, "{identity}\t{}", state.entry.shown())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
