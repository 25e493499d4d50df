//! The command line against what runs: the log of a mount, placement, and the report.

use crate::processes::{Cluster, alluxio};
use std::process::Output;
use tests::{machine, mount::Mount, s3::Store};

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs `alluxio` as the user who made the mount.
fn beside(cluster: &Cluster, mount: &Mount, words: &[&str]) -> Output {
    alluxio(mount.home(), &cluster.etcd.endpoint()).args(words).output().unwrap()
}

#[test]
fn the_log_of_a_running_mount_changes_by_command() {
    let Some(cluster) = Cluster::start(1) else { return };
    let store = Store::start();
    store.put("file", *b"content");
    cluster.mount_add("/data", &store);
    let mount = cluster.mounting().start();
    let point = mount.path().to_str().unwrap().to_owned();
    let before = text(&beside(&cluster, &mount, &["conf", "log", "--target", "fuse"]));
    assert!(before.starts_with(&format!("{point}\t")) && before.lines().count() == 1, "{before}");
    let words = ["logLevel", "--logName", "h2", "--level", "TRACE", "--target", &point];
    let changed = text(&beside(&cluster, &mount, &words));
    assert!(changed.ends_with("h2=trace\n"), "{changed}");
    // It talks to etcd all the time.
    machine::wait_for("the log to say more", || mount.log().contains(" TRACE ").then_some(()));
    // A worker and a mount at once.
    let both = text(&beside(&cluster, &mount, &["conf", "log", "--target", "workers,fuse", "--level", "info"]));
    assert_eq!(both.lines().count(), 2, "{both}");
    assert!(both.lines().all(|line| line.ends_with("\tinfo")), "{both}");
    mount.stop();
    let gone = cluster.alluxio(["conf", "log", "--target", point.as_str()]);
    assert_eq!(gone.status.code(), Some(1), "{gone:?}");
}

#[test]
fn a_worker_that_stands_still_is_reported_and_holds_nobody_up() {
    let Some(cluster) = Cluster::start(2) else { return };
    let report = || text(&cluster.alluxio(["info", "report", "--format", "json"]));
    assert_eq!(report().matches("\"ONLINE\"").count(), 2);
    cluster.workers[1].signal(nix::sys::signal::Signal::SIGSTOP);
    let said = report();
    cluster.workers[1].signal(nix::sys::signal::Signal::SIGCONT);
    // Its lease may have ended meanwhile.
    assert!(said.contains("\"SILENT\"") || said.contains("\"OFFLINE\""), "{said}");
    assert!(said.contains("\"ONLINE\""), "{said}");
}
