//! `alluxio-fuse serve`: the mounter ([`crate::session::mounter`]), and the process that it starts for each session, which
//! hears over its standard input what to serve.
//!
//! Invariants: a session's process has its secrets from that socket alone, and cannot be looked into by others of its user
//! (`PR_SET_DUMPABLE`); it never mounts nor unmounts, and ends when the kernel ends the connection.

use super::{Failure, ServeArgs, mount};
use crate::{
    adapter::{Adapter, InTurn},
    assemble::{CLUSTER_SCHEME, MountPlan},
    fs::trail::{Agreed, Held, Trail},
    passthrough::Delegate,
    session::{SessionError, mounter, process, run::Served, signals, takeover},
};
use common::{
    ErrorKind, UfsUri,
    conf::{Conf, MountOptions, Role, Source, keys},
    handover::{Answer, Order, Session, Talk},
    logging::{self, LogOptions},
    redact,
};
use std::{
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// How long the order may take to arrive.
const ORDER: Duration = Duration::from_secs(10);
/// How long the mounter may say nothing before it is asked anew.
const BETWEEN: Duration = Duration::from_secs(3600);
/// How long the end may take.
const CLOSING: Duration = Duration::from_secs(30);

/// Runs the mounter, or one of its sessions.
pub(super) fn serve(arguments: &ServeArgs) -> Result<i32, Failure> {
    signals::block()?;
    process::prepare();
    let conf = super::configuration(None)?;
    logging::init(&LogOptions {
        filter: conf.get(&keys::fuse::LOG_LEVEL).0,
        file: None,
        json: conf.get(&keys::fuse::LOG_FORMAT) == keys::fuse::LogFormat::Json,
    })
    .map_err(|error| Failure::Line(error.to_string()))?;
    match (&arguments.session, &arguments.fd_socket) {
        (Some(key), _) => session(key),
        (None, Some(socket)) => {
            let (caches, stage) = (conf.get(&keys::user::CLIENT_CACHE_DIRS), conf.get(&keys::user::STAGE_DIR));
            Ok(mounter::run(socket, caches, stage, trails(&conf))?)
        }
        // clap has seen to it that one of them is there.
        (None, None) => Err(Failure::Line("no socket given: alluxio-fuse serve --fd-socket <path>".into())),
    }
}

enum Event {
    Up,
    Stop,
    Ended(io::Result<()>),
}

fn session(key: &str) -> Result<i32, Failure> {
    undumpable();
    // SAFETY: the mounter passes its socket as standard input, which nothing else in this process uses or closes.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    let wrong = |error: io::Error| Failure::Line(format!("session {key}: the order: {error}"));
    let (order, descriptors) = Talk::new(stream.try_clone().map_err(wrong)?, ORDER).hear::<Order>().map_err(wrong)?;
    let mut descriptors = descriptors.into_iter();
    let (Order::Serve(session), Some(connection), line) = (order, descriptors.next(), descriptors.next()) else {
        return Err(Failure::Line(format!("session {key}: an order without a connection")));
    };
    let limit = Duration::from_secs(session.limit_seconds.clamp(1, 3600));
    let (events, queue) = mpsc::channel();
    let stops = events.clone();
    signals::start(move |_| {
        // The receiver lives as long as the process.
        let _ = stops.send(Event::Stop);
    })?;
    let delegate = line.map(Delegate::new);
    let started = start(session, connection, delegate.clone(), limit, events, &queue);
    let answer = match &started {
        Ok(up) => Answer::Serving { pid: std::process::id(), writes: up.writes },
        Err(refused) => Answer::Failed { message: refused.message.clone(), storage: refused.storage },
    };
    // A mounter that is gone has taken this process with it.
    let _ = stream.try_clone().and_then(|stream| Talk::new(stream, ORDER).say(&answer, &[]));
    let Up { close, settle, .. } = started.map_err(|refused| Failure::Line(refused.message))?;
    let orders = std::thread::Builder::new()
        .name("orders".into())
        .spawn(move || take_orders(&stream, &settle, delegate.as_ref()));
    orders.map_err(|error| Failure::Line(format!("session {key}: a thread for orders: {error}")))?;
    let code = match queue.recv() {
        Ok(Event::Ended(Err(error))) => {
            tracing::error!("session {key}: the connection to the kernel failed: {error}");
            1
        }
        Ok(Event::Ended(Ok(()))) => {
            tracing::info!("session {key} was unmounted");
            0
        }
        Ok(Event::Stop | Event::Up) | Err(_) => {
            tracing::info!("session {key} is stopped");
            0
        }
    };
    if !matches!(process::within(CLOSING, close), Ok(Some(()))) {
        tracing::warn!("session {key}: closing took more than {} s", CLOSING.as_secs());
    }
    Ok(code)
}

/// A session that is served.
struct Up {
    writes: bool,
    settle: Settle,
    close: Box<dyn FnOnce() + Send>,
}

/// Why a session is not served.
struct Refused {
    message: String,
    /// Whether the storage or its configuration is the cause.
    storage: bool,
}

impl Refused {
    fn here(message: String) -> Self {
        Self { message, storage: false }
    }
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self { message, storage: true }
    }
}

type Settle = Arc<dyn Fn(Duration) -> common::Result<()> + Send + Sync>;

/// Does what the mounter asks of a session that is served, until that is gone. Each order comes with a socket of its own for
/// its answer, so that one that nobody waits for any more is never taken for another's.
fn take_orders(stream: &UnixStream, settle: &Settle, delegate: Option<&Arc<Delegate>>) {
    loop {
        let Ok(stream) = stream.try_clone() else { return };
        let (order, descriptors) = match Talk::new(stream, BETWEEN).hear::<Order>() {
            Ok(heard) => heard,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => continue,
            Err(_) => return,
        };
        let mut descriptors = descriptors.into_iter();
        let Some(answer) = descriptors.next().map(UnixStream::from) else { continue };
        if let (Order::Line { .. }, Some(delegate), Some(line)) = (&order, delegate, descriptors.next()) {
            delegate.replace(line);
        }
        let settle = settle.clone();
        let doing = move || {
            let done = match order {
                Order::Settle { limit_seconds, .. } => {
                    match settle(Duration::from_secs(limit_seconds.clamp(1, 3600))) {
                        Ok(()) => Answer::Settled,
                        Err(error) => Answer::Pending { message: redact::text(error.message()), served: true },
                    }
                }
                Order::Line { .. } => Answer::Done,
                _ => Answer::Failed {
                    message: "a session that is served does not know this order".into(),
                    storage: false,
                },
            };
            // Whoever asked may have given up.
            let _ = Talk::new(answer, ORDER).say(&done, &[]);
        };
        // Without a thread there is no answer, and the mounter says so.
        let _ = std::thread::Builder::new().name("order".into()).spawn(doing);
    }
}

/// Others of this user cannot look into the process, whose memory holds credentials.
fn undumpable() {
    // SAFETY: prctl with PR_SET_DUMPABLE takes integers only and touches no memory of ours.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
}

/// Builds the file system and serves it.
fn start(
    session: Session,
    connection: OwnedFd,
    delegate: Option<Arc<Delegate>>,
    limit: Duration,
    events: mpsc::Sender<Event>,
    queue: &mpsc::Receiver<Event>,
) -> Result<Up, Refused> {
    let shown = redact::uri(&session.source).into_owned();
    if let Some(group) = session.group {
        common::attr::set_object_group(group);
    }
    let plan = plan(&session).map_err(|error| redact::text(&error.to_string()))?;
    let trail = trails(&plan.conf).join(&session.key);
    let held = match session.takeover {
        true => Some(held(&trail).map_err(Refused::here)?),
        false => None,
    };
    drop(session);
    predecessor_ended(&plan.conf.get(&keys::user::STAGE_DIR), limit)?;
    let served = process::within(limit, move || mount::served(plan, false))
        .map_err(|error| format!("a thread to build the file system: {error}"))?
        .ok_or_else(|| {
            format!("{shown} did not answer within {} s; check the address and the network", limit.as_secs())
        })?
        .map_err(|error| error.message().to_owned())?;
    let Served { mut filesystem, threads, read_only, look, notify, settle, close, .. } = served;
    let same = connection.try_clone().map_err(|error| format!("the descriptor of the connection: {error}"))?;
    if let Some(delegate) = delegate {
        filesystem.fs().passthrough().delegate_to(delegate);
    }
    if let Some(held) = &held {
        filesystem.resume(held);
        tracing::info!("{shown}: {} nodes and {} open files are gone on with", held.nodes.len(), held.files.len());
    }
    match Trail::begin(&trail, held.as_ref().unwrap_or(&Held::default())) {
        Ok(trail) => filesystem.fs().note_in(trail),
        Err(error) => tracing::warn!("{error}; when this process dies the volume is mounted anew"),
    }
    let agreed = held.and_then(|held| held.agreed);
    attend(InTurn::new(filesystem, same, look), threads, notify, (connection, agreed), events)?;
    match queue.recv_timeout(limit) {
        Ok(Event::Up) => Ok(Up { writes: !read_only, settle, close }),
        Ok(Event::Ended(Err(error))) => Err(Refused::here(format!("the connection to the kernel: {error}"))),
        Ok(Event::Ended(Ok(()))) => Err("it was unmounted during the start".to_owned().into()),
        Ok(Event::Stop) => Err("it was stopped during the start".to_owned().into()),
        Err(_) => Err("the kernel does not begin the connection".to_owned().into()),
    }
}

/// Waits for the end of a process that served the session before and was killed just now. Its stage would count as in use until
/// then, and this process would not find what was left in it.
fn predecessor_ended(stage: &Path, limit: Duration) -> Result<(), Refused> {
    let end = Instant::now() + limit;
    loop {
        match worker::stage::left_behind(stage) {
            Err(error) if error.kind() == ErrorKind::Busy && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) if error.kind() == ErrorKind::Busy => {
                return Err(format!("{}: the process that served this before does not end", error.message()).into());
            }
            // Whatever else is wrong with it is told when it is opened.
            _ => return Ok(()),
        }
    }
}

/// Where it is written down what the kernel holds of each session.
fn trails(conf: &Conf) -> PathBuf {
    conf.get(&keys::fuse::STATE_DIR).join("sessions")
}

/// What the kernel holds from the process that died.
fn held(trail: &Path) -> Result<Held, String> {
    match Held::read(trail) {
        Ok(Some(held)) => Ok(held),
        Ok(None) => Err(format!("{}: nothing says what the kernel holds of the session", trail.display())),
        Err(error) => Err(format!("{}: {error}", trail.display())),
    }
}

/// What to serve, from the order and this process's own configuration.
fn plan(session: &Session) -> Result<MountPlan, Failure> {
    let options = MountOptions::parse(session.options.iter().map(String::as_str))?;
    let source = |what: &str| Source::CommandLine(what.to_owned());
    let mut builder = Conf::builder().process(Role::Fuse);
    for (key, value) in &session.properties {
        builder = builder.set(key, value, source("the volume's properties"));
    }
    builder = builder.mount_options(&options);
    for (key, value) in &session.secrets {
        builder = builder.set(key, value, source("the volume's secret"));
    }
    // One port cannot serve the figures of several sessions.
    builder = builder.set(keys::fuse::WEB_PORT.name(), "0", source("serve"));
    let conf = builder.clone().load()?;
    // A cache directory belongs to one process, and so does a stage: each session has its own below those that are
    // configured.
    let dirs: Vec<String> = conf
        .get(&keys::user::CLIENT_CACHE_DIRS)
        .iter()
        .map(|dir| dir.join(&session.key).to_string_lossy().into_owned())
        .collect();
    for dir in &dirs {
        std::fs::create_dir_all(dir)
            .map_err(|error| SessionError::system(format!("the cache directory {dir}"), error))?;
    }
    let stage = conf.get(&keys::user::STAGE_DIR).join(&session.key);
    let conf = builder
        .set(keys::user::CLIENT_CACHE_DIRS.name(), &dirs.join(","), source("serve"))
        .set(keys::user::STAGE_DIR.name(), &stage.to_string_lossy(), source("serve"))
        .load()?;
    for warning in conf.warnings() {
        tracing::warn!("{warning}");
    }
    let uri = match session.source.strip_prefix(&format!("{CLUSTER_SCHEME}://")) {
        Some(rest) => {
            let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
            let configured = conf.get(&keys::cluster::CLUSTER_NAME);
            let name = if name.is_empty() { configured.as_str() } else { name };
            format!("{CLUSTER_SCHEME}://{name}/{path}")
        }
        None => session.source.clone(),
    };
    let uri = UfsUri::parse(&uri).map_err(|error| Failure::Line(redact::text(error.message())))?;
    if uri.scheme() == CLUSTER_SCHEME && conf.get(&keys::cluster::ETCD_ENDPOINTS).is_empty() {
        return Err(Failure::Line(
            "the volume is of a cluster, but the mounter knows no etcd: set alluxio.etcd.endpoints in its configuration, or give the volume ufs".into(),
        ));
    }
    Ok(MountPlan { uri, conf, ufs_options: Vec::new(), read_only: session.read_only })
}

/// Starts the threads that answer the kernel.
fn attend(
    filesystem: InTurn<Adapter>,
    threads: usize,
    notify: Box<dyn FnOnce(fuser::Notifier) + Send>,
    (connection, agreed): (OwnedFd, Option<Agreed>),
    events: mpsc::Sender<Event>,
) -> Result<(), String> {
    let serve = move || {
        let mut config = fuser::Config::default();
        config.acl = fuser::SessionACL::All;
        config.n_threads = Some(threads.max(1));
        let began = match agreed {
            None => fuser::Session::from_fd(filesystem, connection, fuser::SessionACL::All, config),
            Some(agreed) => takeover::session(filesystem, &connection, agreed, config),
        };
        let ended = began.and_then(|session| {
            notify(session.notifier());
            // The receiver lives as long as the process.
            let _ = events.send(Event::Up);
            session.run()
        });
        let _ = events.send(Event::Ended(ended));
    };
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(serve)
        .map(drop)
        .map_err(|error| format!("a thread to serve the connection: {error}"))
}
