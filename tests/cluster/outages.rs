//! The long failure suite: everything that may happen to a cluster, one thing after the other, for as long as it happens
//! in life, while four processes read and verify. Four minutes on a machine that is otherwise idle; it measures times,
//! so it is no part of the usual tests:
//!
//! `ALLUXIO_TESTS=full cargo test -p tests --test cluster outages -- --nocapture`

use crate::processes::{Cluster, Network};
use nix::sys::signal::Signal;
use std::{
    fs::File,
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tests::{data, machine, s3::Store};

const FILES: usize = 24;
const SIZE: u64 = 3 << 20;
const PIECE: usize = 100_000;
const READERS: u64 = 4;
/// The slowest read that is allowed, whatever happens.
const SLOWEST: Duration = Duration::from_secs(5);
/// After so long the throughput is back.
const RECOVERY: Duration = Duration::from_secs(10);
/// Over what time throughput is measured.
const MEASURED: Duration = Duration::from_secs(5);
/// How often it is measured before it counts as gone.
const TRIES: u32 = 4;
/// What of the throughput has to be back.
const BACK: f64 = 0.8;

const ROOT: &str = "ALLUXIO_TEST_READER_ROOT";
const SEED: &str = "ALLUXIO_TEST_READER_SEED";

/// Not a test: the readers of the suite are this program again, with only this function and the root in the environment.
#[test]
fn reader_process() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let mut state: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let (mut reads, mut slowest, mut told) = (0u64, Duration::ZERO, Instant::now());
    let mut out = std::io::stdout();
    loop {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let name = format!("f{:02}", (state >> 33) as usize % FILES);
        let offset = (state >> 20) % (SIZE - PIECE as u64);
        let begun = Instant::now();
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![0; PIECE];
            File::open(root.join(&name))?.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) if bytes == data::content(&name, offset, PIECE) => reads += 1,
            Ok(_) => panic!("FAILED: wrong bytes in {name} at {offset}"),
            Err(error) => panic!("FAILED: {name} at {offset}: {error}"),
        }
        slowest = slowest.max(begun.elapsed());
        if told.elapsed() > Duration::from_millis(200) {
            // The suite has ended when nobody listens any more.
            if writeln!(out, "\n@{reads} {}", slowest.as_millis()).and_then(|()| out.flush()).is_err() {
                return;
            }
            (slowest, told) = (Duration::ZERO, Instant::now());
        }
    }
}

/// The reading processes; killed when dropped.
struct Readers {
    children: Vec<(Child, PathBuf)>,
    seen: Vec<usize>,
    _home: tempfile::TempDir,
}

impl Readers {
    fn start(root: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let children: Vec<_> = (0..READERS)
            .map(|seed| {
                let log = home.path().join(format!("reader{seed}"));
                let file = File::create(&log).unwrap();
                let child = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "outages::reader_process", "--nocapture"])
                    .env(ROOT, root)
                    .env(SEED, (seed + 1).to_string())
                    .stdin(Stdio::null())
                    .stdout(file.try_clone().unwrap())
                    .stderr(file)
                    .spawn()
                    .unwrap();
                (child, log)
            })
            .collect();
        Self { seen: vec![0; children.len()], children, _home: home }
    }

    /// Reads so far, and the slowest since the last look. Panics when a reader found something wrong.
    fn look(&mut self) -> (u64, Duration) {
        let (mut reads, mut slowest) = (0, 0);
        for ((child, log), seen) in self.children.iter_mut().zip(&mut self.seen) {
            let text = std::fs::read_to_string(log).unwrap();
            assert!(
                !text.contains("FAILED") && child.try_wait().unwrap().is_none(),
                "a reader failed: {}",
                tail(&text)
            );
            let lines: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix('@')).collect();
            let numbers = |line: &&str| -> Option<(u64, u64)> {
                let (reads, slowest) = line.split_once(' ')?;
                Some((reads.parse().ok()?, slowest.parse().ok()?))
            };
            let parsed: Vec<_> = lines.iter().filter_map(numbers).collect();
            reads += parsed.last().map_or(0, |(reads, _)| *reads);
            slowest = parsed.iter().skip(*seen).map(|(_, slowest)| *slowest).chain([slowest]).max().unwrap_or(0);
            *seen = parsed.len();
        }
        (reads, Duration::from_millis(slowest))
    }

    /// Reads each second from now on.
    fn rate(&mut self) -> f64 {
        let (before, begun) = (self.look().0, Instant::now());
        thread::sleep(MEASURED);
        (self.look().0 - before) as f64 / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for (child, _) in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn tail(text: &str) -> &str {
    &text[text.len().saturating_sub(2000)..]
}

/// What happened, and what came of it.
struct Report {
    lines: Vec<String>,
    broken: Vec<String>,
    /// Reads each second for each worker before anything happened.
    share: f64,
}

impl Report {
    /// Lets something happen for a while, and then looks whether the throughput is back to what `left` workers give.
    fn event(&mut self, readers: &mut Readers, name: &str, left: f64, act: impl FnOnce()) {
        readers.look();
        act();
        thread::sleep(RECOVERY);
        let mut slowest = readers.look().1;
        // Others may want the machine for a moment: it is back when it is back in one of a few measurements.
        let mut part = 0.0_f64;
        let mut rate = 0.0;
        for _ in 0..TRIES {
            rate = readers.rate();
            slowest = slowest.max(readers.look().1);
            part = part.max(rate / (self.share * left));
            if part >= BACK {
                break;
            }
        }
        let line = format!(
            "{name}: slowest read {} ms, afterwards {rate:.0} reads/s ({part:.2} of what was there)",
            slowest.as_millis()
        );
        eprintln!("{line}");
        if slowest > SLOWEST || part < BACK {
            self.broken.push(line.clone());
        }
        self.lines.push(line);
    }
}

#[test]
fn a_cluster_goes_on_whatever_happens() {
    if !tests::full() {
        return;
    }
    let _alone = machine::heavy();
    let Some(mut cluster) = Cluster::start(3) else { return };
    let network = Network::new();
    let etcd = format!("http://{}", network.forward(cluster.etcd.port()));
    let store = Store::start();
    for number in 0..FILES {
        let name = format!("f{number:02}");
        store.put(&name, data::content(&name, 0, SIZE as usize));
    }
    let apart = cluster.add_worker_in(&network, &etcd);
    cluster.wait_for_live(4);
    let port = store.server().url().rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    let endpoint = format!("alluxio.underfs.s3.endpoint=http://{}", network.forward(port));
    let mut options = store.options();
    options.retain(|option| !option.starts_with("alluxio.underfs.s3.endpoint="));
    options.push(endpoint);
    cluster.mount_add_with("/data", &store, options);
    // Neither the client nor the kernel keeps anything: every read asks a worker.
    let mount = cluster
        .mounting()
        .life(Duration::from_secs(900))
        .options(["alluxio.user.short.circuit.enabled=false", "local_data_cache_size=0", "direct_io"])
        .start();
    let root = mount.join("data");
    machine::wait_for("the mount in the namespace", || root.join("f00").exists().then_some(()));

    let mut readers = Readers::start(&root);
    thread::sleep(RECOVERY);
    let share = readers.rate() / 4.0;
    let mut report = Report { lines: Vec::new(), broken: Vec::new(), share };
    report.event(&mut readers, "nothing", 4.0, || {});
    report.event(&mut readers, "SIGKILL", 3.0, || cluster.workers[0].kill());
    report.event(&mut readers, "restart", 4.0, || cluster.workers[0].start_again());
    report.event(&mut readers, "SIGSTOP for 30 s", 4.0, || {
        cluster.workers[1].signal(Signal::SIGSTOP);
        thread::sleep(Duration::from_secs(30));
        cluster.workers[1].signal(Signal::SIGCONT);
    });
    report.event(&mut readers, "etcd away for 60 s", 4.0, || {
        cluster.etcd.kill();
        thread::sleep(Duration::from_secs(60));
        cluster.etcd.start_again();
    });
    report.event(&mut readers, "cut off for 15 s", 4.0, || {
        network.cut(true);
        thread::sleep(Duration::from_secs(15));
        network.cut(false);
    });
    // More workers on the same processors give no more: what was there has to stay.
    report.event(&mut readers, "one more", 4.0, || {
        cluster.add_worker();
    });
    report.event(&mut readers, "one stopped for good", 4.0, || {
        cluster.workers[2].signal(Signal::SIGTERM);
        let identity = cluster.workers[2].identity();
        machine::wait_for("it to be gone", || (!cluster.live().contains(&identity)).then_some(()));
        let removed = cluster.alluxio(["process", "remove-worker", "-n", &identity.to_string()]);
        assert!(removed.status.success(), "{removed:?}");
    });
    drop(readers);
    assert!(report.broken.is_empty(), "{}\n\nof\n\n{}", report.broken.join("\n"), report.lines.join("\n"));
    cluster.workers[apart].kill();
    mount.stop();
}
