//! The machine's part in a measurement: page cache, host memory, and what other processes cost.

use anyhow::{Context, Result};
use nix::{sys::statvfs::statvfs, time::clock_getcpuclockid, unistd::Pid};
use std::{
    cell::Cell,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

/// Writes dirty pages back, and drops the page cache, entries and inodes.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the page cache (needs root)")
}

/// Bytes that a file system has for new files.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let found = statvfs(directory).with_context(|| format!("look at {}", directory.display()))?;
    Ok(found.blocks_available() * found.fragment_size())
}

/// Keeps free memory occupied with clean page cache.
///
/// A virtual machine that gives free memory back to its host pays seconds for each GiB that it touches again, and every
/// cache directory that is removed frees such memory. So before each measurement what is free is filled by reading the
/// holes of a sparse file: pages that cost nothing to take away.
pub struct Memory {
    holes: Option<File>,
    next: Cell<u64>,
}

impl Memory {
    const HOLES: u64 = 1 << 40;
    const STAYS_FREE: u64 = 512 << 20;

    /// Nothing is done unless `wanted` and the kernel reports free pages to a host.
    pub fn new(scratch: &Path, wanted: bool) -> Result<Self> {
        let reported = Path::new("/sys/module/page_reporting").exists();
        let holes = if wanted && reported {
            let path = scratch.join("holes");
            File::create(&path)?.set_len(Self::HOLES).context("make a sparse file of 1 TiB")?;
            Some(File::open(&path)?)
        } else {
            None
        };
        Ok(Self { holes, next: Cell::new(0) })
    }

    /// Occupies what is free now.
    pub fn settle(&self) -> Result<()> {
        let Some(holes) = &self.holes else { return Ok(()) };
        let mut left = free_memory().saturating_sub(Self::STAYS_FREE);
        let mut buffer = vec![0; 1 << 20];
        while left >= buffer.len() as u64 {
            let at = self.next.get() % Self::HOLES;
            let count = holes.read_at(&mut buffer, at)? as u64;
            self.next.set(at + count.max(1));
            left -= count.max(1);
        }
        Ok(())
    }
}

fn free_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemFree:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Resident memory of a process in MiB.
pub fn resident_mib(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}

/// Processor seconds that a process has used, user and system, to the nanosecond.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).context("the daemon is gone")?;
    let time = clock.now().context("the daemon is gone")?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
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
