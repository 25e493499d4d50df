//! Listeners for ports that anybody may reach: so many connections at a time, none of which may be held for nothing.
//!
//! Invariants: accepting never ends because of one connection; a connection beyond the limit is closed at once; one that
//! says nothing for too long, or (where that is asked for) lasts too long, fails its next read.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep},
};

/// After a failure to accept (out of descriptors, mostly) asking again at once would spin.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// For so long in all.
    InAll(Duration),
    /// For as long as something is read within this time of what was read before.
    Idle(Duration),
}

/// A listener with limits.
#[derive(Debug)]
pub struct LimitedListener {
    listener: TcpListener,
    room: Arc<Semaphore>,
    held: Held,
}

impl LimitedListener {
    /// At most `connections` at a time, each held as `held` says.
    pub fn new(listener: TcpListener, connections: usize, held: Held) -> Self {
        Self { listener, room: Arc::new(Semaphore::new(connections)), held }
    }

    /// The address.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The next connection.
    pub async fn accept(&self) -> (LimitedStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let Ok(room) = self.room.clone().try_acquire_owned() else {
                        tracing::debug!(%address, "a connection is refused: there are too many");
                        continue;
                    };
                    // What it costs is a little latency.
                    let _ = stream.set_nodelay(true);
                    let (Held::InAll(limit) | Held::Idle(limit)) = self.held;
                    let end = Box::pin(tokio::time::sleep(limit));
                    return (LimitedStream { stream, end, held: self.held, _room: room }, address);
                }
                Err(error) => {
                    tracing::debug!(%error, "connections cannot be accepted for the moment");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The connections as a stream, which never ends.
    pub fn incoming(self) -> impl futures::Stream<Item = io::Result<LimitedStream>> {
        futures::stream::unfold(self, async |listener| {
            let (stream, _) = listener.accept().await;
            Some((Ok(stream), listener))
        })
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub struct LimitedStream {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    held: Held,
    _room: OwnedSemaphorePermit,
}

impl LimitedStream {
    fn poll_end(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for LimitedStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_end(context)?;
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if let (Held::Idle(limit), true) = (self.held, into.filled().len() > before) {
            self.end.as_mut().reset(Instant::now() + limit);
        }
        read
    }
}

impl AsyncWrite for LimitedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_end(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_end(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl tonic::transport::server::Connected for LimitedStream {
    type ConnectInfo = tonic::transport::server::TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl axum::serve::Listener for LimitedListener {
    type Io = LimitedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (LimitedStream, SocketAddr) {
        LimitedListener::accept(self).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const LIMIT: Duration = Duration::from_secs(30);

    async fn ends(stream: &mut TcpStream) -> bool {
        let end = tokio::time::timeout(LIMIT, stream.read(&mut [0; 8])).await.expect("the connection is ended");
        matches!(end, Ok(0) | Err(_))
    }

    async fn listener(connections: usize, held: Held) -> (LimitedListener, SocketAddr) {
        let listener = LimitedListener::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), connections, held);
        let address = listener.address().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_there_is_room_again_after_another_ends() {
        let (listener, address) = listener(1, Held::InAll(LIMIT)).await;
        let _first = TcpStream::connect(address).await.unwrap();
        let (held, _) = listener.accept().await;
        let accepting = tokio::spawn(async move { listener.accept().await });
        let mut second = TcpStream::connect(address).await.unwrap();
        assert!(ends(&mut second).await);
        drop(held);
        let mut third = TcpStream::connect(address).await.unwrap();
        let (mut accepted, _) = tokio::time::timeout(LIMIT, accepting).await.unwrap().unwrap();
        third.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn who_says_nothing_and_who_goes_on_for_ever_are_cut() {
        for held in [Held::InAll(Duration::from_millis(50)), Held::Idle(Duration::from_millis(50))] {
            let (listener, address) = listener(1, held).await;
            let _silent = TcpStream::connect(address).await.unwrap();
            let (mut accepted, _) = listener.accept().await;
            let read = tokio::time::timeout(LIMIT, accepted.read_u8()).await.expect("cut");
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
