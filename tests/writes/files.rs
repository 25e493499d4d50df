//! Whose files they are, and what the kernel is told of them.

use std::{
    fs::File,
    io::Write as _,
    os::unix::{
        fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    process::Command,
};

use tests::{daemon, mounts_work};

use crate::{WAYS, mount};

/// User and group of the ordinary user.
pub const USER: (u32, u32) = (12_345, 23_456);

/// Runs a shell as an ordinary user in the root of a mount.
pub fn as_user(root: &std::path::Path, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(root).uid(USER.0).gid(USER.1);
    let output = daemon::run(command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    text.trim().to_owned()
}

#[test]
fn what_a_user_makes_belongs_to_the_user() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        let shared = source.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o1777)).unwrap();
        std::fs::write(shared.join("of root"), "x").unwrap();
        let script = "umask 027; cd shared; echo x >f; mkdir d; ln -s f l; mkfifo p; ln f h; cat f; rm -f 'of root'; stat -c '%u %g %a %n' f d l p";
        let printed = as_user(mount.path(), script);
        assert!(
            printed.starts_with("x\n12345 23456 640 f\n12345 23456 750 d\n12345 23456 777 l\n12345 23456 640 p"),
            "{printed}"
        );
        assert!(printed.contains("not permitted"), "the sticky directory keeps others' files: {printed}");
        let below = std::fs::metadata(shared.join("f")).unwrap();
        assert_eq!((below.uid(), below.gid(), below.mode() & 0o7777, below.nlink()), (12_345, 23_456, 0o640, 2));
        assert!(as_user(mount.path(), "echo x >forbidden").contains("Permission denied"));
        assert!(!source.path().join("forbidden").exists());
        mount.stop();
    }
}

#[test]
fn set_id_bits_fall_when_somebody_without_privilege_writes() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        let changes = ["echo x >>", "truncate -s 1", "echo x >", "fallocate -o 0 -l 10"];
        for (number, change) in changes.into_iter().enumerate() {
            let name = format!("f{number}");
            let file = source.path().join(&name);
            std::fs::write(&file, "text").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o6777)).unwrap();
            let printed = as_user(mount.path(), &format!("stat -c %a {name}; {change} {name}; stat -c %a {name}"));
            assert_eq!(printed, "6777\n777", "{way}: {change}");
            assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o7777, 0o777, "{way}: {change}");
        }
        mount.stop();
    }
}

#[test]
fn attributes_are_never_old_after_a_change_through_the_mount() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (_source, mount) = mount(way);
        let path = mount.join("file");
        let file = File::create(&path).unwrap();
        for size in [1u64, 70_000, 1 << 20] {
            let before = std::fs::metadata(&path).unwrap();
            file.write_all_at(&vec![1; size as usize], 0).unwrap();
            let after = std::fs::metadata(&path).unwrap();
            assert_eq!(after.len(), size, "{way}");
            assert!((after.mtime(), after.mtime_nsec()) >= (before.mtime(), before.mtime_nsec()));
        }
        drop(file);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        File::options().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 << 20) + 4);
        let links = || std::fs::metadata(mount.path()).unwrap().nlink();
        let before = links();
        std::fs::create_dir(mount.join("d")).unwrap();
        assert_eq!(links(), before + 1);
        std::fs::remove_dir(mount.join("d")).unwrap();
        assert_eq!(links(), before);
        mount.stop();
    }
}

#[test]
fn appends_of_two_programs_do_not_overwrite_each_other() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        let path = mount.join("log");
        std::fs::write(&path, "").unwrap();
        std::thread::scope(|scope| {
            for writer in ["a", "b", "beside"] {
                // One of them works at the source.
                let path = if writer == "beside" { source.path().join("log") } else { path.clone() };
                scope.spawn(move || {
                    let mut file = File::options().append(true).open(path).unwrap();
                    for number in 0..200 {
                        file.write_all(format!("{writer} {number}\n").as_bytes()).unwrap();
                    }
                });
            }
        });
        let text = std::fs::read_to_string(source.path().join("log")).unwrap();
        for writer in ["a", "b", "beside"] {
            let lines: Vec<_> = text.lines().filter(|line| line.split(' ').next() == Some(writer)).collect();
            let expected: Vec<_> = (0..200).map(|number| format!("{writer} {number}")).collect();
            assert_eq!(lines, expected, "{way}");
        }
        mount.stop();
    }
}

#[test]
fn locks_hold_between_processes() {
    if !mounts_work() {
        return;
    }
    let (_source, mount) = mount(WAYS[0]);
    let path = mount.join("file");
    let file = File::create(&path).unwrap();
    file.try_lock().unwrap();
    let try_it = || {
        let mut command = Command::new("flock");
        command.arg("-n").arg(&path).arg("true");
        daemon::run(command).status.success()
    };
    assert!(!try_it(), "another process got the lock");
    file.unlock().unwrap();
    assert!(try_it());
    mount.stop();
}
