//! Who reads the next request: a leader that looks for it awake, while the other threads wait out of its way.
//!
//! A program that opens one small file after the other asks the daemon and sleeps until the answer, many thousand times a
//! second. With every thread asleep in read(2) each request wakes one of them, most likely on another processor that
//! has gone to sleep too: 60 to 80 µs on a virtual machine, several times the work itself. So while requests come thick and
//! fast one thread, the *leader*, looks at the device for a short time before it sleeps, and the others, the
//! *followers*, wait here, where the kernel does not wake them.
//!
//! Invariants:
//! - followers wait only while requests come fast and are answered fast. In calm (nothing for [`CALM`] looks of the watch),
//!   or when operations take long, every thread is in read(2) as without this module, so an idle mount costs nothing
//!   and the end of the connection is seen by all;
//! - a leader that is stuck in an operation holds up nobody for longer than two [`TICK`]s: one follower keeps watch and
//!   opens the gate. An operation that is long by nature gives the lead away before it begins;
//! - requests that are waiting are never left to the leader alone for long: a thread that ends an operation and finds
//!   one goes for it, and a leader that never catches up lets followers in, one by one;
//! - no thread looks longer than the configured time; looking that finds nothing soon ends the looking.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex};
use std::{
    cell::Cell,
    os::fd::{AsFd, OwnedFd},
    sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How often the watching follower looks after the leader.
const TICK: Duration = Duration::from_millis(2);
/// Followers that do not watch look this often, in case the watching one is gone.
const LONG_TICK: Duration = Duration::from_millis(100);
/// Looks without any request after which the gate is opened.
const CALM: u32 = 10;
/// An operation of this length ends the lead: others are like it, and must not wait for each other.
const SLOW: Duration = Duration::from_millis(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_nanos(700);
/// Giving way for so long shows that somebody else needs the processor.
const CROWDED: Duration = Duration::from_micros(500);
/// What waking both sides may add to the time between two requests, which looking would save.
const WAKING: Duration = Duration::from_micros(200);
/// How fast requests come, as a number: up by one for each that came soon, down by more for each that did not.
const SCORE_MAX: i32 = 16;
/// From this score on there is a leader.
const SCORE_LEAD: i32 = 4;
const SCORE_LATE: i32 = 4;
/// Requests in a row that waited already, after which a follower is let in.
const BACKLOG: u32 = 8;

/// How an operation may behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Answered from memory as a rule.
    Quick,
    /// Copies data or asks a disk, a little.
    Some,
    /// Copies much, or waits.
    Long,
}

/// Decides after each operation what its thread does next.
pub(super) struct Turns {
    device: OwnedFd,
    look: Duration,
    crowded: Duration,
    start: Instant,
    score: AtomicI32,
    /// When the last operation ended, in nanoseconds since the start.
    ended: AtomicU64,
    /// The leader's number; 0: there is none.
    leader: AtomicU64,
    /// Counts the beginnings and ends of the leader's operations: odd while one is under way.
    beat: AtomicU64,
    gate: Mutex<Gate>,
    opened: Condvar,
}

#[derive(Default)]
struct Gate {
    waiting: usize,
    /// Whether one of those who wait keeps watch.
    watched: bool,
    /// Raised when all are let out.
    round: u64,
    /// How many may leave in this round.
    let_in: usize,
}

thread_local! {
    static NUMBER: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Relaxed)
    };
    /// Requests in a row that this thread found waiting.
    static FOUND: Cell<u32> = const { Cell::new(0) };
}

fn me() -> u64 {
    NUMBER.with(|number| *number)
}

impl Turns {
    /// For requests that come through `device`; the leader looks for `look` before it sleeps. Nothing is done when that
    /// is zero, or where looking would only keep a single processor from whoever asks.
    pub(super) fn new(device: OwnedFd, look: Duration) -> Self {
        let alone = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
        Self {
            device,
            look: if alone { Duration::ZERO } else { look },
            crowded: CROWDED,
            start: Instant::now(),
            score: AtomicI32::new(0),
            ended: AtomicU64::new(0),
            leader: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            gate: Mutex::new(Gate::default()),
            opened: Condvar::new(),
        }
    }

    /// Does `operation` in its turn.
    pub(super) fn take(&self, work: Work, operation: impl FnOnce()) {
        if self.look.is_zero() {
            return operation();
        }
        let began = self.begin(work);
        operation();
        self.end(work, began);
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn leads(&self) -> bool {
        self.leader.load(Relaxed) == me()
    }

    fn begin(&self, work: Work) -> u64 {
        let now = self.now();
        let gap = Duration::from_nanos(now.saturating_sub(self.ended.load(Relaxed)));
        let soon = gap <= self.look + WAKING;
        self.rate(if soon { 1 } else { -SCORE_LATE });
        if self.leads() {
            match work {
                Work::Long => self.open(),
                Work::Some if self.is_pending() => self.let_in(),
                _ => {}
            }
            self.beat.store(self.beat.load(Relaxed) | 1, Relaxed);
        }
        now
    }

    fn end(&self, work: Work, began: u64) {
        let now = self.now();
        self.ended.store(now, Relaxed);
        let leads = self.leads();
        if leads {
            self.beat.store((self.beat.load(Relaxed) | 1) + 1, Relaxed);
        }
        if work == Work::Long || u128::from(now - began) >= SLOW.as_nanos() {
            self.score.store(0, Relaxed);
        }
        if self.score.load(Relaxed) < SCORE_LEAD {
            if leads {
                self.open();
            }
            return;
        }
        if leads {
            self.look();
        } else if self.leader.compare_exchange(0, me(), Relaxed, Relaxed).is_ok() {
            // A former leader may have left it odd.
            self.beat.store((self.beat.load(Relaxed) | 1) + 1, Relaxed);
            self.look();
        } else if !self.is_pending() {
            self.follow();
        }
    }

    fn rate(&self, change: i32) {
        // Two that meet here lose one change, which matters to nobody.
        let score = self.score.load(Relaxed);
        let next = (score + change).clamp(0, SCORE_MAX);
        if next != score {
            self.score.store(next, Relaxed);
        }
    }

    /// Whether read(2) would return at once: there is a request, or the connection has ended.
    fn is_pending(&self) -> bool {
        let mut device = [PollFd::new(self.device.as_fd(), PollFlags::POLLIN)];
        poll(&mut device, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// The leader looks for the next request.
    fn look(&self) {
        if self.is_pending() {
            let found = FOUND.get() + 1;
            FOUND.set(found % BACKLOG);
            if found == BACKLOG {
                self.let_in();
            }
            return;
        }
        FOUND.set(0);
        let begin = Instant::now();
        let mut last = begin;
        loop {
            // Lets whoever else wants this processor go first; that is time to sleep, unless there is work meanwhile.
            std::thread::yield_now();
            let now = Instant::now();
            let crowded = now - last >= self.crowded;
            if crowded {
                self.rate(-2 * SCORE_LATE);
            }
            // The other processor may be the other half of the same core: what is not done here is done there.
            while !crowded && now.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
            if crowded || self.is_pending() {
                return;
            }
            last = Instant::now();
            if last - begin >= self.look {
                return self.rate(-SCORE_LATE);
            }
        }
    }

    /// Waits until the gate is opened, or this thread is let in.
    fn follow(&self) {
        let mut gate = self.gate.lock();
        let round = gate.round;
        if self.leader.load(Relaxed) == 0 {
            return;
        }
        gate.waiting += 1;
        let mut watching = false;
        let (mut seen, mut still) = (self.beat.load(Relaxed), 0);
        while gate.round == round && gate.let_in == 0 {
            if !gate.watched {
                (gate.watched, watching) = (true, true);
            }
            self.opened.wait_for(&mut gate, if watching { TICK } else { LONG_TICK });
            if !watching || gate.round != round {
                continue;
            }
            let beat = self.beat.load(Relaxed);
            still = if beat == seen { still + 1 } else { 0 };
            seen = beat;
            // Stuck in an operation; or nothing to do any more.
            if still > 0 && (beat & 1 == 1 || still >= CALM) {
                self.score.store(0, Relaxed);
                self.open_locked(&mut gate);
            }
        }
        gate.waiting -= 1;
        if gate.round == round {
            gate.let_in -= 1;
        }
        if watching {
            gate.watched = false;
            if gate.waiting > 0 {
                self.opened.notify_one();
            }
        }
    }

    /// Lets one follower go for the requests that wait.
    fn let_in(&self) {
        let mut gate = self.gate.lock();
        if gate.let_in < gate.waiting {
            gate.let_in += 1;
            self.opened.notify_one();
        }
    }

    /// Ends the lead, and the waiting of all.
    fn open(&self) {
        self.open_locked(&mut self.gate.lock());
    }

    fn open_locked(&self, gate: &mut Gate) {
        self.leader.store(0, Relaxed);
        gate.round += 1;
        gate.let_in = 0;
        if gate.waiting > 0 {
            self.opened.notify_all();
        }
    }

    #[cfg(test)]
    fn waiting(&self) -> usize {
        self.gate.lock().waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::File,
        io::{Read, Write},
        sync::{
            Arc,
            atomic::AtomicUsize,
            mpsc::{Receiver, Sender, channel},
        },
        thread::JoinHandle,
    };

    const THREADS: usize = 4;
    /// Requests: one byte each.
    const QUICK: u8 = 0;
    const STUCK: u8 = 1;

    /// Threads that serve requests out of a pipe, as fuser's do out of the device.
    struct Served {
        turns: Arc<Turns>,
        requests: File,
        done: Arc<AtomicUsize>,
        /// Ends an operation that is stuck.
        free: Sender<()>,
        threads: Vec<JoinHandle<()>>,
    }

    fn serve() -> Served {
        let (device, requests) = nix::unistd::pipe().unwrap();
        let (free, stuck) = channel();
        let stuck = Arc::new(Mutex::new(stuck));
        let done = Arc::new(AtomicUsize::new(0));
        let mut turns = Turns::new(device.try_clone().unwrap(), Duration::from_millis(1));
        // Also on a machine with one processor, or none to spare.
        turns.look = Duration::from_millis(1);
        turns.crowded = Duration::MAX;
        let turns = Arc::new(turns);
        let threads = (0..THREADS)
            .map(|_| {
                let (turns, stuck, done) = (turns.clone(), stuck.clone(), done.clone());
                let mut device = File::from(device.try_clone().unwrap());
                std::thread::spawn(move || {
                    let mut request = [0];
                    while device.read(&mut request).unwrap() > 0 {
                        turns.take(Work::Quick, || answer(request[0], &stuck, &done));
                    }
                })
            })
            .collect();
        Served { turns, requests: File::from(requests), done, free, threads }
    }

    fn answer(request: u8, stuck: &Mutex<Receiver<()>>, done: &AtomicUsize) {
        if request == STUCK {
            stuck.lock().recv().unwrap();
        }
        done.fetch_add(1, Relaxed);
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::yield_now();
        }
    }

    impl Served {
        fn ask(&mut self, request: u8) {
            self.requests.write_all(&[request]).unwrap();
        }

        fn ask_and_wait(&mut self) {
            let before = self.done.load(Relaxed);
            self.ask(QUICK);
            until("a request was not answered", || self.done.load(Relaxed) > before);
        }

        /// One request after the other, until all threads but one wait.
        fn hurry(&mut self) {
            let begin = Instant::now();
            while self.turns.waiting() < THREADS - 1 {
                assert!(begin.elapsed() < Duration::from_secs(30), "the threads did not make way for a leader");
                self.ask_and_wait();
            }
        }

        fn end(self) {
            drop(self.requests);
            for thread in self.threads {
                until("a thread did not see the end of the connection", || thread.is_finished());
                thread.join().unwrap();
            }
        }
    }

    #[test]
    fn in_a_hurry_one_thread_reads_and_in_calm_all_do() {
        let mut served = serve();
        for _ in 0..3 {
            served.hurry();
            until("followers wait though nothing happens", || served.turns.waiting() == 0);
        }
        served.end();
    }

    #[test]
    fn a_leader_that_is_stuck_holds_up_nobody() {
        let mut served = serve();
        for _ in 0..10 {
            served.hurry();
            served.ask(STUCK);
            for _ in 0..20 {
                served.ask_and_wait();
            }
            let before = served.done.load(Relaxed);
            served.free.send(()).unwrap();
            until("the stuck operation never ended", || served.done.load(Relaxed) == before + 1);
        }
        served.end();
    }

    #[test]
    fn whoever_waits_sees_the_end_of_the_connection() {
        for _ in 0..5 {
            let mut served = serve();
            served.hurry();
            served.end();
        }
    }

    #[test]
    fn nothing_is_left_lying_when_many_ask_at_once() {
        let served = serve();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5000).for_each(|_| (&served.requests).write_all(&[QUICK]).unwrap()));
            }
        });
        until("requests were left", || served.done.load(Relaxed) == 20_000);
        served.end();
    }

    #[test]
    fn without_looking_nobody_waits() {
        let (device, _requests) = nix::unistd::pipe().unwrap();
        let turns = Turns::new(device, Duration::ZERO);
        for _ in 0..100 {
            turns.take(Work::Quick, || {});
        }
        assert_eq!(turns.leader.load(Relaxed), 0);
    }
}
