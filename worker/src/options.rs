//! What can be set on an embedded worker.

use crate::clock::Clock;
use common::conf::{Conf, keys::user};
use std::time::Duration;

/// Settings of an [`EmbeddedWorker`](crate::EmbeddedWorker).
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// For how long attributes and listings count without asking the storage again; `None`: for ever (a mount declared
    /// immutable), zero: always ask.
    pub sync_interval: Option<Duration>,
    /// For how long "no such file" counts. Never longer than `sync_interval`.
    pub negative_ttl: Duration,
    /// Names whose attributes are kept, in all. About 300 bytes each.
    pub metadata_entries: usize,
    /// Names of one directory that are kept at most; a longer listing streams by.
    pub directory_entries: usize,
    /// Directories that a walk is allowed to be ahead of its reader.
    pub walk_ahead: usize,
    /// Listings made ahead at the same time.
    pub walk_parallel: usize,
    /// Metadata requests at the storage at the same time, background work included.
    pub metadata_requests: usize,
    /// First bytes asked together with the attributes of a file that nothing is known about; 0 turns that off.
    pub head_bytes: u32,
    /// First bytes kept in all until their file is opened.
    pub head_total: usize,
    /// How long a lookup waits for a listing that is under way before it asks for its one file.
    pub listing_patience: Duration,
    /// Bytes of a page of a file that is read before it is in the storage.
    pub staged_page: u32,
    /// The clock that ages what is cached.
    pub clock: Clock,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            sync_interval: Some(Duration::from_secs(60)),
            negative_ttl: Duration::from_secs(5),
            metadata_entries: 200_000,
            directory_entries: 100_000,
            walk_ahead: 64,
            walk_parallel: 12,
            metadata_requests: 128,
            head_bytes: 128 << 10,
            head_total: 8 << 20,
            listing_patience: Duration::from_millis(50),
            staged_page: 1 << 20,
            clock: Clock::system(),
        }
    }
}

impl WorkerOptions {
    /// What the configuration says of metadata.
    pub fn from_conf(conf: &Conf) -> Self {
        let entries = usize::try_from(conf.get(&user::METADATA_CACHE_MAX_SIZE)).unwrap_or(usize::MAX);
        let ages =
            [conf.get(&user::METADATA_SYNC_INTERVAL).after(), conf.get(&user::METADATA_CACHE_EXPIRATION_TIME).after()];
        Self {
            // Without entries nothing is remembered, as with an interval of nothing.
            sync_interval: if entries == 0 { Some(Duration::ZERO) } else { ages.into_iter().flatten().min() },
            negative_ttl: conf.get(&user::METADATA_NEGATIVE_TTL),
            metadata_entries: entries,
            ..Self::default()
        }
    }
}
