//! Changes of objects, against a server that fails in every way that a network can.

use crate::{open, options, path, pattern};
use common::{ErrorKind, UfsPath, Version};
use s3server::{Action, Credentials, Fault, Operation, Options, Server};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use ufs::{Body, Condition, Metadata, ObjectWrites, Secret, UfsOptions, UnderStorage};

const MIB: usize = 1 << 20;

/// A server that looks at signatures, and a storage that signs.
fn signed() -> (Server, Arc<dyn UnderStorage>) {
    let keys = vec![Credentials::new("AK", "S/K+1")];
    let server = Server::start(Options { credentials: keys, ..Options::with_buckets(["bkt"]) }).unwrap();
    let mut options = UfsOptions { deadline: Duration::from_secs(2), ..options(&server) };
    options.s3.anonymous = false;
    options.s3.access_key = Some("AK".into());
    options.s3.secret_key = Some(Secret::new("S/K+1"));
    let storage = open("s3://bkt/p", &options);
    (server, storage)
}

fn objects(storage: &Arc<dyn UnderStorage>) -> &dyn ObjectWrites {
    storage.objects().expect("S3 takes changes")
}

fn bytes_of(server: &Server, key: &str) -> Option<Vec<u8>> {
    server.object("bkt", key).map(|object| object.bytes().unwrap().to_vec())
}

fn marked() -> Metadata {
    BTreeMap::from([("alluxio-upload".to_owned(), "0123abc".to_owned())])
}

#[tokio::test]
async fn objects_are_put_found_copied_and_removed() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    for name in ["a", "sp ace+%25&=?#", "\u{e4}/\u{1f600}", "x'()!*"] {
        let key = objects.key(&path(name)).unwrap();
        assert_eq!(key, format!("p/{name}"));
        let bytes = pattern(300_000);
        let stored = objects.put(&key, &bytes.clone().into(), &marked(), &Condition::Any).await.unwrap();
        assert_eq!(storage.stat(&path(name)).await.unwrap().version, stored.version);
        let found = objects.find(&key).await.unwrap().unwrap();
        assert_eq!((found.size, found.metadata, found.version.clone()), (300_000, marked(), stored.version));
        let to = format!("{key}-2");
        let copied = objects.copy(&key, &found.version, found.size, &to).await.unwrap();
        assert_eq!(objects.find(&to).await.unwrap().unwrap().version, copied.version);
        assert!(bytes_of(&server, &to).unwrap() == bytes);
        let error = objects.copy(&key, &Version::new("other"), found.size, &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale);
        objects.delete(&key).await.unwrap();
        objects.delete(&key).await.unwrap();
        assert_eq!(objects.find(&key).await.unwrap(), None);
        assert_eq!(objects.get(&to, 1 << 20).await.unwrap().unwrap().0, bytes);
        assert_eq!(objects.get(&key, 10).await.unwrap(), None);
        let error = objects.copy(&key, &copied.version, 1, &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn conditions_hold_even_when_the_first_answer_was_lost() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    let put = |text: &'static str, condition: Condition| async move {
        objects.put("p/x", &text.into(), &Metadata::new(), &condition).await
    };
    let first = put("1", Condition::Absent).await.unwrap();
    assert_eq!(put("2", Condition::Absent).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let second = put("2", Condition::Version(first.version.clone())).await.unwrap();
    assert_eq!(put("3", Condition::Version(first.version)).await.unwrap_err().kind(), ErrorKind::Stale);
    for action in [Action::ActThenError(500), Action::ActThenDrop] {
        let lost = server.fault(Fault::new(action).on(Operation::PutObject).times(1));
        let third = put("3", Condition::Version(second.version.clone())).await.unwrap();
        assert_eq!(server.fault_hits(lost), 1);
        put("2", Condition::Version(third.version)).await.unwrap();
    }
}

#[tokio::test]
async fn uploads_in_parts_survive_what_breaks_on_the_way() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    let bytes = pattern(11 * MIB);
    let file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut &file, &bytes).unwrap();
    let file = Arc::new(file);
    for (operation, action) in [
        (Operation::UploadPart, Action::Error(503)),
        (Operation::UploadPart, Action::ResetRequestAfter(3 << 20)),
        (Operation::UploadPart, Action::Drop),
        (Operation::UploadPart, Action::Hang),
        (Operation::UploadPart, Action::ActThenDrop),
        (Operation::CreateMultipartUpload, Action::Error(500)),
        (Operation::CompleteMultipartUpload, Action::Error(503)),
        (Operation::CompleteMultipartUpload, Action::ActThenError(500)),
        (Operation::CompleteMultipartUpload, Action::ActThenDrop),
    ] {
        server.clear_faults();
        let fault = server.fault(Fault::new(action.clone()).on(operation).times(1));
        let upload = objects.begin("p/big", &marked()).await.unwrap();
        let mut parts = Vec::new();
        for (at, length) in [(0, 5 * MIB), (5 * MIB, 6 * MIB)] {
            let body = if at == 0 {
                Body::Bytes(bytes[..length].to_vec().into())
            } else {
                Body::File { file: file.clone(), offset: at as u64, length: length as u64 }
            };
            let number = parts.len() as u32 + 1;
            parts.push(objects.part("p/big", &upload, number, &body).await.unwrap());
        }
        let mark = ("alluxio-upload", "0123abc");
        let stored = objects.complete("p/big", &upload, &parts, mark).await.unwrap();
        assert_eq!(server.fault_hits(fault), 1, "{action:?}");
        assert!(bytes_of(&server, "p/big").unwrap() == bytes, "{action:?}");
        assert_eq!(objects.find("p/big").await.unwrap().unwrap().version, stored.version);
        server.clear_faults();
        // An object of another upload is not taken for this one's.
        let upload = objects.begin("p/big", &Metadata::new()).await.unwrap();
        let part = objects.part("p/big", &upload, 1, &"x".into()).await.unwrap();
        objects.abort("p/big", &upload).await.unwrap();
        objects.abort("p/big", &upload).await.unwrap();
        let error = objects.complete("p/big", &upload, &[part], ("alluxio-upload", "other")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        objects.delete("p/big").await.unwrap();
    }
    assert!(server.open_uploads() <= 1, "only the one whose beginning was lost");
}

#[tokio::test]
async fn a_lost_connection_is_explained_by_what_a_write_needs() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    server.fault(Fault::new(Action::ResetRequestAfter(1000)).on(Operation::PutObject).on(Operation::UploadPart));
    // Who may write and not read lost a connection, and no more.
    server.fault(Fault::new(Action::Error(403)).on(Operation::GetObject).on(Operation::HeadObject));
    let put = || async { objects.put("p/x", &pattern(2 * MIB).into(), &Metadata::new(), &Condition::Any).await };
    let lost = |kind| matches!(kind, ErrorKind::Unavailable | ErrorKind::Io);
    assert!(lost(put().await.unwrap_err().kind()));
    let upload = objects.begin("p/x", &marked()).await.unwrap();
    let part = || async { objects.part("p/x", &upload, 1, &pattern(2 * MIB).into()).await };
    assert!(lost(part().await.unwrap_err().kind()));
    server.fault(Fault::new(Action::Error(403)).on(Operation::CreateMultipartUpload));
    assert_eq!(put().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(part().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(objects.may_write("p/x").await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    server.clear_faults();
    objects.may_write("p/x").await.unwrap();
    assert_eq!(server.open_uploads(), 1, "only our own");
    assert_eq!(bytes_of(&server, "p/x"), None);
}

#[tokio::test]
async fn only_the_version_that_is_meant_is_removed() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    let put =
        |text: &'static str| async move { objects.put("p/x", &text.into(), &Metadata::new(), &Condition::Any).await };
    let old = put("old").await.unwrap().version;
    let new = put("new").await.unwrap().version;
    assert_eq!(objects.delete_version("p/x", &old).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(bytes_of(&server, "p/x").unwrap(), b"new");
    server.fault(Fault::new(Action::Error(403)).on(Operation::DeleteObject).times(1));
    assert_eq!(objects.delete_version("p/x", &new).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    // A service that knows no condition here.
    server.fault(Fault::new(Action::Code(501, "NotImplemented")).on(Operation::DeleteObject).times(1));
    objects.delete_version("p/x", &new).await.unwrap();
    assert_eq!(bytes_of(&server, "p/x"), None);
    objects.delete_version("p/x", &new).await.unwrap();
}

#[tokio::test]
async fn parts_are_copied_by_the_service() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    let bytes = pattern(12 * MIB);
    server.put("bkt", "p/old", bytes.clone()).unwrap();
    let version = objects.find("p/old").await.unwrap().unwrap().version;
    let upload = objects.begin("p/old", &marked()).await.unwrap();
    let range = 0..6 * MIB as u64;
    let copied = objects.part_copy("p/old", &upload, 1, ("p/old", &version), range.clone()).await.unwrap();
    let stale = objects.part_copy("p/old", &upload, 1, ("p/old", &Version::new("x")), range).await.unwrap_err();
    assert_eq!(stale.kind(), ErrorKind::Stale);
    let tail = objects.part("p/old", &upload, 2, &"tail".into()).await.unwrap();
    objects.complete("p/old", &upload, &[copied, tail], ("alluxio-upload", "0123abc")).await.unwrap();
    let mut wanted = bytes[..6 * MIB].to_vec();
    wanted.extend(b"tail");
    assert!(bytes_of(&server, "p/old").unwrap() == wanted);
}

#[tokio::test]
async fn many_keys_are_listed_and_removed() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    for number in 0..1203 {
        server.put("bkt", &format!("p/d/{}{number:04}<&>", if number % 2 == 0 { "e/" } else { "" }), "x").unwrap();
    }
    server.put("bkt", "p/d/new\nline", "x").unwrap();
    server.put("bkt", "p/dd", "x").unwrap();
    let prefix = objects.prefix(&path("d")).unwrap();
    let (mut keys, mut token) = (Vec::new(), None);
    loop {
        let page = objects.keys(&prefix, token.as_deref(), 1000).await.unwrap();
        keys.extend(page.keys.into_iter().map(|listed| listed.key));
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(keys.len(), 1204);
    server.fault(Fault::new(Action::Error(503)).on(Operation::DeleteObjects).times(1));
    objects.delete_all(&keys).await.unwrap();
    assert_eq!(server.keys("bkt"), ["p/dd"]);
    server.put("bkt", "p/1", "x").unwrap();
    server.fault(Fault::new(Action::Error(403)).on(Operation::DeleteObject));
    assert_eq!(objects.delete("p/1").await.unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn refusals_have_their_names() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    for (action, kind) in [
        (Action::Error(403), ErrorKind::PermissionDenied),
        (Action::Code(403, "QuotaExceeded"), ErrorKind::QuotaExceeded),
        (Action::Code(507, "XMinioStorageFull"), ErrorKind::NoSpace),
        (Action::Code(400, "EntityTooLarge"), ErrorKind::TooLarge),
    ] {
        let fault = server.fault(Fault::new(action).on(Operation::PutObject).on(Operation::UploadPart));
        let error = objects.put("p/x", &"1".into(), &Metadata::new(), &Condition::Any).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!error.message().contains('\n') && error.message().contains("s3://bkt/p/x"), "{error}");
        server.clear_fault(fault);
    }
    let deep = "d/".repeat(600);
    assert_eq!(objects.key(&path(&deep)).unwrap_err().kind(), ErrorKind::NameTooLong);
    assert_eq!(objects.key(&UfsPath::root()).unwrap_err().kind(), ErrorKind::IsADirectory);
    assert_eq!(objects.prefix(&UfsPath::root()).unwrap(), "p/");
    assert_eq!(objects.key(&path("a%{x}")).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let latin = UfsPath::parse(b"a\xe4").unwrap();
    assert_eq!(objects.key(&latin).unwrap_err().kind(), ErrorKind::Os(libc::EILSEQ));
}

#[tokio::test]
async fn keys_that_expire_during_an_upload_are_told() {
    let (server, storage) = signed();
    let objects = objects(&storage);
    let upload = objects.begin("p/x", &marked()).await.unwrap();
    let part = objects.part("p/x", &upload, 1, &"1".into()).await.unwrap();
    let expired = Credentials::new("AK", "S/K+1").expires(SystemTime::now() - Duration::from_secs(1));
    server.set_credentials(vec![expired]);
    let mark = ("alluxio-upload", "0123abc");
    let error = objects.complete("p/x", &upload, std::slice::from_ref(&part), mark).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    server.set_credentials(vec![Credentials::new("AK", "S/K+1")]);
    objects.complete("p/x", &upload, &[part], mark).await.unwrap();
    assert_eq!(bytes_of(&server, "p/x").unwrap(), b"1");
}
