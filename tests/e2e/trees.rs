//! 20,000 files of all kinds, and one of 2 GiB, compare equal: from a directory and from S3; cold, warm, after a remount
//! with the old cache, and with 16 readers at the same time.

use std::{fs::File, path::Path};

use tests::{Mounting, Store, Tree, content, full, heavy, mounts_work, pread, sha256, tree::sparse_file};

const FILES: usize = 20_000;
const PAGE: u64 = 64 << 10;
const BIG: u64 = 2 << 30;

#[test]
fn a_directory_compares_equal() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let source = tempfile::tempdir().unwrap();
    let tree = Tree::make(source.path(), FILES, PAGE, 1).unwrap();
    let mount = Mounting::of_dir(source.path()).option("alluxio.user.client.cache.page.size=64KiB").start();
    tree.compare_names(mount.path()).unwrap();
    tree.compare_bytes(mount.path(), 4, 10, false).expect("cold");
    tree.compare_bytes(mount.path(), 16, 11, false).expect("warm, 16 readers");
    mount.stop();
    let mount = Mounting::of_dir(source.path()).option("passthrough=off").start();
    tree.compare_bytes(mount.path(), 16, 12, false).expect("without passthrough, 16 readers");
    tree.compare_names(mount.path()).unwrap();
    mount.stop();
}

#[test]
fn s3_compares_equal() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let source = tempfile::tempdir().unwrap();
    let tree = Tree::make(source.path(), FILES, PAGE, 2).unwrap();
    let store = Store::of_dir(source.path());
    let cache = tempfile::tempdir().unwrap();
    let mounting = || store.mount("").option("alluxio.user.client.cache.page.size=64KiB");
    let kept = || mounting().cache(cache.path()).option("local_data_cache_size=1GiB");

    let mount = kept().start();
    tree.compare_names(mount.path()).expect("listed, cold");
    tree.compare_bytes(mount.path(), 16, 20, false).expect("cold, 16 readers");
    tree.compare_bytes(mount.path(), 4, 21, false).expect("warm");
    tree.compare_names(mount.path()).expect("listed, warm");
    mount.stop();

    // Pages that a busy disk did not take in time are fetched again, and stored then.
    let bytes: u64 = tree.files.values().map(|(size, _)| size).sum();
    let mut sent = Vec::new();
    while sent.last().is_none_or(|sent| *sent >= bytes / 2) {
        assert!(sent.len() < 4, "the old cache is not used: of {bytes} bytes there were sent {sent:?}");
        store.reset_counters();
        let mount = kept().start();
        tree.compare_bytes(mount.path(), 4, 22, false).expect("with the old cache");
        mount.stop();
        sent.push(store.body_bytes());
    }

    // Every reader reads everything in an order of its own, with a cache that holds a part only.
    let mut part = tree.clone();
    part.files.retain(|path, _| path.starts_with("nested") || path.starts_with("目录"));
    let mount = mounting().option("local_data_cache_size=4MiB").start();
    part.compare_bytes(mount.path(), 16, 23, true).expect("16 readers and evictions");
    mount.stop();
}

#[test]
fn two_gibibytes_of_a_directory_compare_equal() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let source = tempfile::tempdir().unwrap();
    let native = source.path().join("big");
    sparse_file(&native, BIG, "two gibibytes").unwrap();
    let expected = sha256(&native).unwrap();
    let mount = Mounting::of_dir(source.path()).start();
    assert_eq!(sha256(&mount.join("big")).unwrap(), expected);
    mount.stop();
    let mount = Mounting::of_dir(source.path()).option("passthrough=off").start();
    let bytes = |offset, length| pread(&File::open(&native).unwrap(), offset, length).unwrap();
    read_in_slices(&mount.join("big"), 16, &bytes);
    mount.stop();
}

#[test]
fn two_gibibytes_of_s3_compare_equal() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let store = Store::start();
    let key = store.synthetic("big/", 1, BIG).key(0);
    let bytes = |offset, length| content(&key, offset, length);
    let cache = tempfile::tempdir().unwrap();
    let mounting = || store.mount("big").cache(cache.path()).option("local_data_cache_size=640MiB");
    let name = key.strip_prefix("big/").unwrap();

    let expected = {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        for at in (0..BIG).step_by(1 << 20) {
            s3server::synthetic_fill(&key, at, &mut buffer);
            hash.update(&buffer);
        }
        <[u8; 32]>::from(hash.finalize())
    };
    let mount = mounting().start();
    assert_eq!(sha256(&mount.join(name)).unwrap(), expected, "cold, through a cache that holds a third of it");
    mount.stop();
    let mount = mounting().start();
    read_in_slices(&mount.join(name), 16, &bytes);
    mount.stop();
}

/// All of it in the cache, hashed whole each time: half a minute of one core, so it is asked for (`ALLUXIO_TESTS=full`).
#[test]
fn two_gibibytes_of_s3_compare_equal_cold_warm_remounted_and_with_sixteen_readers() {
    if !mounts_work() || !full() {
        return;
    }
    let _alone = heavy();
    let source = tempfile::tempdir().unwrap();
    sparse_file(&source.path().join("big"), BIG, "two gibibytes of a bucket").unwrap();
    let expected = sha256(&source.path().join("big")).unwrap();
    let store = Store::of_dir(source.path());
    let cache = tempfile::tempdir().unwrap();
    let mounting = || store.mount("").cache(cache.path()).option("local_data_cache_size=4GiB");
    let mount = mounting().start();
    assert_eq!(sha256(&mount.join("big")).unwrap(), expected, "cold");
    assert_eq!(sha256(&mount.join("big")).unwrap(), expected, "warm");
    mount.stop();
    store.reset_counters();
    let mount = mounting().start();
    assert_eq!(sha256(&mount.join("big")).unwrap(), expected, "with the old cache");
    assert!(store.body_bytes() < BIG / 2, "the old cache is not used: {} bytes were sent", store.body_bytes());
    std::thread::scope(|scope| {
        for reader in 0..16 {
            let path = mount.join("big");
            scope.spawn(move || assert_eq!(sha256(&path).unwrap(), expected, "reader {reader} of sixteen"));
        }
    });
    mount.stop();
}

/// Reads a file of 2 GiB with several threads, each another part of it, and compares a piece of every mebibyte.
fn read_in_slices(path: &Path, threads: u64, bytes: &(dyn Fn(u64, usize) -> Vec<u8> + Sync)) {
    let slice = BIG / threads;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                assert_eq!(file.metadata().unwrap().len(), BIG);
                // The pieces lie across the borders of pages.
                for at in (thread * slice..(thread + 1) * slice).step_by(4 << 20) {
                    let (offset, length) = (at.saturating_sub(2000), 70_000);
                    assert!(pread(&file, offset, length).unwrap() == bytes(offset, length), "at {offset}");
                }
                let end = (thread + 1) * slice;
                assert!(pread(&file, end - 5000, 5000).unwrap() == bytes(end - 5000, 5000), "before {end}");
                assert_eq!(pread(&file, BIG, 10).unwrap(), b"");
            });
        }
    });
}
