//! Commands below `/-/` for a server in another process, as the benchmarks have it: counters, reset, latency.

use std::sync::atomic::Ordering;

use http::{HeaderValue, StatusCode, header};

use crate::body::{Body, Response};
use crate::encoding::decode_query;
use crate::operation::Operation;
use crate::service::Service;

/// Answers `counters` (JSON: requests by operation, bytes, connections), `reset` and `latency?ms=N`.
pub(crate) fn answer(service: &Service, command: &str, query: &str) -> Response {
    let (status, text) = match command {
        "counters" => (StatusCode::OK, counters(service)),
        "reset" => {
            service.counters.reset();
            (StatusCode::OK, "{}".to_owned())
        }
        "latency" => {
            let pairs = decode_query(query).unwrap_or_default();
            let asked = pairs.iter().find(|(name, _)| name == "ms").and_then(|(_, value)| value.parse::<u64>().ok());
            match asked {
                Some(milliseconds) => {
                    service.latency.store(milliseconds.saturating_mul(1000), Ordering::Relaxed);
                    (StatusCode::OK, "{}".to_owned())
                }
                None => (StatusCode::BAD_REQUEST, "{\"error\":\"latency needs ms=NUMBER\"}".to_owned()),
            }
        }
        _ => (StatusCode::NOT_FOUND, "{\"error\":\"commands are counters, reset and latency?ms=NUMBER\"}".to_owned()),
    };
    let mut response = Response::new(Body::from(text + "\n"));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn counters(service: &Service) -> String {
    let counters = &service.counters;
    let mut fields: Vec<String> = Operation::ALL
        .iter()
        .filter(|operation| counters.of(**operation) > 0)
        .map(|operation| format!("\"{operation:?}\":{}", counters.of(*operation)))
        .collect();
    for (name, value) in [
        ("requests", counters.total()),
        ("bytes_sent", counters.sent()),
        ("bytes_received", counters.received()),
        ("connections", counters.connections()),
        ("most_active", counters.most_active() as u64),
    ] {
        fields.push(format!("\"{name}\":{value}"));
    }
    format!("{{{}}}", fields.join(","))
}
