//! Workers and etcd fail while programs read: no error, no wrong byte.

use crate::processes::Cluster;
use nix::sys::signal::Signal;
use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};
use tests::{data, machine, s3::Store};

const FILES: usize = 24;
const SIZE: u64 = 3 << 20;

/// Four threads that read random pieces and compare them until they are told to stop.
fn while_reading(root: &Path, act: impl FnOnce()) -> u64 {
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4u64)
            .map(|seed| {
                let (stop, reads) = (&stop, &reads);
                scope.spawn(move || -> Result<(), String> {
                    let mut state = seed + 1;
                    while !stop.load(Ordering::Relaxed) {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        let name = format!("f{:02}", (state >> 33) as usize % FILES);
                        let offset = (state >> 20) % (SIZE - 100_000);
                        let begun = Instant::now();
                        let file = File::open(root.join(&name)).map_err(|error| format!("open {name}: {error}"))?;
                        let mut bytes = vec![0; 100_000];
                        file.read_exact_at(&mut bytes, offset)
                            .map_err(|error| format!("read {name} at {offset}: {error}"))?;
                        if bytes != data::content(&name, offset, bytes.len()) {
                            return Err(format!("wrong bytes in {name} at {offset}"));
                        }
                        // Far above what is promised (5 s), since the machine may be busy; a hang is what it is for.
                        if begun.elapsed() > Duration::from_secs(40) {
                            return Err(format!("a read of {name} took {:?}", begun.elapsed()));
                        }
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        act();
        // Everybody reads on for a while after the last event.
        let before = reads.load(Ordering::Relaxed);
        machine::try_for(Duration::from_secs(60), || {
            (reads.load(Ordering::Relaxed) > before + 40 || readers.iter().any(|reader| reader.is_finished()))
                .then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap().unwrap_or_else(|error| panic!("{error}"));
        }
    });
    reads.load(Ordering::Relaxed)
}

#[test]
fn reads_go_on_while_workers_and_etcd_fail() {
    let _alone = machine::heavy();
    let Some(mut cluster) = Cluster::start(3) else { return };
    let store = Store::start();
    for number in 0..FILES {
        let name = format!("f{number:02}");
        store.put(&name, data::content(&name, 0, SIZE as usize));
    }
    cluster.mount_add("/data", &store);
    let mount =
        cluster.mounting().option("alluxio.user.short.circuit.enabled=false").option("local_data_cache_size=0").start();
    let root = mount.join("data");
    machine::wait_for("the mount in the namespace", || root.join("f00").exists().then_some(()));
    let reads = while_reading(&root, || {
        thread::sleep(Duration::from_secs(1));
        cluster.workers[0].kill();
        thread::sleep(Duration::from_secs(2));
        cluster.workers[1].signal(Signal::SIGSTOP);
        thread::sleep(Duration::from_secs(6));
        cluster.workers[1].signal(Signal::SIGCONT);
        cluster.workers[0].start_again();
        thread::sleep(Duration::from_secs(2));
        cluster.etcd.kill();
        thread::sleep(Duration::from_secs(2));
        cluster.workers[2].kill();
        thread::sleep(Duration::from_secs(2));
    });
    assert!(reads > 50, "only {reads} reads in all\n{}", mount.log());
    mount.stop();
}

#[test]
fn without_any_worker_the_storage_is_read() {
    let Some(mut cluster) = Cluster::start(1) else { return };
    let store = Store::start();
    store.put("file", *b"straight from the storage");
    cluster.mount_add("/data", &store);
    let mount = cluster.mounting().start();
    cluster.workers[0].kill();
    let file = mount.join("data/file");
    let read = machine::wait_for("the file", || std::fs::read(&file).ok());
    assert_eq!(read, b"straight from the storage");
    mount.stop();

    // And it is not where that is forbidden.
    let strict = cluster.mounting().option("alluxio.dora.client.ufs.fallback.enabled=false").start();
    assert!(std::fs::read(strict.join("data/file")).is_err());
    strict.stop();
}
