//! What the tests need to know of the machine: whether mounting works here, what is mounted, and waiting without a clock.

use std::{
    ffi::{CString, OsString},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

/// How long anything may take before a test gives up. Only failures ever wait this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process may mount: it is root and there is a /dev/fuse. Says why not, since the test is then skipped.
pub fn mounts_work() -> bool {
    let reason = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        "/dev/fuse cannot be opened"
    } else {
        return true;
    };
    let test = std::thread::current();
    eprintln!("skipped {}: {reason}", test.name().unwrap_or("a test"));
    false
}

/// Whether the long variants are asked for, by `ALLUXIO_TESTS=full`.
pub fn full() -> bool {
    std::env::var("ALLUXIO_TESTS").is_ok_and(|value| value == "full")
}

/// Held by a test that moves much data, so that not all of them do at the same time.
pub fn heavy() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock()
}

/// Polls `ask` until it has an answer; `None` when it has none within the time.
pub fn try_for<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Polls `ask` until it has an answer.
///
/// # Panics
/// When it has none for a long while; `what` says what was waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    match try_for(PATIENCE, ask) {
        Some(answer) => answer,
        None => panic!("waited {PATIENCE:?} in vain: {what}"),
    }
}

/// The type, source and options of the topmost mount at `point`, without touching the mount itself.
pub fn mounted(point: &Path) -> Option<Mounted> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    table.split(|byte| *byte == b'\n').filter_map(Mounted::parse).rfind(|mounted| mounted.point == point)
}

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Options of the mount and of the file system, joined by a comma.
    pub options: String,
}

impl Mounted {
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
        Some(Mounted {
            point: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
            kind: text(fields.get(dash + 1)?),
            source: text(fields.get(dash + 2)?),
            options: format!("{},{}", text(fields.get(5)?), text(fields.get(dash + 3)?)),
        })
    }
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let code = (field[at] == b'\\').then(|| field.get(at + 1..at + 4)).flatten();
        let code = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(field[at]);
                at += 1;
            }
        }
    }
    out
}

/// Whether the mount at `point` is there and its daemon is gone. The kernel may still know the attributes of the root, but
/// nobody lists it any more.
pub fn dead(point: &Path) -> bool {
    let answer = std::fs::read_dir(point).and_then(|mut entries| entries.next().transpose());
    mounted(point).is_some() && answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
}

/// Takes away whatever is mounted at `point`, busy or dead.
pub fn detach(point: &Path) {
    // Several may lie on top of each other, after a failed test of stacking.
    for _ in 0..8 {
        if mounted(point).is_none() {
            return;
        }
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// A place to mount at several times. Whatever is mounted there, dead or alive, is taken away when it is dropped.
pub struct MountPoint {
    home: tempfile::TempDir,
}

impl MountPoint {
    /// A directory that does not exist yet, with a blank in its name.
    #[allow(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        MountPoint { home: tempfile::Builder::new().prefix("alluxio-test-").tempdir().expect("a temporary directory") }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.home.path().join("mount point")
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        detach(&self.path());
    }
}

/// A small tmpfs; unmounted when dropped. Needs root.
pub struct Tmpfs {
    dir: tempfile::TempDir,
}

impl Tmpfs {
    /// Mounts one of `bytes` capacity.
    pub fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={bytes},mode=0755");
        nix::mount::mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("mount a tmpfs");
        Tmpfs { dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes it read-only, or writable again.
    pub fn read_only(&self, yes: bool) {
        let mut flags = nix::mount::MsFlags::MS_REMOUNT;
        flags.set(nix::mount::MsFlags::MS_RDONLY, yes);
        nix::mount::mount(None::<&str>, self.path(), None::<&str>, flags, None::<&str>).expect("remount a tmpfs");
    }

    /// Free bytes.
    pub fn free(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(self.path()).expect("statvfs of a tmpfs");
        stat.blocks_available() as u64 * stat.fragment_size() as u64
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        detach(self.dir.path());
    }
}

/// A path as a C string.
pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path without NUL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_understood() {
        let line = br"36 35 0:44 / /tmp/a\040b rw,nosuid shared:1 - fuse.alluxio-fuse alluxio-fuse ro,user_id=0";
        let mounted = Mounted::parse(line).unwrap();
        assert_eq!(mounted.point, Path::new("/tmp/a b"));
        assert_eq!((mounted.kind.as_str(), mounted.source.as_str()), ("fuse.alluxio-fuse", "alluxio-fuse"));
        assert_eq!(mounted.options, "rw,nosuid,ro,user_id=0");
        assert!(super::mounted(Path::new("/")).is_some());
        assert!(super::mounted(Path::new("/no/such/mount")).is_none());
    }
}
