//! Going into the background: the same command is started again as a process of its own, and its first line of output
//! says that it serves.

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What a start may take beside waiting for etcd.
const START: Duration = Duration::from_secs(120);

/// Starts the daemon and waits until it serves; returns its announcement.
///
/// # Errors
/// What the daemon said when it could not start.
pub fn start(log: &Path, wait: Duration) -> Result<String> {
    if let Some(parent) = log.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)
            .with_context(|| format!("the log's directory {} (see --log-file)", parent.display()))?;
    }
    let opened = OpenOptions::new().append(true).create(true).open(log);
    let file = opened.with_context(|| format!("the log {} (see --log-file)", log.display()))?;
    let begin = file.metadata()?.len();
    let mut command = Command::new(std::env::current_exe().context("the program's own path")?);
    command.args(foreground_arguments()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    // SAFETY: between fork and exec only setsid is called, which is safe there: it takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(nix::unistd::setsid().map(|_| ())?));
    }
    let mut child = command.spawn().context("the daemon cannot be started")?;
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    if let Some(output) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut line = String::new();
            // An end without a line, or an error, is the daemon's end.
            let _ = BufReader::new(output).read_line(&mut line);
            let _ = sender.send(line);
        });
    }
    match receiver.recv_timeout(wait.saturating_add(START)) {
        Ok(line) if !line.trim().is_empty() => Ok(line.trim().to_owned()),
        Ok(_) => {
            child.wait()?;
            bail!(
                "{}",
                complaint(log, begin).unwrap_or_else(|| format!("the worker ended at once; see {}", log.display()))
            )
        }
        Err(_) => {
            child.kill()?;
            child.wait()?;
            bail!("the worker did not serve within {:?}; see {}", wait.saturating_add(START), log.display())
        }
    }
}

/// The arguments of this process without those that send it into the background.
fn foreground_arguments() -> Vec<OsString> {
    let mut arguments = Vec::new();
    let mut all = std::env::args_os().skip(1);
    while let Some(argument) = all.next() {
        let text = argument.to_string_lossy();
        if text == "--log-file" {
            all.next();
        } else if text != "--daemon" && !text.starts_with("--log-file=") {
            arguments.push(argument);
        }
    }
    arguments
}

/// The last line that the daemon complained with.
fn complaint(log: &Path, begin: u64) -> Option<String> {
    let mut file = fs::File::open(log).ok()?;
    file.seek(SeekFrom::Start(begin)).ok()?;
    let mut text = String::new();
    file.take(1 << 20).read_to_string(&mut text).ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("alluxio: ")).map(str::to_owned)
}

/// As many descriptors as the system allows: every connection and every open page file takes one.
pub fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        // Fails only where a policy forbids it; then the soft limit stays.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
