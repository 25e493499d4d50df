//! What can be wrong with a configuration: one line that names the thing, where it stands, and the fix.

use super::Source;
use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A value that its key does not take.
    #[error("{key}={value} ({origin}) {reason}")]
    Value {
        /// The canonical name of the key.
        key: String,
        /// The value, or stars if it is secret.
        value: String,
        /// Where it was set.
        origin: Source,
        /// What is wrong and the fix.
        reason: String,
    },
    /// A properties file that cannot be read.
    #[error("{path} {reason}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and the fix.
        reason: String,
    },
    /// An environment variable that cannot be read.
    #[error("the environment variable {variable} {reason}")]
    Variable {
        /// The variable.
        variable: String,
        /// What is wrong and the fix.
        reason: String,
    },
    /// A mount option that cannot be used.
    #[error("mount option {option}: {reason}")]
    MountOption {
        /// The option as written, its value hidden if secret.
        option: String,
        /// What is wrong and the fix.
        reason: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Conflict(String),
}
