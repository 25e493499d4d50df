//! Commands that ask workers: the report, log levels, what is cached, copies, and the test of the cluster itself.

use super::{Cluster, wait_until};
use crate::etcd_server::EtcdServer;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Files of 0, 5, 300,000 and 3,000,000 bytes, the largest two in a directory of their own.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("dir/deep")).unwrap();
    for (name, size) in [("empty", 0), ("small", 5), ("dir/middle", 300_000), ("dir/deep/large", 3_000_000)] {
        let bytes: Vec<u8> = (0..size as u32).map(|number| (number % 249) as u8).collect();
        fs::write(root.join(name), bytes).unwrap();
    }
}

/// A cluster of one worker with a directory mounted at /data.
fn with_data(test: impl FnOnce(&Cluster, &Path)) {
    let Some(etcd) = EtcdServer::start() else { return };
    let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(source.path());
    let cluster = Cluster { etcd: &etcd, dir: dir.path().to_owned() };
    let _stop = cluster.worker();
    cluster.good(&["mount", "add", "--path", "/data", "--ufs-uri", &format!("file://{}", source.path().display())]);
    test(&cluster, source.path());
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The bytes that `check-cached` says are cached of how many.
fn cached(cluster: &Cluster, path: &str) -> (u64, u64) {
    let text = cluster.good(&["fs", "check-cached", path]);
    let last = text.lines().last().unwrap();
    let numbers: Vec<u64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

#[test]
fn what_is_read_through_the_workers_is_cached_reported_and_freed() {
    with_data(|cluster, source| {
        assert!(cluster.good(&["info", "report"]).contains("Cached files: 0\n"));
        assert_eq!(cached(cluster, "/data"), (0, 3_300_005));
        let copy = cluster.dir.join("copy");
        let said = cluster.good(&["fs", "cp", "-R", "--preserve", "alluxio:///data", copy.to_str().unwrap()]);
        assert!(said.starts_with("Copied 4 files, 3300005 bytes"), "{said}");
        for name in ["empty", "small", "dir/middle", "dir/deep/large"] {
            assert!(fs::read(copy.join(name)).unwrap() == fs::read(source.join(name)).unwrap(), "{name}");
            let (one, other) = (fs::metadata(copy.join(name)).unwrap(), fs::metadata(source.join(name)).unwrap());
            assert_eq!(one.modified().unwrap(), other.modified().unwrap(), "{name}");
        }
        // Pages are stored a moment after they were sent.
        wait_until(|| cached(cluster, "/data") == (3_300_005, 3_300_005));
        let checked = cluster.good(&["fs", "check-cached", "/data/dir/deep/large"]);
        let mut lines = checked.lines();
        assert_eq!(lines.next(), Some("Cached\tSize\tPercent\tWorker\tPath"));
        let fields: Vec<&str> = lines.next().unwrap().split('\t').collect();
        assert_eq!((&fields[..3], fields[4]), (&["3000000", "3000000", "100%"][..], "/data/dir/deep/large"));
        assert!(fields[3].starts_with("worker-"), "{checked}");
        let by_uri = format!("file://{}/dir/middle", source.display());
        assert_eq!(cached(cluster, &by_uri), (300_000, 300_000));
        let limited = cluster.good(&["fs", "check-cached", "--limit", "1", "/data"]);
        assert!(limited.ends_with("(stopped there; see --limit 1)\n"), "{limited}");

        let report = json(&cluster.good(&["info", "report", "--format", "json"]));
        assert_eq!(report["workers"][0]["status"], "ONLINE");
        assert_eq!(report["capacityBytes"], 64 << 20);
        assert_eq!(report["mounts"][0]["path"], "/data");
        assert!(report["usedBytes"].as_u64().unwrap() >= 3_300_005, "{report}");
        assert!(cluster.good(&["info", "report", "capacity"]).contains("Capacity: 64.00MB\n"));
        assert!(cluster.good(&["info", "report", "ufs"]).starts_with("Mounts: 1\nfile://"));

        assert!(cluster.good(&["cache", "free", "/data/dir/middle"]).contains(" on 1 workers\n"));
        assert_eq!(cached(cluster, "/data"), (3_000_005, 3_300_005));
        cluster.good(&["cache", "free", "/data/dir"]);
        assert_eq!(cached(cluster, "/data"), (5, 3_300_005));
        assert!(cluster.bad(&["cache", "free", "/other/dir"]).contains("nothing is mounted at /other"));
        cluster.good(&["cache", "free", "--all"]);
        assert_eq!(cached(cluster, "/data"), (0, 3_300_005));
        assert_eq!(
            cluster.good(&["fs", "cat", "alluxio:///data/small"]).into_bytes(),
            fs::read(source.join("small")).unwrap()
        );
        let listed = cluster.good(&["fs", "ls", "alluxio:///"]);
        assert!(listed.starts_with('d') && listed.ends_with(" DIR alluxio:///data\n"), "{listed}");
        assert!(cluster.good(&["fs", "ls", "alluxio:///data/dir/"]).contains(" FILE alluxio:///data/dir/middle\n"));
        assert!(cluster.bad(&["fs", "check-cached", "s3://elsewhere/x"]).contains("no mounted under storage"));
    });
}

#[test]
fn the_log_of_a_running_worker_changes_by_command() {
    with_data(|cluster, _| {
        let before = cluster.good(&["conf", "log"]);
        let (worker, directives) = before.trim_end().split_once('\t').unwrap();
        assert!(worker.starts_with("worker-") && directives == "info", "{before}");
        let log = || fs::read_to_string(cluster.dir.join("worker.log")).unwrap();
        assert!(!log().contains(" DEBUG "), "{}", log());
        let changed = cluster.good(&["conf", "log", "--name", "h2", "--level", "DEBUG", "--target", worker]);
        assert_eq!(changed, format!("{worker}\tinfo,h2=debug\n"));
        // Any further call is a connection, of which that part says much.
        wait_until(|| {
            cluster.good(&["conf", "log"]);
            log().contains("DEBUG")
        });
        let address = cluster.good(&["info", "nodes"]).lines().nth(1).unwrap().split('\t').nth(1).unwrap().to_owned();
        assert_eq!(
            cluster.good(&["logLevel", "--logName", "h2", "--level", "off", "--target", &address]),
            format!("{worker}\tinfo,h2=off\n")
        );
        assert_eq!(cluster.good(&["conf", "log", "--level", "warn"]), format!("{worker}\twarn\n"));
        for (words, says) in [
            (&["--level", "loud"][..], "--level loud"),
            (&["--name", "a=b,c", "--level", "info"], "--name a=b,c"),
            (&["--target", "master"], "--target master"),
            (&["--target", "127.0.0.1:1"], "no such worker is live"),
            (&["--target", "/nowhere"], "no mount of this user"),
        ] {
            let said = cluster.bad(&[&["conf", "log"][..], words].concat());
            assert!(said.contains(says), "{said}");
        }
    });
}

#[test]
fn the_cluster_tests_itself() {
    with_data(|cluster, source| {
        let directory = cluster.dir.join("scratch");
        fs::create_dir(&directory).unwrap();
        let place = directory.to_str().unwrap();
        let said = cluster.good(&["exec", "basicIOTest", "--bytes", "4MB", "--directory", place]);
        assert!(said.ends_with("\nPassed the test!\n"), "{said}");
        for part in [
            "ok      etcd: 1 live workers, 1 mounts",
            "ok      read /data/dir/deep/large: ",
            "ok      write, read, remove in ",
        ] {
            assert!(said.contains(part), "{part} is missing in {said}");
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0, "nothing is left there");
        assert!(cluster.good(&["runTests", "--path", "/data/dir"]).ends_with("Passed the test!\n"));

        // What fails is named, and the rest is tried all the same.
        fs::remove_dir_all(source).unwrap();
        let Output { status, stdout, .. } = cluster.run(&["exec", "runTests", "--directory", "/nonexistent"]);
        let said = String::from_utf8(stdout).unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.ends_with("Failed the test!\n"), "{said}");
        assert!(
            said.contains("FAILED  list /data: ")
                && said.contains("FAILED  write, read, remove in /nonexistent: create a file: "),
            "{said}"
        );
    });
}
