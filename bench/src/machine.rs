//! The machine's part in a measurement: page cache, host memory, and what other processes cost.

use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

/// Writes dirty pages back, and drops the page cache, entries and inodes.
pub fn drop_caches() -> Result<()> {
    // SAFETY: sync takes no arguments and cannot fail.
    unsafe { libc::sync() };
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache (needs root)")
}

/// Fills free memory with clean page cache, so that no measurement pays for memory that the host has to hand out
/// first (shared/reference/measuring.md, "Host memory").
pub fn occupy_memory(scratch: &Path, gib: u64) -> Result<()> {
    let path = scratch.join("occupy");
    let file = File::create(&path)?;
    file.set_len(gib << 30)?;
    drop(file);
    let mut file = File::open(&path)?;
    let mut buffer = vec![0; 4 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

/// A field of /proc/PID/status in KiB, for example `VmRSS`.
pub fn status_kib(pid: u32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.strip_prefix(field).is_some_and(|rest| rest.starts_with(':')))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Processor seconds that a process has used, user and system.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks as f64 / 100.0)
}

/// Whether a program can be run.
pub fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// One line about where this ran.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("?");
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    format!(
        "{} cores ({}), Linux {}, load {}",
        cores,
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split_whitespace().next().unwrap_or("?"),
    )
}
