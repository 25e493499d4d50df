//! What the daemon costs: memory when idle and when streaming, processor time, start-up.

use super::Context;
use crate::{machine, table::Row, work};
use anyhow::{Context as _, Result};
use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// `idle`, `streaming`, `cpu`, `start`.
pub fn rows(context: &Context) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let directory = context.data.join("large").display().to_string();
    if context.wants("idle") {
        let mut row = Row::new("idle", "MiB resident, 3 s after the mount").less_is_better();
        row = row.goal("ours, directory", &[], 64.0).goal("ours, S3", &[], 64.0);
        let server = context.server(0)?;
        for _ in 0..context.repetitions {
            let mounts = [
                ("ours, directory", context.places.ours("dir", &directory, &[])?),
                ("ours, S3", context.places.ours_s3("s3", server.endpoint(), "large")?),
            ];
            thread::sleep(Duration::from_secs(3));
            for (name, mount) in &mounts {
                let resident = machine::status_kib(mount.pid(), "VmRSS").context("the daemon is gone")?;
                row.add(name, resident as f64 / 1024.0);
            }
        }
        rows.push(row);
    }
    if context.wants("streaming") {
        let mut row = Row::new("streaming", "MiB resident at most, four cold streams from S3").less_is_better().goal("ours, S3", &[], 200.0);
        let server = context.server(0)?;
        for _ in 0..context.repetitions {
            let mount = context.places.ours_s3("s3", server.endpoint(), "streams")?;
            row.add("ours, S3", peak_while_streaming(&mount)?);
        }
        rows.push(row);
    }
    if context.wants("cpu") {
        let mut row = Row::new("cpu", "processor seconds of the daemon for each warm GiB read").less_is_better();
        row = row.goal("ours, directory", &[], 0.02);
        let mount = context.places.ours("dir", &directory, &[])?;
        let file = mount.point().join("file");
        work::sequential(&file)?;
        for _ in 0..context.repetitions {
            let before = machine::cpu_seconds(mount.pid()).context("the daemon is gone")?;
            let mut read = 0.0;
            while read < 4.0 * 1073.7 {
                read += work::sequential(&file)?;
            }
            let used = machine::cpu_seconds(mount.pid()).context("the daemon is gone")? - before;
            row.add("ours, directory", used / (read / 1073.7));
        }
        rows.push(row);
    }
    if context.wants("start") {
        let mut row = Row::new("start", "s from the start of the command to the first byte").less_is_better();
        row = row.goal("ours, directory", &[], 0.2).goal("ours, S3", &[], 0.2);
        let server = context.server(0)?;
        for _ in 0..context.repetitions {
            let start = Instant::now();
            let mount = context.places.ours("dir", &directory, &[])?;
            work::first_byte(&mount.point().join("file"))?;
            row.add("ours, directory", start.elapsed().as_secs_f64());
            drop(mount);
            let start = Instant::now();
            let mount = context.places.ours_s3("s3", server.endpoint(), "large")?;
            work::first_byte(&mount.point().join("file"))?;
            row.add("ours, S3", start.elapsed().as_secs_f64());
        }
        rows.push(row);
    }
    Ok(rows)
}

fn peak_while_streaming(mount: &crate::mounts::Mount) -> Result<f64> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(machine::status_kib(mount.pid(), "VmRSS").unwrap_or(0));
                thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        // Processes of their own: four streams, as four jobs would read.
        let mut readers = Vec::new();
        for number in 0..4 {
            let path = mount.point().join(format!("file{number}"));
            readers.push(Command::new("dd").arg(format!("if={}", path.display())).args(["of=/dev/null", "bs=1M", "status=none"]).spawn()?);
        }
        let mut failed = false;
        for reader in &mut readers {
            failed |= !reader.wait()?.success();
        }
        done.store(true, Ordering::Relaxed);
        anyhow::ensure!(!failed, "a reader failed");
        let peak = sampler.join().map_err(|_| anyhow::anyhow!("the sampler failed"))?;
        Ok(peak as f64 / 1024.0)
    })
}
