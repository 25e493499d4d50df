//! Small pages over HTTP, `/metrics` above all, for every process that has some.
//!
//! Invariants: connections and requests are few at a time, and each has a deadline, its header included; so nobody who
//! reaches the port can hold up anything but the port.

use crate::limited::{Held, LimitedListener};
use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::Semaphore};

/// Connections at a time; more are closed.
const CONNECTIONS: usize = 64;
/// How long a connection may last, whatever it does.
const CONNECTION: Duration = Duration::from_secs(60);
/// Requests that are answered at the same time; more are sent away.
const AT_ONCE: usize = 16;
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Serves `/metrics` and what else `router` has, until `end`.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = LimitedListener::new(listener, CONNECTIONS, Held::InAll(CONNECTION));
    let limit = Arc::new(Semaphore::new(AT_ONCE));
    let encoded = || async { ([(CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], crate::metrics::metrics().encode()) };
    let router = router
        .route("/metrics", get(encoded))
        .layer(middleware::from_fn(move |request, next| bounded(limit.clone(), request, next)));
    axum::serve(listener, router).with_graceful_shutdown(end).await
}

async fn bounded(limit: Arc<Semaphore>, request: Request, next: Next) -> Response {
    let Ok(_permit) = limit.try_acquire() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}
