//! Large files, cold, from S3: throughput against a bare client, and the time to the first byte.

use super::{Candidate, Context, PEERS, S3};
use crate::{bare::Bare, table::Row, work};
use anyhow::Result;
use std::{fs, path::Path};

/// MB/s of a file of an empty cache.
pub fn sequential(context: &Context, name: &'static str, latency: u64) -> Result<Row> {
    const BARE: &str = "bare client, 16 ranges";
    let server = context.server(latency)?;
    let mut row =
        Row::new(name, "MB/s, 1 MiB reads of a file, empty cache").goal(S3, &[BARE], 0.9).goal(S3, PEERS, 1.0);
    let bare = Bare::new(server.endpoint())?;
    let fetch = || bare.get_ranges("large", "file", context.sizes.large);
    for _ in 0..2 {
        fetch()?;
    }
    for _ in 0..context.repetitions {
        context.memory.settle()?;
        row.add(BARE, work::rate(fetch)?);
        for candidate in Candidate::ON_S3 {
            let Some(ready) = context.ready(*candidate, "large", &server)? else { continue };
            context.measure(&mut row, &ready, |root| work::rate(|| work::sequential(&root.join("file"))))?;
        }
    }
    Ok(row)
}

/// Milliseconds to the first bytes of files that nobody has read, once in directories that were listed, once by path.
pub fn first_byte(context: &Context, name: &'static str, latency: u64) -> Result<Row> {
    const BARE: &str = "bare GET";
    const LISTED: &str = "ours, S3, listed directory";
    const BY_PATH: &str = "ours, S3, by path";
    let server = context.server(latency)?;
    let mut row = Row::new(name, "ms from open to the first bytes of a file of 4 MiB, empty cache")
        .less_is_better()
        .goal(LISTED, &[BARE], 1.5)
        .goal(BY_PATH, &[BARE], 1.5);
    let bare = Bare::new(server.endpoint())?;
    let tree = &context.sizes.firsts;
    for number in 0..tree.files {
        bare.first_byte("firsts", &tree.name(number))?;
    }
    for repetition in 0..context.repetitions as u64 {
        context.memory.settle()?;
        let listed = context.places.ours_s3("s3-listed", server.endpoint(), "firsts")?;
        let by_path = context.places.ours_s3("s3-path", server.endpoint(), "firsts")?;
        for directory in fs::read_dir(listed.point())? {
            for entry in fs::read_dir(directory?.path())? {
                entry?;
            }
        }
        let first = |root: &Path, key: &str| work::first_byte(&root.join(key));
        let (mut of_bare, mut of_listed, mut of_by_path) = (Vec::new(), Vec::new(), Vec::new());
        // One file for each directory, so that a lookup in one says nothing of the next.
        for number in (repetition % tree.per_directory..tree.files).step_by(tree.per_directory as usize) {
            let key = tree.name(number);
            of_bare.push(bare.first_byte("firsts", &key)?);
            of_listed.push(first(listed.point(), &key)?);
            of_by_path.push(first(by_path.point(), &key)?);
        }
        for (candidate, mut values) in [(BARE, of_bare), (LISTED, of_listed), (BY_PATH, of_by_path)] {
            values.sort_by(f64::total_cmp);
            row.add(candidate, values[values.len() / 2]);
        }
    }
    Ok(row)
}
