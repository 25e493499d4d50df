//! `/metrics` on 127.0.0.1, and a port that is taken.

use std::net::TcpListener;

use tests::{Mount, Mounting, Store, content, mount::http_get, mounts_work, wait_for};

/// A mount whose metrics are served, and their port. Ports are chosen by us, so another process may be faster: then the
/// next one is tried.
fn with_metrics(mounting: impl Fn() -> Mounting) -> (Mount, u16) {
    for _ in 0..10 {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mount = mounting().option(format!("alluxio.fuse.web.port={port}")).start();
        if tests::try_for(std::time::Duration::from_secs(10), || serves_itself(&mount, port).then_some(())).is_some() {
            return (mount, port);
        }
    }
    panic!("no port can be had");
}

/// Whether it is this very daemon that has the port.
fn serves_itself(mount: &Mount, port: u16) -> bool {
    let address = mount.status()["status"]["metrics_address"].as_str().unwrap_or_default().to_owned();
    address.ends_with(&format!(":{port}")) && serves(port)
}

fn serves(port: u16) -> bool {
    http_get(port, "/metrics").is_ok_and(|answer| answer.contains("alluxio_version_info"))
}

/// The value of a metric without labels, or the sum over all labels.
fn value(text: &str, name: &str) -> Option<f64> {
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ') || rest.starts_with('{')))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[test]
fn metrics_tell_what_happened() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let key = store.synthetic("set/", 1, 3_000_000).key(0);
    let (mount, port) = with_metrics(|| store.mount("set").option("passthrough=off"));
    let path = mount.join(key.strip_prefix("set/").unwrap());
    assert!(std::fs::read(&path).unwrap() == content(&key, 0, 3_000_000));
    let open = std::fs::File::open(&path).unwrap();
    let text = wait_for("the figures arrive", || {
        let text = http_get(port, "/metrics").ok()?;
        let fetched = value(&text, "alluxio_ufs_data_access_bytes_total")?;
        let cached = value(&text, "alluxio_cached_storage_bytes")?;
        let files = value(&text, "alluxio_fuse_open_files")?;
        (fetched >= 3_000_000.0 && cached >= 3_000_000.0 && files >= 1.0).then_some(text)
    });
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    for name in [
        "alluxio_cached_data_read_bytes_total",
        "alluxio_missed_data_read_bytes_total",
        "alluxio_cached_capacity_bytes",
        "alluxio_cached_evicted_data_bytes_total",
        "alluxio_metadata_cache_hit_calls_total",
        "alluxio_metadata_cache_miss_calls_total",
        "alluxio_version_info",
    ] {
        assert!(value(&text, name).is_some(), "{name} is missing from\n{text}");
    }
    assert!(value(&text, "alluxio_cached_capacity_bytes").unwrap() > 1e6, "{text}");
    assert!(value(&text, "alluxio_fuse_call_latency_ms_count").is_some_and(|count| count > 0.0), "{text}");
    let missing = http_get(port, "/no/such/page").unwrap();
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    drop(open);
    mount.stop();
    assert!(!serves(port), "the port is closed");
}

#[test]
fn a_port_that_is_taken_is_a_warning() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), b"content").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mount = Mounting::of_dir(source.path()).option(format!("alluxio.fuse.web.port={port}")).start();
    assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"content");
    let log = wait_for("the warning", || Some(mount.log()).filter(|log| log.contains(&port.to_string())));
    let warnings = log.lines().filter(|line| line.contains("WARN") && line.contains(&port.to_string())).count();
    assert_eq!(warnings, 1, "{log}");
    mount.stop();
}

#[test]
fn only_this_host_sees_the_metrics() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let (mount, port) = with_metrics(|| Mounting::of_dir(source.path()));
    // Addresses in hexadecimal, little endian: 127.0.0.1 is 0100007F; 0A is a socket that listens.
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let wanted = format!(":{port:04X}");
    let listening: Vec<_> = sockets
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, _, state) = (fields.next()?, fields.next()?, fields.next()?);
            (local.ends_with(&wanted) && state == "0A").then(|| local.to_owned())
        })
        .collect();
    assert!(listening.iter().all(|local| local.starts_with("0100007F")) && !listening.is_empty(), "{listening:?}");
    mount.stop();
}
