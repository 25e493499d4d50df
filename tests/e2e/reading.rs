//! Reads of any size at any offset, by every way that the kernel has, give the bytes of the file; directories and
//! attributes are those of the source.

use std::{
    fs::File,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Stdio},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tests::{
    Mount, Mounting, Store, content,
    data::{Mapped, drop_cached, errno, open_direct, pread_aligned, write_file},
    mounts_work, pread, tree, wait_for,
};

const PAGE: u64 = 64 << 10;

/// Files whose sizes stand around those of pages, by name.
const SIZES: [(&str, u64); 8] = [
    ("empty", 0),
    ("one", 1),
    ("less", PAGE - 1),
    ("page", PAGE),
    ("more", PAGE + 1),
    ("odd", 5 * PAGE + 4097),
    ("large", 3 << 20),
    ("larger", (9 << 20) + 12_345),
];

fn store() -> Store {
    let store = Store::start();
    for (name, size) in SIZES {
        store.put(name, content(name, 0, size as usize));
    }
    store
}

fn directory() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    for (name, size) in SIZES {
        write_file(&source.path().join(name), name, size).unwrap();
    }
    source
}

#[test]
fn any_size_and_offset_of_s3() {
    if !mounts_work() {
        return;
    }
    let store = store();
    for option in ["auto_cache", "kernel_cache", "direct_io", "passthrough=off"] {
        let mounting = store.mount("").option("alluxio.user.client.cache.page.size=64KiB").option(option);
        let mount = mounting.start();
        (0..2).for_each(|round| read_every_way(&mount, round));
        mount.stop();
    }
}

#[test]
fn any_size_and_offset_without_a_cache() {
    if !mounts_work() {
        return;
    }
    let store = store();
    let mount = store.mount("").option("local_data_cache_size=0").start();
    read_every_way(&mount, 7);
    mount.stop();
}

#[test]
fn any_size_and_offset_of_a_directory() {
    if !mounts_work() {
        return;
    }
    let source = directory();
    for option in ["auto_cache", "direct_io", "passthrough=off"] {
        let mount = Mounting::of_dir(source.path()).option(option).start();
        read_every_way(&mount, 3);
        mount.stop();
    }
}

/// Buffered, O_DIRECT and mapped reads at random places of every file, by four threads that share nothing.
fn read_every_way(mount: &Mount, seed: u64) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed * 10 + thread);
                for _ in 0..2 {
                    for (name, size) in SIZES {
                        let path = mount.join(name);
                        let file = File::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
                        assert_eq!(file.metadata().unwrap().len(), size, "{name}");
                        buffered(&file, name, size, &mut random);
                        direct(&path, name, size, &mut random);
                        mapped(&file, name, size, &mut random);
                        drop_cached(&file);
                    }
                }
            });
        }
    });
}

#[track_caller]
fn check(name: &str, size: u64, offset: u64, length: usize, found: &[u8]) {
    let due = (size.saturating_sub(offset)).min(length as u64) as usize;
    assert!(found == content(name, offset, due), "{name}: {} bytes at {offset}, {due} due, are others", found.len());
}

fn buffered(file: &File, name: &str, size: u64, random: &mut StdRng) {
    for _ in 0..25 {
        let offset = random.random_range(0..=size + 5000);
        let length = match random.random_range(0..4) {
            0 => random.random_range(0..10),
            1 => random.random_range(0..5000),
            2 => random.random_range(0..200_000),
            _ => random.random_range(0..2_500_000),
        };
        check(name, size, offset, length, &pread(file, offset, length).unwrap());
    }
    check(name, size, 0, size as usize + 1, &pread(file, 0, size as usize + 1).unwrap());
}

fn direct(path: &Path, name: &str, size: u64, random: &mut StdRng) {
    let file = open_direct(path).unwrap_or_else(|error| panic!("O_DIRECT {name}: {error}"));
    for _ in 0..8 {
        let offset = random.random_range(0..=size / 4096 + 2) * 4096;
        let length = random.random_range(1..=300) * 4096;
        let found = pread_aligned(&file, offset, length).unwrap_or_else(|error| panic!("O_DIRECT {name}: {error}"));
        check(name, size, offset, length, &found);
    }
}

fn mapped(file: &File, name: &str, size: u64, random: &mut StdRng) {
    if size == 0 {
        return;
    }
    let mapped = Mapped::new(file, size as usize).unwrap_or_else(|error| panic!("mmap {name}: {error}"));
    for _ in 0..6 {
        let offset = random.random_range(0..size);
        let length = random.random_range(1..=100_000).min(size - offset) as usize;
        check(name, size, offset, length, &mapped.bytes()[offset as usize..offset as usize + length]);
    }
}

#[test]
fn sixteen_readers_of_one_file() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let size = 24 << 20;
    let key = store.synthetic("one/", 1, size).key(0);
    let mount = store.mount("one").start();
    let path = mount.join(key.strip_prefix("one/").unwrap());
    std::thread::scope(|scope| {
        for reader in 0..16u64 {
            let (path, key) = (&path, &key);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut at = reader * 300_007 % size;
                for _ in 0..30 {
                    let length = 777_777.min(size - at) as usize;
                    assert!(pread(&file, at, length).unwrap() == content(key, at, length), "reader {reader} at {at}");
                    at = (at + length as u64) % size;
                }
            });
        }
    });
    mount.stop();
}

#[test]
fn programs_run_from_the_mount() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let program = source.path().join("program");
    std::fs::copy("/bin/echo", &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    for option in ["auto_cache", "passthrough=off"] {
        let mount = Mounting::of_dir(source.path()).option(option).start();
        let output = Command::new(mount.join("program")).arg("it runs").stdin(Stdio::null()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it runs\n", "{option}");
        mount.stop();
    }
    // Objects have no mode that allows it, but the loader maps them all the same.
    let Some(loader) =
        ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].into_iter().find(|path| Path::new(path).exists())
    else {
        return;
    };
    let store = Store::start();
    store.put("program", std::fs::read(&program).unwrap());
    let mount = store.mount("").start();
    let output = Command::new(loader).arg(mount.join("program")).arg("it runs").stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "it runs\n", "{}", String::from_utf8_lossy(&output.stderr));
    mount.stop();
}

#[test]
fn directories_and_attributes_are_those_of_the_source() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let root = source.path();
    std::fs::create_dir_all(root.join("many")).unwrap();
    for number in 0..3000 {
        std::fs::write(root.join(format!("many/{number}")), []).unwrap();
    }
    std::fs::write(root.join("file"), b"content").unwrap();
    std::fs::set_permissions(root.join("file"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::fs::hard_link(root.join("file"), root.join("other name")).unwrap();
    std::os::unix::fs::chown(root.join("file"), Some(1234), Some(4321)).unwrap();
    let times = std::fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456_789));
    File::options().write(true).open(root.join("file")).unwrap().set_times(times).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    std::fs::write(root.join(std::ffi::OsStr::new("not \u{fffd} utf8")), b"x").unwrap();
    let raw = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"raw \xff\xfe name");
    std::fs::write(root.join(raw), b"raw").unwrap();

    let mount = Mounting::of_dir(root).start();
    for directory in ["", "many"] {
        assert_eq!(tree::names(&mount.join(directory)).unwrap(), tree::names(&root.join(directory)).unwrap());
    }
    for entry in std::fs::read_dir(mount.path()).unwrap() {
        let entry = entry.unwrap();
        let (kind, native) =
            (entry.file_type().unwrap(), std::fs::symlink_metadata(root.join(entry.file_name())).unwrap());
        assert_eq!(kind, native.file_type(), "{entry:?}");
    }
    for name in ["", "many", "file", "other name", "pipe", "socket"] {
        let (shown, native) =
            (mount.join(name).symlink_metadata().unwrap(), root.join(name).symlink_metadata().unwrap());
        assert_eq!(shown.mode(), native.mode(), "{name}");
        assert_eq!((shown.uid(), shown.gid()), (native.uid(), native.gid()), "{name}");
        assert_eq!((shown.mtime(), shown.mtime_nsec()), (native.mtime(), native.mtime_nsec()), "{name}");
        if !native.is_dir() {
            assert_eq!((shown.len(), shown.nlink()), (native.len(), native.nlink()), "{name}");
        }
    }
    assert!(mount.join("pipe").symlink_metadata().unwrap().file_type().is_fifo());
    assert_eq!(std::fs::read(mount.join(raw)).unwrap(), b"raw");
    mount.stop();
}

#[test]
fn a_directory_can_be_read_again_and_from_the_middle() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let family = store.synthetic("list/f", 2500, 10);
    let expected: Vec<Vec<u8>> =
        (0..2500).map(|n| family.key(n).strip_prefix("list/").unwrap().as_bytes().to_vec()).collect();
    let mount = store.mount("list").start();
    let mut directory =
        nix::dir::Dir::open(mount.path(), nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty()).unwrap();
    for _ in 0..2 {
        // `Dir::iter` rewinds at its end.
        let mut names: Vec<Vec<u8>> =
            directory.iter().map(|entry| entry.unwrap().file_name().to_bytes().to_vec()).collect();
        names.retain(|name| name != b"." && name != b"..");
        names.sort();
        assert_eq!(names.len(), expected.len());
        assert!(names == expected);
    }
    assert_eq!(from_the_middle(mount.path()), (expected.len() + 2) as u64);
    mount.stop();
}

/// Counts entries: reads half of a directory, remembers the place, reads to the end, returns to the place and reads the
/// rest again, which must be the same.
fn from_the_middle(path: &Path) -> u64 {
    let path = tests::machine::c_path(path);
    // SAFETY: the path ends with NUL; the stream is used by this thread only and closed once; readdir's entry is read
    // before the next call.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        assert!(!stream.is_null());
        let next = || {
            let entry = libc::readdir(stream);
            (!entry.is_null()).then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_owned())
        };
        let first = std::iter::from_fn(next).take(1200).count() as u64;
        let place = libc::telldir(stream);
        let rest: Vec<_> = std::iter::from_fn(next).collect();
        libc::seekdir(stream, place);
        let again: Vec<_> = std::iter::from_fn(next).collect();
        assert!(rest == again, "{} entries after the place, then {}", rest.len(), again.len());
        libc::closedir(stream);
        first + rest.len() as u64
    }
}

#[test]
fn statfs_answers() {
    if !mounts_work() {
        return;
    }
    let store = store();
    for mounting in [store.mount("").option("local_data_cache_size=512MB"), Mounting::of_dir(directory().path())] {
        let mount = mounting.start();
        let stat = nix::sys::statvfs::statvfs(mount.path()).unwrap();
        assert_eq!(stat.name_max(), 255);
        assert!(stat.blocks() > 0 && stat.fragment_size() > 0, "{stat:?}");
        assert!(stat.blocks_free() <= stat.blocks(), "{stat:?}");
        mount.stop();
    }
}

#[test]
fn what_is_not_there_is_not_found_until_it_is() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let store = Store::start();
    store.put("there", b"x".to_vec());
    let fresh = [
        "entry_timeout=0",
        "attr_timeout=0",
        "alluxio.user.metadata.negative.ttl=200ms",
        "alluxio.user.metadata.sync.interval=200ms",
    ];
    let local = Mounting::of_dir(source.path()).options(fresh).start();
    let remote = store.mount("").options(fresh).start();
    for mount in [&local, &remote] {
        for _ in 0..3 {
            assert_eq!(errno(&File::open(mount.join("new"))), libc::ENOENT);
            assert_eq!(errno(&std::fs::metadata(mount.join("no/such/path"))), libc::ENOENT);
            assert_eq!(errno(&std::fs::read_dir(mount.join("new"))), libc::ENOENT);
        }
    }
    assert_eq!(errno(&std::fs::metadata(remote.join("there/below"))), libc::ENOTDIR);
    assert_eq!(errno(&std::fs::read(remote.path())), libc::EISDIR);
    let long = "n".repeat(256);
    assert_eq!(errno(&std::fs::metadata(remote.join(&long))), libc::ENAMETOOLONG);
    std::fs::write(source.path().join("new"), b"now").unwrap();
    store.put("new", b"now".to_vec());
    for mount in [&local, &remote] {
        wait_for("the new file is seen", || std::fs::read(mount.join("new")).ok().filter(|bytes| bytes == b"now"));
    }
    store.delete("new");
    std::fs::remove_file(source.path().join("new")).unwrap();
    for mount in [&local, &remote] {
        wait_for("the file's end is seen", || {
            (errno(&std::fs::metadata(mount.join("new"))) == libc::ENOENT).then_some(())
        });
    }
    local.stop();
    remote.stop();
}
