//! Registers files for kernel passthrough on behalf of the process of a session, which may not do so itself.
//!
//! Invariants:
//! - only a regular file is registered, and only one to which its reader could write too: one that belongs to the mounter's
//!   user, or that was opened for reading and writing. For the kernel opens a registered file anew for whoever opens the
//!   one on the mount, as they ask for it, and with the rights of this process;
//! - no more than [`backing::MOST`] files are registered for a session at a time;
//! - all that is registered goes with the connection; when this process ends the kernel keeps what it has.

use common::backing::{self, Word};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use parking_lot::Mutex;
use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

/// As the kernel has it (`struct fuse_backing_map`).
#[repr(C)]
struct Map {
    fd: i32,
    flags: u32,
    padding: u64,
}

mod ioctl {
    nix::ioctl_write_ptr!(open, 229, 1, super::Map);
    nix::ioctl_write_ptr!(close, 229, 2, u32);
}

/// What registers files on one connection.
#[derive(Debug)]
pub struct Desk {
    connection: OwnedFd,
    user: u32,
    ids: Mutex<HashSet<u32>>,
}

impl Desk {
    /// For `connection`, which a process of `user` serves.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(connection: BorrowedFd<'_>, user: u32) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { connection: connection.try_clone_to_owned()?, user, ids: Mutex::default() }))
    }

    /// The other end of a line over which files are registered, for as long as somebody holds it.
    ///
    /// # Errors
    /// There are no descriptors or threads left.
    pub fn line(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let (ours, theirs) = backing::line()?;
        let desk = self.clone();
        let serve = move || {
            let mut buffer = Vec::new();
            while let Some((word, asked)) = backing::hear(ours.as_fd(), &mut buffer) {
                match word {
                    Word::Open(file) => {
                        if backing::answer(ours.as_fd(), asked, &desk.open(&file)).is_err() {
                            return;
                        }
                    }
                    Word::Close(id) => desk.close(id),
                    Word::Keep(ids) => desk.keep(&ids),
                }
            }
        };
        std::thread::Builder::new().name("backing".into()).stack_size(256 << 10).spawn(serve)?;
        Ok(theirs)
    }

    fn open(&self, file: &OwnedFd) -> io::Result<u32> {
        may_be_registered(file.as_fd(), self.user)?;
        let mut ids = self.ids.lock();
        if ids.len() >= backing::MOST {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let map = Map { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the connection is open, and the structure is as the kernel has it and outlives the call.
        let register = || unsafe { ioctl::open(self.connection.as_raw_fd(), &map) };
        // The kernel writes to it as whoever registered it: set-id bits are to fall, as for anybody without privilege.
        let id = ufs::local::without_keeping_set_id(register)?;
        let id = u32::try_from(id).map_err(|_| io::Error::from_raw_os_error(libc::EIO))?;
        ids.insert(id);
        Ok(id)
    }

    fn close(&self, id: u32) {
        self.ids.lock().remove(&id);
        // SAFETY: the connection is open and the number outlives the call. An unknown one is refused by the kernel.
        let _ = unsafe { ioctl::close(self.connection.as_raw_fd(), &id) };
    }

    fn keep(&self, wanted: &[u32]) {
        let wanted: HashSet<u32> = wanted.iter().copied().collect();
        let unwanted: Vec<u32> = self.ids.lock().iter().filter(|id| !wanted.contains(id)).copied().collect();
        for id in unwanted {
            self.close(id);
        }
    }
}

/// See the head of the module. EAGAIN: this one is not, which says nothing of others.
fn may_be_registered(file: BorrowedFd<'_>, user: u32) -> io::Result<()> {
    let found = nix::sys::stat::fstat(file)?;
    let how = OFlag::from_bits_truncate(fcntl(file, FcntlArg::F_GETFL)?);
    let regular = found.st_mode & libc::S_IFMT == libc::S_IFREG;
    let writable = found.st_uid == user || how & OFlag::O_ACCMODE == OFlag::O_RDWR;
    if regular && writable && !how.contains(OFlag::O_PATH) {
        return Ok(());
    }
    Err(io::Error::from_raw_os_error(libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn only_files_that_the_mounter_could_write_are_registered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let own = nix::unistd::geteuid().as_raw();
        let read = File::open(&path).unwrap();
        assert!(may_be_registered(read.as_fd(), own).is_ok());
        let refused = may_be_registered(read.as_fd(), own + 1).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN));
        let both = File::options().read(true).write(true).open(&path).unwrap();
        assert!(may_be_registered(both.as_fd(), own + 1).is_ok());
        let write = File::options().write(true).open(&path).unwrap();
        assert!(may_be_registered(write.as_fd(), own + 1).is_err());
        assert!(may_be_registered(File::open(dir.path()).unwrap().as_fd(), own).is_err());
    }
}
