//! The trees that are read: made once for a run, below its scratch directory.

use anyhow::Result;
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// How much data a run uses.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Bytes of the large file.
    pub large: u64,
    /// Files of 100 KiB.
    pub small: usize,
    /// Files of the tree that is walked.
    pub walked: usize,
    /// Files whose first byte is timed.
    pub firsts: usize,
}

impl Sizes {
    /// What the issue names, or a tenth of it.
    pub fn new(quick: bool) -> Self {
        if quick {
            Self { large: 256 << 20, small: 2_000, walked: 10_000, firsts: 40 }
        } else {
            Self { large: 1 << 30, small: 20_000, walked: 100_000, firsts: 200 }
        }
    }
}

/// A large file of random bytes.
pub fn large(path: &Path, size: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut random = StdRng::seed_from_u64(size);
    let mut block = vec![0; 1 << 20];
    random.fill_bytes(&mut block);
    let mut written = 0;
    while written < size {
        // Each block differs by its number; generating all of it afresh would take longer than the benchmark.
        block[..8].copy_from_slice(&written.to_le_bytes());
        let count = (size - written).min(block.len() as u64) as usize;
        file.write_all(&block[..count])?;
        written += count as u64;
    }
    file.sync_all()?;
    Ok(())
}

/// `count` files of `size` bytes, `per_directory` in each directory; returns their names below `root`.
pub fn tree(root: &Path, count: usize, size: usize, per_directory: usize) -> Result<Vec<PathBuf>> {
    let mut block = vec![0; size];
    StdRng::seed_from_u64(7).fill_bytes(&mut block);
    let mut names = Vec::with_capacity(count);
    for number in 0..count {
        let directory = format!("d{:04}", number / per_directory);
        if number % per_directory == 0 {
            fs::create_dir_all(root.join(&directory))?;
        }
        let name = PathBuf::from(format!("{directory}/f{number:06}"));
        if size >= 8 {
            block[..8].copy_from_slice(&(number as u64).to_le_bytes());
        }
        fs::write(root.join(&name), &block)?;
        names.push(name);
    }
    Ok(names)
}
