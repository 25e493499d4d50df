//! `fs refresh`: after something else than the cluster changed files, everybody in the cluster looks again.

use client::cluster::Namespace;
use common::conf::{Conf, keys::cluster as keys};
use common::{UfsPath, UfsUri};
use std::io::Write;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A path of the namespace, for example /mount/dir/file
    path: String,
    /// And everything below it
    #[arg(short = 'R', long)]
    recursive: bool,
}

pub async fn refresh(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        !args.path.contains("://"),
        "{}: name the path in the namespace, for example /mount/dir/file; alluxio mount list shows what is mounted where",
        UfsUri::parse(&args.path).map_or(args.path.clone(), |uri| uri.to_string())
    );
    let path = UfsPath::parse(&args.path)?;
    let namespace = Namespace::connect(conf, &conf.get(&keys::CLUSTER_NAME), &UfsPath::root()).await?;
    namespace.refresh(&path, args.recursive).await?;
    writeln!(out, "Refreshed {path}")?;
    Ok(ExitCode::SUCCESS)
}
