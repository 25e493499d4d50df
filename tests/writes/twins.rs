//! A tree on a mount and its twin on the native file system: the same random calls must have the same answers, and leave
//! the same tree.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tests::{data::errno, mounts_work};

use crate::{WAYS, mount, seed};

#[derive(Debug, Clone)]
enum Step {
    Create(PathBuf),
    Write(PathBuf, u8),
    Append(PathBuf, u8),
    Truncate(PathBuf, u64),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u32),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Fifo(PathBuf),
    Mode(PathBuf, u32),
    Touch(PathBuf, i64),
    List(PathBuf),
    Read(PathBuf),
    Xattr(PathBuf, u8),
    /// Opens the file and keeps it open.
    Hold(PathBuf),
    /// Writes to what is held, reads it, and lets it go.
    Use(u8),
}

struct Twin {
    root: PathBuf,
    held: Vec<File>,
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn call(done: libc::c_int) -> io::Result<String> {
    if done == 0 { Ok(String::new()) } else { Err(io::Error::last_os_error()) }
}

impl Twin {
    /// Does it, and says what came of it.
    fn run(&mut self, step: &Step) -> io::Result<String> {
        let at = |path: &PathBuf| self.root.join(path);
        let nothing = |()| String::new();
        match step {
            Step::Create(path) => File::options().write(true).create_new(true).open(at(path)).map(|_| String::new()),
            Step::Write(path, byte) => {
                use io::Write as _;
                use std::os::unix::fs::OpenOptionsExt as _;
                // A pipe would wait for the other end.
                let mut options = File::options();
                options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
                options.open(at(path))?.write_all(&vec![*byte; usize::from(*byte) * 50]).map(nothing)
            }
            Step::Append(path, byte) => {
                use io::Write as _;
                use std::os::unix::fs::OpenOptionsExt as _;
                let mut options = File::options();
                options.append(true).custom_flags(libc::O_NONBLOCK);
                options.open(at(path))?.write_all(&[*byte; 100]).map(nothing)
            }
            Step::Truncate(path, size) => call(
                // SAFETY: the path ends with NUL.
                unsafe { libc::truncate(c(&at(path)).as_ptr(), *size as i64) },
            ),
            Step::MakeDir(path) => std::fs::create_dir(at(path)).map(nothing),
            Step::RemoveDir(path) => std::fs::remove_dir(at(path)).map(nothing),
            Step::Remove(path) => std::fs::remove_file(at(path)).map(nothing),
            Step::Rename(from, to, flags) => {
                let (from, to) = (c(&at(from)), c(&at(to)));
                // SAFETY: both paths end with NUL.
                call(unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), *flags) })
            }
            Step::Link(from, to) => std::fs::hard_link(at(from), at(to)).map(nothing),
            Step::Symlink(target, path) => std::os::unix::fs::symlink(target, at(path)).map(nothing),
            // SAFETY: the path ends with NUL.
            Step::Fifo(path) => call(unsafe { libc::mkfifo(c(&at(path)).as_ptr(), 0o644) }),
            Step::Mode(path, mode) => std::fs::set_permissions(at(path), Permissions::from_mode(*mode)).map(nothing),
            Step::Touch(path, time) => {
                let time = nix::sys::time::TimeSpec::new(*time, 123_456_789);
                let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
                nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &at(path), &time, &time, flags)?;
                Ok(String::new())
            }
            Step::List(path) => {
                let mut names: Vec<_> = std::fs::read_dir(at(path))?
                    .map(|entry| entry.map(|entry| format!("{:?} {:?}", entry.file_name(), entry.file_type())))
                    .collect::<io::Result<_>>()?;
                names.sort();
                Ok(names.join("\n"))
            }
            Step::Read(path) => {
                // A pipe would wait for the other end.
                let kind = std::fs::metadata(at(path))?.file_type();
                if kind.is_fifo() { Ok("pipe".into()) } else { std::fs::read(at(path)).map(|text| format!("{text:?}")) }
            }
            Step::Xattr(path, value) => {
                let (path, name) = (c(&at(path)), c"user.test");
                // SAFETY: both names end with NUL, the value has one byte.
                call(unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), std::ptr::from_ref(value).cast(), 1, 0) })?;
                let mut found = [0u8; 8];
                // SAFETY: both names end with NUL, the buffer has eight bytes.
                let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), found.as_mut_ptr().cast(), 8) };
                Ok(format!("{length} {found:?}"))
            }
            Step::Hold(path) => {
                use std::os::unix::fs::OpenOptionsExt as _;
                let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
                let file = File::options().read(true).write(true).custom_flags(flags).open(at(path))?;
                self.held.push(file);
                Ok(String::new())
            }
            Step::Use(byte) => {
                use std::os::unix::fs::FileExt as _;
                let Some(file) = self.held.pop() else { return Ok("none".into()) };
                if file.metadata()?.file_type().is_fifo() {
                    return Ok("pipe".into());
                }
                file.write_all_at(&[*byte; 10], 5)?;
                file.set_permissions(Permissions::from_mode(0o640))?;
                let meta = file.metadata()?;
                let mut text = vec![0; 4096];
                let length = file.read_at(&mut text, 0)?;
                Ok(format!("{} {} {:o} {:?}", meta.len(), meta.nlink(), meta.mode(), &text[..length]))
            }
        }
    }

    /// Everything that can be said of the tree; files that are one are named alike.
    fn whole(&self) -> BTreeMap<PathBuf, String> {
        let mut names = BTreeMap::<u64, usize>::new();
        let mut all = BTreeMap::new();
        for entry in walkdir::WalkDir::new(&self.root).sort_by_file_name() {
            let entry = entry.unwrap();
            let meta = entry.path().symlink_metadata().unwrap();
            let next = names.len();
            let file = *names.entry(meta.ino()).or_insert(next);
            let kind = meta.file_type();
            let bytes = match () {
                () if kind.is_symlink() => format!("{:?}", std::fs::read_link(entry.path()).unwrap()),
                () if kind.is_file() => format!("{:?}", std::fs::read(entry.path()).unwrap()),
                () => String::new(),
            };
            let size = if kind.is_dir() { 0 } else { meta.len() };
            // What goes through a pipe is between its programs and the kernel; the file system below hears nothing of it.
            let time = if meta.mtime() < 1_000_000 && !kind.is_fifo() { meta.mtime() } else { 0 };
            let line = format!("{file} {:o} {} {size} {time} {bytes}", meta.mode(), meta.nlink());
            all.insert(entry.path().strip_prefix(&self.root).unwrap().to_owned(), line);
        }
        all
    }
}

fn path(random: &mut StdRng) -> PathBuf {
    let names = ["a", "b", "c", "d"];
    let depth = *[1, 1, 2, 2, 2, 3].get(random.random_range(0..6)).unwrap_or(&1);
    (0..depth).map(|_| names[random.random_range(0..names.len())]).collect()
}

fn step(random: &mut StdRng) -> Step {
    let (one, two) = (path(random), path(random));
    let byte = random.random_range(1..100u8);
    match random.random_range(0..100) {
        0..8 => Step::Create(one),
        8..18 => Step::Write(one, byte),
        18..22 => Step::Append(one, byte),
        22..26 => Step::Truncate(one, random.random_range(0..3000)),
        26..38 => Step::MakeDir(one),
        38..43 => Step::RemoveDir(one),
        43..49 => Step::Remove(one),
        49..67 => {
            let flags = [0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE];
            Step::Rename(one, two, flags[random.random_range(0..flags.len())])
        }
        67..74 => Step::Link(one, two),
        74..77 => Step::Symlink(one, two),
        77..79 => Step::Fifo(one),
        79..83 => Step::Mode(one, 0o400 + random.random_range(0..0o400)),
        83..85 => Step::Touch(one, random.random_range(0..1_000_000)),
        85..88 => Step::List(one),
        88..92 => Step::Read(one),
        92..93 => Step::Xattr(one, byte),
        93..97 => Step::Hold(one),
        _ => Step::Use(byte),
    }
}

fn run(mount: PathBuf, source: &Path, seed: u64, steps: usize) {
    let native = tempfile::tempdir().unwrap();
    std::fs::set_permissions(native.path(), Permissions::from_mode(0o755)).unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let mut ours = Twin { root: mount, held: Vec::new() };
    let mut theirs = Twin { root: native.path().to_owned(), held: Vec::new() };
    let mut done: Vec<String> = Vec::new();
    let mut worked = 0;
    for at in 0..steps {
        let step = step(&mut random);
        let (got, expected) = (ours.run(&step), theirs.run(&step));
        worked += usize::from(expected.is_ok());
        done.push(format!("{step:?} -> {expected:?}"));
        let last = || done[done.len().saturating_sub(40)..].join("\n");
        let same = match (&got, &expected) {
            (Ok(got), Ok(expected)) => got == expected,
            (got, expected) => errno(got) == errno(expected),
        };
        assert!(same, "step {at} with ALLUXIO_TESTS_SEED={seed}: {got:?}; the last steps were:\n{}", last());
        if at % 50 == 49 || at + 1 == steps {
            let (got, expected) = (ours.whole(), theirs.whole());
            assert_eq!(
                got,
                expected,
                "after step {at} with ALLUXIO_TESTS_SEED={seed}; the last steps were:\n{}",
                last()
            );
        }
    }
    let below = Twin { root: source.to_owned(), held: Vec::new() };
    assert_eq!(below.whole(), theirs.whole(), "the source is another, seed {seed}");
    // Some one in five does on average.
    assert!(worked * 20 > steps, "only {worked} of {steps} steps did something");
}

#[test]
fn a_tree_and_its_twin() {
    if !mounts_work() {
        return;
    }
    let seed = seed();
    let steps = if tests::full() { 30_000 } else { 2_500 };
    for way in WAYS {
        let (source, mount) = mount(way);
        run(mount.path().to_owned(), source.path(), seed, steps);
        mount.stop();
    }
}

/// What a call may be answered when others make and take away names at the same time. Nothing else: above all no error of
/// the mount's own.
const COMMON: [i32; 9] = [
    libc::ENOENT,
    libc::EEXIST,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::ENOTEMPTY,
    libc::EINVAL,
    libc::ELOOP,
    libc::EPERM,
    libc::ENXIO,
];

#[test]
fn a_crowd_in_one_tree() {
    if !mounts_work() {
        return;
    }
    let seed = seed();
    let steps = if tests::full() { 40_000 } else { 2_500 };
    for way in WAYS {
        let (source, mount) = mount(way);
        std::thread::scope(|scope| {
            for number in 0..4u64 {
                let root = mount.path().to_owned();
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
                    let mut twin = Twin { root, held: Vec::new() };
                    let mut stale = 0;
                    for _ in 0..steps {
                        let step = step(&mut random);
                        if matches!(step, Step::Fifo(_)) {
                            // Whoever opened one believing it a file would wait for the other end.
                            continue;
                        }
                        match twin.run(&step).map_err(|error| error.raw_os_error()) {
                            Ok(_) => {}
                            // The kernel looks again once; who loses the race twice is told so.
                            Err(Some(libc::ESTALE)) => stale += 1,
                            Err(errno) => assert!(
                                errno.is_some_and(|errno| COMMON.contains(&errno)),
                                "{way}, ALLUXIO_TESTS_SEED={seed}: {step:?}: errno {errno:?}"
                            ),
                        }
                    }
                    assert!(stale * 50 < steps, "{way}: {stale} of {steps} calls were answered ESTALE");
                    println!("{way}: {stale} of {steps} stale");
                });
            }
        });
        let seen = |root: &Path| Twin { root: root.to_owned(), held: Vec::new() }.whole();
        assert_eq!(seen(mount.path()), seen(source.path()), "{way}, ALLUXIO_TESTS_SEED={seed}");
        mount.stop();
    }
}
