//! `/metrics` and `/health` of a worker. A health check answers without asking disk or network.

use super::namespace::Namespace;
use axum::{Router, extract::State, routing::get};
use std::sync::Arc;
use store::HealthState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `end`.
pub async fn serve(listener: TcpListener, namespace: Arc<Namespace>, end: CancellationToken) {
    let router = Router::new().route("/health", get(health)).with_state(namespace);
    if let Err(error) = common::web::serve(listener, router, end.cancelled_owned()).await {
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
