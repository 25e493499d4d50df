//! Files of 100 KiB, opened, read and closed in random order by one process.

use super::{Candidate, Context, DIRECTORY, NATIVE, PEERS, S3};
use crate::{
    table::Row,
    work::{self, SmallFile},
};
use anyhow::Result;
use std::time::Duration;

/// Peers read part of the files, since all of them would take hours with latency: their rate is what counts.
fn share(context: &Context, candidate: Candidate, latency: u64, files: &[SmallFile]) -> usize {
    match (candidate.peer(), latency) {
        (false, _) => files.len(),
        (true, 0) => (context.sizes.small.files as usize / 4).min(2_000),
        (true, _) => files.len().min(100),
    }
}

/// Files each second when all were read before, through mounts that stay.
pub fn warm(context: &Context, name: &'static str, latency: u64, against_peers: f64) -> Result<Row> {
    let server = context.server(latency)?;
    let mut row = Row::new(name, "files/s, open+read+close of 100 KiB, warm, 1 process").goal(S3, PEERS, against_peers);
    if latency == 0 {
        row = row.goal(DIRECTORY, NATIVE, 0.4).goal(S3, NATIVE, 0.4);
    }
    let candidates = if latency == 0 {
        Candidate::ALL
    } else {
        &[Candidate::Native, Candidate::S3, Candidate::Rclone, Candidate::S3fs]
    };
    let mut candidates = context.all_ready(candidates, "small", &server)?;
    let all = work::small_files(&context.sizes.small)?;
    // The share is the same in each pass, only its order changes: it is what is warm.
    let some = work::shuffled(&all, 1);
    for pass in 0..2 {
        context.warm_up(&mut candidates, |ready| {
            let share = &some[..share(context, ready.candidate, latency, &some)];
            work::small(ready.path(), &work::shuffled(share, 10 + pass), Duration::from_secs(300)).map(drop)
        })?;
    }
    for repetition in 0..context.repetitions as u64 {
        for ready in &candidates {
            let share = &some[..share(context, ready.candidate, latency, &some)];
            let files = work::shuffled(share, 20 + repetition);
            let limit = ready.candidate.limit();
            context.measure(&mut row, ready, |root| work::rate(|| work::small(root, &files, limit)))?;
        }
    }
    Ok(row)
}

/// Files each second with an empty cache of the daemon, which was just mounted; the server's data is in memory.
pub fn cold(context: &Context, name: &'static str, latency: u64, against_peers: f64) -> Result<Row> {
    let server = context.server(latency)?;
    let all = work::small_files(&context.sizes.small)?;
    for _ in 0..2 {
        work::small(&context.data.join("small"), &all, super::WHOLE)?;
    }
    let mut row =
        Row::new(name, "files/s, open+read+close of 100 KiB, empty cache, 1 process").goal(S3, PEERS, against_peers);
    for repetition in 0..context.repetitions as u64 {
        let files = work::shuffled(&all, 100 + repetition);
        for candidate in Candidate::ON_S3 {
            let Some(ready) = context.ready(*candidate, "small", &server)? else { continue };
            let share = &files[..share(context, *candidate, latency, &files)];
            context.measure(&mut row, &ready, |root| work::rate(|| work::small(root, share, candidate.limit())))?;
        }
    }
    Ok(row)
}
