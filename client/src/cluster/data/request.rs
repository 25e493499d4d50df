//! One request and its answers, and what all requests of a connection share.
//!
//! Invariants:
//! - what may arrive for a request is known before it does: so many bytes, in no more frames than that is worth, then
//!   nothing. A worker that sends more, or bytes that nobody asked for, loses its connection, and no memory was taken for it;
//! - a number is forgotten with its last answer. A request that is given up keeps its slot until then, since the worker is
//!   still at work; one that was not sent yet gives it back at once;
//! - a handle that arrives when nobody waits for it any more is closed at the worker;
//! - whatever arrives counts as a sign of life, also the parts of a long frame.

use super::{SILENCE, buffers};
use common::{
    Error, ErrorKind, Result,
    wire::{self, DATA_PREFIX, FrameReader, Kind, Message, Socket},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Bytes asked for and not yet consumed, for each connection.
const WINDOW: usize = 64 << 20;
/// The number of what needs no answer, and of pings that only ask for a sign of life.
const NOBODY: u32 = 0;
/// Frames that may bring an answer are as many as this, and one more for so many bytes. Workers send far longer ones.
const FRAMES: usize = 64;
const FRAME_WORTH: u64 = 4096;
/// Bytes of a frame that are received between two signs of life.
const PIECE: usize = 256 << 10;

/// What arrives for a request.
pub enum Arrival {
    Data { offset: u64, last: bool, bytes: Vec<u8> },
    Message(Message, Option<OwnedFd>),
}

/// What the requests of a connection share.
pub struct Shared {
    pub socket: Arc<Socket>,
    sending: tokio::sync::Mutex<()>,
    waiting: Mutex<HashMap<u32, Waiting>>,
    next: AtomicU32,
    pub window: Arc<Semaphore>,
    /// Requests that may be under way; none before the worker has said how many.
    pub slots: Arc<Semaphore>,
    /// Why the connection ended.
    end: Mutex<Option<Error>>,
    broken: AtomicBool,
    started: Instant,
    /// Milliseconds after `started` at which something arrived last.
    heard: AtomicU64,
    /// And at which the worker was last asked for a sign of life.
    asked: AtomicU64,
    outstanding: AtomicU64,
}

/// A request whose answer has not come, or not all of it.
struct Waiting {
    /// None: nobody waits for it any more.
    sender: Option<mpsc::Sender<Arrival>>,
    /// Bytes that may still come.
    left: u64,
    /// Held until the worker has answered; pings have none.
    slot: Option<OwnedSemaphorePermit>,
}

impl Shared {
    pub fn over(socket: Arc<Socket>) -> Self {
        Self {
            socket,
            sending: tokio::sync::Mutex::new(()),
            waiting: Mutex::default(),
            next: AtomicU32::new(NOBODY + 1),
            window: Arc::new(Semaphore::new(WINDOW >> 10)),
            slots: Arc::new(Semaphore::new(0)),
            end: Mutex::new(None),
            broken: AtomicBool::new(false),
            started: Instant::now(),
            heard: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            outstanding: AtomicU64::new(0),
        }
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Bytes asked for and not yet arrived.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn hear(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    /// Whoever has waited for [`SILENCE`] looks whether the worker is there: when nothing arrived for so long it is
    /// asked, and when even that brought nothing in as long again the connection ends.
    pub async fn look(&self) -> Result<()> {
        let silence = SILENCE.as_millis() as u64;
        let (now, heard, asked) = (self.now(), self.heard.load(Ordering::Relaxed), self.asked.load(Ordering::Relaxed));
        if now.saturating_sub(heard) < silence {
            return Ok(());
        }
        if asked <= heard {
            // One of those who wait asks.
            if self.asked.compare_exchange(asked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.send(&Message::Ping, NOBODY, &mut false).await?;
            }
            return Ok(());
        }
        if now.saturating_sub(asked) < silence {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Unavailable, "the worker stands still");
        self.end(error.clone());
        Err(error)
    }

    /// Sends a frame; `begun` is set once a part of it may have left.
    async fn send(&self, message: &Message, number: u32, begun: &mut bool) -> Result<()> {
        if self.is_broken() {
            return Err(self.ended());
        }
        let frame = message.encode(number)?;
        let _turn = self.sending.lock().await;
        *begun = true;
        let mut whole = Whole { shared: self, sent: false };
        self.socket.send(&[&frame]).await?;
        whole.sent = true;
        Ok(())
    }

    /// Gives a handle up at the worker, without waiting for that.
    pub fn close_handle(self: &Arc<Self>, handle: u32) {
        let shared = self.clone();
        tokio::spawn(async move {
            // A connection that broke has no handles any more.
            let _ = shared.send(&Message::Close { handle }, NOBODY, &mut false).await;
        });
    }

    /// Notes that so many bytes arrive for a request. An error ends the connection.
    fn expect(&self, request: u32, length: u64) -> Result<()> {
        let broken = |why: String| Err(Error::new(ErrorKind::Corrupt, why));
        let mut waiting = self.waiting.lock();
        let Some(answer) = waiting.get_mut(&request) else {
            return broken("the worker sends bytes that nobody asked for".into());
        };
        if length == 0 && answer.left > 0 {
            return broken("the worker sends frames without bytes".into());
        }
        match answer.left.checked_sub(length) {
            Some(left) => answer.left = left,
            None => return broken(format!("the worker sends {length} bytes where {} were left to send", answer.left)),
        }
        Ok(())
    }

    /// Hands on what arrived; `over`: it is the last of its request. An error ends the connection.
    fn deliver(self: &Arc<Self>, request: u32, arrival: Arrival, over: bool) -> Result<()> {
        let mut waiting = self.waiting.lock();
        // Of what only asked for a sign of life, or was given up and had no slot.
        let Some(answer) = waiting.get_mut(&request) else { return Ok(()) };
        if answer.slot.is_some() && matches!(arrival, Arrival::Message(Message::Pong, _)) {
            // A sign of life under whatever number is no answer.
            return Ok(());
        }
        let refused = match &answer.sender {
            Some(sender) => sender.try_send(arrival).err(),
            None => Some(mpsc::error::TrySendError::Closed(arrival)),
        };
        if over {
            waiting.remove(&request);
        }
        drop(waiting);
        match refused {
            None => Ok(()),
            Some(mpsc::error::TrySendError::Closed(arrival)) => {
                self.drop_arrival(arrival);
                Ok(())
            }
            Some(mpsc::error::TrySendError::Full(_)) => {
                Err(Error::new(ErrorKind::Corrupt, "the worker sends its answer in too many frames"))
            }
        }
    }

    /// Tells who waits that the answer is of no use, and skips the rest of it.
    fn spoil(self: &Arc<Self>, request: u32, error: &Error, over: bool) -> Result<()> {
        self.deliver(request, Arrival::Message(wire::failure_of(error), None), over)?;
        if let Some(answer) = self.waiting.lock().get_mut(&request) {
            answer.sender = None;
        }
        Ok(())
    }

    fn drop_arrival(self: &Arc<Self>, arrival: Arrival) {
        match arrival {
            Arrival::Data { bytes, .. } => buffers::give_back(bytes),
            Arrival::Message(Message::Opened { handle }, _) => self.close_handle(handle),
            Arrival::Message(..) => {}
        }
    }

    /// Ends the connection; the first reason counts. Wakes everybody who waits.
    pub fn end(&self, error: Error) {
        self.end.lock().get_or_insert(error);
        self.broken.store(true, Ordering::Release);
        self.slots.close();
        self.waiting.lock().clear();
    }

    pub fn ended(&self) -> Error {
        match &*self.end.lock() {
            Some(error) => Error::new(ErrorKind::Unavailable, format!("the connection ended: {error}")),
            None => Error::new(ErrorKind::Unavailable, "the connection ended"),
        }
    }
}

/// A frame of which only a part was sent ends the connection: what followed would be taken for its rest.
struct Whole<'c> {
    shared: &'c Shared,
    sent: bool,
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if !self.sent {
            self.shared.end(Error::new(ErrorKind::Unavailable, "a request could not be sent as a whole"));
        }
    }
}

/// One request.
pub struct Request<'c> {
    shared: &'c Arc<Shared>,
    number: u32,
    arrivals: mpsc::Receiver<Arrival>,
    /// Bytes that were not consumed yet.
    outstanding: u64,
    /// Whether the worker may have heard of it.
    sent: bool,
}

impl<'c> Request<'c> {
    /// A request that is answered by so many bytes at most; nothing is sent yet.
    pub fn start(shared: &'c Arc<Shared>, slot: Option<OwnedSemaphorePermit>, bytes: u64) -> Self {
        let frames = FRAMES + usize::try_from(bytes / FRAME_WORTH).unwrap_or(0);
        let (sender, arrivals) = mpsc::channel(frames);
        let mut waiting = shared.waiting.lock();
        let mut number = NOBODY;
        while number == NOBODY || waiting.contains_key(&number) {
            number = shared.next.fetch_add(1, Ordering::Relaxed);
        }
        waiting.insert(number, Waiting { sender: Some(sender), left: bytes, slot });
        drop(waiting);
        shared.outstanding.fetch_add(bytes, Ordering::Relaxed);
        Self { shared, number, arrivals, outstanding: bytes, sent: false }
    }

    /// Sends it.
    pub async fn send(&mut self, message: &Message) -> Result<()> {
        self.shared.send(message, self.number, &mut self.sent).await
    }

    /// Takes back a buffer that was handed on.
    pub fn consumed(&mut self, bytes: Vec<u8>) {
        let count = (bytes.len() as u64).min(self.outstanding);
        self.outstanding -= count;
        self.shared.outstanding.fetch_sub(count, Ordering::Relaxed);
        buffers::give_back(bytes);
    }

    /// The next answer. Fails when the connection ends, when the worker stands still, or when there is no progress for
    /// `patience` though it is alive.
    pub async fn next(&mut self, patience: Duration) -> Result<Arrival> {
        let begun = Instant::now();
        loop {
            match tokio::time::timeout(SILENCE, self.arrivals.recv()).await {
                Ok(Some(arrival)) => return Ok(arrival),
                Ok(None) => return Err(self.shared.ended()),
                Err(_) => {}
            }
            if begun.elapsed() > patience {
                return Err(Error::new(ErrorKind::TimedOut, format!("the worker gave nothing for {patience:?}")));
            }
            self.shared.look().await?;
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        {
            let mut waiting = self.shared.waiting.lock();
            match waiting.get_mut(&self.number) {
                Some(answer) if answer.slot.is_some() && self.sent => answer.sender = None,
                Some(_) => drop(waiting.remove(&self.number)),
                None => {}
            }
        }
        self.shared.outstanding.fetch_sub(self.outstanding, Ordering::Relaxed);
        while let Ok(arrival) = self.arrivals.try_recv() {
            self.shared.drop_arrival(arrival);
        }
    }
}

/// Receives until the worker ends the connection, or breaks the protocol.
pub async fn receive(shared: &Arc<Shared>, mut reader: FrameReader) -> Result<()> {
    while let Some(header) = reader.header().await? {
        shared.hear();
        if header.kind != Kind::Data {
            let message = reader.message(&header).await?;
            let descriptor = (message == Message::Exported).then(|| reader.descriptor()).flatten();
            shared.deliver(header.request, Arrival::Message(message, descriptor), true)?;
            continue;
        }
        let prefix = reader.data_prefix(&header).await?;
        let length = header.length as usize - DATA_PREFIX;
        shared.expect(header.request, length as u64)?;
        let mut bytes = buffers::take(length);
        for piece in bytes.chunks_mut(PIECE) {
            reader.fill(piece).await?;
            shared.hear();
        }
        if crc32c::crc32c(&bytes) != prefix.checksum {
            buffers::give_back(bytes);
            let error = Error::new(ErrorKind::Corrupt, "bytes changed on the way from the worker");
            shared.spoil(header.request, &error, prefix.last)?;
            continue;
        }
        let arrival = Arrival::Data { offset: prefix.offset, last: prefix.last, bytes };
        shared.deliver(header.request, arrival, prefix.last)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::Future, task::Poll};

    fn shared() -> (Arc<Shared>, std::os::unix::net::UnixStream) {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        let shared = Arc::new(Shared::over(Arc::new(Socket::domain(one, Duration::from_secs(30)).unwrap())));
        shared.slots.add_permits(1);
        (shared, two)
    }

    fn data(length: usize) -> Arrival {
        Arrival::Data { offset: 0, last: false, bytes: vec![0; length] }
    }

    #[tokio::test]
    async fn a_request_that_was_not_sent_gives_its_slot_back() {
        let (shared, _peer) = shared();
        let others = shared.sending.lock().await;
        let slot = shared.slots.clone().acquire_owned().await.unwrap();
        let mut request = Request::start(&shared, Some(slot), 10);
        {
            let mut send = std::pin::pin!(request.send(&Message::Read { handle: 1, offset: 0, length: 10 }));
            let polled = std::future::poll_fn(|context| Poll::Ready(send.as_mut().poll(context).is_pending())).await;
            assert!(polled, "another one sends");
        }
        drop(request);
        drop(others);
        assert_eq!((shared.slots.available_permits(), shared.waiting.lock().len()), (1, 0));
        assert!(!shared.is_broken() && shared.outstanding() == 0);
    }

    #[tokio::test]
    async fn a_request_that_was_sent_keeps_its_slot_until_it_is_answered() {
        let (shared, _peer) = shared();
        let slot = shared.slots.clone().acquire_owned().await.unwrap();
        let mut request = Request::start(&shared, Some(slot), 10);
        let number = request.number;
        request.send(&Message::Read { handle: 1, offset: 0, length: 10 }).await.unwrap();
        drop(request);
        assert_eq!(shared.slots.available_permits(), 0);
        shared.expect(number, 10).unwrap();
        shared.deliver(number, data(10), true).unwrap();
        assert_eq!((shared.slots.available_permits(), shared.waiting.lock().len()), (1, 0));
    }

    #[tokio::test]
    async fn what_arrives_is_bounded_by_what_was_asked() {
        let (shared, _peer) = shared();
        let request = Request::start(&shared, None, 1000);
        let number = request.number;
        assert!(shared.expect(number + 1, 1).is_err(), "nobody asked");
        assert!(shared.expect(number, 0).is_err(), "no bytes are no progress");
        shared.expect(number, 400).unwrap();
        shared.expect(number, 600).unwrap();
        assert!(shared.expect(number, 1).is_err(), "one byte too many");
        let taken = (0..1000).take_while(|_| shared.deliver(number, data(1), false).is_ok()).count();
        assert_eq!(taken, FRAMES, "a thousand frames for a thousand bytes are too many while nobody takes them");
        shared.deliver(NOBODY, Arrival::Message(Message::Pong, None), true).unwrap();
    }
}
