//! Names and attributes.

use crate::{BUCKET, CALLER, Mount, object, path, server};
use bytes::Bytes;
use common::{
    ErrorKind, FileKind, Timestamp,
    change::{Caller, NewNode, RenameMode, SetAttr, SetTime, SetXattr},
    worker::Worker,
};
use s3server::Operation;

#[test]
fn directories_are_made_kept_and_removed() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let changes = mount.changes();
    mount.run(changes.make(&path("d"), &NewNode::Directory, 0o755, CALLER)).unwrap();
    assert!(mount.attr("d").unwrap().is_dir());
    assert!(mount.list("d").unwrap().is_empty());
    let again = mount.run(changes.make(&path("d"), &NewNode::Directory, 0o755, CALLER)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
    mount.write("d/f", b"1").unwrap();
    assert_eq!(mount.run(changes.remove_directory(&path("d"))).unwrap_err().kind(), ErrorKind::NotEmpty);
    assert_eq!(mount.run(changes.remove_directory(&path("d/f"))).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(mount.run(changes.remove_file(&path("d"))).unwrap_err().kind(), ErrorKind::IsADirectory);
    mount.run(changes.remove_file(&path("d/f"))).unwrap();
    assert!(!mount.exists("d/f") && mount.list("d").unwrap().is_empty());
    mount.run(changes.remove_directory(&path("d"))).unwrap();
    assert!(!mount.exists("d"));
    assert!(server.keys(BUCKET).iter().all(|key| !key.starts_with("root/d")), "{:?}", server.keys(BUCKET));
    // What others made without a mark stays when its last file goes.
    server.put(BUCKET, "root/other/x/f", "1").unwrap();
    mount.run(changes.remove_file(&path("other/x/f"))).unwrap();
    assert!(mount.exists("other/x"));
    mount.run(changes.remove_directory(&path("other/x"))).unwrap();
    assert!(mount.exists("other"));
    assert_eq!(mount.run(changes.remove_file(&path("none"))).unwrap_err().kind(), ErrorKind::NotFound);
    let link = mount.run(changes.link(&path("other"), &path("o"))).unwrap_err();
    assert_eq!(link.errno(), libc::EOPNOTSUPP);
}

#[test]
fn files_and_trees_are_renamed() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let changes = mount.changes();
    let rename = |from: &str, to: &str, mode| mount.run(changes.rename(&path(from), &path(to), mode));
    mount.write("a", b"new").unwrap();
    mount.write("b", b"old").unwrap();
    assert_eq!(rename("a", "b", RenameMode::NoReplace).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(rename("a", "b", RenameMode::Exchange).unwrap_err().kind(), ErrorKind::Unsupported);
    rename("a", "b", RenameMode::Replace).unwrap();
    assert!(!mount.exists("a"));
    assert_eq!(mount.read("b").unwrap(), b"new");
    assert_eq!(rename("a", "c", RenameMode::Replace).unwrap_err().kind(), ErrorKind::NotFound);
    // One that is open, and not in the storage, goes on by its new name.
    let handle = mount.create("open").unwrap();
    mount.run(handle.write(0, Bytes::from_static(b"1"))).unwrap();
    rename("open", "moved", RenameMode::Replace).unwrap();
    mount.run(handle.append(Bytes::from_static(b"2"))).unwrap();
    mount.run(handle.flush()).unwrap();
    assert!(!mount.exists("open"));
    rename("moved", "again", RenameMode::Replace).unwrap();
    mount.run(handle.append(Bytes::from_static(b"3"))).unwrap();
    mount.run(handle.flush()).unwrap();
    assert_eq!(object(&server, "again").unwrap(), b"123");
    assert_eq!((object(&server, "open"), object(&server, "moved")), (None, None));
    for number in 0..1500 {
        server.put(BUCKET, &format!("root/t/{}/{number:04}", number % 3), format!("{number}")).unwrap();
    }
    mount.write("t/pending", b"p").unwrap();
    mount.run(changes.make(&path("empty"), &NewNode::Directory, 0o700, CALLER)).unwrap();
    assert_eq!(rename("t", "t/1/x", RenameMode::Replace).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(rename("t", "b", RenameMode::Replace).unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(rename("b", "t", RenameMode::Replace).unwrap_err().kind(), ErrorKind::IsADirectory);
    assert_eq!(rename("empty", "t", RenameMode::Replace).unwrap_err().kind(), ErrorKind::NotEmpty);
    rename("t", "empty", RenameMode::Replace).unwrap();
    assert!(!mount.exists("t"));
    assert_eq!(mount.list("empty").unwrap().len(), 4);
    assert_eq!(mount.list("empty/2").unwrap().len(), 500);
    assert_eq!(mount.read("empty/1/1000").unwrap(), b"1000");
    assert_eq!(mount.read("empty/pending").unwrap(), b"p");
    assert!(server.keys(BUCKET).iter().all(|key| !key.starts_with("root/t/")));
}

#[test]
fn attributes_outlive_the_mount_and_copy_nothing() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let changes = mount.changes();
    mount.write("d/plain", b"1").unwrap();
    assert!(server.object(BUCKET, "root/d/.alluxio-attributes").is_none(), "defaults need nothing");
    let puts = server.count(Operation::PutObject);
    let at = Timestamp { sec: 1_234_567_890, nsec: 123_456_789 };
    let set = SetAttr {
        mode: Some(0o4751),
        uid: Some(77),
        gid: Some(88),
        mtime: Some(SetTime::At(at)),
        ..Default::default()
    };
    let attr = mount.run(changes.set_attr(&path("d/plain"), set)).unwrap();
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime), (0o4751, 77, 88, at));
    mount.run(changes.set_xattr(&path("d/plain"), b"user.k", b"v\0\xff", SetXattr::Create)).unwrap();
    let twice = mount.run(changes.set_xattr(&path("d/plain"), b"user.k", b"v", SetXattr::Create)).unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
    mount.run(changes.make(&path("d/link"), &NewNode::Symlink("../t\u{e4}rget".into()), 0o777, CALLER)).unwrap();
    mount.run(changes.make(&path("d/pipe"), &NewNode::Fifo, 0o600, Caller { uid: 5, gid: 6 })).unwrap();
    mount.run(changes.make(&path("d/dir"), &NewNode::Directory, 0o1777, CALLER)).unwrap();
    let handle = mount.run(changes.create(&path("d/script"), libc::O_RDWR, 0o755, CALLER)).map(crate::staged).unwrap();
    mount.run(handle.write(0, Bytes::from_static(b"#!"))).unwrap();
    mount
        .run(changes.set_attr(&path("d/script"), SetAttr { mtime: Some(SetTime::At(at)), ..Default::default() }))
        .unwrap();
    mount.run(handle.flush()).unwrap();
    drop(handle);
    mount.run(changes.sync(&path("d"))).unwrap();
    assert_eq!(server.count(Operation::CopyObject), 0);
    let check = |mount: &Mount| {
        let names = mount.list("d").unwrap();
        let kinds: Vec<_> = names.iter().map(|(name, kind)| (name.as_str(), *kind)).collect();
        assert_eq!(
            kinds,
            [
                ("dir", FileKind::Directory),
                ("link", FileKind::Symlink),
                ("pipe", FileKind::Fifo),
                ("plain", FileKind::File),
                ("script", FileKind::File)
            ]
        );
        let attr = mount.attr("d/plain").unwrap();
        assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime, attr.size), (0o4751, 77, 88, at, 1));
        let script = mount.attr("d/script").unwrap();
        assert_eq!((script.mode, script.mtime), (0o755, at));
        assert_eq!(mount.attr("d/dir").unwrap().mode, 0o1777);
        let pipe = mount.attr("d/pipe").unwrap();
        assert_eq!((pipe.kind, pipe.mode, pipe.uid, pipe.size), (FileKind::Fifo, 0o600, 5, 0));
        assert_eq!(mount.run(mount.worker.read_link(&path("d/link"))).unwrap(), "../t\u{e4}rget");
        assert_eq!(mount.run(mount.changes().xattr(&path("d/plain"), b"user.k")).unwrap(), &b"v\0\xff"[..]);
        assert_eq!(mount.run(mount.changes().xattrs(&path("d/plain"))).unwrap(), [b"user.k".to_vec()]);
        assert!(!mount.exists("d/.alluxio-attributes"));
    };
    check(&mount);
    mount.kill();
    let mount = Mount::new(&server, directory.path());
    server.reset_counters();
    check(&mount);
    assert!(server.count(Operation::HeadObject) <= 2, "a listing asks for no single object");
    let changes = mount.changes();
    let reserved = mount.run(changes.create(&path("d/.alluxio-attributes"), 0, 0o644, CALLER)).map(|_| ()).unwrap_err();
    assert_eq!(reserved.kind(), ErrorKind::NotPermitted);
    // What another tool replaces shows its own.
    server.put(BUCKET, "root/d/plain", "other").unwrap();
    mount.worker.forget(&path("d/plain"));
    assert_eq!((mount.attr("d/plain").unwrap().mode, mount.attr("d/plain").unwrap().size), (0o644, 5));
    for name in ["plain", "link", "pipe", "script"] {
        mount.run(changes.remove_file(&path(&format!("d/{name}")))).unwrap();
    }
    mount.run(changes.remove_directory(&path("d/dir"))).unwrap();
    mount.run(changes.sync(&path(""))).unwrap();
    assert!(server.object(BUCKET, "root/d/.alluxio-attributes").is_none(), "nothing is left to say");
    assert!(puts > 0);
}
