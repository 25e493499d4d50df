//! Every call that writes answers EROFS on a mount that takes no writes.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use nix::{
    fcntl::AT_FDCWD,
    sys::{
        stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat},
        time::TimeSpec,
    },
    unistd::{chown, truncate},
};
use tests::{Mounting, Store, data::errno, machine::c_path, mounts_work};

/// The calls and the errno that each answers.
fn answers(root: &Path) -> Vec<(&'static str, i32)> {
    let (file, dir, link, new) = (root.join("file"), root.join("dir"), root.join("link"), root.join("new"));
    let open = |options: &mut OpenOptions, path: &Path| errno(&options.open(path));
    let of_nix = |result: nix::Result<()>| errno(&result.map_err(io::Error::from));
    let now = TimeSpec::new(1, 1);
    let attribute = c"user.test";
    let c_file = c_path(&file);
    // SAFETY: both strings end with NUL and live through the calls; the value has the length given.
    let (set, remove) = unsafe {
        let set = libc::setxattr(c_file.as_ptr(), attribute.as_ptr(), b"x".as_ptr().cast(), 1, 0);
        let set = if set == 0 { 0 } else { errno::<()>(&Err(io::Error::last_os_error())) };
        let remove = libc::removexattr(c_file.as_ptr(), attribute.as_ptr());
        (set, if remove == 0 { 0 } else { errno::<()>(&Err(io::Error::last_os_error())) })
    };
    vec![
        ("open to write", open(File::options().write(true), &file)),
        ("open to read and write", open(File::options().read(true).write(true), &file)),
        ("open to append", open(File::options().append(true), &file)),
        ("open and truncate", open(File::options().write(true).truncate(true), &file)),
        ("create", open(File::options().write(true).create_new(true), &new)),
        ("create in a directory", open(File::options().write(true).create_new(true), &dir.join("new"))),
        ("open or create", open(File::options().write(true).create(true).truncate(false), &file)),
        ("temporary file", open(File::options().write(true).custom_flags(libc::O_TMPFILE), &dir)),
        ("truncate", of_nix(truncate(&file, 1))),
        ("mkdir", errno(&std::fs::create_dir(&new))),
        ("rmdir", errno(&std::fs::remove_dir(&dir))),
        ("unlink", errno(&std::fs::remove_file(&file))),
        ("unlink a link", errno(&std::fs::remove_file(&link))),
        ("rename", errno(&std::fs::rename(&file, &new))),
        ("rename over a file", errno(&std::fs::rename(&file, dir.join("inner")))),
        ("rename a directory", errno(&std::fs::rename(&dir, &new))),
        ("link", errno(&std::fs::hard_link(&file, &new))),
        ("symlink", errno(&symlink("target", &new))),
        ("mkfifo", of_nix(mknod(&new, SFlag::S_IFIFO, Mode::S_IRUSR, 0))),
        ("mknod", of_nix(mknod(&new, SFlag::S_IFREG, Mode::S_IRUSR, 0))),
        ("chmod", errno(&std::fs::set_permissions(&file, Permissions::from_mode(0o600)))),
        ("chown", of_nix(chown(&file, Some(1.into()), Some(1.into())))),
        ("utimens", of_nix(utimensat(AT_FDCWD, &file, &now, &now, UtimensatFlags::FollowSymlink))),
        ("setxattr", set),
        ("removexattr", remove),
    ]
}

fn check(root: &Path, with_links: bool) {
    for (call, answer) in answers(root) {
        if call.contains("a link") && !with_links {
            continue;
        }
        // The kernel asks for these by a request of their own, which fuser does not know; programs then do without.
        if call == "temporary file" && answer == libc::EOPNOTSUPP {
            continue;
        }
        assert_eq!(answer, libc::EROFS, "{call}: {}", io::Error::from_raw_os_error(answer));
    }
    assert_eq!(std::fs::read(root.join("file")).unwrap(), b"content");
    assert_eq!(std::fs::read(root.join("dir/inner")).unwrap(), b"inner");
}

#[test]
fn every_write_is_refused() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("dir")).unwrap();
    std::fs::write(source.path().join("file"), b"content").unwrap();
    std::fs::write(source.path().join("dir/inner"), b"inner").unwrap();
    symlink("file", source.path().join("link")).unwrap();
    let store = Store::start();
    store.put("file", *b"content");
    store.put("dir/inner", *b"inner");
    for option in ["passthrough=auto", "auto_cache", "passthrough=off"] {
        let mount = Mounting::of_dir(source.path()).options(["ro", option]).start();
        check(mount.path(), true);
        mount.stop();
        let mount = store.mount("").options(["ro", option]).start();
        check(mount.path(), false);
        mount.stop();
    }
    let mount = store.mount("").option("alluxio.user.object.writes.enabled=false").start();
    check(mount.path(), false);
    mount.stop();
    assert_eq!(store.server().keys(tests::s3::BUCKET), ["dir/inner", "file"]);
    assert_eq!(tests::tree::names(source.path()).unwrap(), [&b"dir"[..], b"file", b"link"]);
}
