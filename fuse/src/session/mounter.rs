//! The mounter: takes FUSE connections that the CSI node plugin hands over, and has a process of its own serve each.
//!
//! It needs no privilege, no /dev/fuse and no path of the host: only the socket. See [`common::handover`] for what is said.
//!
//! Invariants:
//! - it talks to root and its own user only, each exchange has a deadline, and their number is bounded;
//! - it keeps a copy of each connection, so that neither the end of a session's process nor that of the plugin loses it; when
//!   a process ended and nobody asks for a minute, the copy is dropped, so that programs get an error instead of waiting on;
//! - its processes do not outlive it (the kernel kills them), and a process number is never signalled after it was reaped;
//! - secrets are kept in memory only.

use super::{Result, SessionError, signals};
use common::handover::{self, Answer, Listed, Order, Session, Talk};
use nix::sys::{
    signal::{Signal, kill},
    wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

/// Orders that are answered at the same time; more are hung up on.
const TALKS_MAX: usize = 64;
/// How long an order may take to arrive, and an answer to leave.
const EXCHANGE: Duration = Duration::from_secs(5);
/// How long a process may take to end when it is told to.
const STOPPING: Duration = Duration::from_secs(10);
/// How long the connection of a process that died is kept for a successor.
const KEPT: Duration = Duration::from_secs(60);

/// A session and the process that serves it.
struct Held {
    session: Session,
    connection: Option<OwnedFd>,
    pid: u32,
    /// Orders to the process; one is sent at a time.
    control: Arc<Mutex<UnixStream>>,
    /// Which of all that had this key.
    generation: usize,
    ended: Option<String>,
}

type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

type Table = Arc<Mutex<HashMap<String, Held>>>;

struct Mounter {
    held: Table,
    /// Sessions of which a process is being started: their stages are looked into by nobody else meanwhile.
    starting: Mutex<HashSet<String>>,
    generations: AtomicUsize,
    talks: AtomicUsize,
    draining: AtomicBool,
    spawner: Mutex<mpsc::Sender<Spawn>>,
    cache_dirs: Vec<PathBuf>,
    stage_dir: PathBuf,
    trails: PathBuf,
}

/// Runs until a signal ends it; returns the exit code. Signals must be blocked ([`signals::block`]).
///
/// # Errors
/// The socket cannot be made.
pub fn run(socket: &Path, cache_dirs: Vec<PathBuf>, stage_dir: PathBuf, trails: PathBuf) -> Result<i32> {
    let socket = std::path::absolute(socket).map_err(|error| SessionError::system(socket.display(), error))?;
    let listener = handover::listen(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SessionError::refused(format!(
            "{}: the directory of the socket does not exist; make it, with rights for the plugin and this user only",
            socket.display()
        )),
        _ => SessionError::system(socket.display(), error),
    })?;
    let failed = |error: io::Error| SessionError::system("a thread of the mounter", error);
    let mounter = Arc::new(Mounter {
        held: Table::default(),
        starting: Mutex::default(),
        generations: AtomicUsize::new(0),
        talks: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        spawner: Mutex::new(spawner().map_err(failed)?),
        cache_dirs,
        stage_dir,
        trails,
    });
    let (ending, end) = mpsc::channel();
    let stopping = (mounter.clone(), ending);
    signals::start(move |count| stop(&stopping.0, count, &stopping.1))?;
    let accepting = mounter.clone();
    let accept = move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => accepting.clone().take(stream),
                // Out of descriptors, perhaps: others will be closed.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    std::thread::Builder::new().name("accept".into()).spawn(accept).map_err(failed)?;
    tracing::info!("ready for sessions at {}", socket.display());
    let code = end.recv().unwrap_or(1);
    // The next mounter would replace it anyway.
    let _ = std::fs::remove_file(&socket);
    Ok(code)
}

/// The first signal waits for the sessions, since pods use them and only the plugin knows when they are gone; the next ends
/// them.
fn stop(mounter: &Arc<Mounter>, count: u64, ending: &mpsc::Sender<i32>) {
    if count == 1 {
        mounter.draining.store(true, Ordering::SeqCst);
        let (waiting, told) = (mounter.clone(), ending.clone());
        let wait = move || {
            let mut said = 0;
            loop {
                let left = waiting.held.lock().values().filter(|held| held.ended.is_none()).count();
                if left == 0 {
                    // The receiver lives as long as the process.
                    let _ = told.send(0);
                    return;
                }
                if left != said {
                    tracing::info!("stopping once {left} sessions are unmounted; another signal ends them now");
                    said = left;
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        };
        if std::thread::Builder::new().name("drain".into()).spawn(wait).is_err() {
            let _ = ending.send(1);
        }
        return;
    }
    let keys: Vec<String> = mounter.held.lock().keys().cloned().collect();
    for key in keys {
        mounter.end(&key);
    }
    let _ = ending.send(0);
}

/// A thread that starts processes and lives as long as this one: the kernel's signal at the death of a parent belongs to the
/// thread that started the child.
fn spawner() -> io::Result<mpsc::Sender<Spawn>> {
    let (sender, orders) = mpsc::channel::<Spawn>();
    let run = move || {
        for (mut command, answer) in orders {
            // Whoever asked waits for it.
            let _ = answer.send(command.spawn());
        }
    };
    std::thread::Builder::new().name("spawner".into()).spawn(run)?;
    Ok(sender)
}

impl Mounter {
    fn take(self: Arc<Self>, stream: UnixStream) {
        if self.talks.fetch_add(1, Ordering::SeqCst) >= TALKS_MAX {
            self.talks.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let mounter = self.clone();
        let talk = move || {
            if let Err(error) = mounter.talk(stream) {
                tracing::warn!("an order: {error}");
            }
            mounter.talks.fetch_sub(1, Ordering::SeqCst);
        };
        if std::thread::Builder::new().name("talk".into()).spawn(talk).is_err() {
            self.talks.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn talk(&self, stream: UnixStream) -> io::Result<()> {
        handover::trusted(&stream)?;
        let (order, descriptors) = Talk::new(stream.try_clone()?, EXCHANGE).hear::<Order>()?;
        let answer = match order {
            Order::Serve(session) => self.serve(session, descriptors),
            Order::List => self.list(),
            Order::Settle { key, limit_seconds } => self.settle(&key, limit_seconds),
            Order::Line { key } => {
                let line: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
                match self.tell(&key, &Order::Line { key: key.clone() }, &line, EXCHANGE) {
                    Some(Ok(answer)) => answer,
                    Some(Err(error)) => failed(format!("the process of session {key} takes no line: {error}")),
                    None => failed(format!("no process serves session {key}")),
                }
            }
            Order::Stop { key } => {
                self.end(&key);
                Answer::Done
            }
            Order::Take { key } => return self.hand_back(&key, stream),
        };
        Talk::new(stream, EXCHANGE).say(&answer, &[])
    }

    fn list(&self) -> Answer {
        let held = self.held.lock();
        let sessions = held
            .values()
            .map(|held| Listed {
                key: held.session.key.clone(),
                pid: held.ended.is_none().then_some(held.pid),
                ended: held.ended.clone(),
            })
            .collect();
        Answer::Sessions { sessions }
    }

    fn hand_back(&self, key: &str, stream: UnixStream) -> io::Result<()> {
        let found = {
            let held = self.held.lock();
            held.get(key).and_then(|held| {
                let connection = held.connection.as_ref()?.try_clone().ok()?;
                Some((held.session.clone(), connection))
            })
        };
        let talk = Talk::new(stream, EXCHANGE);
        match found {
            Some((session, connection)) => talk.say(&Answer::Taken { session }, &[connection.as_fd()]),
            None => talk.say(&failed(format!("there is no session {key}")), &[]),
        }
    }

    fn serve(&self, session: Session, descriptors: Vec<OwnedFd>) -> Answer {
        if self.draining.load(Ordering::SeqCst) {
            return failed("the mounter is stopping; its successor will serve".into());
        }
        let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if session.key.is_empty() || session.key.len() > 64 || !session.key.bytes().all(name) {
            return failed("a session's key has 1 to 64 lower-case letters, digits and dashes".into());
        }
        let mut descriptors = descriptors.into_iter();
        let Some(connection) = descriptors.next() else {
            return failed("an order to serve came without a connection".into());
        };
        // Whoever orders it anew knows that the old one is of no use; what it cached still is.
        self.stop(&session.key);
        let key = session.key.clone();
        self.starting.lock().insert(key.clone());
        let started = self.start(session, connection, descriptors.next());
        self.starting.lock().remove(&key);
        match started {
            Ok(answer) => answer,
            Err(error) => failed(format!("a process for the session: {error}")),
        }
    }

    fn start(&self, session: Session, connection: OwnedFd, line: Option<OwnedFd>) -> io::Result<Answer> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("alluxio-fuse")
            .args(["serve", "--session", &session.key])
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null());
        // SAFETY: prctl is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let (sender, answer) = mpsc::channel();
        let gone = || io::Error::other("the thread that starts processes is gone");
        self.spawner.lock().send((command, sender)).map_err(|_| gone())?;
        let child = answer.recv().map_err(|_| gone())??;
        let limit = Duration::from_secs(session.limit_seconds.clamp(1, 3600));
        let with: Vec<_> = [Some(connection.as_fd()), line.as_ref().map(AsFd::as_fd)].into_iter().flatten().collect();
        let told = Talk::new(ours.try_clone()?, EXCHANGE).say(&Order::Serve(session.clone()), &with);
        drop(line);
        let heard = told.and_then(|()| Talk::new(ours.try_clone()?, limit).hear::<Answer>());
        match heard {
            Ok((Answer::Serving { pid, writes }, _)) => {
                self.keep(session, connection, child, ours);
                Ok(Answer::Serving { pid, writes })
            }
            heard => {
                let mut child = child;
                // It may have ended by itself.
                let _ = child.kill();
                let status = child.wait();
                // One that could not take over is started anew, with its cache.
                if !session.takeover {
                    self.clear(&session.key);
                }
                Ok(match heard {
                    Ok((answer, _)) => answer,
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => Answer::Failed {
                        message: format!(
                            "{} did not come up within {} s; check the address and the network",
                            common::redact::uri(&session.source),
                            limit.as_secs()
                        ),
                        storage: true,
                    },
                    Err(_) => failed(format!("the process of the session ended at its start: {}", how(status.ok()))),
                })
            }
        }
    }

    fn keep(&self, session: Session, connection: OwnedFd, child: Child, control: UnixStream) {
        let generation = self.generations.fetch_add(1, Ordering::SeqCst);
        let (key, pid) = (session.key.clone(), child.id());
        let control = Arc::new(Mutex::new(control));
        let held = Held { session, connection: Some(connection), pid, control, generation, ended: None };
        self.held.lock().insert(key.clone(), held);
        let table = self.held.clone();
        let watch = move || watch(&table, &key, generation, child);
        if let Err(error) = std::thread::Builder::new().name("watch".into()).spawn(watch) {
            // Its end goes unseen; the plugin sees a mount that does not answer.
            tracing::error!("a thread to watch a session: {error}");
        }
    }

    /// Gives an order to the process of a session; none when there is no process.
    fn tell(&self, key: &str, order: &Order, with: &[BorrowedFd<'_>], limit: Duration) -> Option<io::Result<Answer>> {
        let control = {
            let held = self.held.lock();
            held.get(key).filter(|held| held.ended.is_none())?.control.clone()
        };
        let exchange = || {
            let (ours, theirs) = UnixStream::pair()?;
            let mut all = vec![theirs.as_fd()];
            all.extend_from_slice(with);
            // Held while it is said, so that two orders do not mix.
            let control = control.lock();
            Talk::new(control.try_clone()?, EXCHANGE).say(order, &all)?;
            drop((control, theirs));
            Talk::new(ours, limit).hear::<Answer>().map(|heard| heard.0)
        };
        Some(exchange())
    }

    fn settle(&self, key: &str, limit_seconds: u64) -> Answer {
        let limit = Duration::from_secs(limit_seconds.clamp(1, 3600));
        match self.tell(key, &Order::Settle { key: key.to_owned(), limit_seconds }, &[], limit + EXCHANGE) {
            Some(Ok(answer)) => answer,
            // It may have ended just now, and a stopped one tells nothing: both are known soon.
            Some(Err(error)) => {
                failed(format!("the process of session {key} does not say what it has uploaded: {error}"))
            }
            None if self.starting.lock().contains(key) => Answer::Pending {
                message: "the process that uploads what is left is being started".into(),
                served: false,
            },
            None => match worker::stage::left_behind(&self.stage_dir.join(key)) {
                Ok(0) => Answer::Settled,
                Ok(left) => Answer::Pending {
                    message: format!("{left} changes wait on this host for a process that uploads them"),
                    served: false,
                },
                Err(error) => Answer::Pending { message: error.message().to_owned(), served: false },
            },
        }
    }

    /// Ends a session and forgets it.
    fn end(&self, key: &str) {
        self.stop(key);
        self.clear(key);
    }

    fn stop(&self, key: &str) {
        let begin = Instant::now();
        loop {
            {
                let mut table = self.held.lock();
                match table.get(key) {
                    None => return,
                    Some(held) if held.ended.is_some() => {
                        table.remove(key);
                        break;
                    }
                    Some(held) => {
                        // Under the lock it is not reaped, so the number is still its own.
                        let signal = if begin.elapsed() < STOPPING { Signal::SIGTERM } else { Signal::SIGKILL };
                        let _ = kill(nix::unistd::Pid::from_raw(held.pid as i32), signal);
                        if begin.elapsed() > STOPPING * 2 {
                            // Stuck in the kernel; the end of the connection frees it.
                            tracing::error!("session {key}: its process {} does not end", held.pid);
                            table.remove(key);
                            break;
                        }
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes what a session kept on disk, but nothing that is not in the storage.
    fn clear(&self, key: &str) {
        for dir in &self.cache_dirs {
            // A cache that stays costs space only.
            let _ = std::fs::remove_dir_all(dir.join(key));
        }
        let _ = std::fs::remove_dir_all(self.trails.join(key));
        let stage = self.stage_dir.join(key);
        if matches!(worker::stage::left_behind(&stage), Ok(0)) {
            let _ = std::fs::remove_dir_all(stage);
        }
    }
}

/// Waits for the end of a process, then keeps its connection for a while.
fn watch(table: &Table, key: &str, generation: usize, mut child: Child) {
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    // Without reaping, so that its number stays its own until the table knows.
    let waited = loop {
        match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other,
        }
    };
    let orderly = matches!(waited, Ok(WaitStatus::Exited(_, 0)));
    {
        let mut table = table.lock();
        let status = child.wait().ok();
        if let Some(held) = table.get_mut(key).filter(|held| held.generation == generation) {
            held.ended = Some(if orderly { "it was unmounted".into() } else { how(status) });
            if orderly {
                held.connection = None;
            } else {
                tracing::warn!("session {key}: its process {pid} ended: {}", how(status));
            }
        }
    }
    if orderly {
        return;
    }
    std::thread::sleep(KEPT);
    if let Some(held) = table.lock().get_mut(key).filter(|held| held.generation == generation) {
        held.connection = None;
    }
}

fn failed(message: String) -> Answer {
    Answer::Failed { message, storage: false }
}

fn how(status: Option<std::process::ExitStatus>) -> String {
    match status {
        Some(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".into(),
        },
        None => "unknown".into(),
    }
}
