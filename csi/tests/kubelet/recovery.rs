//! Processes die and hang; volumes come back, and calls are answered all the same.

use crate::{
    harness::{Kubelet, alone, bounded, read},
    publishing::request,
};
use nix::sys::signal::Signal;
use tests::{Store, wait_for};
use tonic::Code;

/// Waits until a file can be read at a pod's target again.
#[track_caller]
fn readable(kubelet: &Kubelet, pod: &str, file: &str, bytes: &[u8]) {
    let path = kubelet.target(pod).join(file);
    wait_for("the volume to come back", || (read(&path).ok()? == bytes).then_some(()));
}

#[test]
fn the_plugin_is_killed_and_readers_do_not_notice() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    store.put("set/other", "more");
    let mut kubelet = Kubelet::start(&[]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    let daemons = kubelet.daemons();
    kubelet.plugin.kill();
    assert_eq!(read(&kubelet.target("pod").join("file")).unwrap(), b"bytes");
    kubelet.restart_plugin();
    assert_eq!(read(&kubelet.target("pod").join("other")).unwrap(), b"more");
    assert_eq!(kubelet.daemons(), daemons, "the session goes on");
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    kubelet.publish(request(&kubelet, &store, "set", "second")).unwrap();
    assert_eq!(kubelet.daemons(), daemons);
    assert!(!kubelet.stats("pod").unwrap().volume_condition.unwrap().abnormal);
    kubelet.unpublish("pod").unwrap();
    kubelet.unpublish("second").unwrap();
    kubelet.nothing_left();
}

#[test]
fn daemons_and_mounters_are_killed_and_volumes_come_back() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/a/file", "bytes");
    let mut kubelet = Kubelet::start(&[]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    let mut inner = request(&kubelet, &store, "set", "inner");
    inner.volume_context.insert("subPath".into(), "a".into());
    inner.readonly = true;
    kubelet.publish(inner).unwrap();
    for round in 0..3 {
        kubelet.signal_daemons(Signal::SIGKILL);
        readable(&kubelet, "pod", "a/file", b"bytes");
        readable(&kubelet, "inner", "file", b"bytes");
        assert!(
            kubelet.mounts().len() <= 5,
            "round {round}: at most one dead mount below each: {:?}",
            kubelet.mounts()
        );
    }
    let at = |pod: &str| kubelet.mounts().into_iter().rev().find(|mount| mount.point == kubelet.target(pod)).unwrap();
    assert!(at("inner").read_only && !at("pod").root.ends_with("a"));
    kubelet.restart_mounter();
    readable(&kubelet, "pod", "a/file", b"bytes");
    readable(&kubelet, "inner", "file", b"bytes");

    // Both at once: the credentials are gone with them, and come back with kubelet's next publish.
    kubelet.plugin.kill();
    kubelet.restart_mounter();
    kubelet.restart_plugin();
    let again = request(&kubelet, &store, "set", "pod");
    wait_for("a publish that works", || kubelet.publish(again.clone()).ok());
    readable(&kubelet, "pod", "a/file", b"bytes");
    readable(&kubelet, "inner", "file", b"bytes");
    kubelet.unpublish("pod").unwrap();
    kubelet.unpublish("inner").unwrap();
    kubelet.nothing_left();
}

#[test]
fn a_dead_volume_is_unpublished_cleanly() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    // Nobody mends it during the test.
    let mut kubelet = Kubelet::start(&["--check-interval", "1h"]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    // Stacked, as after a repair.
    let source = kubelet.mounts()[0].point.clone();
    let target = kubelet.target("pod");
    nix::mount::mount(Some(&source), &target, None::<&str>, nix::mount::MsFlags::MS_BIND, None::<&str>).unwrap();
    kubelet.mounter.kill();
    kubelet.plugin.kill();
    // A request that the dying process had taken ends in another way.
    wait_for("a dead volume", || {
        let at = target.clone();
        let listed = bounded(move || std::fs::read_dir(at).and_then(|mut all| all.next().transpose()));
        listed.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)).then_some(())
    });
    kubelet.restart_plugin();
    assert!(kubelet.stats("pod").unwrap().volume_condition.unwrap().abnormal || !kubelet.mounts().is_empty());
    kubelet.unpublish("pod").unwrap();
    assert!(!target.exists());
    kubelet.arguments.extend(["--check-interval".into(), "100ms".into()]);
    kubelet.restart_mounter();
    kubelet.restart_plugin();
    kubelet.nothing_left();
}

#[test]
fn a_volume_that_hangs_hangs_no_call() {
    if !alone() {
        return;
    }
    let store = Store::start();
    store.put("set/file", "bytes");
    let kubelet = Kubelet::start(&[]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    kubelet.publish(request(&kubelet, &store, "set", "second")).unwrap();
    kubelet.signal_daemons(Signal::SIGSTOP);
    let condition = wait_for("the trouble to be seen", || {
        kubelet.stats("pod").unwrap().volume_condition.filter(|condition| condition.abnormal)
    });
    assert!(condition.message.contains("has not answered"), "{}", condition.message);
    let refused = kubelet.publish(request(&kubelet, &store, "set", "third")).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(!kubelet.target("third").exists());
    kubelet.unpublish("pod").unwrap();
    assert!(!kubelet.target("pod").exists());
    kubelet.signal_daemons(Signal::SIGCONT);
    readable(&kubelet, "second", "file", b"bytes");
    wait_for("the trouble to pass", || {
        (!kubelet.stats("second").unwrap().volume_condition.unwrap().abnormal).then_some(())
    });
    kubelet.unpublish("second").unwrap();
    kubelet.nothing_left();
}
