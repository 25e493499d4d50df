//! Why a mount cannot be made, found or taken down: one line that names the thing and the fix.

use std::{fmt, io};

/// Shorthand for results with [`SessionError`].
pub type Result<T, E = SessionError> = std::result::Result<T, E>;

/// A failure of the session.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The user asked for something that cannot be; the line says what and how to put it right.
    #[error("{0}")]
    Refused(String),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried, on which thing.
        what: String,
        /// How it failed.
        #[source]
        source: io::Error,
    },
}

impl SessionError {
    /// A refusal with this line.
    pub fn refused(line: impl Into<String>) -> Self {
        Self::Refused(line.into())
    }

    /// The failure of a system call on `what`.
    pub fn system(what: impl fmt::Display, source: impl Into<io::Error>) -> Self {
        Self::System { what: what.to_string(), source: source.into() }
    }
}
