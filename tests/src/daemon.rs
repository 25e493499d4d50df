//! Finding and starting the daemon's program so that it never outlives the tests.
//!
//! Children are started by one thread that lives as long as the process: the signal that the kernel sends to a child when
//! its parent is gone belongs to the *thread* that started it, and tests run in threads that end.

use std::{
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{OnceLock, mpsc},
    time::Duration,
};

use parking_lot::Mutex;

use crate::machine::try_for;

/// The program under test: `$ALLUXIO_FUSE_BIN`, else the one beside the tests, which is built when it is missing.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(path) = std::env::var_os("ALLUXIO_FUSE_BIN") {
            return PathBuf::from(path);
        }
        let tests = std::env::current_exe().expect("the path of this program");
        // <target>/<profile>/deps/e2e-<hash>
        let profile = tests.parent().and_then(Path::parent).expect("a target directory");
        let path = profile.join("alluxio-fuse");
        if !path.exists() {
            let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            build.args(["build", "-q", "-p", "fuse", "--bin", "alluxio-fuse"]);
            if profile.ends_with("release") {
                build.arg("--release");
            }
            let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).status();
            assert!(status.is_ok_and(|status| status.success()), "cannot build alluxio-fuse");
        }
        path
    })
}

/// A command of the program under test in an environment of its own: nothing of the machine's configuration is seen, and
/// what would be kept in well-known places is kept in `home`.
pub fn command(home: &Path) -> Command {
    command_of(program(), home)
}

/// The same for a copy of the program that lies elsewhere.
pub fn command_of(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for name in ["PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
        .env("HOME", home)
        .env("XDG_CACHE_HOME", home.join("cache"))
        .env("XDG_RUNTIME_DIR", home)
        .env("ALLUXIO_CONF_DIR", home.join("conf"))
        .env("ALLUXIO_JAVA_OPTS", format!("-Dalluxio.fuse.state.dir={}", home.join("state").display()))
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .current_dir(home)
        .stdin(Stdio::null());
    command
}

/// Starts a command that is told to end (SIGTERM) when this process ends, however that happens.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        let run = move || {
            for (mut command, answer) in orders {
                let _ = answer.send(command.spawn());
            }
        };
        std::thread::Builder::new().name("starter".into()).spawn(run).expect("a thread");
        Mutex::new(sender)
    });
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let (sender, answer) = mpsc::channel();
    starter.lock().send((command, sender)).map_err(|_| io::Error::other("the starter is gone"))?;
    answer.recv().map_err(|_| io::Error::other("the starter is gone"))?
}

/// Runs a command to its end and collects what it printed. It is killed, and the test fails, when it does not end.
///
/// # Panics
/// When it cannot be started or does not end.
#[track_caller]
pub fn run(mut command: Command) -> Output {
    // Files, not pipes: a daemon in the background inherits them, and a pipe would not end before it.
    let (mut stdout, mut stderr) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    command.stdout(stdout.try_clone().expect("a descriptor")).stderr(stderr.try_clone().expect("a descriptor"));
    let shown = format!("{command:?}");
    let mut child = spawn(command).unwrap_or_else(|error| panic!("{shown}: {error}"));
    let status = end(&mut child, Duration::from_secs(90)).unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{shown} does not end; it printed: {}", text(&mut stderr));
    });
    Output { status, stdout: text(&mut stdout).into_bytes(), stderr: text(&mut stderr).into_bytes() }
}

fn text(file: &mut std::fs::File) -> String {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    let _ = file.rewind();
    let _ = file.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child's end; `None` when it goes on.
pub fn end(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    try_for(limit, || child.try_wait().ok().flatten())
}

/// Sends a signal to a child that was not waited for yet.
pub fn signal(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    let _ = nix::sys::signal::kill(pid, signal);
}

/// A number of KiB in /proc/PID/status, such as VmRSS or VmHWM, in bytes.
pub fn memory(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
