//! Large files, warm: sequential and random reads over a directory and over S3, against the native directory.

use super::{Candidate, Context, DIRECTORY, NATIVE, Ready, S3};
use crate::{server::Server, table::Row, work};
use anyhow::Result;
use std::time::Duration;

const CANDIDATES: &[Candidate] = &[
    Candidate::Native,
    Candidate::Directory,
    Candidate::DirectoryOff,
    Candidate::S3,
    Candidate::Rclone,
    Candidate::S3fs,
];

fn warmed(context: &Context, server: &Server) -> Result<Vec<Ready>> {
    let mut candidates = context.all_ready(CANDIDATES, "large", server)?;
    // Twice: the first reading fills a cache, the second may find it and be treated otherwise.
    for _ in 0..2 {
        context.warm_up(&mut candidates, |ready| work::sequential(&ready.path().join("file")).map(drop))?;
    }
    Ok(candidates)
}

/// MB/s of a warm file, in blocks of 1 MiB.
pub fn sequential(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let candidates = warmed(context, &server)?;
    let mut row = Row::new(name, "MB/s, 1 MiB reads of a warm file")
        .goal(DIRECTORY, NATIVE, 0.9)
        .goal(S3, NATIVE, 0.9)
        .goal(Candidate::DirectoryOff.name(), NATIVE, 0.5);
    for _ in 0..context.repetitions {
        for ready in &candidates {
            context.measure(&mut row, ready, |root| work::rate(|| work::sequential(&root.join("file"))))?;
        }
    }
    Ok(row)
}

/// 4 KiB reads each second of a warm file.
pub fn random(context: &Context, name: &'static str) -> Result<Row> {
    const READS: u32 = 500_000;
    const AT_MOST: Duration = Duration::from_secs(3);
    let server = context.server(0)?;
    let candidates = warmed(context, &server)?;
    let mut row =
        Row::new(name, "4 KiB reads/s of a warm file, 1 thread").goal(DIRECTORY, NATIVE, 0.9).goal(S3, NATIVE, 0.9);
    for repetition in 0..context.repetitions as u64 {
        for ready in &candidates {
            context.measure(&mut row, ready, |root| {
                work::rate(|| work::random(&root.join("file"), READS, repetition, AT_MOST))
            })?;
        }
    }
    Ok(row)
}
