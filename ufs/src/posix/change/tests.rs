//! Changes of a real directory.

use super::*;
use crate::{options::UfsOptions, storage::UnderStorage};
use common::{FileKind, UfsUri};
use std::{
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};
use tempfile::TempDir;

const ME: Caller = Caller { uid: 0, gid: 0 };

fn storage(directory: &TempDir) -> Posix {
    let uri = UfsUri::parse(directory.path().to_str().unwrap()).unwrap();
    Posix::open(&uri, &UfsOptions::default()).unwrap()
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn file(opened: OpenedForWriting) -> LocalFile {
    match opened {
        OpenedForWriting::Local(local) => local,
        OpenedForWriting::Staged(_) => panic!("a local file is not staged"),
    }
}

#[tokio::test]
async fn what_is_made_belongs_to_the_caller_with_the_mode_that_was_asked_for() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let storage = storage(&directory);
    let caller = Caller { uid: 12345, gid: 23456 };
    let made = file(storage.create(&path("file"), libc::O_WRONLY | libc::O_EXCL, 0o4666, caller).await.unwrap());
    assert_eq!((made.attr.uid, made.attr.gid, made.attr.mode), (12345, 23456, 0o4666));
    let nodes = [
        (NewNode::Directory, FileKind::Directory),
        (NewNode::Fifo, FileKind::Fifo),
        (NewNode::Socket, FileKind::Socket),
        (NewNode::File, FileKind::File),
        (NewNode::CharDevice(nix::sys::stat::makedev(1, 3)), FileKind::CharDevice),
        (NewNode::Symlink(Bytes::from_static(b"nowhere")), FileKind::Symlink),
    ];
    for (at, (node, kind)) in nodes.into_iter().enumerate() {
        let attr = storage.make(&path(&format!("n{at}")), &node, 0o777, caller).await.unwrap();
        assert_eq!((attr.kind, attr.uid, attr.gid, attr.mode), (kind, 12345, 23456, 0o777), "{node:?}");
    }
    // The thread is itself again.
    let own = storage.make(&path("own"), &NewNode::Directory, 0o700, ME).await.unwrap();
    assert_eq!((own.uid, own.gid), (0, 0));
    std::fs::write(directory.path().join("beside"), "x").unwrap();
    assert_eq!(std::fs::metadata(directory.path().join("beside")).unwrap().uid(), 0);
}

#[tokio::test]
async fn a_set_group_directory_gives_its_group() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(directory.path(), None, Some(777)).unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o2700)).unwrap();
    let storage = storage(&directory);
    let caller = Caller { uid: 5, gid: 6 };
    let below = storage.make(&path("d"), &NewNode::Directory, 0o755, caller).await.unwrap();
    assert_eq!((below.gid, below.mode), (777, 0o2755));
}

#[tokio::test]
async fn names_are_made_linked_moved_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let storage = storage(&directory);
    storage.make(&path("d"), &NewNode::Directory, 0o755, ME).await.unwrap();
    let made = file(storage.create(&path("d/a"), libc::O_RDWR, 0o644, ME).await.unwrap());
    local::write_all(&made.file, 0, b"text", false).unwrap();
    let linked = storage.link(&path("d/a"), &path("b")).await.unwrap();
    assert_eq!((linked.nlink, linked.local), (2, made.attr.local));
    let taken = storage.rename(&path("b"), &path("d/a"), RenameMode::NoReplace).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    storage.rename(&path("b"), &path("d"), RenameMode::Exchange).await.unwrap();
    assert!(storage.stat(&path("b")).await.unwrap().is_dir());
    assert_eq!(storage.remove_directory(&path("b")).await.unwrap_err().kind(), ErrorKind::NotEmpty);
    storage.remove_file(&path("b/a")).await.unwrap();
    storage.remove_directory(&path("b")).await.unwrap();
    let opened = file(storage.open(&path("d"), libc::O_WRONLY | libc::O_TRUNC).await.unwrap());
    assert_eq!(opened.attr.size, 0);
    assert_eq!(
        storage.create(&path("d"), libc::O_EXCL, 0o600, ME).await.err().unwrap().kind(),
        ErrorKind::AlreadyExists
    );
    assert_eq!(storage.remove_file(&UfsPath::root()).await.unwrap_err().kind(), ErrorKind::Busy);
    storage.sync(&UfsPath::root()).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_there_already_is_not_opened_by_making_it() {
    let directory = tempfile::tempdir().unwrap();
    let storage = storage(&directory);
    std::fs::write(directory.path().join("f"), "text").unwrap();
    for flags in [libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND] {
        let refused = storage.create(&path("f"), flags, 0o644, ME).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Stale);
    }
    let refused = storage.create(&path("f"), libc::O_WRONLY | libc::O_EXCL, 0o644, ME).await.err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(directory.path().join("f")).unwrap(), "text");
}

#[tokio::test]
async fn what_is_held_is_the_same_file_wherever_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let storage = storage(&directory);
    std::fs::write(directory.path().join("f"), "text").unwrap();
    symlink("nowhere", directory.path().join("link")).unwrap();
    let held = storage.hold(&path("f")).unwrap().unwrap();
    let link = storage.hold(&path("link")).unwrap().unwrap();
    assert_eq!(link.attr.kind, FileKind::Symlink);
    std::fs::rename(directory.path().join("f"), directory.path().join("g")).unwrap();
    std::fs::write(directory.path().join("f"), "other").unwrap();
    let change = SetAttr { mode: Some(0o600), size: Some(2), ..SetAttr::default() };
    local::set_attr(&*held.file, &change).unwrap();
    let linked = storage.link_held(&held.file, &path("h")).unwrap().unwrap();
    assert_eq!((linked.local, linked.nlink, linked.size), (held.attr.local, 2, 2));
    let linked = storage.link_held(&link.file, &path("link2")).unwrap().unwrap();
    assert_eq!((linked.local, linked.kind), (link.attr.local, FileKind::Symlink));
    assert_eq!(std::fs::read_to_string(directory.path().join("f")).unwrap(), "other");
    std::fs::remove_file(directory.path().join("g")).unwrap();
    std::fs::remove_file(directory.path().join("h")).unwrap();
    let gone = storage.link_held(&held.file, &path("i")).unwrap().unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert!(storage.hold(&path("g")).unwrap().is_err());
}

#[tokio::test]
async fn no_link_is_followed_on_the_way_or_at_the_end() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let directory = tempfile::tempdir().unwrap();
    symlink(outside.path(), directory.path().join("way")).unwrap();
    symlink(outside.path().join("secret"), directory.path().join("end")).unwrap();
    let storage = storage(&directory);
    assert!(storage.create(&path("way/new"), 0, 0o644, ME).await.is_err());
    assert!(storage.create(&path("end"), 0, 0o644, ME).await.is_err());
    assert!(storage.open(&path("end"), libc::O_WRONLY | libc::O_TRUNC).await.is_err());
    assert!(storage.remove_file(&path("way/secret")).await.is_err());
    assert!(storage.make(&path("way/d"), &NewNode::Directory, 0o755, ME).await.is_err());
    assert!(storage.rename(&path("way/secret"), &path("got"), RenameMode::Replace).await.is_err());
    let change = SetAttr { mode: Some(0o666), size: Some(0), ..SetAttr::default() };
    assert!(storage.set_attr(&path("end"), change).await.is_err());
    storage.link(&path("end"), &path("end2")).await.unwrap();
    assert_eq!(storage.stat(&path("end2")).await.unwrap().kind, FileKind::Symlink);
    let mut text = String::new();
    File::open(outside.path().join("secret")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "secret");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn attributes_and_extended_ones_are_changed_by_path() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    let storage = storage(&directory);
    let change = SetAttr { mode: Some(0o1751), ..SetAttr::default() };
    assert_eq!(storage.set_attr(&path("d"), change).await.unwrap().mode, 0o1751);
    match storage.set_xattr(&path("d"), b"user.x", b"1", SetXattr::Any).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => return,
        done => done.unwrap(),
    }
    assert_eq!(&storage.xattr(&path("d"), b"user.x").await.unwrap()[..], b"1");
    storage.remove_xattr(&path("d"), b"user.x").await.unwrap();
    let gone = storage.xattr(&path("d"), b"user.x").await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NoAttribute);
}
