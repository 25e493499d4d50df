//! Whether close(2) of a written file of this host is told to the daemon.
//!
//! It costs each close a request, so it is asked for only where closing can fail: not on file systems of local disks.

use common::Attr;
use parking_lot::RwLock;
use std::{collections::HashMap, fs::File};

/// What is known of the file systems below, by device.
#[derive(Default)]
pub(super) struct Closing {
    tells: RwLock<HashMap<u64, bool>>,
}

impl Closing {
    /// Whether close(2) of this file may tell an error.
    pub(super) fn tells(&self, file: &File, attr: &Attr) -> bool {
        let Some(local) = attr.local else { return true };
        if let Some(tells) = self.tells.read().get(&local.dev) {
            return *tells;
        }
        let tells = ufs::local::tells_at_close(file);
        // One for each mounted file system below, and those are few.
        self.tells.write().insert(local.dev, tells);
        tells
    }
}
