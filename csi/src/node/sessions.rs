//! The sessions of this node: a file system mounted at a source path, served by a process of the mounter, and bound to any
//! number of targets.
//!
//! Invariants:
//! - a session's gate is held while it is started, mended or closed, and by nobody who waits without bound: all that may
//!   block in the kernel runs on threads of its own with a limit;
//! - its record exists before its mount and goes after it;
//! - what calls of gRPC are told of its health was seen by the keeper ([`super::keeper`]); none of them looks itself;
//! - a session is closed only when everything that was written through it is in the storage;
//! - the connection is kept here as well as in the mounter, so that the end of one of both loses no request; when nobody can
//!   serve it any more it is given up, so that programs get an error instead of waiting forever.

use super::{
    backing::Desk,
    records::Records,
    sys::{self, FuseFlags, Made, blocking},
};
use crate::{keys::Settings, volume::Volume};
use common::{
    conf::{self, MountOptions, keys},
    handover::{self, Answer, Order, Session},
    mountinfo::Device,
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::Status;

/// How long an exchange with the mounter may take, when it has nothing to do but to answer.
pub const EXCHANGE: Duration = Duration::from_secs(5);

/// How long mount(2) and umount(2) may take.
const MOUNTING: Duration = Duration::from_secs(15);

/// What the keeper saw of a session.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The figures of statfs, when they were seen last.
    pub space: Option<Space>,
    /// Why it does not work now.
    pub trouble: Option<String>,
    /// Whether it does not answer, rather than being gone.
    pub stuck: bool,
}

/// Figures of statfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Space {
    pub total: i64,
    pub available: i64,
    pub used: i64,
    pub files: i64,
    pub files_free: i64,
}

/// What became of what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It is in the storage.
    All,
    /// Something is not, and the process that serves the session goes on with it.
    Pending(String),
    /// Something is not, and waits on this host for a process that goes on with it.
    Unserved(String),
    /// Nobody can say.
    Unknown(String),
}

/// A mount that is served.
#[derive(Debug)]
pub struct Live {
    /// The device of the mount.
    pub device: Device,
    /// Our copy of its connection; none when it could not be had.
    pub connection: Option<OwnedFd>,
    /// Registers files on it.
    desk: Option<Arc<Desk>>,
}

impl Live {
    /// A mount whose connection could not be had.
    pub fn of(device: Device) -> Self {
        Self { device, connection: None, desk: None }
    }
}

/// What changes under the gate.
#[derive(Debug, Default)]
pub struct State {
    /// The mount, while there is one.
    pub live: Option<Live>,
    /// The credentials, as far as they are known.
    pub secrets: Option<Settings>,
    /// Closed for good: whoever waited looks for a new one.
    pub closed: bool,
    /// Starts that failed in a row, and when the next is due.
    pub failures: u32,
    /// See `failures`.
    pub retry_at: Option<Instant>,
    /// Since when no process serves it.
    pub dead_since: Option<Instant>,
}

/// A session.
#[derive(Debug)]
pub struct Slot {
    /// Its key.
    pub key: String,
    /// What it serves.
    pub volume: Volume,
    /// Where it is mounted.
    pub source: PathBuf,
    /// Guards its changes.
    pub gate: tokio::sync::Mutex<State>,
    /// What was seen last.
    pub seen: Mutex<Seen>,
    /// Since when nobody uses it.
    pub idle: Mutex<Option<Instant>>,
    /// Whether it was started by a call, so that the keeper has to bind its other targets again.
    pub unbound: std::sync::atomic::AtomicBool,
    /// Whether somebody looks at it right now.
    pub looking: std::sync::atomic::AtomicBool,
}

impl Slot {
    /// Whether the credentials are at hand with which it can be started anew. One that somebody works at can.
    pub async fn can_start(&self) -> bool {
        match self.gate.try_lock() {
            Ok(state) => self.volume.identity.is_empty() || state.secrets.is_some(),
            Err(_) => true,
        }
    }
}

/// All sessions.
#[derive(Debug)]
pub struct Sessions {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    records: Records,
    mount_dir: PathBuf,
    socket: PathBuf,
    most: usize,
    limit: Duration,
}

/// The conf of a volume, for what the plugin itself must know of it.
fn conf(volume: &Volume) -> conf::Conf {
    let mut builder = conf::Conf::builder();
    for (key, value) in &volume.properties {
        builder = builder.set(key, value, conf::Source::CommandLine("javaOptions".into()));
    }
    if let Ok(options) = MountOptions::parse(volume.options.iter().map(String::as_str)) {
        builder = builder.mount_options(&options);
    }
    // What was checked when the volume came in loads again.
    builder.load().unwrap_or_else(|_| conf::Conf::defaults())
}

/// How the mounts of a volume are made.
pub fn flags(volume: &Volume) -> FuseFlags {
    FuseFlags {
        read_only: volume.readers,
        noexec: volume.noexec,
        noatime: volume.noatime,
        max_read: conf(volume).get(&keys::fuse::MAX_REQUEST_SIZE).bytes(),
    }
}

impl Sessions {
    /// None yet.
    pub fn new(records: Records, mount_dir: &Path, socket: &Path, most: u32, limit: Duration) -> Self {
        Self {
            slots: Mutex::default(),
            records,
            mount_dir: mount_dir.to_owned(),
            socket: socket.to_owned(),
            most: most as usize,
            limit,
        }
    }

    /// The socket of the mounter.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The session with this key.
    pub fn get(&self, key: &str) -> Option<Arc<Slot>> {
        self.slots.lock().get(key).cloned()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().values().cloned().collect()
    }

    /// The session for this volume, which may not be started yet.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED: there are too many.
    pub fn slot(&self, volume: &Volume) -> Result<Arc<Slot>, Status> {
        let key = volume.key();
        let mut slots = self.slots.lock();
        if let Some(slot) = slots.get(&key) {
            return Ok(slot.clone());
        }
        if slots.len() >= self.most {
            return Err(Status::resource_exhausted(format!(
                "this node has {} sessions already; raise --max-sessions, or let volumes share options and credentials",
                slots.len()
            )));
        }
        let slot = Arc::new(Slot {
            source: self.mount_dir.join(&key),
            volume: volume.clone(),
            gate: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
            idle: Mutex::default(),
            looking: std::sync::atomic::AtomicBool::new(false),
            unbound: std::sync::atomic::AtomicBool::new(false),
            key: key.clone(),
        });
        slots.insert(key, slot.clone());
        Ok(slot)
    }

    /// The session of this volume, mounted and served. `secrets`: as they came with the call.
    ///
    /// # Errors
    /// What the storage or the mounter says against it.
    pub async fn ensure(&self, volume: &Volume, secrets: &Settings) -> Result<(Arc<Slot>, Device), Status> {
        loop {
            let slot = self.slot(volume)?;
            {
                let seen = slot.seen.lock();
                if seen.stuck {
                    let trouble = seen.trouble.clone().unwrap_or_default();
                    return Err(Status::unavailable(format!("{}: {trouble}", volume.shown())));
                }
            }
            let mut state = slot.gate.lock().await;
            if state.closed {
                continue;
            }
            state.secrets = Some(secrets.clone());
            if let Some(live) = &state.live {
                let device = live.device;
                drop(state);
                return Ok((slot, device));
            }
            let device = self.start(&slot, &mut state).await?;
            slot.unbound.store(true, std::sync::atomic::Ordering::Release);
            drop(state);
            return Ok((slot, device));
        }
    }

    /// Mounts a session and has it served. Whatever is left of an earlier mount is taken away. Needs the gate.
    ///
    /// # Errors
    /// See [`Sessions::ensure`]. Nothing of it is left mounted then.
    pub async fn start(&self, slot: &Arc<Slot>, state: &mut State) -> Result<Device, Status> {
        match self.try_start(slot, state).await {
            Ok(device) => {
                works(slot, state);
                Ok(device)
            }
            Err(status) => {
                state.failures = state.failures.saturating_add(1);
                let pause = Duration::from_secs(1 << state.failures.min(6)).min(Duration::from_secs(60));
                state.retry_at = Some(Instant::now() + pause);
                let mut seen = slot.seen.lock();
                seen.trouble = Some(status.message().to_owned());
                seen.stuck = false;
                Err(status)
            }
        }
    }

    async fn try_start(&self, slot: &Arc<Slot>, state: &mut State) -> Result<Device, Status> {
        let secrets = secrets(slot, state)?;
        let (records, volume, source) = (self.records.clone(), slot.volume.clone(), slot.source.clone());
        let prepared = blocking("mounting", MOUNTING, move || {
            records
                .write_session(&volume)
                .map_err(|error| Status::internal(format!("the record of the session: {error}")))?;
            sys::detach(&source)?;
            std::fs::create_dir_all(&source)
                .map_err(|error| Status::internal(format!("{}: {error}", source.display())))?;
            let flags = flags(&volume);
            let made = sys::mount_fuse(&source, flags)?;
            let kib = conf(&volume).get(&keys::fuse::READAHEAD_KB);
            if kib > 0 {
                let device = made.device;
                // Without it only the window is smaller.
                let _ =
                    std::thread::Builder::new().name("readahead".into()).spawn(move || sys::set_readahead(device, kib));
            }
            Ok(made)
        })
        .await?;
        let order = Order::Serve(slot.volume.session(&secrets, self.limit.as_secs().max(1)));
        let desk = self.desk(prepared.connection.as_fd());
        let served = match self.hand_over(order, &prepared.connection, desk.as_ref()).await {
            // A storage that takes no writes: the kernel refuses them itself, and keeps attributes across reads that pass through.
            Ok(false) if !slot.volume.readers => {
                let (source, flags) = (slot.source.clone(), flags(&slot.volume));
                blocking("mounting read-only", MOUNTING, move || sys::refuse_writes(&source, flags)).await
            }
            other => other.map(drop),
        };
        if let Err(status) = served {
            let (source, device) = (slot.source.clone(), prepared.device);
            drop(prepared);
            sys::abort(device);
            // The failure is told; what stays is taken away by the next start.
            let _ = blocking("unmounting", MOUNTING, move || sys::detach(&source)).await;
            return Err(status);
        }
        let Made { connection, device } = prepared;
        state.live = Some(Live { device, connection: Some(connection), desk });
        tracing::info!("session {} serves {} as device {device}", slot.key, slot.volume.shown());
        Ok(device)
    }

    /// Has the mounter serve what was made; answers whether it takes writes.
    async fn hand_over(&self, order: Order, connection: &OwnedFd, desk: Option<&Arc<Desk>>) -> Result<bool, Status> {
        let connection =
            connection.try_clone().map_err(|error| Status::resource_exhausted(format!("a descriptor: {error}")))?;
        let with = [Some(connection), line(desk)].into_iter().flatten().collect();
        // A moment more than the mounter has, so that its own word arrives.
        let answer = self.ask(order, with, self.limit + EXCHANGE).await?;
        match answer.0 {
            Answer::Serving { writes, .. } => Ok(writes),
            Answer::Failed { message, storage: true } => Err(Status::failed_precondition(message)),
            Answer::Failed { message, storage: false } => Err(Status::unavailable(message)),
            other => Err(Status::internal(format!("the mounter answers {other:?} to an order to serve"))),
        }
    }

    /// Gives an order to the mounter.
    ///
    /// # Errors
    /// UNAVAILABLE: there is no mounter; DEADLINE_EXCEEDED: it does not answer.
    pub async fn ask(
        &self,
        order: Order,
        descriptors: Vec<OwnedFd>,
        limit: Duration,
    ) -> Result<(Answer, Vec<OwnedFd>), Status> {
        let socket = self.socket.clone();
        blocking("asking the mounter", limit + Duration::from_secs(1), move || {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            handover::order(&socket, &order, &descriptors, limit).map_err(|error| no_mounter(&socket, &error))
        })
        .await
    }

    /// Asks the mounter to put what was written through a session into the storage, within `limit`.
    pub async fn settle(&self, key: &str, limit: Duration) -> Settled {
        let order = Order::Settle { key: key.to_owned(), limit_seconds: limit.as_secs().max(1) };
        match self.ask(order, vec![], limit + EXCHANGE * 2).await {
            Ok((Answer::Settled, _)) => Settled::All,
            Ok((Answer::Pending { message, served: true }, _)) => Settled::Pending(message),
            Ok((Answer::Pending { message, served: false }, _)) => Settled::Unserved(message),
            Ok((Answer::Failed { message, .. }, _)) => Settled::Unknown(message),
            Ok((other, _)) => Settled::Unknown(format!("the mounter answers {other:?}: is it of the same version?")),
            Err(status) => Settled::Unknown(status.message().to_owned()),
        }
    }

    /// Ends a session: its mount, its process, its record. Needs the gate, and nothing written that is not in the storage
    /// ([`Sessions::settle`]).
    ///
    /// # Errors
    /// Something of it is left; it can be closed again.
    pub async fn close(&self, slot: &Arc<Slot>, state: &mut State) -> Result<(), Status> {
        let (source, records, key) = (slot.source.clone(), self.records.clone(), slot.key.clone());
        let unmounting = source.clone();
        blocking("unmounting", MOUNTING, move || sys::unmount(&unmounting, 0)).await?;
        state.live = None;
        // A mounter that is gone has nothing to stop.
        let _ = self.ask(Order::Stop { key: key.clone() }, vec![], EXCHANGE * 3).await;
        blocking("removing a record", EXCHANGE, move || {
            sys::remove_target(&source)?;
            records.remove_session(&key).map_err(|error| Status::internal(format!("the record of a session: {error}")))
        })
        .await?;
        state.closed = true;
        self.slots.lock().remove(&slot.key);
        tracing::info!("session {} is closed", slot.key);
        Ok(())
    }

    /// Has a new process go on with the connection of a session whose process died. Programs see a pause. Needs the gate.
    ///
    /// # Errors
    /// UNAVAILABLE: it may work later; anything else: it does not work.
    pub async fn take_over(&self, slot: &Arc<Slot>, state: &mut State) -> Result<(), Status> {
        let secrets = secrets(slot, state)?;
        let Some(Live { connection: Some(connection), desk, .. }) = &state.live else {
            return Err(Status::failed_precondition("its connection is not held"));
        };
        let session = Session { takeover: true, ..slot.volume.session(&secrets, self.limit.as_secs().max(1)) };
        match self.hand_over(Order::Serve(session), connection, desk.as_ref()).await {
            Ok(_) => {
                works(slot, state);
                tracing::info!("session {} is gone on with by a new process", slot.key);
                Ok(())
            }
            // The storage may be back soon, and the mounter.
            Err(status) if matches!(status.code(), tonic::Code::FailedPrecondition | tonic::Code::DeadlineExceeded) => {
                Err(Status::unavailable(status.message().to_owned()))
            }
            Err(status) => Err(Status::failed_precondition(status.message().to_owned())),
        }
    }

    fn desk(&self, connection: std::os::fd::BorrowedFd<'_>) -> Option<Arc<Desk>> {
        // The mounter's user is the owner of its socket.
        let user = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&self.socket).ok()?);
        Desk::new(connection, user).ok()
    }

    /// Gives up the mount of a session that nobody can serve. Programs that use it get an error. Needs the gate.
    pub async fn give_up(&self, slot: &Arc<Slot>, state: &mut State) {
        if let Some(live) = state.live.take() {
            let device = live.device;
            drop(live);
            sys::abort(device);
        }
        // It also drops the mounter's copy of the connection.
        let _ = self.ask(Order::Stop { key: slot.key.clone() }, vec![], EXCHANGE).await;
    }

    /// Takes a session over that an earlier plugin made, with its mount as it is. Needs the gate.
    pub async fn adopt(&self, slot: &Arc<Slot>, state: &mut State, device: Device) -> bool {
        match self.ask(Order::Take { key: slot.key.clone() }, vec![], EXCHANGE).await {
            Ok((Answer::Taken { session }, mut descriptors)) => {
                state.secrets = Some(session.secrets.into_iter().collect());
                let connection = descriptors.pop();
                let desk = connection.as_ref().and_then(|connection| self.desk(connection.as_fd()));
                if let Some(line) = line(desk.as_ref()) {
                    let order = Order::Line { key: slot.key.clone() };
                    if let Err(status) = self.ask(order, vec![line], EXCHANGE).await {
                        // It reads through its process then.
                        tracing::warn!("session {}: passthrough: {}", slot.key, status.message());
                    }
                }
                state.live = Some(Live { device, connection, desk });
                true
            }
            Ok(_) => false,
            Err(status) => {
                tracing::warn!("session {}: {}", slot.key, status.message());
                false
            }
        }
    }
}

/// Notes that a session is served.
fn works(slot: &Slot, state: &mut State) {
    (state.failures, state.retry_at, state.dead_since) = (0, None, None);
    *slot.seen.lock() = Seen::default();
}

/// A line for the process of a session; without one it reads everything itself.
fn line(desk: Option<&Arc<Desk>>) -> Option<OwnedFd> {
    desk?.line().inspect_err(|error| tracing::warn!("no passthrough: {error}")).ok()
}

fn secrets(slot: &Slot, state: &State) -> Result<Settings, Status> {
    match (&state.secrets, slot.volume.identity.is_empty()) {
        (Some(secrets), _) => Ok(secrets.clone()),
        (None, true) => Ok(Settings::new()),
        (None, false) => Err(Status::unavailable(
            "the credentials are not known any more; kubelet brings them with the next publish (requiresRepublish), or start the pod anew",
        )),
    }
}

/// What a failure to reach the mounter means.
fn no_mounter(socket: &Path, error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Status::unavailable(format!(
            "no mounter listens at {}: start alluxio-fuse serve --fd-socket {} (in Kubernetes: look at the mounter's pod on this node)",
            socket.display(),
            socket.display()
        )),
        io::ErrorKind::TimedOut => {
            Status::deadline_exceeded(format!("the mounter at {} does not answer in time", socket.display()))
        }
        _ => Status::unavailable(format!("the mounter at {}: {error}", socket.display())),
    }
}
