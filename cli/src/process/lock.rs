//! The lock that names a running process: held on a file beside the identity for as long as the process lives.
//!
//! Invariants: whether the process lives is told by the lock, never by its number alone. It is signalled by a descriptor of
//! the process, after the time of its start was compared with what it wrote into the file; so no other process that got the
//! number later, be it in the moment before the signal, is ever signalled.

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
                holder(file).map_or_else(|| "unknown".into(), |holder| holder.process.to_string())
            ),
            Err((_, error)) => return Err(error).with_context(|| format!("{} cannot be locked", path.display())),
        };
        file.set_len(0)?;
        let process = i32::try_from(std::process::id())?;
        let start = start_of(process).context("/proc/self/stat does not tell when this process was started")?;
        write!(&mut *file, "{process} {start}")?;
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
                // Nothing in the moment between lock and number.
                if told.is_none()
                    && let Some(holder) = holder(held.try_clone()?)
                    && let Some(process) = Running::find(&holder)
                {
                    process
                        .signal(Signal::SIGTERM)
                        .with_context(|| format!("process {} cannot be stopped", holder.process))?;
                    told = Some(holder.process);
                }
                anyhow::ensure!(
                    Instant::now() < deadline,
                    "the worker (process {}) did not end within {END:?}; kill it if need be, its cache survives that",
                    told.map_or_else(|| "unknown".into(), |process| process.to_string())
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

/// Who wrote into the lock's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holder {
    process: i32,
    /// When it was started, in the kernel's ticks since the boot: with the number it means one process.
    start: u64,
}

fn holder(mut file: File) -> Option<Holder> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    let (process, start) = text.trim().split_once(' ')?;
    Some(Holder { process: process.parse().ok().filter(|number| *number > 0)?, start: start.parse().ok()? })
}

/// When a process was started (field 22 of its stat); none when there is none of this number.
fn start_of(process: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is a name in brackets that may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// A process that cannot be taken for another one that gets its number.
struct Running(OwnedFd);

impl Running {
    /// The holder, if it still runs.
    fn find(holder: &Holder) -> Option<Self> {
        // SAFETY: the call takes two numbers and gives a new descriptor or an error.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, holder.process, 0) };
        let descriptor = Errno::result(descriptor).ok()?;
        // SAFETY: the kernel has just given this descriptor to nobody else.
        let running = Self(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(descriptor).ok()?) });
        // Asked for after the descriptor was had, so that what is compared is the process of the descriptor, or it has ended.
        (start_of(holder.process) == Some(holder.start)).then_some(running)
    }

    fn signal(&self, signal: Signal) -> Result<(), Errno> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and without a siginfo there is no memory to read.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as i32, none, 0) };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
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

    #[test]
    fn another_process_with_the_number_is_not_signalled() {
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = i32::try_from(other.id()).unwrap();
        let start = start_of(process).unwrap();
        assert!(Running::find(&Holder { process, start: start + 1 }).is_none());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, format!("{process} {start}")).unwrap();
        let found = holder(File::open(&path).unwrap()).unwrap();
        Running::find(&found).unwrap().signal(Signal::SIGTERM).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(other.wait().unwrap().signal(), Some(libc::SIGTERM));
        assert!(Running::find(&found).is_none());
        // What an older version wrote names nobody for certain.
        std::fs::write(&path, process.to_string()).unwrap();
        assert_eq!(holder(File::open(&path).unwrap()), None);
    }
}
