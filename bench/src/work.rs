//! The workloads. Every candidate of a row runs the same code on its own path.

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Runs `work`, which returns how many units it did, and gives units per second.
pub fn rate(work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let start = Instant::now();
    let units = work()?;
    Ok(units / start.elapsed().as_secs_f64())
}

/// Reads a file from start to end in blocks of 1 MiB; MB.
pub fn sequential(path: &Path) -> Result<f64> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata()?.len();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).with_context(|| format!("read {} at {total}", path.display()))?;
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    ensure!(total == size, "{}: {total} bytes of {size}", path.display());
    Ok(total as f64 / 1e6)
}

/// Reads `count` blocks of 4 KiB at random places; blocks.
pub fn random(path: &Path, count: u64, seed: u64) -> Result<f64> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / 4096;
    let mut random = StdRng::seed_from_u64(seed);
    let mut buffer = [0; 4096];
    for _ in 0..count {
        file.read_exact_at(&mut buffer, random.random_range(0..blocks) * 4096)?;
    }
    Ok(count as f64)
}

/// Opens, reads and closes files in the given order; files. Stops at `limit` of time once some were read.
pub fn small(root: &Path, names: &[PathBuf], limit: Duration) -> Result<f64> {
    let mut buffer = vec![0; 256 << 10];
    let start = Instant::now();
    let mut files = 0;
    for name in names {
        let path = root.join(name);
        let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let mut size = 0;
        loop {
            let count = file.read(&mut buffer)?;
            size += count;
            if count < buffer.len() {
                break;
            }
        }
        ensure!(size > 0, "{} is empty", path.display());
        files += 1;
        if start.elapsed() > limit {
            break;
        }
    }
    Ok(f64::from(files))
}

/// Names in random order.
pub fn shuffled(names: &[PathBuf], seed: u64) -> Vec<PathBuf> {
    let mut names = names.to_vec();
    names.shuffle(&mut StdRng::seed_from_u64(seed));
    names
}

/// Walks a tree as `find -size +0` does: every directory read, every entry stat'ed; entries.
pub fn find(root: &Path) -> Result<f64> {
    let mut entries = 0;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let entry = entry?;
            let metadata = fs::symlink_metadata(entry.path())?;
            entries += 1;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(f64::from(entries))
}

/// Milliseconds from open to the first 4 KiB.
pub fn first_byte(path: &Path) -> Result<f64> {
    let start = Instant::now();
    let file = File::open(path)?;
    let mut buffer = [0; 4096];
    ensure!(file.read_at(&mut buffer, 0)? > 0, "{} is empty", path.display());
    Ok(start.elapsed().as_secs_f64() * 1e3)
}
