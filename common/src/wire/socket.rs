//! A connected socket, TCP, TCP with TLS or domain, as both ends of the protocol use it.
//!
//! One type for all, because the frames are the same; a domain socket also carries descriptors, and what goes through TLS
//! is copied and encrypted here instead of being sent by the kernel. Every wait for the
//! other side to take bytes has a deadline, so that a peer that stands still costs a connection and nothing else.

use super::{DATA_PREFIX, DataPrefix, HEADER, Header, Message, WireError};
use crate::{Error, ErrorKind, Result, tls::TlsStream};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, ReadHalf, WriteHalf, unix::AsyncFd};

/// Descriptors that may wait to be fetched; more end the connection.
const MAX_DESCRIPTORS: usize = 64;
/// Bytes read from the socket at a time when they are not payload.
const BUFFER: usize = 32 << 10;
/// Bytes given to TLS at a time: each such piece has to leave within the patience.
const TLS_PIECE: usize = 128 << 10;

/// A connected socket.
#[derive(Debug)]
pub struct Socket {
    channel: Channel,
    patience: Duration,
}

#[derive(Debug)]
enum Channel {
    Tcp(AsyncFd<OwnedFd>),
    Domain(AsyncFd<OwnedFd>),
    Tls(Box<TlsChannel>),
}

/// The two directions of a TLS connection. Each is used by one task at a time; the locks are never waited for.
#[derive(Debug)]
struct TlsChannel {
    read: tokio::sync::Mutex<ReadHalf<TlsStream>>,
    write: tokio::sync::Mutex<TlsWriter>,
}

#[derive(Debug)]
struct TlsWriter {
    half: WriteHalf<TlsStream>,
    /// Bytes of files on their way.
    buffer: Vec<u8>,
}

impl Socket {
    /// Over a TCP connection. A peer that takes no bytes for `patience` fails the connection.
    pub fn tcp(stream: std::net::TcpStream, patience: Duration) -> Result<Self> {
        let what = "prepare a connection";
        stream.set_nonblocking(true).map_err(|error| Error::io(what, error))?;
        stream.set_nodelay(true).map_err(|error| Error::io(what, error))?;
        Ok(Self { channel: Channel::Tcp(watch(stream.into())?), patience })
    }

    /// Over a domain socket.
    pub fn domain(stream: std::os::unix::net::UnixStream, patience: Duration) -> Result<Self> {
        stream.set_nonblocking(true).map_err(|error| Error::io("prepare a connection", error))?;
        Ok(Self { channel: Channel::Domain(watch(stream.into())?), patience })
    }

    /// Over a TCP connection whose TLS handshake is done.
    pub fn tls(stream: TlsStream, patience: Duration) -> Result<Self> {
        stream.get_ref().0.set_nodelay(true).map_err(|error| Error::io("prepare a connection", error))?;
        let (read, half) = tokio::io::split(stream);
        let write = tokio::sync::Mutex::new(TlsWriter { half, buffer: Vec::new() });
        let channel = TlsChannel { read: tokio::sync::Mutex::new(read), write };
        Ok(Self { channel: Channel::Tls(Box::new(channel)), patience })
    }

    /// Whether the peer is on this host and descriptors can be passed.
    pub fn is_domain(&self) -> bool {
        matches!(self.channel, Channel::Domain(_))
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
        let fd = match &self.channel {
            Channel::Tcp(fd) | Channel::Domain(fd) => fd,
            Channel::Tls(tls) => {
                let writer = &mut *tls.write.lock().await;
                for piece in parts.iter().flat_map(|part| part.chunks(TLS_PIECE)) {
                    self.in_time("send", writer.half.write_all(piece)).await?;
                }
                return self.in_time("send", writer.half.flush()).await;
            }
        };
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
            sent +=
                self.when_writable(fd, "send", |fd| Ok(sendmsg::<()>(fd, &slices[..count], &[], flags, None)?)).await?;
        }
        Ok(())
    }

    /// Sends `bytes` with a descriptor (domain sockets only).
    pub async fn send_with(&self, bytes: &[u8], file: &File) -> Result<()> {
        let Channel::Domain(socket) = &self.channel else {
            return Err(Error::new(ErrorKind::Unsupported, "descriptors are passed over domain sockets only"));
        };
        let descriptors = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let sent = self
            .when_writable(socket, "send a descriptor", |fd| {
                Ok(sendmsg::<()>(fd, &[IoSlice::new(bytes)], &rights, MsgFlags::MSG_NOSIGNAL, None)?)
            })
            .await?;
        self.send(&[&bytes[sent..]]).await
    }

    /// Sends `length` bytes of a file from `offset` on, without bringing them into this process.
    pub async fn send_file(&self, file: &File, offset: u64, length: usize) -> Result<()> {
        let socket = match &self.channel {
            Channel::Tcp(fd) | Channel::Domain(fd) => fd,
            Channel::Tls(tls) => return self.send_file_by_tls(tls, file, offset, length).await,
        };
        let mut at = i64::try_from(offset).map_err(|_| Error::new(ErrorKind::TooLarge, "offset"))?;
        let mut left = length;
        while left > 0 {
            let sent = self
                .when_writable(socket, "send a page", |fd| {
                    // SAFETY: both descriptors are open for the call, and `at` is a valid off_t that it advances.
                    let sent = unsafe { libc::sendfile(fd, file.as_raw_fd(), &mut at, left) };
                    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
                })
                .await?;
            if sent == 0 {
                return Err(shorter());
            }
            left -= sent;
        }
        Ok(())
    }

    async fn send_file_by_tls(&self, tls: &TlsChannel, file: &File, offset: u64, length: usize) -> Result<()> {
        let TlsWriter { half, buffer } = &mut *tls.write.lock().await;
        buffer.resize(TLS_PIECE, 0);
        let mut done = 0;
        while done < length {
            let wanted = (length - done).min(TLS_PIECE);
            // As sendfile does in the other case, this reads on the task's thread: the pages are cached, or near.
            let read = file.read_at(&mut buffer[..wanted], offset + done as u64);
            let read = read.map_err(|error| Error::io("read a stored page", error))?;
            if read == 0 {
                return Err(shorter());
            }
            self.in_time("send a page", half.write_all(&buffer[..read])).await?;
            done += read;
        }
        self.in_time("send a page", half.flush()).await
    }

    async fn when_writable<T>(
        &self,
        socket: &AsyncFd<OwnedFd>,
        what: &str,
        mut act: impl FnMut(RawFd) -> io::Result<T>,
    ) -> Result<T> {
        self.in_time(what, socket.async_io(Interest::WRITABLE, |fd| act(fd.as_raw_fd()))).await
    }

    async fn in_time<T>(&self, what: &str, act: impl Future<Output = io::Result<T>>) -> Result<T> {
        match tokio::time::timeout(self.patience, act).await {
            Ok(done) => done.map_err(|error| Error::io(what, error)),
            Err(_) => Err(Error::new(ErrorKind::TimedOut, format!("the peer takes no bytes for {:?}", self.patience))),
        }
    }

    async fn receive(&self, buffer: &mut [u8], descriptors: &mut VecDeque<OwnedFd>) -> Result<usize> {
        let received = match &self.channel {
            Channel::Tcp(fd) => fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, buffer)?)).await,
            Channel::Domain(fd) => {
                let mut receive = |fd: &OwnedFd| receive_with_descriptors(fd.as_raw_fd(), buffer, descriptors);
                fd.async_io(Interest::READABLE, |fd| receive(fd)).await
            }
            Channel::Tls(tls) => tls.read.lock().await.read(buffer).await,
        };
        received.map_err(|error| Error::io("receive", error))
    }
}

fn watch(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor, and that descriptor open, for as long as it lives.
    unsafe { AsyncFd::register(fd) }.map_err(|error| Error::io("watch a connection", std::io::Error::from(error)))
}

fn shorter() -> Error {
    Error::new(ErrorKind::Corrupt, "a stored page is shorter than it was")
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
