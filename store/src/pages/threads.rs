//! The threads of the store: for each directory a writer and a keeper, and one watchman over all.
//!
//! Only these threads (and callers that write small files themselves) can be stuck in a disk that hangs. The watchman
//! touches no disk: it sees that a writer or keeper has not come back, and takes the directory out of use.

use super::{
    Done, HealthState,
    dir::CacheDir,
    file::{Stored, StoredFile},
    names::FOLDER,
    startup,
};
use common::{
    Error, Result,
    metrics::{Health, metrics},
    page::PageLoad,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

/// How often a keeper looks at its disk.
const BEAT: Duration = Duration::from_secs(1);
/// A queue that is full by more than this part of it is behind …
const BEHIND: usize = 4;
/// … unless its pages have waited for so long: then the disk is slow.
const SLOW: Duration = Duration::from_millis(250);
/// How long a stop waits for threads; one that hangs in a dead disk is left behind.
const STOP: Duration = Duration::from_secs(5);

/// A complete page on its way to a disk.
pub(super) struct WriteJob {
    pub file: Arc<StoredFile>,
    pub page: u64,
    pub load: Arc<PageLoad>,
    pub done: Done,
    pub queued: Instant,
}

/// What a directory's threads share.
struct Station {
    dir: Arc<CacheDir>,
    queue: Mutex<Queue>,
    arrived: Condvar,
    max_bytes: usize,
    started: Instant,
    /// When writer and keeper began what they do now, in milliseconds since `started` plus one; 0: nothing.
    writing_since: AtomicU64,
    keeping_since: AtomicU64,
    stopping: AtomicBool,
    running: Mutex<usize>,
    ended: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<WriteJob>,
    bytes: usize,
    closed: bool,
}

/// See the module.
pub(super) struct Threads {
    stations: Vec<Arc<Station>>,
    watch: Arc<(Mutex<bool>, Condvar)>,
    watchman: Mutex<Option<JoinHandle<()>>>,
}

impl Threads {
    pub fn start(dirs: &[Arc<CacheDir>], max_bytes: usize, journal_delay: Duration) -> Result<Self> {
        let watch = Arc::new((Mutex::new(false), Condvar::new()));
        let mut threads = Self { stations: Vec::new(), watch: watch.clone(), watchman: Mutex::new(None) };
        for dir in dirs {
            let station = Arc::new(Station {
                dir: dir.clone(),
                queue: Mutex::default(),
                arrived: Condvar::new(),
                max_bytes: max_bytes.max(1),
                started: Instant::now(),
                writing_since: AtomicU64::new(0),
                keeping_since: AtomicU64::new(0),
                stopping: AtomicBool::new(false),
                running: Mutex::new(0),
                ended: Condvar::new(),
            });
            threads.stations.push(station.clone());
            station.run("store-write", |station| station.write())?;
            station.run("store-keep", move |station| station.keep(journal_delay))?;
        }
        if !dirs.is_empty() {
            let stations = threads.stations.clone();
            let body = move || watchman(&stations, &watch);
            let handle = std::thread::Builder::new().name("store-watch".into()).spawn(body);
            *threads.watchman.lock() = Some(handle.map_err(|error| Error::io("start of a thread", error))?);
        }
        Ok(threads)
    }

    /// Queues a page; gives it back when the queue is full or the directory out of use.
    pub fn submit(&self, index: usize, job: WriteJob) -> Result<(), WriteJob> {
        let Some(station) = self.stations.iter().find(|station| station.dir.index == index) else { return Err(job) };
        if station.dir.health.is_down() {
            return Err(job);
        }
        {
            let mut queue = station.queue.lock();
            // One page is taken whatever its size, else a small limit would store nothing.
            if queue.closed || (queue.bytes > 0 && queue.bytes + job.load.len() > station.max_bytes) {
                return Err(job);
            }
            queue.bytes += job.load.len();
            queue.jobs.push_back(job);
        }
        station.arrived.notify_one();
        Ok(())
    }

    /// Whether pages come faster than this directory stores them, though it works at a good pace: a moment's pause would
    /// let it store them all. Of a slow disk this is never said; what it cannot take goes by.
    pub fn is_behind(&self, index: usize) -> bool {
        let Some(station) = self.stations.iter().find(|station| station.dir.index == index) else { return false };
        if station.dir.health.is_down() {
            return false;
        }
        let queue = station.queue.lock();
        queue.bytes > station.max_bytes / BEHIND && queue.jobs.front().is_some_and(|job| job.queued.elapsed() < SLOW)
    }

    /// Ends the threads after what is queued, and waits for those that do not hang.
    pub fn stop(&self) {
        for station in &self.stations {
            station.queue.lock().closed = true;
            station.arrived.notify_all();
        }
        let until = Instant::now() + STOP;
        for station in &self.stations {
            // The writer first: its records are for the keeper's last turn.
            station.wait_running(1, until);
            station.stopping.store(true, Relaxed);
            station.dir.wake(|wake| wake.stop = true);
            station.wait_running(0, until);
            station.drain();
        }
        *self.watch.0.lock() = true;
        self.watch.1.notify_all();
        let watchman = self.watchman.lock().take();
        if let Some(watchman) = watchman
            && watchman.thread().id() != std::thread::current().id()
        {
            // It never blocks for long, and a panic of it has been reported by the runtime.
            let _ = watchman.join();
        }
    }
}

impl Station {
    fn run(self: &Arc<Self>, name: &str, body: impl FnOnce(&Station) + Send + 'static) -> Result<()> {
        struct Running(Arc<Station>);
        impl Drop for Running {
            fn drop(&mut self) {
                *self.0.running.lock() -= 1;
                self.0.ended.notify_all();
            }
        }
        *self.running.lock() += 1;
        let running = Running(self.clone());
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || body(&running.0))
            .map(drop)
            .map_err(|error| Error::io("start of a thread", error))
    }

    fn wait_running(&self, at_most: usize, until: Instant) {
        let mut running = self.running.lock();
        while *running > at_most && !self.dir.health.is_down() {
            if self.ended.wait_until(&mut running, until).timed_out() {
                return;
            }
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    fn write(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    if queue.closed {
                        return;
                    }
                    self.arrived.wait(&mut queue);
                }
            };
            let bytes = job.load.len();
            self.writing_since.store(self.now(), Relaxed);
            let stored = job.file.write_page(job.page, job.load.filled());
            self.writing_since.store(0, Relaxed);
            // A busy page is being written by somebody else, whose business it is.
            (job.done)(matches!(stored, Stored::Written | Stored::Present));
            drop((job.load, job.file));
            self.queue.lock().bytes -= bytes;
        }
    }

    /// Gives up what is queued.
    fn drain(&self) {
        let jobs = {
            let mut queue = self.queue.lock();
            let jobs = std::mem::take(&mut queue.jobs);
            queue.bytes -= jobs.iter().map(|job| job.load.len()).sum::<usize>();
            jobs
        };
        for job in jobs {
            (job.done)(false);
        }
    }

    fn keep(&self, journal_delay: Duration) {
        let dir = &self.dir;
        // May take minutes on a large directory, and a hang in it does no harm: it is not watched.
        let before = SystemTime::now() - Duration::from_secs(1);
        startup::sweep(dir, before, || self.stopping.load(Relaxed));
        let mut last_beat = Instant::now();
        let mut journal_since: Option<Instant> = None;
        loop {
            let (stop, evict) = {
                let mut wake = dir.wake.lock();
                if !wake.stop && !wake.evict && !wake.journal {
                    let beat = BEAT.saturating_sub(last_beat.elapsed());
                    let journal = journal_since.map(|since| journal_delay.saturating_sub(since.elapsed()));
                    let wait = journal.map_or(beat, |journal| journal.min(beat));
                    // However it ends, what is due is looked at below.
                    let _ = dir.wakeup.wait_for(&mut wake, wait);
                }
                wake.journal = false;
                (wake.stop, std::mem::take(&mut wake.evict))
            };
            let now = Instant::now();
            let (waiting, many) = dir.journal.waiting();
            if waiting > 0 {
                let since = *journal_since.get_or_insert(now);
                if stop || many || now.duration_since(since) >= journal_delay {
                    journal_since = None;
                    if !dir.health.is_down() {
                        self.busy(|| dir.flush_journal());
                    }
                }
            }
            if stop {
                return;
            }
            let beat = now.duration_since(last_beat) >= BEAT;
            if beat {
                last_beat = now;
                dir.health.settle(now);
                if dir.health.wants_probe(now) {
                    self.busy(|| self.probe());
                }
            }
            if (beat || evict) && !dir.health.is_down() {
                self.busy(|| {
                    if dir.look_at_space() {
                        dir.evict_surplus();
                    }
                });
            }
        }
    }

    /// Does something that may hang, where the watchman can see it.
    fn busy(&self, work: impl FnOnce()) {
        self.keeping_since.store(self.now(), Relaxed);
        work();
        self.keeping_since.store(0, Relaxed);
    }

    /// Tries whether a directory that is down works again: what was written can be read.
    fn probe(&self) {
        let path = self.dir.path.join(FOLDER).join("probe");
        let content = [0x5a; 4096];
        let attempt = || -> std::io::Result<bool> {
            let mut file = std::fs::File::create(&path)?;
            file.write_all(&content)?;
            file.sync_all()?;
            drop(file);
            let mut back = Vec::new();
            std::fs::File::open(&path)?.read_to_end(&mut back)?;
            std::fs::remove_file(&path)?;
            Ok(back == content)
        };
        let worked = attempt().unwrap_or(false) && self.writing_since.load(Relaxed) == 0;
        if self.dir.health.probed(Instant::now(), worked) {
            tracing::info!("cache directory {} works again", self.dir.path.display());
        }
    }

    /// The watchman's look.
    fn check(&self) {
        let limit = self.dir.health.options().hang_after.as_millis() as u64;
        let now = self.now();
        let hung = |since: &AtomicU64| {
            let since = since.load(Relaxed);
            since > 0 && now.saturating_sub(since) > limit
        };
        // Sweeping and evicting much may take long without anything being wrong; a write or a look at the disk may not.
        // Both show in the same mark, so the keeper has more time.
        let keeper_hung = {
            let since = self.keeping_since.load(Relaxed);
            since > 0 && now.saturating_sub(since) > 8 * limit
        };
        if (hung(&self.writing_since) || keeper_hung) && self.dir.health.hung(Instant::now()) {
            tracing::warn!(
                "cache directory {} hangs and is out of use; reads go to the storage",
                self.dir.path.display()
            );
        }
        if self.dir.health.is_down() {
            self.drain();
        }
    }
}

/// Shows what the directories hold as metrics.
fn show(stations: &[Arc<Station>]) {
    let metrics = metrics();
    let total = |value: fn(&CacheDir) -> u64| {
        let sum: u64 = stations.iter().map(|station| value(&station.dir)).sum();
        i64::try_from(sum).unwrap_or(i64::MAX)
    };
    metrics.cached_bytes.set(total(CacheDir::used));
    metrics.cache_capacity_bytes.set(total(|dir| dir.capacity));
    metrics.cached_pages.set(total(|dir| dir.page_count.load(Relaxed)));
    metrics.cached_files.set(total(|dir| dir.file_count.load(Relaxed)));
    for (state, label) in [
        (HealthState::Normal, Health::Normal),
        (HealthState::Unstable, Health::Unstable),
        (HealthState::Down, Health::Down),
    ] {
        let count = stations.iter().filter(|station| station.dir.health.state() == state).count();
        metrics.cache_dirs.of(label).set(count as i64);
    }
}

fn watchman(stations: &[Arc<Station>], watch: &(Mutex<bool>, Condvar)) {
    show(stations);
    let mut stop = watch.0.lock();
    while !*stop {
        // Woken early only to stop.
        let _ = watch.1.wait_for(&mut stop, BEAT);
        if !*stop {
            stations.iter().for_each(|station| station.check());
            show(stations);
        }
    }
}
