//! Memory is bounded: by the budget while many files are read, and whatever the size of a directory.

use std::{
    fs::File,
    io::Read as _,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tests::{Store, content, heavy, mount::number, mounts_work};

const MIB: u64 = 1 << 20;

#[test]
fn a_million_entries_are_listed_in_bounded_memory() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let store = Store::start();
    let count = 1_000_000;
    let family = store.synthetic("huge/f", count, 5);
    let mount = store.mount("huge").start();
    let idle = mount.resident();
    // Names only, as `ls -f` asks for them: nothing in this process grows with the directory either.
    let mut found = 0u64;
    let mut sum = 0u64;
    for entry in std::fs::read_dir(mount.path()).unwrap() {
        let name = entry.unwrap().file_name();
        sum += name
            .to_str()
            .and_then(|name| name.strip_prefix('f'))
            .and_then(|digits| digits.parse::<u64>().ok())
            .expect("a name");
        found += 1;
    }
    assert_eq!((found, sum), (count, count * (count - 1) / 2), "each entry once");
    let peak = mount.resident_peak();
    assert!(peak < idle + 256 * MIB, "{} MiB resident after {} MiB when idle", peak / MIB, idle / MIB);
    let key = family.key(count - 1);
    assert_eq!(std::fs::read(mount.join(key.strip_prefix("huge/").unwrap())).unwrap(), content(&key, 0, 5));
    mount.stop();
}

#[test]
fn sixty_four_files_at_once_stay_within_the_budget() {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    let store = Store::start();
    let size = 12 * MIB;
    let family = store.synthetic("many/", 64, size);
    // With a budget that is smaller than one page for each of them.
    for limit in [32u64, 128] {
        let mount = store
            .mount("many")
            .option(format!("alluxio.user.memory.limit={limit}MiB"))
            .options(["local_data_cache_size=256MiB", "passthrough=off"])
            .start();
        let idle = mount.resident();
        let done = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for file in 0..64 {
                let (key, mount, done) = (family.key(file), &mount, &done);
                scope.spawn(move || {
                    let _done = Done(done);
                    let mut file = File::open(mount.join(key.strip_prefix("many/").unwrap())).unwrap();
                    let mut buffer = vec![0; 100_000];
                    let mut at = 0;
                    loop {
                        let count = file.read(&mut buffer).unwrap_or_else(|error| panic!("{key} at {at}: {error}"));
                        if count == 0 {
                            break;
                        }
                        assert!(buffer[..count] == content(&key, at, count), "{key} at {at}");
                        at += count as u64;
                    }
                    assert_eq!(at, size, "{key}");
                });
            }
            while done.load(Ordering::Relaxed) < 64 {
                let status = mount.status();
                let used = number(&status, "memory_used_bytes").unwrap_or_else(|| panic!("no memory in {status}"));
                assert!(used <= (limit * MIB) as f64, "{used} bytes of {limit} MiB");
                assert_eq!(number(&status, "memory_limit_bytes"), Some((limit * MIB) as f64));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let peak = mount.resident_peak();
        // The budget holds file data; the rest is connections, threads and their buffers.
        let bound = idle + (limit + 192) * MIB;
        assert!(peak < bound, "{} MiB resident with a budget of {limit} MiB, {} MiB when idle", peak / MIB, idle / MIB);
        mount.stop();
    }
}

/// Counts a thread that ends, in whatever way.
struct Done<'a>(&'a AtomicUsize);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
