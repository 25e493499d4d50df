//! The command line: how mounts are made, shown and taken away.

use std::{
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use tests::{
    Mounting, Store, daemon,
    data::errno,
    machine::{MountPoint, detach, mounted},
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
    let shown = mounted(mount.path()).unwrap();
    assert_eq!((shown.kind.as_str(), shown.source.as_str()), ("fuse.alluxio-fuse", "alluxio-fuse"));
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
    mount.abandon();
    assert_eq!(errno(&std::fs::metadata(place.path())), libc::ENOTCONN);
    let home = tempfile::tempdir().unwrap();
    let mut command = daemon::command(home.path());
    command.arg("umount").arg(place.path());
    let output = daemon::run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_unmounted(&place.path());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
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

/// Changes a command to run as nobody, from a directory that is nobody's.
fn as_nobody(command: &mut Command) -> &mut Command {
    command.uid(NOBODY).gid(NOBODY)
}

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
    let (data, point) = (home.path().join("data"), home.path().join("mnt"));
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("file"), b"content").unwrap();
    for path in [home.path(), &data, &data.join("file")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let _point = Detached(point.clone());
    let run = |words: &[&str]| {
        let mut command = daemon::command_of(&program, home.path());
        as_nobody(command.args(words));
        daemon::run(command)
    };
    let (data, shown) = (data.to_str().unwrap(), point.to_str().unwrap());
    let output = run(&["mount", "-o", "alluxio.fuse.web.port=0", data, shown]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let entry = mounted(&point).unwrap();
    assert_eq!(entry.kind, "fuse.alluxio-fuse");
    // Not even root may look into the mount of a plain user.
    let mut cat = Command::new("cat");
    as_nobody(cat.arg(point.join("file")).current_dir("/").stdin(Stdio::null()));
    let read = daemon::run(cat);
    assert_eq!(read.stdout, b"content", "{}", String::from_utf8_lossy(&read.stderr));
    let status = run(&["status"]);
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains(shown) && text.contains("passthrough") && text.contains("off"), "{text}");
    let output = run(&["umount", shown]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_unmounted(&point);
}

/// Takes away what a failed test leaves mounted.
struct Detached(PathBuf);

impl Drop for Detached {
    fn drop(&mut self) {
        detach(&self.0);
    }
}
