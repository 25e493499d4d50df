//! The workloads that write.

use crate::data::{BLOCK, SMALL};
use anyhow::{Context, Result, ensure};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Stdio},
};

fn bytes(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(11).fill_bytes(&mut bytes);
    bytes
}

/// Waits until the file system of `path` has written everything back.
pub fn settle(path: &Path) -> Result<()> {
    // The mount hears nothing of it, but the file system below writes back with everybody's.
    nix::unistd::sync();
    File::open(path).with_context(|| format!("open {}", path.display())).map(drop)
}

/// Writes a file of `size` bytes from start to end and syncs it; MB. Each block begins with its offset.
pub fn sequential(path: &Path, size: u64) -> Result<f64> {
    let mut file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    let mut block = bytes(BLOCK);
    let mut written = 0;
    while written < size {
        block[..8].copy_from_slice(&written.to_le_bytes());
        file.write_all(&block).with_context(|| format!("write {} at {written}", path.display()))?;
        written += block.len() as u64;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))?;
    Ok(written as f64 / 1e6)
}

/// Makes, writes and closes files of 100 KiB; files.
pub fn small(directory: &Path, files: u64) -> Result<f64> {
    let block = bytes(SMALL);
    for number in 0..files {
        let path = directory.join(format!("f{number:06}"));
        let mut file = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        file.write_all(&block).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(files as f64)
}

/// Writes `count` blocks of 4 KiB to random places; blocks. The numbers at the beginning of each block of 1 MiB stay.
pub fn random(path: &Path, count: u32, seed: u64) -> Result<f64> {
    let file = File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
    let blocks = file.metadata()?.len() / 4096;
    let mut random = StdRng::seed_from_u64(seed);
    let mut block = bytes(4096);
    for _ in 0..count {
        let at = random.random_range(0..blocks) * 4096;
        block[..8].copy_from_slice(&at.to_le_bytes());
        file.write_all_at(&block, at).with_context(|| format!("write {} at {at}", path.display()))?;
    }
    Ok(f64::from(count))
}

/// Makes an archive of `files` files of 1 to 8 KiB, a hundred in each directory.
pub fn archive(tree: &Path, archive: &Path, files: u64) -> Result<()> {
    small_tree(tree, files)?;
    run("tar", &["cf".as_ref(), archive.as_os_str(), "-C".as_ref(), tree.as_os_str(), ".".as_ref()])
}

/// Makes a git repository of `files` files with one commit.
pub fn repository(at: &Path, files: u64) -> Result<()> {
    small_tree(at, files)?;
    let git = |arguments: &[&str]| {
        let mut all: Vec<&OsStr> = vec!["-C".as_ref(), at.as_os_str(), "-c".as_ref(), "user.name=bench".as_ref()];
        all.extend::<[&OsStr; 2]>(["-c".as_ref(), "user.email=bench@localhost".as_ref()]);
        all.extend(arguments.iter().map(|argument| <str as AsRef<OsStr>>::as_ref(argument)));
        run("git", &all)
    };
    git(&["init", "--quiet"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "-m", "all"])
}

fn small_tree(root: &Path, files: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(5);
    for number in 0..files {
        let directory = root.join(format!("d{:04}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        let mut text = vec![0; random.random_range(1024..8192)];
        random.fill_bytes(&mut text);
        fs::write(directory.join(format!("f{number:06}")), text)?;
    }
    Ok(())
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&OsStr]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(variable);
    }
    let output = command.output().with_context(|| format!("start {program}; is it installed?"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} ended with {}: {}", output.status, text.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        assert_eq!(sequential(&file, 3 << 20).unwrap(), 3.145728);
        assert_eq!(random(&file, 100, 1).unwrap(), 100.0);
        assert_eq!(crate::work::sequential(&file).unwrap(), 3.145728);
        assert_eq!(small(directory.path(), 7).unwrap(), 7.0);
        assert_eq!(fs::metadata(directory.path().join("f000006")).unwrap().len(), SMALL as u64);
        let tar = directory.path().join("tar");
        archive(&directory.path().join("tree"), &tar, 150).unwrap();
        run("tar", &["xf".as_ref(), tar.as_os_str(), "-C".as_ref(), directory.path().as_os_str()]).unwrap();
        assert!(directory.path().join("d0001/f000149").exists());
        assert!(run("tar", &["xf".as_ref(), "/nowhere".as_ref()]).is_err());
    }
}
