//! The socket of a daemon, over which `status` and `alluxio conf log` ask it. A question and its answer are one line of
//! JSON each.
//!
//! Invariants: only root and the daemon's own user are listened to; one connection at a time, and each has a deadline,
//! so whoever connects and says nothing delays others by a moment and costs nothing else.

use super::{Result, SessionError, process};
use common::{handover::short_path, wire::peer};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

/// How long a question and its answer may take together.
const EXCHANGE: Duration = Duration::from_secs(2);
/// The longest question or answer, in bytes.
const LINE_MAX: usize = 64 * 1024;

/// What a daemon can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "question", rename_all = "snake_case")]
pub enum Question {
    /// How it does; answered by a [`Status`].
    Status,
    /// Changes what is logged from now on; answered by a [`LogLevel`].
    LogLevel {
        /// The part of the program; empty: all of it.
        name: String,
        /// The level; empty: nothing is changed.
        level: String,
    },
}

/// What a daemon logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// The directives in force; or why they could not be changed.
    pub directives: std::result::Result<String, String>,
}

impl LogLevel {
    /// Changes this process's log.
    pub fn set(name: &str, level: &str) -> Self {
        Self { directives: common::logging::set_level(name, level).map_err(|error| error.to_string()) }
    }
}

/// An answer. Which one it is follows from the question.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Answer {
    /// To [`Question::Status`].
    Status(Status),
    /// To [`Question::LogLevel`].
    LogLevel(LogLevel),
}

/// How a daemon does.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Seconds since the mount was made.
    pub uptime_seconds: u64,
    /// Bytes that the cache holds.
    pub cache_used_bytes: u64,
    /// Bytes that the cache may hold; 0: there is none.
    pub cache_capacity_bytes: u64,
    /// The share of the bytes read that came from the cache, 0 to 1; none before the first read.
    pub cache_hit_rate: Option<f64>,
    /// Whether files that are wholly local are read by the kernel without the daemon.
    pub passthrough: bool,
    /// Why so.
    pub passthrough_reason: String,
    /// Opens since the start whose reads the kernel does itself.
    pub passthrough_opens: u64,
    /// Files that are open.
    pub open_files: i64,
    /// Memory that buffers take, in bytes.
    pub memory_used_bytes: u64,
    /// The most that they may take, in bytes.
    pub memory_limit_bytes: u64,
    /// Where /metrics is served.
    pub metrics_address: Option<String>,
    /// What was written and is not in the storage.
    #[serde(default)]
    pub uploads: Uploads,
}

/// What was written and is not in the storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploads {
    /// Files that are not in the storage as they were written, open ones included.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them failed; they are tried again.
    pub failed: u64,
    /// The first of them, those that failed before the others.
    pub list: Vec<Upload>,
}

/// A file that is not in the storage as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Its path below the mount point.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// When it failed, in seconds since 1970.
    pub failed_at: Option<i64>,
}

impl Uploads {
    /// Those that are named one by one, so that an answer stays short.
    pub const NAMED: usize = 20;
    /// Characters of a path or a reason that are shown.
    const SHOWN: usize = 600;

    /// Of what a stage says.
    pub fn of(pending: Vec<worker::stage::Pending>) -> Self {
        let shorten = |text: String| match text.char_indices().nth(Self::SHOWN) {
            Some((at, _)) => format!("{}...", &text[..at]),
            None => text,
        };
        let mut uploads = Uploads { files: pending.len() as u64, ..Uploads::default() };
        let (failed, waiting): (Vec<_>, Vec<_>) = pending.into_iter().partition(|file| file.failure.is_some());
        uploads.failed = failed.len() as u64;
        for file in failed.into_iter().chain(waiting) {
            uploads.bytes += file.size;
            if uploads.list.len() < Self::NAMED {
                let failed_at = file.failure.as_ref().map(|(_, at)| at.sec);
                let error = file.failure.map(|(error, _)| shorten(error.message().to_owned()));
                uploads.list.push(Upload { path: shorten(file.path.to_string()), size: file.size, error, failed_at });
            }
        }
        uploads
    }
}

/// Listens at `path` and answers on a thread of its own until the process ends.
pub fn serve(path: &Path, answer: impl Fn(Question) -> Answer + Send + 'static) -> Result<()> {
    let failed = |error: io::Error| SessionError::system(format!("the socket {}", path.display()), error);
    let (_directory, short) = short_path(path).map_err(failed)?;
    // What is there under our process number is of a dead process.
    let _ = std::fs::remove_file(&short);
    let listener = UnixListener::bind(&short).map_err(failed)?;
    let serve = move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    // Whoever hangs up early or talks nonsense gets no answer.
                    let _ = exchange(&stream, &answer);
                }
                // Out of descriptors, perhaps: others will be closed.
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    };
    std::thread::Builder::new().name("control".into()).spawn(serve).map_err(failed)?;
    Ok(())
}

fn exchange(stream: &UnixStream, answer: impl Fn(Question) -> Answer) -> io::Result<()> {
    let deadline = Instant::now() + EXCHANGE;
    let (_, user, _) = peer(stream.as_fd()).map_err(io::Error::other)?;
    if user != 0 && user != nix::unistd::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let line = read_line(stream, deadline)?;
    let question = serde_json::from_slice(&line)?;
    let mut text = serde_json::to_vec(&answer(question))?;
    text.push(b'\n');
    write(stream, &text, deadline)
}

/// Asks the daemon whose socket this is. The type is the one that answers the question.
pub fn ask<A: DeserializeOwned + Send + 'static>(socket: &Path, question: Question) -> io::Result<A> {
    let socket = socket.to_owned();
    let exchange = move || {
        let deadline = Instant::now() + EXCHANGE;
        let (_directory, short) = short_path(&socket)?;
        let stream = UnixStream::connect(short)?;
        let mut text = serde_json::to_vec(&question)?;
        text.push(b'\n');
        write(&stream, &text, deadline)?;
        Ok(serde_json::from_slice(&read_line(&stream, deadline)?)?)
    };
    // A full queue of connections would hold up connect without bound.
    process::within(EXCHANGE * 2, exchange)?.unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}

fn left(deadline: Instant) -> io::Result<Option<Duration>> {
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(Some(left)),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn read_line(mut stream: &UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut part = [0; 4096];
    while !line.ends_with(b"\n") {
        stream.set_read_timeout(left(deadline)?)?;
        match stream.read(&mut part) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => line.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if line.len() > LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(line)
}

fn write(mut stream: &UnixStream, text: &[u8], deadline: Instant) -> io::Result<()> {
    stream.set_write_timeout(left(deadline)?)?;
    stream.write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_answers_under_a_long_path_and_after_nonsense() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let socket = deep.join("1-2.sock");
        serve(&socket, |question| match question {
            Question::Status => Answer::Status(Status { uptime_seconds: 7, ..Status::default() }),
            Question::LogLevel { name, level } => {
                Answer::LogLevel(LogLevel { directives: Ok(format!("{name}={level}")) })
            }
        })
        .unwrap();
        let (_directory, short) = short_path(&socket).unwrap();
        UnixStream::connect(&short).unwrap().write_all(b"nonsense\n").unwrap();
        drop(UnixStream::connect(&short).unwrap());
        assert_eq!(ask::<Status>(&socket, Question::Status).unwrap().uptime_seconds, 7);
        let level = Question::LogLevel { name: "ufs".into(), level: "debug".into() };
        assert_eq!(ask::<LogLevel>(&socket, level).unwrap().directives.unwrap(), "ufs=debug");
    }

    #[test]
    fn nobody_answers_where_no_daemon_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ask::<Status>(&dir.path().join("none.sock"), Question::Status).is_err());
    }
}
