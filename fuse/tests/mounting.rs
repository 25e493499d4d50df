//! The adapter under a real kernel: a directory of this host and a storage in memory, mounted and read.
//!
//! Needs /dev/fuse and the right to mount; without them each test says so and passes.

#[path = "support/memory.rs"]
#[allow(dead_code, reason = "the unit tests of the file system use more of it")]
mod memory;

use client::ClientOptions;
use common::{UfsUri, conf::Conf, conf::Source};
use fuse::{
    assemble::{MountPlan, MountedParts, Parts, filesystem, from_parts},
    fs::{Fs, FsOptions},
};
use memory::MemoryWorker;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A mount that goes with its value.
struct Mounted {
    session: Option<fuser::BackgroundSession>,
    fs: Arc<Fs>,
    runtime: Option<Runtime>,
    point: TempDir,
}

impl Mounted {
    fn new(parts: MountedParts) -> Option<Self> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("skipped: /dev/fuse: {error}");
            return None;
        }
        let point = tempfile::tempdir().unwrap();
        let mut config = fuser::Config::default();
        // Not read-only for the kernel, which then passes on to us what would write.
        config.mount_options = vec![fuser::MountOption::FSName("alluxio-fuse-test".into())];
        config.n_threads = Some(parts.threads);
        let session = fuser::Session::new(parts.adapter, point.path(), &config).and_then(fuser::Session::spawn);
        let session = match session {
            Ok(session) => session,
            Err(error) => {
                eprintln!("skipped: cannot mount: {error}");
                return None;
            }
        };
        Some(Self { session: Some(session), fs: parts.fs, runtime: Some(parts.runtime), point })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.point.path().join(name)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: what a failed test still has open must not keep the mount.
        let _ = nix::mount::umount2(self.point.path(), nix::mount::MntFlags::MNT_DETACH);
        if let Some(session) = self.session.take() {
            drop(session);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}

fn memory(worker: &Arc<MemoryWorker>) -> Option<Mounted> {
    // Attributes are asked for each time, so that changes show at once.
    let options = FsOptions { attr_timeout: Duration::ZERO, entry_timeout: Duration::ZERO, ..FsOptions::default() };
    let parts = Parts { worker: worker.clone(), options, client: ClientOptions::default(), memory: 32 << 20 };
    Mounted::new(from_parts(parts).unwrap())
}

fn local(directory: &Path, settings: &[(&str, &str)]) -> Option<Mounted> {
    mount_of(directory, settings, false)
}

fn mount_of(directory: &Path, settings: &[(&str, &str)], read_only: bool) -> Option<Mounted> {
    let mut conf = Conf::builder();
    for (name, value) in settings {
        conf = conf.set(name, value, Source::CommandLine("-o".into()));
    }
    let uri = UfsUri::parse(directory.to_str().unwrap()).unwrap();
    let plan = MountPlan { uri, conf: conf.load().unwrap(), ufs_options: Vec::new(), read_only };
    Mounted::new(filesystem(&plan).unwrap())
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Waits until `done`, for at most 30 s.
fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "waited 30 s for this: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at + seed) * 31 % 251) as u8).collect()
}

/// A directory with a bit of everything.
fn sample() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::create_dir_all(at.join("deep/er/still")).unwrap();
    fs::write(at.join("deep/er/still/file"), b"deep").unwrap();
    fs::write(at.join("empty"), b"").unwrap();
    fs::write(at.join("small"), b"hello").unwrap();
    fs::write(at.join("large"), pattern(5_000_003, 0)).unwrap();
    fs::write(at.join("grün ☃"), b"names are bytes").unwrap();
    fs::write(at.join("n".repeat(255)), b"long").unwrap();
    std::os::unix::fs::symlink("deep/er/still/file", at.join("link")).unwrap();
    fs::copy("/bin/true", at.join("true")).unwrap();
    fs::set_permissions(at.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    directory
}

fn same_tree(source: &Path, mount: &Path) {
    assert_eq!(names(source), names(mount), "{}", source.display());
    for name in names(source) {
        let (there, here) = (source.join(&name), mount.join(&name));
        let (expected, found) = (fs::symlink_metadata(&there).unwrap(), fs::symlink_metadata(&here).unwrap());
        let seen = |meta: &fs::Metadata| (meta.mode(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.uid());
        assert_eq!(seen(&expected), seen(&found), "{name}");
        if expected.is_dir() {
            same_tree(&there, &here);
        } else if expected.is_symlink() {
            assert_eq!(fs::read_link(&there).unwrap(), fs::read_link(&here).unwrap());
        } else {
            assert!(fs::read(&there).unwrap() == fs::read(&here).unwrap(), "{name} differs");
        }
    }
}

#[test]
fn a_local_directory_is_the_same_through_the_mount() {
    for passthrough in ["auto", "off"] {
        let source = sample();
        let Some(mounted) = local(source.path(), &[("alluxio.fuse.passthrough", passthrough)]) else { return };
        for _ in 0..2 {
            same_tree(source.path(), mounted.point.path());
        }
        assert!(std::process::Command::new(mounted.path("true")).status().unwrap().success(), "exec");
        let map = File::open(mounted.path("large")).unwrap();
        // SAFETY: a private read-only mapping of a file that nobody changes; unmapped below.
        let bytes = unsafe {
            nix::sys::mman::mmap(
                None,
                std::num::NonZeroUsize::new(5_000_003).unwrap(),
                nix::sys::mman::ProtFlags::PROT_READ,
                nix::sys::mman::MapFlags::MAP_PRIVATE,
                &map,
                0,
            )
            .unwrap()
        };
        // SAFETY: the mapping has this length and lives until the munmap.
        let mapped = unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), 5_000_003) };
        assert!(mapped == pattern(5_000_003, 0), "mmap differs");
        // SAFETY: mapped above with this length; `mapped` is not used any more.
        unsafe { nix::sys::mman::munmap(bytes, 5_000_003).unwrap() };
        drop(map);
        let status = mounted.fs.status();
        assert_eq!(status.passthrough, status.passthrough_reason.is_none());
        if passthrough == "off" {
            assert_eq!((status.passthrough, status.passthrough_registered), (false, 0));
        } else if status.passthrough {
            // The kernel took the files, or said why not for the file system that they lie on.
            eprintln!("registered {}, reused {}", status.passthrough_registered, status.passthrough_reused);
        } else {
            eprintln!("no passthrough here: {:?}", status.passthrough_reason);
        }
        until("all handles are released", || mounted.fs.status().open_handles == 0);
    }
}

#[test]
fn whatever_writes_is_answered_erofs() {
    let source = sample();
    let Some(mounted) = mount_of(source.path(), &[], true) else { return };
    let small = mounted.path("small");
    assert_eq!(errno(fs::write(&small, b"x")), Some(libc::EROFS));
    assert_eq!(errno(File::options().append(true).open(&small)), Some(libc::EROFS));
    assert_eq!(errno(File::create(mounted.path("new"))), Some(libc::EROFS));
    assert_eq!(errno(fs::create_dir(mounted.path("new"))), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(&small)), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_dir(mounted.path("deep/er/still"))), Some(libc::EROFS));
    assert_eq!(errno(fs::rename(&small, mounted.path("other"))), Some(libc::EROFS));
    assert_eq!(errno(fs::hard_link(&small, mounted.path("other"))), Some(libc::EROFS));
    assert_eq!(errno(std::os::unix::fs::symlink("x", mounted.path("other"))), Some(libc::EROFS));
    assert_eq!(errno(fs::set_permissions(&small, fs::Permissions::from_mode(0o600))), Some(libc::EROFS));
    assert_eq!(errno(fs::metadata(mounted.path("none"))), Some(libc::ENOENT));
    assert_eq!(errno(fs::read_dir(&small)), Some(libc::ENOTDIR));
    assert_eq!(fs::read(source.path().join("small")).unwrap(), b"hello");
}

#[test]
fn changes_of_a_local_file_show_at_the_next_open() {
    for passthrough in ["auto", "off"] {
        let source = sample();
        let Some(mounted) = local(source.path(), &[("alluxio.fuse.passthrough", passthrough)]) else { return };
        let (there, here) = (source.path().join("small"), mounted.path("small"));
        assert_eq!(fs::read(&here).unwrap(), b"hello");
        let mut old = File::open(&here).unwrap();
        // Replaced while open, as careful writers do.
        fs::write(source.path().join("next"), b"something longer").unwrap();
        fs::rename(source.path().join("next"), &there).unwrap();
        assert_eq!(fs::read(&here).unwrap(), b"something longer");
        let mut text = String::new();
        old.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello", "who has it open keeps what was opened");
        drop(old);
        fs::write(&there, b"short").unwrap();
        assert_eq!(fs::read(&here).unwrap(), b"short");
        File::options().append(true).open(&there).unwrap().write_all(b", then more").unwrap();
        assert_eq!(fs::read(&here).unwrap(), b"short, then more");
        fs::remove_file(&there).unwrap();
        assert_eq!(errno(File::open(&here)), Some(libc::ENOENT));
    }
}

#[test]
fn files_opened_again_and_again_are_registered_once() {
    let source = sample();
    let Some(mounted) = local(source.path(), &[]) else { return };
    for _ in 0..20 {
        assert_eq!(fs::read(mounted.path("small")).unwrap(), b"hello");
    }
    let status = mounted.fs.status();
    if status.passthrough_registered == 0 {
        eprintln!("skipped: no passthrough here: {:?}", status.passthrough_reason);
        return;
    }
    // A release may come after the next open, which then shares the registration without counting as a reuse.
    assert_eq!(status.passthrough_registered, 1);
    let (one, two) = (File::open(mounted.path("large")).unwrap(), File::open(mounted.path("large")).unwrap());
    let expected = pattern(5_000_003, 0);
    let mut bytes = [0; 1000];
    for file in [&one, &two, &one] {
        file.read_exact_at(&mut bytes, 4_000_000).unwrap();
        assert!(bytes == expected[4_000_000..][..1000]);
    }
    drop((one, two));
    until("all handles are released", || mounted.fs.status().open_handles == 0);
    mounted.fs.tick(Instant::now() + Duration::from_secs(3600));
    assert_eq!(mounted.fs.status().passthrough_kept, 0);
    assert_eq!(fs::read(mounted.path("small")).unwrap(), b"hello");
}

#[test]
fn objects_are_read_whole_in_each_way_of_serving_them() {
    for (knows, caches) in [(true, true), (true, false), (false, true), (false, false)] {
        let worker = MemoryWorker::new(1 << 16);
        worker.knows.store(knows, Ordering::Relaxed);
        worker.caches.store(caches, Ordering::Relaxed);
        worker.directory("d");
        let sizes = [0, 1, 100, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1_000_000];
        for (seed, size) in sizes.into_iter().enumerate() {
            worker.file(&format!("d/{size}"), pattern(size, seed));
        }
        worker.link("link", "d/100");
        let Some(mounted) = memory(&worker) else { return };
        for _ in 0..2 {
            for (seed, size) in sizes.into_iter().enumerate() {
                let path = mounted.path(&format!("d/{size}"));
                assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
                assert!(fs::read(&path).unwrap() == pattern(size, seed), "{size} bytes, {knows} {caches}");
            }
        }
        assert_eq!(fs::read(mounted.path("link")).unwrap(), pattern(100, 2));
        let mut file = File::open(mounted.path("d/1000000")).unwrap();
        file.seek(SeekFrom::End(-3)).unwrap();
        let mut end = Vec::new();
        file.read_to_end(&mut end).unwrap();
        assert_eq!(end, pattern(1_000_000, 6)[999_997..]);
        assert_eq!(names(&mounted.path("d")).len(), sizes.len());
    }
}

#[test]
fn a_handle_keeps_its_version_while_the_object_changes() {
    for caches in [true, false] {
        let worker = MemoryWorker::new(1 << 16);
        worker.caches.store(caches, Ordering::Relaxed);
        worker.file("f", pattern(50_000, 1));
        let Some(mounted) = memory(&worker) else { return };
        let old = File::open(mounted.path("f")).unwrap();
        for round in 2..5 {
            worker.file("f", pattern(40_000 + round, round));
            assert!(fs::read(mounted.path("f")).unwrap() == pattern(40_000 + round, round), "round {round}");
            let mut bytes = vec![0; 50_000];
            old.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == pattern(50_000, 1), "round {round}");
        }
        worker.remove("f");
        assert_eq!(errno(File::open(mounted.path("f"))), Some(libc::ENOENT));
        let mut bytes = [0; 10];
        old.read_exact_at(&mut bytes, 49_990).unwrap();
        assert_eq!(bytes, pattern(50_000, 1)[49_990..]);
    }
}

#[test]
fn many_readers_and_many_opens_of_one_file_get_along() {
    let worker = MemoryWorker::new(1 << 16);
    worker.caches.store(true, Ordering::Relaxed);
    worker.file("small", pattern(30_000, 3));
    worker.file("large", pattern(300_000, 4));
    let Some(mounted) = memory(&worker) else { return };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..30 {
                    assert!(fs::read(mounted.path("small")).unwrap() == pattern(30_000, 3));
                    assert!(fs::read(mounted.path("large")).unwrap() == pattern(300_000, 4));
                }
            });
        }
    });
    until("all handles are released", || mounted.fs.status().open_handles == 0);
}

#[test]
fn a_large_directory_is_listed_whole_and_from_the_kernels_memory_the_second_time() {
    let worker = MemoryWorker::new(4096);
    worker.generated("d", 30_000);
    let parts = Parts {
        worker: worker.clone(),
        options: FsOptions::default(),
        client: ClientOptions::default(),
        memory: 32 << 20,
    };
    let Some(mounted) = Mounted::new(from_parts(parts).unwrap()) else { return };
    let expected: BTreeSet<_> = (0..30_000).map(|at| format!("entry{at}")).collect();
    for _ in 0..3 {
        assert!(names(&mounted.path("d")) == expected);
    }
    // How long the kernel keeps it is its own affair; that it never asks for more listings than reads is ours.
    assert!(worker.listings.load(Ordering::Relaxed) <= 3);
    let mut stream = nix::dir::Dir::open(
        &mounted.path("d"),
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    for _ in 0..2 {
        // The iterator rewinds the stream when it is dropped.
        let listed: BTreeSet<_> = stream
            .iter()
            .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert!(listed == expected);
    }
}

#[test]
fn a_link_that_was_replaced_is_followed_to_its_new_target() {
    let directory = tempfile::tempdir().unwrap();
    let source = directory.path().join("link");
    std::os::unix::fs::symlink("one", &source).unwrap();
    let Some(mounted) = local(directory.path(), &[("alluxio.fuse.entry.timeout", "0")]) else { return };
    let link = mounted.path("link");
    for target in ["one", "other", "one more"] {
        let fresh = directory.path().join("fresh");
        std::os::unix::fs::symlink(target, &fresh).unwrap();
        fs::rename(&fresh, &source).unwrap();
        for _ in 0..2 {
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
    }
}
