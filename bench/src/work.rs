//! The workloads. Every candidate of a row runs the same code, on paths relative to a descriptor of its root, so that
//! how deep the root lies costs nobody anything; and what is read is checked, so that a wrong answer is never a fast one.

pub mod write;

use crate::data::{BLOCK, SMALL};
use anyhow::{Context, Result, ensure};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, SFlag, fstatat},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{
    ffi::{CStr, CString},
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    time::{Duration, Instant},
};

/// Runs `work`, which returns how many units it did, and gives units per second.
pub fn rate(work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let start = Instant::now();
    let units = work()?;
    Ok(units / start.elapsed().as_secs_f64())
}

/// Reads a large file from start to end in blocks of 1 MiB; MB.
pub fn sequential(path: &Path) -> Result<f64> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let size = file.metadata()?.len();
    let mut block = vec![0; BLOCK];
    let (mut total, mut filled) = (0, 0);
    loop {
        let count = file.read(&mut block[filled..]).with_context(|| format!("read {} at {total}", path.display()))?;
        total += count as u64;
        filled += count;
        if filled == BLOCK || (count == 0 && filled > 0) {
            ensure!(number(&block) == total - filled as u64, "{}: wrong bytes before {total}", path.display());
            filled = 0;
        }
        if count == 0 {
            break;
        }
    }
    ensure!(total == size, "{}: {total} bytes of {size}", path.display());
    Ok(total as f64 / 1e6)
}

/// Reads `count` blocks of 4 KiB at random places, fewer when `limit` passes; blocks.
pub fn random(path: &Path, count: u32, seed: u64, limit: Duration) -> Result<f64> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let blocks = file.metadata()?.len() / 4096;
    let mut random = StdRng::seed_from_u64(seed);
    let mut buffer = [0; 4096];
    let start = Instant::now();
    for done in 0..count {
        if done % 64 == 0 && start.elapsed() > limit {
            return Ok(f64::from(done));
        }
        let at = random.random_range(0..blocks) * 4096;
        file.read_exact_at(&mut buffer, at).with_context(|| format!("read {} at {at}", path.display()))?;
        let first = at % BLOCK as u64 == 0;
        ensure!(!first || number(&buffer) == at, "{}: wrong bytes at {at}", path.display());
    }
    Ok(f64::from(count))
}

/// A small file: its name below the root, and the number with which it begins.
#[derive(Clone)]
pub struct SmallFile {
    name: CString,
    number: u64,
}

impl SmallFile {
    /// The name.
    pub fn name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }
}

/// The small files of a tree.
pub fn small_files(tree: &crate::data::Tree) -> Result<Vec<SmallFile>> {
    (0..tree.files).map(|number| Ok(SmallFile { name: CString::new(tree.name(number))?, number })).collect()
}

/// Opens, reads and closes files in the given order; files. Stops when `limit` has passed.
pub fn small(root: &Path, files: &[SmallFile], limit: Duration) -> Result<f64> {
    let root = File::open(root).with_context(|| format!("open {}", root.display()))?;
    let mut buffer = vec![0; 2 * SMALL];
    let start = Instant::now();
    let mut done = 0;
    for SmallFile { name, number: wanted } in files {
        let context = || format!("read {}", name.to_string_lossy());
        let mut file = File::from(
            openat(&root, name.as_c_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).with_context(context)?,
        );
        let mut size = 0;
        // As programs do that know the size: no further read when all of it came at once.
        while size < SMALL {
            let count = file.read(&mut buffer[size..]).with_context(context)?;
            ensure!(count > 0, "{}: {size} bytes", name.to_string_lossy());
            size += count;
        }
        ensure!(size == SMALL && number(&buffer) == *wanted, "{}: wrong bytes", name.to_string_lossy());
        done += 1;
        if start.elapsed() > limit {
            break;
        }
    }
    Ok(f64::from(done))
}

fn number(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(number)
}

/// Files in random order.
pub fn shuffled(files: &[SmallFile], seed: u64) -> Vec<SmallFile> {
    let mut files = files.to_vec();
    files.shuffle(&mut StdRng::seed_from_u64(seed));
    files
}

/// Walks a tree as `find -size +0` does: each directory read, each entry stat'ed by its name in its directory; entries.
/// Stops when `limit` has passed, else there must be `expected` of them.
pub fn find(root: &Path, expected: u64, limit: Duration) -> Result<f64> {
    let mut walk = Walk { entries: 0, start: Instant::now(), limit };
    let descriptor = OwnedFd::from(File::open(root).with_context(|| format!("open {}", root.display()))?);
    if walk.directory(descriptor).with_context(|| format!("walk {}", root.display()))? {
        ensure!(walk.entries == expected, "{}: {} entries of {expected}", root.display(), walk.entries);
    }
    Ok(walk.entries as f64)
}

struct Walk {
    entries: u64,
    start: Instant,
    limit: Duration,
}

impl Walk {
    /// Whether all of it was walked.
    fn directory(&mut self, descriptor: OwnedFd) -> Result<bool> {
        let mut listing = Dir::from_fd(descriptor.try_clone()?)?;
        let mut children: Vec<CString> = Vec::new();
        for entry in listing.iter() {
            let entry = entry.context("list")?;
            let name: &CStr = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let status = fstatat(&descriptor, name, AtFlags::AT_SYMLINK_NOFOLLOW)
                .with_context(|| format!("stat {}", name.to_string_lossy()))?;
            self.entries += 1;
            if status.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
                children.push(name.to_owned());
            }
            if self.start.elapsed() > self.limit {
                return Ok(false);
            }
        }
        drop(listing);
        for child in children {
            if !self.directory(open_directory(&descriptor, &child)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn open_directory(parent: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Milliseconds from open to the first 4 KiB.
pub fn first_byte(path: &Path) -> Result<f64> {
    let start = Instant::now();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut buffer = [0; 4096];
    ensure!(file.read_at(&mut buffer, 0)? > 0, "{} is empty", path.display());
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{self, Sizes};

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn workloads_see_what_was_made_and_notice_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let sizes = Sizes::TINY;
        data::make(root, &sizes).unwrap();
        assert_eq!(sequential(&root.join("large/file")).unwrap(), sizes.large as f64 / 1e6);
        assert_eq!(random(&root.join("large/file"), 5_000, 1, HOUR).unwrap(), 5_000.0);
        let files = shuffled(&small_files(&sizes.small).unwrap(), 3);
        assert_eq!(small(&root.join("small"), &files, HOUR).unwrap(), 60.0);
        assert_eq!(small(&root.join("small"), &files, Duration::ZERO).unwrap(), 1.0);
        let entries = sizes.walked.entries();
        assert_eq!(find(&root.join("walked"), entries, HOUR).unwrap(), 205.0);

        std::fs::write(root.join("walked/one-more"), "").unwrap();
        assert!(find(&root.join("walked"), entries, HOUR).is_err());
        std::fs::copy(root.join("small").join(sizes.small.name(1)), root.join("small").join(sizes.small.name(0)))
            .unwrap();
        assert!(small(&root.join("small"), &files, HOUR).is_err());
        let file = std::fs::OpenOptions::new().write(true).open(root.join("large/file")).unwrap();
        file.write_all_at(&[0; 8], 3 << 20).unwrap();
        assert!(sequential(&root.join("large/file")).is_err());
        assert!(random(&root.join("large/file"), 500_000, 1, HOUR).is_err());
    }
}
