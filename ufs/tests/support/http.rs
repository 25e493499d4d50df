//! A small HTTP server for imitations of services: one request per connection, faults on demand, and a log of what was
//! asked.

#![allow(dead_code, reason = "each test binary uses its part of it")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A request; names of headers are in small letters.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// As sent, without the query.
    pub path: String,
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn query(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    /// First and last byte that are asked for, of `size`.
    pub fn range(&self, size: usize) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { size.saturating_sub(1) } else { last.parse().unwrap() };
        Some((first.parse().unwrap(), last))
    }
}

/// An answer. The length of a body is told for HEAD too, and the body itself is not sent then.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// This status instead of an answer.
    Status(u16),
    /// No answer.
    Hang,
    /// The connection is closed instead of an answer.
    Drop,
    /// The connection is closed after half of the body.
    Half,
    /// The header Range is not seen.
    IgnoreRange,
}

type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    fault: Mutex<Option<(Fault, u64)>>,
    log: Mutex<Vec<Request>>,
}

/// A running server; dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
    pub url: String,
}

impl Server {
    /// Serves on a free port of this host.
    pub async fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared { handler: Box::new(handler), fault: Mutex::default(), log: Mutex::default() });
        let state = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(state.clone(), connection));
            }
        });
        Self { shared, task, url }
    }

    /// The next `times` requests go wrong.
    pub fn fail(&self, fault: Fault, times: u64) {
        *self.shared.fault.lock().unwrap() = Some((fault, times));
    }

    /// How many requests are still to go wrong; from now on none does.
    pub fn heal(&self) -> u64 {
        self.shared.fault.lock().unwrap().take().map_or(0, |(_, left)| left)
    }

    /// The requests so far; the log begins anew.
    pub fn take_log(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.log.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(shared: Arc<Shared>, mut connection: TcpStream) {
    let Some(mut request) = read(&mut connection).await else { return };
    shared.log.lock().unwrap().push(request.clone());
    let fault = shared.fault.lock().unwrap().as_mut().and_then(|(fault, left)| {
        *left = left.checked_sub(1)?;
        Some(*fault)
    });
    let answer = match fault {
        Some(Fault::Status(status)) => Answer::new(status, ""),
        Some(Fault::Hang) => {
            // Until the client gives up.
            drop(connection.read_u8().await);
            return;
        }
        Some(Fault::Drop) => return,
        Some(Fault::IgnoreRange) => {
            request.headers.remove("range");
            (shared.handler)(&request)
        }
        Some(Fault::Half) | None => (shared.handler)(&request),
    };
    let mut head = format!("HTTP/1.1 {} Said\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    let mut bytes = head.into_bytes();
    if request.method != "HEAD" {
        let most = if fault == Some(Fault::Half) { answer.body.len() / 2 } else { answer.body.len() };
        bytes.extend_from_slice(&answer.body[..most]);
    }
    drop(connection.write_all(&bytes).await);
    drop(connection.shutdown().await);
}

async fn read(connection: &mut TcpStream) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Request { method, path: path.to_owned(), query: pairs(query), headers, body })
}

/// The pairs of a query or a form.
pub fn pairs(text: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    };
    text.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

/// Text without percent signs.
pub fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}
