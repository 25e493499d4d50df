//! Where files are cached: exactly on the workers that the ring names.

use crate::{
    processes::{Cluster, runtime},
    reading::{check, source},
};
use client::{
    cluster::{Link, LinkOptions},
    membership::WorkerEntry,
    ring::{Ring, WorkerIdentity},
};
use common::{
    UfsPath, UfsUri,
    conf::{Conf, Environment},
    rpc::worker::CheckCachedRequest,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tests::machine;

/// Virtual nodes of a worker that nobody configured otherwise.
const VIRTUAL_NODES: u32 = 2000;

type Links = BTreeMap<WorkerIdentity, Arc<Link>>;

fn link(entry: WorkerEntry) -> Arc<Link> {
    let conf = Conf::builder().environment(Environment::of([], 0)).load().unwrap();
    Link::new(entry, LinkOptions::from_conf(&conf).unwrap()).unwrap()
}

/// Bytes of a file that each worker has.
async fn cached(links: &Links, uri: &UfsUri, path: &UfsPath) -> BTreeMap<WorkerIdentity, u64> {
    let mut all = BTreeMap::new();
    for (identity, link) in links {
        let request = CheckCachedRequest { storage: uri.to_string(), path: path.as_bytes().to_vec() };
        let answer = link.metadata().check_cached(request).await.unwrap().into_inner();
        all.insert(*identity, answer.cached);
    }
    all
}

#[test]
fn each_file_is_cached_on_exactly_the_worker_that_the_ring_names() {
    let Some(cluster) = Cluster::start(3) else { return };
    let (dir, tree, store) = source(120);
    cluster.mount_add("/data", &store);
    // On a machine that is very busy a worker may look dead for a moment; another one then reads and caches in its stead.
    for _ in 0..5 {
        let freed = cluster.alluxio(["cache", "free", "--all"]);
        assert!(freed.status.success(), "{freed:?}");
        let mount = cluster.mounting().option("alluxio.user.short.circuit.enabled=false").start();
        check(&tree, &mount);
        let log = mount.log();
        mount.stop();
        if !log.contains("is not asked for the moment") {
            runtime().block_on(compare(&cluster, dir.path(), &UfsUri::parse(&store.uri("")).unwrap()));
            return;
        }
    }
    panic!("workers looked dead each time");
}

async fn compare(cluster: &Cluster, root: &std::path::Path, uri: &UfsUri) {
    let entries = cluster.entries().await;
    let ring = Ring::uniform(&entries.iter().map(|entry| entry.identity).collect::<Vec<_>>(), VIRTUAL_NODES);
    let links: Links = entries.into_iter().map(|entry| (entry.identity, link(entry))).collect();
    let mut owned = BTreeMap::<WorkerIdentity, u32>::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        if !entry.file_type().is_file() {
            continue;
        }
        use std::os::unix::ffi::OsStrExt;
        let path = UfsPath::parse(entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes()).unwrap();
        let owner = ring.lookup(&uri.full_path(&path), 1)[0];
        let size = entry.metadata().unwrap().len();
        *owned.entry(owner).or_default() += 1;
        let wanted: BTreeMap<_, _> =
            links.keys().map(|identity| (*identity, if *identity == owner { size } else { 0 })).collect();
        // Pages are stored a moment after they were sent.
        let deadline = std::time::Instant::now() + machine::PATIENCE;
        loop {
            let found = cached(&links, uri, &path).await;
            if found == wanted {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{path}: {found:?} is cached, {wanted:?} should be");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(owned.len(), links.len(), "the files are spread over all workers: {owned:?}");
}
