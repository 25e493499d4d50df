//! The error that under storages, workers and the client share.
//!
//! It is cloneable, because several readers that wait for one page all get the same failure, and it carries a kind
//! (what happened, from which [`errno`](crate::errno) follows) and a line for people (which thing, and why).

use std::{fmt, io, sync::Arc};

/// What happened, independent of where. [`crate::errno::errno`] has the errno of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such file, directory, object or bucket.
    NotFound,
    /// The storage refuses this caller.
    PermissionDenied,
    /// The operation is not permitted to anybody here.
    NotPermitted,
    /// The name is taken.
    AlreadyExists,
    /// A component of the path is no directory.
    NotADirectory,
    /// A file was needed and a directory found.
    IsADirectory,
    /// The directory has entries.
    NotEmpty,
    /// An argument makes no sense.
    InvalidArgument,
    /// A name or path is longer than the storage takes.
    NameTooLong,
    /// Too many symbolic links, or one where none may be followed.
    TooManyLinks,
    /// The mount or the storage takes no writes.
    ReadOnly,
    /// The storage is full.
    NoSpace,
    /// The caller's share of the storage is used up.
    QuotaExceeded,
    /// The version that the handle pinned is gone.
    Stale,
    /// The storage has no such operation.
    Unsupported,
    /// Beyond the largest size or offset.
    TooLarge,
    /// In use.
    Busy,
    /// Across two storages.
    CrossDevice,
    /// No such extended attribute.
    NoAttribute,
    /// Out of memory.
    NoMemory,
    /// Out of descriptors.
    TooManyFiles,
    /// No such open handle.
    BadHandle,
    /// A deadline passed.
    TimedOut,
    /// The storage cannot be reached or says that it is overloaded.
    Unavailable,
    /// Bytes are not what they should be: wrong length, checksum or format.
    Corrupt,
    /// The work was given up because nobody waits for it any more.
    Cancelled,
    /// Any other failure of input or output.
    Io,
    /// An errno without a kind of its own, from a system call.
    Os(i32),
}

impl ErrorKind {
    /// Whether the same call may succeed when made again soon.
    pub fn is_transient(self) -> bool {
        matches!(
            self,
            ErrorKind::TimedOut | ErrorKind::Unavailable | ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Cancelled
        )
    }
}

/// A failure: its kind, a line that names the thing and the cause, and what lies behind it.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Shorthand for results with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure of this kind; `message` names the thing and the cause in one line, without secrets.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    /// The same with the error that caused it.
    pub fn with_source(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: Some(source.into()) }))
    }

    /// The failure of a system call on `what`, with the kind that its errno has.
    pub fn io(what: impl fmt::Display, error: io::Error) -> Self {
        let kind = match error.raw_os_error() {
            Some(code) => crate::errno::kind(code),
            None => match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => ErrorKind::Corrupt,
                _ => ErrorKind::Io,
            },
        };
        Self::with_source(kind, format!("{what}: {error}"), error)
    }

    /// The failure of a system call on `what` by its errno.
    pub fn os(what: impl fmt::Display, errno: i32) -> Self {
        Self::io(what, io::Error::from_raw_os_error(errno))
    }

    /// What happened.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno that a program sees for it.
    pub fn errno(&self) -> i32 {
        crate::errno::errno(self.0.kind)
    }

    /// The line for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The same failure seen one level higher: `context` is put before the message, the kind stays.
    pub fn context(self, context: impl fmt::Display) -> Self {
        let kind = self.kind();
        Self::with_source(kind, format!("{context}: {}", self.message()), self)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}
