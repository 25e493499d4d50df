//! What must be gone at the end, kept in one place, so that any thread can take it down at any moment.
//!
//! Invariants: every step may be made twice, and by two threads; what a step finds gone already is fine; the mount is
//! made under the lock, so that there is no moment at which it exists and is not known here.

use super::{
    Result, SessionError,
    kernel::{self, Mounted},
    mounts::Device,
    point,
    record::RecordFile,
};
use parking_lot::{Mutex, MutexGuard};
use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

/// How long the one who forces the end waits for somebody who is making or taking down the mount.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct State {
    created: Vec<PathBuf>,
    mount: Option<(PathBuf, Device)>,
    record: Option<RecordFile>,
    /// Nothing new may come up any more.
    over: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Teardown(Mutex<State>);

impl Teardown {
    fn open(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.0.lock();
        if state.over {
            return Err(SessionError::refused("interrupted"));
        }
        Ok(state)
    }

    /// Creates the mount point if it is missing, and makes the mount. Returns the connection, the device number and the
    /// directories that were created.
    pub fn mount(&self, request: &kernel::MountRequest) -> Result<(OwnedFd, Device, Vec<PathBuf>)> {
        let mut state = self.open()?;
        state.created = point::create(&request.point)?;
        let Mounted { connection, device } = kernel::make(request)?;
        state.mount = Some((request.point.clone(), device));
        Ok((connection, device, state.created.clone()))
    }

    /// Writes the record with `write` and remembers to remove it.
    pub fn record(&self, write: impl FnOnce() -> Result<RecordFile>) -> Result<()> {
        let mut state = self.open()?;
        state.record = Some(write()?);
        Ok(())
    }

    /// Takes the mount out of the tree. Files that are open stay usable while the daemon serves them.
    pub fn detach(&self) -> Result<()> {
        detach(&mut self.0.lock())
    }

    /// Takes down everything that is left. The mount point is removed when it was created.
    pub fn finish(&self) -> Result<()> {
        finish(&mut self.0.lock())
    }

    /// The same for one who cannot wait for others.
    pub fn force(&self) -> Result<()> {
        match self.0.try_lock_for(PATIENCE) {
            Some(mut state) => finish(&mut state),
            None => Err(SessionError::refused("another thread is stuck while it takes down the mount")),
        }
    }
}

fn detach(state: &mut State) -> Result<()> {
    if let Some((point, device)) = &state.mount {
        kernel::unmount(point, *device, true)?;
        state.mount = None;
    }
    Ok(())
}

fn finish(state: &mut State) -> Result<()> {
    state.over = true;
    let detached = detach(state);
    if detached.is_ok() {
        point::remove(&std::mem::take(&mut state.created));
    }
    if let Some(record) = state.record.as_mut() {
        record.remove();
    }
    detached
}
