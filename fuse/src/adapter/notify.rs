//! Tells the kernel what to forget, from a thread of its own.
//!
//! Invariant: nobody waits for this thread. A notice may wait in the kernel for a request that is being answered.

use crate::fs::changed::{Notice, Notices};
use fuser::{INodeNo, Notifier};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

/// Sends notices until they are closed.
pub fn start(notices: Arc<Notices>, notifier: Notifier) {
    notices.attend();
    let send = move || {
        while let Some(notice) = notices.next() {
            let sent = match &notice {
                // A negative offset: attributes only, never pages.
                Notice::Attributes(node) => notifier.inval_inode(INodeNo(*node), -1, 0),
                Notice::Name { parent, name } => notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)),
            };
            match sent {
                Ok(()) => {}
                // The mount is gone.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return,
                Err(error) => tracing::debug!(%error, ?notice, "the kernel does not take a notice"),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("notify".into()).spawn(send) {
        tracing::warn!(%error, "the kernel is not told of changes made by others; its entries age");
    }
}
