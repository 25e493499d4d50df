//! What changes is seen by programs, however long attributes and names may be kept.

use crate::processes::Cluster;
use std::{fs, os::unix::fs::MetadataExt};
use tests::{machine, s3::Store};

#[test]
fn the_kernel_forgets_what_the_cluster_is_told_of() {
    // Nothing ages: neither at the workers, nor at the client, nor in the kernel.
    let Some(cluster) = Cluster::start_with(2, vec!["alluxio.user.metadata.sync.interval=-1".into()]) else { return };
    let store = Store::start();
    for name in ["d/f", "d/g", "e/h"] {
        store.put(name, *b"old");
    }
    cluster.mount_add("/data", &store);
    let mount = cluster
        .mounting()
        .options(["attr_timeout=3600", "entry_timeout=3600", "alluxio.user.metadata.sync.interval=-1"])
        .start();
    let file = |name: &str| mount.join(&format!("data/{name}"));
    machine::wait_for("the mount in the namespace", || file("d/f").exists().then_some(()));
    let names = |dir: &str| {
        let mut names: Vec<_> =
            fs::read_dir(file(dir)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let open = fs::File::open(file("e/h")).unwrap();
    for name in ["d/f", "d/g", "e/h"] {
        assert_eq!(fs::read(file(name)).unwrap(), b"old");
    }
    assert_eq!(names("d"), ["f", "g"]);

    // Changed from outside: nobody looks again by himself.
    for name in ["d/f", "d/g", "e/h"] {
        store.put(name, *b"a new one");
    }
    store.put("d/later", *b"more");

    let told = cluster.alluxio(["fs", "refresh", "/data/d/f"]);
    assert!(told.status.success(), "{told:?}");
    machine::wait_for("the new file", || (fs::read(file("d/f")).unwrap_or_default() == b"a new one").then_some(()));
    assert_eq!(fs::metadata(file("d/f")).unwrap().size(), 9);

    let told = cluster.alluxio(["fs", "refresh", "-R", "/data"]);
    assert!(told.status.success(), "{told:?}");
    machine::wait_for("the new entries", || (names("d") == ["f", "g", "later"]).then_some(()));
    machine::wait_for("all files to be new", || {
        ["d/g", "e/h"].iter().all(|name| fs::read(file(name)).unwrap_or_default() == b"a new one").then_some(())
    });
    assert_eq!(fs::read(file("d/later")).unwrap(), b"more");
    assert_eq!(open.metadata().unwrap().size(), 3, "who has the file open keeps its version");
    drop(open);
    mount.stop();
}
