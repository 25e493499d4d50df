//! Workers of a cluster, with a real etcd (Debian's etcd-server).

use crate::{
    etcd_server::EtcdServer,
    options,
    peer::{Peer, within},
};
use client::{
    etcd::{Etcd, EtcdOptions},
    membership::Membership,
    mount_table::{MountEntry, MountTableStore},
};
use common::{
    ErrorKind, UfsPath,
    worker::{Freshness, Worker},
};
use std::{path::Path, time::Duration};
use worker::server::{Cluster, Server, ServerOptions};

pub fn etcd(server: &EtcdServer) -> EtcdOptions {
    EtcdOptions { endpoints: vec![server.endpoint()], user: None, tls: None, deadline: Duration::from_secs(20) }
}

pub fn in_cluster(dir: &Path, etcd: EtcdOptions) -> ServerOptions {
    let wait = Duration::from_secs(60);
    ServerOptions { cluster: Cluster::Etcd { options: etcd, name: "c".into(), wait }, ..options(dir, &[]) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_registers_and_follows_the_mount_table() {
    let Some(server) = EtcdServer::start() else { return };
    let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(source.path().join("f"), b"content").unwrap();
    let connection = Etcd::connect(&etcd(&server)).await.unwrap();
    let membership = Membership::new(connection.clone(), "c").unwrap();
    let mounts = MountTableStore::new(connection, "c");

    let worker = Server::start(in_cluster(dir.path(), etcd(&server))).await.unwrap();
    let view = membership.view().await.unwrap();
    assert_eq!(view.workers[&worker.entry().identity].entry, *worker.entry());
    assert!(view.workers[&worker.entry().identity].live);

    // A storage that is mounted now is served to the client that hears of it first, without a pause.
    let ufs = format!("file://{}", source.path().display());
    let entry = MountEntry { ufs: ufs.clone(), properties: Default::default() };
    mounts.change(|table| table.add("/data", entry.clone())).await.unwrap();
    let mounted = within("the mount", async {
        loop {
            match worker.namespace().find(&ufs).await {
                Ok(mounted) => return mounted,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let attr = mounted.worker().attr(&UfsPath::parse("f").unwrap(), Freshness::Cached).await.unwrap();
    let mut peer = Peer::domain(&worker).await;
    let handle = peer.open(&ufs, "f", &attr.version, attr.size).await.unwrap();
    assert_eq!(peer.read(handle, 0, 7).await.unwrap(), b"content");

    mounts.change(|table| table.remove("/data").map(drop)).await.unwrap();
    within("the mount to go", async {
        while worker.namespace().find(&ufs).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;

    worker.stop().await;
    let view = membership.view().await.unwrap();
    assert!(view.workers.values().all(|state| !state.live), "a graceful end is seen at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_worker_with_the_same_identity_is_refused() {
    let Some(server) = EtcdServer::start() else { return };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Server::start(in_cluster(one.path(), etcd(&server))).await.unwrap();
    std::fs::copy(one.path().join("identity"), two.path().join("identity")).unwrap();
    let refused = Server::start(in_cluster(two.path(), etcd(&server))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    let message = refused.to_string();
    assert!(message.contains(&first.entry().identity.to_string()), "{message}");
    assert!(message.contains(&first.entry().shown()), "{message}");
    assert!(!two.path().join("socket").exists(), "nothing of it stays behind");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_died_is_back_before_its_lease_ends_though_its_ports_are_others() {
    let Some(server) = EtcdServer::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let long = || ServerOptions { failure_timeout: Duration::from_secs(3600), ..in_cluster(dir.path(), etcd(&server)) };
    let first = Server::start(long()).await.unwrap();
    let before = first.entry().clone();
    // Dropped where it is, as by SIGKILL: its lease and its registration stay.
    drop(first);
    let second = within("the second start", async {
        loop {
            match Server::start(long()).await {
                Ok(second) => return second,
                // The first one's tasks may hold its store for a moment.
                Err(error) => assert!(!error.to_string().contains("two workers"), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(second.entry().identity, before.identity);
    assert_ne!(second.entry().address, before.address, "other ports");
    let connection = Etcd::connect(&etcd(&server)).await.unwrap();
    let view = Membership::new(connection, "c").unwrap().view().await.unwrap();
    assert_eq!(view.workers[&before.identity].entry, *second.entry());
    assert_eq!(view.workers[&before.identity].capacity, Some(64 << 20));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_cannot_be_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:1".into()],
        user: None,
        tls: None,
        deadline: Duration::from_secs(5),
    };
    let mut away = in_cluster(dir.path(), nobody);
    if let Cluster::Etcd { wait, .. } = &mut away.cluster {
        *wait = Duration::from_millis(1);
    }
    let message = Server::start(away).await.unwrap_err().to_string();
    assert!(message.contains("127.0.0.1:1") && message.contains("--wait"), "{message}");
    assert!(!dir.path().join("socket").exists());

    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let message =
        Server::start(ServerOptions { data_port: port, ..options(dir.path(), &[]) }).await.unwrap_err().to_string();
    assert!(message.contains(&format!("alluxio.worker.data.port={port}")), "{message}");

    let other = tempfile::tempdir().unwrap();
    let first = Server::start(options(dir.path(), &[])).await.unwrap();
    let same_socket = ServerOptions { domain: Some(dir.path().join("socket")), ..options(other.path(), &[]) };
    let message = Server::start(same_socket).await.unwrap_err().to_string();
    assert!(message.contains("domain.socket.address") && message.contains("another process answers"), "{message}");
    let message = Server::start(options(dir.path(), &[])).await.unwrap_err().to_string();
    assert!(message.contains(&first.entry().identity.to_string()) && message.contains("runs already"), "{message}");
    first.stop().await;

    let elsewhere = ServerOptions { bind: "192.0.2.1".into(), ..options(other.path(), &[]) };
    let message = Server::start(elsewhere).await.unwrap_err().to_string();
    assert!(message.contains("alluxio.worker.bind.host=192.0.2.1"), "{message}");

    let file = dir.path().join("no directory");
    std::fs::write(&file, b"").unwrap();
    let mut broken = options(dir.path(), &[]);
    broken.store.dirs[0].path = file.clone();
    let message = Server::start(broken).await.unwrap_err().to_string();
    assert!(message.contains(file.to_str().unwrap()), "{message}");
}
