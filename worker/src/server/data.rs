//! The data server: accepts connections on TCP and on the domain socket, and serves each by a task of its own.
//!
//! Invariants: the number of connections is bounded, and so is what each may hold (handles, requests, bytes, time); a
//! peer that breaks the protocol loses its connection and nothing else happens.

mod answer;
mod connection;

use super::{namespace::Namespace, options::Limits};
use common::{
    Error, ErrorKind, Result,
    attr::process_owner,
    tls::ServerTls,
    wire::{Socket, peer},
};
use parking_lot::Mutex;
use std::{
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What all connections share.
pub struct DataServer {
    namespace: Arc<Namespace>,
    identity: [u8; 16],
    limits: Limits,
    connections: Arc<Semaphore>,
    /// Set when the worker ends: nothing new is taken.
    draining: CancellationToken,
    /// Set when its patience is over.
    over: CancellationToken,
    tasks: TaskTracker,
    warned: Mutex<Option<Instant>>,
}

impl DataServer {
    /// A server without listeners.
    pub fn new(namespace: Arc<Namespace>, identity: [u8; 16], limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            namespace,
            identity,
            connections: Arc::new(Semaphore::new(limits.connections)),
            limits,
            draining: CancellationToken::new(),
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
            warned: Mutex::new(None),
        })
    }

    /// Accepts TCP connections until the server stops; with `tls`, only those that speak it.
    pub fn listen_tcp(self: &Arc<Self>, listener: TcpListener, tls: Option<ServerTls>) {
        let server = self.clone();
        self.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = server.draining.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, address)) => {
                        let Some(permit) = server.admit() else { continue };
                        let (tls, patience) = (tls.clone(), server.limits.patience);
                        let connected = async move {
                            match tls {
                                Some(tls) => Socket::tls(tls.accept(stream).await?, patience),
                                None => {
                                    let stream = stream.into_std();
                                    Socket::tcp(
                                        stream.map_err(|error| Error::io("prepare a connection", error))?,
                                        patience,
                                    )
                                }
                            }
                        };
                        server.spawn(connected, address.to_string(), permit);
                    }
                    Err(error) => server.cannot_accept(&error).await,
                }
            }
        });
    }

    /// Accepts connections of processes on this host whose user is root, this process's own or in `uids`.
    pub fn listen_domain(self: &Arc<Self>, socket: DomainSocket, uids: Vec<u32>) -> Result<()> {
        socket.listener.set_nonblocking(true).map_err(|error| Error::io(socket.path.display(), error))?;
        let listener = socket.listener.try_clone().map_err(|error| Error::io(socket.path.display(), error))?;
        let listener =
            tokio::net::UnixListener::from_std(listener).map_err(|error| Error::io(socket.path.display(), error))?;
        let server = self.clone();
        self.tasks.spawn(async move {
            // Removed from the file system when the loop ends.
            let socket = socket;
            loop {
                let accepted = tokio::select! {
                    () = server.draining.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) => {
                        let (pid, uid) = match peer(stream.as_fd()) {
                            Ok((pid, uid, _)) => (pid, uid),
                            Err(error) => {
                                server.warn(&error, "a connection to the domain socket is refused");
                                continue;
                            }
                        };
                        if !may_connect(uid, process_owner().0, &uids) {
                            let error = Error::new(
                                ErrorKind::PermissionDenied,
                                format!("user {uid} (process {pid}) is not in alluxio.worker.data.server.domain.socket.allowed.uids"),
                            );
                            server.warn(&error, &format!("a connection to {} is refused", socket.path.display()));
                            continue;
                        }
                        let Some(permit) = server.admit() else { continue };
                        let connected = stream
                            .into_std()
                            .map_err(|error| Error::io("prepare a connection", error))
                            .and_then(|stream| Socket::domain(stream, server.limits.patience));
                        server.spawn(std::future::ready(connected), format!("process {pid}"), permit);
                    }
                    Err(error) => server.cannot_accept(&error).await,
                }
            }
        });
        Ok(())
    }

    /// Takes no more connections and requests, waits for what is under way as long as the limits say, then ends the rest.
    pub async fn stop(&self) {
        self.draining.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.limits.drain, self.tasks.wait()).await.is_err() {
            tracing::warn!("requests that are still under way after {:?} are given up", self.limits.drain);
            self.over.cancel();
            self.tasks.wait().await;
        }
    }

    /// Ends everything where it is.
    pub fn cut(&self) {
        self.draining.cancel();
        self.over.cancel();
    }

    /// Connections that are served now.
    pub fn connections(&self) -> usize {
        self.limits.connections - self.connections.available_permits()
    }

    fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let permit = self.connections.clone().try_acquire_owned().ok();
        if permit.is_none() {
            let error =
                Error::new(ErrorKind::Busy, format!("{} connections are served already", self.limits.connections));
            self.warn(&error, "a connection is refused");
        }
        permit
    }

    fn spawn(
        self: &Arc<Self>,
        connected: impl Future<Output = Result<Socket>> + Send + 'static,
        from: String,
        permit: OwnedSemaphorePermit,
    ) {
        let server = self.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            // A handshake that is under way at the end is not waited for.
            let socket = tokio::select! {
                socket = connected => socket,
                () = server.draining.cancelled() => return,
            };
            let outcome = match socket {
                Ok(socket) => {
                    tokio::select! {
                        outcome = connection::serve(&server, socket, &from) => outcome,
                        () = server.over.cancelled() => Ok(()),
                    }
                }
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::PermissionDenied) => {
                    server.warn(&error, &format!("the connection of {from} is ended"));
                }
                Err(error) => tracing::debug!(%error, "the connection of {from} ended"),
                Ok(()) => {}
            }
        });
    }

    async fn cannot_accept(&self, error: &io::Error) {
        self.warn(&Error::new(ErrorKind::Io, error.to_string()), "connections cannot be accepted for the moment");
        // Out of descriptors, mostly: the connection stays in the queue, and asking again at once would spin.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    /// Warns, at most once a second: who breaks the protocol must not fill the log.
    fn warn(&self, error: &Error, what: &str) {
        let mut last = self.warned.lock();
        if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
            *last = Some(Instant::now());
            drop(last);
            tracing::warn!(%error, "{what}");
        } else {
            drop(last);
            tracing::debug!(%error, "{what}");
        }
    }
}

/// Whether a process of `uid` is served by one of `own`.
fn may_connect(uid: u32, own: u32, others: &[u32]) -> bool {
    uid == 0 || uid == own || others.contains(&uid)
}

/// A domain socket that listens; its name goes when it is dropped.
#[derive(Debug)]
pub struct DomainSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl DomainSocket {
    /// Listens at `path`. A socket that nobody answers at any more is replaced.
    ///
    /// # Errors
    /// One line: the path is too long, taken by something else or by a process that answers, or may not be made.
    pub fn bind(path: &Path) -> Result<Self> {
        const KEY: &str = "alluxio.worker.data.server.domain.socket.address";
        let failed = |why: String| Error::new(ErrorKind::InvalidArgument, format!("{KEY}={}: {why}", path.display()));
        // The size of sun_path, less the byte that ends it.
        if path.as_os_str().len() > 107 {
            return Err(failed("longer than the 107 bytes that a domain socket's name may have".into()));
        }
        let io = |error: io::Error| Error::io(format_args!("{KEY}={}", path.display()), error);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(io)?;
                }
                _ => {
                    return Err(failed("another process answers there; give this worker an address of its own".into()));
                }
            },
            Ok(found) if found.is_dir() => {
                return Err(failed(format!(
                    "a directory; set {} to true to have the socket made in it",
                    KEY.replace("address", "as.uuid")
                )));
            }
            Ok(_) => return Err(failed("something else has this name; remove it or choose another".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        // Anybody may knock: who is let in is decided by the user that the kernel names.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(io)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DomainSocket {
    fn drop(&mut self) {
        // A name that is left over is replaced by the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_the_own_user_and_those_listed_may_connect() {
        assert!(may_connect(0, 5, &[]) && may_connect(5, 5, &[]) && may_connect(7, 5, &[6, 7]));
        assert!(!may_connect(8, 5, &[6, 7]) && !may_connect(8, 0, &[]));
    }

    #[test]
    fn a_name_that_is_left_over_is_replaced_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deeper/socket");
        let first = DomainSocket::bind(&path).unwrap();
        assert!(DomainSocket::bind(&path).unwrap_err().to_string().contains("another process answers"));
        // As if the process had been killed: nobody listens, the name is there.
        let left = dir.path().join("left");
        drop(UnixListener::bind(&left).unwrap());
        DomainSocket::bind(&left).unwrap();
        assert!(DomainSocket::bind(dir.path()).unwrap_err().to_string().contains("as.uuid"));
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(DomainSocket::bind(&file).is_err() && file.exists());
        let long = dir.path().join("x".repeat(120));
        assert!(DomainSocket::bind(&long).unwrap_err().to_string().contains("107 bytes"));
        drop(first);
        assert!(!path.exists());
    }
}
