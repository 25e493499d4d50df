//! Whether the credentials may write at all, asked when the first file is to be written: who may only read learns it from open,
//! as POSIX has it, rather than from a close that leaves a file behind which will never be uploaded.

use super::Stage;
use common::{Error, ErrorKind, Result, UfsPath};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long a refusal counts before it is asked again: rights may be granted while a mount lives.
const COUNTS: Duration = Duration::from_secs(10);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Permission {
    granted: AtomicBool,
    refused: tokio::sync::Mutex<Option<(Error, Instant)>>,
}

impl Stage {
    /// Fails when this mount may not write. Asked at the storage once, with the key that is to be written.
    pub(super) async fn may_write(&self, path: &UfsPath) -> Result<()> {
        if self.permission.granted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let key = self.check(path)?;
        let mut refused = self.permission.refused.lock().await;
        if self.permission.granted.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Some((error, at)) = refused.as_ref()
            && at.elapsed() < COUNTS
        {
            return Err(error.clone());
        }
        match self.objects().may_write(&key).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                *refused = Some((error.clone(), Instant::now()));
                Err(error)
            }
            // Any other trouble is told by the upload.
            _ => {
                *refused = None;
                self.permission.granted.store(true, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}
