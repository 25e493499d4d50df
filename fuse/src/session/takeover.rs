//! Serves a connection that a process served which died.
//!
//! fuser begins each session with the kernel's INIT request, which the kernel sends once for a mount. So the session begins on
//! a pair of sockets, where it is sent an INIT that offers what was agreed then; after that the real connection takes the place
//! of the socket. The kernel is then told to send again what the dead process had taken and not answered.
//!
//! Invariant: nothing is read from the connection before the session knows what was agreed.

use crate::fs::trail::Agreed;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

const FUSE_INIT: u32 = 26;
const INIT_EXT: u64 = 1 << 30;
const NOTIFY_RESEND: i32 = 7;
/// Any window will do, since the kernel keeps the one that it has.
const READAHEAD: u32 = 128 << 10;

/// The INIT request of a kernel that has just what was agreed.
fn init(agreed: Agreed) -> Vec<u8> {
    const HEADER: usize = 40;
    const BODY: usize = 64;
    let extended = if agreed.capabilities >> 32 != 0 { INIT_EXT } else { 0 };
    let flags = agreed.capabilities | extended;
    let mut bytes = Vec::with_capacity(HEADER + BODY);
    bytes.extend(((HEADER + BODY) as u32).to_ne_bytes());
    bytes.extend(FUSE_INIT.to_ne_bytes());
    // Its number; node, user, group, process and padding are nothing.
    bytes.extend(1_u64.to_ne_bytes());
    bytes.resize(HEADER, 0);
    for word in [7, agreed.minor, READAHEAD, flags as u32, (flags >> 32) as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.resize(HEADER + BODY, 0);
    bytes
}

/// A session over `connection`, as if it had begun with it.
///
/// # Errors
/// The file system agrees to something else; the kernel cannot send again (before 6.9).
pub fn session<F: fuser::Filesystem>(
    filesystem: F,
    connection: &OwnedFd,
    agreed: Agreed,
    config: fuser::Config,
) -> io::Result<fuser::Session<F>> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    send(theirs.as_raw_fd(), &init(agreed), MsgFlags::MSG_NOSIGNAL)?;
    let session = fuser::Session::from_fd(filesystem, ours, fuser::SessionACL::All, config)?;
    let place = session.as_fd().as_raw_fd();
    // SAFETY: both descriptors are open and stay so; the session owns the second, which the kernel replaces in one step.
    if unsafe { libc::dup3(connection.as_raw_fd(), place, libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut resend = 16_u32.to_ne_bytes().to_vec();
    resend.extend(NOTIFY_RESEND.to_ne_bytes());
    resend.extend(0_u64.to_ne_bytes());
    nix::unistd::write(connection, &resend)?;
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Wants(u64);

    impl fuser::Filesystem for Wants {
        fn init(&mut self, _: &fuser::Request, config: &mut fuser::KernelConfig) -> io::Result<()> {
            assert_eq!(config.capabilities().bits(), self.0);
            assert_eq!(config.kernel_abi().1, 41);
            Ok(())
        }
    }

    #[test]
    fn a_session_hears_what_was_agreed_and_gets_the_connection() {
        for capabilities in [1, (1 << 37) | (1 << 5)] {
            // What is written to a pipe is what the kernel would be told.
            let (read, write) = nix::unistd::pipe().unwrap();
            let agreed = Agreed { minor: 41, capabilities, max_write: 1 << 20 };
            let session = session(Wants(capabilities), &write, agreed, fuser::Config::default()).unwrap();
            let mut told = [0; 64];
            assert_eq!(nix::unistd::read(&read, &mut told).unwrap(), 16);
            assert_eq!((told[0], told[4]), (16, 7));
            drop((session, write));
            assert_eq!(
                nix::unistd::read(&read, &mut told).unwrap(),
                0,
                "the session has the connection's own descriptor"
            );
        }
    }
}
