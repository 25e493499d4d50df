//! Where the volumes of a class lie: what the controller needs of a directory or of a prefix of S3.
//!
//! Invariants: paths are relative to the root and have been checked; [`Shelf::put_new`] is decided by the storage, so of two
//! that make the same file one fails; whatever moves or removes much does so in steps, and can be repeated.

use super::{directory::Directory, prefix::Prefix};
use common::{
    UfsUri,
    conf::{Conf, Role, Source},
};
use std::{sync::Arc, time::Duration};
use tonic::Status;

/// What a step that may take long has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// All of it is done.
    Done,
    /// Some of it is done; the same call goes on.
    More,
}

/// What is at the name of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A directory with nothing in it.
    Empty,
    /// Something.
    Files,
}

/// A root of volumes. Each call ends within the deadlines of its storage.
#[tonic::async_trait]
pub trait Shelf: Send + Sync {
    /// A small file and what names its version.
    async fn get(&self, path: &str) -> Result<Option<(Vec<u8>, String)>, Status>;
    /// Makes a small file, durably; false when there is one.
    async fn put_new(&self, path: &str, bytes: Vec<u8>) -> Result<bool, Status>;
    /// Replaces a small file, durably; false when it has another version by now.
    async fn put_over(&self, path: &str, bytes: Vec<u8>, version: &str) -> Result<bool, Status>;
    /// Removes a small file; one that is not there is fine.
    async fn remove(&self, path: &str) -> Result<(), Status>;
    /// The names in a directory after `after`, in order, `most` at most. None in one that is not there.
    async fn names(&self, path: &str, after: &str, most: usize) -> Result<Vec<String>, Status>;
    /// What is at a name.
    async fn held(&self, path: &str) -> Result<Held, Status>;
    /// Makes a directory and those above it.
    async fn make(&self, path: &str) -> Result<(), Status>;
    /// Moves a directory; one that is not there is moved already.
    async fn shift(&self, from: &str, to: &str) -> Result<Step, Status>;
    /// Removes a directory with all that is in it.
    async fn purge(&self, path: &str) -> Result<Step, Status>;
    /// Bytes that are free, where that is known.
    async fn free(&self) -> Result<Option<i64>, Status>;
}

/// Opens the root `uri`.
///
/// # Errors
/// INVALID_ARGUMENT: not a kind of storage that takes volumes.
pub fn open(uri: &UfsUri, secrets: &crate::keys::Settings) -> Result<Arc<dyn Shelf>, Status> {
    if uri.scheme() == "file" {
        return Ok(Arc::new(Directory::new(format!("/{}", uri.path()).into())));
    }
    let mut builder = Conf::builder().process(Role::Client);
    for (key, value) in secrets {
        builder = builder.set(key, value, Source::CommandLine("the class's secret".into()));
    }
    let conf = builder.load().map_err(|error| Status::failed_precondition(error.to_string()))?;
    let storage = ufs::open(uri, &ufs::UfsOptions::from_conf(&conf, uri)).map_err(|error| of(&error))?;
    if storage.objects().is_none() {
        return Err(Status::invalid_argument(format!(
            "{uri}: volumes can be made in directories (file:///…) and in S3 only; for other storages make PersistentVolumes by hand"
        )));
    }
    Ok(Arc::new(Prefix::new(storage)))
}

/// The status that tells of an error of a storage.
pub fn of(error: &common::Error) -> Status {
    use common::ErrorKind;
    let line = common::redact::text(error.message());
    match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::NameTooLong => Status::invalid_argument(line),
        ErrorKind::TimedOut => Status::deadline_exceeded(line),
        ErrorKind::Unavailable | ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Cancelled => Status::unavailable(line),
        ErrorKind::NoSpace | ErrorKind::QuotaExceeded => Status::resource_exhausted(line),
        // Bucket, rights: for the administrator.
        _ => Status::failed_precondition(line),
    }
}

/// How long a call on a local directory, which may be of a network file system, may take.
pub const PATIENCE: Duration = Duration::from_secs(30);
