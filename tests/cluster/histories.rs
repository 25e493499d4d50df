//! Close-to-open, checked: programs on two mounts open, write, close and read the same files at random, and no read may
//! have seen what was overwritten, closed and over before it began.
//!
//! Each write has a number, and its bytes are that number again and again. A read that began after a write was closed
//! must show that write, or a later one. Files that are replaced by rename are whole at any time; of those written in
//! place a read beside a write may see anything of the two. `ALLUXIO_TESTS=full` runs 100,000 operations, with kills of
//! workers in between.

use crate::writing::{Shared, close};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

const FILES: usize = 10;
const THREADS: usize = 4;

/// Something that was done to a file, and when it began and was over.
#[derive(Debug, Clone)]
struct Done {
    began: Duration,
    /// None: it failed, and may take effect at any time.
    over: Option<Duration>,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Wrote(u64),
    /// What was seen: the number, if it was one write's and whole.
    Saw(Option<u64>),
}

struct History {
    start: Instant,
    files: Vec<Mutex<Vec<Done>>>,
    /// Who writes a file in place does so alone: two at once would leave a mixture behind, as anywhere.
    turns: Vec<Mutex<()>>,
    next: AtomicU64,
}

fn content(number: u64, length: usize) -> Vec<u8> {
    format!("{number:016}").into_bytes().into_iter().cycle().take(length).collect()
}

/// Of one write, the same for the number each time.
fn length(number: u64) -> usize {
    16 * (1 + (number as usize * 7919) % 3000)
}

fn write(path: &Path, number: u64, replace: bool) -> io::Result<()> {
    let bytes = content(number, length(number));
    let target = if replace { path.with_extension(format!("new{number}")) } else { path.to_owned() };
    let mut file = fs::File::create(&target)?;
    let half = bytes.len() / 2;
    file.write_all(&bytes[..half])?;
    file.write_all(&bytes[half..])?;
    close(file)?;
    if replace { fs::rename(&target, path) } else { Ok(()) }
}

fn number_in(bytes: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(bytes.get(..16)?).ok()?.parse().ok()?;
    (bytes == content(number, length(number))).then_some(number)
}

/// Whether a read may have seen `number`, given what else was done.
fn check(done: &[Done], read: &Done, saw: Option<u64>, whole: bool) -> Result<(), String> {
    let writes = || {
        done.iter().filter_map(|one| match one.what {
            What::Wrote(number) => Some((number, one)),
            What::Saw(_) => None,
        })
    };
    let Some(number) = saw else {
        let beside = writes().any(|(_, write)| {
            write.began <= read.over.unwrap_or(Duration::MAX) && write.over.is_none_or(|over| over >= read.began)
        });
        return if beside && !whole { Ok(()) } else { Err("half a write, or bytes of several".into()) };
    };
    let Some((_, seen)) = writes().find(|(other, _)| *other == number) else {
        return Err(format!("write {number}, which nobody made"));
    };
    if seen.began > read.over.unwrap_or(Duration::MAX) {
        return Err(format!("write {number} before it began"));
    }
    // Overwritten and over before the read began.
    let stale = writes().find(|(_, later)| {
        seen.over.is_some_and(|over| over < later.began) && later.over.is_some_and(|over| over < read.began)
    });
    match stale {
        Some((later, _)) => Err(format!("write {number}, though {later} was over before it began")),
        None => Ok(()),
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let at = Duration::from_millis;
    let wrote = |number, began, over: u64| Done { began: at(began), over: Some(at(over)), what: What::Wrote(number) };
    let read = Done { began: at(50), over: Some(at(60)), what: What::Saw(None) };
    let done = [wrote(1, 0, 10), wrote(2, 20, 30), wrote(3, 55, 70)];
    assert!(check(&done, &read, Some(1), true).is_err(), "overwritten");
    assert!(check(&done, &read, Some(2), true).is_ok() && check(&done, &read, Some(3), true).is_ok());
    assert!(check(&done, &read, Some(9), true).is_err(), "nobody's");
    assert!(check(&done, &read, None, true).is_err() && check(&done, &read, None, false).is_ok());
    assert!(check(&done[..2], &read, None, false).is_err(), "nobody writes");
    // One that failed may still come.
    let failed = Done { over: None, ..wrote(4, 0, 0) };
    assert!(check(&[failed, wrote(2, 20, 30)], &read, Some(4), true).is_ok());
    assert_eq!(number_in(&content(77, length(77))), Some(77));
    assert_eq!(number_in(&content(77, length(77) - 1)), None);
}

#[test]
fn no_read_sees_what_was_overwritten_before_it_began() {
    let full = tests::full();
    let Some(mut shared) = Shared::start(3) else { return };
    let steps = if full { 100_000 } else { 1_500 };
    let seed: u64 = match std::env::var("ALLUXIO_TESTS_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    let history = History {
        start: Instant::now(),
        files: (0..FILES).map(|_| Mutex::default()).collect(),
        turns: (0..FILES).map(|_| Mutex::default()).collect(),
        next: AtomicU64::new(1),
    };
    let (left, failed, over) = (AtomicU64::new(steps), AtomicU64::new(0), AtomicBool::new(false));
    let places = [shared.one(""), shared.two("")];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (history, left, failed) = (&history, &left, &failed);
                let place = &places[thread % places.len()];
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(seed.wrapping_add(thread as u64));
                    while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                        act(history, place, failed, &mut random);
                    }
                })
            })
            .collect();
        if full {
            let (shared, over) = (&mut shared, &over);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed);
                while !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_secs(10));
                    let worker = random.random_range(0..shared.cluster.workers.len());
                    shared.cluster.workers[worker].kill();
                    shared.cluster.workers[worker].start_again();
                    shared.cluster.wait_for_live(shared.cluster.workers.len());
                }
            });
        }
        for worker in workers {
            worker.join().unwrap();
        }
        over.store(true, Ordering::SeqCst);
    });
    let (mut reads, mut wrong) = (0, Vec::new());
    for (file, done) in history.files.iter().enumerate() {
        let done = done.lock();
        for one in done.iter() {
            let What::Saw(saw) = one.what else { continue };
            reads += 1;
            if let Err(why) = check(&done, one, saw, is_replaced(file)) {
                wrong.push(format!("file {file}: a read from {:?} to {:?} saw {why}", one.began, one.over));
            }
        }
    }
    let failed = failed.load(Ordering::SeqCst);
    println!("{reads} reads, {failed} operations failed, seed {seed}");
    assert!(wrong.is_empty(), "seed {seed}: {} wrong reads:\n{}", wrong.len(), wrong.join("\n"));
    assert!(reads > steps / 5, "{reads} reads of {steps} operations, {failed} failed: nothing was shown");
    shared.stop();
}

fn is_replaced(file: usize) -> bool {
    file.is_multiple_of(2)
}

fn act(history: &History, place: &Path, failed: &AtomicU64, random: &mut StdRng) {
    let file = random.random_range(0..FILES);
    let path = place.join(format!("file{file}"));
    if random.random_bool(0.4) {
        let _turn = (!is_replaced(file)).then(|| history.turns[file].lock());
        let number = history.next.fetch_add(1, Ordering::SeqCst);
        let began = history.start.elapsed();
        let wrote = write(&path, number, is_replaced(file));
        // One that failed may still come.
        let over = wrote.is_ok().then(|| history.start.elapsed());
        failed.fetch_add(u64::from(over.is_none()), Ordering::SeqCst);
        history.files[file].lock().push(Done { began, over, what: What::Wrote(number) });
        return;
    }
    let began = history.start.elapsed();
    match fs::read(&path) {
        Ok(bytes) => {
            let done = Done { began, over: Some(history.start.elapsed()), what: What::Saw(number_in(&bytes)) };
            history.files[file].lock().push(done);
        }
        // Not there yet; or a version that was replaced while it was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let closed = |one: &Done| matches!(one.what, What::Wrote(_)) && one.over.is_some_and(|over| over < began);
            assert!(!history.files[file].lock().iter().any(closed), "file{file} is gone");
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::ESTALE | libc::EIO)) => {
            failed.fetch_add(1, Ordering::SeqCst);
        }
        Err(error) => panic!("{}: {error}", path.display()),
    }
}
