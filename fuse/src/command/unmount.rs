//! `alluxio-fuse umount`: takes a mount down, whether its daemon lives or not.

use super::{Failure, complain, configuration};
use crate::session::{
    SessionError,
    control::{self, Question, Status, Uploads},
    kernel::{self, Unmounted},
    mounts, point,
    record::{Found, StateDir},
};
use common::conf::keys;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long a mount may be busy before it is detached with its files open. Programs that look at every new mount
/// are gone by then.
const BUSY: Duration = Duration::from_secs(1);
/// How long the daemon may take to end when it has nothing to upload.
const ENDING: Duration = Duration::from_secs(12);
/// How often it is asked what it still uploads.
const LOOK: Duration = Duration::from_millis(500);
/// After so long it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Unmounts what is at `path`; returns the exit code.
pub(super) fn unmount(path: &Path) -> Result<i32, Failure> {
    let point = point::resolve(path)?;
    let shown = point.display();
    let mount = mounts::at(&point)?.ok_or_else(|| {
        SessionError::refused(format!("{shown} is not mounted; `alluxio-fuse status` shows the mounts"))
    })?;
    if !mount.is_ours() {
        return Err(SessionError::refused(format!(
            "{shown} is a mount of {} ({}), not one of alluxio-fuse; use umount",
            mount.source, mount.fs_type
        ))
        .into());
    }
    // Without records (another user's mount, say) the mount can be taken down all the same.
    let state =
        configuration(None).ok().and_then(|conf| StateDir::existing(&conf.get(&keys::fuse::STATE_DIR)).ok().flatten());
    let found = match &state {
        Some(state) => state.find(&point, mount.device)?,
        None => None,
    };
    let begin = Instant::now();
    while kernel::unmount(&point, mount.device, false)? == Unmounted::Busy {
        if begin.elapsed() < BUSY {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        kernel::unmount(&point, mount.device, true)?;
        complain(&format!(
            "{shown} is in use: it was detached; programs that have files open there keep them, and the daemon ends when the last is closed"
        ));
        return Ok(0);
    }
    match found {
        Some(found) if found.live && !wait(&found) => {
            complain(&format!("{shown} is unmounted, but its daemon (pid {}) is still closing", found.record.pid));
        }
        Some(found) => found.clear(),
        None => {}
    }
    Ok(0)
}

/// Waits for the daemon to end, as long as it uploads what was written: it ends by itself when that makes no progress.
/// Returns whether it ended.
fn wait(found: &Found) -> bool {
    let begin = Instant::now();
    let mut uploads = Uploads::default();
    let mut told = false;
    while !found.wait(LOOK) {
        match control::ask::<Status>(&found.socket, Question::Status) {
            Ok(status) => uploads = status.uploads,
            // Between its last answer and its end.
            Err(_) if begin.elapsed() < ENDING => {}
            Err(_) => return false,
        }
        if uploads.files == 0 && begin.elapsed() >= ENDING {
            return false;
        }
        if uploads.files > 0 && !told && begin.elapsed() >= PATIENCE {
            told = true;
            complain(&format!("waiting for {} files to be uploaded; Ctrl-C leaves that to the daemon", uploads.files));
        }
    }
    if uploads.failed > 0
        && let Some(first) = uploads.list.first()
    {
        complain(&format!(
            "{} files are not uploaded, first {}: {}; they stay in the stage, and the next mount of the storage on this host goes on with them",
            uploads.files,
            first.path,
            first.error.as_deref().unwrap_or_default()
        ));
    }
    true
}
