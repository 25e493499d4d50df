//! Writing to a directory, through the mount and beside it. Each candidate writes to a directory of its own on one file
//! system; what is written is made anew for each measurement, taken away outside of it, and the disk is at rest before.

use super::{Context, DIRECTORY, NATIVE};
use crate::{
    mounts::Mount,
    table::Row,
    work::{self, write},
};
use anyhow::{Context as _, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

const OFF: &str = super::Candidate::DirectoryOff.name();

/// Somebody who writes.
struct Writer {
    name: &'static str,
    root: PathBuf,
    _mount: Option<Mount>,
}

/// The native directory, and our mounts of directories beside it.
fn writers(context: &Context) -> Result<Vec<Writer>> {
    let mut writers = Vec::new();
    for (name, label, options) in [
        (super::Candidate::Native.name(), "native", None),
        (DIRECTORY, "directory", Some(&[][..])),
        (OFF, "directory-off", Some(&["passthrough=off"][..])),
    ] {
        let source = context.places.scratch.join(format!("written-{label}"));
        let _ = fs::remove_dir_all(&source);
        fs::create_dir_all(&source).with_context(|| format!("make {}", source.display()))?;
        let mount = match options {
            None => None,
            Some(options) => Some(context.places.ours(label, &source.display().to_string(), options)?),
        };
        let root = mount.as_ref().map_or(source, |mount| mount.point().to_owned());
        writers.push(Writer { name, root, _mount: mount });
    }
    Ok(writers)
}

/// Measures `work` in an empty directory of each writer, each repetition anew.
fn anew(context: &Context, mut row: Row, work: impl Fn(&Path) -> Result<f64>) -> Result<Row> {
    let writers = writers(context)?;
    for repetition in 0..=context.repetitions {
        for writer in &writers {
            let place = writer.root.join("work");
            fs::create_dir(&place).with_context(|| writer.name)?;
            write::settle(&place)?;
            context.memory.settle()?;
            let rate = work::rate(|| work(&place)).with_context(|| writer.name)?;
            // The first round only warms up.
            if repetition > 0 {
                row.add(writer.name, rate);
            }
            fs::remove_dir_all(&place).with_context(|| writer.name)?;
        }
    }
    Ok(row)
}

/// MB/s of a large file that is written from start to end and synced.
pub fn sequential(context: &Context, name: &'static str) -> Result<Row> {
    let row = Row::new(name, "MB/s, a file written in blocks of 1 MiB, with fsync").goal(DIRECTORY, NATIVE, 0.9);
    let size = context.sizes.large;
    anew(context, row, |place| write::sequential(&place.join("file"), size))
}

/// Files of 100 KiB each second, made, written and closed.
pub fn small(context: &Context, name: &'static str) -> Result<Row> {
    let row = Row::new(name, "files/s, create+write+close of 100 KiB, 1 process").goal(DIRECTORY, NATIVE, 0.5);
    let files = context.sizes.written;
    anew(context, row, |place| write::small(place, files))
}

/// Blocks of 4 KiB each second, written to random places of a large file.
pub fn random(context: &Context, name: &'static str) -> Result<Row> {
    let mut row = Row::new(name, "4 KiB writes/s to random places of a large file").goal(DIRECTORY, NATIVE, 0.8);
    let count = u32::try_from(context.sizes.large / (8 << 10))?;
    let writers = writers(context)?;
    for writer in &writers {
        write::sequential(&writer.root.join("file"), context.sizes.large).with_context(|| writer.name)?;
    }
    for repetition in 0..=context.repetitions as u64 {
        for writer in &writers {
            let file = writer.root.join("file");
            write::settle(&file)?;
            context.memory.settle()?;
            // All of it is in memory again, so that what is measured is writing.
            work::sequential(&file).with_context(|| writer.name)?;
            let rate = work::rate(|| write::random(&file, count, repetition)).with_context(|| writer.name)?;
            if repetition > 0 {
                row.add(writer.name, rate);
            }
        }
    }
    Ok(row)
}

/// Files each second that tar unpacks.
pub fn unpack(context: &Context, name: &'static str) -> Result<Row> {
    let files = context.sizes.unpacked;
    let archive = context.places.scratch.join("archive.tar");
    let packed = context.places.scratch.join("packed");
    write::archive(&packed, &archive, files)?;
    let row = Row::new(name, "files/s, tar x of files of 1 to 8 KiB");
    let row = anew(context, row, |place| {
        write::run("tar", &["xf".as_ref(), archive.as_os_str(), "-C".as_ref(), place.as_os_str()])?;
        Ok(files as f64)
    });
    fs::remove_dir_all(&packed)?;
    fs::remove_file(&archive)?;
    row
}

/// Files each second that git clones from a repository of this host.
pub fn clone(context: &Context, name: &'static str) -> Result<Row> {
    let files = context.sizes.written;
    let repository = context.places.scratch.join("repository");
    write::repository(&repository, files)?;
    let row = Row::new(name, "files/s, git clone of a repository of this host");
    let row = anew(context, row, |place| {
        let to = place.join("clone");
        write::run(
            "git",
            &["clone".as_ref(), "--quiet".as_ref(), "--no-local".as_ref(), repository.as_os_str(), to.as_os_str()],
        )?;
        Ok(files as f64)
    });
    fs::remove_dir_all(&repository)?;
    row
}
