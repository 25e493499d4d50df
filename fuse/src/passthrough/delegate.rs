//! Registers files by way of somebody who may: the CSI node plugin, which holds a duplicate of the connection.
//!
//! Invariants: a question waits for [`PATIENCE`] at most, and one that was not answered is the last, until there is a new
//! line; its failure means only that the file is read through the daemon.

use super::{Registrar, Token};
use common::backing;
use parking_lot::Mutex;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

/// How long a question may wait for its answer.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Line {
    end: Option<OwnedFd>,
    asked: u32,
}

/// The line to whoever registers.
#[derive(Debug, Default)]
pub struct Delegate {
    line: Mutex<Line>,
}

/// A file that is registered.
#[derive(Debug)]
pub struct Registered {
    /// As the kernel names it.
    pub id: u32,
    delegate: Arc<Delegate>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let line = self.delegate.line.lock();
        if let Some(end) = &line.end {
            // What is not taken back goes with the connection.
            let _ = backing::close(end.as_fd(), self.id);
        }
    }
}

impl Delegate {
    /// Over `end`.
    pub fn new(end: OwnedFd) -> Arc<Self> {
        let delegate = Arc::new(Self::default());
        delegate.replace(end);
        delegate
    }

    /// Goes on over another line.
    pub fn replace(&self, end: OwnedFd) {
        let patience = nix::sys::time::TimeVal::new(PATIENCE.as_secs() as i64, 0);
        // Without a bound it would be of no use.
        let bounded = nix::sys::socket::setsockopt(&end, nix::sys::socket::sockopt::ReceiveTimeout, &patience)
            .and_then(|()| nix::sys::socket::setsockopt(&end, nix::sys::socket::sockopt::SendTimeout, &patience));
        self.line.lock().end = bounded.is_ok().then_some(end);
    }

    /// A token for a file that a predecessor had registered.
    pub fn known(self: &Arc<Self>, id: u32) -> Token {
        Arc::new(Registered { id, delegate: self.clone() })
    }

    /// Has everything taken back that a predecessor had registered, but these.
    pub fn keep(&self, ids: &[u32]) {
        if let Some(end) = &self.line.lock().end
            && let Err(error) = backing::keep(end.as_fd(), ids)
        {
            tracing::warn!("files that a predecessor registered stay registered: {error}");
        }
    }
}

/// Whether nobody answers at the other end, as opposed to the kernel's refusal of a file.
fn ends_the_line(error: &io::Error) -> bool {
    let gone = [libc::EPIPE, libc::ECONNRESET, libc::ENOTCONN, libc::EAGAIN];
    error.kind() == io::ErrorKind::TimedOut || error.raw_os_error().is_some_and(|errno| gone.contains(&errno))
}

/// [`Delegate`], as one that registers.
#[derive(Debug, Clone)]
pub struct Through(pub Arc<Delegate>);

impl Registrar for Through {
    fn register(&self, file: BorrowedFd<'_>) -> io::Result<Token> {
        let mut line = self.0.line.lock();
        line.asked = line.asked.wrapping_add(1);
        let Some(end) = &line.end else { return Err(io::Error::from_raw_os_error(libc::EAGAIN)) };
        match backing::open(end.as_fd(), line.asked, file) {
            Ok(id) => Ok(self.0.known(id)),
            Err(error) if ends_the_line(&error) => {
                tracing::warn!(
                    "files are not registered for passthrough any more, until the node plugin is back: {error}"
                );
                line.end = None;
                Err(io::Error::from_raw_os_error(libc::EAGAIN))
            }
            Err(error) => Err(error),
        }
    }
}
