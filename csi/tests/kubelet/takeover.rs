//! Processes die under programs that read and write, and the programs see a pause: the next process goes on with the
//! connection. And what passes through needs no process at all.

use crate::{
    harness::{Kubelet, alone, bounded, read},
    publishing::request,
};
use nix::sys::signal::Signal;
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};
use tests::{Store, content, wait_for};

const SIZE: u64 = 3_000_000;
const FILES: u64 = 20;

/// Reads until it is told to stop: files that it opens anew, one that it keeps open, and the listing.
struct Reader {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<io::Result<()>>,
}

impl Reader {
    fn start(root: &Path, keys: Vec<String>) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (root, until, count) = (root.to_owned(), stop.clone(), rounds.clone());
        let read = move || {
            let name = |key: &String| PathBuf::from(key.strip_prefix("set/").unwrap());
            let kept = File::open(root.join(name(&keys[0])))?;
            let mut number = 0;
            while !until.load(Ordering::Relaxed) {
                let key = &keys[1 + number as usize % (keys.len() - 1)];
                let bytes = std::fs::read(root.join(name(key)))?;
                assert!(bytes == content(key, 0, SIZE as usize), "{key}: other bytes");
                let at = number * 4096 % SIZE;
                let mut part = vec![0; 4096.min((SIZE - at) as usize)];
                kept.read_exact_at(&mut part, at)?;
                assert!(part == content(&keys[0], at, part.len()), "{}: other bytes at {at}", keys[0]);
                assert_eq!(std::fs::read_dir(&root)?.count() as u64, FILES);
                number += 1;
                count.store(number, Ordering::Relaxed);
            }
            Ok(())
        };
        Self { stop, rounds, thread: std::thread::spawn(read) }
    }

    /// Waits until it has done some more.
    fn goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let more = || self.thread.is_finished() || self.rounds.load(Ordering::Relaxed) >= before + 5;
        wait_for("the reader to go on", || more().then_some(()));
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        wait_for("the reader to end", || self.thread.is_finished().then_some(()));
        self.thread.join().expect("the reader").expect("no error is seen");
    }
}

fn keys(store: &Store) -> Vec<String> {
    let family = store.synthetic("set/", FILES, SIZE);
    (0..FILES).map(|at| family.key(at)).collect()
}

#[test]
fn readers_see_no_error_when_processes_are_killed() {
    if !alone() {
        return;
    }
    let store = Store::start();
    let keys = keys(&store);
    let mut kubelet = Kubelet::start(&[]);
    for (pod, options) in [("pod", ""), ("through", ",alluxio.fuse.passthrough=OFF")] {
        let mut wanted = request(&kubelet, &store, "set", pod);
        wanted.volume_context.get_mut("mountOptions").unwrap().push_str(options);
        kubelet.publish(wanted).unwrap();
    }
    let devices = || {
        let mut all: Vec<_> = kubelet.mounts().into_iter().map(|mount| (mount.point, mount.device)).collect();
        all.sort_by(|one, two| one.0.cmp(&two.0));
        all
    };
    let before = devices();
    let readers = ["pod", "through"].map(|pod| Reader::start(&kubelet.target(pod), keys.clone()));
    for _ in 0..3 {
        readers.iter().for_each(Reader::goes_on);
        let dead = kubelet.daemons();
        kubelet.signal_daemons(Signal::SIGKILL);
        wait_for("new processes", || {
            let now = kubelet.daemons();
            (now.len() == 2 && now.iter().all(|pid| !dead.contains(pid))).then_some(())
        });
    }
    readers.iter().for_each(Reader::goes_on);
    assert_eq!(devices(), before, "the mounts are those from the beginning");
    kubelet.restart_mounter();
    readers.iter().for_each(Reader::goes_on);
    // A plugin that was started anew has the connections too.
    kubelet.restart_plugin();
    readers.iter().for_each(Reader::goes_on);
    kubelet.signal_daemons(Signal::SIGKILL);
    readers.iter().for_each(Reader::goes_on);
    let now: Vec<_> = kubelet.mounts().into_iter().map(|mount| mount.device).collect();
    assert!(before.iter().all(|(_, device)| now.contains(device)), "{now:?}");
    readers.into_iter().for_each(Reader::end);
    kubelet.unpublish("pod").unwrap();
    kubelet.unpublish("through").unwrap();
    kubelet.nothing_left();
}

#[test]
fn open_files_of_a_directory_are_gone_on_with() {
    if !alone() {
        return;
    }
    let kubelet = Kubelet::start(&[]);
    let shared = kubelet.home.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::os::unix::fs::chown(&shared, Some(65534), Some(65534)).unwrap();
    let uri = format!("file://{}", shared.display());
    for options in ["alluxio.fuse.passthrough=AUTO", "alluxio.fuse.passthrough=OFF"] {
        kubelet.publish(kubelet.request("pod", &[("ufs", &uri), ("mountOptions", options)])).unwrap();
        let pod = kubelet.target("pod");
        let file = bounded(move || {
            let file =
                File::options().create(true).truncate(true).read(true).write(true).open(pod.join("log")).unwrap();
            file.write_all_at(b"one,", 0).unwrap();
            std::fs::create_dir_all(pod.join("a/b")).unwrap();
            file
        });
        let dead = kubelet.daemons();
        kubelet.signal_daemons(Signal::SIGKILL);
        let pod = kubelet.target("pod");
        bounded(move || {
            file.write_all_at(b"two", 4).unwrap();
            file.sync_all().unwrap();
            drop(file);
            std::fs::rename(pod.join("a/b"), pod.join("c")).unwrap();
            std::fs::write(pod.join("c/x"), "x").unwrap();
            assert_eq!(std::fs::read(pod.join("log")).unwrap(), b"one,two");
            std::fs::remove_dir_all(pod.join("c")).unwrap();
        });
        assert_ne!(kubelet.daemons(), dead);
        assert_eq!(std::fs::read(shared.join("log")).unwrap(), b"one,two");
        kubelet.unpublish("pod").unwrap();
        kubelet.nothing_left();
    }
}

#[test]
fn what_passes_through_needs_no_process() {
    if !alone() {
        return;
    }
    let store = Store::start();
    let family = store.synthetic("set/", 2, 500_000);
    let mut kubelet = Kubelet::start(&[]);
    kubelet.publish(request(&kubelet, &store, "set", "pod")).unwrap();
    let root = kubelet.target("pod");
    let path = |at: u64| root.join(family.key(at).strip_prefix("set/").unwrap());
    let open = |at: u64| {
        let path = path(at);
        bounded(move || File::open(path).unwrap())
    };
    let all = |file: File, at: u64| {
        let wanted = content(&family.key(at), 0, 500_000);
        let bytes = bounded(move || {
            let mut bytes = vec![0; 500_000];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        });
        assert!(bytes == wanted, "other bytes");
    };
    // Nothing of it was read before, so only the kernel can answer while the process stands still.
    let file = open(0);
    kubelet.signal_daemons(Signal::SIGSTOP);
    all(file, 0);
    kubelet.signal_daemons(Signal::SIGCONT);
    // Nor is the plugin needed: without it files are read through the process, and with the next one they pass again.
    kubelet.plugin.kill();
    assert_eq!(read(&path(1)).unwrap(), content(&family.key(1), 0, 500_000));
    all(open(0), 0);
    kubelet.restart_plugin();
    let extra = store.synthetic("set/later-", 1, 500_000);
    let name = extra.key(0).strip_prefix("set/").unwrap().to_owned();
    let later = kubelet.target("pod").join(name);
    let file = wait_for("the new object", || {
        let later = later.clone();
        bounded(move || File::open(later).ok())
    });
    kubelet.signal_daemons(Signal::SIGSTOP);
    let bytes = bounded(move || {
        let mut bytes = vec![0; 500_000];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    assert!(bytes == content(&extra.key(0), 0, 500_000));
    kubelet.signal_daemons(Signal::SIGCONT);
    kubelet.unpublish("pod").unwrap();
    kubelet.nothing_left();
}
