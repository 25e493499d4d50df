//! Writes through workers: two mounts of one cluster, a directory behind it that all workers see.
//!
//! Nothing here waits for anything to be seen: what was closed on one mount is there for the next open on the other.

use crate::processes::Cluster;
use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::{
            ffi::OsStrExt as _,
            fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
        },
    },
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;
use tests::{Mount, data::errno, machine};

const WRITES: &str = "alluxio.cluster.writes.enabled=true";

/// A cluster with a directory at `/data`, and two mounts of it.
pub struct Shared {
    one: Mount,
    two: Mount,
    source: TempDir,
    pub cluster: Cluster,
}

impl Shared {
    pub fn start(workers: usize) -> Option<Self> {
        let cluster = Cluster::start_with(workers, vec![WRITES.into()])?;
        let source = tempfile::tempdir().unwrap();
        fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
        cluster.mount_add_directory("/data", source.path());
        let mount = || {
            let mount = cluster.mounting().options([WRITES, "allow_other"]).start();
            machine::wait_for("the mount in the namespace", || mount.join("data").exists().then_some(()));
            mount
        };
        Some(Self { one: mount(), two: mount(), source, cluster })
    }

    pub fn one(&self, path: &str) -> PathBuf {
        self.one.join("data").join(path)
    }

    pub fn two(&self, path: &str) -> PathBuf {
        self.two.join("data").join(path)
    }

    fn source(&self, path: &str) -> PathBuf {
        self.source.path().join(path)
    }

    pub fn stop(self) {
        self.one.stop();
        self.two.stop();
    }
}

/// Closes, and says how that went.
pub fn close(file: File) -> io::Result<()> {
    nix::unistd::close(file).map_err(io::Error::from)
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

#[test]
fn what_is_closed_on_one_mount_is_there_on_the_other() {
    let Some(shared) = Shared::start(2) else { return };
    // Same size each time, so that nothing but the bytes tells the versions apart.
    for round in 0..40u32 {
        let (writer, reader) =
            if round % 2 == 0 { (shared.one("f"), shared.two("f")) } else { (shared.two("f"), shared.one("f")) };
        let text = format!("{round:08}").repeat(700);
        fs::write(&writer, &text).unwrap();
        assert!(fs::read_to_string(&reader).unwrap() == text, "round {round}");
        assert_eq!(fs::read_to_string(&writer).unwrap(), text, "round {round}, where it was written");
    }
    let large: Vec<u8> = (0..5_000_000u32).map(|number| (number / 7) as u8).collect();
    fs::write(shared.one("large"), &large).unwrap();
    assert!(fs::read(shared.two("large")).unwrap() == large);
    assert!(fs::read(shared.source("large")).unwrap() == large);

    // Appended to in turn by both, opened once each.
    let append = |path: PathBuf| File::options().append(true).create(true).open(path).unwrap();
    let (mut first, mut second) = (append(shared.one("log")), append(shared.two("log")));
    let mut expected = String::new();
    for line in 0..20 {
        let text = format!("line {line}\n");
        if line % 2 == 0 { &mut first } else { &mut second }.write_all(text.as_bytes()).unwrap();
        expected += &text;
    }
    drop((first, second));
    assert_eq!(fs::read_to_string(shared.one("log")).unwrap(), expected);
    assert_eq!(fs::read_to_string(shared.two("log")).unwrap(), expected);

    // Truncated by path and by descriptor.
    let truncated = unsafe_truncate(&shared.two("log"), 7);
    truncated.unwrap();
    assert_eq!(fs::read_to_string(shared.one("log")).unwrap(), "line 0\n");
    File::options().write(true).open(shared.one("log")).unwrap().set_len(9).unwrap();
    assert_eq!(fs::read(shared.two("log")).unwrap(), b"line 0\n\0\0");
    fs::write(shared.one("log"), b"").unwrap();
    assert_eq!(fs::metadata(shared.two("log")).unwrap().len(), 0);
    shared.stop();
}

fn unsafe_truncate(path: &Path, size: i64) -> io::Result<()> {
    // SAFETY: the path ends with NUL.
    match unsafe { libc::truncate(c_path(path).as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn names_made_moved_and_removed_on_one_mount_are_so_on_the_other() {
    let Some(shared) = Shared::start(3) else { return };
    for round in 0..10u32 {
        let name = |what: &str| format!("d{round}/{what}");
        // Each mount in turn is the one that makes.
        let at = |turn: u32, path: &str| {
            if (round + turn).is_multiple_of(2) { shared.one(path) } else { shared.two(path) }
        };
        let (here, there) = (|path: &str| at(0, path), |path: &str| at(1, path));
        assert!(!there(&format!("d{round}")).exists(), "nobody made it yet");
        fs::create_dir(here(&format!("d{round}"))).unwrap();
        assert!(!there(&name("a")).exists());
        fs::write(here(&name("a")), b"a").unwrap();
        assert_eq!(fs::read(there(&name("a"))).unwrap(), b"a");
        assert_eq!(names(&there(&format!("d{round}"))), ["a"]);

        fs::rename(there(&name("a")), there(&name("b"))).unwrap();
        assert!(!here(&name("a")).exists());
        assert_eq!(fs::read(here(&name("b"))).unwrap(), b"a");
        assert_eq!(names(&here(&format!("d{round}"))), ["b"]);

        fs::hard_link(here(&name("b")), here(&name("c"))).unwrap();
        assert_eq!(fs::metadata(there(&name("b"))).unwrap().nlink(), 2);
        symlink("b", here(&name("link"))).unwrap();
        assert_eq!(fs::read_link(there(&name("link"))).unwrap(), Path::new("b"));
        assert_eq!(fs::read(there(&name("link"))).unwrap(), b"a");

        fs::set_permissions(there(&name("b")), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::chown(there(&name("b")), Some(12), Some(34)).unwrap();
        let seen = fs::metadata(here(&name("b"))).unwrap();
        assert_eq!((seen.mode() & 0o7777, seen.uid(), seen.gid()), (0o640, 12, 34));
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123_456_789);
        File::options().write(true).open(here(&name("b"))).unwrap().set_modified(time).unwrap();
        assert_eq!(fs::metadata(there(&name("b"))).unwrap().modified().unwrap(), time);

        // A file that is moved and changed elsewhere while it is open.
        let mut open = File::options().read(true).write(true).open(here(&name("c"))).unwrap();
        fs::rename(there(&name("c")), there(&name("moved"))).unwrap();
        open.write_all(b"written after that").unwrap();
        drop(open);
        assert_eq!(fs::read(there(&name("moved"))).unwrap(), b"written after that");

        let refused = fs::remove_dir(here(&format!("d{round}")));
        assert_eq!(errno(&refused), libc::ENOTEMPTY);
        for gone in ["b", "link", "moved"] {
            fs::remove_file(there(&name(gone))).unwrap();
            assert!(!here(&name(gone)).exists());
        }
        fs::rename(here(&format!("d{round}")), here(&format!("e{round}"))).unwrap();
        assert!(!there(&format!("d{round}")).exists());
        fs::remove_dir(there(&format!("e{round}"))).unwrap();
        assert!(!here(&format!("e{round}")).exists());
    }
    // What the storages cannot do together, and what is no storage.
    let other = tempfile::tempdir().unwrap();
    shared.cluster.mount_add_directory("/other", other.path());
    machine::wait_for("the other mount", || shared.one.join("other").exists().then_some(()));
    fs::write(shared.one("f"), b"f").unwrap();
    assert_eq!(errno(&fs::rename(shared.one("f"), shared.one.join("other/f"))), libc::EXDEV);
    assert_eq!(errno(&fs::create_dir(shared.one.join("new"))), libc::EROFS);
    assert_eq!(errno(&fs::remove_dir(shared.one.join("data"))), libc::EBUSY);
    shared.stop();
}

#[test]
fn files_are_written_in_every_way() {
    let Some(shared) = Shared::start(2) else { return };
    // Mapped.
    fs::write(shared.one("map"), vec![b'.'; 10_000]).unwrap();
    let file = File::options().read(true).write(true).open(shared.one("map")).unwrap();
    // SAFETY: a new mapping of a file that is open for both; it is written within its bounds and unmapped once.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            10_000,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().add(5000).write(b'!');
        assert_eq!(libc::msync(at, 10_000, libc::MS_SYNC), 0);
        at.cast::<u8>().add(5001).write(b'?');
        assert_eq!(libc::munmap(at, 10_000), 0);
    }
    drop(file);
    let seen = fs::read(shared.two("map")).unwrap();
    assert_eq!((seen.len(), &seen[4999..5003]), (10_000, &b".!?."[..]));

    // Read back while it is written, through both of two descriptors.
    let mut one = File::options().read(true).write(true).create_new(true).open(shared.one("both")).unwrap();
    let two = File::options().read(true).write(true).open(shared.one("both")).unwrap();
    one.write_all(b"0123456789").unwrap();
    two.write_all_at(b"ab", 4).unwrap();
    two.set_len(8).unwrap();
    assert_eq!((one.metadata().unwrap().len(), two.metadata().unwrap().len()), (8, 8));
    one.rewind().unwrap();
    let mut text = String::new();
    one.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123ab67");
    one.sync_all().unwrap();
    assert_eq!(fs::read(shared.source("both")).unwrap(), b"0123ab67");
    let taken = File::options().write(true).create_new(true).open(shared.two("both"));
    assert_eq!(errno(&taken), libc::EEXIST);

    // Removed while it is open: it goes on, and can still be changed.
    fs::remove_file(shared.one("both")).unwrap();
    one.write_all(b"more").unwrap();
    one.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    let seen = one.metadata().unwrap();
    assert_eq!((seen.len(), seen.mode() & 0o777), (12, 0o600));
    assert!(!shared.two("both").exists());
    drop((one, two));

    // Holes, and room.
    let file = File::options().read(true).write(true).create(true).truncate(false).open(shared.one("holes")).unwrap();
    file.write_all_at(b"end", 1 << 20).unwrap();
    // SAFETY: the descriptor is open, the rest are numbers.
    unsafe {
        assert_eq!(libc::lseek(file.as_raw_fd(), 0, libc::SEEK_DATA), 1 << 20);
        assert_eq!(libc::fallocate(file.as_raw_fd(), 0, 0, 4096), 0);
    }
    drop(file);
    let seen = fs::read(shared.two("holes")).unwrap();
    assert!(seen.len() == (1 << 20) + 3 && seen.ends_with(b"end") && seen[..1 << 20].iter().all(|byte| *byte == 0));

    // Special files, and attributes.
    // SAFETY: the paths and names end with NUL, and the value has the length given.
    unsafe {
        assert_eq!(libc::mkfifo(c_path(&shared.one("fifo")).as_ptr(), 0o600), 0);
        let (path, name) = (c_path(&shared.one("map")), c"user.colour");
        assert_eq!(libc::setxattr(path.as_ptr(), name.as_ptr(), c"red".as_ptr().cast(), 3, 0), 0);
        let (path, mut value) = (c_path(&shared.two("map")), [0u8; 8]);
        assert_eq!(libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()), 3);
        assert_eq!(&value[..3], b"red");
        assert_eq!(libc::removexattr(path.as_ptr(), name.as_ptr()), 0);
        let path = c_path(&shared.one("map"));
        assert_eq!(libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()), -1);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ENODATA));
    }
    assert!(fs::symlink_metadata(shared.two("fifo")).unwrap().file_type().is_fifo());
    shared.stop();
}

#[test]
fn what_is_made_belongs_to_the_caller_who_needs_the_right_for_it() {
    let Some(shared) = Shared::start(2) else { return };
    fs::create_dir(shared.one("open")).unwrap();
    fs::set_permissions(shared.one("open"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir(shared.one("shut")).unwrap();
    fs::write(shared.one("open/theirs"), b"of root").unwrap();
    // Mounts lie below directories of their own that only root may enter: the shell is already inside.
    let shell = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=12345", "--clear-groups", "/bin/sh", "-c", script]);
        command.current_dir(shared.one(""));
        command.output().unwrap()
    };
    let made = shell("umask 027; echo x >open/file && mkdir open/dir && ln -s t open/link && mkfifo open/pipe");
    assert!(made.status.success(), "{made:?}");
    for name in ["open/file", "open/dir", "open/link", "open/pipe"] {
        for path in [shared.two(name), shared.source(name)] {
            let seen = fs::symlink_metadata(&path).unwrap();
            assert_eq!((seen.uid(), seen.gid()), (65534, 12345), "{}", path.display());
        }
    }
    assert_eq!(fs::metadata(shared.source("open/file")).unwrap().mode() & 0o777, 0o640);
    for refused in
        ["echo x >shut/file", "mkdir shut/dir", "echo x >>open/theirs", "rm -r shut", "chmod 777 open/theirs"]
    {
        let output = shell(refused);
        assert!(!output.status.success(), "{refused}: {output:?}");
    }
    // Who writes without privilege takes the set-id bits along.
    let program = shared.one("open/program");
    fs::write(&program, b"x").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o6777)).unwrap();
    let written = shell("echo y >>open/program");
    assert!(written.status.success(), "{written:?}");
    assert_eq!(fs::metadata(shared.two("open/program")).unwrap().mode() & 0o7777, 0o777);
    shared.stop();
}

#[test]
fn a_worker_lost_during_a_write_is_told_to_the_writer() {
    let Some(mut shared) = Shared::start(2) else { return };
    let path = shared.one("checkpoint");
    let mut file = File::create(&path).unwrap();
    file.write_all(&vec![1; 300_000]).unwrap();
    let mut closed = File::create(shared.one("flushed")).unwrap();
    closed.write_all(b"all of it").unwrap();
    closed.sync_all().unwrap();
    let located = shared.cluster.alluxio(["fs", "location", "/data/checkpoint"]);
    let located = String::from_utf8_lossy(&located.stdout).into_owned();
    let owner = (0..2).find(|worker| located.contains(&shared.cluster.workers[*worker].identity().to_string()));
    shared.cluster.workers[owner.unwrap_or_else(|| panic!("{located}"))].kill();
    // What was written may still come, or not: one of the calls must say so.
    let mut told = file.write_all(&vec![2; 300_000]);
    if told.is_ok() {
        told = file.sync_all();
    }
    assert_eq!(errno(&told), libc::EIO, "{told:?}");
    assert_eq!(errno(&file.sync_all()), libc::EIO, "and it stays so");
    drop(file);
    // To which worker this one belongs is the ring's choice; it was synced, and loses nothing either way.
    close(closed).unwrap();

    // The next worker takes its place, for new files and for this one.
    fs::write(&path, vec![3; 200_000]).unwrap();
    assert!(fs::read(shared.two("checkpoint")).unwrap() == vec![3; 200_000]);
    assert_eq!(fs::read(shared.two("flushed")).unwrap(), b"all of it", "what was synced is there");
    fs::create_dir(shared.two("later")).unwrap();
    fs::write(shared.two("later/file"), b"x").unwrap();
    assert_eq!(fs::read(shared.one("later/file")).unwrap(), b"x");
    shared.stop();
}

#[test]
fn a_mount_that_is_killed_leaves_no_file_open_at_a_worker() {
    let Some(shared) = Shared::start(1) else { return };
    let Shared { mut one, two, source, cluster } = shared;
    let file = File::create(one.join("data/half")).unwrap();
    (&file).write_all(b"half").unwrap();
    let held = || {
        let log = cluster.workers[0].log();
        log.lines().filter(|line| line.contains("files are closed whose client went away")).count()
    };
    assert_eq!(held(), 0);
    one.kill();
    machine::wait_for("the worker to close the file", || (held() > 0).then_some(()));
    assert_eq!(fs::read(two.join("data/half")).unwrap(), b"half", "as after a kill of the writer itself");
    drop(file);
    one.abandon();
    two.stop();
    drop((source, cluster));
}

#[test]
fn writes_are_off_unless_they_are_wanted() {
    let Some(cluster) = Cluster::start(1) else { return };
    let source = tempfile::tempdir().unwrap();
    fs::write(source.path().join("f"), b"kept").unwrap();
    cluster.mount_add_directory("/data", source.path());
    // Neither here nor there, and then here alone: the worker refuses.
    for options in [Vec::new(), vec![WRITES]] {
        let mount = cluster.mounting().options(options).start();
        machine::wait_for("the mount in the namespace", || mount.join("data/f").exists().then_some(()));
        assert_eq!(errno(&fs::write(mount.join("data/new"), b"x")), libc::EROFS);
        assert_eq!(errno(&fs::remove_file(mount.join("data/f"))), libc::EROFS);
        let opened = File::options().write(true).custom_flags(libc::O_TRUNC).open(mount.join("data/f"));
        assert_eq!(errno(&opened), libc::EROFS);
        assert_eq!(fs::read(mount.join("data/f")).unwrap(), b"kept");
        mount.stop();
    }
    assert_eq!(fs::read(source.path().join("f")).unwrap(), b"kept");
}
