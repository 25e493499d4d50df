//! A cluster as a user runs it: a real etcd, a worker as a daemon, mounts, and what the commands say.

mod commands;
#[allow(dead_code)] // Other suites use the rest of it.
#[path = "../../../client/tests/cluster/etcd_server.rs"]
mod etcd_server;

use etcd_server::EtcdServer;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Cluster<'a> {
    etcd: &'a EtcdServer,
    dir: PathBuf,
}

impl Cluster<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let dir = self.dir.display();
        let mut command = Command::new(env!("CARGO_BIN_EXE_alluxio"));
        command
            .args(["-D", &format!("alluxio.etcd.endpoints={}", self.etcd.endpoint())])
            .args(["-D", &format!("alluxio.worker.identity.uuid.file.path={dir}/identity")])
            .args(["-D", &format!("alluxio.worker.page.store.dirs={dir}/cache")])
            .args(["-D", "alluxio.worker.page.store.sizes=64MiB", "-D", "alluxio.worker.hostname=127.0.0.1"])
            .args([
                "-D",
                "alluxio.worker.rpc.port=0",
                "-D",
                "alluxio.worker.data.port=0",
                "-D",
                "alluxio.worker.web.port=0",
            ])
            .args(arguments)
            .env_clear()
            .env("ALLUXIO_CONF_DIR", "/nonexistent")
            .stdin(Stdio::null());
        command
    }

    fn good(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(arguments);
        assert!(status.success(), "{arguments:?}: {status} {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// Starts a worker in the background; it ends with the answer.
    fn worker(&self) -> Stop<'_> {
        let log = self.dir.join("worker.log");
        self.good(&["process", "start", "worker", "--daemon", "--wait", "60s", "--log-file", log.to_str().unwrap()]);
        Stop(self)
    }

    fn bad(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(arguments);
        assert_eq!((status.code(), &stdout[..]), (Some(1), &b""[..]), "{arguments:?}");
        let text = String::from_utf8(stderr).unwrap();
        assert!(text.lines().last().is_some_and(|line| line.starts_with("alluxio: ")), "{text}");
        text
    }
}

/// Ends the worker however the test ends.
struct Stop<'a>(&'a Cluster<'a>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.run(&["process", "stop", "worker"]);
    }
}

#[test]
fn a_worker_from_start_to_removal() {
    let Some(etcd) = EtcdServer::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster { etcd: &etcd, dir: dir.path().to_owned() };
    assert_eq!(cluster.good(&["info", "nodes"]), "WorkerId\tAddress\tStatus\n");
    let nobody = cluster.bad(&["fs", "location", "s3://bucket/path"]);
    assert!(nobody.contains("no worker has ever registered") && nobody.contains("start a worker first"), "{nobody}");
    assert!(cluster.bad(&["process", "stop", "worker"]).contains("no worker runs"));

    let log = dir.path().join("logs/worker.log");
    let start = ["process", "start", "worker", "--daemon", "--wait", "60s", "--log-file", log.to_str().unwrap()];
    let announced = cluster.good(&start);
    let stop = Stop(&cluster);
    let identity = std::fs::read_to_string(dir.path().join("identity")).unwrap().trim().to_owned();
    let nodes = cluster.good(&["info", "nodes"]);
    let row = nodes.lines().nth(1).unwrap();
    let [worker, address, status] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{nodes}") };
    assert_eq!((worker.replace('-', ""), status), (format!("worker{identity}"), "ONLINE"));
    assert!(announced.starts_with(&format!("{worker} serves at {address} ")), "{announced} {address}");
    assert_eq!(
        cluster.good(&["fs", "location", "--replicas", "3", "s3://bucket/path"]),
        format!("{worker}\t{address}\n")
    );
    assert!(cluster.bad(&start).contains("runs already"));
    assert!(cluster.bad(&["process", "remove-worker", "-n", worker]).contains("is live"));
    let elsewhere = ["-D", "alluxio.cluster.name=Other", "fs", "location", "s3://bucket/path"];
    let said = cluster.bad(&elsewhere);
    assert!(said.contains("\"Other\" (alluxio.cluster.name); there are DefaultAlluxioCluster"), "{said}");

    drop(stop);
    wait_until(|| cluster.good(&["info", "nodes"]).ends_with("\tOFFLINE\n"));
    assert!(cluster.bad(&["cache", "free", "--all"]).contains("no worker is live"));
    let removed = cluster.good(&["process", "remove-worker", "-n", worker]);
    assert_eq!(removed, format!("Successfully removed worker: {worker}\n"));
    assert_eq!(cluster.good(&["info", "nodes"]), "WorkerId\tAddress\tStatus\n");
    assert!(cluster.bad(&["process", "remove-worker", "-n", worker]).contains("not registered"));
    assert!(cluster.bad(&["process", "remove-worker", "-n", "nobody"]).contains("nobody"));
}

#[test]
fn mounts_are_added_listed_and_removed() {
    let Some(etcd) = EtcdServer::start() else { return };
    let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let cluster = Cluster { etcd: &etcd, dir: dir.path().to_owned() };
    let uri = format!("file://{}", source.path().display());
    assert_eq!(cluster.good(&["mount", "list"]), "Listing all mount points\n");
    let none = Path::new(&uri).join("none");
    let none = none.to_str().unwrap();
    assert!(cluster.bad(&["mount", "add", "--path", "/data", "--ufs-uri", none]).contains("--force"));
    assert_eq!(cluster.good(&["mount", "list"]), "Listing all mount points\n");
    cluster.good(&["mount", "add", "--path", "/data", "--ufs-uri", &uri]);
    let inside = format!("{uri}/inside");
    let refused = cluster.bad(&["mount", "add", "--path", "/more", "--ufs-uri", &inside, "--force"]);
    assert!(refused.contains("lies inside") && refused.contains("/data"), "{refused}");
    let secret =
        ["mount", "add", "--path", "/s3", "--ufs-uri", "s3://bucket/x", "--force", "--option", "s3a.secretKey=hush"];
    cluster.good(&secret);
    let listed = cluster.good(&["mount", "list"]);
    assert_eq!(
        listed,
        format!(
            "Listing all mount points\n{uri} on /data properties={{}}\ns3://bucket/x on /s3 properties={{s3a.secretKey=******}}\n"
        )
    );
    cluster.good(&["mount", "remove", "--path", "/data"]);
    assert!(cluster.bad(&["mount", "remove", "--path", "/data"]).contains("nothing is mounted at /data"));
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let Some(etcd) = EtcdServer::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("identity"), "not an identity").unwrap();
    let cluster = Cluster { etcd: &etcd, dir: dir.path().to_owned() };
    let log = dir.path().join("worker.log");
    let said = cluster.bad(&["process", "start", "worker", "--daemon", "--log-file", log.to_str().unwrap()]);
    assert!(said.contains("32 hexadecimal digits") && said.contains("identity"), "{said}");
}

fn wait_until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never came true");
        std::thread::sleep(Duration::from_millis(50));
    }
}
