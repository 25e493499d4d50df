//! What changed through the cluster, or behind its back and was noticed: told to everybody who may have cached it.
//!
//! Whoever changes files through this worker calls [`Mounted::published`](super::namespace::Mounted::published), once the
//! storage has the change. The worker's own metadata is forgotten before that call returns. Then, in batches a few
//! milliseconds long, every subscriber is told, and so are the workers that own the paths and their directories, which
//! forget what they know and tell their subscribers in turn. A change that could not be passed on, since a worker is away
//! or far behind, is found out by age, as before.
//!
//! Invariants: publishing never waits; what is pending is bounded: beyond that a whole storage counts as changed; what a
//! worker was told by another one goes to its subscribers and no further.

use client::{
    cluster::{Link, View},
    ring::WorkerIdentity,
};
use common::{Result, UfsPath, UfsUri, rpc::worker::RefreshRequest};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore, broadcast},
};

/// How long changes are gathered before they are told.
const GATHER: Duration = Duration::from_millis(5);
/// Paths in one message.
const BATCH: usize = 1000;
/// Paths of one storage that may be pending; beyond that all of it counts as changed.
const PENDING: usize = 64 << 10;
/// Messages that a subscriber may be behind.
const BEHIND: usize = 1024;
/// Messages to other workers that may be under way.
const RELAYS: usize = 64;
/// Workers that may have been asked for a path: its owner, and the next one where the owner did not answer.
const OWNERS: usize = 2;

/// Paths whose files changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The storage's URI.
    pub storage: Arc<str>,
    /// The paths below it.
    pub paths: Arc<[UfsPath]>,
    /// Whether everything below the paths may have changed too.
    pub below: bool,
}

/// The other workers.
struct Peers {
    view: Arc<View>,
    own: WorkerIdentity,
}

/// What waits to be told: of which storage, with what is below or not, to be passed on or not.
type Pending = HashMap<(Arc<str>, bool, bool), HashSet<UfsPath>>;

/// See the module.
pub struct Changes {
    pending: Mutex<Pending>,
    arrived: Notify,
    out: broadcast::Sender<Changed>,
    peers: OnceLock<Peers>,
    relays: Arc<Semaphore>,
}

impl Changes {
    /// Tells from a task on `handle` for as long as somebody has it.
    pub fn new(handle: &Handle) -> Arc<Self> {
        let changes = Arc::new(Self {
            pending: Mutex::default(),
            arrived: Notify::new(),
            out: broadcast::channel(BEHIND).0,
            peers: OnceLock::new(),
            relays: Arc::new(Semaphore::new(RELAYS)),
        });
        handle.spawn(tell(Arc::downgrade(&changes)));
        changes
    }

    /// Has other workers told too, this one being `own`.
    pub fn relay_to(&self, view: Arc<View>, own: WorkerIdentity) {
        // A second call would be a second cluster, which a worker does not have.
        let _ = self.peers.set(Peers { view, own });
    }

    /// What is told from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.out.subscribe()
    }

    /// Has these paths told. `relay`: other workers are told too.
    pub fn add(&self, storage: &Arc<str>, paths: &[UfsPath], below: bool, relay: bool) {
        {
            let mut pending = self.pending.lock();
            let waiting = pending.entry((storage.clone(), below, relay)).or_default();
            waiting.extend(paths.iter().cloned());
            if waiting.len() > PENDING {
                waiting.clear();
                pending.entry((storage.clone(), true, relay)).or_default().insert(UfsPath::root());
            }
        }
        self.arrived.notify_one();
    }

    fn flush(&self) {
        let pending = std::mem::take(&mut *self.pending.lock());
        for ((storage, below, relay), paths) in pending {
            let paths: Vec<UfsPath> = paths.into_iter().collect();
            for batch in paths.chunks(BATCH) {
                // Nobody may have subscribed.
                let _ = self.out.send(Changed { storage: storage.clone(), paths: batch.into(), below });
            }
            if relay && let Err(error) = self.relay(&storage, &paths, below) {
                tracing::warn!(%error, "changes are not passed on to other workers");
            }
        }
    }

    fn relay(&self, storage: &Arc<str>, paths: &[UfsPath], below: bool) -> Result<()> {
        let Some(peers) = self.peers.get() else { return Ok(()) };
        let workers = peers.view.workers();
        let mut of_worker: HashMap<WorkerIdentity, (Arc<Link>, Vec<&UfsPath>)> = HashMap::new();
        let mut tell = |link: &Arc<Link>, path| {
            let identity = link.entry().identity;
            if identity != peers.own && link.is_up() {
                of_worker.entry(identity).or_insert_with(|| (link.clone(), Vec::new())).1.push(path);
            }
        };
        let uri = UfsUri::parse(storage)?;
        for path in paths {
            if below {
                // What lies below belongs to any of them.
                workers.all().for_each(|link| tell(link, path));
                continue;
            }
            for owned in [Some(path.clone()), path.parent()].into_iter().flatten() {
                workers.of(&uri.full_path(&owned), OWNERS).iter().for_each(|link| tell(link, path));
            }
        }
        for (link, mut paths) in of_worker.into_values() {
            // A path and its directory may have the same owner.
            paths.dedup();
            for batch in paths.chunks(BATCH) {
                let Ok(permit) = self.relays.clone().try_acquire_owned() else {
                    tracing::debug!(worker = %link.entry().identity, "too far behind to be told of changes");
                    break;
                };
                let request = RefreshRequest {
                    storage: storage.to_string(),
                    paths: batch.iter().map(|path| path.as_bytes().to_vec()).collect(),
                    below,
                    relayed: true,
                };
                let link = link.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    if let Err(error) = link.call(async move |client| client.refresh(request).await).await {
                        tracing::debug!(worker = %link.entry().identity, %error, "not told of changes");
                    }
                });
            }
        }
        Ok(())
    }
}

async fn tell(changes: Weak<Changes>) {
    /// How often it looks whether anybody still has it.
    const LOOK: Duration = Duration::from_secs(5);
    while let Some(held) = changes.upgrade() {
        if tokio::time::timeout(LOOK, held.arrived.notified()).await.is_ok() {
            tokio::time::sleep(GATHER).await;
            held.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> UfsPath {
        UfsPath::parse(text).unwrap()
    }

    #[tokio::test]
    async fn changes_are_told_together_and_once() {
        let changes = Changes::new(&Handle::current());
        let mut heard = changes.subscribe();
        let storage: Arc<str> = "s3://b".into();
        for _ in 0..3 {
            changes.add(&storage, &[path("a"), path("b")], false, true);
        }
        let told = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await.unwrap().unwrap();
        let mut paths = told.paths.to_vec();
        paths.sort();
        assert_eq!((paths, told.below), (vec![path("a"), path("b")], false));
    }

    #[tokio::test]
    async fn too_many_changes_are_one_of_everything() {
        let changes = Changes::new(&Handle::current());
        let mut heard = changes.subscribe();
        let storage: Arc<str> = "s3://b".into();
        let many: Vec<UfsPath> = (0..PENDING + 1).map(|number| path(&number.to_string())).collect();
        changes.add(&storage, &many, false, false);
        let told = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await.unwrap().unwrap();
        assert_eq!((&*told.paths, told.below), (&[UfsPath::root()][..], true));
    }
}
