//! What people get wrong about a cluster: one line that names the thing and the fix, and nothing half done.

use crate::processes::{Cluster, alluxio};
use std::{net::TcpListener, path::Path, process::Output};
use tests::{daemon, machine};

/// The last line that a failed command printed.
fn complaint(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("alluxio: "), "{text}");
    last
}

/// Starts a worker that cannot start, with these settings over good ones, below `home`.
fn refused(home: &Path, etcd: &str, settings: &[(&str, &str)], wait: &str) -> Output {
    std::fs::create_dir_all(home).unwrap();
    let mut command = alluxio(home, etcd);
    let good = [
        ("alluxio.worker.identity.uuid.file.path", home.join("identity").display().to_string()),
        ("alluxio.worker.page.store.dirs", home.join("pages").display().to_string()),
        ("alluxio.worker.rpc.port", "0".into()),
        ("alluxio.worker.data.port", "0".into()),
        ("alluxio.worker.web.port", "0".into()),
    ];
    for (key, value) in good.iter().map(|(key, value)| (*key, value.as_str())).chain(settings.iter().copied()) {
        command.arg("-D").arg(format!("{key}={value}"));
    }
    command.args(["process", "start", "worker", "--wait", wait]);
    daemon::run(command)
}

#[test]
fn a_worker_that_cannot_start_says_why_and_registers_nothing() {
    let Some(cluster) = Cluster::start(0) else { return };
    let etcd = cluster.etcd.endpoint();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("deeper").display().to_string();
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // Too small for a single page.
    let tmpfs = machine::Tmpfs::new(256 << 10);
    let tiny = tmpfs.path().display().to_string();
    for (settings, says) in [
        (&[("alluxio.worker.rpc.port", port.as_str())][..], &["alluxio.worker.rpc.port=", "choose another port"][..]),
        (&[("alluxio.worker.data.port", &port)], &["alluxio.worker.data.port=", "choose another port"]),
        (&[("alluxio.worker.web.port", &port)], &["alluxio.worker.web.port=", "choose another port"]),
        (
            &[("alluxio.worker.identity.uuid.file.path", &below)],
            &["identity file", "alluxio.worker.identity.uuid.file.path"],
        ),
        (&[("alluxio.worker.identity.uuid.file.path", "/proc/nothing")], &["identity file /proc/nothing"]),
        (&[("alluxio.worker.page.store.dirs", &below)], &["alluxio.worker.page.store.dirs", &below]),
        (&[("alluxio.worker.page.store.dirs", &tiny)], &["alluxio.worker.page.store.dirs", &tiny]),
        (&[("alluxio.worker.page.store.sizes", "1KB")], &["alluxio.worker.page.store.sizes=1KB"]),
        (&[("alluxio.worker.page.store.sizes", "1GB,2GB")], &["name one size for each directory"]),
        (&[("alluxio.cluster.name", "a/b")], &["alluxio.cluster.name=\"a/b\""]),
        (&[("alluxio.worker.data.server.domain.socket.address", &below)], &["domain.socket.address=", &below]),
    ] {
        let line = complaint(refused(&home.path().join("worker"), &etcd, settings, "30s"));
        for part in says {
            assert!(line.contains(part), "{settings:?}: {part} is missing in {line}");
        }
    }
    assert!(cluster.live().is_empty());
    let nodes = cluster.alluxio(["info", "nodes"]);
    assert_eq!(String::from_utf8(nodes.stdout).unwrap(), "WorkerId\tAddress\tStatus\n");
}

#[test]
fn etcd_is_waited_for_as_long_as_was_said() {
    let home = tempfile::tempdir().unwrap();
    // Nobody listens at a port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let etcd = format!("http://{free}");
    let output = refused(home.path(), &etcd, &[], "2s");
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("etcd is needed to start; tried again for"), "{log}");
    let line = complaint(output);
    assert!(line.contains("--wait") && line.contains(&free.to_string()), "{line}");
}

#[test]
fn a_mount_of_a_cluster_that_is_not_there_is_refused_by_name() {
    let Some(cluster) = Cluster::start(1) else { return };
    let wrong = cluster.mounting().option("alluxio.cluster.name=nothing");
    let mut command = daemon::command(wrong.home());
    let options = format!("alluxio.etcd.endpoints={},alluxio.cluster.name=nothing", cluster.etcd.endpoint());
    command.args(["mount", "-f", "-o", &options]).arg(wrong.point());
    let output = daemon::run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("\"nothing\" (alluxio.cluster.name); there are c"), "{said}");
    assert!(machine::mounted(&wrong.point()).is_none());
}

#[test]
fn a_storage_that_cannot_be_reached_is_mounted_by_force_only() {
    let Some(cluster) = Cluster::start(1) else { return };
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("alluxio.underfs.s3.endpoint=http://{free}");
    let words = ["mount", "add", "--path", "/s3", "--ufs-uri", "s3://bucket/p", "--option", &endpoint];
    let words = [&words[..], &["--option", "s3a.accessKeyId=a", "--option", "s3a.secretKey=hush"]].concat();
    let line = complaint(cluster.alluxio(&words));
    assert!(line.contains("--force") && line.contains(&free.to_string()) && !line.contains("hush"), "{line}");
    assert!(!String::from_utf8_lossy(&cluster.alluxio(["mount", "list"]).stdout).contains("/s3"));
    let forced = cluster.alluxio([&words[..], &["--force"]].concat());
    assert!(forced.status.success(), "{forced:?}");
    // Rules hold all the same, and name who stands in the way.
    for (path, uri, says) in [
        ("/s3", "s3://other", "s3://bucket/p is mounted there"),
        ("/x", "s3://bucket/p/q", "lies inside s3://bucket/p, which is mounted at /s3"),
        ("/x", "s3://bucket", "contains s3://bucket/p, which is mounted at /s3"),
        ("/s3/deeper", "s3://other", "do not nest"),
        ("/", "s3://other", "/ itself is no mount point"),
    ] {
        let line = complaint(cluster.alluxio(["mount", "add", "--force", "--path", path, "--ufs-uri", uri]));
        assert!(line.contains(says), "{line}");
    }
    let worker = cluster.workers[0].identity().to_string();
    let line = complaint(cluster.alluxio(["process", "remove-worker", "-n", &worker]));
    assert!(line.contains("is live: stop it first"), "{line}");
}
