//! Uploads that go wrong, through a mount: what close and fsync answer, what is kept, and what is done again.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{fd::IntoRawFd as _, unix::fs::FileExt as _},
    path::Path,
    time::{Duration, SystemTime},
};

use s3server::{Action, Credentials, Fault, Operation};
use tests::{Mount, Store, data::errno, machine::Tmpfs, mounts_work, s3::BUCKET, try_for, wait_for};

/// Writes a file; the errno of the first call that failed, close included.
fn write(path: &Path, bytes: &[u8]) -> i32 {
    let wrote = (|| {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        // SAFETY: the descriptor is ours alone from here on.
        match unsafe { libc::close(file.into_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })();
    match wrote {
        Ok(()) => 0,
        failed => errno(&failed),
    }
}

/// A mount that does not wait for long.
fn mount(store: &Store) -> Mount {
    store
        .mount("")
        .options([
            "alluxio.user.object.writes.enabled=true",
            "alluxio.user.ufs.deadline=2s",
            "alluxio.user.ufs.retries=2",
        ])
        .life(Duration::from_secs(900))
        .start()
}

fn object(store: &Store, key: &str) -> Option<Vec<u8>> {
    store.server().object(BUCKET, key).map(|object| object.bytes().expect("its bytes"))
}

/// Waits for what is tried again in the background: the pauses grow to a minute on a machine that is slow.
fn later<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    try_for(Duration::from_secs(180), ask).unwrap_or_else(|| panic!("{what}: not in time"))
}

fn uploads(mount: &Mount) -> serde_json::Value {
    mount.status()["status"]["uploads"].clone()
}

#[test]
fn what_fails_is_told_kept_listed_and_done_later() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let mount = mount(&store);
    let large: Vec<u8> = (0..20 << 20).map(|at: u32| (at % 251) as u8).collect();
    for (number, (action, expected)) in [
        (Action::Error(503), libc::EIO),
        (Action::Drop, libc::EIO),
        (Action::ResetRequestAfter(1000), libc::EIO),
        (Action::Hang, libc::EIO),
        (Action::Error(403), libc::EACCES),
        (Action::Code(403, "QuotaExceeded"), libc::EDQUOT),
        (Action::Code(507, "XMinioStorageFull"), libc::ENOSPC),
    ]
    .into_iter()
    .enumerate()
    {
        let (small, big) = (format!("small-{number}"), format!("large-{number}"));
        let operations = [Operation::PutObject, Operation::UploadPart, Operation::CompleteMultipartUpload];
        let rule = operations.into_iter().fold(Fault::new(action.clone()), Fault::on);
        let fault = store.fault(rule);
        let text = format!("{action:?} ").repeat(300);
        assert_eq!(write(&mount.join(&small), text.as_bytes()), expected, "{action:?}");
        let with_parts = number % 3 == 0;
        if with_parts {
            assert_eq!(write(&mount.join(&big), &large), expected, "{action:?}, in parts");
        }
        assert_eq!(fs::read_to_string(mount.join(&small)).unwrap(), text, "read as it was written");
        let file = File::options().write(true).open(mount.join(&small)).unwrap();
        assert_eq!(errno(&file.sync_all()), expected, "fsync says it too");
        drop(file);
        let listed = uploads(&mount);
        assert_eq!(listed["files"], 1 + u64::from(with_parts), "{listed}");
        assert!(
            listed["list"].as_array().unwrap().iter().any(|upload| upload["path"] == format!("/{small}")),
            "{listed}"
        );
        assert!(listed["list"][0]["error"].is_string(), "{listed}");
        let words = mount.run(&["status"]);
        assert!(String::from_utf8_lossy(&words.stdout).contains(&small), "{words:?}");
        store.server().clear_fault(fault);
        later("it is uploaded", || object(&store, &small).filter(|found| *found == text.as_bytes()));
        if with_parts {
            later("so is the large one", || object(&store, &big).filter(|found| *found == large));
        }
        later("nothing waits", || (uploads(&mount)["files"] == 0).then_some(()));
    }
    mount.stop();
}

#[test]
fn what_succeeds_and_says_it_failed_is_right() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let mount = mount(&store);
    let large: Vec<u8> = (0..20 << 20).map(|at: u32| (at % 241) as u8).collect();
    for action in [Action::ActThenError(500), Action::ActThenDrop] {
        let operations = [Operation::PutObject, Operation::UploadPart, Operation::CompleteMultipartUpload];
        for operation in operations {
            store.fault(Fault::new(action.clone()).on(operation).times(1));
        }
        assert_eq!(write(&mount.join("small"), b"small"), 0, "{action:?}");
        assert_eq!(write(&mount.join("large"), &large), 0, "{action:?}");
        assert_eq!(object(&store, "small").unwrap(), b"small");
        assert!(object(&store, "large").unwrap() == large);
        let file = File::options().write(true).open(mount.join("large")).unwrap();
        file.write_all_at(b"again", 7 << 20).unwrap();
        store.fault(Fault::new(action.clone()).on(Operation::CompleteMultipartUpload).times(1));
        file.sync_all().unwrap();
        let mut wanted = large.clone();
        wanted[7 << 20..(7 << 20) + 5].copy_from_slice(b"again");
        assert!(object(&store, "large").unwrap() == wanted);
        assert_eq!(store.server().open_uploads(), 0);
        store.server().clear_faults();
    }
    mount.stop();
}

#[test]
fn credentials_that_expire_during_an_upload_are_told_and_nothing_is_lost() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let mount = mount(&store);
    let bytes: Vec<u8> = (0..24 << 20).map(|at: u32| (at % 239) as u8).collect();
    let mut file = File::create(mount.join("f")).unwrap();
    file.write_all(&bytes[..20 << 20]).unwrap();
    wait_for("it is being sent", || (store.server().count(Operation::UploadPart) > 0).then_some(()));
    let key = Credentials::new("AKIATESTTESTTEST", "correct/horse+battery");
    store.server().set_credentials(vec![key.clone().expires(SystemTime::now() - Duration::from_secs(1))]);
    file.write_all(&bytes[20 << 20..]).unwrap();
    assert_eq!(errno(&file.sync_all()), libc::EACCES);
    drop(file);
    assert_eq!(uploads(&mount)["failed"], 1);
    store.server().set_credentials(vec![key]);
    later("it is uploaded", || object(&store, "f").filter(|found| *found == bytes));
    mount.stop();
}

#[test]
fn a_stage_without_room_answers_enospc_and_readers_go_on() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("readable", *b"r");
    // The disk is smaller than what the stage may take.
    let disk = Tmpfs::new(24 << 20);
    let mount = store.mount("").option(format!("alluxio.user.stage.dir={}", disk.path().display())).start();
    let file = File::create(mount.join("full")).unwrap();
    let block = vec![7; 1 << 20];
    // Not in order, so that nothing can be sent early.
    let full = (1..40u64).rev().map(|at| file.write_all_at(&block, at << 20)).find(Result::is_err).expect("it is full");
    assert_eq!(errno(&full), libc::ENOSPC);
    assert_eq!(fs::read(mount.join("readable")).unwrap(), b"r");
    // It is as it was before that write, and goes on.
    let length = file.metadata().unwrap().len();
    assert_eq!(length, 40 << 20);
    file.set_len(0).unwrap();
    file.write_all_at(b"small", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(object(&store, "full").unwrap(), b"small");
    drop(file);
    mount.stop();
}

#[test]
fn with_write_back_close_answers_first_and_umount_waits() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let mount = store.mount("").option("writeback").start_in_background();
    let away = store.fault(Fault::new(Action::Error(503)).on(Operation::PutObject));
    for number in 0..20 {
        assert_eq!(write(&mount.join(format!("{number}")), format!("text {number}").as_bytes()), 0);
    }
    assert!(object(&store, "0").is_none());
    assert_eq!(fs::read(mount.join("0")).unwrap(), b"text 0");
    assert_eq!(uploads(&mount)["files"], 20);
    store.server().clear_fault(away);
    let point = mount.path().to_owned();
    let ended = mount.run(&["umount", point.to_str().unwrap()]);
    assert!(ended.status.success(), "{ended:?}");
    for number in 0..20 {
        assert_eq!(object(&store, &format!("{number}")).expect("umount waited"), format!("text {number}").as_bytes());
    }
}

#[test]
fn who_may_only_read_is_told_when_a_file_is_opened_and_reads_as_ever() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("dir/file", *b"content");
    let changing = [
        Operation::PutObject,
        Operation::CreateMultipartUpload,
        Operation::UploadPart,
        Operation::CopyObject,
        Operation::DeleteObject,
        Operation::DeleteObjects,
    ];
    for operation in changing {
        store.fault(Fault::new(Action::Error(403)).on(operation));
    }
    let mount = mount(&store);
    assert_eq!(fs::read(mount.join("dir/file")).unwrap(), b"content");
    assert_eq!(tests::tree::names(&mount.join("dir")).unwrap(), [&b"file"[..]]);
    let denied = |what: &str, done: io::Result<()>| assert_eq!(errno(&done), libc::EACCES, "{what}");
    denied("create", File::create(mount.join("dir/new")).map(drop));
    denied("open to write", File::options().write(true).open(mount.join("dir/file")).map(drop));
    denied("mkdir", fs::create_dir(mount.join("new")));
    denied("remove", fs::remove_file(mount.join("dir/file")));
    denied("rename", fs::rename(mount.join("dir/file"), mount.join("dir/other")));
    denied("chmod", fs::set_permissions(mount.join("dir/file"), std::os::unix::fs::PermissionsExt::from_mode(0o600)));
    assert_eq!(uploads(&mount)["files"], 0, "nothing waits for a permission that will not come");
    assert_eq!(fs::read(mount.join("dir/file")).unwrap(), b"content");
    mount.stop();
    assert_eq!(store.server().keys(BUCKET), ["dir/file"]);
}
