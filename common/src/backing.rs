//! How files are registered for kernel passthrough by one that may, for one that may not: the words that the process of a
//! session, which runs as an ordinary user, and the CSI node plugin, which holds a duplicate of its connection, say to each
//! other over a pair of sockets (SEQPACKET, so that each word is one message).
//!
//! Invariants:
//! - a file is asked for with its descriptor (SCM_RIGHTS), and answered with its id or an errno; nothing else is answered;
//! - whoever asks waits for a bounded time, and goes on without passthrough when nobody answers.

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

/// Files that are registered for one session at a time; one more is ENFILE.
pub const MOST: usize = 32_768;

/// The longest message: all ids, and what they are for.
const MESSAGE_MAX: usize = 4 * (MOST + 2);

/// What is said to whoever may register.
#[derive(Debug)]
pub enum Word {
    /// Register this file; answered.
    Open(OwnedFd),
    /// Take a registration back.
    Close(u32),
    /// Take all back but these: what a dead predecessor had, and nobody knows any more.
    Keep(Vec<u32>),
}

/// Two ends of a line.
///
/// # Errors
/// There are no descriptors left.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

fn send(line: BorrowedFd<'_>, words: &[u32], file: Option<BorrowedFd<'_>>, wait: bool) -> io::Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let raw: Vec<RawFd> = file.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let controls: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let mut flags = MsgFlags::MSG_NOSIGNAL;
    flags.set(MsgFlags::MSG_DONTWAIT, !wait);
    loop {
        match sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(&bytes)], controls, flags, None) {
            Err(Errno::EINTR) => {}
            done => return Ok(done.map(drop)?),
        }
    }
}

/// The words of one message and the descriptors that came with it; none at the end of the line.
fn receive(line: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<(Vec<u32>, Vec<OwnedFd>)>> {
    let mut space = cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(buffer)];
    let (length, descriptors) = loop {
        match recvmsg::<()>(line.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(errno) => return Err(errno.into()),
            Ok(message) => {
                let mut descriptors = Vec::new();
                for control in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(found) = control {
                        // SAFETY: the kernel has just put these descriptors into this process; nobody else knows them.
                        descriptors.extend(found.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                break (message.bytes, descriptors);
            }
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let words = buffer[..length].chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    Ok(Some((words.collect(), descriptors)))
}

const OPEN: u32 = 1;
const CLOSE: u32 = 2;
const KEEP: u32 = 3;

/// Has a file registered; waits as long as the socket's timeout says. `asked` tells answers apart: one that comes too late
/// belongs to no question.
///
/// # Errors
/// As the kernel gave it to the one who registers; `TimedOut`, and EPIPE when nobody is there.
pub fn open(line: BorrowedFd<'_>, asked: u32, file: BorrowedFd<'_>) -> io::Result<u32> {
    send(line, &[OPEN, asked], Some(file), true)?;
    let mut buffer = [0; 64];
    loop {
        match receive(line, &mut buffer)? {
            None => return Err(io::Error::from_raw_os_error(libc::EPIPE)),
            Some((words, _)) => match words[..] {
                [answered, 0, id] if answered == asked => return Ok(id),
                [answered, errno, _] if answered == asked => return Err(io::Error::from_raw_os_error(errno as i32)),
                _ => {}
            },
        }
    }
}

/// Has a registration taken back, without waiting.
///
/// # Errors
/// It could not be said.
pub fn close(line: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    send(line, &[CLOSE, id], None, false)
}

/// Has all registrations taken back but these.
///
/// # Errors
/// It could not be said.
pub fn keep(line: BorrowedFd<'_>, ids: &[u32]) -> io::Result<()> {
    let words: Vec<u32> = [KEEP].iter().chain(ids.iter().take(MOST)).copied().collect();
    send(line, &words, None, true)
}

/// The next word and what its answer must name; none when the line has ended or what comes makes no sense.
pub fn hear(line: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Option<(Word, u32)> {
    buffer.resize(MESSAGE_MAX, 0);
    let (words, mut descriptors) = receive(line, buffer).ok()??;
    match words[..] {
        [OPEN, asked] => Some((Word::Open(descriptors.pop()?), asked)),
        [CLOSE, id] => Some((Word::Close(id), 0)),
        [KEEP, ref ids @ ..] => Some((Word::Keep(ids.to_vec()), 0)),
        _ => None,
    }
}

/// Answers a word that asks for a file.
///
/// # Errors
/// Nobody listens.
pub fn answer(line: BorrowedFd<'_>, asked: u32, done: &io::Result<u32>) -> io::Result<()> {
    let words = match done {
        Ok(id) => [asked, 0, *id],
        Err(error) => [asked, error.raw_os_error().unwrap_or(libc::EIO) as u32, 0],
    };
    send(line, &words, None, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_file_is_asked_for_and_answered() {
        let (one, two) = line().unwrap();
        let other = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            let Some((Word::Open(file), asked)) = hear(two.as_fd(), &mut buffer) else { panic!("no file") };
            assert!(nix::sys::stat::fstat(&file).is_ok());
            // Of a question that nobody waits for any more.
            answer(two.as_fd(), asked - 1, &Ok(6)).unwrap();
            answer(two.as_fd(), asked, &Ok(7)).unwrap();
            let Some((Word::Open(_), asked)) = hear(two.as_fd(), &mut buffer) else { panic!("no file") };
            answer(two.as_fd(), asked, &Err(io::Error::from_raw_os_error(libc::ELOOP))).unwrap();
            let Some((Word::Close(7), _)) = hear(two.as_fd(), &mut buffer) else { panic!("no end") };
            let Some((Word::Keep(ids), _)) = hear(two.as_fd(), &mut buffer) else { panic!("no list") };
            assert_eq!(ids.len(), MOST);
            assert!(hear(two.as_fd(), &mut buffer).is_none());
        });
        let file = tempfile::tempfile().unwrap();
        assert_eq!(open(one.as_fd(), 3, file.as_fd()).unwrap(), 7);
        assert_eq!(open(one.as_fd(), 4, file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        close(one.as_fd(), 7).unwrap();
        keep(one.as_fd(), &(0..MOST as u32 + 5).collect::<Vec<_>>()).unwrap();
        drop(one);
        other.join().unwrap();
    }

    #[test]
    fn an_end_that_is_gone_is_an_error() {
        let (one, two) = line().unwrap();
        drop(two);
        let file = tempfile::tempfile().unwrap();
        assert!(open(one.as_fd(), 1, file.as_fd()).is_err());
    }
}
