//! The lock that names a running process: held on a file beside the identity for as long as the process lives.
//!
//! Invariant: whether the process lives is told by the lock, never by its number alone, so no other process that got the
//! number later is ever signalled.

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a graceful end may take: requests under way are waited for, and the page store is written out.
const END: Duration = Duration::from_secs(60);

/// Held while the process runs.
#[derive(Debug)]
pub struct ProcessLock {
    file: Flock<File>,
}

impl ProcessLock {
    /// Takes the lock of the process with this identity file.
    ///
    /// # Errors
    /// Another process has it; the file cannot be made.
    pub fn take(identity: &Path) -> Result<Self> {
        let path = path_of(identity);
        let opened = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(&path);
        let file = opened().with_context(|| format!("{} cannot be made", path.display()))?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((file, Errno::EWOULDBLOCK)) => anyhow::bail!(
                "a worker runs already with the identity file {} (process {}); stop it, or give this one an identity of its own (alluxio.worker.identity.uuid.file.path)",
                identity.display(),
                number(file).unwrap_or_default()
            ),
            Err((_, error)) => return Err(error).with_context(|| format!("{} cannot be locked", path.display())),
        };
        file.set_len(0)?;
        write!(&mut *file, "{}", std::process::id())?;
        Ok(Self { file })
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        // The number is of no use any more; the file stays, since unlinking a lock races with who takes it next.
        let _ = self.file.set_len(0);
    }
}

/// Stops the process with this identity file and waits for its end; returns its number.
pub fn stop(identity: &Path) -> Result<i32> {
    let path = path_of(identity);
    let none = || format!("no worker runs here with the identity file {}", identity.display());
    let mut file = File::open(&path).with_context(none)?;
    let deadline = Instant::now() + END;
    let mut told = None;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Nobody holds it (any more).
            Ok(_) => return told.with_context(none),
            Err((held, Errno::EWOULDBLOCK)) => {
                if told.is_none() {
                    // Empty only for the moment between lock and number.
                    if let Some(process) = number(held.try_clone()?) {
                        match kill(Pid::from_raw(process), Signal::SIGTERM) {
                            Ok(()) | Err(Errno::ESRCH) => told = Some(process),
                            Err(error) => {
                                return Err(error).with_context(|| format!("process {process} cannot be stopped"));
                            }
                        }
                    }
                }
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "the worker (process {}) did not end within {END:?}; kill it if need be, its cache survives that",
                    told.unwrap_or_default()
                );
                std::thread::sleep(Duration::from_millis(50));
                file = held;
            }
            Err((_, error)) => return Err(error).with_context(|| format!("{} cannot be locked", path.display())),
        }
    }
}

fn path_of(identity: &Path) -> PathBuf {
    let mut name = identity.as_os_str().to_owned();
    name.push(".pid");
    PathBuf::from(name)
}

fn number(mut file: File) -> Option<i32> {
    use std::io::Seek;
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_had_once_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let identity = dir.path().join("identity");
        assert!(stop(&identity).unwrap_err().to_string().contains("no worker runs"));
        let held = ProcessLock::take(&identity).unwrap();
        let refused = ProcessLock::take(&identity).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        drop(held);
        assert!(stop(&identity).unwrap_err().to_string().contains("no worker runs"));
        ProcessLock::take(&identity).unwrap();
    }
}
