//! Going into the background: the process forks while it still has one thread; the parent waits for the word of the
//! child that the mount answers, and ends with what came of it.
//!
//! Invariants: the parent never waits without bound; a child whose parent is gone before it could report gives up; once
//! it has reported, the child holds none of the descriptors that its parent's caller may be waiting on.

use super::{Result, SessionError};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, setsid},
};
use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

/// The word for success.
const READY: &[u8] = b"ready";

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Side {
    /// The process that was called.
    Parent(Waiting),
    /// The one that goes on in the background.
    Child(Reporter),
}

/// The parent's end.
#[derive(Debug)]
pub struct Waiting {
    pipe: io::PipeReader,
    child: Pid,
}

/// The child's end.
#[derive(Debug)]
pub struct Reporter {
    pipe: io::PipeWriter,
}

/// What came of the child.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The mount answers.
    Ready,
    /// It could not be made, for this reason.
    Failed(String),
    /// Nothing was heard in time; the child was ended.
    TimedOut,
}

/// Forks.
///
/// # Errors
/// There is more than one thread already, or the system refuses.
pub fn split() -> Result<Side> {
    let failed =
        |error: io::Error| SessionError::system("going into the background (-f stays in the foreground)", error);
    if !alone().map_err(failed)? {
        return Err(SessionError::refused("cannot go into the background: a look at the file system is stuck; use -f"));
    }
    let (reader, writer) = io::pipe().map_err(failed)?;
    // SAFETY: the process has one thread (checked above), so the child's memory is consistent and any call may follow.
    match unsafe { fork() }.map_err(|error| failed(error.into()))? {
        ForkResult::Parent { child } => Ok(Side::Parent(Waiting { pipe: reader, child })),
        ForkResult::Child => {
            setsid().map_err(|error| failed(error.into()))?;
            Ok(Side::Child(Reporter { pipe: writer }))
        }
    }
}

/// Waits until this is the only thread: those that were joined may take a moment to leave the kernel's list.
fn alone() -> io::Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::fs::read_dir("/proc/self/task")?.count() != 1 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(true)
}

impl Waiting {
    /// Waits for the word of the child.
    pub fn wait(mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        let mut text = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut polled = [nix::poll::PollFd::new(self.pipe.as_fd(), nix::poll::PollFlags::POLLIN)];
            let left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            match nix::poll::poll(&mut polled, left) {
                Err(nix::errno::Errno::EINTR) => continue,
                Ok(0) if Instant::now() < deadline => continue,
                Ok(0) | Err(_) => {
                    // It has failed us; what it leaves is for the caller to clear.
                    let _ = kill(self.child, Signal::SIGKILL);
                    let _ = waitpid(self.child, None);
                    return Outcome::TimedOut;
                }
                Ok(_) => {}
            }
            let mut part = [0; 4096];
            match self.pipe.read(&mut part) {
                Ok(0) => break,
                Ok(length) => text.extend_from_slice(&part[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if text == READY {
            return Outcome::Ready;
        }
        if text.is_empty() {
            return Outcome::Failed(self.fate(deadline));
        }
        Outcome::Failed(String::from_utf8_lossy(&text).into_owned())
    }

    /// How a child ended that said nothing.
    fn fate(&self, deadline: Instant) -> String {
        loop {
            match waitpid(self.child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, 0)) => return "interrupted".into(),
                Ok(WaitStatus::Exited(_, code)) => {
                    return format!("the daemon ended during its start with code {code}");
                }
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return format!("the daemon was killed during its start by {signal}");
                }
                Ok(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => return "the daemon went away during its start".into(),
            }
        }
    }
}

impl Reporter {
    /// Says that the mount answers, and lets go of the terminal.
    pub fn ready(mut self) -> io::Result<()> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        // The parent is told before the caller's descriptors are let go, so that a failure can still be shown.
        self.pipe.write_all(READY)?;
        for target in 0..3 {
            // SAFETY: dup2 onto the standard descriptors with one that is open; nobody else of this process owns them.
            if unsafe { libc::dup2(null.as_raw_fd(), target) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Says why there will be no mount.
    pub fn failed(mut self, reason: &str) {
        // A parent that is gone has nobody to show it to.
        let _ = self.pipe.write_all(reason.as_bytes());
    }
}
