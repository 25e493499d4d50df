//! The namespace of a cluster as a client sees it, with workers of the tests' own behind a real etcd.

use crate::{
    etcd_server::EtcdServer,
    fake::{FakeWorker, byte_at},
    options, quick,
};
use client::{
    cluster::Namespace,
    etcd::Etcd,
    membership::{Membership, Registration},
    mount_table::{MountEntry, MountTableStore},
    ring::Ring,
};
use common::{
    UfsPath, Version,
    conf::{Conf, Environment, Source},
    rpc::worker::Change,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};
use ufs::UnderStorage;

const LIMIT: Duration = Duration::from_secs(60);

struct Setup {
    // Dropped last, so that what follows it does not complain.
    workers: Vec<FakeWorker>,
    registrations: Vec<Registration>,
    namespace: Arc<Namespace>,
    mounts: MountTableStore,
    _etcd: EtcdServer,
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

fn entry(ufs: &str) -> MountEntry {
    MountEntry { ufs: ufs.into(), properties: BTreeMap::new() }
}

/// Two workers, and `ufs` at `/m`.
async fn setup(ufs: &str) -> Option<Setup> {
    setup_with(ufs, &[]).await
}

/// The same with these settings of the client.
async fn setup_with(ufs: &str, settings: &[(&str, &str)]) -> Option<Setup> {
    let server = EtcdServer::start()?;
    let etcd = Etcd::connect(&options(&server)).await.unwrap();
    let membership = Membership::new(etcd.clone(), "c").unwrap();
    let (mut workers, mut registrations) = (Vec::new(), Vec::new());
    for number in 1..=2 {
        let worker = FakeWorker::start(number, None).await;
        registrations.push(membership.register(worker.entry.clone(), quick()).await.unwrap());
        workers.push(worker);
    }
    let mounts = MountTableStore::new(etcd, "c");
    mounts.change(|table| table.add("/m", entry(ufs))).await.unwrap();
    let endpoint = server.endpoint();
    let mut builder = Conf::builder().environment(Environment::of([], 0));
    for (key, value) in settings.iter().copied().chain([("alluxio.etcd.endpoints", endpoint.as_str())]) {
        builder = builder.set(key, value, Source::CommandLine("-D".into()));
    }
    let conf = builder.load().unwrap();
    let namespace = Namespace::connect(&conf, "c", &UfsPath::root()).await.unwrap();
    Some(Setup { workers, registrations, namespace, mounts, _etcd: server })
}

async fn listed(namespace: &Namespace, at: &str) -> common::Result<Vec<String>> {
    let mut listing = namespace.list(&path(at)).await?;
    let mut names = Vec::new();
    while let Some(batch) = listing.next().await? {
        assert!(!batch.is_empty());
        names.extend(batch.into_iter().map(|entry| String::from_utf8(entry.name.into()).unwrap()));
    }
    Ok(names)
}

fn batches(names: &[String], size: usize) -> Vec<Vec<String>> {
    names.chunks(size).map(<[String]>::to_vec).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_whose_worker_dies_goes_on_elsewhere() {
    let source = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..50).map(|number| format!("n{number:02}")).collect();
    for name in &names {
        std::fs::write(source.path().join(name), b"").unwrap();
    }
    let Some(setup) = setup(&format!("file://{}", source.path().display())).await else { return };
    // Whichever is asked first dies half-way; the other one lists in another order.
    let mut backwards = names.clone();
    backwards.reverse();
    for (worker, names) in setup.workers.iter().zip([&names, &backwards]) {
        *worker.state.names.lock().unwrap() = batches(&names[..30], 7);
        worker.state.listing_fails.store(true, Ordering::SeqCst);
    }
    // Both fail: what is left comes from the storage.
    let mut found = listed(&setup.namespace, "m").await.unwrap();
    assert_eq!(setup.workers.iter().map(|worker| worker.state.listings.load(Ordering::SeqCst)).sum::<usize>(), 2);
    found.sort();
    assert_eq!(found, names, "each name once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_goes_on_at_the_next_worker() {
    let source = tempfile::tempdir().unwrap();
    let Some(setup) = setup(&format!("file://{}", source.path().display())).await else { return };
    let names: Vec<String> = (0..50).map(|number| format!("n{number:02}")).collect();
    // Whom the ring names for the directory is asked for it first.
    setup.namespace.stat(&path("m")).await.unwrap();
    for worker in &setup.workers {
        let first = worker.state.lookups.load(Ordering::SeqCst) > 0;
        *worker.state.names.lock().unwrap() = batches(if first { &names[..20] } else { &names[..] }, 7);
        worker.state.listing_fails.store(first, Ordering::SeqCst);
    }
    // The storage has none of them: they can only come from the workers.
    assert_eq!(listed(&setup.namespace, "m").await.unwrap(), names);
    assert!(setup.workers.iter().all(|worker| worker.state.listings.load(Ordering::SeqCst) == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_was_removed_is_dropped() {
    let Some(setup) = setup("s3://bucket/prefix").await else { return };
    setup.namespace.stat(&path("m/x")).await.unwrap();
    assert_eq!(setup.namespace.open_mounts(), 1);
    setup.mounts.change(|table| table.remove("/m").map(drop)).await.unwrap();
    let dropped = tokio::time::timeout(LIMIT, async {
        while setup.namespace.open_mounts() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(dropped.await.is_ok(), "it stays");
    assert!(setup.namespace.stat(&path("m/x")).await.is_err());
    assert_eq!(setup.namespace.open_mounts(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_heard_of_from_the_workers_that_were_asked() {
    let Some(setup) = setup("s3://bucket/prefix").await else { return };
    let heard: Arc<Mutex<Vec<ufs::Changed>>> = Arc::default();
    let tell = heard.clone();
    setup.namespace.clone().on_change(Box::new(move |changed| tell.lock().unwrap().push(changed.clone())));
    let change = |storage: &str, below| Change { storage: storage.into(), paths: vec![b"d/f".to_vec()], below };
    let asked = || setup.workers.iter().find(|worker| worker.state.lookups.load(Ordering::SeqCst) > 0);
    setup.namespace.stat(&path("m/d/f")).await.unwrap();
    let worker = asked().expect("somebody was asked");
    // The subscription holds before the question is asked, except on a machine that is very busy.
    let subscribed = tokio::time::timeout(LIMIT, async {
        while worker.state.changes.receiver_count() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(subscribed.await.is_ok(), "nobody subscribes");
    worker.state.changes.send(change("s3://other", false)).unwrap();
    worker.state.changes.send(change("s3://bucket/prefix", true)).unwrap();
    let expected = ufs::Changed { paths: vec![path("m/d/f")], below: true };
    let wait = tokio::time::timeout(LIMIT, async {
        while !heard.lock().unwrap().contains(&expected) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(wait.await.is_ok(), "nothing is heard");
    let of_others = ufs::Changed { paths: vec![path("m/d/f")], below: false };
    assert!(!heard.lock().unwrap().contains(&of_others), "of another storage");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_worker_leaves_anything_may_have_changed() {
    let Some(mut setup) = setup("s3://bucket/prefix").await else { return };
    let heard: Arc<Mutex<Vec<ufs::Changed>>> = Arc::default();
    let tell = heard.clone();
    setup.namespace.clone().on_change(Box::new(move |changed| tell.lock().unwrap().push(changed.clone())));
    setup.namespace.stat(&path("m/d/f")).await.unwrap();
    for registration in setup.registrations.drain(..) {
        registration.shut_down().await.unwrap();
    }
    let everything = ufs::Changed { paths: vec![UfsPath::root()], below: true };
    let wait = tokio::time::timeout(LIMIT, async {
        while !heard.lock().unwrap().contains(&everything) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(wait.await.is_ok(), "nothing is heard");
}

async fn read(namespace: Arc<Namespace>, offset: u64, length: u64) -> Vec<u8> {
    let mut found = Vec::new();
    let (file, version) = (path("m/f"), Version::new("1"));
    let outcome = namespace.read(&file, &version, offset, length, &mut found);
    tokio::time::timeout(LIMIT, outcome).await.expect("a read").unwrap();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_are_read_from_the_workers_that_the_ring_names_for_them() {
    const SEGMENT: u64 = 1 << 20;
    let settings = [("alluxio.user.file.segment.enabled", "true"), ("alluxio.user.file.segment.size", "1MiB")];
    let Some(setup) = setup_with("s3://bucket/prefix", &settings).await else { return };
    // Beginning and end lie within a segment; twelve segments on two workers.
    let (offset, length) = (5, 12 * SEGMENT - 100);
    let found = read(setup.namespace.clone(), offset, length).await;
    assert!(found.len() as u64 == length);
    assert!(found.iter().enumerate().all(|(at, byte)| *byte == byte_at(offset + at as u64)));
    let identities: Vec<_> = setup.workers.iter().map(|worker| worker.entry.identity).collect();
    let ring = Ring::uniform(&identities, 2000);
    let mut expected = [0; 2];
    for segment in 0..12 {
        let end = if segment == 0 { String::new() } else { format!("\0{segment}") };
        let owner = ring.lookup(format!("s3://bucket/prefix/f{end}").as_bytes(), 1)[0];
        expected[identities.iter().position(|identity| *identity == owner).unwrap()] += 1;
    }
    let reads: Vec<_> = setup.workers.iter().map(|worker| worker.state.reads.load(Ordering::SeqCst)).collect();
    assert_eq!(reads, expected);
    assert!(expected.iter().all(|count| *count > 0), "twelve segments on one worker prove nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_the_less_busy_one_is_read() {
    let settings = [("alluxio.user.file.replication.min", "2")];
    let Some(setup) = setup_with("s3://bucket/prefix", &settings).await else { return };
    for worker in &setup.workers {
        worker.state.gate.forget_permits(usize::MAX);
    }
    let reading =
        || -> Vec<usize> { setup.workers.iter().map(|worker| worker.state.reading.load(Ordering::SeqCst)).collect() };
    let mut reads = Vec::new();
    for count in 1..=4 {
        reads.push(tokio::spawn(read(setup.namespace.clone(), count * 1000, 1000)));
        let waited = tokio::time::timeout(LIMIT, async {
            while reading().iter().sum::<usize>() < count as usize {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(waited.await.is_ok(), "read {count} does not begin");
    }
    assert_eq!(reading(), [2, 2]);
    for worker in &setup.workers {
        worker.state.gate.add_permits(1000);
    }
    for (number, read) in reads.into_iter().enumerate() {
        assert_eq!(read.await.unwrap()[0], byte_at((number as u64 + 1) * 1000));
    }
}
