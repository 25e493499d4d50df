//! What an interrupted or stuck run must not leave behind: mounts, daemons, gigabytes of data.
//!
//! A thread takes SIGINT, SIGTERM and, when a row takes too long, SIGALRM. It aborts and detaches every mount below the
//! scratch directory (a reader that waits for an answer would not end, and the process not without it), removes the
//! directory and ends the process. What [`die_with_parent`] was called for ends with its mount or by SIGTERM, even when
//! this process is killed.

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sys::{
        prctl,
        signal::{SigSet, Signal},
    },
};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

static ROW: Mutex<&str> = Mutex::new("");
/// A signal has come: nothing new is begun, since it is being removed.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// The process is gone at the latest this long after a signal.
const LIMIT: Duration = Duration::from_secs(20);

/// Cleans `scratch` up when a signal ends the run. Call it before any other thread exists.
pub fn on_signals(scratch: PathBuf) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGALRM] {
        signals.add(signal);
    }
    // Every thread inherits this, and so would every program: see `die_with_parent`.
    signals.thread_block().context("block signals")?;
    thread::Builder::new().name("cleanup".to_owned()).spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        if signal == Signal::SIGALRM {
            let row = ROW.lock().map_or("?", |row| *row);
            eprintln!("bench: {row} did not end in time: giving up");
        }
        STOPPED.store(true, Relaxed);
        eprintln!("bench: {signal}: removing {}", scratch.display());
        thread::spawn(move || {
            thread::sleep(LIMIT);
            end(signal);
        });
        for _ in 0..50 {
            detach_all(&scratch);
            if fs::remove_dir_all(&scratch).is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        end(signal);
    })?;
    Ok(())
}

/// Ends the process at once: what other threads are in the middle of is of no use any more.
fn end(signal: Signal) -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(128 + signal as i32) }
}

/// To be called before anything is made or mounted: does not return once a signal has come.
pub fn pause_if_stopped() {
    while STOPPED.load(Relaxed) {
        thread::park();
    }
}

/// Gives up when the row `name` is still being measured after this many minutes.
pub fn within(name: &'static str, minutes: u32) {
    if let Ok(mut row) = ROW.lock() {
        *row = name;
    }
    nix::unistd::alarm::set(minutes * 60);
}

/// Lets a program take signals again, and get SIGTERM when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes two system calls and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            SigSet::empty().thread_set_mask()?;
            Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)
        });
    }
}

fn detach_all(scratch: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for point in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(point).starts_with(scratch) {
            let _ = umount2(point, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        }
    }
}
