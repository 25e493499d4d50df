//! What this client knows of the cluster: the workers on the ring with a link to each, and the mounts.
//!
//! It follows etcd in the background. When etcd is away everything goes on with what was last seen.

use super::{ClusterOptions, changes::Hub, link::Link};
use crate::{
    membership::{Following, Membership, MembershipView},
    mount_table::{MountEntry, MountTableStore},
    ring::{Ring, WorkerIdentity},
};
use common::{Result, conf::keys::cluster::RingProvider};
use parking_lot::RwLock;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::AbortHandle};

/// How often the mount table is looked at; a change is seen within the 5 s that users are promised.
const MOUNTS_EVERY: Duration = Duration::from_secs(2);

/// Workers and ring of one moment.
pub struct Workers {
    ring: Ring,
    links: HashMap<WorkerIdentity, Arc<Link>>,
}

impl Workers {
    /// Up to `count` workers for `key` in the order of the ring.
    pub fn of(&self, key: &[u8], count: usize) -> Vec<Arc<Link>> {
        self.ring.lookup(key, count).iter().filter_map(|identity| self.links.get(identity)).cloned().collect()
    }

    /// Whether a worker of `before` told of changes that is no more, or elsewhere: what it answered is watched by nobody.
    fn lost_a_subscription(&self, before: &Workers) -> bool {
        let stays = |identity, link| self.links.get(identity).is_some_and(|now| Arc::ptr_eq(now, link));
        before.links.iter().any(|(identity, link)| link.is_subscribed() && !stays(identity, link))
    }

    /// The worker of this identity.
    pub fn get(&self, identity: &WorkerIdentity) -> Option<&Arc<Link>> {
        self.links.get(identity)
    }

    /// All of them, in no order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Link>> {
        self.links.values()
    }

    /// Whether one of them is on this host, or may be.
    pub fn may_be_here(&self) -> bool {
        self.links.values().any(|link| link.may_be_here())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.links.len()
    }
}

/// The mounts by mount point (`/name`).
pub type Mounts = BTreeMap<String, MountEntry>;

/// The cluster.
pub struct View {
    workers: RwLock<Arc<Workers>>,
    mounts: watch::Sender<Arc<Mounts>>,
    options: ClusterOptions,
    hub: Arc<Hub>,
    tasks: Vec<AbortHandle>,
}

impl View {
    /// Reads membership and mount table, and follows both from then on.
    pub async fn follow(
        membership: &Membership,
        mounts: MountTableStore,
        options: ClusterOptions,
    ) -> Result<Arc<Self>> {
        let following = membership.follow().await?;
        let first = mounts.read().await?.mounts;
        let hub = Arc::new(Hub::default());
        let workers = build(&following.view(), &options, &hub, None);
        Ok(Arc::new_cyclic(|weak: &std::sync::Weak<Self>| {
            let tasks = vec![
                tokio::spawn(follow_workers(weak.clone(), following)).abort_handle(),
                tokio::spawn(follow_mounts(weak.clone(), mounts)).abort_handle(),
            ];
            let mounts = watch::Sender::new(Arc::new(first));
            Self { workers: RwLock::new(Arc::new(workers)), mounts, options, hub, tasks }
        }))
    }

    /// The workers of now.
    pub fn workers(&self) -> Arc<Workers> {
        self.workers.read().clone()
    }

    /// The mounts of now.
    pub fn mounts(&self) -> Arc<Mounts> {
        self.mounts.borrow().clone()
    }

    /// Wakes at each change of the mounts.
    pub fn mounts_changing(&self) -> watch::Receiver<Arc<Mounts>> {
        self.mounts.subscribe()
    }

    /// Where changes that workers report are heard of.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }
}

impl Drop for View {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

fn build(view: &MembershipView, options: &ClusterOptions, hub: &Arc<Hub>, before: Option<&Workers>) -> Workers {
    let identities = view.identities(options.dynamic_ring);
    let mut links = HashMap::with_capacity(identities.len());
    for identity in &identities {
        let Some(state) = view.workers.get(identity) else { continue };
        // A worker that stayed where it was keeps its connections and its breaker.
        let kept = before.and_then(|before| before.links.get(identity)).filter(|link| *link.entry() == state.entry);
        let link = match kept {
            Some(link) => Ok(link.clone()),
            None => Link::telling(state.entry.clone(), options.link.clone(), hub.clone()),
        };
        match link {
            Ok(link) => {
                links.insert(*identity, link);
            }
            Err(error) => tracing::warn!(worker = %identity, %error, "left out"),
        }
    }
    Workers { ring: ring_of(view, &identities, options.provider, options.virtual_nodes), links }
}

/// The ring of these workers of a view.
pub fn ring_of(
    view: &MembershipView,
    identities: &[WorkerIdentity],
    provider: RingProvider,
    virtual_nodes: u32,
) -> Ring {
    match provider {
        RingProvider::Default => Ring::uniform(identities, virtual_nodes),
        RingProvider::Capacity => Ring::by_capacity(&capacities(view, identities), virtual_nodes),
    }
}

/// The capacities of these workers; one that published none (an older version) counts as the average of the others.
fn capacities(view: &MembershipView, identities: &[WorkerIdentity]) -> Vec<(WorkerIdentity, u64)> {
    let of = |identity: &WorkerIdentity| view.workers.get(identity).and_then(|state| state.capacity);
    let known: Vec<u64> = identities.iter().filter_map(of).collect();
    let sum: u128 = known.iter().copied().map(u128::from).sum();
    let average = u64::try_from(sum / known.len().max(1) as u128).unwrap_or(u64::MAX);
    identities.iter().map(|identity| (*identity, of(identity).unwrap_or(average))).collect()
}

async fn follow_workers(view: std::sync::Weak<View>, following: Following) {
    let mut receiver = following.receiver();
    while receiver.changed().await.is_ok() {
        let seen = receiver.borrow_and_update().clone();
        let Some(view) = view.upgrade() else { return };
        let (before, options, hub) = (view.workers(), view.options.clone(), view.hub.clone());
        // A ring of a thousand workers takes a good part of a second: not on a thread that others need.
        let old = before.clone();
        let built = tokio::task::spawn_blocking(move || build(&seen, &options, &hub, Some(&old)));
        let Ok(after) = built.await else { continue };
        tracing::info!(workers = after.count(), "the workers of the cluster changed");
        let missed = after.lost_a_subscription(&before);
        *view.workers.write() = Arc::new(after);
        if missed {
            view.hub.missed();
        }
    }
}

async fn follow_mounts(view: std::sync::Weak<View>, mounts: MountTableStore) {
    let mut away = false;
    loop {
        tokio::time::sleep(MOUNTS_EVERY).await;
        let read = mounts.read().await;
        let Some(view) = view.upgrade() else { return };
        match read {
            Ok(table) => {
                away = false;
                if *view.mounts() != table.mounts {
                    tracing::info!(mounts = table.mounts.len(), "the mount table changed");
                    view.mounts.send_replace(Arc::new(table.mounts));
                }
            }
            Err(error) if !away => {
                away = true;
                tracing::warn!(%error, "the mount table is not followed for the moment; the last known one stays");
            }
            Err(_) => {}
        }
    }
}
