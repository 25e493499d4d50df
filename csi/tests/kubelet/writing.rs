//! Volumes are written: by pods of any user, with the storage failing and processes dying in between.

use crate::{
    harness::{Kubelet, alone, bounded, capability, read},
    publishing::request,
};
use csi::proto::{
    NodePublishVolumeRequest,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
};
use nix::sys::signal::Signal;
use s3server::{Action, Fault, Operation};
use std::{
    fs::File,
    io::{self, Write},
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::Command,
};
use tests::{Store, s3::BUCKET, wait_for};
use tonic::Code;

/// A publish of a volume that takes writes.
fn writable(kubelet: &Kubelet, store: &Store, prefix: &str, pod: &str) -> NodePublishVolumeRequest {
    let mut wanted = request(kubelet, store, prefix, pod);
    let options = wanted.volume_context.get_mut("mountOptions").expect("options");
    options.push_str(",alluxio.user.object.writes.enabled=true");
    wanted
}

fn write(path: &Path, bytes: &'static [u8]) -> io::Result<()> {
    let path = path.to_owned();
    bounded(move || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        // What close(2) says counts.
        nix::unistd::close(file).map_err(io::Error::from)
    })
}

/// Runs a shell as the user of a pod.
fn as_user(root: &Path, (uid, gid): (u32, u32), script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(root).uid(uid).gid(gid);
    // From this thread, whose mounts are seen.
    let output = bounded(move || command.output().expect("a shell"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    text.trim().to_owned()
}

fn stored(store: &Store, key: &str) -> Option<Vec<u8>> {
    store.server().object(BUCKET, key).map(|object| object.bytes().expect("its bytes"))
}

#[test]
fn one_volume_is_written_by_one_pod_and_read_by_another() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/old", "old");
    let kubelet = Kubelet::start(&[]);
    let mut writer = writable(&kubelet, &store, "set", "writer");
    let mut wanted = capability(Mode::SingleNodeWriter);
    // fsGroup: objects belong to the group, which may write.
    wanted.access_type =
        Some(AccessType::Mount(MountVolume { volume_mount_group: "4321".into(), ..Default::default() }));
    writer.volume_capability = Some(wanted.clone());
    kubelet.publish(writer.clone()).unwrap();
    let mut reader = writable(&kubelet, &store, "set", "reader");
    reader.volume_capability = Some(wanted);
    reader.readonly = true;
    kubelet.publish(reader).unwrap();
    assert_eq!(kubelet.daemons().len(), 1, "one session for both");

    let (to, from) = (kubelet.target("writer"), kubelet.target("reader"));
    let made = as_user(
        &to,
        (1000, 4321),
        "umask 002; mkdir d; echo one > d/f; echo two >> d/f; chmod 640 d/f; mv d/f d/g; stat -c '%u %g %a' d/g",
    );
    assert_eq!(made, "1000 4321 640");
    assert_eq!(read(&from.join("d/g")).unwrap(), b"one\ntwo\n");
    assert_eq!(stored(&store, "set/d/g").as_deref(), Some(&b"one\ntwo\n"[..]));
    write(&to.join("old"), b"new").unwrap();
    assert_eq!(stored(&store, "set/old").as_deref(), Some(&b"new"[..]));
    assert_eq!(write(&from.join("old"), b"x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert_eq!(stored(&store, "set/old").as_deref(), Some(&b"new"[..]));
    let refused = as_user(&to, (2000, 2000), "echo x > mine");
    assert!(refused.contains("Permission denied"), "another user of another group: {refused}");

    // Another session of the storage, later: the owner and the mode were kept.
    kubelet.unpublish("writer").unwrap();
    kubelet.unpublish("reader").unwrap();
    kubelet.nothing_left();
    let mut later = writable(&kubelet, &store, "set", "later");
    later.volume_context.insert("subPath".into(), "d".into());
    later.volume_capability = Some(capability(Mode::SingleNodeMultiWriter));
    kubelet.publish(later).unwrap();
    let path = kubelet.target("later").join("g");
    let found = bounded(move || std::fs::metadata(path).unwrap());
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1000, 4321, 0o640));
    kubelet.unpublish("later").unwrap();

    // A mode for readers takes no writes at all.
    let mut readers = writable(&kubelet, &store, "set", "readers");
    readers.volume_capability = Some(capability(Mode::MultiNodeReaderOnly));
    kubelet.publish(readers).unwrap();
    assert_eq!(write(&kubelet.target("readers").join("x"), b"x").unwrap_err().raw_os_error(), Some(libc::EROFS));
    kubelet.unpublish("readers").unwrap();
    kubelet.nothing_left();
    assert!(kubelet.staged().is_empty(), "{:?}", kubelet.staged());
}

#[test]
fn an_unpublish_waits_for_uploads_and_nothing_is_lost() {
    if !alone() {
        return;
    }
    let store = Store::start();
    let mut kubelet = Kubelet::start(&["--upload-timeout", "1s"]);
    kubelet.publish(writable(&kubelet, &store, "set", "pod")).unwrap();
    let pod = kubelet.target("pod");
    write(&pod.join("before"), b"before").unwrap();
    let fault = store.fault(Fault::new(Action::Error(403)).on(Operation::PutObject));
    assert!(write(&pod.join("file"), b"bytes").is_err(), "the program hears of it");

    let refused = kubelet.unpublish("pod").unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("not uploaded") && refused.message().contains("file"), "{refused}");
    assert!(pod.exists(), "it is published still");
    // The process that has the file dies, and so does the mounter: the next one goes on with it.
    kubelet.signal_daemons(Signal::SIGKILL);
    kubelet.restart_mounter();
    wait_for("the session to come back", || (kubelet.daemons().len() == 1).then_some(()));
    assert_eq!(stored(&store, "set/file"), None);
    store.server().clear_fault(fault);
    wait_for("the unpublish", || kubelet.unpublish("pod").ok());
    assert_eq!(stored(&store, "set/file").as_deref(), Some(&b"bytes"[..]));
    kubelet.nothing_left();
    assert!(kubelet.staged().is_empty(), "{:?}", kubelet.staged());
}

#[test]
fn what_is_left_when_a_pod_goes_while_the_mounter_is_dead_is_uploaded_later() {
    if !alone() {
        return;
    }
    let store = Store::start();
    let mut kubelet = Kubelet::start(&[]);
    kubelet.publish(writable(&kubelet, &store, "set", "pod")).unwrap();
    let fault = store.fault(Fault::new(Action::Error(503)).on(Operation::PutObject));
    assert!(write(&kubelet.target("pod").join("file"), b"bytes").is_err());
    kubelet.mounter.kill();
    // Nobody can say what is pending: the pod goes, and the session stays.
    kubelet.unpublish("pod").unwrap();
    assert!(!kubelet.target("pod").exists() && kubelet.records() == 1);
    kubelet.restart_mounter();
    store.server().clear_fault(fault);
    kubelet.nothing_left();
    assert_eq!(stored(&store, "set/file").as_deref(), Some(&b"bytes"[..]));
    assert!(kubelet.staged().is_empty(), "{:?}", kubelet.staged());
}

#[test]
fn a_directory_is_written_as_the_mounters_user() {
    if !alone() {
        return;
    }
    let kubelet = Kubelet::start(&[]);
    let shared = kubelet.home.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("file://{}", shared.display());
    kubelet.publish(kubelet.request("pod", &[("ufs", &uri)])).unwrap();
    let pod = kubelet.target("pod");
    assert_eq!(write(&pod.join("file"), b"x").unwrap_err().raw_os_error(), Some(libc::EACCES), "it is root's");
    std::os::unix::fs::chown(&shared, Some(65534), Some(65534)).unwrap();
    // What the kernel knew of the directory is a few seconds old at most.
    wait_for("the new owner", || write(&pod.join("file"), b"bytes").ok());
    let below = std::fs::metadata(shared.join("file")).unwrap();
    assert_eq!((below.uid(), std::fs::read(shared.join("file")).unwrap()), (65534, b"bytes".to_vec()));
    assert_eq!(as_user(&pod, (65534, 65534), "echo more >> file; mv file g; cat g"), "bytesmore");
    kubelet.unpublish("pod").unwrap();
    kubelet.nothing_left();
}
