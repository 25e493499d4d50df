//! Files of 100 KiB, opened, read and closed in random order by one process.

use super::Context;
use crate::{machine, mounts::Mount, table::Row, work};
use anyhow::Result;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// A candidate gets this long for one measurement; what it reads in it counts.
const LIMIT: Duration = Duration::from_secs(6);

/// `small-warm`, `small-cold`, and both with 20 ms added to every answer.
pub fn rows(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (latency, warm, cold, warm_goal, cold_goal) in
        [(0, "small-warm", "small-cold", 10.0, 3.0), (20, "small-warm-20ms", "small-cold-20ms", 20.0, 20.0)]
    {
        if context.wants(warm) {
            rows.push(warm_row(context, latency, warm, warm_goal)?);
        }
        if context.wants(cold) {
            rows.push(cold_row(context, latency, cold, cold_goal)?);
        }
    }
    Ok(rows)
}

fn peers(context: &Context, endpoint: &str) -> Result<Vec<(&'static str, Mount)>> {
    let mut mounts = Vec::new();
    if machine::has("rclone") {
        mounts.push(("rclone, S3", context.places.rclone("rclone", endpoint, "small")?));
    }
    if machine::has("s3fs") {
        mounts.push(("s3fs, S3", context.places.s3fs("s3fs", endpoint, "small")?));
    }
    Ok(mounts)
}

/// The peers read part of the files, since all of them would take hours with latency: their rate is what counts.
fn share<'n>(context: &Context, name: &str, latency: u64, names: &'n [PathBuf]) -> &'n [PathBuf] {
    let most = match (name.starts_with("ours") || name == "native", latency) {
        (true, _) => names.len(),
        (false, 0) => 2_000.min(context.sizes.small / 4),
        (false, _) => 100,
    };
    &names[..most.min(names.len())]
}

fn warm_row(context: &Context, latency: u64, name: &'static str, goal: f64) -> Result<Row> {
    let directory = context.data.join("small");
    let server = context.server(latency)?;
    let mut mounts = vec![("ours, S3", context.places.ours_s3("s3", server.endpoint(), "small")?)];
    mounts.extend(peers(context, server.endpoint())?);
    let mut row = Row::new(name, "files/s, open+read+close of 100 KiB, warm").goal("ours, S3", &["rclone, S3", "s3fs, S3"], goal);
    if latency == 0 {
        mounts.insert(0, ("ours, directory", context.places.ours("dir", &directory.display().to_string(), &[])?));
        row = row.goal("ours, directory", &["native"], 0.4).goal("ours, S3", &["native"], 0.4);
    }
    let names = work::shuffled(&context_names(context), 1);
    let candidates: Vec<(&str, &Path)> =
        std::iter::once(("native", directory.as_path())).chain(mounts.iter().map(|(name, mount)| (*name, mount.point()))).collect();
    for (candidate, root) in &candidates {
        let names = share(context, candidate, latency, &names);
        for _ in 0..2 {
            work::small(root, names, Duration::from_secs(120))?;
        }
    }
    for repetition in 0..context.repetitions {
        for (candidate, root) in &candidates {
            let names = work::shuffled(share(context, candidate, latency, &names), 2 + repetition as u64);
            row.add(candidate, work::rate(|| work::small(root, &names, LIMIT))?);
        }
    }
    Ok(row)
}

fn cold_row(context: &Context, latency: u64, name: &'static str, goal: f64) -> Result<Row> {
    let server = context.server(latency)?;
    let all = context_names(context);
    let mut row = Row::new(name, "files/s, open+read+close of 100 KiB, empty cache").goal("ours, S3", &["rclone, S3", "s3fs, S3"], goal);
    for repetition in 0..context.repetitions {
        let names = work::shuffled(&all, 100 + repetition as u64);
        {
            let mount = context.places.ours_s3("s3", server.endpoint(), "small")?;
            row.add("ours, S3", work::rate(|| work::small(mount.point(), &names, Duration::from_secs(60)))?);
        }
        for (peer, mount) in peers(context, server.endpoint())? {
            let names = share(context, peer, latency, &names);
            row.add(peer, work::rate(|| work::small(mount.point(), names, LIMIT))?);
        }
    }
    Ok(row)
}

fn context_names(context: &Context) -> Vec<PathBuf> {
    (0..context.sizes.small).map(|number| PathBuf::from(format!("d{:04}/f{number:06}", number / crate::SMALL_PER_DIRECTORY))).collect()
}
