//! The daemon is killed in the middle of fills: no wrong byte afterwards, the cache is still used, and the dead mount point
//! is cleaned up by the next mount.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use s3server::{Action, Fault, Operation};
use tests::{
    Mounting, Store, content, heavy,
    machine::{MountPoint, dead, mounted},
    mounts_work,
};

const FILES: u64 = 48;
const SIZE: u64 = 700_000;

#[test]
fn killed_during_fills() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let store = Store::start();
    let family = store.synthetic("set/", FILES, SIZE);
    let names: Vec<String> =
        (0..FILES).map(|number| family.key(number).strip_prefix("set/").unwrap().to_owned()).collect();
    let cache = tempfile::tempdir().unwrap();
    let place = MountPoint::new();
    let point = place.path();
    let mounting = || {
        store.mount("set").cache(cache.path()).at(&point).options([
            "alluxio.user.client.cache.page.size=64KiB",
            "alluxio.user.metadata.sync.interval=1h",
            "alluxio.user.ufs.deadline=20s",
        ])
    };
    let check = |name: &str, bytes: &[u8]| {
        assert!(
            bytes == content(&format!("set/{name}"), 0, SIZE as usize),
            "{name}: {} bytes, wrong ones",
            bytes.len()
        );
    };

    for round in 0..4u64 {
        // The dead mount of the round before is still there.
        assert_eq!(mounted(&point).is_some(), round > 0);
        let mut mount = mounting().start();
        for name in names.iter().take(round as usize * 10) {
            check(name, &std::fs::read(mount.join(name)).unwrap());
        }
        let slow = store.fault(Fault::new(Action::Slow(300_000)).on(Operation::GetObject));
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..6 {
                let (mount, names, stopped, check) = (mount.path().to_owned(), &names, &stopped, &check);
                scope.spawn(move || {
                    for turn in 0.. {
                        if stopped.load(Ordering::Relaxed) {
                            return;
                        }
                        let name = &names[(reader * 11 + turn * 5 + round as usize) % names.len()];
                        // What is read until the end is right; afterwards there are errors only.
                        if let Ok(bytes) = std::fs::read(mount.join(name)) {
                            check(name, &bytes);
                        }
                    }
                });
            }
            store.reset_counters();
            let sent = store.body_bytes();
            let _ = tests::try_for(Duration::from_secs(20), || (store.body_bytes() >= sent + 1_500_000).then_some(()));
            mount.kill();
            stopped.store(true, Ordering::Relaxed);
        });
        store.server().clear_fault(slow);
        assert!(dead(&point));
        // Cleaning up is the next mount's task.
        mount.abandon();
    }

    // What was stored a moment before a kill may be lost, and on a busy disk pages are not stored at all; what lies in
    // the cache grows from kill to kill all the same.
    let mut sent = Vec::new();
    for _ in 0..6 {
        store.reset_counters();
        let mount = mounting().start();
        for name in &names {
            check(name, &std::fs::read(mount.join(name)).unwrap());
        }
        sent.push(store.body_bytes());
        if sent[sent.len() - 1] < FILES * SIZE / 2 {
            mount.stop();
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
        mount.abandon();
    }
    panic!("the cache does not outlive a kill: of {} bytes there were sent {sent:?}", FILES * SIZE);
}

#[test]
fn a_dead_mount_is_cleaned_up_by_the_next_one() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    std::fs::write(source.path().join("file"), b"content").unwrap();
    let place = MountPoint::new();
    let point = place.path();
    let mount = Mounting::of_dir(source.path()).at(&point).start();
    let open = std::fs::File::open(mount.join("file")).unwrap();
    mount.abandon();
    assert!(dead(&point));
    let mount = Mounting::of_dir(source.path()).at(&point).start();
    assert_eq!(std::fs::read(mount.join("file")).unwrap(), b"content");
    drop(open);
    mount.stop();
    assert_eq!(mounted(&point), None);
}
