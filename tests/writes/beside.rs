//! What others do to the source while the mount is in use, and what must not come of it.

use std::{
    fs::{File, Permissions},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use s3server::{Action, Fault};
use tests::{Mounting, Store, mounts_work, wait_for};

use crate::{
    WAYS,
    files::{USER, as_user},
    mount,
};

/// Lets a file belong to the ordinary user.
fn give_to_user(path: &Path) {
    chown(path, Some(USER.0), Some(USER.1)).unwrap();
}

#[test]
fn a_file_that_took_the_place_of_another_is_not_changed_in_its_stead() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        std::fs::set_permissions(source.path(), Permissions::from_mode(0o777)).unwrap();
        let changes = [
            "chmod 777 NAME",
            "truncate -s 1 NAME",
            ": >NAME",
            "echo x >>NAME",
            "touch -d 2001-01-01 NAME",
            "setfattr -n user.mine -v 1 NAME",
            "ln NAME NAME.link && chmod 777 NAME.link",
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let name = format!("f{number}");
            let below = source.path().join(&name);
            std::fs::write(&below, "of the user").unwrap();
            give_to_user(&below);
            // The kernel knows the name, and whose file it is, from here on.
            assert_eq!(std::fs::metadata(mount.join(&name)).unwrap().uid(), USER.0);
            let secret = source.path().join("secret");
            std::fs::write(&secret, "secret").unwrap();
            std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
            let before = std::fs::metadata(&secret).unwrap();
            std::fs::rename(&secret, &below).unwrap();
            let printed = as_user(mount.path(), &change.replace("NAME", &name));
            let after = std::fs::metadata(&below).unwrap();
            assert_eq!(std::fs::read_to_string(&below).unwrap(), "secret", "{way}: {change}: {printed}");
            assert_eq!(
                (after.mode() & 0o7777, after.mtime_nsec(), after.ino()),
                (0o600, before.mtime_nsec(), before.ino()),
                "{way}: {change}: {printed}"
            );
            let refused = ["ermission denied", "not permitted", "Stale"];
            assert!(refused.iter().any(|text| printed.contains(text)), "{way}: {change}: {printed}");
        }
        mount.stop();
    }
}

#[test]
fn a_file_that_is_made_at_the_source_meanwhile_is_opened_as_the_user() {
    if !mounts_work() {
        return;
    }
    let (source, mount) = mount(WAYS[0]);
    std::fs::set_permissions(source.path(), Permissions::from_mode(0o1777)).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let path = source.path().join("file");
            let mut made = std::collections::VecDeque::new();
            let mut harmed = 0;
            while !ended.load(Ordering::Relaxed) {
                if let Ok(file) = File::options().write(true).create_new(true).mode(0o600).open(&path) {
                    file.write_all_at(b"secret", 0).unwrap();
                    made.push_back(file);
                }
                let _ = std::fs::remove_file(&path);
                // Looked at a while later, removed as it is.
                if made.len() > 200 {
                    harmed += made.pop_front().map_or(0, |file| usize::from(file.metadata().unwrap().len() != 6));
                }
            }
            harmed + made.iter().filter(|file| file.metadata().unwrap().len() != 6).count()
        });
        let script = "for n in $(seq 400); do (echo mine >file) 2>/dev/null; done";
        as_user(mount.path(), script);
        ended.store(true, Ordering::Relaxed);
        assert_eq!(beside.join().unwrap(), 0, "a file of root was written by a user");
    });
    mount.stop();
}

#[test]
fn set_id_bits_that_are_set_while_somebody_writes_fall_with_the_next_write() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        std::fs::set_permissions(source.path(), Permissions::from_mode(0o777)).unwrap();
        std::fs::write(source.path().join("file"), "text").unwrap();
        std::fs::set_permissions(source.path().join("file"), Permissions::from_mode(0o666)).unwrap();
        // Somebody reads it all the time, so that the writer joins a reader.
        let _reader = File::open(mount.join("file")).unwrap();
        std::thread::scope(|scope| {
            let script = "exec 3>>file; : >opened; for n in $(seq 3000); do [ -e go ] && break; sleep 0.02; done; \
                          stat -c %a file; echo x >&3; stat -c %a file";
            let root = mount.path();
            let writer = scope.spawn(move || as_user(root, script));
            wait_for("the writer has it open", || mount.join("opened").exists().then_some(()));
            std::fs::set_permissions(mount.join("file"), Permissions::from_mode(0o6777)).unwrap();
            std::fs::write(mount.join("go"), "").unwrap();
            assert_eq!(writer.join().unwrap(), "6777\n777", "{way}");
        });
        assert_eq!(std::fs::metadata(source.path().join("file")).unwrap().mode() & 0o7777, 0o777, "{way}");
        mount.stop();
    }
}

#[test]
fn new_files_keep_the_bits_that_they_are_made_with() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        std::fs::set_permissions(source.path(), Permissions::from_mode(0o777)).unwrap();
        // As tar and install do it.
        let printed =
            as_user(mount.path(), "install -m 4755 /bin/true program; stat -c %a program; ./program && echo ran");
        assert_eq!(printed, "4755\nran", "{way}");
        mount.stop();
    }
}

#[test]
fn a_file_that_is_being_renamed_is_there_all_the_time() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("a"), "text").unwrap();
    let mount = Mounting::of_dir(source.path()).options(["attr_timeout=0"]).start();
    let held = File::options().read(true).custom_flags(libc::O_PATH).open(mount.join("a")).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            for number in 0..3000 {
                let (from, to) = if number % 2 == 0 { ("a", "b") } else { ("b", "a") };
                std::fs::rename(mount.join(from), mount.join(to)).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            let found = nix::sys::stat::fstat(&held);
            assert_eq!(found.map(|stat| stat.st_size), Ok(4), "descriptor {}", held.as_raw_fd());
        }
        mover.join().unwrap();
    });
    drop(held);
    mount.stop();
}

#[test]
fn what_the_source_says_at_close_is_told_at_close() {
    if !mounts_work() {
        return;
    }
    // A source that keeps what is written until it is closed, as those of a network do.
    let store = Store::start();
    let below = store.mount("").option("alluxio.user.object.writes.enabled=true").start();
    for way in WAYS {
        let mount = Mounting::of_dir(below.path()).option(way).start();
        let write = |name: &str| {
            let file = File::create(mount.join(name)).unwrap();
            file.write_all_at(b"text", 0).unwrap();
            nix::unistd::close(file)
        };
        // A first one is taken: whether anything may be written at all is asked at open.
        assert_eq!(write(&format!("first {way}")), Ok(()), "{way}");
        let refused = store.fault(Fault::new(Action::Error(403)).key("refused"));
        assert_eq!(write(&format!("refused {way}")), Err(nix::errno::Errno::EACCES), "{way}");
        assert_eq!(write(&format!("taken {way}")), Ok(()), "{way}");
        store.server().clear_fault(refused);
        mount.stop();
    }
    below.stop();
}

/// A file system that has less room than it believes: writing back fails. None where it cannot be made.
struct Failing {
    below: tests::machine::Tmpfs,
    at: tempfile::TempDir,
}

impl Failing {
    fn new() -> Option<Self> {
        let failing = Self { below: tests::machine::Tmpfs::new(6 << 20), at: tempfile::tempdir().unwrap() };
        let image = failing.below.path().join("image");
        File::create(&image).unwrap().set_len(64 << 20).unwrap();
        let works = |program: &str, arguments: &[&Path]| {
            let mut command = std::process::Command::new(program);
            command.args(arguments);
            // A program that is missing is no reason to fail.
            command.output().is_ok_and(|output| output.status.success())
        };
        let made = works("mkfs.ext2", &[Path::new("-q"), &image])
            && works("mount", &[Path::new("-o"), Path::new("loop"), &image, failing.at.path()]);
        made.then_some(failing)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        tests::machine::detach(self.at.path());
    }
}

#[test]
fn every_writer_is_told_that_writing_back_failed() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let Some(failing) = Failing::new() else {
            eprintln!("skipped: no file system on a loop device can be made here");
            return;
        };
        let mount = Mounting::of_dir(failing.at.path()).option(way).start();
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(mount.join("file"));
        let writers = [open().unwrap(), open().unwrap(), open().unwrap()];
        let chunk: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for number in 0..20 {
            writers[0].write_all_at(&chunk, number << 20).unwrap();
        }
        for (number, writer) in writers.iter().enumerate() {
            let told = writer.sync_all().unwrap_err();
            assert!(matches!(told.raw_os_error(), Some(libc::ENOSPC | libc::EIO)), "{way}: writer {number}: {told}");
        }
        drop(writers);
        mount.stop();
    }
}
