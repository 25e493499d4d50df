//! How a FUSE connection is handed to the process that serves it: the words that the CSI node plugin, which may mount,
//! and the mounter, which may not, say to each other over a domain socket.
//!
//! An order and its answer are a length and JSON each; descriptors travel with the length (SCM_RIGHTS). A connection
//! carries one order and one answer.
//!
//! Invariants:
//! - every exchange has a deadline, and no frame is longer than [`FRAME_MAX`];
//! - only root and the listener's own user are talked to ([`trusted`]);
//! - secrets are in [`Session::secrets`] and nowhere else; they never appear in a `Debug` text, and travel over this socket
//!   only, never in arguments or the environment.

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The longest order or answer, in bytes.
pub const FRAME_MAX: usize = 1 << 20;

/// The most descriptors that come with one.
const DESCRIPTORS_MAX: usize = 4;

/// What a mounter is to serve on a connection that it was handed.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Names it among the sessions of a mounter: lower-case letters, digits and dashes.
    pub key: String,
    /// What is served: the URI of an under storage, or `alluxio://<cluster>/<path>` for the namespace of a cluster.
    pub source: String,
    /// Mount options, as after `-o`.
    pub options: Vec<String>,
    /// Settings of the configuration.
    pub properties: BTreeMap<String, String>,
    /// Settings that must not be shown.
    pub secrets: BTreeMap<String, String>,
    /// The group that the files of object stores belong to.
    pub group: Option<u32>,
    /// Whether it takes no writes.
    pub read_only: bool,
    /// How many seconds its start may take.
    pub limit_seconds: u64,
    /// Whether the connection is one that a process served which died, and that is to be gone on with.
    #[serde(default)]
    pub takeover: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("key", &self.key)
            .field("source", &crate::redact::uri(&self.source))
            .field("group", &self.group)
            .field("read_only", &self.read_only)
            .field("secrets", &self.secrets.len())
            .finish_non_exhaustive()
    }
}

/// What the plugin asks of a mounter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Serve the connection that comes with it, and have files registered over the line ([`crate::backing`]) that comes after
    /// it, if one does. Answered by [`Answer::Serving`] once the file system is ready.
    Serve(Session),
    /// Which sessions are there; answered by [`Answer::Sessions`].
    List,
    /// The session with this key and its connection, for a plugin that was started anew; answered by [`Answer::Taken`].
    Take {
        /// Its key.
        key: String,
    },
    /// Have files registered over the line that comes with it from now on; answered by [`Answer::Done`].
    Line {
        /// Its key.
        key: String,
    },
    /// Put what was written into the storage; answered by [`Answer::Settled`] or [`Answer::Pending`], also when no process
    /// serves the session.
    Settle {
        /// Its key.
        key: String,
        /// How long that may take.
        limit_seconds: u64,
    },
    /// End this session and forget it; answered by [`Answer::Done`], also when there is none.
    Stop {
        /// Its key.
        key: String,
    },
}

/// A session of a mounter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// The process that serves it; none when that has ended.
    pub pid: Option<u32>,
    /// How it ended.
    pub ended: Option<String>,
}

/// What a mounter answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The session is served by this process.
    Serving {
        /// Its number, in the mounter's own view.
        pid: u32,
        /// Whether its storage takes writes.
        #[serde(default)]
        writes: bool,
    },
    /// Everything that was written is in the storage.
    Settled,
    /// Something is not; it is kept on this host until it is.
    Pending {
        /// One line: what and why.
        message: String,
        /// Whether a process goes on with it now; otherwise the next one will.
        served: bool,
    },
    /// What there is.
    Sessions {
        /// All of them.
        sessions: Vec<Listed>,
    },
    /// The session; its connection comes with it.
    Taken {
        /// What was ordered.
        session: Session,
    },
    /// It is done.
    Done,
    /// It cannot be done.
    Failed {
        /// One line: what and why.
        message: String,
        /// Whether the storage or its configuration is the cause, rather than the mounter.
        storage: bool,
    },
}

/// A connection with a deadline for all that is said over it.
#[derive(Debug)]
pub struct Talk {
    stream: UnixStream,
    end: Instant,
}

impl Talk {
    /// Over `stream`, for at most `limit`.
    pub fn new(stream: UnixStream, limit: Duration) -> Self {
        Self { stream, end: Instant::now() + limit }
    }

    /// Connects to `socket`. A listener whose queue is full is no listener.
    ///
    /// # Errors
    /// Nobody listens there, or may be reached.
    pub fn connect(socket: &Path, limit: Duration) -> io::Result<Self> {
        let (_directory, short) = short_path(socket)?;
        // A full queue would hold up connect without bound: the send timeout bounds that too.
        let stream = {
            let fd = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Unix,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_CLOEXEC,
                None,
            )?;
            let stream = UnixStream::from(fd);
            stream.set_write_timeout(Some(limit))?;
            let address = nix::sys::socket::UnixAddr::new(&short)?;
            nix::sys::socket::connect(stream.as_raw_fd(), &address)?;
            stream
        };
        Ok(Self::new(stream, limit))
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Says one thing, with descriptors.
    ///
    /// # Errors
    /// The other side is gone or takes nothing.
    pub fn say<T: Serialize>(&self, what: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let body = serde_json::to_vec(what)?;
        if body.len() > FRAME_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than one exchange may carry"));
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let controls: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let length = (body.len() as u32).to_be_bytes();
        self.stream.set_write_timeout(self.left()?)?;
        let fd = self.stream.as_raw_fd();
        let sent = retry(|| sendmsg::<()>(fd, &[IoSlice::new(&length)], controls, MsgFlags::MSG_NOSIGNAL, None))?;
        let rest: Vec<u8> = length[sent..].iter().chain(&body).copied().collect();
        let mut at = 0;
        while at < rest.len() {
            self.stream.set_write_timeout(self.left()?)?;
            at += retry(|| sendmsg::<()>(fd, &[IoSlice::new(&rest[at..])], &[], MsgFlags::MSG_NOSIGNAL, None))?;
        }
        Ok(())
    }

    /// Hears one thing, and the descriptors that came with it.
    ///
    /// # Errors
    /// The other side is gone, silent, or talks nonsense.
    pub fn hear<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut descriptors = Vec::new();
        let mut length = [0; 4];
        self.fill(&mut length, &mut descriptors)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame that is too long"));
        }
        let mut body = vec![0; length];
        self.fill(&mut body, &mut descriptors)?;
        Ok((serde_json::from_slice(&body).map_err(nonsense)?, descriptors))
    }

    fn fill(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut at = 0;
        while at < into.len() {
            self.stream.set_read_timeout(self.left()?)?;
            let mut space = cmsg_space!([RawFd; DESCRIPTORS_MAX]);
            let mut parts = [IoSliceMut::new(&mut into[at..])];
            let message = retry(|| {
                recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
                    .map(|message| (message.bytes, received(&message)))
            })?;
            descriptors.extend(message.1);
            if descriptors.len() > DESCRIPTORS_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "more descriptors than agreed"));
            }
            if message.0 == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += message.0;
        }
        Ok(())
    }
}

fn received(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Vec<OwnedFd> {
    let Ok(controls) = message.cmsgs() else { return Vec::new() };
    controls
        .filter_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        // SAFETY: the kernel has just put these descriptors into this process; nobody else knows their numbers.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect()
}

/// What serde says of a text may quote it, and it may hold secrets: only the place is told.
fn nonsense(error: serde_json::Error) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "not understood at line {} column {}: do both programs have the same version?",
            error.line(),
            error.column()
        ),
    )
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            other => return Ok(other?),
        }
    }
}

/// Gives one order to the mounter at `socket` and returns its answer with the descriptors.
///
/// # Errors
/// There is no mounter, or it does not answer in time.
pub fn order(
    socket: &Path,
    order: &Order,
    descriptors: &[BorrowedFd<'_>],
    limit: Duration,
) -> io::Result<(Answer, Vec<OwnedFd>)> {
    let talk = Talk::connect(socket, limit)?;
    trusted(&talk.stream)?;
    talk.say(order, descriptors)?;
    talk.hear()
}

/// Whether the process at the other end is root or of this process's user; `PermissionDenied` when not.
///
/// # Errors
/// It is somebody else.
pub fn trusted(stream: &UnixStream) -> io::Result<()> {
    let (_, user, _) = crate::wire::peer(stream.as_fd()).map_err(io::Error::other)?;
    let own = nix::unistd::geteuid();
    // Root talks to an unprivileged mounter; which user that is the rights of the socket's directory decide.
    if user == 0 || user == own.as_raw() || own.is_root() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {user} is neither root nor user {own}: refused")))
}

/// Listens at `path`, in place of whoever listened there before; others than its user and root cannot connect.
///
/// # Errors
/// Somebody listens there now, or the directory cannot be used.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_directory, short) = short_path(path)?;
    match UnixStream::connect(&short) {
        Ok(_) => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there; stop it first"));
        }
        // What a dead process left.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(&short)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(&short, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// A socket's address has 107 bytes at most; by the descriptor of its directory any path will do.
pub fn short_path(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let directory = File::open(parent)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((directory, short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    fn session() -> Session {
        Session {
            key: "k".into(),
            source: "s3://user:hidden@bucket/p".into(),
            secrets: [("s3a.secretKey".to_owned(), "very-hidden".to_owned())].into(),
            ..Session::default()
        }
    }

    #[test]
    fn an_order_and_its_descriptor_arrive() {
        let (one, two) = UnixStream::pair().unwrap();
        let limit = Duration::from_secs(20);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        let sent = Order::Serve(session());
        let teller = {
            let sent = sent.clone();
            std::thread::spawn(move || Talk::new(one, limit).say(&sent, &[file.as_fd()]).unwrap())
        };
        let (heard, mut descriptors) = Talk::new(two, limit).hear::<Order>().unwrap();
        teller.join().unwrap();
        assert_eq!(heard, sent);
        let mut file = File::from(descriptors.pop().unwrap());
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(descriptors.is_empty());
    }

    #[test]
    fn no_secret_is_in_a_debug_text() {
        let text = format!("{:?}", Order::Serve(session()));
        assert!(!text.contains("hidden"), "{text}");
    }

    #[test]
    fn silence_nonsense_and_giants_are_errors() {
        let (one, two) = UnixStream::pair().unwrap();
        let talk = Talk::new(two, Duration::from_millis(50));
        assert_eq!(talk.hear::<Order>().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let mut one = one;
        drop(talk);
        assert!(one.write_all(b"x").is_err());
        let (mut one, two) = UnixStream::pair().unwrap();
        one.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert_eq!(
            Talk::new(two, Duration::from_secs(20)).hear::<Order>().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let (mut one, two) = UnixStream::pair().unwrap();
        one.write_all(&[0, 0, 0, 2, b'{', b'}']).unwrap();
        assert_eq!(
            Talk::new(two, Duration::from_secs(20)).hear::<Order>().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_socket_of_the_dead_is_taken_over_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x".repeat(120)).join("s.sock");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let first = listen(&path).unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        let _second = listen(&path).unwrap();
        assert!(Talk::connect(&path, Duration::from_secs(20)).is_ok());
    }
}
