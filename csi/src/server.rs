//! Serves gRPC on a domain socket until a signal ends it.
//!
//! Invariants: nothing but the socket is made in its directory (the specification forbids it); a socket that a dead process
//! left is replaced, one that is in use is not; the calls under way at the end are answered, for a bounded time.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Router;

/// How long the calls under way may take at the end.
const GRACE: Duration = Duration::from_secs(10);

/// The largest message that is taken, in bytes; a larger one is refused by the transport (OUT_OF_RANGE).
pub const MESSAGE_MAX: usize = 1 << 20;

/// The path in an endpoint: `unix:///path`, `unix://path`, `unix:path` or just an absolute path.
///
/// # Errors
/// It is none of these.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, String> {
    let path = endpoint.strip_prefix("unix:").map_or(endpoint, |rest| rest.strip_prefix("//").unwrap_or(rest));
    if path.contains("://") || !path.starts_with('/') {
        return Err(format!(
            "the endpoint {endpoint} is neither unix:///path nor an absolute path; write for example unix:///csi/csi.sock"
        ));
    }
    Ok(PathBuf::from(path))
}

fn listen(path: &Path) -> Result<UnixListener, String> {
    let listener = common::handover::listen(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{}: the directory of the socket does not exist; make it", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    })?;
    listener
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(listener))
        .map_err(|error| format!("{}: {error}", path.display()))
}

/// Serves what `router` holds at `endpoint` until SIGTERM or SIGINT.
///
/// # Errors
/// The socket cannot be made, or serving it failed.
pub async fn serve(endpoint: &str, router: Router) -> Result<(), String> {
    let path = socket_path(endpoint)?;
    let failed = |error: io::Error| format!("signals: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let listener = listen(&path)?;
    tracing::info!("listening at {}", path.display());
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        // The receiver lives until the end.
        let _ = stopping.send(());
    };
    let serving = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
    let bounded = async {
        // Without a signal this never ends.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    let done = tokio::select! {
        done = serving => done.map_err(|error| format!("{}: {error}", path.display())),
        () = bounded => {
            tracing::warn!("some calls did not end within {} s and are given up", GRACE.as_secs());
            Ok(())
        }
    };
    // Whoever starts next would replace it anyway.
    let _ = std::fs::remove_file(&path);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_endpoint_is_read() {
        for endpoint in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(socket_path(endpoint).unwrap(), Path::new("/csi/csi.sock"), "{endpoint}");
        }
        for endpoint in ["", "tcp://127.0.0.1:1", "csi.sock", "unix://csi.sock", "unix:"] {
            assert!(socket_path(endpoint).is_err(), "{endpoint}");
        }
    }
}
