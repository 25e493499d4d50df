//! A real etcd for one test; ended when dropped.

use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The server.
pub struct EtcdServer {
    child: Child,
    data: TempDir,
    client_port: u16,
    peer_port: u16,
}

impl EtcdServer {
    /// Starts one on free ports and waits until it answers; `None`, with a note, where etcd is not installed.
    pub fn start() -> Option<Self> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            eprintln!("skipped: etcd is not installed (apt-get install etcd-server)");
            return None;
        }
        // A port that is taken between the look and the start makes etcd end at once: then others are tried.
        for _ in 0..5 {
            let data = tempfile::tempdir().unwrap();
            let (client_port, peer_port) = (free_port(), free_port());
            let child = spawn(&data, client_port, peer_port);
            let mut server = Self { child, data, client_port, peer_port };
            if server.answers() {
                return Some(server);
            }
        }
        panic!("etcd does not start");
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.client_port
    }

    /// Starts it again at the same place with what it had.
    pub fn start_again(&mut self) {
        self.kill();
        self.child = spawn(&self.data, self.client_port, self.peer_port);
        assert!(self.answers(), "etcd does not start again");
    }

    /// Starts it again at the same place with nothing in it.
    pub fn start_again_empty(&mut self) {
        self.kill();
        self.data = tempfile::tempdir().unwrap();
        self.child = spawn(&self.data, self.client_port, self.peer_port);
        assert!(self.answers(), "etcd does not start again");
    }

    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline {
            if TcpStream::connect(("127.0.0.1", self.client_port)).is_ok() {
                return true;
            }
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn spawn(data: &TempDir, client: u16, peer: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    Command::new("etcd")
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .arg("--data-dir")
        .arg(data.path())
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync", "--log-level", "error"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
