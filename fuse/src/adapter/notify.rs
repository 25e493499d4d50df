//! Tells the kernel what to forget, from a thread of its own.
//!
//! Invariant: nobody waits for this thread. A notice may wait in the kernel for a request that is being answered.

use crate::fs::{
    Fs,
    changed::{Notice, Notices},
};
use fuser::{INodeNo, Notifier};
use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    sync::{Arc, Weak},
};

/// Sends notices until they are closed, or the mount is gone.
pub fn start(fs: Weak<Fs>, notices: Arc<Notices>, notifier: Notifier) {
    notices.attend();
    let send = move || {
        while let Some(notice) = notices.next() {
            let gone = match &notice {
                Notice::Attributes(node) => is_gone(forget_attributes(&notifier, *node), &notice),
                Notice::Name { parent, name } => {
                    is_gone(notifier.inval_entry(INodeNo(*parent), OsStr::from_bytes(name)), &notice)
                }
                Notice::Everything => {
                    let Some(fs) = fs.upgrade() else { return };
                    fs.all_nodes().flatten().any(|node| is_gone(forget_attributes(&notifier, node), &notice))
                }
            };
            if gone {
                return;
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("notify".into()).spawn(send) {
        tracing::warn!(%error, "the kernel is not told of changes made by others; its entries age");
    }
}

fn forget_attributes(notifier: &Notifier, node: u64) -> io::Result<()> {
    // A negative offset: attributes only, never pages.
    notifier.inval_inode(INodeNo(node), -1, 0)
}

/// Whether the mount is gone; any other error is of this notice only.
fn is_gone(sent: io::Result<()>, notice: &Notice) -> bool {
    match sent {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => true,
        Err(error) => {
            tracing::debug!(%error, ?notice, "the kernel does not take a notice");
            false
        }
    }
}
