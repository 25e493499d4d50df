//! How objects are changed: the interface between whoever stages files and an object store.
//!
//! Keys are whole keys of the bucket; [`key`](ObjectWrites::key) and [`prefix`](ObjectWrites::prefix) make them of paths.
//!
//! Invariants that every implementation keeps:
//! - each call ends, since it has a deadline that grows with the bytes that it moves;
//! - a call that failed may be made again: what it did, or did in part, is overwritten or does no harm;
//! - a call that failed only in its answer is recognised as done, if the store can tell;
//! - memory is bounded by the buffers that the caller gave, and a few pieces of each file that is being sent.

use async_trait::async_trait;
use bytes::Bytes;
use common::{Result, Timestamp, UfsPath, Version};
use std::{collections::BTreeMap, fs::File, ops::Range, sync::Arc};

/// What an object carries beside its bytes: names in lower case, values of visible ASCII without spaces.
pub type Metadata = BTreeMap<String, String>;

/// The bytes of an object or of a part. They stay as they are while they are sent.
#[derive(Debug, Clone)]
pub enum Body {
    /// In memory.
    Bytes(Bytes),
    /// In a file.
    File {
        /// The file.
        file: Arc<File>,
        /// Where the bytes begin.
        offset: u64,
        /// Their number.
        length: u64,
    },
}

impl Body {
    /// The number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { length, .. } => *length,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Body::Bytes(bytes.into())
    }
}

/// What must hold of the object that is there, for a change to happen; else it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is none (else `AlreadyExists`).
    Absent,
    /// It has this version (else `Stale`).
    Version(Version),
}

/// What became of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The version that the object has now.
    pub version: Version,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its version.
    pub version: Version,
    /// Bytes.
    pub size: u64,
    /// When it was stored.
    pub modified: Timestamp,
    /// What it carries.
    pub metadata: Metadata,
}

/// A part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number, from 1 on.
    pub number: u32,
    /// What the store calls it.
    pub etag: String,
}

/// A key as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedKey {
    /// The whole key.
    pub key: String,
    /// Bytes of the object.
    pub size: u64,
    /// Its version.
    pub version: Version,
    /// When it was stored.
    pub modified: Timestamp,
}

/// Some keys below a prefix, in order.
#[derive(Debug, Clone, Default)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<ListedKey>,
    /// What brings the page after it; none at the end.
    pub next: Option<String>,
}

/// What the store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The least bytes of a part that is not the last.
    pub part_min: u64,
    /// The most bytes of a part, of an object in one piece, and of a copy in one piece.
    pub part_max: u64,
    /// The most parts of an upload.
    pub parts: u32,
    /// The most bytes of an object.
    pub object_max: u64,
    /// The most bytes of metadata, names included.
    pub metadata_max: usize,
}

/// Changes of objects.
#[async_trait]
pub trait ObjectWrites: Send + Sync {
    /// Names the store and the place in it, so that what was staged for one is never uploaded to another.
    fn identity(&self) -> String;

    /// What the store takes.
    fn limits(&self) -> Limits;

    /// The key of the file at `path`. Fails for names that no object can have, with the errno that they deserve.
    fn key(&self, path: &UfsPath) -> Result<String>;

    /// The prefix of the keys in the directory at `path`, which is also the key of its mark: empty, or with a `/` at the
    /// end.
    fn prefix(&self, path: &UfsPath) -> Result<String>;

    /// What is known of an object; none when it is not there.
    async fn find(&self, key: &str) -> Result<Option<Found>>;

    /// A whole small object, of `most` bytes at most; none when it is not there.
    async fn get(&self, key: &str, most: u32) -> Result<Option<(Bytes, Version)>>;

    /// Writes an object in one piece.
    async fn put(&self, key: &str, body: &Body, metadata: &Metadata, condition: &Condition) -> Result<Stored>;

    /// Asks whether an object may be written at `key`, without writing one. Fails as a write would.
    async fn may_write(&self, key: &str) -> Result<()>;

    /// Begins an upload in parts, and names it.
    async fn begin(&self, key: &str, metadata: &Metadata) -> Result<String>;

    /// Uploads a part; one of the same number is replaced.
    async fn part(&self, key: &str, upload: &str, number: u32, body: &Body) -> Result<Part>;

    /// Makes a part of a range of an object that is there, in this version (else `Stale`).
    async fn part_copy(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        source: (&str, &Version),
        range: Range<u64>,
    ) -> Result<Part>;

    /// Makes an object of the parts, in order of their numbers. `mark` is one of the pairs of metadata that the upload
    /// began with and no other has: by it an object is recognised that was made although the answer said otherwise.
    async fn complete(&self, key: &str, upload: &str, parts: &[Part], mark: (&str, &str)) -> Result<Stored>;

    /// Gives up an upload; one that is not there is no error.
    async fn abort(&self, key: &str, upload: &str) -> Result<()>;

    /// Copies an object of this version and size (else `Stale`), its metadata with it. `NotFound` when it is not there.
    async fn copy(&self, from: &str, version: &Version, size: u64, to: &str) -> Result<Stored>;

    /// Removes an object; one that is not there is no error.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Removes an object of this version (else `Stale`); one that is not there is no error. Between looking and removing a
    /// service that knows no conditions leaves a moment.
    async fn delete_version(&self, key: &str, version: &Version) -> Result<()>;

    /// Removes objects, any number. Fails when one of them stayed.
    async fn delete_all(&self, keys: &[String]) -> Result<()>;

    /// Lists keys that begin with `prefix`, directories or not, `most` at most (1,000 at most).
    async fn keys(&self, prefix: &str, token: Option<&str>, most: u32) -> Result<KeyPage>;
}
