//! The bodies of requests: bytes in memory or a range of a file, with their hash, sent in pieces.
//!
//! Invariants: a file is read on threads for blocking calls, a few pieces ahead of the connection and no more; each
//! attempt sends the same bytes from the start.

use super::sign::EMPTY_HASH;
use crate::object::writes::Body;
use bytes::Bytes;
use common::{Error, Result};
use hyper::body::{Frame, SizeHint};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};
use tokio::sync::mpsc;

/// Bytes of a piece.
const PIECE: usize = 256 << 10;
/// Pieces of a file that are read ahead.
const AHEAD: usize = 2;
/// What is hashed without leaving the thread.
const AT_ONCE: u64 = 32 << 10;

/// A body with its hash.
#[derive(Debug, Clone)]
pub struct Payload {
    body: Body,
    /// SHA-256, in hexadecimal.
    pub hash: String,
}

impl Payload {
    /// Hashes `body`.
    pub async fn new(what: &str, body: &Body) -> Result<Self> {
        let body = body.clone();
        if body.is_empty() {
            return Ok(Self { body: Body::Bytes(Bytes::new()), hash: EMPTY_HASH.to_owned() });
        }
        if let Body::Bytes(bytes) = &body
            && bytes.len() as u64 <= AT_ONCE
        {
            let hash = hex::encode(Sha256::digest(bytes));
            return Ok(Self { body, hash });
        }
        let hashed = body.clone();
        let hash = tokio::task::spawn_blocking(move || hash(&hashed)).await.map_err(io::Error::other).flatten();
        Ok(Self { body, hash: hash.map_err(|error| Error::io(what, error))? })
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.body.len()
    }

    /// The body for one attempt.
    pub fn outgoing(&self) -> Outgoing {
        let source = match &self.body {
            Body::Bytes(bytes) => Source::Bytes(bytes.clone()),
            Body::File { file, offset, length } => Source::Pieces(read_ahead(file.clone(), *offset, *length)),
        };
        Outgoing { source, left: self.length(), sent: Arc::default() }
    }
}

fn hash(body: &Body) -> io::Result<String> {
    match body {
        Body::Bytes(bytes) => Ok(hex::encode(Sha256::digest(bytes))),
        Body::File { file, offset, length } => {
            let mut sha = Sha256::new();
            let mut buffer = vec![0; PIECE];
            let mut at = 0;
            while at < *length {
                // Fits: no longer than the buffer.
                let step = (length - at).min(PIECE as u64) as usize;
                file.read_exact_at(&mut buffer[..step], offset + at)?;
                sha.update(&buffer[..step]);
                at += step as u64;
            }
            Ok(hex::encode(sha.finalize()))
        }
    }
}

fn read_ahead(file: Arc<File>, offset: u64, length: u64) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let mut at = 0;
        while at < length {
            let step = (length - at).min(PIECE as u64) as usize;
            let from = file.clone();
            let read = move || {
                let mut piece = vec![0; step];
                from.read_exact_at(&mut piece, offset + at).map(|()| Bytes::from(piece))
            };
            let piece = tokio::task::spawn_blocking(read).await.map_err(io::Error::other).flatten();
            let failed = piece.is_err();
            if sender.send(piece).await.is_err() || failed {
                return;
            }
            at += step as u64;
        }
    });
    receiver
}

#[derive(Debug)]
enum Source {
    Bytes(Bytes),
    Pieces(mpsc::Receiver<io::Result<Bytes>>),
}

/// A body on its way.
#[derive(Debug)]
pub struct Outgoing {
    source: Source,
    left: u64,
    sent: Arc<AtomicU64>,
}

impl Outgoing {
    /// No body.
    pub fn empty() -> Self {
        Self { source: Source::Bytes(Bytes::new()), left: 0, sent: Arc::default() }
    }

    /// Counts the bytes that the connection has taken.
    pub fn sent(&self) -> Arc<AtomicU64> {
        self.sent.clone()
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let piece = match &mut self.source {
            Source::Bytes(bytes) => bytes.split_to(bytes.len().min(PIECE)),
            Source::Pieces(pieces) => match pieces.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(piece))) => piece,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            },
        };
        self.left -= piece.len() as u64;
        self.sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
