//! The directory storage against real directories, by openat2 and name by name.

use super::*;
use common::worker::DirEntry;
use std::{collections::BTreeMap, os::unix::fs::symlink};
use tempfile::TempDir;

fn storage(directory: &TempDir) -> Posix {
    let uri = UfsUri::parse(directory.path().to_str().unwrap()).unwrap();
    Posix::open(&uri, &UfsOptions::default()).unwrap()
}

/// The same directory by both ways of walking.
fn both(directory: &TempDir) -> [Posix; 2] {
    let by_name = storage(directory);
    by_name.beneath.store(Arc::new(Beneath::open(directory.path()).unwrap().by_name()));
    [storage(directory), by_name]
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

async fn entries(storage: &Posix, at: &str) -> BTreeMap<Vec<u8>, DirEntry> {
    let mut listing = storage.list(&path(at)).await.unwrap();
    let mut all = BTreeMap::new();
    while let Some(batch) = listing.next().await.unwrap() {
        assert!(!batch.is_empty());
        for entry in batch {
            assert!(all.insert(entry.name.to_vec(), entry).is_none(), "a name came twice");
        }
    }
    assert!(listing.next().await.unwrap().is_none(), "the end stays the end");
    all
}

#[tokio::test]
async fn attributes_are_those_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
    std::fs::write(directory.path().join("a/b/file"), b"hello").unwrap();
    std::fs::write(directory.path().join("top"), b"x").unwrap();
    for storage in both(&directory) {
        for (name, size) in [("a/b/file", 5), ("top", 1)] {
            let attr = storage.stat(&path(name)).await.unwrap();
            let meta = std::fs::metadata(directory.path().join(name)).unwrap();
            assert_eq!((attr.kind, attr.size), (FileKind::File, size));
            assert_eq!(attr.mtime.to_system_time(), meta.modified().unwrap());
            assert_eq!(attr.nlink, 1);
            assert!(!attr.version.is_none());
        }
        assert!(storage.stat(&path("a/b")).await.unwrap().is_dir());
        assert!(storage.stat(&UfsPath::root()).await.unwrap().is_dir());
        let missing = storage.stat(&path("a/missing")).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.message().contains("a/missing"), "{missing}");
        assert_eq!(storage.stat(&path("top/x")).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    }
}

#[tokio::test]
async fn links_are_shown_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"s").unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("d")).unwrap();
    symlink(outside.path(), directory.path().join("out")).unwrap();
    symlink("../top", directory.path().join("d/link")).unwrap();
    std::fs::write(directory.path().join("top"), b"t").unwrap();
    for storage in both(&directory) {
        for name in ["out", "d/link"] {
            assert_eq!(storage.stat(&path(name)).await.unwrap().kind, FileKind::Symlink);
            assert_eq!(storage.open_now(&path(name)).unwrap().unwrap_err().kind(), ErrorKind::TooManyLinks);
        }
        assert_eq!(&storage.read_link(&path("d/link")).await.unwrap()[..], b"../top");
        assert_eq!(storage.read_link(&path("top")).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        for result in [
            storage.stat(&path("out/secret")).await.map(drop),
            storage.open_now(&path("out/secret")).unwrap().map(drop),
            storage.list(&path("out")).await.map(drop),
        ] {
            let kind = result.unwrap_err().kind();
            assert!(matches!(kind, ErrorKind::TooManyLinks | ErrorKind::NotADirectory), "{kind:?}");
        }
    }
}

#[tokio::test]
async fn only_regular_files_are_opened() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), b"hello").unwrap();
    std::fs::create_dir(directory.path().join("dir")).unwrap();
    nix::unistd::mkfifo(&directory.path().join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    for storage in both(&directory) {
        let open = |name: &str| storage.open_now(&path(name)).unwrap();
        let local = open("file").unwrap();
        let mut bytes = [0; 5];
        local.file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"hello");
        assert_eq!(local.attr.version, storage.stat(&path("file")).await.unwrap().version);
        assert_eq!(open("dir").unwrap_err().kind(), ErrorKind::IsADirectory);
        assert_eq!(open("pipe").unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(open("socket").unwrap_err().errno(), libc::ENXIO);
        assert_eq!(open("missing").unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn a_large_directory_comes_in_batches_with_attributes() {
    let directory = tempfile::tempdir().unwrap();
    for index in 0..3000 {
        std::fs::write(directory.path().join(format!("file-{index:05}")), vec![b'x'; index % 7]).unwrap();
    }
    let long = "\u{e4}".repeat(127);
    std::fs::write(directory.path().join(&long), b"").unwrap();
    std::fs::create_dir(directory.path().join("dir")).unwrap();
    for storage in both(&directory) {
        let found = entries(&storage, "").await;
        assert_eq!(found.len(), 3002);
        assert!(found.contains_key(long.as_bytes()));
        assert_eq!(found[&b"dir"[..]].kind, FileKind::Directory);
        for index in [0, 1, 6, 1024, 2999] {
            let name = format!("file-{index:05}");
            let entry = &found[name.as_bytes()];
            assert_eq!(**entry.attr.as_ref().unwrap(), storage.stat(&path(&name)).await.unwrap());
        }
        assert!(entries(&storage, "dir").await.is_empty());
    }
    assert_eq!(storage(&directory).list(&path("file-00000")).await.err().unwrap().kind(), ErrorKind::NotADirectory);
}

#[tokio::test]
async fn reads_are_of_one_version() {
    let directory = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..(2 << 20) + 17).map(|at: usize| (at % 251) as u8).collect();
    std::fs::write(directory.path().join("file"), &bytes).unwrap();
    let storage = storage(&directory);
    let file = path("file");
    let version = storage.stat(&file).await.unwrap().version;
    for (offset, length) in [(0, bytes.len()), (5, 1), (bytes.len() - 3, 3), (100, 1 << 20), (7, 0)] {
        let mut sink = Vec::new();
        storage.read(&file, &version, offset as u64, length as u64, &mut sink).await.unwrap();
        assert!(sink == bytes[offset..offset + length], "{offset} {length}");
    }
    std::fs::write(directory.path().join("new"), b"another").unwrap();
    std::fs::rename(directory.path().join("new"), directory.path().join("file")).unwrap();
    let stale = storage.read(&file, &version, 0, 1, &mut Vec::new()).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale);
}

#[tokio::test]
async fn a_directory_that_comes_back_is_used_again() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let uri = UfsUri::parse(root.to_str().unwrap()).unwrap();
    let storage = Posix::open(&uri, &UfsOptions::default()).unwrap();
    std::fs::remove_dir(&root).unwrap();
    assert_eq!(storage.stat(&UfsPath::root()).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage.stat(&path("x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("x"), b"1").unwrap();
    assert_eq!(storage.stat(&path("x")).await.unwrap().size, 1);
    storage.probe().await.unwrap();
}

#[test]
fn what_cannot_be_mounted_is_named() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), b"").unwrap();
    for (name, kind) in [("missing", ErrorKind::NotFound), ("file", ErrorKind::NotADirectory)] {
        let uri = UfsUri::parse(directory.path().join(name).to_str().unwrap()).unwrap();
        let error = Posix::open(&uri, &UfsOptions::default()).err().unwrap();
        assert_eq!(error.kind(), kind);
        assert!(error.message().contains(name), "{error}");
    }
}

#[test]
fn statfs_has_room() {
    let directory = tempfile::tempdir().unwrap();
    let space = storage(&directory).stat_fs().unwrap();
    assert!(space.blocks > 0 && space.block_size >= 512 && space.name_max >= 200);
}
