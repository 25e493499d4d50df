//! A worker's own registration: made once, kept alive, made again when etcd lost it.

use super::{Membership, WorkerEntry, WorkerNetAddress};
use common::{Error, ErrorKind, Result};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How a worker registers.
#[derive(Debug, Clone)]
pub struct RegistrationOptions {
    /// After what silence it counts as gone (whole seconds; 2 s at least).
    pub failure_timeout: Duration,
    /// Whether another address under a known identity is right (on Kubernetes pods move).
    pub may_move: bool,
    /// Where this very worker was before; the process that served there is known to be dead.
    pub former: Vec<WorkerNetAddress>,
    /// The bytes that its cache may hold.
    pub capacity: u64,
}

/// A registration that is kept alive; [`shut_down`](Self::shut_down) ends it at once, a drop lets the lease run out.
#[derive(Debug)]
pub struct Registration {
    membership: Membership,
    lease: tokio::sync::watch::Receiver<i64>,
    keeper: JoinHandle<()>,
}

impl Registration {
    /// Stops being live at once; the worker stays registered.
    pub async fn shut_down(self) -> Result<()> {
        self.keeper.abort();
        let lease = *self.lease.borrow();
        self.membership.etcd.call("end the lease", async |client| client.lease_revoke(lease).await).await?;
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

pub(super) async fn register(
    membership: Membership,
    entry: WorkerEntry,
    options: RegistrationOptions,
) -> Result<Registration> {
    let lease = enter(&membership, &entry, &options).await?;
    let (sender, receiver) = tokio::sync::watch::channel(lease);
    let keeper = tokio::spawn(keep(membership.clone(), entry, options, sender));
    Ok(Registration { membership, lease: receiver, keeper })
}

/// Writes both keys, or says who has the identity.
async fn enter(membership: &Membership, entry: &WorkerEntry, options: &RegistrationOptions) -> Result<i64> {
    let etcd = &membership.etcd;
    let (live_key, registered_key) = (membership.live_key(&entry.identity), membership.registered_key(&entry.identity));
    let seconds = i64::try_from(options.failure_timeout.as_secs()).unwrap_or(i64::MAX).max(2);
    let granted = etcd.call("get a lease", async |client| client.lease_grant(seconds, None).await).await?;
    let lease = granted.id();
    let (value, capacity_key) = (entry.to_json(), membership.capacity_key(&entry.identity));
    // Read, judge, write what was judged: another worker in between makes the transaction fail, and it is judged again.
    for _ in 0..5 {
        let look =
            Txn::new().and_then([TxnOp::get(live_key.as_str(), None), TxnOp::get(registered_key.as_str(), None)]);
        let seen = etcd.call("read the worker's keys", async |client| client.txn(look).await).await?;
        let mut revisions = [0; 2];
        for (at, response) in seen.op_responses().iter().enumerate().take(2) {
            let TxnOpResponse::Get(found) = response else { continue };
            let Some(pair) = found.kvs().first() else { continue };
            revisions[at] = pair.mod_revision();
            let other = WorkerEntry::from_json(pair.value())
                .ok()
                .filter(|other| other.address != entry.address && !options.former.contains(&other.address));
            if let Some(other) = other
                && (at == 0 || !options.may_move)
            {
                abandon(membership, lease).await;
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!(
                        "{} is {} at {}: two workers cannot have one identity; give this one an identity file of its own \
                         (alluxio.worker.identity.uuid.file.path), or {}",
                        entry.identity,
                        if at == 0 { "live" } else { "registered" },
                        other.shown(),
                        if at == 0 {
                            "stop the other"
                        } else {
                            "remove the old registration (alluxio process remove-worker)"
                        },
                    ),
                ));
            }
        }
        let write = Txn::new()
            .when([
                Compare::mod_revision(live_key.as_str(), CompareOp::Equal, revisions[0]),
                Compare::mod_revision(registered_key.as_str(), CompareOp::Equal, revisions[1]),
            ])
            .and_then([
                TxnOp::put(live_key.as_str(), value.as_str(), Some(PutOptions::new().with_lease(lease))),
                TxnOp::put(registered_key.as_str(), value.as_str(), None),
                TxnOp::put(capacity_key.as_str(), options.capacity.to_string(), None),
            ]);
        if etcd.call("register the worker", async |client| client.txn(write).await).await?.succeeded() {
            return Ok(lease);
        }
    }
    abandon(membership, lease).await;
    Err(Error::new(ErrorKind::Busy, format!("{}: somebody else registers it over and over", entry.identity)))
}

async fn abandon(membership: &Membership, lease: i64) {
    if let Err(error) = membership.etcd.call("end the lease", async |client| client.lease_revoke(lease).await).await {
        tracing::debug!(%error, "an unused lease runs out by itself");
    }
}

/// Renews the lease at a third of its time, and registers again once it is lost.
async fn keep(
    membership: Membership,
    entry: WorkerEntry,
    mut options: RegistrationOptions,
    lease: tokio::sync::watch::Sender<i64>,
) {
    // From now on it is at its own address and at no other.
    options.former.clear();
    let pause = (options.failure_timeout / 3).max(Duration::from_millis(500));
    loop {
        tokio::time::sleep(pause).await;
        let id = *lease.borrow();
        match renew(&membership, id).await {
            Ok(true) => {}
            Ok(false) => match enter(&membership, &entry, &options).await {
                Ok(id) => {
                    tracing::info!(worker = %entry.identity, "registered again");
                    lease.send_replace(id);
                }
                Err(error) => tracing::warn!(worker = %entry.identity, %error, "not registered; tried again soon"),
            },
            Err(error) => {
                tracing::warn!(worker = %entry.identity, %error, "the lease is not renewed; tried again soon")
            }
        }
    }
}

/// Whether the lease still lived.
async fn renew(membership: &Membership, lease: i64) -> Result<bool> {
    membership
        .etcd
        .call("renew the lease", async |client| {
            // Opening the stream renews once, and fails with this very error when the lease is gone.
            match client.lease_keep_alive(lease).await {
                Ok((_, _)) => Ok(true),
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        })
        .await
}
