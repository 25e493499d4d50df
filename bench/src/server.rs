//! The S3 server that is measured against: the test crate's, in a process of its own, over the run's data.

use anyhow::{Context, Result};
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A server process; ended when dropped.
pub struct Server {
    child: Child,
    endpoint: String,
}

impl Server {
    /// Starts this program again as a server of the directories below `data`, each a bucket.
    pub fn start(data: &Path, latency_ms: u64) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(data)
            .arg(latency_ms.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the S3 server")?;
        let mut line = String::new();
        let out = child.stdout.take().context("no output of the server")?;
        BufReader::new(out).read_line(&mut line)?;
        Ok(Self { child, endpoint: line.trim().to_owned() })
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The server process itself: serves until its standard input is closed.
pub fn serve(data: &Path, latency_ms: u64) -> Result<()> {
    let server = s3server::Server::start(s3server::Options::default())?;
    for entry in std::fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            server.adopt(&entry.file_name().to_string_lossy(), &entry.path())?;
        }
    }
    server.set_latency(Duration::from_millis(latency_ms));
    println!("{}", server.url());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
