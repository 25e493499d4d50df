//! What commands about a cluster share: its etcd and what is kept there, and its workers.

use anyhow::Result;
use client::{
    cluster::{Link, LinkOptions, ring_of},
    etcd::{Etcd, EtcdOptions},
    membership::{Membership, MembershipView, WorkerEntry, unknown_cluster},
    mount_table::MountTableStore,
    ring::{Ring, WorkerIdentity},
};
use common::conf::{Conf, keys::cluster as keys};
use common::rpc::{error_of, worker::worker_client::WorkerClient};
use common::{Error, ErrorKind};
use futures::{StreamExt, stream};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// How long a worker may take to answer a command.
const ANSWER: Duration = Duration::from_secs(10);
/// Workers that are asked at the same time.
const AT_ONCE: usize = 32;

/// The cluster that the configuration names.
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// Its workers.
    pub membership: Membership,
    /// Its mounts.
    pub mounts: MountTableStore,
    etcd: Etcd,
}

impl Cluster {
    /// Connects to its etcd.
    pub async fn connect(conf: &Conf) -> Result<Self> {
        let name = conf.get(&keys::CLUSTER_NAME);
        let etcd = Etcd::connect(&EtcdOptions::from_conf(conf)?).await?;
        let mounts = MountTableStore::new(etcd.clone(), &name);
        Ok(Self { membership: Membership::new(etcd.clone(), &name)?, mounts, name, etcd })
    }

    /// The live workers.
    ///
    /// # Errors
    /// There are none.
    pub async fn live(&self) -> Result<Vec<WorkerEntry>> {
        let view = self.membership.view().await?;
        if !view.workers.values().any(|state| state.live) {
            return Err(self.nobody(&view).await.into());
        }
        Ok(view.workers.into_values().filter(|state| state.live).map(|state| state.entry).collect())
    }

    /// The complaint that no worker is there that should be.
    pub async fn nobody(&self, view: &MembershipView) -> Error {
        if view.workers.is_empty() {
            return unknown_cluster(&self.etcd, &self.name).await;
        }
        let name = &self.name;
        let why = format!("no worker is live in the cluster {name:?}; `alluxio info nodes` shows who is registered");
        Error::new(ErrorKind::Unavailable, why)
    }
}

/// Who owns what.
pub struct Owners {
    view: MembershipView,
    ring: Ring,
}

impl Owners {
    /// As etcd and the configuration say now. No worker is asked.
    ///
    /// # Errors
    /// No worker is live.
    pub async fn of(cluster: &Cluster, conf: &Conf) -> Result<Self> {
        let view = cluster.membership.view().await?;
        let workers = view.identities(conf.get(&keys::DYNAMIC_RING_ENABLED));
        if workers.is_empty() {
            return Err(cluster.nobody(&view).await.into());
        }
        let nodes = u32::try_from(conf.get(&keys::RING_VIRTUAL_NODES)).unwrap_or(u32::MAX);
        Ok(Self { ring: ring_of(&view, &workers, conf.get(&keys::RING_PROVIDER), nodes), view })
    }

    /// Up to `count` workers for a full UFS path, in the order in which they are asked.
    pub fn lookup(&self, key: &[u8], count: usize) -> Vec<(WorkerIdentity, &WorkerEntry)> {
        let owners = self.ring.lookup(key, count).into_iter();
        owners.filter_map(|identity| Some((identity, &self.view.workers.get(&identity)?.entry))).collect()
    }
}

/// A link to a worker.
pub fn link(entry: &WorkerEntry, conf: &Conf) -> Result<Arc<Link>> {
    Ok(Link::new(entry.clone(), LinkOptions::from_conf(conf)?)?)
}

/// Asks one worker; what goes wrong names it.
pub async fn ask<T>(
    link: &Link,
    call: impl AsyncFnOnce(&mut WorkerClient<Channel>) -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, Error> {
    let mut client = link.metadata();
    let outcome = match tokio::time::timeout(ANSWER, call(&mut client)).await {
        Ok(Ok(answer)) => return Ok(answer.into_inner()),
        Ok(Err(status)) => error_of(&status),
        Err(_) => Error::new(ErrorKind::TimedOut, format!("no answer within {ANSWER:?}")),
    };
    Err(outcome.context(format_args!("{} at {}", link.entry().identity, link.entry().shown())))
}

/// Asks many workers, some at a time; the answers are in the order of the workers.
pub async fn ask_all<T, F>(
    entries: Vec<WorkerEntry>,
    conf: &Conf,
    call: impl Fn(Arc<Link>) -> F,
) -> Vec<(WorkerEntry, Result<T>)>
where
    F: Future<Output = Result<T, Error>>,
{
    let call = &call;
    let asked = entries.into_iter().map(|entry| async move {
        let answer = match link(&entry, conf) {
            Ok(link) => call(link).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        (entry, answer)
    });
    stream::iter(asked).buffered(AT_ONCE).collect().await
}

/// Runs an asynchronous command; what it leaves under way does not delay the end.
pub fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}
