//! `fs check-cached`: how much of files their workers have. Checking caches nothing.

use super::format;
use super::place::{NAMESPACE, Place};
use super::walk::{Found, Walk};
use crate::cluster::{self, Cluster, Owners};
use client::cluster::Link;
use client::mount_table::Located;
use client::ring::WorkerIdentity;
use common::conf::{Conf, keys::cluster as keys};
use common::rpc::worker::CheckCachedRequest;
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::HashMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

/// Files that are asked for at the same time.
const AT_ONCE: usize = 16;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A line for each file and each worker that should have it, and the sum; nothing is cached by looking.

Examples:
  alluxio fs check-cached /s3/dir/file
  alluxio fs check-cached --limit 100000 s3://bucket/dataset")]
pub struct Args {
    /// Check at most so many files
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Files or directories: paths of the namespace (/mount/dir) or URIs of mounted under storages
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
}

/// What the answers add up to.
#[derive(Default)]
struct Sum {
    files: u64,
    size: u64,
    cached: u64,
}

pub async fn check(args: Args, conf: &Conf, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(conf).await?;
    let table = cluster.mounts.read().await?;
    let owners = Owners::of(&cluster, conf).await?;
    let replicas = usize::try_from(conf.get(&keys::REPLICATION_MIN)).unwrap_or(1).max(1);
    let mut links: HashMap<WorkerIdentity, Arc<Link>> = HashMap::new();
    let (mut sum, mut cut) = (Sum::default(), false);
    writeln!(out, "Cached\tSize\tPercent\tWorker\tPath")?;
    for text in &args.paths {
        let located = table.locate(text)?;
        let inside = format!("{NAMESPACE}{}{}", located.point, located.path);
        let place = Place::parse(&inside, conf).await?;
        let mut walk = Walk::of(&place).await?;
        while let Some(batch) = walk.next().await? {
            let mut files: Vec<Found> = batch.into_iter().filter(|found| found.attr.is_file()).collect();
            let left = usize::try_from(args.limit.saturating_sub(sum.files)).unwrap_or(usize::MAX);
            cut |= files.len() > left;
            files.truncate(left);
            sum.files += files.len() as u64;
            let mut asked = Vec::new();
            for found in files {
                let path = within(&located, &found)?;
                sum.size += found.attr.size;
                for (identity, entry) in owners.lookup(&located.uri.full_path(&path), replicas) {
                    let link = match links.get(&identity) {
                        Some(link) => link.clone(),
                        None => links.entry(identity).or_insert(cluster::link(entry, conf)?).clone(),
                    };
                    asked.push((link, located.uri.text(), path.clone()));
                }
            }
            let mut answers = stream::iter(asked.into_iter().map(|(link, storage, path)| async move {
                let request = CheckCachedRequest { storage, path: path.as_bytes().to_vec() };
                let answer = cluster::ask(&link, async |client| client.check_cached(request).await).await?;
                Ok::<_, anyhow::Error>((link, path, answer))
            }))
            .buffered(AT_ONCE);
            while let Some((link, path, answer)) = answers.try_next().await? {
                sum.cached += answer.cached;
                let worker = link.entry().identity;
                let shown = format!("{}{}", located.point, format::name(path.to_string().as_bytes()));
                let percent = percent(answer.cached, answer.size);
                writeln!(out, "{}\t{}\t{percent}%\t{worker}\t{shown}", answer.cached, answer.size)?;
            }
            if cut {
                break;
            }
        }
    }
    let more = if cut { format!(" (stopped there; see --limit {})", args.limit) } else { String::new() };
    let percent = percent(sum.cached, sum.size);
    writeln!(out, "{} of {} bytes of {} files are cached ({percent}%){more}", sum.cached, sum.size, sum.files)?;
    Ok(ExitCode::SUCCESS)
}

/// The path below the mount of something found by its path in the namespace.
fn within(located: &Located, found: &Found) -> anyhow::Result<common::UfsPath> {
    let mut names = found.path.names();
    anyhow::ensure!(
        names.next().is_some_and(|name| name == &located.point.as_bytes()[1..]),
        "{}: not below {}",
        found.path,
        located.point
    );
    Ok(common::UfsPath::parse(names.collect::<Vec<_>>().join(&b'/'))?)
}

/// Whole percents; 100 only when nothing is missing.
fn percent(part: u64, whole: u64) -> u64 {
    match whole {
        0 => 100,
        whole => u64::try_from(u128::from(part.min(whole)) * 100 / u128::from(whole)).unwrap_or(100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_is_never_too_good() {
        assert_eq!([percent(0, 0), percent(0, 9), percent(999, 1000), percent(7, 7)], [100, 0, 99, 100]);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
    }
}
