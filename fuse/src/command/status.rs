//! `alluxio-fuse status`: the mounts of this user, how they do, and those whose daemon is gone.

use super::{Failure, configuration};
use crate::session::{
    control::{self, Question, Status, Uploads},
    record::{Found, Record, StateDir},
};
use common::conf::keys;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;

/// How a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// The daemon answers.
    Running,
    /// The daemon lives and does not answer.
    Silent,
    /// The daemon is gone, the mount is still there.
    Dead,
}

#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    record: Record,
    state: State,
    status: Option<Status>,
}

#[derive(Debug, Serialize)]
struct Report {
    mounts: Vec<Line>,
}

/// Shows the mounts; returns the exit code.
pub(super) fn status(json: bool) -> Result<i32, Failure> {
    let directory = configuration(None)?.get(&keys::fuse::STATE_DIR);
    let found = match StateDir::existing(&directory)? {
        Some(state) => state.list()?,
        None => Vec::new(),
    };
    let report = Report { mounts: found.into_iter().map(line).collect() };
    let text = if json {
        serde_json::to_string_pretty(&report).map_err(|error| Failure::Line(format!("the status as JSON: {error}")))?
            + "\n"
    } else {
        in_words(&report)
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // A reader such as `head` may have had enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Line(format!("standard output: {error}")))
        }
        _ => Ok(0),
    }
}

fn line(found: Found) -> Line {
    let (state, status) = match found.live {
        false => (State::Dead, None),
        true => match control::ask(&found.socket, Question::Status) {
            Ok(status) => (State::Running, Some(status)),
            Err(_) => (State::Silent, None),
        },
    };
    Line { record: found.record, state, status }
}

fn in_words(report: &Report) -> String {
    if report.mounts.is_empty() {
        return "no mounts\n".into();
    }
    let mut text = String::new();
    for Line { record, state, status } in &report.mounts {
        let point = record.mount_point.display();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} on {point}", record.source);
        let _ = match (state, status) {
            (State::Running, Some(status)) => describe(&mut text, record, status),
            (State::Dead, _) => {
                writeln!(text, "  dead: the daemon (pid {}) is gone; alluxio-fuse umount {point}", record.pid)
            }
            _ => writeln!(text, "  silent: the daemon (pid {}) does not answer", record.pid),
        };
    }
    text
}

fn describe(text: &mut String, record: &Record, status: &Status) -> std::fmt::Result {
    writeln!(
        text,
        "  running      {}, pid {}, version {}",
        duration(status.uptime_seconds),
        record.pid,
        record.version
    )?;
    match status.cache_capacity_bytes {
        0 => writeln!(text, "  cache        none")?,
        capacity => writeln!(text, "  cache        {} of {}", bytes(status.cache_used_bytes), bytes(capacity))?,
    }
    match status.cache_hit_rate {
        Some(rate) => writeln!(text, "  hit rate     {:.1} %", rate * 100.0)?,
        None => writeln!(text, "  hit rate     nothing read through the daemon yet")?,
    }
    let why = Some(&status.passthrough_reason)
        .filter(|why| !why.is_empty())
        .map(|why| format!(": {why}"))
        .unwrap_or_default();
    let on = if status.passthrough { "on" } else { "off" };
    writeln!(text, "  passthrough  {on}{why} ({} opens)", status.passthrough_opens)?;
    writeln!(
        text,
        "  memory       {} of {} for buffers",
        bytes(status.memory_used_bytes),
        bytes(status.memory_limit_bytes)
    )?;
    writeln!(text, "  open files   {}", status.open_files)?;
    describe_uploads(text, &status.uploads)?;
    if let Some(address) = &status.metrics_address {
        writeln!(text, "  metrics      http://{address}/metrics")?;
    }
    if let Some(log) = &record.log_file {
        writeln!(text, "  log          {}", log.display())?;
    }
    Ok(())
}

/// What is not in the storage, if there is such.
fn describe_uploads(text: &mut String, uploads: &Uploads) -> std::fmt::Result {
    let Uploads { files, bytes: size, failed, list } = uploads;
    if *files == 0 {
        return Ok(());
    }
    writeln!(text, "  uploads      {files} files of {} are not in the storage yet, {failed} failed", bytes(*size))?;
    for upload in list {
        let why = match &upload.error {
            Some(error) => format!("failed, is tried again: {error}"),
            None => "open or under way".into(),
        };
        writeln!(text, "    {} ({}): {why}", upload.path, bytes(upload.size))?;
    }
    match files.saturating_sub(list.len() as u64) {
        0 => Ok(()),
        more => writeln!(text, "    and {more} more"),
    }
}

/// Bytes in the largest unit of which there is at least one.
fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(state: State, status: Option<Status>) -> Report {
        let record = Record {
            mount_point: "/m".into(),
            source: "s3://b".into(),
            device: "0:9".into(),
            pid: 7,
            started: 0,
            created: vec![],
            version: "1".into(),
            log_file: None,
        };
        Report { mounts: vec![Line { record, state, status }] }
    }

    #[test]
    fn a_mount_is_described_in_words_and_in_json() {
        let status = Status {
            uptime_seconds: 4000,
            cache_used_bytes: 3 << 29,
            cache_capacity_bytes: 10 << 30,
            cache_hit_rate: Some(0.5),
            passthrough_reason: "this kernel has none".into(),
            ..Status::default()
        };
        let text = in_words(&report(State::Running, Some(status.clone())));
        for part in ["s3://b on /m", "1 h 6 min", "1.5 GiB of 10.0 GiB", "50.0 %", "off: this kernel has none"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        let json = serde_json::to_value(report(State::Running, Some(status))).unwrap();
        assert_eq!(json["mounts"][0]["mount_point"], "/m");
        assert_eq!(json["mounts"][0]["state"], "running");
        assert_eq!(json["mounts"][0]["status"]["cache_hit_rate"], 0.5);
    }

    #[test]
    fn what_is_not_uploaded_is_named() {
        let file =
            |failure| worker::stage::Pending { path: common::UfsPath::parse("d/f").unwrap(), size: 2048, failure };
        let denied = common::Error::new(common::ErrorKind::PermissionDenied, "access is denied");
        let at = common::Timestamp { sec: 5, nsec: 0 };
        let mut pending = vec![file(None); 25];
        pending.push(file(Some((denied, at))));
        let status = Status { uploads: Uploads::of(pending), ..Status::default() };
        let text = in_words(&report(State::Running, Some(status.clone())));
        for part in [
            "26 files of 52.0 KiB",
            "1 failed",
            "d/f (2.0 KiB): failed, is tried again: access is denied",
            "and 6 more",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        let json = serde_json::to_value(report(State::Running, Some(status))).unwrap();
        let first = &json["mounts"][0]["status"]["uploads"]["list"][0];
        assert_eq!((&first["path"], &first["failed_at"]), (&"/d/f".into(), &5.into()));
        assert!(!in_words(&report(State::Running, Some(Status::default()))).contains("uploads"));
    }

    #[test]
    fn the_dead_and_the_silent_are_named() {
        assert!(in_words(&report(State::Dead, None)).contains("alluxio-fuse umount /m"));
        assert!(in_words(&report(State::Silent, None)).contains("does not answer"));
        assert_eq!(in_words(&Report { mounts: vec![] }), "no mounts\n");
    }
}
