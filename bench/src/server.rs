//! The S3 server that is measured against: the test crate's, in a process of its own, over the run's data.

use anyhow::{Context, Result, ensure};
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
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg(data).arg(latency_ms.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        crate::cleanup::die_with_parent(&mut command);
        let mut child = command.spawn().context("start the S3 server")?;
        let mut line = String::new();
        let out = child.stdout.take().context("no output of the server")?;
        let mut server = Self { child, endpoint: String::new() };
        BufReader::new(out).read_line(&mut line)?;
        line.trim().clone_into(&mut server.endpoint);
        ensure!(server.endpoint.starts_with("http"), "the S3 server did not start");
        Ok(server)
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

/// The server process itself: serves until its standard input is closed, by the end of the benchmark if not before.
pub fn serve(data: &Path, latency_ms: u64) -> Result<()> {
    let options = s3server::Options { log_size: 0, ..s3server::Options::default() };
    let server = s3server::Server::start(options)?;
    for entry in std::fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            let bucket = entry.file_name().to_string_lossy().into_owned();
            server.create_bucket(&bucket)?;
            server.adopt(&bucket, entry.path())?;
        }
    }
    server.set_latency(Duration::from_millis(latency_ms));
    println!("{}", server.url());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
