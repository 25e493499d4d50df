//! Logs through `tracing`: to standard error or to a file, as text or JSON, with a level that can change while running.
//!
//! Invariants: a log that cannot be written (a closed terminal, a full disk) never fails or stops the process; a line is
//! one write, so that lines of several threads and processes do not mix; no lock is held while writing.

use parking_lot::RwLock;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

/// What to log, where to and how.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// A level, or directives such as `info,ufs=debug`.
    pub filter: String,
    /// The file to append to; `None`: standard error.
    pub file: Option<PathBuf>,
    /// One JSON object a line instead of text.
    pub json: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { filter: "info".into(), file: None, json: false }
    }
}

/// Why logging could not be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter makes no sense.
    #[error("log level '{filter}' {reason}")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong and the fix.
        reason: String,
    },
    /// The file cannot be opened.
    #[error("log file {path} cannot be opened: {error}; name a file in a directory that this user may write to", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Logging was started before.
    #[error("logging was started already")]
    Started,
    /// Logging was not started.
    #[error("logging was not started")]
    NotStarted,
}

struct State {
    filter: reload::Handle<EnvFilter, Registry>,
    target: Arc<Target>,
}

static STATE: OnceLock<State> = OnceLock::new();

/// Starts logging for the whole process; once.
///
/// # Errors
/// The filter or the file cannot be used, or logging was started before.
pub fn init(options: &LogOptions) -> Result<(), LogError> {
    let (subscriber, state) = build(options)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Started)?;
    STATE.set(state).map_err(|_| LogError::Started)
}

/// Changes what is logged from now on.
///
/// # Errors
/// The filter cannot be used, or logging was not started.
pub fn set_filter(filter: &str) -> Result<(), LogError> {
    let parsed = parse_filter(filter)?;
    STATE.get().ok_or(LogError::NotStarted)?.filter.reload(parsed).map_err(|_| LogError::NotStarted)
}

/// Changes the level of one part of the program (`name`, such as `ufs`; empty: of all of it) from now on, and returns the
/// directives that hold then. An empty `level` changes nothing.
///
/// # Errors
/// Name or level cannot be used, or logging was not started.
pub fn set_level(name: &str, level: &str) -> Result<String, LogError> {
    let before = filter().ok_or(LogError::NotStarted)?;
    if level.is_empty() {
        return Ok(before);
    }
    let directives = with_directive(&before, name, level);
    set_filter(&directives)?;
    tracing::info!("the log's level is {directives} from now on");
    Ok(directives)
}

/// `filter` with the level of `name` (empty: of everything) replaced.
fn with_directive(filter: &str, name: &str, level: &str) -> String {
    if name.is_empty() {
        return level.to_owned();
    }
    let others = filter.split(',').filter(|directive| {
        !directive.is_empty() && directive.split_once('=').map_or(*directive, |(name, _)| name) != name
    });
    others.map(str::to_owned).chain([format!("{name}={level}")]).collect::<Vec<_>>().join(",")
}

/// What is logged now, or `None` before the start.
pub fn filter() -> Option<String> {
    STATE.get()?.filter.with_current(ToString::to_string).ok()
}

/// Opens the log file anew, after it was renamed by a log rotation. Without a file nothing happens.
///
/// # Errors
/// The file cannot be opened; logging goes on in the old one.
pub fn reopen() -> Result<(), LogError> {
    match STATE.get() {
        Some(state) => state.target.reopen(),
        None => Ok(()),
    }
}

/// Has the log file opened anew by the next line that is logged. All that this does is to set a flag, so a handler of
/// SIGHUP may call it.
pub fn request_reopen() {
    if let Some(state) = STATE.get() {
        state.target.stale.store(true, Ordering::Relaxed);
    }
}

fn parse_filter(filter: &str) -> Result<EnvFilter, LogError> {
    let bad = |reason: String| LogError::Filter { filter: filter.to_owned(), reason };
    <crate::conf::LogFilter as crate::conf::ConfValue>::parse(filter).map_err(bad)?;
    EnvFilter::try_new(filter).map_err(|error| bad(format!("cannot be used: {error}")))
}

fn build(options: &LogOptions) -> Result<(impl tracing::Subscriber + Send + Sync, State), LogError> {
    let target = Arc::new(Target::open(options.file.as_deref())?);
    let (filter, handle) = reload::Layer::new(parse_filter(&options.filter)?);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(Writer(Arc::clone(&target)))
        .with_ansi(false)
        // It would report failed writes to standard error, and panic if that is closed.
        .log_internal_errors(false);
    let layer = if options.json { layer.json().boxed() } else { layer.boxed() };
    let subscriber = tracing_subscriber::registry().with(filter).with(layer);
    Ok((subscriber, State { filter: handle, target }))
}

/// Where lines go.
struct Target {
    /// The path and the open file; `None`: standard error.
    file: Option<(PathBuf, RwLock<Arc<File>>)>,
    /// Set when the file should be opened anew.
    stale: AtomicBool,
}

impl Target {
    fn open(path: Option<&Path>) -> Result<Self, LogError> {
        let file = match path {
            Some(path) => Some((path.to_owned(), RwLock::new(Arc::new(open_log(path)?)))),
            None => None,
        };
        Ok(Target { file, stale: AtomicBool::new(false) })
    }

    fn reopen(&self) -> Result<(), LogError> {
        if let Some((path, current)) = &self.file {
            let fresh = Arc::new(open_log(path)?);
            *current.write() = fresh;
        }
        Ok(())
    }

    fn write(&self, line: &[u8]) {
        let mut complaint = None;
        if self.stale.swap(false, Ordering::Relaxed) {
            complaint = self.reopen().err();
        }
        // Failures to log have nowhere to be reported to.
        let _ = match &self.file {
            Some((_, file)) => {
                let file = Arc::clone(&file.read());
                if let Some(complaint) = complaint {
                    let _ = (&*file).write_all(format!("{complaint}; going on in the old file\n").as_bytes());
                }
                (&*file).write_all(line)
            }
            None => io::stderr().write_all(line),
        };
    }
}

fn open_log(path: &Path) -> Result<File, LogError> {
    let failed = |error| LogError::File { path: path.to_owned(), error };
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    // Non-blocking so that a FIFO without a reader fails instead of hanging; it means nothing for regular files.
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    Ok(file)
}

struct Writer(Arc<Target>);

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// One event; the formatter gives it whole, in one write.
struct Line<'a>(&'a Target);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    fn options(path: &Path, json: bool) -> LogOptions {
        LogOptions { filter: "info".into(), file: Some(path.to_owned()), json }
    }

    #[test]
    fn lines_go_to_the_file_and_follow_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/a.log");
        let (subscriber, state) = build(&options(&path, false)).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(size = 3, "first");
            tracing::debug!("hidden");
            std::fs::rename(&path, dir.path().join("old")).unwrap();
            tracing::info!("second");
            state.target.stale.store(true, Ordering::Relaxed);
            tracing::info!("third");
            std::fs::rename(&path, dir.path().join("older")).unwrap();
            state.target.reopen().unwrap();
            tracing::info!("fourth");
        });
        let old = read_to_string(dir.path().join("old")).unwrap();
        assert!(old.contains("first") && old.contains("size=3") && old.contains("second") && !old.contains("hidden"));
        assert!(read_to_string(dir.path().join("older")).unwrap().contains("third"));
        assert!(read_to_string(&path).unwrap().contains("fourth"));
    }

    #[test]
    fn a_rotation_that_fails_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let (subscriber, state) = build(&options(&path, true)).unwrap();
        let moved = dir.path().join("moved");
        tracing::subscriber::with_default(subscriber, || {
            std::fs::rename(&path, &moved).unwrap();
            std::fs::create_dir(&path).unwrap();
            assert!(state.target.reopen().is_err());
            state.target.stale.store(true, Ordering::Relaxed);
            tracing::info!("still here");
        });
        let text = read_to_string(&moved).unwrap();
        assert!(text.contains("old file") && text.contains("still here"), "{text}");
        assert!(text.lines().any(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }

    #[test]
    fn a_directive_replaces_its_like() {
        assert_eq!(with_directive("info,ufs=debug", "ufs", "warn"), "info,ufs=warn");
        assert_eq!(with_directive("info", "worker", "debug"), "info,worker=debug");
        assert_eq!(with_directive("info,ufs=debug", "", "error"), "error");
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = build(&options(dir.path(), false)).err().unwrap().to_string();
        assert!(message.contains("log file") && message.contains(dir.path().to_str().unwrap()), "{message}");
        assert!(parse_filter("loud").unwrap_err().to_string().contains("'loud'"));
        assert!(parse_filter("info,ufs=debug").is_ok());
    }
}
