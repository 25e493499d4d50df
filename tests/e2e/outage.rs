//! The storage goes away after the mount: what is cached is read on, the rest fails with EIO after its deadline, and all
//! is well by itself once the storage is back.

use std::{fs::File, time::Duration};

use s3server::{Action, Fault, Operation};
use tests::{
    Store, content,
    data::{drop_cached, errno},
    mounts_work, pread, wait_for,
};

const SIZE: u64 = 300_000;

fn options() -> [&'static str; 5] {
    [
        "alluxio.user.ufs.deadline=2s",
        "alluxio.user.ufs.connect.timeout=1s",
        "alluxio.user.metadata.sync.interval=1h",
        "alluxio.user.client.cache.page.size=64KiB",
        "alluxio.user.prefetch.siblings.enabled=false",
    ]
}

#[test]
fn a_storage_that_goes_away_and_comes_back() {
    if !mounts_work() {
        return;
    }
    for option in ["passthrough=off", "passthrough=auto"] {
        let store = Store::start();
        let family = store.synthetic("set/", 8, SIZE);
        let keys: Vec<String> = (0..8).map(|number| family.key(number)).collect();
        let name = |key: &str| key.strip_prefix("set/").unwrap().to_owned();
        let mount = store.mount("set").options(options()).option(option).start();
        assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 8);
        for key in &keys[..4] {
            assert!(std::fs::read(mount.join(name(key))).unwrap() == content(key, 0, SIZE as usize));
        }
        let open = File::open(mount.join(name(&keys[0]))).unwrap();
        // What was read may still be on its way to the disk; nothing more is fetched once it is there.
        wait_for("four files are cached", || {
            store.reset_counters();
            for key in &keys[..4] {
                let file = File::open(mount.join(name(key))).ok()?;
                drop_cached(&file);
                pread(&file, 0, SIZE as usize).ok()?;
            }
            (store.gets() == 0).then_some(())
        });

        store.server().pause();
        for _ in 0..3 {
            for key in &keys[..4] {
                let file = File::open(mount.join(name(key))).unwrap_or_else(|error| panic!("{option}: {key}: {error}"));
                drop_cached(&file);
                assert!(pread(&file, 0, SIZE as usize).unwrap() == content(key, 0, SIZE as usize), "{key}");
            }
            assert!(pread(&open, 77, 1000).unwrap() == content(&keys[0], 77, 1000));
        }
        for key in &keys[4..6] {
            let file = File::open(mount.join(name(key)));
            let answer = file.and_then(|file| pread(&file, 0, 1000));
            assert_eq!(errno(&answer), libc::EIO, "{key}");
        }
        assert_eq!(errno(&std::fs::metadata(mount.join("never asked for"))), libc::EIO);

        store.server().resume();
        for key in &keys {
            let bytes = wait_for("the storage is back", || std::fs::read(mount.join(name(key))).ok());
            assert!(bytes == content(key, 0, SIZE as usize), "{key}");
        }
        let absent = || (errno(&std::fs::metadata(mount.join("never asked for"))) == libc::ENOENT).then_some(());
        wait_for("names are asked for again", absent);
        mount.stop();
    }
}

#[test]
fn a_storage_that_never_answers() {
    if !mounts_work() {
        return;
    }
    let faults = [Action::Hang, Action::StallAfter(1000), Action::Error(503)];
    std::thread::scope(|scope| {
        for action in faults {
            scope.spawn(move || {
                let store = Store::start();
                let key = store.synthetic("set/", 1, 5 * SIZE).key(0);
                let name = key.strip_prefix("set/").unwrap();
                // Each read(2) is one request, so that it fails once.
                let mount = store.mount("set").options(options()).option("direct_io").start();
                assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 1);
                let file = File::open(mount.join(name)).unwrap();
                let fault = store.fault(Fault::new(action.clone()).on(Operation::GetObject));
                // Other places each time, so that no page of an earlier answer helps.
                for place in [4 * SIZE, 3 * SIZE] {
                    let answer = pread(&file, place + 50_000, 100_000);
                    assert_eq!(errno(&answer), libc::EIO, "{action:?}: {:?}", answer.map(|bytes| bytes.len()));
                }
                store.server().clear_fault(fault);
                let bytes = wait_for("it answers again", || pread(&file, 3 * SIZE, 200_000).ok());
                assert!(bytes == content(&key, 3 * SIZE, 200_000));
                mount.stop();
            });
        }
    });
}

#[test]
fn a_storage_that_is_slow_is_waited_for() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let family = store.synthetic("set/", 3, SIZE);
    store.fault(Fault::new(Action::Delay(Duration::from_millis(150))));
    store.fault(Fault::new(Action::Slow(800_000)).on(Operation::GetObject));
    let mount = store.mount("set").option("alluxio.user.client.cache.page.size=64KiB").start();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (key, mount) = (family.key(number), &mount);
            scope.spawn(move || {
                let bytes = std::fs::read(mount.join(key.strip_prefix("set/").unwrap())).unwrap();
                assert!(bytes == content(&key, 0, SIZE as usize), "{key}");
            });
        }
    });
    mount.stop();
}
