//! Whether the credentials may write at all, asked when the first file is to be written: who may only read learns it from open,
//! as POSIX has it, rather than from a close that leaves a file behind which will never be uploaded.

use super::Stage;
use common::{ErrorKind, Result, UfsPath};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How long a refusal counts before it is asked again, since rights may be granted while a mount lives; and for how long a
/// storage that could not say is left alone.
const COUNTS: Duration = Duration::from_secs(10);

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Permission {
    granted: AtomicBool,
    lately: tokio::sync::Mutex<Option<(Result<()>, Instant)>>,
}

impl Stage {
    /// Fails when this mount may not write. Asked at the storage once, with the key that is to be written.
    pub(super) async fn may_write(&self, path: &UfsPath) -> Result<()> {
        if self.permission.granted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let key = self.check(path)?;
        let mut lately = self.permission.lately.lock().await;
        if self.permission.granted.load(Ordering::Relaxed) {
            return Ok(());
        }
        if let Some((verdict, at)) = lately.as_ref()
            && at.elapsed() < COUNTS
        {
            return verdict.clone();
        }
        let verdict = match self.objects().may_write(&key).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(error),
            // Any other trouble is told by the upload.
            Err(_) => Ok(()),
            Ok(_) => {
                self.permission.granted.store(true, Ordering::Relaxed);
                Ok(())
            }
        };
        *lately = Some((verdict.clone(), Instant::now()));
        verdict
    }
}
