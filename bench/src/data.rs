//! The trees that are read: made once for a run, below its scratch directory. Each sub-directory is also a bucket.

use anyhow::{Context, Result};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

/// Bytes of a small file.
pub const SMALL: usize = 100 << 10;
/// Bytes of a file whose first byte is timed: more than a page of the cache.
pub const FIRST: usize = 4 << 20;
/// Bytes of a block of a large file; the first eight of each are its offset.
pub const BLOCK: usize = 1 << 20;

/// How much data a run uses.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// How the report calls it.
    pub label: &'static str,
    /// Bytes of the large file.
    pub large: u64,
    /// Small files.
    pub small: Tree,
    /// Files of the tree that is walked.
    pub walked: Tree,
    /// Files whose first byte is timed.
    pub firsts: Tree,
    /// Files of 100 KiB that are written, and files of a repository.
    pub written: u64,
    /// Files of an archive.
    pub unpacked: u64,
    /// Bytes that data and caches take on the disk.
    pub scratch: u64,
}

/// How many files, spread over how many directories.
#[derive(Clone, Copy)]
pub struct Tree {
    /// Files.
    pub files: u64,
    /// Files in each directory.
    pub per_directory: u64,
}

impl Tree {
    const fn new(files: u64, per_directory: u64) -> Self {
        Self { files, per_directory }
    }

    /// The name of a file below the tree's root.
    pub fn name(&self, number: u64) -> String {
        format!("d{:04}/f{number:06}", number / self.per_directory)
    }

    /// Files and directories, the root not counted.
    pub fn entries(&self) -> u64 {
        self.files + self.files.div_ceil(self.per_directory)
    }
}

impl Sizes {
    /// What the issue names.
    pub const FULL: Self = Self {
        label: "full",
        large: 1 << 30,
        small: Tree::new(20_000, 1_000),
        walked: Tree::new(100_000, 1_000),
        firsts: Tree::new(200, 5),
        written: 2_000,
        unpacked: 10_000,
        scratch: 12 << 30,
    };
    /// Less of everything.
    pub const QUICK: Self = Self {
        label: "quick",
        large: 256 << 20,
        small: Tree::new(2_000, 500),
        walked: Tree::new(10_000, 500),
        firsts: Tree::new(40, 5),
        written: 1_000,
        unpacked: 2_000,
        scratch: 3 << 30,
    };
    /// Hardly anything.
    pub const TINY: Self = Self {
        label: "tiny",
        large: 8 << 20,
        small: Tree::new(60, 20),
        walked: Tree::new(200, 40),
        firsts: Tree::new(10, 5),
        written: 50,
        unpacked: 200,
        scratch: 512 << 20,
    };
}

/// Makes everything below `root`.
pub fn make(root: &Path, sizes: &Sizes) -> Result<()> {
    for bucket in ["large", "streams", "small", "walked", "firsts"] {
        fs::create_dir_all(root.join(bucket)).with_context(|| format!("make {bucket}"))?;
    }
    large(&root.join("large/file"), sizes.large)?;
    for number in 0..4 {
        large(&root.join(format!("streams/file{number}")), sizes.large / 2)?;
    }
    tree(&root.join("small"), &sizes.small, SMALL)?;
    tree(&root.join("walked"), &sizes.walked, 1)?;
    tree(&root.join("firsts"), &sizes.firsts, FIRST)
}

fn large(path: &Path, size: u64) -> Result<()> {
    let mut file = File::create(path)?;
    let mut random = StdRng::seed_from_u64(size);
    let mut block = vec![0; BLOCK];
    random.fill_bytes(&mut block);
    let mut written = 0;
    while written < size {
        // Each block differs by its offset; generating all of it afresh would take longer than the benchmark.
        block[..8].copy_from_slice(&written.to_le_bytes());
        let count = (size - written).min(BLOCK as u64) as usize;
        file.write_all(&block[..count])?;
        written += count as u64;
    }
    file.sync_all()?;
    Ok(())
}

fn tree(root: &Path, tree: &Tree, size: usize) -> Result<()> {
    let mut block = vec![0; size];
    StdRng::seed_from_u64(7).fill_bytes(&mut block);
    for number in 0..tree.files {
        let path = root.join(tree.name(number));
        if number % tree.per_directory == 0
            && let Some(directory) = path.parent()
        {
            fs::create_dir_all(directory)?;
        }
        if size >= 8 {
            block[..8].copy_from_slice(&number.to_le_bytes());
        }
        fs::write(&path, &block).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
