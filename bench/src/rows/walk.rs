//! Walks: every directory listed, every entry stat'ed.

use super::{Candidate, Context, DIRECTORY, NATIVE, S3, WHOLE};
use crate::{bare::Bare, table::Row, work};
use anyhow::Result;

/// Entries each second of a tree that was walked before.
pub fn warm(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let entries = context.sizes.walked.entries();
    let mut row =
        Row::new(name, "entries/s, list and stat a tree again").goal(DIRECTORY, NATIVE, 0.6).goal(S3, NATIVE, 0.6);
    let mut candidates = context.all_ready(Candidate::ALL, "walked", &server)?;
    for _ in 0..2 {
        context.warm_up(&mut candidates, |ready| work::find(ready.path(), entries, WHOLE).map(drop))?;
    }
    for _ in 0..context.repetitions {
        for ready in &candidates {
            let limit = ready.candidate.limit();
            context.measure(&mut row, ready, |root| work::rate(|| work::find(root, entries, limit)))?;
        }
    }
    Ok(row)
}

/// Entries each second of a tree that the daemon, just mounted, has not seen.
pub fn cold(context: &Context, name: &'static str) -> Result<Row> {
    const BARE: &str = "bare lister, 8 at a time";
    let server = context.server(0)?;
    let entries = context.sizes.walked.entries();
    let mut row = Row::new(name, "entries/s, list and stat a tree for the first time").goal(S3, &[BARE], 1.0 / 1.5);
    let bare = Bare::new(server.endpoint())?;
    bare.list("walked", entries)?;
    for _ in 0..context.repetitions {
        row.add(BARE, work::rate(|| bare.list("walked", entries))?);
        for candidate in Candidate::ON_S3 {
            let Some(ready) = context.ready(*candidate, "walked", &server)? else { continue };
            let limit = ready.candidate.limit();
            context.measure(&mut row, &ready, |root| work::rate(|| work::find(root, entries, limit)))?;
        }
    }
    Ok(row)
}
