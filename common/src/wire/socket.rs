//! A connected socket, TCP or domain, as both ends of the protocol use it.
//!
//! One type for both, because the frames are the same; a domain socket also carries descriptors. Every wait for the
//! other side to take bytes has a deadline, so that a peer that stands still costs a connection and nothing else.

use super::{DATA_PREFIX, DataPrefix, HEADER, Header, Message, WireError};
use crate::{Error, ErrorKind, Result};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Descriptors that may wait to be fetched; more end the connection.
const MAX_DESCRIPTORS: usize = 64;
/// Bytes read from the socket at a time when they are not payload.
const BUFFER: usize = 32 << 10;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
    domain: bool,
    patience: Duration,
}

impl Socket {
    /// Over a TCP connection. A peer that takes no bytes for `patience` fails the connection.
    pub fn tcp(stream: std::net::TcpStream, patience: Duration) -> Result<Self> {
        let what = "prepare a connection";
        stream.set_nonblocking(true).map_err(|error| Error::io(what, error))?;
        stream.set_nodelay(true).map_err(|error| Error::io(what, error))?;
        Self::new(stream.into(), false, patience)
    }

    /// Over a domain socket.
    pub fn domain(stream: std::os::unix::net::UnixStream, patience: Duration) -> Result<Self> {
        stream.set_nonblocking(true).map_err(|error| Error::io("prepare a connection", error))?;
        Self::new(stream.into(), true, patience)
    }

    fn new(fd: OwnedFd, domain: bool, patience: Duration) -> Result<Self> {
        // SAFETY: an OwnedFd keeps its descriptor, and that descriptor open, for as long as it lives.
        let fd = unsafe { AsyncFd::register(fd) }
            .map_err(|error| Error::io("watch a connection", std::io::Error::from(error)))?;
        Ok(Self { fd, domain, patience })
    }

    /// Whether the peer is on this host and descriptors can be passed.
    pub fn is_domain(&self) -> bool {
        self.domain
    }

    /// Sends all of `parts`, one after the other.
    pub async fn send(&self, parts: &[&[u8]]) -> Result<()> {
        self.send_flagged(parts, MsgFlags::MSG_NOSIGNAL).await
    }

    /// The same when more follows at once: the kernel may keep the bytes back until they make up a whole packet with it.
    pub async fn send_more(&self, parts: &[&[u8]]) -> Result<()> {
        self.send_flagged(parts, MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(libc::MSG_MORE)).await
    }

    async fn send_flagged(&self, parts: &[&[u8]], flags: MsgFlags) -> Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut sent = 0;
        while sent < total {
            let mut skip = sent;
            let mut slices: [IoSlice<'_>; 4] = [IoSlice::new(&[]); 4];
            let mut count = 0;
            for part in parts {
                if skip >= part.len() {
                    skip -= part.len();
                } else if count < slices.len() {
                    slices[count] = IoSlice::new(&part[skip..]);
                    skip = 0;
                    count += 1;
                }
            }
            sent += self.when_writable("send", |fd| Ok(sendmsg::<()>(fd, &slices[..count], &[], flags, None)?)).await?;
        }
        Ok(())
    }

    /// Sends `bytes` with a descriptor (domain sockets only).
    pub async fn send_with(&self, bytes: &[u8], file: &File) -> Result<()> {
        let descriptors = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let sent = self
            .when_writable("send a descriptor", |fd| {
                Ok(sendmsg::<()>(fd, &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?)
            })
            .await?;
        self.send(&[&bytes[sent..]]).await
    }

    /// Sends `length` bytes of a file from `offset` on, without bringing them into this process.
    pub async fn send_file(&self, file: &File, offset: u64, length: usize) -> Result<()> {
        let mut at = i64::try_from(offset).map_err(|_| Error::new(ErrorKind::TooLarge, "offset"))?;
        let mut left = length;
        while left > 0 {
            let sent = self
                .when_writable("send a page", |fd| {
                    // SAFETY: both descriptors are open for the call, and `at` is a valid off_t that it advances.
                    let sent = unsafe { libc::sendfile(fd, file.as_raw_fd(), &mut at, left) };
                    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
                })
                .await?;
            if sent == 0 {
                return Err(Error::new(ErrorKind::Corrupt, "a stored page is shorter than it was"));
            }
            left -= sent;
        }
        Ok(())
    }

    async fn when_writable<T>(&self, what: &str, mut act: impl FnMut(RawFd) -> io::Result<T>) -> Result<T> {
        let act = self.fd.async_io(Interest::WRITABLE, |fd| act(fd.as_raw_fd()));
        match tokio::time::timeout(self.patience, act).await {
            Ok(done) => done.map_err(|error| Error::io(what, error)),
            Err(_) => Err(Error::new(ErrorKind::TimedOut, format!("the peer takes no bytes for {:?}", self.patience))),
        }
    }

    async fn receive(&self, buffer: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> Result<usize> {
        let received = self
            .fd
            .async_io(Interest::READABLE, |fd| {
                if self.domain {
                    receive_with_descriptors(fd.as_raw_fd(), buffer, descriptors)
                } else {
                    Ok(nix::unistd::read(fd, buffer)?)
                }
            })
            .await;
        received.map_err(|error| Error::io("receive", error))
    }
}

fn receive_with_descriptors(fd: RawFd, buffer: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> io::Result<usize> {
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(fd, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    if let Ok(controls) = message.cmsgs() {
        for control in controls {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just put these descriptors into this process; nobody else owns them.
                descriptors.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other("the peer sends descriptors that nobody asked for"));
    }
    Ok(message.bytes)
}

/// Reads frames from a socket.
#[derive(Debug)]
pub struct FrameReader {
    socket: Arc<Socket>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl FrameReader {
    /// The one reader of this socket.
    pub fn new(socket: Arc<Socket>) -> Self {
        Self { socket, buffer: vec![0; BUFFER].into(), start: 0, end: 0, descriptors: VecDeque::new() }
    }

    /// The next header; `None` when the peer has ended the connection between two frames.
    pub async fn header(&mut self) -> Result<Option<Header>> {
        if self.start == self.end {
            self.start = 0;
            self.end = self.socket.receive(&mut self.buffer, &mut self.descriptors).await?;
            if self.end == 0 {
                return Ok(None);
            }
        }
        let mut bytes = [0; HEADER];
        self.fill(&mut bytes).await?;
        Ok(Some(Header::decode(&bytes)?))
    }

    /// The message that follows a header of any kind but Data.
    pub async fn message(&mut self, header: &Header) -> Result<Message> {
        let mut body = vec![0; header.length as usize];
        self.fill(&mut body).await?;
        Ok(Message::decode(header, &body)?)
    }

    /// The prefix that follows the header of a Data frame.
    pub async fn data_prefix(&mut self, header: &Header) -> Result<DataPrefix> {
        let mut prefix = [0; DATA_PREFIX];
        self.fill(&mut prefix).await?;
        Ok(DataPrefix::decode(header, &prefix)?)
    }

    /// Reads exactly as many bytes as `into` holds: payload goes straight to where it belongs.
    pub async fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        let mut at = (self.end - self.start).min(into.len());
        into[..at].copy_from_slice(&self.buffer[self.start..self.start + at]);
        self.start += at;
        while at < into.len() {
            if into.len() - at >= BUFFER {
                let count = self.socket.receive(&mut into[at..], &mut self.descriptors).await?;
                if count == 0 {
                    return Err(ended());
                }
                at += count;
            } else {
                self.start = 0;
                self.end = self.socket.receive(&mut self.buffer, &mut self.descriptors).await?;
                if self.end == 0 {
                    return Err(ended());
                }
                let count = self.end.min(into.len() - at);
                into[at..at + count].copy_from_slice(&self.buffer[..count]);
                self.start = count;
                at += count;
            }
        }
        Ok(())
    }

    /// A descriptor that came with the frames read so far.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection ended in the middle of a frame")
}

/// Who is at the other end of a domain socket: process, user and group.
pub fn peer(socket: BorrowedFd<'_>) -> Result<(i32, u32, u32)> {
    let credentials = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)
        .map_err(|errno| Error::os("ask who connects", errno as i32))?;
    Ok((credentials.pid(), credentials.uid(), credentials.gid()))
}

impl From<WireError> for io::Error {
    fn from(error: WireError) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    fn pair() -> (Socket, FrameReader) {
        let (one, two) = UnixStream::pair().unwrap();
        let patience = Duration::from_secs(20);
        (Socket::domain(one, patience).unwrap(), FrameReader::new(Arc::new(Socket::domain(two, patience).unwrap())))
    }

    #[tokio::test]
    async fn messages_data_and_descriptors_arrive_in_order() {
        let (socket, mut reader) = pair();
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..300_000u32).map(|number| number as u8).collect();
        file.write_all(&bytes).unwrap();
        let sent = bytes.clone();
        let sender = tokio::spawn(async move {
            socket.send(&[&Message::Ping.encode(1).unwrap()]).await.unwrap();
            socket.send_with(&Message::Exported.encode(2).unwrap(), &file).await.unwrap();
            let prefix = DataPrefix { offset: 5, checksum: crc32c::crc32c(&sent[5..]), last: true };
            socket.send(&[&prefix.encode(3, sent.len() - 5), &[]]).await.unwrap();
            socket.send_file(&file, 5, sent.len() - 5).await.unwrap();
        });
        let header = reader.header().await.unwrap().unwrap();
        assert_eq!((header.request, reader.message(&header).await.unwrap()), (1, Message::Ping));
        let header = reader.header().await.unwrap().unwrap();
        assert_eq!(reader.message(&header).await.unwrap(), Message::Exported);
        let descriptor = reader.descriptor().expect("a descriptor");
        let length = File::from(descriptor).metadata().unwrap().len();
        assert_eq!(length, bytes.len() as u64);
        let header = reader.header().await.unwrap().unwrap();
        let prefix = reader.data_prefix(&header).await.unwrap();
        let mut payload = vec![0; header.length as usize - DATA_PREFIX];
        reader.fill(&mut payload).await.unwrap();
        assert_eq!(payload, bytes[5..]);
        assert_eq!(crc32c::crc32c(&payload), prefix.checksum);
        sender.await.unwrap();
        assert!(reader.header().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_frame_that_is_cut_off_is_an_error() {
        let (one, two) = UnixStream::pair().unwrap();
        let mut reader = FrameReader::new(Arc::new(Socket::domain(two, Duration::from_secs(5)).unwrap()));
        let frame = Message::Hello { name: "me".into() }.encode(1).unwrap();
        let mut one = one;
        one.write_all(&frame[..frame.len() - 1]).unwrap();
        drop(one);
        let header = reader.header().await.unwrap().unwrap();
        assert_eq!(reader.message(&header).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (one, mut two) = UnixStream::pair().unwrap();
        let socket = Socket::domain(one, Duration::from_millis(50)).unwrap();
        let much = vec![0; 8 << 20];
        assert_eq!(socket.send(&[&much]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(two.read(&mut [0; 10]).is_ok());
    }
}
