//! Volumes of the namespace of a cluster: a real etcd, and a worker that reads an S3 server.

#[allow(dead_code)]
#[path = "../../../client/tests/cluster/etcd_server.rs"]
mod etcd_server;

use crate::harness::{Kubelet, Process, alone, read};
use etcd_server::EtcdServer;
use nix::sys::signal::Signal;
use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};
use tests::{Store, content, daemon, wait_for};
use tonic::Code;

/// The command line, which is built when it is missing.
fn program() -> PathBuf {
    let path = daemon::program().with_file_name("alluxio");
    if !path.exists() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "-q", "-p", "cli", "--bin", "alluxio"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().is_ok_and(|status| status.success()), "cannot build alluxio");
    }
    path
}

fn alluxio(home: &Path, etcd: &EtcdServer) -> Command {
    let mut command = daemon::command_of(&program(), home);
    command.arg("-D").arg(format!("alluxio.etcd.endpoints={}", etcd.endpoint()));
    command.args(["-D", "alluxio.cluster.name=c"]);
    command
}

fn worker(home: &Path, etcd: &EtcdServer) -> Process {
    let mut command = alluxio(home, etcd);
    for option in [
        format!("alluxio.worker.identity.uuid.file.path={}", home.join("identity").display()),
        format!("alluxio.worker.page.store.dirs={}", home.join("pages").display()),
        "alluxio.worker.hostname=127.0.0.1".into(),
        "alluxio.worker.rpc.port=0".into(),
        "alluxio.worker.data.port=0".into(),
        "alluxio.worker.web.port=0".into(),
    ] {
        command.arg("-D").arg(option);
    }
    let log = File::create(home.join("log")).expect("a log");
    command.args(["process", "start", "worker"]).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    Process::start(command)
}

#[test]
fn the_namespace_of_a_cluster_is_read_through_a_worker() {
    if !alone() {
        return;
    }
    let Some(etcd) = EtcdServer::start() else { return };
    let store = Store::start();
    let family = store.synthetic("set/", 3, 3_000_000);
    let home = tempfile::tempdir().unwrap();
    let _worker = worker(home.path(), &etcd);
    let mut add = alluxio(home.path(), &etcd);
    add.args(["mount", "add", "--path", "/data", "--ufs-uri", &store.uri("")]);
    for option in store.options() {
        add.args(["--option", &option]);
    }
    let added = daemon::run(add);
    assert!(added.status.success(), "{added:?}");
    let served = format!("{} is served", store.uri("").trim_end_matches('/'));
    wait_for("the worker to serve the mount", || {
        std::fs::read_to_string(home.path().join("log")).unwrap_or_default().contains(&served).then_some(())
    });

    let kubelet = Kubelet::start(&[]);
    let endpoints = format!("-Dalluxio.etcd.endpoints={}", etcd.endpoint());
    let volume = |pod: &str, path: &str, cluster: &str| {
        let attributes = [("alluxioPath", path), ("alluxioClusterName", cluster), ("javaOptions", &endpoints)];
        kubelet.request(pod, &attributes)
    };
    kubelet.publish(volume("pod", "/data/set", "c")).unwrap();
    let key = family.key(1);
    let file = kubelet.target("pod").join(key.strip_prefix("set/").unwrap());
    assert!(read(&file).unwrap() == content(&key, 0, 3_000_000), "other bytes");
    kubelet.publish(volume("root", "/", "c")).unwrap();
    assert_eq!(kubelet.daemons().len(), 1, "paths of one cluster share a session");
    kubelet.signal_daemons(Signal::SIGKILL);
    let other = kubelet.target("root").join("data").join(family.key(2));
    assert!(read(&other).unwrap() == content(&family.key(2), 0, 3_000_000), "other bytes");

    let refused = kubelet.publish(volume("none", "/data/no-such", "c")).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let refused = kubelet.publish(volume("none", "/", "no-such")).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("no-such"), "{refused}");
    for pod in ["pod", "root"] {
        kubelet.unpublish(pod).unwrap();
    }
    kubelet.nothing_left();
}
