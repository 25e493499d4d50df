//! Membership and mount table against a real etcd (Debian's etcd-server), one server for each test.

#[allow(dead_code)] // Other suites use the rest of it.
mod etcd_server;
mod fake;
mod links;
mod namespaces;

use client::{
    etcd::{Etcd, EtcdOptions},
    membership::{Membership, MembershipView, RegistrationOptions, WorkerEntry, WorkerNetAddress},
    mount_table::{MountEntry, MountTableStore},
    ring::WorkerIdentity,
};
use common::ErrorKind;
use etcd_client::GetOptions;
use etcd_server::EtcdServer;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

fn options(server: &EtcdServer) -> EtcdOptions {
    EtcdOptions { endpoints: vec![server.endpoint()], user: None, tls: None, deadline: Duration::from_secs(10) }
}

fn entry(number: u8, host: &str) -> WorkerEntry {
    WorkerEntry {
        identity: WorkerIdentity { identifier: [number; 16], version: 1 },
        address: WorkerNetAddress { host: host.into(), rpc_port: 29999, data_port: 29997, ..Default::default() },
    }
}

fn quick() -> RegistrationOptions {
    RegistrationOptions {
        failure_timeout: Duration::from_secs(2),
        may_move: false,
        former: Vec::new(),
        capacity: 1 << 30,
    }
}

/// Waits (a minute at most) until a view is as it should be.
async fn until(following: &client::membership::Following, what: &str, right: impl Fn(&MembershipView) -> bool) {
    let mut receiver = following.receiver();
    let seen = tokio::time::timeout(Duration::from_secs(60), receiver.wait_for(|view| right(view))).await;
    assert!(seen.is_ok(), "{what}: never seen; the view is {:?}", following.view());
}

#[tokio::test]
async fn a_worker_is_live_as_long_as_it_renews_and_registered_for_good() {
    let Some(server) = EtcdServer::start() else { return };
    let etcd = Etcd::connect(&options(&server)).await.unwrap();
    let membership = Membership::new(etcd.clone(), "c").unwrap();
    let following = membership.follow().await.unwrap();
    let worker = entry(7, "one");
    let registration = membership.register(worker.clone(), quick()).await.unwrap();
    until(&following, "live", |view| view.identities(true) == [worker.identity]).await;

    // Other clients parse every value below this prefix: there is exactly the worker's own JSON.
    let live = etcd
        .call("look", async |client| client.get("/ServiceDiscovery/c/", Some(GetOptions::new().with_prefix())).await)
        .await
        .unwrap();
    let found: Vec<_> = live.kvs().iter().map(|pair| (pair.key_str().unwrap(), pair.value_str().unwrap())).collect();
    assert_eq!(found, [("/ServiceDiscovery/c/worker-07070707-0707-0707-0707-070707070707", worker.to_json().as_str())]);

    // It lives longer than its lease, because it renews it.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(membership.view().await.unwrap().identities(true), [worker.identity]);
    assert_eq!(membership.remove(worker.identity).await.unwrap_err().kind(), ErrorKind::Busy);

    // A crash: nobody renews, the lease runs out, the registration stays.
    drop(registration);
    until(&following, "gone", |view| view.identities(true).is_empty()).await;
    assert_eq!(following.view().identities(false), [worker.identity]);
    membership.remove(worker.identity).await.unwrap();
    until(&following, "removed", |view| view.workers.is_empty()).await;
    assert_eq!(membership.remove(worker.identity).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_graceful_end_is_seen_at_once_and_an_identity_has_one_worker() {
    let Some(server) = EtcdServer::start() else { return };
    let membership = Membership::new(Etcd::connect(&options(&server)).await.unwrap(), "c").unwrap();
    let slow = RegistrationOptions { failure_timeout: Duration::from_secs(600), ..quick() };
    let first = membership.register(entry(1, "one"), slow.clone()).await.unwrap();

    let refused = membership.register(entry(1, "two"), slow.clone()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert!(refused.message().contains("one:29999"), "{refused}");
    // The same worker, started again before its lease ran out, takes its place.
    let again = membership.register(entry(1, "one"), slow.clone()).await.unwrap();
    drop(first);
    again.shut_down().await.unwrap();
    assert!(membership.view().await.unwrap().identities(true).is_empty());

    // Registered elsewhere, not live: refused too, unless pods may move.
    let refused = membership.register(entry(1, "two"), slow.clone()).await.unwrap_err();
    assert!(refused.message().contains("remove-worker"), "{refused}");
    // Unless it is known that the worker which was there is dead.
    let former = RegistrationOptions { former: vec![entry(1, "one").address], ..slow.clone() };
    let first = membership.register(entry(1, "three"), former.clone()).await.unwrap();
    let refused = membership.register(entry(1, "two"), former).await.unwrap_err();
    assert!(refused.message().contains("live at three:29999"), "{refused}");
    first.shut_down().await.unwrap();
    let moved = RegistrationOptions { may_move: true, ..slow };
    let registration = membership.register(entry(1, "two"), moved).await.unwrap();
    assert_eq!(membership.view().await.unwrap().workers.values().next().unwrap().entry.shown(), "two:29999");
    registration.shut_down().await.unwrap();
}

#[tokio::test]
async fn the_last_view_outlives_etcd_and_a_worker_registers_again() {
    let Some(mut server) = EtcdServer::start() else { return };
    let membership = Membership::new(Etcd::connect(&options(&server)).await.unwrap(), "c").unwrap();
    let following = membership.follow().await.unwrap();
    let worker = entry(3, "one");
    let _registration = membership.register(worker.clone(), quick()).await.unwrap();
    until(&following, "live", |view| view.identities(true) == [worker.identity]).await;

    server.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(following.view().identities(true), [worker.identity], "the last view stays");

    // An etcd that lost everything: the worker comes back by itself, and is seen.
    server.start_again_empty();
    let mut receiver = following.receiver();
    let back = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if membership.view().await.is_ok_and(|view| view.identities(true) == [worker.identity]) {
                return;
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), receiver.changed()).await;
        }
    });
    back.await.expect("the worker never registered again");
}

#[tokio::test]
async fn changes_of_the_mount_table_by_many_are_all_there() {
    let Some(server) = EtcdServer::start() else { return };
    let store = Arc::new(MountTableStore::new(Etcd::connect(&options(&server)).await.unwrap(), "c"));
    assert!(store.read().await.unwrap().mounts.is_empty());
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                let entry = MountEntry { ufs: format!("s3://bucket{number}"), properties: BTreeMap::new() };
                store.change(|table| table.add(&format!("/m{number}"), entry.clone())).await
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let table = store.read().await.unwrap();
    assert_eq!(table.mounts.len(), 8);
    assert_eq!(table.resolve("/m3/x").unwrap(), "s3://bucket3/x");
    let entry = MountEntry { ufs: "s3://bucket3/in".into(), properties: BTreeMap::new() };
    let refused = store.change(|table| table.add("/n", entry.clone())).await.unwrap_err();
    assert!(refused.message().contains("/m3"), "{refused}");
    assert_eq!(store.read().await.unwrap(), table);
}

#[tokio::test]
async fn an_etcd_that_is_not_there_is_named() {
    let options = EtcdOptions {
        endpoints: vec!["http://127.0.0.1:1".into()],
        user: None,
        tls: None,
        deadline: Duration::from_secs(5),
    };
    let error = Etcd::connect(&options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // One line, each thing said once, also by who prints a chain of causes.
    let mut shown = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(deeper) = cause {
        shown.push_str(&deeper.to_string());
        cause = deeper.source();
    }
    assert_eq!(
        shown.replace(" (os error 111)", ""),
        "etcd at http://127.0.0.1:1 cannot be reached: Connection refused; check alluxio.etcd.endpoints and that etcd runs"
    );
}

#[tokio::test]
async fn capacities_are_published_and_shape_the_ring() {
    use client::cluster::ring_of;
    use common::conf::keys::cluster::RingProvider;
    let Some(server) = EtcdServer::start() else { return };
    let etcd = Etcd::connect(&options(&server)).await.unwrap();
    let membership = Membership::new(etcd.clone(), "c").unwrap();
    let following = membership.follow().await.unwrap();
    let mut registrations = Vec::new();
    for (number, capacity) in [(1, 100), (2, 300)] {
        let how = RegistrationOptions { capacity, ..quick() };
        registrations.push(membership.register(entry(number, &format!("host{number}")), how).await.unwrap());
    }
    until(&following, "both capacities", |view| {
        view.workers.values().filter_map(|state| state.capacity).collect::<Vec<_>>() == [100, 300]
    })
    .await;
    let view = following.view();
    let identities = view.identities(true);
    let share = |provider| {
        let ring = ring_of(&view, &identities, provider, 1000);
        let first = |key: u32| ring.lookup(format!("s3://b/{key}").as_bytes(), 1)[0] == identities[0];
        (0..20_000).filter(|key| first(*key)).count() as f64 / 20_000.0
    };
    assert!((share(RingProvider::Default) - 0.5).abs() < 0.05, "{}", share(RingProvider::Default));
    assert!((share(RingProvider::Capacity) - 0.25).abs() < 0.025, "{}", share(RingProvider::Capacity));

    // It goes with the registration.
    registrations.remove(0).shut_down().await.unwrap();
    membership.remove(identities[0]).await.unwrap();
    let left = etcd
        .call("look", async |client| client.get("/WorkerCapacity/c/", Some(GetOptions::new().with_prefix())).await)
        .await
        .unwrap();
    assert_eq!(left.kvs().len(), 1);
}
