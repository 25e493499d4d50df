//! Walks: every directory listed, every entry stat'ed.

use super::Context;
use crate::{bare::Bare, machine, table::Row, work};
use anyhow::Result;
use std::path::Path;

/// `find-warm`, `find-cold`.
pub fn rows(context: &Context) -> Result<Vec<Row>> {
    let (warm, cold) = (context.wants("find-warm"), context.wants("find-cold"));
    if !warm && !cold {
        return Ok(Vec::new());
    }
    let directory = context.data.join("walked");
    let server = context.server(0)?;
    let places = &context.places;
    let mut rows = Vec::new();
    if warm {
        let mut mounts = vec![
            ("ours, directory", places.ours("dir", &directory.display().to_string(), &[])?),
            ("ours, S3", places.ours_s3("s3", server.endpoint(), "walked")?),
        ];
        if machine::has("rclone") {
            mounts.push(("rclone, S3", places.rclone("rclone", server.endpoint(), "walked")?));
        }
        if machine::has("s3fs") {
            mounts.push(("s3fs, S3", places.s3fs("s3fs", server.endpoint(), "walked")?));
        }
        let mut row = Row::new("find-warm", "entries/s, list and stat a tree again")
            .goal("ours, directory", &["native"], 0.6)
            .goal("ours, S3", &["native"], 0.6);
        let candidates: Vec<(&str, &Path)> =
            std::iter::once(("native", directory.as_path())).chain(mounts.iter().map(|(name, mount)| (*name, mount.point()))).collect();
        for (_, root) in &candidates {
            work::find(root)?;
        }
        for _ in 0..context.repetitions {
            for (name, root) in &candidates {
                row.add(name, work::rate(|| work::find(root))?);
            }
        }
        rows.push(row);
    }
    if cold {
        let mut row = Row::new("find-cold", "entries/s, list and stat a tree for the first time")
            .goal("ours, S3", &["bare lister, 8 at a time"], 1.0 / 1.5);
        let bare = Bare::new(server.endpoint())?;
        bare.list("walked")?;
        for _ in 0..context.repetitions {
            row.add("bare lister, 8 at a time", work::rate(|| bare.list("walked"))?);
            let mount = places.ours_s3("s3", server.endpoint(), "walked")?;
            row.add("ours, S3", work::rate(|| work::find(mount.point()))?);
            row.add("native, warm", work::rate(|| work::find(&directory))?);
        }
        rows.push(row);
    }
    Ok(rows)
}
