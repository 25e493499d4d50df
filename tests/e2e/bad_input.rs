//! Bad input: one line that names the thing and the fix, an exit code other than 0, and nothing left mounted.

use std::{
    net::TcpListener,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    process::Output,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};

use tests::{
    Mounting, Store, daemon,
    machine::{MountPoint, mounted},
    mounts_work,
};

/// A mount that must fail, in the background and in the foreground: the message is one line with each of `parts`.
#[track_caller]
fn refused(mounting: impl Fn() -> Mounting, parts: &[&str]) {
    let background = {
        let mounting = mounting();
        let point = mounting.point();
        let before = mounted(&point);
        let mut command = daemon::command(mounting.home());
        command.args(["mount", "-o", &mounting.option_text(), mounting.uri()]).arg(&point);
        let output = daemon::run(command);
        assert_eq!(mounted(&point), before, "{parts:?}: something is mounted");
        output
    };
    let message = String::from_utf8_lossy(&background.stderr).into_owned();
    check(&background, &message, parts);
    assert_eq!(message.trim_end().lines().count(), 1, "one line, not: {message}");

    let point = mounting().point();
    let before = mounted(&point);
    let failure = match mounting().try_start() {
        Ok(_) => panic!("{parts:?}: it was mounted"),
        Err(failure) => failure,
    };
    let status =
        failure.status.unwrap_or_else(|| panic!("{parts:?}: it neither ended nor mounted: {}", failure.message));
    assert!(!status.success(), "{parts:?}");
    let last = failure.message.trim_end().lines().last().unwrap_or_default().to_owned();
    parts
        .iter()
        .for_each(|part| assert!(last.contains(part), "{part:?} is not in the last line of: {}", failure.message));
    assert_eq!(mounted(&point), before, "{parts:?}: something is mounted");
}

#[track_caller]
fn check(output: &Output, message: &str, parts: &[&str]) {
    assert!(output.status.code().is_some_and(|code| code != 0), "{parts:?}: {:?}: {message}", output.status);
    parts.iter().for_each(|part| assert!(message.contains(part), "{part:?} is not in: {message}"));
    assert!(!message.contains("panicked"), "{message}");
}

fn source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), b"content").unwrap();
    source
}

#[test]
fn uris_that_cannot_be_used() {
    if !mounts_work() {
        return;
    }
    refused(|| Mounting::of("nfs://server/export"), &["nfs"]);
    refused(|| Mounting::of("s3://"), &["s3://", "bucket"]);
    refused(|| Mounting::of("/no/such/directory"), &["/no/such/directory"]);
    refused(|| Mounting::of("file://host/x"), &["file://host/x"]);
    let source = source();
    let file = source.path().join("file");
    refused(|| Mounting::of_dir(&file), &[file.to_str().unwrap()]);
}

#[test]
fn a_bucket_that_does_not_exist() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    refused(|| Mounting::of("s3://no-such-bucket/x").options(store.options()), &["no-such-bucket"]);
}

#[test]
fn wrong_credentials() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("file", *b"content");
    refused(|| store.mount("").option("s3a.secretKey=tellnobody"), &["data"]);
    refused(|| store.mount("").option("s3a.accessKeyId=nobody").option("s3a.secretKey=tellnobody"), &["data"]);
    let half = || {
        Mounting::of(store.uri("")).options(store.options().into_iter().filter(|option| !option.contains("secretKey")))
    };
    refused(half, &["s3a.accessKeyId", "s3a.secretKey"]);
    // A secret is never printed.
    let mounting = store.mount("").option("s3a.secretKey=tellnobody");
    let message = mounting.try_start().err().expect("wrong credentials").message;
    assert!(!message.contains("tellnobody"), "{message}");
}

#[test]
fn an_endpoint_that_is_not_there() {
    if !mounts_work() {
        return;
    }
    // A socket that is bound and does not listen: the port is taken, and connections are refused.
    let (_socket, port) = bound();
    let endpoint = format!("http://127.0.0.1:{port}");
    let mounting = || {
        Mounting::of("s3://data/x").options([
            format!("alluxio.underfs.s3.endpoint={endpoint}"),
            "alluxio.underfs.s3.region=us-east-1".into(),
            "s3a.accessKeyId=key".into(),
            "s3a.secretKey=secret".into(),
        ])
    };
    refused(mounting, &[&format!("127.0.0.1:{port}")]);
}

fn bound() -> (OwnedFd, u16) {
    let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address: SockaddrIn = getsockname(socket.as_raw_fd()).unwrap();
    (socket, address.port())
}

#[test]
fn a_server_that_never_answers() {
    if !mounts_work() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mounting = Mounting::of("s3://data/x").options([
        format!("alluxio.underfs.s3.endpoint=http://{address}"),
        "alluxio.underfs.s3.region=us-east-1".into(),
        "s3a.accessKeyId=key".into(),
        "s3a.secretKey=secret".into(),
    ]);
    let point = mounting.point();
    let failure = mounting.try_start().err().expect("nobody answers");
    assert!(failure.status.is_some_and(|status| !status.success()), "{failure:?}");
    assert!(failure.message.contains("data"), "{failure:?}");
    assert_eq!(mounted(&point), None);
}

#[test]
fn mount_points_that_cannot_be_used() {
    if !mounts_work() {
        return;
    }
    let source = source();
    let place = tempfile::tempdir().unwrap();
    let (file, full, below) =
        (place.path().join("a file"), place.path().join("full"), place.path().join("a file/below"));
    std::fs::write(&file, b"x").unwrap();
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("something"), b"x").unwrap();
    let at = |point: &Path| {
        let point = point.to_owned();
        let source = source.path().to_owned();
        move || Mounting::of_dir(&source).at(&point)
    };
    refused(at(&file), &[file.to_str().unwrap()]);
    refused(at(&full), &[full.to_str().unwrap(), "empty"]);
    refused(at(&below), &[below.to_str().unwrap()]);
    assert_eq!(std::fs::read(full.join("something")).unwrap(), b"x");

    let mount = Mounting::of_dir(source.path()).start();
    refused(at(mount.path()), &[mount.path().to_str().unwrap(), "mounted"]);
    assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"content", "the mount that was there still works");
    mount.stop();
    // The mount point within the directory that is mounted would show itself.
    let inside = MountPoint::new();
    let parent = inside.path().parent().unwrap().to_owned();
    let point = inside.path();
    let result = Mounting::of_dir(&parent).at(&point).try_start();
    if let Ok(mount) = result {
        // Allowed or not: it must not hang.
        let _ = std::fs::read_dir(mount.path()).map(Iterator::count);
        mount.stop();
    }
    assert_eq!(mounted(&point), None);
}

#[test]
fn options_that_cannot_be_used() {
    if !mounts_work() {
        return;
    }
    let source = source();
    for (options, parts) in [
        (&["kernel_cahce"][..], &["kernel_cahce", "kernel_cache"][..]),
        (&["banana=7"], &["banana"]),
        (&["kernel_cache", "direct_io"], &["direct_io", "kernel_cache"]),
        (&["allow_other", "allow_root"], &["allow_root", "allow_other"]),
        (&["ro", "rw"], &["ro", "rw"]),
        (&["max_background=0"], &["max_background=0"]),
        (&["attr_timeout=-1"], &["attr_timeout=-1"]),
        (&["attr_timeout=soon"], &["attr_timeout=soon"]),
        (&["attr_timeout"], &["attr_timeout", "value"]),
        (&["passthrough=on"], &["passthrough=on", "AUTO"]),
        (&["fsname=x"], &["fsname"]),
        (&["local_data_cache_size=12QB"], &["local_data_cache_size=12QB"]),
        (&["alluxio.fuse.web.port=70000"], &["alluxio.fuse.web.port", "70000"]),
        (&["alluxio.user.client.cache.page.size=1"], &["alluxio.user.client.cache.page.size"]),
        (&["alluxio.user.memory.limit=1KB"], &["alluxio.user.memory.limit"]),
        (
            &[
                "alluxio.user.client.cache.watermark.low.ratio=0.9",
                "alluxio.user.client.cache.watermark.high.ratio=0.8",
            ],
            &["alluxio.user.client.cache.watermark.low.ratio", "alluxio.user.client.cache.watermark.high.ratio"],
        ),
        (&["alluxio.user.client.cache.sizes=1GB\\,2GB"], &["alluxio.user.client.cache.sizes"]),
    ] {
        refused(|| Mounting::of_dir(source.path()).options(options.iter().copied()), parts);
    }
}

#[test]
fn an_unknown_key_is_a_warning_with_the_nearest_one() {
    if !mounts_work() {
        return;
    }
    let source = source();
    let mount = Mounting::of_dir(source.path()).option("alluxio.user.metadata.cache.max.sise=7").start();
    assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"content");
    let log = mount.log();
    assert!(
        log.contains("alluxio.user.metadata.cache.max.sise") && log.contains("alluxio.user.metadata.cache.max.size"),
        "{log}"
    );
    mount.stop();
}

#[test]
fn caches_that_cannot_be() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("file", *b"content");
    // Inside the mount point: the daemon would wait for itself.
    let place = MountPoint::new();
    let inside = place.path().join("cache");
    refused(|| store.mount("").at(&place.path()).cache(&inside), &[inside.to_str().unwrap()]);
    assert!(!inside.exists());
    // Larger than the disk.
    refused(|| store.mount("").option("local_data_cache_size=900TiB"), &["capacity", "disk"]);
    // A file where the directory should be.
    let file = tempfile::NamedTempFile::new().unwrap();
    refused(|| store.mount("").cache(file.path()), &[file.path().to_str().unwrap()]);
}

#[test]
fn command_lines_that_make_no_sense() {
    let home = tempfile::tempdir().unwrap();
    for words in [
        &["mount"][..],
        &["mount", "/tmp", "/a", "/b"],
        &["frobnicate"],
        &["status", "--format", "xml"],
        &["umount"],
        &["mount", "-o"],
    ] {
        let mut command = daemon::command(home.path());
        command.args(words);
        let output = daemon::run(command);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        check(&output, &message, &[]);
        assert!(!message.trim().is_empty(), "{words:?} says nothing");
    }
}
