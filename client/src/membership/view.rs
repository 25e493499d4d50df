//! The workers as one moment had them, and the task that follows etcd's changes.

use super::{Membership, WorkerEntry};
use crate::ring::WorkerIdentity;
use common::{Error, ErrorKind, Result};
use etcd_client::{EventType, TxnOpResponse, TxnResponse, WatchOptions, WatchStream};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::watch, task::AbortHandle};

/// A worker in a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerState {
    /// Who and where.
    pub entry: WorkerEntry,
    /// Whether its lease lives.
    pub live: bool,
    /// The bytes that its cache may hold, if it published them.
    pub capacity: Option<u64>,
}

/// All workers of a cluster at one revision of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MembershipView {
    /// The workers by identity, live or only registered.
    pub workers: BTreeMap<WorkerIdentity, WorkerState>,
    revision: i64,
}

impl MembershipView {
    /// The identities for the ring: those that live, or (a static ring) all registered ones.
    pub fn identities(&self, dynamic: bool) -> Vec<WorkerIdentity> {
        self.workers.iter().filter(|(_, state)| state.live || !dynamic).map(|(identity, _)| *identity).collect()
    }
}

/// The view that a successful read of registered workers, live ones and capacities, in this order, gives.
pub(super) fn of_answer(answer: &TxnResponse) -> Result<MembershipView> {
    let revision = answer.header().map_or(0, |header| header.revision());
    let mut view = MembershipView { revision, ..Default::default() };
    for (at, response) in answer.op_responses().iter().enumerate() {
        let TxnOpResponse::Get(found) = response else {
            return Err(Error::new(ErrorKind::Corrupt, "etcd answered something else than was asked"));
        };
        if at == 2 {
            for pair in found.kvs() {
                let name = pair.key_str().ok().and_then(|key| key.rsplit('/').next()).and_then(WorkerIdentity::parse);
                let capacity = pair.value_str().ok().and_then(|text| text.parse().ok());
                if let Some(state) = name.and_then(|identity| view.workers.get_mut(&identity)) {
                    state.capacity = capacity;
                }
            }
            continue;
        }
        let live = at == 1;
        for pair in found.kvs() {
            match WorkerEntry::from_json(pair.value()) {
                // What a live worker says of its address now goes before what it registered once.
                Ok(entry) => {
                    view.workers.insert(entry.identity, WorkerState { entry, live, capacity: None });
                }
                Err(error) => {
                    tracing::warn!(key = %pair.key_str().unwrap_or("?"), %error, "a worker's entry in etcd is left out");
                }
            }
        }
    }
    Ok(view)
}

/// A view that is kept up to date; stops when dropped.
#[derive(Debug)]
pub struct Following {
    receiver: watch::Receiver<Arc<MembershipView>>,
    task: AbortHandle,
}

impl Following {
    /// The latest view.
    pub fn view(&self) -> Arc<MembershipView> {
        self.receiver.borrow().clone()
    }

    /// Wakes at each change.
    pub fn receiver(&self) -> watch::Receiver<Arc<MembershipView>> {
        self.receiver.clone()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the view once, then follows it.
pub(super) async fn follow(membership: Membership) -> Result<Following> {
    let first = membership.view().await?;
    let (sender, receiver) = watch::channel(Arc::new(first));
    let task = tokio::spawn(keep_following(membership, sender)).abort_handle();
    Ok(Following { receiver, task })
}

async fn keep_following(membership: Membership, sender: watch::Sender<Arc<MembershipView>>) {
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let mut pause = Duration::from_millis(100);
    loop {
        match follow_until_broken(&membership, &sender).await {
            Ok(()) => pause = Duration::from_millis(100),
            Err(error) => {
                tracing::warn!(%error, "the workers are not followed for the moment; the last known ones stay");
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        tokio::time::sleep(pause).await;
        // What happened meanwhile is read anew, as the history may have been compacted.
        match membership.view().await {
            Ok(view) => publish(&sender, view),
            Err(error) => tracing::debug!(%error, "etcd is still away"),
        }
    }
}

/// Publishes views until a watch ends. A watch tells that something changed; what it is now is read in one transaction.
async fn follow_until_broken(membership: &Membership, sender: &watch::Sender<Arc<MembershipView>>) -> Result<()> {
    let from = sender.borrow().revision + 1;
    let mut live = watch_prefix(membership, &membership.live, from).await?;
    let mut registered = watch_prefix(membership, &membership.registered, from).await?;
    let mut capacities = watch_prefix(membership, &membership.capacities, from).await?;
    loop {
        let answer = tokio::select! {
            answer = live.message() => answer,
            answer = registered.message() => answer,
            answer = capacities.message() => answer,
        };
        let answer = answer
            .map_err(|error| Error::with_source(ErrorKind::Unavailable, format!("the watch ended: {error}"), error))?;
        match answer {
            Some(answer) if answer.canceled() => return Ok(()),
            Some(answer) => {
                let any = answer
                    .events()
                    .iter()
                    .any(|event| matches!(event.event_type(), EventType::Put | EventType::Delete));
                if any {
                    publish(sender, membership.view().await?);
                }
            }
            None => return Ok(()),
        }
    }
}

async fn watch_prefix(membership: &Membership, prefix: &str, from: i64) -> Result<WatchStream> {
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    membership.etcd.call("watch the workers", async |client| client.watch(prefix, Some(options)).await).await
}

fn publish(sender: &watch::Sender<Arc<MembershipView>>, view: MembershipView) {
    sender.send_if_modified(|current| {
        if view.revision < current.revision || view.workers == current.workers {
            return false;
        }
        *current = Arc::new(view);
        true
    });
}
