//! Volumes in a directory of this host, or of a network file system that is mounted here.
//!
//! Invariants: no link is followed below the root; a file appears under its name whole and durable.

use super::shelf::{Held, PATIENCE, Shelf, Step};
use crate::node::{records::sync_parent, sys::blocking};
use std::{
    fs::{DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};
use tonic::Status;

/// The largest small file, in bytes.
const SMALL: u64 = 256 << 10;

/// A directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

fn failed(path: &Path, error: &io::Error) -> Status {
    let line = format!("{}: {error}", path.display());
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => Status::resource_exhausted(line),
        Some(
            libc::EACCES | libc::EPERM | libc::EROFS | libc::ENOTDIR | libc::ELOOP | libc::ENOENT | libc::ENOTEMPTY,
        ) => Status::failed_precondition(line),
        Some(libc::EINVAL | libc::ENAMETOOLONG) => Status::invalid_argument(line),
        _ => Status::unavailable(line),
    }
}

/// What a network file system's close and fsync tell is told, since nothing else would.
fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let unique = format!(".new-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let beside = path.with_file_name(format!("{unique}-{}", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut file = File::options().write(true).create_new(true).open(&beside)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| drop(std::fs::remove_file(&beside)))?;
    Ok(beside)
}

impl Directory {
    /// At `root`, which must exist before anything is made in it.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Makes the directories down to `path`, none of which may be a link.
    fn make_down_to(&self, path: &str, mode: u32) -> io::Result<()> {
        let mut at = self.root.clone();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at.push(name);
            match DirBuilder::new().mode(0o755).create(&at) {
                Ok(()) => {
                    // Whatever the file mask is.
                    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(mode))?;
                    sync_parent(&at)?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if !at.symlink_metadata()?.is_dir() {
                        return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn run<T: Send + 'static>(
        &self,
        path: &str,
        work: impl FnOnce(&Directory, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let (directory, full) = (self.clone(), self.root.join(path));
        blocking("the directory of the volumes", PATIENCE, move || {
            work(&directory, &full).map_err(|error| failed(&full, &error))
        })
        .await
    }
}

fn version_of(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(found) if !found.is_file() || found.len() > SMALL => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        Ok(_) => std::fs::read(path).map(Some),
    }
}

#[tonic::async_trait]
impl Shelf for Directory {
    async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, String)>, Status> {
        self.run(path, |_, full| {
            Ok(read_small(full)?.map(|bytes| {
                let version = version_of(&bytes);
                (bytes, version)
            }))
        })
        .await
    }

    async fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool, Status> {
        let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        self.run(path, move |directory, full| {
            directory.make_down_to(&parent, 0o700)?;
            let beside = write_beside(full, &bytes)?;
            // A second name is made by the file system for one of two only.
            let linked = std::fs::hard_link(&beside, full);
            std::fs::remove_file(&beside)?;
            match linked {
                Ok(()) => sync_parent(full).map(|()| true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn put_over(&self, path: &str, bytes: Vec<u8>, version: &str) -> Result<bool, Status> {
        let version = version.to_owned();
        self.run(path, move |_, full| {
            let lock = File::options().create(true).truncate(false).write(true).open(full.with_file_name(".lock"))?;
            lock.lock()?;
            if read_small(full)?.is_none_or(|had| version_of(&had) != version) {
                return Ok(false);
            }
            let beside = write_beside(full, &bytes)?;
            std::fs::rename(&beside, full)?;
            sync_parent(full).map(|()| true)
        })
        .await
    }

    async fn remove(&self, path: &str) -> Result<(), Status> {
        self.run(path, |_, full| match std::fs::remove_file(full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => sync_parent(full),
        })
        .await
    }

    async fn names(&self, path: &str, after: &str, most: usize) -> Result<Vec<String>, Status> {
        let after = after.to_owned();
        self.run(path, move |_, full| {
            let entries = match std::fs::read_dir(full) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            // The least `most` names, in memory that grows with them and not with the directory.
            let mut least = std::collections::BTreeSet::new();
            for entry in entries {
                let Ok(name) = entry?.file_name().into_string() else { continue };
                if !name.starts_with('.') && name > after {
                    least.insert(name);
                    if least.len() > most {
                        least.pop_last();
                    }
                }
            }
            Ok(least.into_iter().collect())
        })
        .await
    }

    async fn held(&self, path: &str) -> Result<Held, Status> {
        self.run(path, |_, full| match full.symlink_metadata() {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Held::Nothing)
            }
            Err(error) => Err(error),
            Ok(found) if !found.is_dir() => Ok(Held::Files),
            Ok(_) => Ok(if std::fs::read_dir(full)?.next().is_none() { Held::Empty } else { Held::Files }),
        })
        .await
    }

    async fn make(&self, path: &str) -> Result<(), Status> {
        let down = path.to_owned();
        // Pods of any user write there; what is in it is guarded by the mount.
        self.run(path, move |directory, _| directory.make_down_to(&down, 0o777)).await
    }

    async fn shift(&self, from: &str, to: &str) -> Result<Step, Status> {
        let target = to.to_owned();
        let parent = to.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
        self.run(from, move |directory, full| {
            directory.make_down_to(&parent, 0o700)?;
            let target = directory.root.join(target);
            match std::fs::rename(full, &target) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Step::Done),
                Err(error) => Err(error),
                Ok(()) => {
                    sync_parent(full)?;
                    sync_parent(&target)?;
                    Ok(Step::Done)
                }
            }
        })
        .await
    }

    async fn purge(&self, path: &str) -> Result<Step, Status> {
        // It goes on when the call has given up on it, and is done when it is asked for again.
        self.run(path, |_, full| match std::fs::remove_dir_all(full) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Step::Done),
            Err(error) => Err(error),
            Ok(()) => Ok(Step::Done),
        })
        .await
    }

    async fn free(&self) -> Result<Option<i64>, Status> {
        self.run("", |_, full| {
            let found = nix::sys::statvfs::statvfs(full)?;
            Ok(Some(i64::try_from(found.blocks_available().saturating_mul(found.fragment_size())).unwrap_or(i64::MAX)))
        })
        .await
    }
}
