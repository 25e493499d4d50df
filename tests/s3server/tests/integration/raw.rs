//! A client of few lines that shows every byte and every way a connection can end.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Nothing takes this long unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An answer, as much of it as came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// How the body broke off, if it did.
    pub broken: Option<io::Error>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The texts of all elements with this name.
    pub fn elements(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        text.split(&open).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned())).collect()
    }

    pub fn code(&self) -> String {
        self.elements("Code").pop().unwrap_or_default()
    }
}

/// A connection that is kept alive.
pub struct Client {
    pub stream: TcpStream,
    pub host: String,
    buffer: Vec<u8>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("set timeout");
        stream.set_nodelay(true).expect("set nodelay");
        Client { stream, host: address.to_string(), buffer: Vec::new() }
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.host);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "PUT" || method == "POST" {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.stream.write_all(&[head.as_bytes(), body].concat())
    }

    pub fn receive(&mut self, head: bool) -> io::Result<Answer> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut piece = [0; 65536];
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => buffer.extend_from_slice(&piece[..count]),
            }
        };
        let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1))
            .and_then(|status| status.parse().ok())
            .expect("status");
        let headers: HashMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let mut body = buffer.split_off(end + 4);
        let length = if head || status == 304 || status == 204 {
            0
        } else {
            headers["content-length"].parse().expect("a number")
        };
        let mut broken = None;
        while body.len() < length {
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    broken = Some(io::ErrorKind::UnexpectedEof.into());
                    break;
                }
                Ok(count) => body.extend_from_slice(&piece[..count]),
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        self.buffer = body.split_off(body.len().min(length));
        Ok(Answer { status, headers, body, broken })
    }

    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send(method, path, headers, body).expect("send");
        self.receive(method == "HEAD").expect("receive")
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }
}
