//! What the daemon costs: memory when idle and when streaming, processor time, start-up.

use super::{Candidate, Context, DIRECTORY, S3};
use crate::{machine, table::Row, work};
use anyhow::{Context as _, Result, ensure};
use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// MiB that daemons hold which did nothing but mount.
pub fn idle(context: &Context, name: &'static str) -> Result<Row> {
    let mut row = Row::new(name, "MiB resident, 3 s after the mount").less_is_better().goal(DIRECTORY, &[], 64.0).goal(
        S3,
        &[],
        64.0,
    );
    let server = context.server(0)?;
    let candidates = &Candidate::ALL[1..];
    for _ in 0..context.repetitions {
        let mounts = context.all_ready(candidates, "large", &server)?;
        thread::sleep(Duration::from_secs(3));
        for ready in &mounts {
            let pid = ready.pid();
            context.measure(&mut row, ready, |_| pid.and_then(machine::resident_mib).context("the daemon is gone"))?;
        }
    }
    Ok(row)
}

/// The most MiB that daemons hold while four processes read cold files.
pub fn streaming(context: &Context, name: &'static str) -> Result<Row> {
    let mut row = Row::new(name, "MiB resident at most, four cold streams").less_is_better().goal(S3, &[], 200.0);
    let server = context.server(0)?;
    for _ in 0..context.repetitions {
        for candidate in Candidate::ON_S3 {
            let Some(ready) = context.ready(*candidate, "streams", &server)? else { continue };
            let pid = ready.pid().context("no daemon")?;
            context.measure(&mut row, &ready, |root| peak_while_streaming(root, pid))?;
        }
    }
    Ok(row)
}

/// Processor seconds that the daemon spends for each GiB that is read warm.
pub fn cpu(context: &Context, name: &'static str) -> Result<Row> {
    let mut row = Row::new(name, "processor seconds of the daemon for each GiB read warm").less_is_better();
    row = row.goal(DIRECTORY, &[], 0.02).goal(S3, &[], 0.02);
    let server = context.server(0)?;
    let candidates = [Candidate::Directory, Candidate::DirectoryOff, Candidate::S3];
    let mut mounts = context.all_ready(&candidates, "large", &server)?;
    for _ in 0..2 {
        context.warm_up(&mut mounts, |ready| work::sequential(&ready.path().join("file")).map(drop))?;
    }
    for _ in 0..context.repetitions {
        for ready in &mounts {
            let pid = ready.pid().context("no daemon")?;
            context.measure(&mut row, ready, |root| {
                let before = machine::cpu_seconds(pid)?;
                let mut read = 0.0;
                for _ in 0..4 {
                    read += work::sequential(&root.join("file"))?;
                }
                Ok((machine::cpu_seconds(pid)? - before) / (read * 1e6 / f64::from(1 << 30)))
            })?;
        }
    }
    Ok(row)
}

/// Seconds from the start of the command until a byte of a file has been read.
pub fn start(context: &Context, name: &'static str) -> Result<Row> {
    let mut row = Row::new(name, "s from the start of the command to the first byte").less_is_better();
    row = row.goal(DIRECTORY, &[], 0.2).goal(S3, &[], 0.2);
    let server = context.server(0)?;
    for _ in 0..context.repetitions {
        for candidate in &Candidate::ALL[1..] {
            context.memory.settle()?;
            let start = Instant::now();
            let Some(ready) = context.ready(*candidate, "large", &server)? else { continue };
            work::first_byte(&ready.path().join("file")).context(ready.name())?;
            row.add(ready.name(), start.elapsed().as_secs_f64());
        }
    }
    Ok(row)
}

fn peak_while_streaming(root: &Path, pid: u32) -> Result<f64> {
    peak_during(pid, || four_readers(root))
}

/// The most MiB that a process holds while `work` is done.
pub fn peak_during(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = 0.0_f64;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(machine::resident_mib(pid).unwrap_or(0.0));
                thread::sleep(Duration::from_millis(10));
            }
            peak
        });
        let outcome = work();
        done.store(true, Ordering::Relaxed);
        let peak = sampler.join().map_err(|_| anyhow::anyhow!("the sampler failed"))?;
        outcome?;
        ensure!(peak > 0.0, "the daemon is gone");
        Ok(peak)
    })
}

/// Processes of their own: four streams, as four jobs would read.
fn four_readers(root: &Path) -> Result<()> {
    let mut readers = Vec::new();
    for number in 0..4 {
        let mut command = Command::new("dd");
        command.arg(format!("if={}", root.join(format!("file{number}")).display()));
        crate::cleanup::die_with_parent(&mut command);
        readers.push(command.args(["of=/dev/null", "bs=1M", "status=none"]).spawn().context("start dd")?);
    }
    let mut failed = false;
    for reader in &mut readers {
        failed |= !reader.wait()?.success();
    }
    ensure!(!failed, "a reader failed");
    Ok(())
}
