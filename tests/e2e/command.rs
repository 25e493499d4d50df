//! The command line: how mounts are made, shown and taken away.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use nix::sys::signal::Signal;
use tests::{
    Mounting, Store, daemon,
    machine::{MountPoint, dead, mounted},
    mount::wait_unmounted,
    mounts_work, wait_for,
};

fn source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), b"content").unwrap();
    source
}

#[test]
fn a_mount_in_the_background_answers_when_the_command_returns() {
    if !mounts_work() {
        return;
    }
    let source = source();
    let mounting = Mounting::of_dir(source.path());
    assert!(!mounting.point().exists(), "the mount point is made when it is missing");
    let mount = mounting.start_in_background();
    assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"content");
    assert_eq!(mounted(mount.path()).unwrap().kind, "fuse.alluxio-fuse");
    let status = mount.status();
    assert!(status.to_string().contains(source.path().to_str().unwrap()), "{status}");
    let text = mount.run(&["status"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains(mount.path().to_str().unwrap()) && text.to_lowercase().contains("passthrough"), "{text}");

    let output = mount.run(&["umount", mount.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_unmounted(mount.path());
    assert!(!mount.path().join("file").exists());
}

#[test]
fn s3_is_mounted_in_the_background_too() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("dir/file", *b"content");
    let mount = store.mount("").start_in_background();
    assert_eq!(std::fs::read(mount.join("dir/file")).unwrap(), b"content");
    assert_eq!(mounted(mount.path()).unwrap().kind, "fuse.alluxio-fuse");
    let output = mount.run(&["unmount", mount.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_unmounted(mount.path());
}

#[test]
fn the_form_of_fstab_mounts() {
    if !mounts_work() {
        return;
    }
    let source = source();
    let place = MountPoint::new();
    let home = tempfile::tempdir().unwrap();
    let mut command = daemon::command(home.path());
    let cache = format!("rw,_netdev,alluxio.fuse.web.port=0,local_data_cache={}", home.path().join("pages").display());
    command.arg(format!("file://{}", source.path().display())).arg(place.path()).args(["-o", &cache]);
    let output = daemon::run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(place.path().join("file")).unwrap(), b"content");
    let mut command = daemon::command(home.path());
    command.arg("umount").arg(place.path());
    assert!(daemon::run(command).status.success());
    wait_unmounted(&place.path());
}

#[test]
fn signals_unmount_and_leave_nothing_behind() {
    if !mounts_work() {
        return;
    }
    let source = source();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut mount = Mounting::of_dir(source.path()).start();
        // Also while a file is open and the mount is somebody's working directory.
        let open = std::fs::File::open(mount.join("file")).unwrap();
        mount.signal(signal);
        let status = mount.wait();
        assert!(status.is_some_and(|status| status.success()), "{signal}: {status:?}\n{}", mount.log());
        assert_eq!(mounted(mount.path()), None, "{signal}");
        drop(open);
        let status = mount.run(&["status", "--format", "json"]);
        let printed = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(!printed.contains(mount.path().to_str().unwrap()), "{signal}: {printed}");
    }
}

#[test]
fn a_dead_mount_can_be_unmounted() {
    if !mounts_work() {
        return;
    }
    let source = source();
    let place = MountPoint::new();
    let mount = Mounting::of_dir(source.path()).at(&place.path()).start();
    let home = tempfile::tempdir().unwrap();
    mount.abandon();
    assert!(dead(&place.path()));
    let mut command = daemon::command(home.path());
    command.arg("umount").arg(place.path());
    let output = daemon::run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_unmounted(&place.path());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn a_dead_mount_is_shown_as_dead() {
    if !mounts_work() {
        return;
    }
    let source = source();
    let mut mount = Mounting::of_dir(source.path()).start();
    assert_eq!(mount.status()["state"], "running");
    mount.kill();
    assert_eq!(mount.status()["state"], "dead");
    let output = mount.run(&["umount", mount.path().to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_unmounted(mount.path());
    let text = mount.run(&["status"]);
    assert!(!String::from_utf8_lossy(&text.stdout).contains(mount.path().to_str().unwrap()));
}

#[test]
fn what_is_not_mounted_cannot_be_unmounted() {
    let home = tempfile::tempdir().unwrap();
    for target in ["/", home.path().to_str().unwrap(), "/no/such/directory"] {
        let mut command = daemon::command(home.path());
        command.args(["umount", target]);
        let output = daemon::run(command);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{target}: {message}");
        assert!(message.contains(target) && message.trim_end().lines().count() == 1, "{target}: {message}");
    }
    assert!(Path::new("/").read_dir().is_ok());
}

#[test]
fn a_relative_path_is_meant_from_here() {
    if !mounts_work() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("data")).unwrap();
    std::fs::write(home.path().join("data/file"), b"content").unwrap();
    let place = MountPoint::new();
    let mut command = daemon::command(home.path());
    command.args(["mount", "-o", "alluxio.fuse.web.port=0,local_data_cache=pages", "data"]).arg(place.path());
    let output = daemon::run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(place.path().join("file")).unwrap(), b"content");
    let mut command = daemon::command(home.path());
    command.arg("umount").arg(place.path());
    assert!(daemon::run(command).status.success());
    wait_unmounted(&place.path());
}

#[test]
fn the_readahead_window_is_raised() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("file", *b"content");
    let mount = store.mount("").option("alluxio.fuse.readahead.kb=2048").start();
    let device = nix::sys::stat::stat(mount.path()).unwrap().st_dev;
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    // Where /sys is read-only, as in a container, the mount works all the same.
    if std::fs::File::options().write(true).open(&file).is_ok() {
        let raised = || std::fs::read_to_string(&file).ok().filter(|text| text.trim() == "2048");
        wait_for("the window is raised", raised);
    }
    mount.stop();
}

/// The user nobody, and its group.
const NOBODY: u32 = 65_534;

#[test]
fn a_plain_user_mounts_with_fusermount() {
    if !mounts_work() {
        return;
    }
    let helper = ["/usr/bin/fusermount3", "/bin/fusermount3"].into_iter().find_map(|path| std::fs::metadata(path).ok());
    if helper.is_none_or(|found| found.mode() & 0o4000 == 0) {
        eprintln!("skipped: there is no fusermount3 with the set-user-id bit");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    // Where the tests are built may be closed to others.
    let program = home.path().join("alluxio-fuse");
    std::fs::copy(daemon::program(), &program).unwrap();
    std::fs::create_dir(home.path().join("data")).unwrap();
    std::fs::write(home.path().join("data/file"), b"content").unwrap();
    for path in ["", "data", "data/file"] {
        std::os::unix::fs::chown(home.path().join(path), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // In a mount namespace of its own, where everybody may open /dev/fuse, as on an ordinary machine.
    let script = r#"
        set -e
        mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse
        nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
        trap 'umount -l mnt 2>/dev/null || true' EXIT
        nobody ./alluxio-fuse mount -o alluxio.fuse.web.port=0 data mnt
        grep " $PWD/mnt " /proc/self/mounts | cut -d' ' -f3
        nobody cat mnt/file; echo
        # Not even root may look into the mount of a plain user.
        if cat mnt/file 2>/dev/null; then echo "root can read it"; fi
        nobody ./alluxio-fuse status | grep -o 'passthrough *[a-z]*'
        nobody ./alluxio-fuse umount mnt
        if grep " $PWD/mnt " /proc/self/mounts; then echo "still mounted"; fi
    "#;
    let mut command = daemon::command_of(Path::new("unshare"), home.path());
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    let output = daemon::run(command);
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{said}");
    let lines: Vec<_> = printed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["fuse.alluxio-fuse", "content", "passthrough off"], "{said}");
}
