//! Large files, warm: sequential and random reads over a directory and over S3, against the native directory.

use super::Context;
use crate::{machine, table::Row, work};
use anyhow::Result;
use std::path::PathBuf;

/// `seq-warm`, `rand-warm`.
pub fn rows(context: &Context) -> Result<Vec<Row>> {
    let (sequential, random) = (context.wants("seq-warm"), context.wants("rand-warm"));
    if !sequential && !random {
        return Ok(Vec::new());
    }
    let directory = context.data.join("large");
    let uri = directory.display().to_string();
    let server = context.server(0)?;
    let places = &context.places;
    let on = places.ours("dir", &uri, &[])?;
    let off = places.ours("dir-off", &uri, &["passthrough=off".to_owned()])?;
    let s3 = places.ours_s3("s3", server.endpoint(), "large")?;
    let mut candidates: Vec<(&str, PathBuf)> = vec![
        ("native", directory.clone()),
        ("ours, directory", on.point().to_owned()),
        ("ours, directory, passthrough off", off.point().to_owned()),
        ("ours, S3", s3.point().to_owned()),
    ];
    let rclone = machine::has("rclone").then(|| places.rclone("rclone", server.endpoint(), "large")).transpose()?;
    let s3fs = machine::has("s3fs").then(|| places.s3fs("s3fs", server.endpoint(), "large")).transpose()?;
    candidates.extend(rclone.iter().map(|mount| ("rclone, S3", mount.point().to_owned())));
    candidates.extend(s3fs.iter().map(|mount| ("s3fs, S3", mount.point().to_owned())));
    for (_, root) in &candidates {
        for _ in 0..2 {
            work::sequential(&root.join("file"))?;
        }
    }
    let mut rows = Vec::new();
    if sequential {
        let mut row = Row::new("seq-warm", "MB/s, 1 MiB reads of a warm file")
            .goal("ours, directory", &["native"], 0.9)
            .goal("ours, S3", &["native"], 0.9)
            .goal("ours, directory, passthrough off", &["native"], 0.5);
        for _ in 0..context.repetitions {
            for (name, root) in &candidates {
                row.add(name, work::rate(|| work::sequential(&root.join("file")))?);
            }
        }
        rows.push(row);
    }
    if random {
        let mut row = Row::new("rand-warm", "4 KiB reads per second of a warm file")
            .goal("ours, directory", &["native"], 0.9)
            .goal("ours, S3", &["native"], 0.9);
        for repetition in 0..context.repetitions {
            for (name, root) in &candidates {
                let count = if name.starts_with("rclone") { 4_000 } else { 200_000 };
                let path = root.join("file");
                row.add(name, work::rate(|| work::random(&path, count, repetition as u64))?);
            }
        }
        rows.push(row);
    }
    Ok(rows)
}
