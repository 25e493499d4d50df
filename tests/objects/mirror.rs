//! A random mix of operations on many names, each done on the mount and on a native directory beside it: both must answer
//! the same, errno included, and both trees must be the same afterwards.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tests::mounts_work;

use crate::place::{Kind, Place, amount, seed};

/// Names to choose from: few, so that they collide.
const NAMES: [&str; 7] = ["a", "b", "c", "d.txt", "e e", "ü", "0"];

/// One operation on paths relative to either root.
#[derive(Debug, Clone)]
enum Step {
    Write { path: PathBuf, bytes: usize, fill: u8 },
    Overwrite { path: PathBuf, offset: u64, fill: u8 },
    Append { path: PathBuf, fill: u8 },
    Truncate { path: PathBuf, size: u64 },
    MakeDirectory(PathBuf),
    RemoveFile(PathBuf),
    RemoveDirectory(PathBuf),
    RemoveTree(PathBuf),
    Rename(PathBuf, PathBuf),
    RenameKeeping(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(&'static str, PathBuf),
    Mode { path: PathBuf, mode: u32 },
    Times { path: PathBuf, seconds: i64 },
    SetXattr { path: PathBuf, value: u8 },
    RemoveXattr(PathBuf),
    Read(PathBuf),
    List(PathBuf),
}

fn some_path(random: &mut StdRng) -> PathBuf {
    let depth = *[1, 1, 2, 2, 2, 3].choose(random).expect("not empty");
    (0..depth).map(|_| *NAMES.choose(random).expect("not empty")).collect()
}

fn some_step(random: &mut StdRng, kind: Kind) -> Step {
    let path = some_path(random);
    let fill = random.random();
    match random.random_range(0..100) {
        0..=17 => Step::Write { path, bytes: *[0, 1, 500, 70_000].choose(random).expect("not empty"), fill },
        18..=21 => Step::Overwrite { path, offset: random.random_range(0..5_000), fill },
        22..=25 => Step::Append { path, fill },
        26..=28 => Step::Truncate { path, size: random.random_range(0..2_000) },
        29..=42 => Step::MakeDirectory(path),
        43..=48 => Step::RemoveFile(path),
        49..=52 => Step::RemoveDirectory(path),
        53..=54 => Step::RemoveTree(path),
        55..=66 => Step::Rename(path, some_path(random)),
        67..=69 => Step::RenameKeeping(path, some_path(random)),
        // An object store has neither; that they are refused there is tested elsewhere.
        70..=72 if kind != Kind::S3 => Step::Exchange(path, some_path(random)),
        73..=76 if kind != Kind::S3 => Step::Link(path, some_path(random)),
        70..=79 => Step::Symlink(["a", "./b", "no such/thing"].choose(random).expect("not empty"), path),
        80..=83 => Step::Mode { path, mode: *[0o600, 0o644, 0o755, 0o1777].choose(random).expect("not empty") },
        84..=86 => Step::Times { path, seconds: random.random_range(-5..2_000_000_000) },
        87..=88 => Step::SetXattr { path, value: fill },
        89 => Step::RemoveXattr(path),
        90..=95 => Step::Read(path),
        _ => Step::List(path),
    }
}

/// What a step answered: something comparable, or the errno.
type Answer = Result<String, i32>;

fn rename2(from: &Path, to: &Path, flags: nix::fcntl::RenameFlags) -> io::Result<()> {
    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, from, nix::fcntl::AT_FDCWD, to, flags).map_err(Into::into)
}

fn xattr_call(path: &Path, call: impl Fn(&std::ffi::CStr, &std::ffi::CStr) -> i32) -> io::Result<()> {
    let path = tests::machine::c_path(path);
    if call(&path, c"user.colour") == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn apply(root: &Path, step: &Step) -> Answer {
    let done = (|| -> io::Result<String> {
        match step {
            Step::Write { path, bytes, fill } => fs::write(root.join(path), vec![*fill; *bytes])?,
            Step::Overwrite { path, offset, fill } => {
                fs::OpenOptions::new().write(true).open(root.join(path))?.write_all_at(&[*fill; 100], *offset)?;
            }
            Step::Append { path, fill } => {
                let file = fs::OpenOptions::new().append(true).open(root.join(path))?;
                io::Write::write_all(&mut &file, &[*fill; 333])?;
            }
            Step::Truncate { path, size } => nix::unistd::truncate(&root.join(path), *size as i64)?,
            Step::MakeDirectory(path) => fs::create_dir(root.join(path))?,
            Step::RemoveFile(path) => fs::remove_file(root.join(path))?,
            Step::RemoveDirectory(path) => fs::remove_dir(root.join(path))?,
            Step::RemoveTree(path) => fs::remove_dir_all(root.join(path))?,
            Step::Rename(from, to) => fs::rename(root.join(from), root.join(to))?,
            Step::RenameKeeping(from, to) => {
                rename2(&root.join(from), &root.join(to), nix::fcntl::RenameFlags::RENAME_NOREPLACE)?;
            }
            Step::Exchange(one, other) => {
                rename2(&root.join(one), &root.join(other), nix::fcntl::RenameFlags::RENAME_EXCHANGE)?;
            }
            Step::Link(from, to) => fs::hard_link(root.join(from), root.join(to))?,
            Step::Symlink(target, path) => std::os::unix::fs::symlink(target, root.join(path))?,
            Step::Mode { path, mode } => fs::set_permissions(root.join(path), fs::Permissions::from_mode(*mode))?,
            Step::Times { path, seconds } => {
                let time = nix::sys::time::TimeSpec::new(*seconds, 123_456_789);
                nix::sys::stat::utimensat(
                    nix::fcntl::AT_FDCWD,
                    &root.join(path),
                    &time,
                    &time,
                    nix::sys::stat::UtimensatFlags::NoFollowSymlink,
                )?;
            }
            Step::SetXattr { path, value } => xattr_call(&root.join(path), |path, name| {
                // SAFETY: both strings end with NUL, and the value is one byte that lives across the call.
                unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), std::ptr::from_ref(value).cast(), 1, 0) }
            })?,
            Step::RemoveXattr(path) => xattr_call(&root.join(path), |path, name| {
                // SAFETY: both strings end with NUL.
                unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }
            })?,
            Step::Read(path) => return Ok(format!("{:?}", tests::data::sha256_of(&fs::read(root.join(path))?))),
            Step::List(path) => {
                let mut names: Vec<_> =
                    fs::read_dir(root.join(path))?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
                names.sort();
                return Ok(format!("{names:?}"));
            }
        }
        Ok(String::new())
    })();
    done.map_err(|error| error.raw_os_error().unwrap_or(-1))
}

/// Everything that both trees must agree on.
fn snapshot(root: &Path, kind: Kind, times: bool) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap_or_else(|error| panic!("walk: {error}"));
        let meta = fs::symlink_metadata(entry.path()).unwrap_or_else(|error| panic!("{entry:?}: {error}"));
        let mut text = format!("mode {:o}", meta.mode());
        if meta.is_file() {
            let bytes = fs::read(entry.path()).unwrap_or_else(|error| panic!("{entry:?}: {error}"));
            assert_eq!(bytes.len() as u64, meta.len(), "{entry:?}: its size");
            text += &format!(" size {} sum {:?}", meta.len(), tests::data::sha256_of(&bytes));
        }
        if meta.is_symlink() {
            text = format!("-> {:?}", fs::read_link(entry.path()).expect("a link"));
        }
        if kind != Kind::S3 {
            text += &format!(" links {}", meta.nlink());
        }
        if times && meta.is_file() {
            text += &format!(" mtime {}.{}", meta.mtime(), meta.mtime_nsec());
        }
        found.insert(entry.path().strip_prefix(root).expect("below the root").to_owned(), text);
    }
    found
}

fn run(kind: Kind, steps: u64) {
    if !mounts_work() {
        return;
    }
    for round in 0..steps.div_ceil(20_000) {
        let seed = seed(77 + round);
        eprintln!("{kind:?}: ALLUXIO_SEED={seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut place = Place::new(kind);
        let native = tempfile::tempdir().expect("a temporary directory");
        let mut history: Vec<String> = Vec::new();
        for number in 0..steps.min(20_000) {
            let step = some_step(&mut random, kind);
            let expected = apply(native.path(), &step);
            let found = apply(place.path(), &step);
            history.push(format!("{step:?} -> {expected:?}"));
            let last = || history[history.len().saturating_sub(40)..].join("\n");
            assert_eq!(found, expected, "seed {seed}, step {number}: {step:?}\n{}", last());
            if number % 250 == 249 {
                assert_eq!(
                    snapshot(place.path(), kind, false),
                    snapshot(native.path(), kind, false),
                    "seed {seed}, step {number}\n{}",
                    last()
                );
            }
        }
        place.remount();
        assert_eq!(snapshot(place.path(), kind, false), snapshot(native.path(), kind, false), "remounted");
    }
}

#[test]
fn of_a_bucket() {
    run(Kind::S3, amount(1_500, 100_000));
}

/// Times that were set are kept to the nanosecond, also across a remount.
#[test]
fn times_are_kept() {
    if !mounts_work() {
        return;
    }
    for kind in [Kind::Directory, Kind::S3] {
        let mut place = Place::new(kind);
        let path = place.join("file");
        fs::write(&path, b"some bytes").unwrap();
        let step = Step::Times { path: "file".into(), seconds: 1_234_567_890 };
        assert_eq!(apply(place.path(), &step), Ok(String::new()), "{kind:?}");
        let tree = snapshot(place.path(), kind, true);
        assert!(tree[Path::new("file")].contains("mtime 1234567890.123456789"), "{kind:?}: {tree:?}");
        place.remount();
        assert_eq!(snapshot(place.path(), kind, true), tree, "{kind:?}");
    }
}

/// Shows that what is compared does not depend on which directory it is.
#[test]
fn of_a_directory_without_a_mount() {
    run(Kind::Native, amount(3_000, 100_000));
}
