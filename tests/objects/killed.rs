//! The daemon is killed while programs write: everything that fsync or close reported as done is there and whole in the
//! next mount.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::Mutex,
    time::Duration,
};

use tests::{heavy, mounts_work};

use crate::place::{Kind, Place, amount};

/// The content of a file: its name and number of writes, repeated.
fn content(name: &str, generation: u64) -> Vec<u8> {
    let line = format!("{name} generation {generation}\n");
    line.repeat(1 + (generation as usize * 7919) % 9_000).into_bytes()
}

/// The generations of one file: the last that was acknowledged, and those begun since.
#[derive(Debug, Clone, Default)]
struct Written {
    acknowledged: u64,
    begun: Vec<u64>,
}

type Log = Mutex<BTreeMap<String, Written>>;

fn acknowledged(log: &Log) -> u64 {
    log.lock().unwrap().values().map(|written| written.acknowledged).sum()
}

/// Writes until the mount is dead.
fn write_until_dead(root: &Path, writer: u64, first: u64, log: &Log) {
    for generation in first.. {
        let name = format!("writer-{writer}/file-{}", generation % 5);
        let path = root.join(&name);
        let bytes = content(&name, generation);
        log.lock().unwrap().entry(name.clone()).or_default().begun.push(generation);
        let wrote = (|| -> std::io::Result<()> {
            if generation % 3 == 0 {
                // As a checkpoint is written.
                let temporary = path.with_extension("tmp");
                let mut file = File::create(&temporary)?;
                file.write_all(&bytes)?;
                file.sync_all()?;
                drop(file);
                fs::rename(&temporary, &path)
            } else {
                let mut file = File::create(&path)?;
                file.write_all(&bytes)?;
                file.sync_all()
            }
        })();
        match wrote {
            Ok(()) => {
                log.lock().unwrap().insert(name, Written { acknowledged: generation, begun: Vec::new() });
            }
            Err(_) => return,
        }
    }
}

fn run(kind: Kind, kills: u64) {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let mut place = Place::new(kind);
    let log = Log::default();
    for writer in 0..3 {
        fs::create_dir(place.join(format!("writer-{writer}"))).unwrap();
    }
    let mut synced = 0;
    for kill in 0..kills {
        let before = acknowledged(&log);
        std::thread::scope(|scope| {
            let root = place.path().to_owned();
            for writer in 0..3 {
                let (root, log) = (root.clone(), &log);
                scope.spawn(move || write_until_dead(&root, writer, kill * 100_000 + 1, log));
            }
            // A random time after something was acknowledged in this round.
            tests::wait_for("a write that is acknowledged", || (acknowledged(&log) > before).then_some(()));
            std::thread::sleep(Duration::from_millis(rand::random_range(0..300)));
            place.kill();
        });
        place.mount_again();
        for (name, written) in log.lock().unwrap().iter().filter(|(_, written)| written.acknowledged > 0) {
            let found =
                fs::read(place.join(name)).unwrap_or_else(|error| panic!("kill {kill}: {name}, {written:?}: {error}"));
            // It may have been in the middle of being replaced when the daemon died: then it is newer, or a beginning.
            let whole = found == content(name, written.acknowledged);
            let newer = written.begun.iter().any(|begun| content(name, *begun).starts_with(&found));
            assert!(whole || newer, "kill {kill}: {name}: {} bytes, not of {written:?}", found.len());
            synced += 1;
        }
    }
    assert!(synced >= kills, "nothing was synced");
}

#[test]
fn over_a_directory() {
    run(Kind::Directory, amount(4, 100));
}

#[test]
fn over_a_bucket() {
    run(Kind::S3, amount(4, 100));
}
