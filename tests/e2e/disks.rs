//! A cache disk that is tiny, full, read-only, unreadable, or whose files were damaged: reads stay right.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use tests::{Mount, Mounting, Store, content, machine::Tmpfs, mounts_work};

const FILES: u64 = 24;
const SIZE: u64 = 500_001;

struct Set {
    store: Store,
    names: Vec<String>,
}

impl Set {
    fn new() -> Self {
        let store = Store::start();
        let family = store.synthetic("set/", FILES, SIZE);
        let names = (0..FILES).map(|number| family.key(number).strip_prefix("set/").unwrap().to_owned()).collect();
        Set { store, names }
    }

    fn mounting(&self, cache: &Path) -> Mounting {
        self.store.mount("set").cache(cache).options(["alluxio.user.client.cache.page.size=64KiB", "passthrough=auto"])
    }

    #[track_caller]
    fn read_all(&self, mount: &Mount) {
        for name in &self.names {
            let bytes = std::fs::read(mount.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(bytes == content(&format!("set/{name}"), 0, SIZE as usize), "{name}: wrong bytes");
        }
    }
}

/// The files below a directory, with their lengths.
fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let found = walkdir::WalkDir::new(dir).into_iter().filter_map(Result::ok);
    found
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| (entry.path().to_owned(), entry.metadata().map_or(0, |found| found.len())))
        .collect()
}

#[test]
fn a_tiny_disk_that_fills_up() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let disk = Tmpfs::new(6 << 20);
    // The disk fits this capacity at the start; somebody else takes the space away later.
    let mount = set.mounting(disk.path()).option("local_data_cache_size=4MiB").start();
    set.read_all(&mount);
    let ballast = File::create(disk.path().join("ballast")).unwrap();
    let mut at = 0;
    while ballast.write_at(&[1; 4096], at).is_ok_and(|count| count > 0) {
        at += 4096;
    }
    for _ in 0..2 {
        set.read_all(&mount);
    }
    drop(ballast);
    std::fs::remove_file(disk.path().join("ballast")).unwrap();
    for _ in 0..2 {
        set.read_all(&mount);
    }
    mount.stop();
    // And from the beginning with what is left.
    let mount = set.mounting(disk.path()).option("local_data_cache_size=4MiB").start();
    set.read_all(&mount);
    mount.stop();
}

#[test]
fn a_disk_that_is_read_only() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let disk = Tmpfs::new(64 << 20);
    let mounting = || set.mounting(disk.path()).option("local_data_cache_size=8MiB");
    let mount = mounting().start();
    set.read_all(&mount);
    mount.stop();
    disk.read_only(true);
    // It is refused by name or left out; a mount that comes up reads right.
    match mounting().try_start() {
        Ok(mount) => {
            set.read_all(&mount);
            set.read_all(&mount);
            mount.stop();
        }
        Err(failure) => assert!(failure.message.contains(disk.path().to_str().unwrap()), "{failure:?}"),
    }
    disk.read_only(false);
    let mount = mounting().start();
    set.read_all(&mount);
    mount.stop();
}

#[test]
fn a_disk_whose_calls_fail_while_mounted() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let disk = Tmpfs::new(64 << 20);
    let mount = set.mounting(disk.path()).option("local_data_cache_size=8MiB").start();
    set.read_all(&mount);
    // The folders are gone, with a file in place of the topmost.
    for entry in walkdir::WalkDir::new(disk.path()).min_depth(2).contents_first(true) {
        let path = entry.unwrap().into_path();
        let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
    }
    for entry in walkdir::WalkDir::new(disk.path()).min_depth(1).max_depth(1) {
        let path = entry.unwrap().into_path();
        if path.is_dir() && std::fs::remove_dir(&path).is_ok() {
            std::fs::write(&path, b"no folder").unwrap();
        }
    }
    for _ in 0..3 {
        set.read_all(&mount);
    }
    mount.stop();
}

#[test]
fn pages_that_were_overwritten_with_garbage() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let cache = tempfile::tempdir().unwrap();
    let fill = |set: &Set| {
        let mount = set.mounting(cache.path()).option("local_data_cache_size=64MiB").start();
        set.read_all(&mount);
        mount.stop();
    };
    fill(&set);
    let large: Vec<_> = files(cache.path()).into_iter().filter(|(_, length)| *length >= SIZE / 2).collect();
    assert!(!large.is_empty(), "pages lie in files: {:?}", files(cache.path()));
    for (path, length) in &large {
        let file = File::options().write(true).open(path).unwrap();
        for at in (1000..length - 100).step_by(30_000) {
            file.write_at(b"garbage garbage garbage", at).unwrap();
        }
    }
    fill(&set);
    fill(&set);
}

#[test]
fn a_cache_directory_with_nothing_but_garbage() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let cache = tempfile::tempdir().unwrap();
    let fill = |set: &Set| {
        let mount = set.mounting(cache.path()).option("local_data_cache_size=64MiB").start();
        set.read_all(&mount);
        set.read_all(&mount);
        mount.stop();
    };
    fill(&set);
    for (number, (path, length)) in files(cache.path()).into_iter().enumerate() {
        let file = File::options().write(true).open(&path).unwrap();
        match number % 4 {
            0 => file.set_len(length / 2).unwrap(),
            1 => file.set_len(0).unwrap(),
            2 => drop(file.write_at(&content("garbage", number as u64, length.min(1 << 20) as usize), 0).unwrap()),
            _ => std::fs::remove_file(&path).unwrap(),
        }
    }
    fill(&set);
    // Strangers' files among ours, and directories where files should be.
    for (number, (path, _)) in files(cache.path()).into_iter().enumerate() {
        let directory = path.parent().unwrap();
        std::fs::write(directory.join(format!("stranger {number}")), b"what is this").unwrap();
        if number % 5 == 0 {
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
        }
    }
    fill(&set);
}

#[test]
fn a_cache_that_is_deleted_under_the_mount() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let cache = tempfile::tempdir().unwrap();
    let mount = set.mounting(cache.path()).option("local_data_cache_size=8MiB").start();
    set.read_all(&mount);
    for entry in std::fs::read_dir(cache.path()).unwrap() {
        let path = entry.unwrap().path();
        let _ = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
    }
    set.read_all(&mount);
    set.read_all(&mount);
    mount.stop();
}

#[test]
fn one_of_two_disks_fails() {
    if !mounts_work() {
        return;
    }
    let set = Set::new();
    let (good, tiny) = (tempfile::tempdir().unwrap(), Tmpfs::new(4 << 20));
    let dirs = format!("alluxio.user.client.cache.dirs={}\\,{}", good.path().display(), tiny.path().display());
    let mount = set.mounting(good.path()).option(dirs).option("alluxio.user.client.cache.sizes=32MiB\\,3MiB").start();
    set.read_all(&mount);
    let ballast = File::create(tiny.path().join("ballast")).unwrap();
    let mut at = 0;
    while ballast.write_at(&[1; 4096], at).is_ok_and(|count| count > 0) {
        at += 4096;
    }
    set.read_all(&mount);
    mount.stop();
}
