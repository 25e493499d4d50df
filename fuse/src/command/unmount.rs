//! `alluxio-fuse umount`: takes a mount down, whether its daemon lives or not.

use super::{Failure, complain, configuration};
use crate::session::{
    SessionError,
    kernel::{self, Unmounted},
    mounts, point,
    record::StateDir,
};
use common::conf::keys;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long a mount may be busy before it is detached with its files open. Programs that look at every new mount
/// are gone by then.
const BUSY: Duration = Duration::from_secs(1);
/// How long the daemon may take to end.
const ENDING: Duration = Duration::from_secs(12);

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
        Some(found) if found.live && !found.wait(ENDING) => {
            complain(&format!("{shown} is unmounted, but its daemon (pid {}) is still closing", found.record.pid));
        }
        Some(found) => found.clear(),
        None => {}
    }
    Ok(0)
}
