//! How long a publish takes and what a volume costs; prints figures, and checks none.
//!
//! `cargo test -p csi --test kubelet measures -- --ignored --nocapture`

use crate::{
    harness::{Kubelet, alone, read},
    publishing::request,
};
use std::time::{Duration, Instant};
use tests::{Store, daemon::memory};

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
#[ignore = "it measures, on a quiet machine"]
fn publishing() {
    if !alone() {
        return;
    }
    let store = Store::start();
    for volume in 0..200 {
        store.put(&format!("set/{volume}/file"), "bytes");
    }
    let kubelet = Kubelet::start(&["--idle-timeout", "60s"]);
    let begin = Instant::now();
    kubelet.publish(request(&kubelet, &store, "set", "first")).unwrap();
    let published = begin.elapsed();
    assert_eq!(read(&kubelet.target("first").join("0/file")).unwrap(), b"bytes");
    println!("first publish {published:?}, to the first byte {:?}", begin.elapsed());

    let plugin = kubelet.plugin.pid().as_raw() as u32;
    let cost = || (memory(plugin, "VmRSS"), descriptors(plugin));
    let before = cost();
    let mut times: Vec<Duration> = (0..200)
        .map(|volume| {
            let mut wanted = request(&kubelet, &store, "set", &format!("pod-{volume}"));
            wanted.volume_context.insert("subPath".into(), volume.to_string());
            wanted.volume_id = format!("volume-{volume}");
            let begin = Instant::now();
            kubelet.publish(wanted).unwrap();
            begin.elapsed()
        })
        .collect();
    times.sort();
    let after = cost();
    println!("further publish of a live session: median {:?}, 99 % {:?}", times[100], times[198]);
    println!("200 volumes of one session: plugin {before:?} before, {after:?} after (bytes resident, descriptors)");

    let before = cost();
    let mounter = kubelet.mounter.pid().as_raw() as u32;
    let held = descriptors(mounter);
    for volume in 0..20 {
        kubelet.publish(request(&kubelet, &store, &format!("set/{volume}"), &format!("own-{volume}"))).unwrap();
    }
    let daemons = kubelet.daemons();
    let resident: u64 = daemons.iter().map(|pid| memory(*pid as u32, "VmRSS")).sum();
    let (more, fds) = (cost(), descriptors(mounter));
    println!("20 sessions more: plugin {before:?} before, {more:?} after; mounter {held} and {fds} descriptors");
    println!("{} processes of sessions: {} bytes resident each", daemons.len(), resident / daemons.len() as u64);
}
