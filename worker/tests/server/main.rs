//! A worker's server in this process, on ports of its own choice, against clients that speak the wire protocol, and
//! against a real etcd.

mod changes;
mod cluster;
mod crowd;
#[allow(dead_code)] // Other suites use the rest of it.
#[path = "../../../client/tests/cluster/etcd_server.rs"]
mod etcd_server;
mod peer;
mod protocol;
mod serving;
mod tls;
mod writing;

use client::mount_table::{MountEntry, MountTable};
use common::conf::{Conf, Environment, Source};
use std::{path::Path, time::Duration};
use store::{DirOptions, StoreOptions};
use worker::server::{Cluster, Limits, Server, ServerOptions};

/// Bytes of a page in these tests.
const PAGE: usize = 64 << 10;

/// A worker that lives below `dir`, on free ports, with a domain socket, and `mounts` by name and storage.
fn options(dir: &Path, mounts: &[(&str, &str)]) -> ServerOptions {
    let mut table = MountTable::default();
    for (path, ufs) in mounts {
        table.add(path, MountEntry { ufs: (*ufs).to_owned(), properties: Default::default() }).unwrap();
    }
    let conf = Conf::builder()
        .environment(Environment::of([], 0))
        .set("alluxio.user.metadata.sync.interval", "-1", Source::CommandLine("test".into()))
        .load()
        .unwrap();
    ServerOptions {
        hostname: Some("127.0.0.1".into()),
        bind: "127.0.0.1".into(),
        tls: None,
        rpc_port: 0,
        data_port: 0,
        web_port: 0,
        domain: Some(dir.join("socket")),
        domain_as_uuid: false,
        domain_uids: Vec::new(),
        identity_file: dir.join("identity"),
        store: StoreOptions {
            dirs: vec![DirOptions { path: dir.join("cache"), capacity: 64 << 20 }],
            page_size: PAGE as u32,
            ..StoreOptions::default()
        },
        memory: 32 << 20,
        cluster: Cluster::Alone(table),
        failure_timeout: Duration::from_secs(5),
        may_move: false,
        writes: true,
        limits: Limits { drain: Duration::from_secs(30), ..Limits::default() },
        conf,
    }
}

/// Bytes that differ from place to place and from seed to seed.
fn bytes(length: usize, seed: u64) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// The same worker with a storage in memory, which counts its requests.
async fn start_over_memory(options: ServerOptions, storage: &std::sync::Arc<worker::testing::MemoryStorage>) -> Server {
    let server = Server::start(options).await.unwrap();
    server.namespace().serve(storage.clone(), None);
    server
}
