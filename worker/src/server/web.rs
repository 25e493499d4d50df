//! `/metrics` and `/health` of a worker.
//!
//! Invariants: few requests at a time, each with a deadline; a health check answers without asking disk or network.

use super::namespace::Namespace;
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use common::metrics;
use std::{sync::Arc, time::Duration};
use store::HealthState;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Requests that are answered at the same time; more are sent away.
const AT_ONCE: usize = 16;
/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Serves until `end`.
pub async fn serve(listener: TcpListener, namespace: Arc<Namespace>, end: CancellationToken) {
    let limit = Arc::new(Semaphore::new(AT_ONCE));
    let router = Router::new()
        .route("/metrics", get(|| async { ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::metrics().encode()) }))
        .route("/health", get(health))
        .with_state(namespace)
        .layer(middleware::from_fn(move |request, next| bounded(limit.clone(), request, next)));
    let served = axum::serve(listener, router).with_graceful_shutdown(end.cancelled_owned());
    if let Err(error) = served.await {
        tracing::warn!(%error, "/metrics ended");
    }
}

/// `OK`, and a line for each directory of the page store that is not well: reads go on without it.
async fn health(State(namespace): State<Arc<Namespace>>) -> String {
    let mut text = String::from("OK\n");
    for dir in namespace.store().stats().dirs {
        if dir.health != HealthState::Normal {
            text.push_str(&format!("page store directory {}: {:?}\n", dir.path.display(), dir.health));
        }
    }
    text
}

async fn bounded(limit: Arc<Semaphore>, request: Request, next: Next) -> Response {
    let Ok(_permit) = limit.try_acquire() else { return StatusCode::SERVICE_UNAVAILABLE.into_response() };
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}
