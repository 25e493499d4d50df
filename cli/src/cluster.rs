//! What commands about a cluster share: its etcd and what is kept there.

use anyhow::Result;
use client::{
    etcd::{Etcd, EtcdOptions},
    membership::Membership,
    mount_table::MountTableStore,
};
use common::conf::{Conf, keys::cluster as keys};
use std::future::Future;

/// The cluster that the configuration names.
pub struct Cluster {
    /// Its workers.
    pub membership: Membership,
    /// Its mounts.
    pub mounts: MountTableStore,
}

impl Cluster {
    /// Connects to its etcd.
    pub async fn connect(conf: &Conf) -> Result<Self> {
        let name = conf.get(&keys::CLUSTER_NAME);
        let etcd = Etcd::connect(&EtcdOptions::from_conf(conf)?).await?;
        Ok(Self { membership: Membership::new(etcd.clone(), &name)?, mounts: MountTableStore::new(etcd, &name) })
    }
}

/// Runs an asynchronous command; what it leaves under way does not delay the end.
pub fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}
