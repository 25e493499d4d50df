//! Volumes come and go.

use crate::harness::{Kubelet, alone, bounded, capability, map, read};
use csi::proto::{
    NodeGetInfoRequest, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    volume_capability::{AccessType, MountVolume, access_mode::Mode},
};
use nix::sys::signal::Signal;
use std::{collections::HashMap, path::Path};
use tests::{Store, content, data::sha256_of, wait_for};
use tonic::Code;

/// What a volume on the test's S3 server needs: attributes and the secret.
pub fn on(store: &Store, prefix: &str) -> (HashMap<String, String>, HashMap<String, String>) {
    let mut options = Vec::new();
    let mut secrets = HashMap::new();
    for option in store.options() {
        let (key, value) = option.split_once('=').expect("key=value");
        if key.contains("ccessKey") || key.contains("secretKey") {
            secrets.insert(key.to_owned(), value.to_owned());
        } else {
            options.push(option);
        }
    }
    (map(&[("ufs", &store.uri(prefix)), ("mountOptions", &options.join(","))]), secrets)
}

pub fn request(kubelet: &Kubelet, store: &Store, prefix: &str, pod: &str) -> NodePublishVolumeRequest {
    let (volume_context, secrets) = on(store, prefix);
    NodePublishVolumeRequest { volume_context, secrets, ..kubelet.request(pod, &[]) }
}

#[test]
fn data_is_read_through_the_target_and_nothing_stays() {
    if !alone() {
        return;
    }
    let store = Store::start();
    let family = store.synthetic("set/", 3, 3_000_000);
    let kubelet = Kubelet::start(&[]);
    let wanted = request(&kubelet, &store, "set", "pod-1");
    for _ in 0..10 {
        kubelet.publish(wanted.clone()).unwrap();
    }
    assert_eq!(kubelet.mounts().len(), 2, "{:?}", kubelet.mounts());
    let name = family.key(1).strip_prefix("set/").unwrap().to_owned();
    let bytes = read(&kubelet.target("pod-1").join(&name)).unwrap();
    assert_eq!(sha256_of(&bytes), sha256_of(&content(&family.key(1), 0, 3_000_000)));

    // The mounter has no privilege, and no secret can be seen from outside of it.
    let daemons = kubelet.daemons();
    assert_eq!(daemons.len(), 1);
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemons[0])).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("Uid:\t65534"), "{status}");
    let secret = wanted.secrets.values().max_by_key(|value| value.len()).unwrap();
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{}/{file}", daemons[0])).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(secret.as_str()), "{file}");
    }
    for file in walk(kubelet.home.path(), &["pods", "kube/mounts", "mounter/cache"]) {
        let text = std::fs::read(&file).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(secret.as_str()), "{}", file.display());
    }

    let seen = wait_for("figures of the volume", || {
        let stats = kubelet.stats("pod-1").unwrap();
        (!stats.usage.is_empty()).then_some(stats)
    });
    let condition = seen.volume_condition.unwrap();
    assert!(!condition.abnormal, "{}", condition.message);
    assert!(seen.usage[0].total >= seen.usage[0].available);

    for _ in 0..10 {
        kubelet.unpublish("pod-1").unwrap();
    }
    assert_eq!(kubelet.stats("pod-1").unwrap_err().code(), Code::NotFound);
    kubelet.nothing_left();
}

/// Files below `home`, without those folders.
fn walk(home: &Path, without: &[&str]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![home.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !without.iter().any(|name| path.ends_with(name)) {
                open.push(path);
            } else if kind.is_file() {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn pods_share_a_session_and_the_first_to_stop_leaves_the_others() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/a/b/file", "inner");
    store.put("set/top", "outer");
    let kubelet = Kubelet::start(&[]);
    let whole = request(&kubelet, &store, "set", "whole");
    let mut inner = request(&kubelet, &store, "set", "inner \"odd\" näme\\, with,comma\t");
    inner.volume_context.insert("subPath".into(), "a/b".into());
    let mut reader = request(&kubelet, &store, "set", "reader");
    reader.readonly = true;
    for wanted in [&whole, &inner, &reader] {
        kubelet.publish(wanted.clone()).unwrap();
    }
    assert_eq!(kubelet.daemons().len(), 1, "one session for all");
    let inside = |name: &str, file: &str| read(&kubelet.target(name).join(file));
    assert_eq!(inside("inner \"odd\" näme\\, with,comma\t", "file").unwrap(), b"inner");
    assert_eq!(inside("whole", "a/b/file").unwrap(), b"inner");
    assert_eq!(inside("reader", "top").unwrap(), b"outer");
    let at = |name: &str| kubelet.mounts().into_iter().find(|mount| mount.point == kubelet.target(name)).unwrap();
    assert!(at("reader").read_only);
    assert_eq!(at("inner \"odd\" näme\\, with,comma\t").root, Path::new("/a/b"));

    kubelet.unpublish("whole").unwrap();
    assert!(!kubelet.target("whole").exists());
    assert_eq!(inside("reader", "top").unwrap(), b"outer");

    // The same target in another way, or for another volume.
    let mut other = reader.clone();
    other.readonly = false;
    assert_eq!(kubelet.publish(other).unwrap_err().code(), Code::AlreadyExists);
    let mut other = reader.clone();
    other.volume_id = "volume-2".into();
    assert_eq!(kubelet.publish(other).unwrap_err().code(), Code::AlreadyExists);
    // Another volume's unpublish takes nothing away.
    let foreign = NodeUnpublishVolumeRequest {
        volume_id: "volume-2".into(),
        target_path: kubelet.target("reader").to_str().unwrap().into(),
    };
    kubelet.call(async |mut client| client.node_unpublish_volume(foreign).await.map(drop)).unwrap();
    assert_eq!(inside("reader", "top").unwrap(), b"outer");

    // Other options or another identity are another session, not an error.
    let mut options = request(&kubelet, &store, "set", "options");
    options.volume_context.get_mut("mountOptions").unwrap().push_str(",attr_timeout=3");
    kubelet.publish(options).unwrap();
    assert_eq!(kubelet.daemons().len(), 2);
    for pod in ["inner \"odd\" näme\\, with,comma\t", "reader", "options"] {
        kubelet.unpublish(pod).unwrap();
    }
    kubelet.nothing_left();
}

#[test]
fn many_at_the_same_time() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    let kubelet = Kubelet::start(&[]);
    let requests: Vec<_> = (0..50).map(|pod| request(&kubelet, &store, "set", &format!("pod-{pod}"))).collect();
    let targets: Vec<_> = (0..50).map(|pod| kubelet.target(&format!("pod-{pod}"))).collect();
    kubelet.call(async |client| {
        let calls: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let mut client = client.clone();
                tokio::spawn(async move { client.node_publish_volume(request).await.map(drop) })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
    });
    assert_eq!(kubelet.daemons().len(), 1);
    let all = targets.clone();
    let right =
        bounded(move || all.iter().filter(|target| std::fs::read(target.join("file")).unwrap() == b"bytes").count());
    assert_eq!(right, 50);
    // Twice each, at the same time: one of two may be told to come again.
    kubelet.call(async |client| {
        let calls: Vec<_> = targets
            .iter()
            .chain(&targets)
            .map(|target| {
                let mut client = client.clone();
                let request = NodeUnpublishVolumeRequest {
                    volume_id: "volume-1".into(),
                    target_path: target.to_str().unwrap().into(),
                };
                tokio::spawn(async move { client.node_unpublish_volume(request).await.map(drop) })
            })
            .collect();
        for call in calls {
            if let Err(status) = call.await.unwrap() {
                assert_eq!(status.code(), Code::Aborted, "{status}");
            }
        }
    });
    kubelet.nothing_left();
}

#[test]
fn inline_volumes_groups_and_access_modes() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    let kubelet = Kubelet::start(&[]);

    let mut inline = request(&kubelet, &store, "set", "inline");
    inline.volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "true".into());
    inline.volume_context.insert("csi.storage.k8s.io/pod.name".into(), "p".into());
    kubelet.publish(inline).unwrap();
    let mut local = kubelet.request("local", &[("ufs", "file:///etc")]);
    local.volume_context.insert("csi.storage.k8s.io/ephemeral".into(), "true".into());
    assert_eq!(kubelet.publish(local).unwrap_err().code(), Code::InvalidArgument);

    let mut grouped = request(&kubelet, &store, "set", "grouped");
    let mut wanted = capability(Mode::SingleNodeReaderOnly);
    wanted.access_type =
        Some(AccessType::Mount(MountVolume { volume_mount_group: "4321".into(), ..Default::default() }));
    grouped.volume_capability = Some(wanted);
    kubelet.publish(grouped).unwrap();
    let file = kubelet.target("grouped").join("file");
    let found = bounded(move || std::fs::metadata(file).unwrap());
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&found), 4321);
    let mounted = |pod: &str| kubelet.mounts().into_iter().find(|mount| mount.point == kubelet.target(pod)).unwrap();
    assert!(mounted("grouped").read_only, "a mode for readers");

    let mut single = request(&kubelet, &store, "set", "single");
    single.volume_id = "volume-single".into();
    single.volume_capability = Some(capability(Mode::SingleNodeSingleWriter));
    kubelet.publish(single.clone()).unwrap();
    kubelet.publish(single.clone()).unwrap();
    let mut second = single.clone();
    second.target_path = kubelet.target("second").to_str().unwrap().into();
    assert_eq!(kubelet.publish(second).unwrap_err().code(), Code::FailedPrecondition);
    assert!(!kubelet.target("second").exists());

    let info = kubelet
        .call(async |mut client| client.node_get_info(NodeGetInfoRequest {}).await.map(tonic::Response::into_inner))
        .unwrap();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 0));

    for pod in ["inline", "grouped"] {
        kubelet.unpublish(pod).unwrap();
    }
    let request =
        NodeUnpublishVolumeRequest { volume_id: "volume-single".into(), target_path: single.target_path.clone() };
    kubelet.call(async |mut client| client.node_unpublish_volume(request).await.map(drop)).unwrap();
    kubelet.nothing_left();
}

#[test]
fn the_orderly_end_of_the_plugin_leaves_mounts_and_that_of_the_mounter_waits_for_them() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    let mut kubelet = Kubelet::start(&[]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    nix::sys::signal::kill(kubelet.plugin.pid(), Signal::SIGTERM).unwrap();
    let socket = kubelet.home.path().join("csi/csi.sock");
    wait_for("the socket to go", || (!socket.exists()).then_some(()));
    assert_eq!(read(&kubelet.target("pod").join("file")).unwrap(), b"bytes");
    kubelet.restart_plugin();
    nix::sys::signal::kill(kubelet.mounter.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(read(&kubelet.target("pod").join("file")).unwrap(), b"bytes");
    let refused = kubelet.publish(request(&kubelet, &store, "other", "second")).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    kubelet.unpublish("pod").unwrap();
    let mounter = std::mem::replace(&mut kubelet.mounter, crate::harness::Process::none());
    assert!(mounter.end().success());
}

#[test]
fn the_doctor_sees_what_is_and_what_is_wrong() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    let mut kubelet = Kubelet::start(&["--check-interval", "1h"]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    let (code, text) = kubelet.doctor();
    assert!(code && text.contains("all is well") && text.contains("pods/pod"), "{text}");
    kubelet.mounter.kill();
    let (code, text) = kubelet.doctor();
    assert!(!code && text.contains("WRONG the mounter"), "{text}");
    kubelet.unpublish("pod").unwrap();
}
