//! Symbolic links of a directory are shown as links, and the daemon never walks one.

use std::{os::unix::fs::symlink, path::Path};

use tests::{Mounting, data::errno, mounts_work};

#[test]
fn links_are_shown_as_they_are() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let root = source.path();
    std::fs::create_dir(root.join("dir")).unwrap();
    std::fs::write(root.join("dir/file"), b"inside").unwrap();
    let long = "t".repeat(1000);
    let links = [
        ("relative", "dir/file"),
        ("to a directory", "dir"),
        ("upwards", "dir/../dir/file"),
        ("dangling", "no such thing"),
        ("loop", "loop"),
        ("outside", "/etc"),
        ("above the mount", "../../../../../../../../../etc/hostname"),
        ("long", long.as_str()),
    ];
    for (name, target) in links {
        symlink(target, root.join(name)).unwrap();
    }
    let mount = Mounting::of_dir(root).start();
    for (name, target) in links {
        assert_eq!(std::fs::read_link(mount.join(name)).unwrap(), Path::new(target));
        assert!(mount.join(name).symlink_metadata().unwrap().is_symlink());
    }
    let listed = std::fs::read_dir(mount.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_symlink());
    assert_eq!(listed.count(), links.len());
    for name in ["relative", "to a directory/file", "upwards"] {
        assert_eq!(std::fs::read(mount.join(name)).unwrap(), b"inside");
    }
    assert_eq!(errno(&std::fs::read(mount.join("dangling"))), libc::ENOENT);
    assert_eq!(errno(&std::fs::read(mount.join("loop"))), libc::ELOOP);
    mount.stop();
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let secrets = tempfile::tempdir().unwrap();
    std::fs::write(secrets.path().join("file"), b"secret").unwrap();
    let root = source.path();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("a/b/file"), b"inside").unwrap();
    // The kernel believes for an hour that `a/b` is a directory, and asks the daemon for what lies below it.
    let mount = Mounting::of_dir(root).options(["entry_timeout=3600", "attr_timeout=3600"]).start();
    assert!(mount.join("a/b").is_dir());
    std::fs::rename(root.join("a/b"), root.join("a/moved")).unwrap();
    symlink(secrets.path(), root.join("a/b")).unwrap();
    let read = std::fs::read(mount.join("a/b/file"));
    assert!(read.as_ref().is_err() || read.as_ref().is_ok_and(|bytes| bytes == b"inside"), "{read:?}");
    let listed = std::fs::read_dir(mount.join("a/b")).map(|entries| entries.filter_map(Result::ok).count());
    assert!(listed.is_err() || listed.is_ok_and(|count| count <= 1));
    mount.stop();
}
