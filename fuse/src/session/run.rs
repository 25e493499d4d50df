//! One mount from beginning to end: build, mount, serve, tell that it is ready, wait, take down.
//!
//! The order of the end (a signal, or the mount point unmounted): detach, wait a bounded time for what is being
//! answered, abort the connection, close what served it, remove the record. A second signal cuts this short.

use super::{
    Result, SessionError,
    control::{self, Answer, LogLevel, Question, Status, Uploads},
    kernel::{self, MountRequest},
    mounts::Device,
    process,
    record::{Record, StateDir},
    signals,
    teardown::Teardown,
};
use crate::adapter::InTurn;
use common::metrics::metrics;
use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// How long requests that are being answered may take at the end before the connection is aborted.
const GRACE: Duration = Duration::from_secs(5);
/// How long the rest of the end may take.
const CLOSING: Duration = Duration::from_secs(10);
/// The same when uploads are waited for, which end by themselves when they make no progress.
const UPLOADING: Duration = Duration::from_secs(24 * 3600);
/// The exit code of an end that a second signal forced.
pub const FORCED: i32 = 130;

/// What is served, however it was built.
pub struct Served<F> {
    /// The file system.
    pub filesystem: F,
    /// How many threads take requests.
    pub threads: usize,
    /// Whether it takes no writes, so that the kernel need not ask.
    pub read_only: bool,
    /// How long a thread that expects another request looks for it before it sleeps; zero: not at all.
    pub look: Duration,
    /// Whether passthrough is on, and why.
    pub passthrough: Arc<dyn Fn() -> (bool, String) + Send + Sync>,
    /// Starts `/metrics` if it is wanted; returns its address.
    pub web: Box<dyn FnOnce() -> Option<String> + Send>,
    /// Is given what tells the kernel of changes, before any request is taken.
    pub notify: Box<dyn FnOnce(fuser::Notifier) + Send>,
    /// What was written and is not in the storage.
    pub uploads: Arc<dyn Fn() -> Uploads + Send + Sync>,
    /// Puts what was written into the storage, within this time. It blocks.
    pub settle: Arc<dyn Fn(Duration) -> common::Result<()> + Send + Sync>,
    /// Closes it all once the session has ended.
    pub close: Box<dyn FnOnce() + Send>,
    /// Whether closing ends by itself, however long what is to be uploaded takes.
    pub closes_itself: bool,
}

/// How to run a mount.
#[derive(Debug, Clone)]
pub struct Setup {
    /// What to mount where.
    pub request: MountRequest,
    /// Whether only root and the mounting user may use it, though `allow_other` is set.
    pub root_and_owner: bool,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The log file, if it is one.
    pub log_file: Option<PathBuf>,
    /// The readahead window in KiB; 0: as it is.
    pub readahead_kib: u64,
    /// How long the start may take.
    pub limit: Duration,
}

enum Event {
    Stop,
    Ended(io::Result<()>),
}

/// Runs a mount until it ends. `build` makes what is served; `ready` is called when the mount answers, and when it fails
/// the mount is taken down. Signals must be blocked by then ([`signals::block`]). Returns the exit code.
///
/// # Errors
/// The mount could not be made; nothing is left of it.
pub fn run<F: fuser::Filesystem + Send + 'static>(
    setup: Setup,
    build: impl FnOnce() -> common::Result<Served<F>> + Send + 'static,
    ready: impl FnOnce() -> io::Result<()>,
) -> Result<i32> {
    let (events, queue) = mpsc::channel();
    let teardown = Arc::new(Teardown::default());
    let up = Arc::new(AtomicBool::new(false));
    take_signals(&teardown, &up, events.clone())?;
    let ended = start(&setup, build, &teardown, events, &queue).and_then(|running| {
        // From here on a signal is an event, no longer the end of a start.
        up.store(true, Ordering::SeqCst);
        ready().map_err(|error| SessionError::system("whoever started the mount is gone", error))?;
        Ok(running)
    });
    let running = match ended {
        Ok(running) => running,
        Err(error) => {
            if let Err(left) = teardown.force() {
                tracing::error!("{left}");
            }
            return Err(error);
        }
    };
    tracing::info!("{} is mounted on {}", setup.request.source, setup.request.point.display());
    Ok(serve(&setup, running, &teardown, &queue))
}

/// The first SIGINT or SIGTERM asks for the orderly end, or ends a start at once. The second ends everything at once.
fn take_signals(teardown: &Arc<Teardown>, up: &Arc<AtomicBool>, events: mpsc::Sender<Event>) -> Result<()> {
    let (teardown, up) = (teardown.clone(), up.clone());
    signals::start(move |count| {
        if count == 1 && up.load(Ordering::SeqCst) {
            // The receiver lives as long as the process.
            let _ = events.send(Event::Stop);
            return;
        }
        if let Err(error) = teardown.force() {
            tracing::error!("{error}");
        }
        process::exit_now(if count == 1 { 0 } else { FORCED });
    })
}

struct Running {
    device: Device,
    close: Box<dyn FnOnce() + Send>,
    closing: Duration,
}

fn start<F: fuser::Filesystem + Send + 'static>(
    setup: &Setup,
    build: impl FnOnce() -> common::Result<Served<F>> + Send + 'static,
    teardown: &Teardown,
    events: mpsc::Sender<Event>,
    queue: &mpsc::Receiver<Event>,
) -> Result<Running> {
    let begin = Instant::now();
    let source = &setup.request.source;
    let state = StateDir::create(&setup.state_dir)?;
    let served = process::within(setup.limit, build)
        .map_err(|error| SessionError::system("a thread to build the mount", error))?
        .ok_or_else(|| {
            SessionError::refused(format!(
                "{source} did not answer within {} s; check the address and the network, or raise alluxio.fuse.mount.timeout",
                setup.limit.as_secs()
            ))
        })?
        .map_err(|error| SessionError::refused(error.message()))?;
    let Served {
        filesystem, threads, read_only, look, passthrough, web, notify, uploads, close, closes_itself, ..
    } = served;
    let closing = if closes_itself { UPLOADING } else { CLOSING };
    let mut request = setup.request.clone();
    request.read_only |= read_only;
    let (connection, device, created) = teardown.mount(&request)?;
    let same =
        connection.try_clone().map_err(|error| SessionError::system("the descriptor of the connection", error))?;
    let filesystem = InTurn::new(filesystem, same, look);
    serve_requests(setup, filesystem, threads, notify, connection, events)?;
    let record = Record {
        mount_point: setup.request.point.clone(),
        source: source.clone(),
        device: device.to_string(),
        pid: std::process::id(),
        started: common::Timestamp::now().sec,
        created,
        version: env!("CARGO_PKG_VERSION").into(),
        log_file: setup.log_file.clone(),
    };
    let metrics_address = web();
    teardown.record(|| {
        let file = state.write(&record)?;
        let answer = move |question| match question {
            Question::Status => {
                let status = status(begin, &passthrough, metrics_address.clone());
                Answer::Status(Status { uploads: uploads(), ..status })
            }
            Question::LogLevel { name, level } => Answer::LogLevel(LogLevel::set(&name, &level)),
        };
        control::serve(file.socket(), answer)?;
        Ok(file)
    })?;
    if setup.readahead_kib > 0 {
        let kib = setup.readahead_kib;
        // Waits for the node in /sys, so not here; without it only the window is smaller.
        let _ = process::within(Duration::ZERO, move || kernel::set_readahead(device, kib));
    }
    // Never less than a moment, however long the build took.
    let left = setup.limit.saturating_sub(begin.elapsed()).max(Duration::from_secs(2));
    let answer = process::probe(&setup.request.point, left);
    let point = setup.request.point.display();
    match queue.try_recv() {
        Ok(Event::Ended(Err(error))) => return Err(SessionError::system(format!("serving {point}"), error)),
        Ok(Event::Ended(Ok(()))) => {
            return Err(SessionError::refused(format!("{point} was unmounted during the start")));
        }
        Ok(Event::Stop) | Err(_) => {}
    }
    match answer {
        Ok(found) if found.device == device => Ok(Running { device, close, closing }),
        Ok(_) => Err(SessionError::refused(format!("{point}: something else was mounted there at the same moment"))),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            kernel::abort(device);
            Err(SessionError::refused(format!("{point}: the new mount does not answer; is {source} reachable?")))
        }
        Err(error) => Err(SessionError::system(format!("{point}: the new mount does not work"), error)),
    }
}

/// Starts the threads that answer the kernel. The end of it is an event.
fn serve_requests<F: fuser::Filesystem + Send + 'static>(
    setup: &Setup,
    filesystem: F,
    threads: usize,
    notify: Box<dyn FnOnce(fuser::Notifier) + Send>,
    connection: OwnedFd,
    events: mpsc::Sender<Event>,
) -> Result<()> {
    let acl = match (setup.root_and_owner, setup.request.allow_other) {
        (true, _) => fuser::SessionACL::RootAndOwner,
        (false, true) => fuser::SessionACL::All,
        (false, false) => fuser::SessionACL::Owner,
    };
    let mut config = fuser::Config::default();
    config.acl = acl;
    config.n_threads = Some(threads.max(1));
    let serve = move || {
        let ended = fuser::Session::from_fd(filesystem, connection, acl, config).and_then(|session| {
            notify(session.notifier());
            session.run()
        });
        // The receiver lives as long as the process.
        let _ = events.send(Event::Ended(ended));
    };
    match std::thread::Builder::new().name("fuse".into()).spawn(serve) {
        Ok(_) => Ok(()),
        Err(error) => Err(SessionError::system("a thread to serve the mount", error)),
    }
}

type Passthrough = Arc<dyn Fn() -> (bool, String) + Send + Sync>;

fn status(begin: Instant, passthrough: &Passthrough, metrics_address: Option<String>) -> Status {
    use common::metrics::PassthroughBacking;
    let metrics = metrics();
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    let (passthrough, passthrough_reason) = passthrough();
    let seen = metrics.cached_read_bytes.get() + metrics.missed_read_bytes.get() > 0;
    Status {
        uptime_seconds: begin.elapsed().as_secs(),
        cache_used_bytes: bytes(metrics.cached_bytes.get()),
        cache_capacity_bytes: bytes(metrics.cache_capacity_bytes.get()),
        cache_hit_rate: seen.then(|| metrics.cache_hit_rate()),
        passthrough,
        passthrough_reason,
        passthrough_opens: [PassthroughBacking::Source, PassthroughBacking::Cache]
            .map(|by| metrics.passthrough_opens.of(by).get())
            .iter()
            .sum(),
        open_files: metrics.open_files.get(),
        memory_used_bytes: bytes(metrics.budget_used_bytes.get()),
        memory_limit_bytes: bytes(metrics.budget_limit_bytes.get()),
        metrics_address,
        uploads: Uploads::default(),
    }
}

/// Waits for the end and makes it.
fn serve(setup: &Setup, running: Running, teardown: &Teardown, queue: &mpsc::Receiver<Event>) -> i32 {
    let point = setup.request.point.display();
    let mut code = 0;
    match queue.recv() {
        Ok(Event::Ended(Ok(()))) => tracing::info!("{point} was unmounted"),
        Ok(Event::Ended(Err(error))) => {
            tracing::error!("{point}: the connection to the kernel failed: {error}");
            code = 1;
        }
        // A queue without senders would mean that nobody serves any more.
        Ok(Event::Stop) | Err(_) => {
            tracing::info!("stopping; {point} is being unmounted");
            if let Err(error) = teardown.detach() {
                tracing::error!("{error}");
                code = 1;
            }
            drain(running.device, queue);
        }
    }
    let close = running.close;
    match process::within(running.closing, close) {
        Ok(Some(())) => {}
        _ => tracing::warn!("closing took more than {:?} and is left to the end of the process", running.closing),
    }
    if let Err(error) = teardown.finish() {
        tracing::error!("{error}");
        code = 1;
    }
    code
}

/// Waits until what is being answered is answered; then ends the connection, though files may still be open.
fn drain(device: Device, queue: &mpsc::Receiver<Event>) {
    let begin = Instant::now();
    while begin.elapsed() < GRACE {
        match queue.recv_timeout(Duration::from_millis(20)) {
            Ok(Event::Ended(_)) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Event::Stop) | Err(RecvTimeoutError::Timeout) => {}
        }
        // A moment for a program that is between two calls.
        if begin.elapsed() > GRACE / 10 && kernel::unanswered(device) == Some(0) {
            break;
        }
    }
    tracing::warn!("files on the mount are still open; the connection is ended");
    if kernel::abort(device) {
        // Without an answer the end of the process closes the connection.
        let _ = queue.recv_timeout(GRACE);
    }
}
