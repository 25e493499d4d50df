//! Uploads that fail, and processes that end.

use crate::{BUCKET, CALLER, Mount, object, options, path, pattern, server, until};
use bytes::Bytes;
use common::{
    ErrorKind,
    change::{NewNode, RenameMode, SetAttr},
};
use s3server::{Action, Credentials, Fault, Operation};
use std::time::{Duration, SystemTime};
use worker::StageOptions;

#[test]
fn a_failed_upload_is_told_kept_and_tried_again() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    for (action, kind) in [
        (Action::Error(403), ErrorKind::PermissionDenied),
        (Action::Code(403, "QuotaExceeded"), ErrorKind::QuotaExceeded),
        (Action::Code(507, "XMinioStorageFull"), ErrorKind::NoSpace),
        (Action::Error(503), ErrorKind::Unavailable),
        (Action::Hang, ErrorKind::TimedOut),
    ] {
        let fault = server.fault(Fault::new(action).on(Operation::PutObject).key("root/f"));
        let handle = mount.create("f").unwrap();
        mount.run(handle.truncate(0)).unwrap();
        let bytes = format!("{kind:?}");
        mount.run(handle.write(0, bytes.clone().into())).unwrap();
        assert_eq!(mount.run(handle.flush()).unwrap_err().kind(), kind);
        assert_eq!(mount.run(handle.sync(false)).unwrap_err().kind(), kind);
        drop(handle);
        let pending = mount.stage.pending();
        assert_eq!(pending.len(), 1);
        assert_eq!((&pending[0].path, pending[0].size), (&path("f"), bytes.len() as u64));
        assert_eq!(pending[0].failure.as_ref().unwrap().0.kind(), kind);
        assert_eq!(mount.read("f").unwrap(), bytes.as_bytes(), "read as it was written");
        server.clear_fault(fault);
        until("it is uploaded in the background", || object(&server, "f").is_some_and(|now| now == bytes.as_bytes()));
        until("and forgotten", || mount.stage.pending().is_empty() && mount.stage.used() == 0);
    }
}

#[test]
fn keys_that_expire_during_an_upload_fail_the_close_and_no_more() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let bytes = pattern(3, 17 << 20);
    let handle = mount.create("f").unwrap();
    mount.run(handle.write(0, Bytes::from(bytes.clone()))).unwrap();
    until("it is being sent", || server.count(Operation::UploadPart) > 0);
    server.set_credentials(vec![Credentials::new("AK", "SK").expires(SystemTime::now() - Duration::from_secs(1))]);
    let error = mount.run(handle.flush()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    server.set_credentials(vec![Credentials::new("AK", "SK")]);
    mount.run(handle.flush()).unwrap();
    assert!(object(&server, "f").unwrap() == bytes);
    assert_eq!(server.open_uploads(), 0);
}

#[test]
fn what_could_not_be_uploaded_outlives_the_process() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let old = pattern(0, 20 << 20);
    server.put(BUCKET, "root/old", old.clone()).unwrap();
    let away =
        server.fault(Fault::new(Action::Error(503)).on(Operation::PutObject).on(Operation::CompleteMultipartUpload));
    let bytes = pattern(5, 30 << 20);
    assert!(mount.write("large", &bytes).is_err());
    assert!(mount.write("small", b"small").is_err());
    let handle = mount.open("old", libc::O_RDWR).unwrap();
    mount.run(handle.write(7 << 20, Bytes::from_static(b"changed"))).unwrap();
    assert!(mount.run(handle.sync(false)).is_err());
    mount.run(mount.changes().set_attr(&path("old"), SetAttr { mode: Some(0o600), ..Default::default() })).unwrap();
    let unclosed = mount.create("unclosed").unwrap();
    mount.run(unclosed.write(0, Bytes::from_static(b"x"))).unwrap();
    drop((handle, unclosed));
    mount.kill();
    server.clear_fault(away);
    let mount = Mount::new(&server, directory.path());
    assert_eq!(mount.read("small").unwrap(), b"small", "seen before it is uploaded");
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert!(object(&server, "large").unwrap() == bytes);
    assert_eq!(object(&server, "small").unwrap(), b"small");
    let mut wanted = old;
    wanted[7 << 20..(7 << 20) + 7].copy_from_slice(b"changed");
    assert!(object(&server, "old").unwrap() == wanted);
    until("nothing is left in the stage", || mount.stage.used() == 0);
    mount.kill();
    // A third one finds nothing to do.
    server.reset_counters();
    let mount = Mount::new(&server, directory.path());
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert_eq!(server.count(Operation::PutObject) + server.count(Operation::CompleteMultipartUpload), 0);
}

#[test]
fn two_mounts_have_a_stage_each_and_what_one_left_is_found() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let (one, two) = (Mount::new(&server, directory.path()), Mount::new(&server, directory.path()));
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::PutObject));
    assert!(one.write("one", b"1").is_err() && two.write("two", b"2").is_err());
    one.kill();
    two.kill();
    server.clear_fault(away);
    let mount = Mount::new(&server, directory.path());
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert_eq!((object(&server, "one").unwrap(), object(&server, "two").unwrap()), (b"1".to_vec(), b"2".to_vec()));
}

#[test]
fn write_back_answers_first_and_loses_nothing() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let back = || StageOptions { writeback: true, ..options(directory.path()) };
    let mount = Mount::with(&server, back());
    let hang = server.fault(Fault::new(Action::Hang).on(Operation::PutObject));
    mount.write("f", b"closed").unwrap();
    assert_eq!(object(&server, "f"), None);
    assert_eq!(mount.read("f").unwrap(), b"closed");
    mount.kill();
    server.clear_fault(hang);
    let mount = Mount::with(&server, back());
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert_eq!(object(&server, "f").unwrap(), b"closed");
}

#[test]
fn a_rename_that_was_interrupted_is_finished_or_taken_back() {
    for (operation, skip) in [(Operation::CopyObject, 5), (Operation::DeleteObjects, 0)] {
        let (server, directory) = (server(), tempfile::tempdir().unwrap());
        let mount = Mount::new(&server, directory.path());
        for number in 0..20 {
            server.put(BUCKET, &format!("root/from/{number:02}"), format!("{number}")).unwrap();
        }
        server.put(BUCKET, "root/to-be/sure", "1").unwrap();
        // From some point on the storage is away, for the rename and for taking it back.
        server.fault(Fault::new(Action::Error(403)).on(operation).skip(skip));
        server.fault(Fault::new(Action::Error(403)).on(Operation::DeleteObjects));
        let failed = mount.run(mount.changes().rename(&path("from"), &path("to"), RenameMode::Replace));
        assert!(failed.is_err());
        mount.kill();
        let count = |below: &str| server.keys(BUCKET).iter().filter(|key| key.starts_with(below)).count();
        assert!(count("root/from/") + count("root/to/") >= 20, "no name is lost");
        server.clear_faults();
        let mount = Mount::new(&server, directory.path());
        let (kept, gone) = if operation == Operation::CopyObject { ("from", "to") } else { ("to", "from") };
        until("one of the two is left", || count(&format!("root/{gone}/")) == 0);
        assert_eq!(count(&format!("root/{kept}/")), 20);
        assert_eq!(count("root/to-be/"), 1);
        until("it is seen", || !mount.exists(gone) && mount.list(kept).is_ok_and(|names| names.len() == 20));
    }
}

#[test]
fn what_a_name_said_last_counts() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let away = server.fault(Fault::new(Action::Error(403)).on(Operation::PutObject).key("root/d/f"));
    mount.run(mount.changes().make(&path("d"), &NewNode::Directory, 0o755, CALLER)).unwrap();
    assert!(mount.write("d/f", b"1").is_err());
    assert_eq!(mount.run(mount.changes().remove_directory(&path("d"))).unwrap_err().kind(), ErrorKind::NotEmpty);
    mount.run(mount.changes().remove_file(&path("d/f"))).unwrap();
    assert!(mount.stage.pending().is_empty());
    mount.run(mount.changes().remove_directory(&path("d"))).unwrap();
    server.clear_fault(away);
    mount.kill();
    let mount = Mount::new(&server, directory.path());
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    assert_eq!(object(&server, "d/f"), None, "what was removed does not come back");
}
