//! Ways in which bytes, names or looks were lost once: bytes given up here that are not read from anywhere else, renames
//! that end late, records that say less than they should.

use crate::{BUCKET, Mount, object, options, path, pattern, server, until};
use bytes::Bytes;
use common::{
    ErrorKind,
    change::{RenameMode, SetAttr, WriteHandle},
};
use s3server::{Action, Fault, Operation};
use std::{path::Path, sync::Arc, time::Duration};
use worker::StageOptions;

const MIB: usize = 1 << 20;

fn small(directory: &Path) -> StageOptions {
    StageOptions { capacity: 16 << 20, ..options(directory) }
}

/// Writes `bytes` in order through a stage that is smaller, so that the first of them are given up here.
fn stream(mount: &Mount, handle: &Arc<dyn WriteHandle>, bytes: &[u8]) {
    for (index, piece) in bytes.chunks(MIB).enumerate() {
        let mut tries = 0;
        while let Err(error) = mount.run(handle.write((index * MIB) as u64, Bytes::copy_from_slice(piece))) {
            assert!(error.kind() == ErrorKind::NoSpace && tries < 100, "{error}");
            tries += 1;
        }
    }
}

/// The stage files below a directory.
pub fn data_files(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok);
    entries
        .map(|entry| entry.path().to_owned())
        .filter(|path| path.extension().is_some_and(|ext| ext == "data"))
        .collect()
}

#[test]
fn a_flush_that_nobody_waits_for_any_more_goes_on() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::with(&server, small(directory.path()));
    let bytes = pattern(1, 40 * MIB);
    let handle = mount.create("f").unwrap();
    stream(&mount, &handle, &bytes);
    let slow = Fault::new(Action::Delay(Duration::from_millis(700)));
    server.fault(slow.on(Operation::CompleteMultipartUpload).on(Operation::UploadPart).times(4));
    let late = mount.run(async { tokio::time::timeout(Duration::from_millis(50), handle.flush()).await });
    assert!(late.is_err(), "it was to be cut short");
    mount.run(handle.flush()).unwrap();
    assert!(object(&server, "f").unwrap() == bytes);
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn a_truncate_into_bytes_that_are_given_up_loses_nothing() {
    for size in [0, 3 * MIB + 7, 5 * MIB, 12 * MIB + 1, 39 * MIB] {
        let (server, directory) = (server(), tempfile::tempdir().unwrap());
        let mount = Mount::with(&server, small(directory.path()));
        let mut bytes = pattern(1, 40 * MIB);
        let handle = mount.create("f").unwrap();
        stream(&mount, &handle, &bytes);
        match mount.run(handle.truncate(size as u64)) {
            Ok(()) => bytes.truncate(size),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}"),
        }
        assert_eq!(handle.attr().size, bytes.len() as u64);
        mount.run(handle.flush()).unwrap();
        assert!(object(&server, "f").unwrap() == bytes, "cut at {size}");
        drop(handle);
        assert!(mount.read("f").unwrap() == bytes);
    }
}

#[test]
fn an_upload_that_may_have_to_be_made_again_keeps_its_bytes() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::with(&server, small(directory.path()));
    let mut wanted = pattern(0, 30 * MIB);
    server.put(BUCKET, "root/old", wanted.clone()).unwrap();
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::CompleteMultipartUpload));
    let handle = mount.open("old", libc::O_RDWR).unwrap();
    let new = pattern(9, 6 * MIB);
    mount.run(handle.write(7 << 20, Bytes::from(new.clone()))).unwrap();
    wanted[7 * MIB..13 * MIB].copy_from_slice(&new);
    assert!(mount.run(handle.flush()).is_err());
    // Somebody else needs room.
    let other = mount.create("other").unwrap();
    mount.run(other.write(MIB as u64, Bytes::from(pattern(1, 9 * MIB)))).unwrap();
    assert!(mount.run(other.write(10 << 20, Bytes::from(pattern(1, 4 * MIB)))).is_err());
    server.clear_fault(away);
    mount.run(handle.write(0, Bytes::from_static(b"again"))).unwrap();
    wanted[..5].copy_from_slice(b"again");
    until("it is uploaded", || mount.run(handle.flush()).is_ok());
    assert!(object(&server, "old").unwrap() == wanted);
}

#[test]
fn parts_that_failed_in_between_are_sent_by_the_next_process() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let bytes = pattern(4, 34 * MIB);
    let first = server.fault(Fault::new(Action::Error(403)).on(Operation::UploadPart).times(1));
    let handle = mount.create("f").unwrap();
    for (index, piece) in bytes.chunks(MIB).enumerate() {
        mount.run(handle.write((index * MIB) as u64, Bytes::copy_from_slice(piece))).unwrap();
    }
    until("parts are sent early", || server.count(Operation::UploadPart) >= 6);
    assert_eq!(server.fault_hits(first), 1);
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::UploadPart));
    assert!(mount.run(handle.sync(false)).is_err());
    drop(handle);
    mount.kill();
    server.clear_fault(away);
    let mount = Mount::new(&server, directory.path());
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert!(object(&server, "f").unwrap() == bytes);
}

#[test]
fn an_old_name_that_was_written_anew_is_not_removed_by_a_late_rename() {
    for new in ["new", "old"] {
        let (server, directory) = (server(), tempfile::tempdir().unwrap());
        let mount = Mount::new(&server, directory.path());
        mount.write("a", b"old").unwrap();
        let away = server.fault(Fault::new(Action::Error(403)).on(Operation::DeleteObject));
        assert!(mount.run(mount.changes().rename(&path("a"), &path("b"), RenameMode::Replace)).is_err());
        server.clear_fault(away);
        mount.write("a", new.as_bytes()).unwrap();
        mount.kill();
        let mount = Mount::new(&server, directory.path());
        mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
        // Whatever goes on in the background has its time.
        mount.run(mount.changes().rename(&path("b"), &path("c"), RenameMode::Replace)).unwrap();
        assert_eq!(object(&server, "a").as_deref(), Some(new.as_bytes()), "the new file stays");
        assert_eq!(object(&server, "c").as_deref(), Some(&b"old"[..]));
    }
}

#[test]
fn what_others_wrote_where_a_rename_was_interrupted_stays() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    for name in ["from/1", "from/2", "from/3", "from/4"] {
        server.put(BUCKET, &format!("root/{name}"), "old").unwrap();
    }
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::DeleteObject).on(Operation::DeleteObjects));
    assert!(mount.run(mount.changes().rename(&path("from"), &path("to"), RenameMode::Replace)).is_err());
    mount.kill();
    server.clear_fault(away);
    server.put(BUCKET, "root/from/2", "new").unwrap();
    let mount = Mount::new(&server, directory.path());
    until("the others are gone", || object(&server, "from/1").is_none() && object(&server, "from/4").is_none());
    drop(mount);
    assert_eq!(object(&server, "from/2").as_deref(), Some(&b"new"[..]), "of the same size, and newer");
    assert_eq!(object(&server, "to/2").as_deref(), Some(&b"old"[..]));
}

#[test]
fn a_renamed_directory_keeps_the_looks_of_large_objects() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    mount.write("d/large", &pattern(1, 13 * MIB)).unwrap();
    mount.write("d/e/small", b"1").unwrap();
    for name in ["d/large", "d/e/small"] {
        let look = SetAttr { mode: Some(0o751), uid: Some(7), ..Default::default() };
        mount.run(mount.changes().set_attr(&path(name), look)).unwrap();
    }
    mount.run(mount.changes().rename(&path("d"), &path("n"), RenameMode::Replace)).unwrap();
    let check = |mount: &Mount| {
        for name in ["n/large", "n/e/small"] {
            let attr = mount.attr(name).unwrap();
            assert_eq!((attr.mode, attr.uid), (0o751, 7), "{name}");
        }
    };
    check(&mount);
    mount.run(mount.changes().sync(&path(""))).unwrap();
    mount.kill();
    check(&Mount::new(&server, tempfile::tempdir().unwrap().path()));
}

#[test]
fn space_comes_back_whatever_becomes_of_a_file() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let empty = |what: &str| {
        until(what, || {
            mount.stage.used() == 0 && data_files(directory.path()).is_empty() && server.open_uploads() == 0
        });
    };
    for operation in [Operation::CreateMultipartUpload, Operation::UploadPart] {
        // Removed while it is sent, closed before the part is through.
        let slow = server.fault(Fault::new(Action::Delay(Duration::from_millis(400))).on(operation));
        let handle = mount.create("f").unwrap();
        mount.run(handle.write(0, Bytes::from(pattern(1, 17 * MIB)))).unwrap();
        mount.run(mount.changes().remove_file(&path("f"))).unwrap();
        drop(handle);
        empty("a file that was removed while it was sent");
        server.clear_fault(slow);
    }
    // Replaced while it waits to be uploaded.
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::PutObject).key("root/b"));
    assert!(mount.write("b", b"waits").is_err());
    let handle = mount.create("a").unwrap();
    mount.run(handle.write(0, Bytes::from_static(b"replaces"))).unwrap();
    mount.run(mount.changes().rename(&path("a"), &path("b"), RenameMode::Replace)).unwrap();
    server.clear_fault(away);
    mount.run(handle.flush()).unwrap();
    drop(handle);
    assert_eq!(object(&server, "b").unwrap(), b"replaces");
    empty("a file that was replaced");
    // Writes that nobody waits for any more.
    let slow = server.fault(Fault::new(Action::Delay(Duration::from_millis(500))).on(Operation::PutObject));
    let handle = mount.create("w").unwrap();
    mount.run(async {
        handle.write(0, Bytes::from_static(b"first")).await.unwrap();
        let flushing = handle.clone();
        let flush = tokio::spawn(async move { flushing.flush().await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        for length in [10, 300_000] {
            let write = handle.write(100, Bytes::from(vec![7; length]));
            let _ = tokio::time::timeout(Duration::from_millis(20), write).await;
        }
        flush.await.unwrap().unwrap();
    });
    server.clear_fault(slow);
    mount.run(handle.flush()).unwrap();
    drop(handle);
    empty("a write that was given up");
}

#[test]
fn attributes_that_another_mount_wrote_outlive_the_end_of_ours() {
    let server = server();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (Mount::new(&server, one.path()), Mount::new(&server, two.path()));
    let look = SetAttr { mode: Some(0o600), ..Default::default() };
    a.write("d/x", b"1").unwrap();
    a.write("d/y", b"1").unwrap();
    a.run(a.changes().set_attr(&path("d/x"), look)).unwrap();
    a.run(a.changes().sync(&path("d"))).unwrap();
    b.run(b.changes().set_attr(&path("d/y"), look)).unwrap();
    b.run(b.changes().sync(&path("d"))).unwrap();
    a.run(a.changes().remove_file(&path("d/x"))).unwrap();
    a.run(a.changes().sync(&path("d"))).unwrap();
    let fresh = Mount::new(&server, tempfile::tempdir().unwrap().path());
    assert_eq!(fresh.attr("d/y").unwrap().mode, 0o600);
}

#[test]
fn staged_bytes_that_are_missing_are_told_and_not_made_up() {
    for cut in [None, Some(3 * MIB as u64)] {
        let (server, directory) = (server(), tempfile::tempdir().unwrap());
        server.put(BUCKET, "root/f", "what is there").unwrap();
        let mount = Mount::new(&server, directory.path());
        let away = server.fault(Fault::new(Action::Error(403)).on(Operation::PutObject).key("root/f"));
        assert!(mount.write("f", &pattern(1, 4 * MIB)).is_err());
        mount.kill();
        for file in data_files(directory.path()) {
            match cut {
                None => std::fs::remove_file(file).unwrap(),
                Some(length) => std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(length).unwrap(),
            }
        }
        server.clear_fault(away);
        for _ in 0..2 {
            let mount = Mount::new(&server, directory.path());
            let pending = mount.stage.pending();
            assert_eq!(pending.len(), 1);
            assert_eq!(pending[0].path, path("f"));
            let failure = &pending[0].failure.as_ref().expect("it is told").0;
            assert_eq!(failure.kind(), ErrorKind::Corrupt, "{failure}");
            assert_eq!(mount.read("f").unwrap(), b"what is there");
            mount.kill();
        }
        // It is told until the name is written anew or removed.
        let mount = Mount::new(&server, directory.path());
        mount.write("f", b"anew, the file").unwrap();
        assert!(mount.stage.pending().is_empty());
        mount.kill();
        let mount = Mount::new(&server, directory.path());
        assert!(mount.stage.pending().is_empty());
        assert_eq!(object(&server, "f").unwrap(), b"anew, the file");
    }
}

#[test]
fn of_two_records_of_a_name_the_later_counts() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let (one, two) = (Mount::new(&server, directory.path()), Mount::new(&server, directory.path()));
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::PutObject));
    // The second stage is taken over after the first, so its records get later numbers.
    assert!(two.write("f", b"earlier").is_err());
    assert!(one.write("f", b"later").is_err());
    one.kill();
    two.kill();
    server.clear_fault(away);
    let mount = Mount::new(&server, directory.path());
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert_eq!(object(&server, "f").unwrap(), b"later");
    until("nothing is left", || mount.stage.used() == 0 && data_files(directory.path()).is_empty());
}

#[test]
fn what_an_upload_stored_whose_answer_was_lost_is_read_on_from() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let mut wanted = pattern(1, 9000);
    mount.write("f", &wanted).unwrap();
    // Stored, and yet it failed.
    server.fault(Fault::new(Action::ActThenError(500)).on(Operation::PutObject).times(1));
    server.fault(Fault::new(Action::Error(503)).on(Operation::PutObject));
    let handle = mount.open("f", libc::O_RDWR).unwrap();
    mount.run(handle.write(4000, Bytes::from_static(b"changed"))).unwrap();
    wanted[4000..4007].copy_from_slice(b"changed");
    assert!(mount.run(handle.flush()).is_err());
    drop(handle);
    mount.kill();
    assert!(object(&server, "f").unwrap() == wanted);
    // The next process knows the object by its older version, and cannot upload either.
    let mount = Mount::new(&server, directory.path());
    assert!(mount.read("f").unwrap() == wanted);
    server.clear_faults();
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert!(object(&server, "f").unwrap() == wanted);
}
