//! Who the workers of a cluster are, as etcd has them.
//!
//! Two keys for each worker (reference: alluxio-interfaces.md, "Membership in etcd"): a leased one that says that it
//! lives, and a permanent one that says that it belongs to the cluster. Other clients parse every value below the first
//! prefix, so nothing else is ever written there: what else is known of a worker, its capacity, has a prefix of its own.
//!
//! Invariants: a view is replaced as a whole, never half; when etcd is away the last view stays; two workers with one
//! identity are never live at once.

mod entry;
mod registration;
mod view;

pub use entry::{WorkerEntry, WorkerNetAddress};
pub use registration::{Registration, RegistrationOptions};
pub use view::{Following, MembershipView, WorkerState};

use crate::{etcd::Etcd, ring::WorkerIdentity};
use common::{Error, ErrorKind, Result};
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};

/// Where the permanent registrations of all clusters are.
const REGISTERED: &str = "/DHT/";
/// Registrations that are looked at in search of the names of clusters.
const LOOK: i64 = 10_000;

/// What to say of a cluster in which nobody ever registered: its name is wrong, most likely, and these are the right ones.
pub async fn unknown_cluster(etcd: &Etcd, name: &str) -> Error {
    let known = match clusters(etcd).await {
        Ok(names) if names.is_empty() => "no cluster is there yet: start a worker first".to_owned(),
        Ok(names) => format!("there are {}", names.join(", ")),
        Err(error) => error.to_string(),
    };
    Error::new(
        ErrorKind::NotFound,
        format!("no worker has ever registered in the cluster {name:?} (alluxio.cluster.name); {known}"),
    )
}

/// The names of the clusters that have registered workers.
async fn clusters(etcd: &Etcd) -> Result<Vec<String>> {
    let options = GetOptions::new().with_prefix().with_keys_only().with_limit(LOOK);
    let answer = etcd.call("read the clusters", async |client| client.get(REGISTERED, Some(options)).await).await?;
    let mut names = std::collections::BTreeSet::new();
    for pair in answer.kvs() {
        let name = pair.key_str().ok().and_then(|key| key.strip_prefix(REGISTERED)?.split_once("/AUTHORIZED/"));
        names.extend(name.map(|(name, _)| name.to_owned()));
    }
    Ok(names.into_iter().collect())
}

/// The membership of one cluster.
#[derive(Debug, Clone)]
pub struct Membership {
    etcd: Etcd,
    live: String,
    registered: String,
    capacities: String,
}

impl Membership {
    /// That of the cluster with this name.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that cannot be part of a key.
    pub fn new(etcd: Etcd, cluster: &str) -> Result<Self> {
        if cluster.is_empty() || cluster.contains('/') {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("alluxio.cluster.name={cluster:?}: a name without / is needed"),
            ));
        }
        Ok(Self {
            etcd,
            live: format!("/ServiceDiscovery/{cluster}/"),
            registered: format!("{REGISTERED}{cluster}/AUTHORIZED/"),
            capacities: format!("/WorkerCapacity/{cluster}/"),
        })
    }

    /// Asks etcd for the workers of now.
    pub async fn view(&self) -> Result<MembershipView> {
        let prefix = || Some(GetOptions::new().with_prefix());
        let all = [&self.registered, &self.live, &self.capacities];
        let all = Txn::new().and_then(all.map(|key| TxnOp::get(key.as_str(), prefix())));
        let answer = self.etcd.call("read the workers", async |client| client.txn(all).await).await?;
        view::of_answer(&answer)
    }

    /// Follows the membership in the background until the answer is dropped.
    pub async fn follow(&self) -> Result<Following> {
        view::follow(self.clone()).await
    }

    /// Registers a worker and keeps it registered until the answer is shut down.
    pub async fn register(&self, entry: WorkerEntry, options: RegistrationOptions) -> Result<Registration> {
        registration::register(self.clone(), entry, options).await
    }

    /// Ends the registration of a worker that is not live any more.
    ///
    /// # Errors
    /// `NotFound` when it is not registered, `Busy` while it is live.
    pub async fn remove(&self, identity: WorkerIdentity) -> Result<()> {
        let (live, registered) = (self.live_key(&identity), self.registered_key(&identity));
        let capacity = self.capacity_key(&identity);
        let remove = Txn::new()
            .when([
                Compare::version(live.as_str(), CompareOp::Equal, 0),
                Compare::version(registered.as_str(), CompareOp::Greater, 0),
            ])
            .and_then([TxnOp::delete(registered.as_str(), None), TxnOp::delete(capacity.as_str(), None)])
            .or_else([TxnOp::get(live.as_str(), Some(GetOptions::new().with_count_only()))]);
        let answer = self.etcd.call("remove the worker", async |client| client.txn(remove).await).await?;
        if answer.succeeded() {
            return Ok(());
        }
        let is_live = answer.op_responses().into_iter().any(|response| match response {
            etcd_client::TxnOpResponse::Get(live) => live.count() > 0,
            _ => false,
        });
        Err(if is_live {
            Error::new(
                ErrorKind::Busy,
                format!("{identity} is live: stop it first (alluxio process stop worker), then remove it"),
            )
        } else {
            Error::new(ErrorKind::NotFound, format!("{identity} is not registered; alluxio info nodes lists who is"))
        })
    }

    fn live_key(&self, identity: &WorkerIdentity) -> String {
        format!("{}{identity}", self.live)
    }

    fn registered_key(&self, identity: &WorkerIdentity) -> String {
        format!("{}{identity}", self.registered)
    }

    fn capacity_key(&self, identity: &WorkerIdentity) -> String {
        format!("{}{identity}", self.capacities)
    }
}
