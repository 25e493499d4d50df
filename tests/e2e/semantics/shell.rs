//! A shell that takes one command at a time and tells what each has printed.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

use tests::{daemon, machine::PATIENCE};

/// Printed after each command. No example prints it.
const MARK: &str = "=== the command has ended ===";

/// A shell; it is gone when this is dropped.
pub struct Shell {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Shell {
    /// Starts one in `root`, which finds the other directory as `$SOURCE`.
    pub fn start(root: &Path, source: &Path) -> Self {
        let mut command = Command::new("sh");
        command.env_clear().envs([("LC_ALL", "C"), ("TZ", "UTC")]).env("SOURCE", source).current_dir(root);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = daemon::spawn(command).expect("a shell");
        let output = BufReader::new(child.stdout.take().expect("the output of the shell"));
        let (sender, lines) = mpsc::channel();
        let read = move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("shell".into()).spawn(read).expect("a thread");
        Shell { child, lines }
    }

    /// Runs a command and returns the lines that it printed, errors among them.
    pub fn run(&mut self, command: &str) -> Result<Vec<String>, String> {
        let input = self.child.stdin.as_mut().ok_or("the shell was ended")?;
        // A group runs in the shell itself, so what it opens or sets is there for the next command.
        let text = format!("{{ {command}\n}} </dev/null 2>&1\nprintf '\\n%s\\n' '{MARK}'\n");
        input.write_all(text.as_bytes()).map_err(|error| format!("`{command}`: the shell has ended: {error}"))?;
        let mut printed = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if line == MARK => break,
                Ok(line) => printed.push(line),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("`{command}` does not end; it printed {printed:?}"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("`{command}` ended the shell; it printed {printed:?}"));
                }
            }
        }
        // The mark begins a line of its own, which leaves an empty one when the command's last was whole.
        if printed.last().is_some_and(String::is_empty) {
            printed.pop();
        }
        Ok(printed)
    }

    /// Ends it, so that it holds nothing of the mount any more.
    pub fn end(mut self) -> Result<(), String> {
        drop(self.child.stdin.take());
        daemon::end(&mut self.child, PATIENCE).map(|_| ()).ok_or_else(|| "the shell does not end".into())
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if daemon::end(&mut self.child, Duration::ZERO).is_none() {
            // Whatever the shell waits for ends with the mount.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
