//! One accepted connection: plain or TLS, and the ways a fault can end it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::server::TlsStream;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In order, as after the last answer.
    Close = 1,
    /// With a reset.
    Reset = 2,
}

/// What the service may do to the connection its request came on.
pub(crate) struct Connection {
    after_flush: AtomicU8,
    abort: Notify,
}

impl Connection {
    pub(crate) fn new() -> Self {
        Connection { after_flush: AtomicU8::new(0), abort: Notify::new() }
    }

    /// Ends the connection once everything handed to it is written.
    pub(crate) fn end_after_flush(&self, end: End) {
        self.after_flush.store(end as u8, Ordering::Release);
    }

    /// Resets the connection now.
    pub(crate) fn abort(&self) {
        self.abort.notify_one();
    }

    /// Waits for [`Connection::abort`].
    pub(crate) async fn aborted(&self) {
        self.abort.notified().await;
    }
}

/// The bytes of a connection.
pub(crate) enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    fn tcp(&self) -> &TcpStream {
        match self {
            Transport::Plain(stream) => stream,
            Transport::Tls(stream) => stream.get_ref().0,
        }
    }
}

/// A transport that a fault can end.
pub(crate) struct Socket {
    transport: Transport,
    connection: Arc<Connection>,
}

impl Socket {
    pub(crate) fn new(transport: Transport, connection: Arc<Connection>) -> Self {
        Socket { transport, connection }
    }

    /// The descriptor, for [`reset_on_close`]; valid as long as the socket lives.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.transport.tcp().as_raw_fd()
    }
}

/// Makes the close of a socket send a reset instead of an orderly end. A descriptor that is no socket is ignored.
pub(crate) fn reset_on_close(descriptor: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the pointer and the length describe one live `linger`; the kernel checks the descriptor.
    unsafe {
        libc::setsockopt(
            descriptor,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        );
    }
}

/// Ends the sending side in order, so that bytes not yet read from the client do not turn the close into a reset.
fn finish_sending(descriptor: RawFd) {
    // SAFETY: shutdown takes no pointers; the kernel checks the descriptor.
    unsafe {
        libc::shutdown(descriptor, libc::SHUT_WR);
    }
}

macro_rules! transport {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().transport {
            Transport::Plain($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
            Transport::Tls($stream) => {
                let $stream = Pin::new($stream);
                $call
            }
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        transport!(self, stream => stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        transport!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        transport!(self, stream => stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        // Also for TLS, which takes the slices one after the other: hyper would otherwise copy large bodies into its own buffer first.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.as_mut();
        ready!(transport!(socket, stream => stream.poll_flush(cx)))?;
        match self.connection.after_flush.load(Ordering::Acquire) {
            0 => Poll::Ready(Ok(())),
            end => {
                if end == End::Reset as u8 {
                    reset_on_close(self.descriptor());
                } else {
                    finish_sending(self.descriptor());
                }
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "ended by a fault rule")))
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        transport!(self, stream => stream.poll_shutdown(cx))
    }
}
