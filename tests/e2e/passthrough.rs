//! Passthrough changes the speed and nothing else.

use std::{fs::File, path::Path};

use tests::{
    Mount, Mounting, Store, Tree, content,
    data::{Mapped, drop_cached, open_direct, pread_aligned, write_file},
    mount::number,
    mounts_work, pread, try_for,
};

/// Whether passthrough is on, and why so.
fn state(mount: &Mount) -> (bool, String) {
    let status = mount.status();
    let on =
        status["status"]["passthrough"].as_bool().unwrap_or_else(|| panic!("nothing about passthrough in {status}"));
    (on, status["status"]["passthrough_reason"].as_str().unwrap_or_default().to_owned())
}

/// Opens whose reads the kernel does itself.
fn opens(mount: &Mount) -> f64 {
    let status = mount.status();
    number(&status, "passthrough_opens").unwrap_or_else(|| panic!("no passthrough_opens in {status}"))
}

#[test]
fn on_and_off_read_the_same() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    let tree = Tree::make(source.path(), 600, 64 << 10, 77).unwrap();
    let store = Store::of_dir(source.path());
    for option in ["passthrough=auto", "passthrough=off"] {
        let local = Mounting::of_dir(source.path()).option(option).start();
        let remote = store.mount("").option(option).start();
        for mount in [&local, &remote] {
            for seed in 0..2 {
                tree.compare_bytes(mount.path(), 4, seed, false).unwrap_or_else(|error| panic!("{option}: {error}"));
            }
            tree.compare_names(mount.path()).unwrap();
            let (on, reason) = state(mount);
            assert!(on || !reason.is_empty(), "{option}: off, and no reason given");
            if option == "passthrough=off" {
                assert!(!on && reason.contains("option"), "{reason}");
            }
        }
        local.stop();
        remote.stop();
    }
}

#[test]
fn local_files_are_left_to_the_kernel_where_it_can() {
    if !mounts_work() {
        return;
    }
    let source = tempfile::tempdir().unwrap();
    write_file(&source.path().join("file"), "file", 1 << 20).unwrap();
    let mount = Mounting::of_dir(source.path()).start();
    assert!(std::fs::read(mount.join("file")).unwrap() == content("file", 0, 1 << 20));
    let (on, reason) = state(&mount);
    if on {
        assert!(opens(&mount) >= 1.0, "a local file is registered at its open");
    } else {
        println!("no passthrough here: {reason}");
        assert!(!reason.is_empty());
    }
    mount.stop();
}

/// Opens and reads a file in several ways at the same time and one after the other.
fn many_opens(mount: &Mount, path: &Path, name: &str, size: usize) {
    let whole = content(name, 0, size);
    std::thread::scope(|scope| {
        for turn in 0..8 {
            let whole = &whole;
            scope.spawn(move || {
                for round in 0..12 {
                    match (turn + round) % 4 {
                        0 => assert!(std::fs::read(path).unwrap() == *whole),
                        1 => {
                            let file = open_direct(path).unwrap();
                            assert!(pread_aligned(&file, 4096, 65_536).unwrap() == whole[4096..4096 + 65_536]);
                        }
                        2 => {
                            let file = File::open(path).unwrap();
                            let mapped = Mapped::new(&file, size).unwrap();
                            drop(file);
                            assert!(mapped.bytes() == &whole[..]);
                        }
                        _ => {
                            let (one, two) = (File::open(path).unwrap(), File::open(path).unwrap());
                            assert!(pread(&one, 0, size).unwrap() == *whole);
                            drop(one);
                            drop_cached(&two);
                            assert!(pread(&two, 100_000, 50_000).unwrap() == whole[100_000..150_000]);
                        }
                    }
                }
            });
        }
    });
    assert!(mount.path().exists());
}

#[test]
fn one_inode_is_opened_many_times() {
    if !mounts_work() {
        return;
    }
    let size = 400_000;
    let source = tempfile::tempdir().unwrap();
    write_file(&source.path().join("file"), "many opens", size as u64).unwrap();
    std::fs::hard_link(source.path().join("file"), source.path().join("second name")).unwrap();
    let store = Store::start();
    store.put("file", content("many opens", 0, size));
    for option in ["passthrough=auto", "passthrough=off", "direct_io", "kernel_cache"] {
        let mount = Mounting::of_dir(source.path()).option(option).start();
        many_opens(&mount, &mount.join("file"), "many opens", size);
        many_opens(&mount, &mount.join("second name"), "many opens", size);
        mount.stop();
        // Cold at the first open, wholly cached later: opens of both kinds meet.
        let mount = store.mount("").option(option).option("alluxio.user.client.cache.page.size=64KiB").start();
        many_opens(&mount, &mount.join("file"), "many opens", size);
        mount.stop();
    }
}

#[test]
fn a_cached_file_that_is_evicted_while_open_stays_right() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    let family = store.synthetic("set/", 40, 400_000);
    let name = |number| family.key(number).strip_prefix("set/").unwrap().to_owned();
    let mount =
        store.mount("set").options(["local_data_cache_size=3MiB", "alluxio.user.client.cache.page.size=64KiB"]).start();
    let path = mount.join(name(0));
    // Read until it is complete on disk (which is when passthrough can begin), or not, if it never is.
    let _ = try_for(std::time::Duration::from_secs(3), || {
        assert!(std::fs::read(&path).unwrap() == content(&family.key(0), 0, 400_000));
        (opens(&mount) >= 1.0).then_some(())
    });
    let open = File::open(&path).unwrap();
    let mapped = Mapped::new(&open, 400_000).unwrap();
    for round in 0..2 {
        for number in 1..40 {
            assert!(
                std::fs::read(mount.join(name(number))).unwrap() == content(&family.key(number), 0, 400_000),
                "{number}"
            );
        }
        assert!(pread(&open, 0, 400_000).unwrap() == content(&family.key(0), 0, 400_000), "round {round}");
        assert!(mapped.bytes() == &content(&family.key(0), 0, 400_000)[..], "mapped, round {round}");
        drop_cached(&open);
    }
    mount.stop();
}
