//! What can be set on a stage.

use common::conf::{Conf, keys::user};
use std::{path::PathBuf, time::Duration};

/// Settings of a [`Stage`](super::Stage).
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// The directory below which each stage has one of its own.
    pub directory: PathBuf,
    /// Bytes of all staged files together.
    pub capacity: u64,
    /// How long a writer waits for space before it is told that there is none.
    pub wait: Duration,
    /// Files up to this size are written in one piece.
    pub put_max: u64,
    /// Bytes of the first parts of an upload; later ones are larger.
    pub part: u64,
    /// Parts of one file under way at the same time.
    pub parallel: usize,
    /// The first pause before a failed upload is tried again; doubled each time.
    pub retry_first: Duration,
    /// The longest pause.
    pub retry_longest: Duration,
    /// Closing answers before the upload.
    pub writeback: bool,
    /// How long a close or a sync waits for an upload that makes no progress.
    pub patience: Duration,
    /// How long what is known of attribute objects counts without asking again.
    pub attributes_age: Duration,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/alluxio-fuse/stage"),
            capacity: 10 << 30,
            wait: Duration::from_secs(30),
            put_max: 16 << 20,
            part: 8 << 20,
            parallel: 6,
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(60),
            writeback: false,
            patience: Duration::from_secs(120),
            attributes_age: Duration::from_secs(10),
        }
    }
}

impl StageOptions {
    /// What the configuration says.
    pub fn from_conf(conf: &Conf) -> Self {
        Self {
            directory: conf.get(&user::STAGE_DIR),
            capacity: conf.get(&user::STAGE_SIZE).bytes(),
            wait: conf.get(&user::UFS_DEADLINE),
            writeback: conf.get(&user::WRITEBACK),
            // As long as an upload may take between two signs of life.
            patience: conf.get(&user::UFS_DEADLINE) * 4,
            attributes_age: conf.get(&user::METADATA_SYNC_INTERVAL).after().unwrap_or(Duration::from_secs(60)),
            ..Self::default()
        }
    }
}
