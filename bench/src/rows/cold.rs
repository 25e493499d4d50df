//! Large files, cold, from S3: throughput against a bare client, and the time to the first byte.

use super::Context;
use crate::{bare::Bare, machine, table::Row, work};
use anyhow::Result;
use std::fs;

/// `seq-cold`, `first-byte`, and both with 20 ms added to every answer.
pub fn rows(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (latency, sequential, first) in [(0, "seq-cold", "first-byte"), (20, "seq-cold-20ms", "first-byte-20ms")] {
        if context.wants(sequential) {
            rows.push(sequential_row(context, latency, sequential)?);
        }
        if context.wants(first) {
            rows.push(first_byte_row(context, latency, first)?);
        }
    }
    Ok(rows)
}

fn sequential_row(context: &Context, latency: u64, name: &'static str) -> Result<Row> {
    let server = context.server(latency)?;
    let places = &context.places;
    let mut row = Row::new(name, "MB/s, 1 MiB reads of a file of an empty cache")
        .goal("ours, S3", &["bare client, 16 ranges"], 0.9)
        .goal("ours, S3", &["rclone, S3", "s3fs, S3"], 1.0);
    let bare = Bare::new(server.endpoint())?;
    bare.get_ranges("large", "file", context.sizes.large)?;
    for _ in 0..context.repetitions {
        let rate = work::rate(|| bare.get_ranges("large", "file", context.sizes.large))?;
        row.add("bare client, 16 ranges", rate);
        {
            let mount = places.ours_s3("s3", server.endpoint(), "large")?;
            row.add("ours, S3", work::rate(|| work::sequential(&mount.point().join("file")))?);
        }
        if machine::has("rclone") {
            let mount = places.rclone("rclone", server.endpoint(), "large")?;
            row.add("rclone, S3", work::rate(|| work::sequential(&mount.point().join("file")))?);
        }
        if machine::has("s3fs") {
            let mount = places.s3fs("s3fs", server.endpoint(), "large")?;
            row.add("s3fs, S3", work::rate(|| work::sequential(&mount.point().join("file")))?);
        }
    }
    Ok(row)
}

fn first_byte_row(context: &Context, latency: u64, name: &'static str) -> Result<Row> {
    let server = context.server(latency)?;
    let mut row = Row::new(name, "ms from open to the first bytes of a cold file of 4 MiB")
        .less_is_better()
        .goal("ours, listed directory", &["bare GET"], 1.5)
        .goal("ours, by path", &["bare GET"], 1.5);
    let bare = Bare::new(server.endpoint())?;
    let files = context.sizes.firsts;
    let key = |number: usize| format!("d{:04}/f{number:06}", number / crate::FIRSTS_PER_DIRECTORY);
    for repetition in 0..context.repetitions {
        let listed = context.places.ours_s3("s3-listed", server.endpoint(), "firsts")?;
        let by_path = context.places.ours_s3("s3-path", server.endpoint(), "firsts")?;
        for directory in fs::read_dir(listed.point())? {
            fs::read_dir(directory?.path())?.count();
        }
        // One file for each directory, so that a lookup in one says nothing of the next.
        let step = crate::FIRSTS_PER_DIRECTORY;
        let (mut bare_sum, mut listed_sum, mut path_sum, mut count) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for number in (repetition % step..files).step_by(step) {
            bare_sum.push(bare.first_byte("firsts", &key(number))?);
            listed_sum.push(work::first_byte(&listed.point().join(key(number)))?);
            path_sum.push(work::first_byte(&by_path.point().join(key(number)))?);
            count += 1;
        }
        for (candidate, mut values) in
            [("bare GET", bare_sum), ("ours, listed directory", listed_sum), ("ours, by path", path_sum)]
        {
            values.sort_by(f64::total_cmp);
            row.add(candidate, values[count / 2]);
        }
    }
    Ok(row)
}
