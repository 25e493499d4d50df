//! A handle sees one version of a file. When that version is gone it answers ESTALE; it never mixes two.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, time::Instant};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use s3server::{Action, Fault, Operation};
use tests::{
    Mounting, Store, content,
    data::{drop_cached, errno, write_file},
    machine::PATIENCE,
    mounts_work, pread, wait_for,
};

const FRESH: [&str; 4] = [
    "entry_timeout=0",
    "attr_timeout=0",
    "alluxio.user.metadata.sync.interval=100ms",
    "alluxio.user.client.cache.page.size=64KiB",
];

/// Reads at random places of a handle that saw version `name`: the bytes are that version's, or the answer is ESTALE.
/// Returns how many reads gave bytes.
fn read_one_version(file: &File, name: &str, size: u64, random: &mut StdRng, count: usize) -> usize {
    let mut good = 0;
    for _ in 0..count {
        let offset = random.random_range(0..size);
        let length = random.random_range(1..150_000).min(size - offset) as usize;
        let mut buffer = vec![0; length];
        match file.read_at(&mut buffer, offset) {
            Ok(count) => {
                assert!(buffer[..count] == content(name, offset, count), "{name} at {offset}: other bytes");
                assert!(count > 0, "{name} at {offset} of {size}: nothing");
                good += 1;
            }
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{name} at {offset}: {error}"),
        }
    }
    good
}

#[test]
fn an_object_that_is_replaced_while_open() {
    if !mounts_work() {
        return;
    }
    for option in ["auto_cache", "passthrough=off", "direct_io", "local_data_cache_size=0"] {
        let store = Store::start();
        let mount = store.mount("").options(FRESH).option(option).start();
        let path = mount.join("file");
        let mut random = StdRng::seed_from_u64(5);
        let mut sizes = [900_000u64, 900_000, 300_000, 1_500_000, 60_000, 60_000].into_iter().enumerate();
        let (_, mut size) = sizes.next().unwrap();
        let mut name = "version 0".to_owned();
        store.put("file", content(&name, 0, size as usize));
        for (number, next_size) in sizes {
            let old = wait_for("the version is seen", || open_sized(&path, size));
            read_one_version(&old, &name, size, &mut random, 4);
            let next = format!("version {number}");
            store.put("file", content(&next, 0, next_size as usize));
            // Until the change is seen the old handle goes on, and new ones may still see the old version.
            read_one_version(&old, &name, size, &mut random, 4);
            let new = wait_for("the new version is seen", || {
                let file = File::open(&path).ok()?;
                let first = pread(&file, 0, 100).ok()?;
                (first == content(&next, 0, 100)).then_some(file)
            });
            for _ in 0..3 {
                read_one_version(&old, &name, size, &mut random, 3);
                let good = read_one_version(&new, &next, next_size, &mut random, 3);
                assert_eq!(good, 3, "{option}: the new version is there");
                drop_cached(&new);
            }
            (name, size) = (next, next_size);
        }
        mount.stop();
    }
}

fn open_sized(path: &Path, size: u64) -> Option<File> {
    let file = File::open(path).ok()?;
    (file.metadata().ok()?.len() == size).then_some(file)
}

#[test]
fn an_object_that_is_replaced_again_and_again() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let size = 400_000u64;
    let versions: Vec<Vec<u8>> = (0..12).map(|number| content(&format!("round {number}"), 0, size as usize)).collect();
    store.put("file", versions[0].clone());
    let mount = store.mount("").options(FRESH).start();
    let path = mount.join("file");
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4u64)
            .map(|reader| {
                let (path, versions, done) = (&path, &versions, &done);
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(reader);
                    let mut whole = 0;
                    let end = Instant::now() + PATIENCE;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) || whole == 0 {
                        assert!(Instant::now() < end, "nothing can be read");
                        let Ok(file) = File::open(path) else { continue };
                        // What one handle gives is consistent with one version.
                        let mut candidates: Vec<&Vec<u8>> = versions.iter().collect();
                        for _ in 0..6 {
                            let offset = random.random_range(0..size - 1000) as usize;
                            let mut buffer = vec![0; random.random_range(1..100_000)];
                            match file.read_at(&mut buffer, offset as u64) {
                                Ok(count) => {
                                    candidates.retain(|bytes| bytes[offset..offset + count] == buffer[..count]);
                                    assert!(!candidates.is_empty(), "a mixture of versions at {offset}");
                                    whole += 1;
                                }
                                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}"),
                            }
                        }
                    }
                })
            })
            .collect();
        for version in &versions[1..] {
            store.put("file", version.clone());
            std::thread::sleep(std::time::Duration::from_millis(60));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let last = versions.last().unwrap();
    wait_for("the last version is seen", || std::fs::read(&path).ok().filter(|bytes| bytes == last));
    mount.stop();
}

#[test]
fn a_version_that_is_gone_is_stale() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("file", content("old", 0, 2 << 20));
    let mount = store
        .mount("")
        .options(FRESH)
        .options(["alluxio.user.prefetch.enabled=false", "local_data_cache_size=0"])
        .start();
    let file = File::open(mount.join("file")).unwrap();
    assert!(pread(&file, 0, 10).unwrap() == content("old", 0, 10));
    store.put("file", content("new", 0, 2 << 20));
    // Far away from what was read: these bytes can only come from the store.
    assert_eq!(errno(&pread(&file, 1_900_000, 10)), libc::ESTALE);
    store.delete("file");
    assert!([libc::ESTALE, libc::ENOENT].contains(&errno(&pread(&file, 1_800_000, 10))));
    mount.stop();
}

#[test]
fn bodies_that_are_cut_short_or_too_long_never_reach_a_reader() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let get = |action| Fault::new(action).on(Operation::GetObject);
    for (number, action) in [
        Action::ResetAfter(50_000),
        Action::CloseAfter(70_000),
        Action::Shorten(1),
        Action::IgnoreRange,
        Action::Error(503),
        Action::Error(500),
        Action::Drop,
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("file {number}");
        store.put(&name, content(&name, 0, 700_000));
        store.fault(get(action).key(&name).times(3));
    }
    let mount = store.mount("").options(FRESH).option("alluxio.user.ufs.retries=6").start();
    for number in 0..7 {
        let name = format!("file {number}");
        // The faults pass: whether the daemon tries again or the reader does, the bytes are right in the end.
        let bytes = wait_for(&name, || match std::fs::read(mount.join(&name)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
                None
            }
        });
        assert!(bytes == content(&name, 0, 700_000), "{name}: {} bytes", bytes.len());
    }
    mount.stop();
}

#[test]
fn a_local_file_that_is_replaced_by_rename() {
    if !mounts_work() {
        return;
    }
    for option in ["auto_cache", "passthrough=off", "direct_io"] {
        let source = tempfile::tempdir().unwrap();
        let root = source.path();
        let mut random = StdRng::seed_from_u64(9);
        write_file(&root.join("file"), "first", 700_000).unwrap();
        let mount = Mounting::of_dir(root).options(FRESH).option(option).start();
        let old = File::open(mount.join("file")).unwrap();
        assert_eq!(read_one_version(&old, "first", 700_000, &mut random, 3), 3);
        write_file(&root.join("next"), "second", 500_000).unwrap();
        std::fs::rename(root.join("next"), root.join("file")).unwrap();
        // The old file lives as long as its handle, as on any file system.
        assert_eq!(read_one_version(&old, "first", 700_000, &mut random, 3), 3, "{option}");
        let new = wait_for("the new file is seen", || open_sized(&mount.join("file"), 500_000));
        for _ in 0..3 {
            assert_eq!(read_one_version(&new, "second", 500_000, &mut random, 3), 3, "{option}");
            read_one_version(&old, "first", 700_000, &mut random, 3);
            drop_cached(&new);
        }
        mount.stop();
    }
}
