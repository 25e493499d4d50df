//! Settings of the whole process that a daemon needs, and calls that may hang made on threads that nobody waits for.

use super::mounts::Device;
use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::mpsc,
    time::Duration,
};

/// From linux/prctl.h; libc does not name it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Prepares the process: descriptors up to the hard limit, the I/O flusher mark (so that the kernel, short of memory,
/// does not wait for our own mount), a file mask that leaves modes alone, and the root as working directory (so that
/// it never lies on a mount). What the machine refuses is left as it is.
pub fn prepare() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Fails only where a policy forbids it; then the soft limit stays.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    // SAFETY: prctl with PR_SET_IO_FLUSHER takes integers only and touches no memory of ours; it fails without CAP_SYS_RESOURCE.
    unsafe {
        libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    }
    // SAFETY: mallopt takes two integers. Each arena keeps what its threads once needed; two are enough for the few
    // threads that work at a time, and keep what lies outside of the memory budget small.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
    // The root of the file system always exists; were it unreadable we would only keep another directory busy.
    let _ = std::env::set_current_dir("/");
}

/// Runs `work` on a thread of its own and gives it `limit`. `None`: it did not end; the thread is left to its fate,
/// which the end of the process or of the mount decides.
pub fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Option<T>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("bounded".into()).spawn(move || {
        // Nobody listens any more when the limit has passed.
        let _ = sender.send(work());
    })?;
    let answer = receiver.recv_timeout(limit).ok();
    if answer.is_some() {
        // It has nothing left to do but to end; a fork that follows finds one thread.
        let _ = thread.join();
    }
    Ok(answer)
}

/// What a look at a path found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Whether it is a directory.
    pub is_dir: bool,
    /// The device that it lies on.
    pub device: Device,
}

/// Looks at `path` (no last link is followed), for at most `limit`; `TimedOut` when there is no answer by then. The file
/// system itself is asked, since the kernel goes on answering from its cache for a daemon that is gone.
pub fn probe(path: &Path, limit: Duration) -> io::Result<Seen> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    match within(limit, move || look(&path))? {
        Some(answer) => answer,
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn look(path: &CStr) -> io::Result<Seen> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: statx is a plain structure of integers, for which zeros are valid; the kernel fills it in; the path ends
    // with NUL and outlives the call.
    let (code, found) = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        (libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_TYPE | libc::STATX_MTIME, &mut found), found)
    };
    if code == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(Seen {
        is_dir: u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
        device: Device { major: found.stx_dev_major, minor: found.stx_dev_minor },
    })
}

/// Ends the process at once with `code`, without destructors that other threads could trip over.
pub fn exit_now(code: i32) -> ! {
    use std::io::Write;
    // What cannot be written now will not be read by anybody.
    let _ = io::stdout().flush();
    // SAFETY: _exit takes an integer and never returns; nothing of ours needs to run after it.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_hangs_is_given_up() {
        let (_open, gate) = mpsc::channel::<()>();
        assert!(within(Duration::from_millis(20), move || gate.recv()).unwrap().is_none());
        assert_eq!(within(Duration::from_secs(30), || 7).unwrap(), Some(7));
    }

    #[test]
    fn a_probe_says_what_stat_says() {
        assert!(probe(Path::new("/"), Duration::from_secs(30)).unwrap().is_dir);
        assert_eq!(
            probe(Path::new("/no such name"), Duration::from_secs(30)).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
