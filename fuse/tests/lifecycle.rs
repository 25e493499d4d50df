//! The life of real mounts, through the program itself: every way to start, to end and to be killed.
//!
//! Each test has its own directories and its own state directory, and takes down what it made even when it fails.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Waiting is polling, with this bound.
const PATIENCE: Duration = Duration::from_secs(30);
const NOBODY: u32 = 65534;

/// The directories of one test.
struct Room {
    dir: tempfile::TempDir,
    uid: u32,
    children: Vec<Child>,
}

impl Room {
    fn new() -> Self {
        Self::of(0)
    }

    fn of(uid: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let room = Room { dir, uid, children: Vec::new() };
        fs::create_dir(room.path("source")).unwrap();
        fs::write(room.path("source/file"), "content").unwrap();
        fs::create_dir(room.path("work")).unwrap();
        if uid != 0 {
            chown(room.path("work"), Some(uid), Some(uid)).unwrap();
        }
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        // As the kernel shows it.
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn point(&self) -> PathBuf {
        self.path("work/mnt")
    }

    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alluxio-fuse"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("ALLUXIO_FUSE_RUNTIME_DIR", self.path("work/state"))
            .env("ALLUXIO_CONF_DIR", self.path("conf"))
            .env(
                "ALLUXIO_FUSE_JAVA_OPTS",
                format!(
                    "-Dalluxio.fuse.web.port=0 -Dalluxio.fuse.mount.timeout=30s -Dalluxio.user.client.cache.dirs={}",
                    self.path("work/cache").display()
                ),
            )
            .stdin(Stdio::null())
            .current_dir("/");
        if self.uid != 0 {
            command.uid(self.uid).gid(self.uid);
        }
        command
    }

    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn succeed<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Output {
        let output = self.run(arguments);
        assert!(output.status.success(), "{output:?}");
        output
    }

    fn mount(&self) {
        self.succeed(["mount".as_ref(), self.path("source").as_os_str(), self.point().as_os_str()]);
    }

    /// Starts a mount in the foreground and waits until it is listed as running. Returns the place of the child.
    fn foreground(&mut self) -> usize {
        let source = self.path("source");
        let point = self.point();
        let arguments = ["mount".as_ref(), "-f".as_ref(), source.as_os_str(), point.as_os_str()];
        let child = self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.children.push(child);
        let at = self.children.len() - 1;
        wait("the mount runs", || {
            assert_eq!(self.children[at].try_wait().unwrap(), None, "the daemon ended");
            self.mounts().iter().any(|mount| mount["state"] == "running")
        });
        at
    }

    fn mounts(&self) -> Vec<serde_json::Value> {
        let output = self.succeed(["status", "--format", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report["mounts"].as_array().unwrap().clone()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.mounts()[0]["pid"].as_i64().unwrap()).unwrap()
    }

    fn code(&mut self, at: usize) -> Option<i32> {
        let mut status = None;
        wait("the daemon ends", || {
            status = self.children[at].try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    fn is_mounted(&self) -> bool {
        self.devices().contains(&self.point())
    }

    /// Our mounts below this room.
    fn devices(&self) -> Vec<PathBuf> {
        let root = self.path("");
        let mounts = fuse::session::mounts::list().unwrap();
        mounts.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(&root)).collect()
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        assert!(!self.is_mounted());
        assert!(!self.point().exists(), "the created mount point is gone");
        for entry in fs::read_dir(self.path("work/state")).unwrap() {
            assert_eq!(entry.unwrap().file_name(), "log");
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A daemon in the background ends when its mount is gone.
        for point in self.devices().iter().rev() {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

#[track_caller]
fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

fn content(point: &Path) -> String {
    fs::read_to_string(point.join("file")).unwrap()
}

/// Whether this machine lets us mount; without that there is nothing to see here.
fn can_mount() -> bool {
    let able = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !able {
        println!("skipped: needs root and /dev/fuse");
    }
    able
}

#[test]
fn a_mount_in_the_background_answers_when_the_command_returns_and_umount_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let room = Room::new();
    room.mount();
    assert_eq!(content(&room.point()), "content");
    let mount = fuse::session::mounts::at(&room.point()).unwrap().unwrap();
    assert_eq!(mount.fs_type, "fuse.alluxio-fuse");
    assert_eq!(mount.source, "alluxio-fuse");
    let again = room.run(["mount".as_ref(), room.path("source").as_os_str(), room.point().as_os_str()]);
    assert_eq!(again.status.code(), Some(1));
    let line = String::from_utf8(again.stderr).unwrap();
    assert!(line.contains("mounted there already") && line.lines().count() == 1, "{line}");
    room.succeed(["umount".as_ref(), room.point().as_os_str()]);
    room.assert_nothing_left();
}

#[test]
fn fstab_and_mount_call_it_in_their_own_form() {
    if !can_mount() {
        return;
    }
    let room = Room::new();
    let (source, point) = (room.path("source"), room.point());
    room.succeed([
        source.as_os_str(),
        point.as_os_str(),
        "-o".as_ref(),
        "rw,nosuid,_netdev,x-systemd.automount".as_ref(),
    ]);
    assert_eq!(content(&point), "content");
    room.succeed(["unmount".as_ref(), point.as_os_str()]);
    let helper = room.path("mount.fuse.alluxio-fuse");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_alluxio-fuse"), &helper).unwrap();
    for (pretend, mounted) in [(true, false), (false, true)] {
        let mut command = Command::new(&helper);
        command.env("ALLUXIO_FUSE_RUNTIME_DIR", room.path("work/state")).args([&source, &point]).args(["-o", "ro"]);
        command.args(pretend.then_some("-f")).stdin(Stdio::null());
        command.env("ALLUXIO_FUSE_JAVA_OPTS", "-Dalluxio.fuse.web.port=0 -Dalluxio.fuse.mount.timeout=30s");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(room.is_mounted(), mounted);
    }
    room.succeed(["umount".as_ref(), point.as_os_str()]);
    room.assert_nothing_left();
}

#[test]
fn a_signal_ends_a_mount_in_the_foreground() {
    if !can_mount() {
        return;
    }
    for which in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM] {
        let mut room = Room::new();
        let at = room.foreground();
        assert_eq!(content(&room.point()), "content");
        signal(room.pid(), nix::sys::signal::SIGHUP);
        signal(room.pid(), which);
        assert_eq!(room.code(at), Some(0));
        room.assert_nothing_left();
    }
}

#[test]
fn a_second_signal_forces_the_end() {
    if !can_mount() {
        return;
    }
    let mut room = Room::new();
    let at = room.foreground();
    // An open file holds up the orderly end for a moment.
    let open = fs::File::open(room.point().join("file")).unwrap();
    let pid = room.pid();
    signal(pid, nix::sys::signal::SIGTERM);
    // Whether the first is handled by then or not, both are counted: they are two different signals.
    signal(pid, nix::sys::signal::SIGINT);
    let code = room.code(at);
    assert!(matches!(code, Some(0 | 130)), "{code:?}");
    drop(open);
    room.assert_nothing_left();
}

#[test]
fn a_signal_ends_a_mount_whose_files_are_open() {
    if !can_mount() {
        return;
    }
    let mut room = Room::new();
    let at = room.foreground();
    let open = fs::File::open(room.point().join("file")).unwrap();
    signal(room.pid(), nix::sys::signal::SIGTERM);
    assert_eq!(room.code(at), Some(0));
    drop(open);
    room.assert_nothing_left();
}

#[test]
fn a_killed_daemon_leaves_a_mount_that_status_names_and_mount_replaces() {
    if !can_mount() {
        return;
    }
    let room = Room::new();
    room.mount();
    for _ in 0..2 {
        signal(room.pid(), nix::sys::signal::SIGKILL);
        wait("status sees it", || room.mounts().iter().any(|mount| mount["state"] == "dead"));
        let text = String::from_utf8(room.succeed(["status"]).stdout).unwrap();
        assert!(text.contains("dead") && text.contains("alluxio-fuse umount"), "{text}");
        room.mount();
        assert_eq!(content(&room.point()), "content");
        assert_eq!(room.mounts().len(), 1);
    }
    signal(room.pid(), nix::sys::signal::SIGKILL);
    wait("status sees it", || room.mounts().iter().any(|mount| mount["state"] == "dead"));
    room.succeed(["umount".as_ref(), room.point().as_os_str()]);
    assert!(!room.is_mounted());
    assert!(room.mounts().is_empty());
}

#[test]
fn a_busy_mount_is_detached_and_its_files_stay_readable() {
    if !can_mount() {
        return;
    }
    let room = Room::new();
    room.mount();
    let file = fs::File::open(room.point().join("file")).unwrap();
    let output = room.succeed(["umount".as_ref(), room.point().as_os_str()]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("in use"));
    assert!(!room.is_mounted());
    assert_eq!(std::io::read_to_string(&file).unwrap(), "content");
    drop(file);
    wait("the daemon ends", || room.mounts().is_empty());
}

#[test]
fn status_speaks_of_this_users_mounts_only() {
    if !can_mount() {
        return;
    }
    let (room, other) = (Room::new(), Room::new());
    other.mount();
    signal(other.pid(), nix::sys::signal::SIGKILL);
    wait("the other is dead", || other.mounts().iter().any(|mount| mount["state"] == "dead"));
    assert_eq!(String::from_utf8(room.succeed(["status"]).stdout).unwrap(), "no mounts\n");
    room.mount();
    content(&room.point());
    let mounts = room.mounts();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0]["mount_point"], room.point().to_str().unwrap());
    assert!(mounts[0]["status"]["memory_limit_bytes"].as_u64().unwrap() > 0);
    let passthrough = &mounts[0]["status"];
    assert!(passthrough["passthrough"] == true || !passthrough["passthrough_reason"].as_str().unwrap().is_empty());
    let text = String::from_utf8(room.succeed(["status"]).stdout).unwrap();
    for part in ["running", "cache", "passthrough", "memory"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    room.succeed(["umount".as_ref(), room.point().as_os_str()]);
}

#[test]
fn a_taken_port_is_a_warning() {
    if !can_mount() {
        return;
    }
    let room = Room::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let option = format!("alluxio.fuse.web.port={}", taken.local_addr().unwrap().port());
    let (source, point) = (room.path("source"), room.point());
    let output =
        room.succeed(["mount".as_ref(), source.as_os_str(), point.as_os_str(), "-o".as_ref(), option.as_ref()]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("/metrics is off") && text.lines().count() == 1, "{text}");
    assert_eq!(content(&point), "content");
    room.succeed(["umount".as_ref(), point.as_os_str()]);
}

#[test]
fn a_plain_user_mounts_through_fusermount3() {
    if !can_mount() {
        return;
    }
    let room = Room::of(NOBODY);
    let program = Path::new(env!("CARGO_BIN_EXE_alluxio-fuse"));
    if !Path::new("/usr/bin/fusermount3").exists() {
        return println!("skipped: there is no fusermount3");
    }
    if Command::new(program).arg("--version").uid(NOBODY).gid(NOBODY).output().is_err() {
        return println!("skipped: a plain user may not run {}", program.display());
    }
    let (source, point) = (room.path("source"), room.point());
    if fs::metadata("/dev/fuse").unwrap().permissions().mode() & 0o006 != 0o006 {
        let output = room.run(["mount".as_ref(), source.as_os_str(), point.as_os_str()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("may not open /dev/fuse"));
        assert!(!point.exists());
        return println!("skipped but for the refusal: /dev/fuse is for root only here");
    }
    room.succeed(["mount".as_ref(), source.as_os_str(), point.as_os_str()]);
    let mount = fuse::session::mounts::at(&point).unwrap().unwrap();
    assert!(mount.is_ours());
    let cat = Command::new("cat").arg(point.join("file")).uid(NOBODY).gid(NOBODY).output().unwrap();
    assert_eq!(cat.stdout, b"content", "{cat:?}");
    assert_eq!(room.mounts().len(), 1);
    room.succeed(["umount".as_ref(), point.as_os_str()]);
    assert!(!room.is_mounted() && !point.exists());
    let allowed = fs::read_to_string("/etc/fuse.conf")
        .is_ok_and(|text| text.lines().any(|line| line.trim() == "user_allow_other"));
    if !allowed {
        let arguments =
            ["mount".as_ref(), source.as_os_str(), point.as_os_str(), "-o".as_ref(), "allow_other".as_ref()];
        let output = room.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("user_allow_other"));
        assert!(!point.exists());
    }
}
