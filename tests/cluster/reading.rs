//! What is read through a cluster is what the storage has, whichever way it comes.

use crate::processes::Cluster;
use std::{fs, net::TcpListener, path::Path, time::Duration};
use tests::{
    machine,
    mount::{Mount, Mounting, http_get},
    s3::Store,
    tree::Tree,
};

pub fn source(files: usize) -> (tempfile::TempDir, Tree, Store) {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::make(dir.path(), files, 1 << 20, 3).unwrap();
    let store = Store::of_dir(dir.path());
    (dir, tree, store)
}

pub fn check(tree: &Tree, mount: &Mount) {
    let root = mount.join("data");
    machine::wait_for("the mount in the namespace", || root.is_dir().then_some(()));
    if let Err(error) = tree.compare_bytes(&root, 4, 1, false) {
        panic!("{error}\n{}", mount.log());
    }
}

fn metric(name: &str, text: &str) -> f64 {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
}

#[test]
fn a_tree_reads_equal_by_descriptor_by_network_and_without_a_cache() {
    let Some(cluster) = Cluster::start(3) else { return };
    let (_dir, tree, store) = source(300);
    cluster.mount_add("/data", &store);

    let mount = cluster.mounting().start();
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 1, "mounts are top-level directories");
    check(&tree, &mount);
    let first = store.body_bytes();
    check(&tree, &mount);
    mount.stop();
    assert!(first > 0);

    // Another client finds the pages at the workers: the storage is not asked for data again.
    let before = store.body_bytes();
    let remote = cluster.mounting().option("alluxio.user.short.circuit.enabled=false").start();
    check(&tree, &remote);
    remote.stop();
    let uncached =
        cluster.mounting().option("alluxio.user.short.circuit.enabled=false").option("local_data_cache_size=0").start();
    check(&tree, &uncached);
    uncached.stop();
    // Listings have bodies too; data of the tree is far larger than those.
    let again = store.body_bytes() - before;
    assert!(again < first / 4, "{again} bytes were read from the storage again, {first} the first time");
}

#[test]
fn a_worker_started_again_serves_from_its_cache() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    let store = Store::start();
    let bytes: Vec<u8> = (0..5_000_000u32).map(|number| (number % 251) as u8).collect();
    store.put("dir/file", bytes.clone());
    cluster.mount_add("/data", &store);
    let options = ["alluxio.user.short.circuit.enabled=false", "local_data_cache_size=0"];
    let read = |cluster: &Cluster| {
        let mount = cluster.mounting().options(options).start();
        let file = mount.join("data/dir/file");
        let read = machine::wait_for("the file", || fs::read(&file).ok());
        assert!(read == bytes, "wrong bytes");
        mount.stop();
    };
    read(&cluster);
    let identity = cluster.workers[0].identity();
    cluster.workers[0].start_again();
    // Its old lease may still live: what counts is that the new process serves.
    let serves = || cluster.workers[0].log().matches(" serves at ").count() >= 2;
    machine::wait_for("the worker to be back", || (serves() && cluster.live() == [identity]).then_some(()));
    let before = store.body_bytes();
    read(&cluster);
    let again = store.body_bytes() - before;
    assert!(again < 1_000_000, "{again} bytes were read from the storage though they were cached");
}

#[test]
fn mounts_come_and_go_while_a_client_is_mounted() {
    let Some(cluster) = Cluster::start(1) else { return };
    let store = Store::start();
    store.put("hello", *b"one");
    let mount = cluster.mounting().start();
    let file = mount.join("late/hello");
    assert!(!file.exists());
    cluster.mount_add("/late", &store);
    let read = machine::wait_for("the new mount", || fs::read(&file).ok());
    assert_eq!(read, b"one");
    let list = cluster.alluxio(["mount", "list"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(text.starts_with("Listing all mount points\n"), "{text}");
    assert!(text.contains(" on /late properties={"), "{text}");
    let removed = cluster.alluxio(["mount", "remove", "--path", "/late"]);
    assert!(removed.status.success(), "{removed:?}");
    machine::wait_for("the mount to be gone", || (!Path::new(&file).exists()).then_some(()));
    let nodes = cluster.alluxio(["info", "nodes"]);
    let text = String::from_utf8_lossy(&nodes.stdout).into_owned();
    assert!(text.starts_with("WorkerId\tAddress\tStatus\n"), "{text}");
    assert!(text.contains("\tONLINE"), "{text}");
    mount.stop();
}

#[test]
fn short_circuit_and_network_are_counted_apart() {
    let Some(cluster) = Cluster::start(1) else { return };
    let store = Store::start();
    store.put("file", vec![7; 3_000_000]);
    cluster.mount_add("/data", &store);
    for (short_circuit, used, unused) in [
        (false, "BytesReadRemote_total", "BytesReadDomain_total"),
        (true, "BytesReadDomain_total", "BytesReadRemote_total"),
    ] {
        let (mount, port) = with_metrics(|| {
            cluster
                .mounting()
                .option(format!("alluxio.user.short.circuit.enabled={short_circuit}"))
                .option("local_data_cache_size=0")
        });
        let file = mount.join("data/file");
        let read = machine::wait_for("the file", || fs::read(&file).ok());
        assert_eq!(read.len(), 3_000_000);
        let text = http_get(port, "/metrics").unwrap();
        assert_eq!(metric(unused, &text), 0.0, "{unused} with short circuit {short_circuit}");
        // A file that is wholly on the worker's disk is read by its descriptor, which counts nowhere.
        if !short_circuit {
            assert!(metric(used, &text) >= 3_000_000.0, "{used}: {}", metric(used, &text));
        }
        mount.stop();
    }
}

/// A mount whose metrics are served, and their port; another one when somebody was faster to take it.
fn with_metrics(mounting: impl Fn() -> Mounting) -> (Mount, u16) {
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mount = mounting().option(format!("alluxio.fuse.web.port={port}")).start();
        let serves =
            || http_get(port, "/metrics").is_ok_and(|text| text.contains("alluxio_version_info")).then_some(());
        if machine::try_for(Duration::from_secs(10), serves).is_some() {
            return (mount, port);
        }
    }
    panic!("no port can be had");
}
