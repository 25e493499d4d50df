//! Real mounts by the real program, which are gone when their guard is dropped.
//!
//! Every mount has a watchdog: should a call hang in the kernel, the daemon is killed after a few minutes, the call fails, and
//! the test with it. What the daemon logged is printed when a test panics.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    daemon,
    machine::{PATIENCE, dead, detach, mounted, try_for, wait_for},
};

/// How long a mount may live.
const LIFE: Duration = Duration::from_secs(300);

/// A mount to be made: what, with which options, and where. Made for `Mounting::of(uri).option("…").start()`.
pub struct Mounting {
    uri: String,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    home: tempfile::TempDir,
    cache: Option<PathBuf>,
    point: Option<PathBuf>,
    life: Duration,
}

impl Mounting {
    /// A mount of this URI or path, at a fresh directory, with a fresh cache and no web port.
    pub fn of(uri: impl Into<String>) -> Self {
        Mounting {
            uri: uri.into(),
            options: vec!["alluxio.fuse.web.port=0".into()],
            environment: Vec::new(),
            home: tempfile::Builder::new().prefix("alluxio-test-").tempdir().expect("a temporary directory"),
            cache: None,
            point: None,
            life: LIFE,
        }
    }

    /// A mount of a directory.
    pub fn of_dir(path: &Path) -> Self {
        Self::of(path.to_str().expect("a temporary path is UTF-8"))
    }

    /// Adds an option; a later one overrides an earlier one. A comma within it is escaped by the caller (`\,`).
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }

    /// Adds options.
    pub fn options<T: Into<String>>(mut self, options: impl IntoIterator<Item = T>) -> Self {
        self.options.extend(options.into_iter().map(Into::into));
        self
    }

    /// Attributes and names are asked for anew each time, by the kernel and by the daemon.
    pub fn always_fresh(self) -> Self {
        self.options(["attr_timeout=0", "entry_timeout=0"])
            .options(["alluxio.user.metadata.sync.interval=0", "alluxio.user.metadata.negative.ttl=0"])
    }

    /// Keeps the cache in this directory, which outlives the mount.
    pub fn cache(mut self, dir: &Path) -> Self {
        self.cache = Some(dir.to_owned());
        self
    }

    /// Mounts there, rather than at a fresh directory.
    pub fn at(mut self, point: &Path) -> Self {
        self.point = Some(point.to_owned());
        self
    }

    /// Lets the mount live so long, where the usual few minutes are not enough.
    pub fn life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// Sets an environment variable of the daemon.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The directory that the daemon takes for its home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// What will be mounted.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Where it will be mounted.
    pub fn point(&self) -> PathBuf {
        self.point.clone().unwrap_or_else(|| self.home.path().join("mnt"))
    }

    /// The text of `-o`.
    pub fn option_text(&self) -> String {
        let cache = self.cache.clone().unwrap_or_else(|| self.home.path().join("pages"));
        let stage = self.home.path().join("stage");
        let mut options = vec![
            format!("local_data_cache={}", cache.display()),
            format!("alluxio.user.stage.dir={}", stage.display()),
        ];
        options.extend(self.options.iter().cloned());
        options.join(",")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = daemon::command(self.home.path());
        command.args(words).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Mounts and waits until it can be used.
    ///
    /// # Panics
    /// When it does not come up; what the daemon said is in the message.
    #[track_caller]
    pub fn start(self) -> Mount {
        match self.try_start() {
            Ok(mount) => mount,
            Err(failure) => panic!("the mount does not come up: {failure:?}"),
        }
    }

    /// Mounts and waits until it can be used, or the daemon ends.
    #[track_caller]
    pub fn try_start(self) -> Result<Mount, Failure> {
        let point = self.point();
        // A dead mount is taken away by the new daemon; a live one is somebody else's, and the new one is refused.
        let occupied = mounted(&point).is_some() && !dead(&point);
        let log = self.home.path().join("daemon.log");
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = self.command(&["mount", "-f", "-o", &self.option_text(), &self.uri]);
        command.arg(&point).stdout(output.try_clone().expect("a descriptor")).stderr(output);
        let child = daemon::spawn(command).unwrap_or_else(|error| panic!("{}: {error}", daemon::program().display()));
        let mut mount = Mount { home: self.home, point, log, watchdog: None, child: Some(child), left: false };
        mount.watch(self.life);
        let up = try_for(PATIENCE, || {
            if let Some(status) = mount.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                return Some(Err(status));
            }
            let up = !occupied && mounted(&mount.point).is_some() && !dead(&mount.point);
            (up && is_crossed(&mount.point)).then_some(Ok(()))
        });
        match up {
            Some(Ok(())) => Ok(mount),
            Some(Err(status)) => {
                mount.child = None;
                // What was there before is somebody else's.
                mount.left = occupied;
                Err(Failure { status: Some(status), message: mount.log() })
            }
            None => Err(Failure { status: None, message: mount.log() }),
        }
    }

    /// Mounts without `-f`: the command ends once the mount answers, the daemon goes on in the background.
    ///
    /// # Panics
    /// When the command fails, or the mount is not there although it did not.
    #[track_caller]
    pub fn start_in_background(self) -> Mount {
        let point = self.point();
        let mut command = self.command(&["mount", "-o", &self.option_text(), &self.uri]);
        command.arg(&point);
        let output = daemon::run(command);
        let log = self.home.path().join("daemon.log");
        let mut mount = Mount { home: self.home, point, log, watchdog: None, child: None, left: false };
        mount.watch(self.life);
        assert!(output.status.success(), "mount: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        // No polling here: this is what the command promises.
        assert!(
            mounted(&mount.point).is_some_and(|mounted| mounted.kind == "fuse.alluxio-fuse"),
            "it returned too early"
        );
        std::fs::metadata(&mount.point).expect("the mount answers when the command has returned");
        mount
    }
}

/// Whether a path answers and is on another device than the directory that it is in. A dead mount that is taken away and
/// the directory below it answer one after the other, and neither is the new mount.
fn is_crossed(point: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let above = point.parent().and_then(device);
    device(point).is_some_and(|device| above.is_some_and(|above| above != device))
}

/// A daemon that ended instead of mounting.
#[derive(Debug)]
pub struct Failure {
    /// How it ended; `None` when it neither ended nor mounted.
    pub status: Option<ExitStatus>,
    /// Everything that it printed.
    pub message: String,
}

/// A mount that is up. Dropped, it is unmounted and its daemon is gone.
pub struct Mount {
    home: tempfile::TempDir,
    point: PathBuf,
    log: PathBuf,
    watchdog: Option<mpsc::Sender<()>>,
    child: Option<Child>,
    left: bool,
}

impl Mount {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// A path below it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.point.join(path)
    }

    /// The directory that the daemon takes for its home.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The daemon's process.
    ///
    /// # Panics
    /// When it was started in the background or has ended.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a daemon in the foreground").id()
    }

    /// Resident memory of the daemon, in bytes.
    pub fn resident(&self) -> u64 {
        daemon::memory(self.pid(), "VmRSS")
    }

    /// The most memory that the daemon ever had resident, in bytes.
    pub fn resident_peak(&self) -> u64 {
        daemon::memory(self.pid(), "VmHWM")
    }

    /// What the daemon printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Runs the program with these arguments in the same surroundings, so that it finds this mount.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Output {
        let mut command = daemon::command(self.home.path());
        command.args(words);
        daemon::run(command)
    }

    /// What `status --format json` says of this mount.
    ///
    /// # Panics
    /// When it fails, prints no JSON, or does not know this mount.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        let output = self.run(&["status", "--format", "json"]);
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "status: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        let all: serde_json::Value =
            serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"));
        let point = self.point.to_str().expect("a temporary path is UTF-8");
        find(&all, point).unwrap_or_else(|| panic!("{point} is not in {printed}")).clone()
    }

    /// Kills the daemon, as the system does when memory is short.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the daemon and leaves the mount point behind, dead. Somebody else must clean it up, see
    /// [`MountPoint`](crate::machine::MountPoint).
    pub fn abandon(mut self) {
        self.kill();
        self.left = true;
    }

    /// Sends a signal to the daemon.
    pub fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            daemon::signal(child, signal);
        }
    }

    /// Waits for the daemon's end; `None` when it goes on.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        let status = daemon::end(self.child.as_mut()?, PATIENCE)?;
        self.child = None;
        Some(status)
    }

    /// Ends it in order, with SIGTERM, and checks that nothing is left behind.
    ///
    /// # Panics
    /// When the daemon does not end, reports a failure, or leaves the mount behind.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert!(status.is_some_and(|status| status.success()), "ended with {status:?}: {}", self.log());
        assert_eq!(mounted(&self.point), None, "still mounted");
    }

    /// Frees calls that hang, by killing the daemon when the mount lives for too long.
    fn watch(&mut self, life: Duration) {
        let (sender, dropped) = mpsc::channel::<()>();
        let (point, pid) = (self.point.clone(), self.child.as_ref().map(Child::id));
        let guard = move || {
            if dropped.recv_timeout(life) != Err(mpsc::RecvTimeoutError::Timeout) {
                return;
            }
            eprintln!("{} has lived for {life:?}; its daemon is killed", point.display());
            if let Some(pid) = pid {
                // The guard's end is awaited before the child's, so the process id is still its own.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            abort(&point);
            detach(&point);
        };
        if std::thread::Builder::new().name("watchdog".into()).spawn(guard).is_ok() {
            self.watchdog = Some(sender);
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.watchdog = None;
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
            eprintln!("--- log of the daemon at {}\n{}---", self.point.display(), &log[tail..]);
        }
        match self.child.take() {
            Some(mut child) => {
                daemon::signal(&child, Signal::SIGTERM);
                if daemon::end(&mut child, Duration::from_secs(20)).is_none() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
            None if !self.left && mounted(&self.point).is_some() => {
                let mut command = daemon::command(self.home.path());
                command.arg("umount").arg(&self.point).stdout(Stdio::null()).stderr(Stdio::null());
                if let Ok(mut child) = daemon::spawn(command)
                    && daemon::end(&mut child, Duration::from_secs(20)).is_none()
                {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                abort(&self.point);
            }
            None => {}
        }
        if !self.left {
            detach(&self.point);
        }
        // A daemon in the background may still be writing its last words into the home.
        let _ = try_for(Duration::from_secs(2), || std::fs::remove_dir_all(self.home.path()).ok());
    }
}

/// Ends the connection of a mount to its daemon, whoever that is.
fn abort(point: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let minor = table.lines().filter(|line| line.split(' ').nth(4) == point.to_str()).find_map(|line| {
        let device = line.split(' ').nth(2)?;
        device.split_once(':').map(|(_, minor)| minor.to_owned())
    });
    if let Some(minor) = minor {
        let _ = std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
    }
}

/// The first object in `value` that has this text as one of its fields.
fn find<'a>(value: &'a serde_json::Value, text: &str) -> Option<&'a serde_json::Value> {
    match value {
        serde_json::Value::Object(fields) if fields.values().any(|field| field == text) => Some(value),
        serde_json::Value::Object(fields) => fields.values().find_map(|field| find(field, text)),
        serde_json::Value::Array(items) => items.iter().find_map(|item| find(item, text)),
        _ => None,
    }
}

/// The first number called `name`, at any depth.
pub fn number(value: &serde_json::Value, name: &str) -> Option<f64> {
    match value {
        serde_json::Value::Object(fields) => fields
            .get(name)
            .and_then(serde_json::Value::as_f64)
            .or_else(|| fields.values().find_map(|field| number(field, name))),
        serde_json::Value::Array(items) => items.iter().find_map(|item| number(item, name)),
        _ => None,
    }
}

/// Waits until `point` is mounted no more.
#[track_caller]
pub fn wait_unmounted(point: &Path) {
    wait_for("the mount is gone", || mounted(point).is_none().then_some(()));
}

/// Fetches a page from a server on this host, with HTTP/1.1 and nothing more.
pub fn http_get(port: u16, path: &str) -> io::Result<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
