//! Hears of changes that were made through the cluster, from every worker that this client asks for metadata.
//!
//! What a worker answers enters caches above: attributes, listings, the kernel's entries. So the client subscribes to a
//! worker's changes before it asks it for the first time, and tells whoever caches. What a worker may have told while the
//! subscription was broken, or after it left the ring, is unknown; then everything counts as changed.
//!
//! Invariants: a worker without a subscription is asked all the same (ages bound what is not heard of); one task for each
//! worker that is asked, and none where nobody listens.

use crate::membership::WorkerEntry;
use common::rpc::worker::{Change, SubscribeRequest, worker_client::WorkerClient};
use parking_lot::RwLock;
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::task::AbortHandle;
use tonic::transport::Channel;

/// The longest wait for a subscription before the first question goes without.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pauses between attempts to subscribe again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These paths of a storage changed.
    Change(Change),
    /// Anything may have changed.
    Anything,
}

type Listener = Box<dyn Fn(&Heard) + Send + Sync>;

/// Passes on what is heard from all workers.
#[derive(Default)]
pub struct Hub {
    listeners: RwLock<Vec<Listener>>,
    wanted: AtomicBool,
}

impl Hub {
    /// Has `listener` told of every change from now on. It must not wait.
    pub fn listen(&self, listener: Listener) {
        self.listeners.write().push(listener);
        self.wanted.store(true, Ordering::Release);
    }

    /// Changes may have been missed.
    pub(super) fn missed(&self) {
        self.tell(&Heard::Anything);
    }

    fn tell(&self, heard: &Heard) {
        for listener in self.listeners.read().iter() {
            listener(heard);
        }
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hub({} listeners)", self.listeners.read().len())
    }
}

/// The subscription to one worker; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    task: OnceLock<AbortHandle>,
    starting: tokio::sync::Mutex<()>,
}

impl Subscription {
    pub fn new(hub: Arc<Hub>) -> Self {
        Self { hub, task: OnceLock::new(), starting: tokio::sync::Mutex::new(()) }
    }

    /// Whether it was begun.
    pub fn is_begun(&self) -> bool {
        self.task.get().is_some()
    }

    /// Subscribes, unless that was done. Returns once it holds, or after a moment without.
    pub async fn begin(&self, client: &WorkerClient<Channel>, worker: &WorkerEntry) {
        if self.task.get().is_some() || !self.hub.wanted.load(Ordering::Acquire) {
            return;
        }
        let _turn = self.starting.lock().await;
        if self.task.get().is_some() {
            return;
        }
        let (ready, begun) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(follow(self.hub.clone(), client.clone(), worker.shown(), ready));
        // Only the holder of the lock sets it.
        let _ = self.task.set(task.abort_handle());
        let _ = tokio::time::timeout(PATIENCE, begun).await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

async fn follow(
    hub: Arc<Hub>,
    mut client: WorkerClient<Channel>,
    worker: String,
    ready: tokio::sync::oneshot::Sender<()>,
) {
    let mut ready = Some(ready);
    let mut pause = FIRST_PAUSE;
    loop {
        match client.subscribe(SubscribeRequest { storage: String::new() }).await {
            Ok(stream) => {
                pause = FIRST_PAUSE;
                // Nobody waits any more when it took too long: what was answered meanwhile is not trusted.
                let in_time = ready.take().is_some_and(|ready| ready.send(()).is_ok());
                if !in_time {
                    hub.missed();
                }
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(change)) => hub.tell(&Heard::Change(change)),
                        Ok(None) => break,
                        Err(status) => {
                            tracing::debug!(%worker, reason = status.message(), "the subscription ended");
                            break;
                        }
                    }
                }
            }
            Err(status) => {
                tracing::debug!(%worker, reason = status.message(), "not subscribed");
                // Whoever waits goes on; the first success is then taken for a gap.
                drop(ready.take());
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    #[test]
    fn all_listeners_hear_everything() {
        let hub = Hub::default();
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        for _ in 0..2 {
            let heard = heard.clone();
            hub.listen(Box::new(move |what| heard.lock().push(what.clone())));
        }
        hub.tell(&Heard::Anything);
        assert_eq!(*heard.lock(), [Heard::Anything, Heard::Anything]);
    }
}
