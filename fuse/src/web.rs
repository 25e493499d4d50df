//! `/metrics` and `/health` over HTTP, on an address that only this host reaches unless it is configured otherwise.
//!
//! Invariant: nothing here can fail a mount (a port that is taken is one warning).

use axum::{Router, routing::get};
use std::net::{IpAddr, SocketAddr, TcpListener};
use tokio::runtime::Handle;

/// Serves on `host` and `port` with `runtime` until that ends. Returns the address.
///
/// # Errors
/// One line: the address makes no sense, or cannot be had.
pub fn start(runtime: &Handle, host: &str, port: u16) -> Result<SocketAddr, String> {
    let fix = "set alluxio.fuse.web.port to a free port, or to 0 for none";
    let ip: IpAddr = match host {
        "localhost" => [127, 0, 0, 1].into(),
        host => host.parse().map_err(|_| {
            format!("/metrics is off: alluxio.fuse.web.bind.host={host} is no IP address; use for example 127.0.0.1")
        })?,
    };
    let wanted = SocketAddr::new(ip, port);
    let failed = |error: std::io::Error| format!("/metrics is off: {wanted}: {error}; {fix}");
    let listener = TcpListener::bind(wanted).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    runtime.spawn(async move {
        // It ends with the runtime; a listener that fails costs /metrics only.
        let router = Router::new().route("/health", get(|| async { "OK\n" }));
        if let Err(error) = common::web::serve(listener, router, std::future::pending()).await {
            tracing::warn!("/metrics ended: {error}");
        }
    });
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        time::Duration,
    };

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn metrics_and_health_are_served_and_a_taken_port_is_named() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = start(runtime.handle(), "127.0.0.1", 0).unwrap();
        let text = get(address, "/metrics");
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("alluxio_cached_storage_bytes"), "{text}");
        assert!(get(address, "/health").ends_with("OK\n"));
        assert!(get(address, "/other").starts_with("HTTP/1.1 404"));
        let error = start(runtime.handle(), "127.0.0.1", address.port()).unwrap_err();
        assert!(error.contains(&address.to_string()) && error.contains("alluxio.fuse.web.port"), "{error}");
        assert!(start(runtime.handle(), "nowhere.invalid", 0).unwrap_err().contains("nowhere.invalid"));
    }
}
