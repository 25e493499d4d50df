//! What all changes have in common: whether they are taken at all, and what is noted of them.

use super::{Entry, Fs, files::tell, inode::Inode, open::changed};
use common::{
    Attr, Error, ErrorKind, Result, UfsPath,
    change::{Caller, Changes},
    worker::LocalFile,
};
use std::sync::Arc;

impl Fs {
    /// Whether this mount takes changes.
    pub fn takes_changes(&self) -> bool {
        self.changes().is_ok()
    }

    /// Who makes changes here.
    ///
    /// # Errors
    /// `ReadOnly` when the mount takes none, by option or because its storage cannot.
    pub(super) fn changes(&self) -> Result<&dyn Changes> {
        self.worker().changes().filter(|_| !self.options.read_only).ok_or_else(read_only)
    }

    /// The file of this host that `inode` stands for, held where it should be at `path`: to change it through what is held
    /// changes no other file that has taken its place. `None`: files of this storage are changed by their path.
    ///
    /// # Errors
    /// `Stale` when another file is there.
    pub(super) fn held(&self, inode: &Arc<Inode>, path: &UfsPath) -> Result<Option<LocalFile>> {
        let Some(expected) = inode.local else { return Ok(None) };
        match self.worker().changes().and_then(|changes| changes.hold(path)) {
            None => Ok(None),
            Some(Ok(held)) if held.attr.local != Some(expected) => Err(changed(inode)),
            Some(held) => held.map(Some),
        }
    }

    /// The entry for a name that was just made.
    pub(super) fn made(&self, parent: &Arc<Inode>, name: &[u8], attr: Arc<Attr>) -> Entry {
        self.entry(parent, name, attr)
    }

    /// What the kernel is told of `inode` after it was changed.
    pub(super) fn changed(&self, inode: &Arc<Inode>, attr: &Arc<Attr>) -> Entry {
        tell(inode, attr).unwrap_or_else(|| {
            // Another version is open, so nothing of this may be kept.
            inode.state.lock().told = None;
            Entry { id: inode.id, attr: attr.clone(), lasting: false }
        })
    }

    /// Notes that a name of `inode` is gone or another.
    pub(super) fn unsettled(&self, inode: &Arc<Inode>) {
        inode.state.lock().told = None;
        if inode.is_nameless() {
            // A removed file must not be kept from going.
            self.passthrough.drop_kept(inode.id);
        }
    }
}

/// Refuses a change.
pub(super) fn read_only() -> Error {
    Error::new(ErrorKind::ReadOnly, "this mount takes no writes")
}

/// Whether set-id bits fall when this user changes a file.
pub(super) fn loses_set_id(caller: Caller) -> bool {
    caller.uid != 0
}
