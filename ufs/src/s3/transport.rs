//! Connections: TCP without delay, TLS where the URL says so, through a proxy where the environment says so.
//!
//! This is hyper's client and not reqwest, because a URL library that tidies paths cannot ask for keys such as `a/../b`.

use super::body::Outgoing;
use crate::{environment::Environment, options::UfsOptions, tls};
use common::Result;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::Matcher,
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tower_service::Service;

/// A pool of connections.
pub type Http = Client<HttpsConnector<Connector>, Outgoing>;

/// Makes a pool. TLS is set up only when it is needed, so that plain HTTP never fails for the lack of certificates.
pub fn http(options: &UfsOptions, secure: bool, ca_file: Option<&Path>) -> Result<Http> {
    let tls = if secure { tls::client_config(ca_file, &options.environment)? } else { tls::without_authorities()? };
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(options.connect_timeout));
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    tcp.enforce_http(false);
    let connector = Connector { tcp, proxies: Arc::new(proxies(&options.environment)) };
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        // Below the idle limits of the common services, so that a connection is rarely closed while it is taken.
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_max_idle_per_host(options.concurrency)
        .build(connector))
}

fn proxies(environment: &Environment) -> Matcher {
    let of = |names: [&str; 2]| names.into_iter().find_map(|name| environment.get(name)).unwrap_or("").to_owned();
    Matcher::builder()
        .all(of(["ALL_PROXY", "all_proxy"]))
        .https(of(["HTTPS_PROXY", "https_proxy"]))
        .http(of(["HTTP_PROXY", "http_proxy"]))
        .no(of(["NO_PROXY", "no_proxy"]))
        .build()
}

/// Opens TCP connections, to the host itself or to its proxy.
#[derive(Clone)]
pub struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Matcher>,
}

type Opening<T> = Pin<Box<dyn Future<Output = Result<T, Box<dyn std::error::Error + Send + Sync>>> + Send>>;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Opening<Stream>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        let local = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
        let proxy = if local { None } else { self.proxies.intercept(&uri) };
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(Stream { io: tcp.call(uri).await?, forwarded: false });
            };
            let address = proxy.uri().clone();
            if address.scheme_str() != Some("http") {
                return Err("the proxy of the environment is not of the kind http://host:port".into());
            }
            if uri.scheme_str() == Some("https") {
                let mut tunnel = Tunnel::new(address, tcp);
                if let Some(login) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(login.clone());
                }
                let io = tunnel.call(uri).await.map_err(|error| format!("the proxy refused: {error}"))?;
                return Ok(Stream { io, forwarded: false });
            }
            Ok(Stream { io: tcp.call(address).await?, forwarded: true })
        })
    }
}

/// A TCP connection.
pub struct Stream {
    io: TokioIo<TcpStream>,
    /// Whether a proxy at the other end expects whole URLs.
    forwarded: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.forwarded)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, buffers)
    }
}
