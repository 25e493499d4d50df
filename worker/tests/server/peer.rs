//! A plain client of the wire protocol: one question at a time, every wait bounded.

use common::{
    Error, ErrorKind, Version,
    wire::{self, DATA_PREFIX, FrameReader, Kind, Message, Socket},
};
use std::{fs::File, future::Future, path::Path, sync::Arc, time::Duration};
use worker::server::Server;

/// The longest that anything may take here; only a hang takes as long.
pub const LIMIT: Duration = Duration::from_secs(120);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: nothing within {LIMIT:?}"))
}

pub struct Peer {
    pub socket: Arc<Socket>,
    frames: FrameReader,
    next: u32,
}

impl Peer {
    pub async fn tcp(server: &Server) -> Self {
        let stream = std::net::TcpStream::connect(("127.0.0.1", server.entry().address.data_port)).unwrap();
        Self::greet(Socket::tcp(stream, LIMIT).unwrap()).await
    }

    pub async fn domain(server: &Server) -> Self {
        let stream = std::os::unix::net::UnixStream::connect(Path::new(&server.entry().address.domain_socket_path));
        Self::greet(Socket::domain(stream.unwrap(), LIMIT).unwrap()).await
    }

    async fn greet(socket: Socket) -> Self {
        let socket = Arc::new(socket);
        let mut peer = Self { frames: FrameReader::new(socket.clone()), socket, next: 7 };
        let Message::Welcome { page_size, in_flight, .. } =
            peer.ask(Message::Hello { name: "a test".into() }).await.unwrap()
        else {
            panic!("no welcome")
        };
        assert_eq!(page_size as usize, crate::PAGE);
        assert!(in_flight >= 1);
        peer
    }

    pub async fn send(&mut self, message: Message) -> u32 {
        self.next += 1;
        let frame = message.encode(self.next).unwrap();
        within("send", self.socket.send(&[&frame])).await.unwrap();
        self.next
    }

    /// The answer to one message.
    pub async fn ask(&mut self, message: Message) -> Result<Message, Error> {
        let request = self.send(message).await;
        let header = within("an answer", self.frames.header()).await?.ok_or_else(gone)?;
        assert_eq!(header.request, request);
        match within("a body", self.frames.message(&header)).await? {
            Message::Failure { code, message } => Err(wire::error_of(code, message)),
            answer => Ok(answer),
        }
    }

    pub async fn open(&mut self, storage: &str, path: &str, version: &Version, size: u64) -> Result<u32, Error> {
        let open = Message::Open {
            storage: storage.into(),
            path: path.into(),
            version: version.as_str().into(),
            size,
            mtime_sec: 0,
            mtime_nsec: 0,
        };
        match self.ask(open).await? {
            Message::Opened { handle } => Ok(handle),
            other => panic!("{other:?}"),
        }
    }

    pub async fn read(&mut self, handle: u32, offset: u64, length: u32) -> Result<Vec<u8>, Error> {
        let request = self.send(Message::Read { handle, offset, length }).await;
        self.data_of(request, offset).await
    }

    /// The bytes of an answer, each piece verified.
    pub async fn data_of(&mut self, request: u32, offset: u64) -> Result<Vec<u8>, Error> {
        let mut found = Vec::new();
        loop {
            let header = within("data", self.frames.header()).await?.ok_or_else(gone)?;
            assert_eq!(header.request, request);
            if header.kind != Kind::Data {
                let Message::Failure { code, message } = within("a body", self.frames.message(&header)).await? else {
                    panic!("neither data nor failure: {header:?}")
                };
                return Err(wire::error_of(code, message));
            }
            let prefix = within("a prefix", self.frames.data_prefix(&header)).await?;
            assert_eq!(prefix.offset, offset + found.len() as u64, "pieces come in order");
            let mut payload = vec![0; header.length as usize - DATA_PREFIX];
            within("a payload", self.frames.fill(&mut payload)).await?;
            assert_eq!(crc32c::crc32c(&payload), prefix.checksum);
            found.extend_from_slice(&payload);
            if prefix.last {
                return Ok(found);
            }
        }
    }

    pub async fn export(&mut self, handle: u32) -> Result<File, Error> {
        match self.ask(Message::Export { handle }).await? {
            Message::Exported => Ok(self.frames.descriptor().expect("a descriptor").into()),
            other => panic!("{other:?}"),
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection ended")
}
