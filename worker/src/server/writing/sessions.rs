//! Who has which files open for writing.
//!
//! A session lives as long as its [`Guard`], which is part of the answer that its client takes: when the client goes away,
//! in whatever manner, the connection ends, the answer is dropped, and the files are closed. What was written and not
//! closed with success is as the storage has it: in a directory as after a kill of the writer, in an object store as
//! before.
//!
//! Invariants: a session is named by 16 random bytes that only its client knows; the files of each are bounded.

use crate::server::namespace::Mounted;
use common::{Error, ErrorKind, Result, UfsPath, change::WriteHandle};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

/// An open file.
pub(super) struct OpenFile {
    mounted: Arc<Mounted>,
    /// Where it was opened.
    path: UfsPath,
    pub file: Arc<dyn WriteHandle>,
    /// Changed since others were last told.
    changed: AtomicBool,
}

impl OpenFile {
    pub fn new(mounted: Arc<Mounted>, path: UfsPath, file: Arc<dyn WriteHandle>) -> Self {
        Self { mounted, path, file, changed: AtomicBool::new(false) }
    }

    /// Notes that it changes.
    pub fn changes(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// Tells whoever caches it, if it changed.
    pub fn publish(&self) {
        if self.changed.swap(false, Ordering::AcqRel) {
            self.mounted.published(std::slice::from_ref(&self.path), false);
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.publish();
    }
}

type Id = [u8; 16];

/// The files of one client.
pub(super) struct Session {
    most: usize,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    open: HashMap<u64, Arc<OpenFile>>,
    next: u64,
}

impl Session {
    /// A number for an open file.
    ///
    /// # Errors
    /// `TooManyFiles`; then it is closed.
    pub fn insert(&self, file: OpenFile) -> Result<u64> {
        let mut files = self.files.lock();
        if files.open.len() >= self.most {
            drop(files);
            return Err(Error::new(
                ErrorKind::TooManyFiles,
                format!("{} files are open for writing through this worker; close some", self.most),
            ));
        }
        let number = files.next;
        files.next += 1;
        files.open.insert(number, Arc::new(file));
        Ok(number)
    }
}

/// All sessions.
pub(super) struct Sessions {
    most: usize,
    open: Mutex<HashMap<Id, Arc<Session>>>,
}

/// Holds a session open.
pub(super) struct Guard {
    id: Id,
    sessions: Weak<Sessions>,
}

impl Guard {
    pub fn id(&self) -> &Id {
        &self.id
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(sessions) = self.sessions.upgrade() else { return };
        let ended = sessions.open.lock().remove(&self.id);
        let Some(session) = ended else { return };
        let files = std::mem::take(&mut session.files.lock().open);
        if files.is_empty() {
            return;
        }
        tracing::info!("{} files are closed whose client went away", files.len());
        // To close may take its time. Without a runtime the process ends anyway.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(files))),
            Err(_) => drop(files),
        }
    }
}

impl Sessions {
    /// None yet; each may have `most` files open.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    /// A new session.
    pub fn begin(self: &Arc<Self>, name: &str) -> Guard {
        let id = *uuid::Uuid::new_v4().as_bytes();
        tracing::debug!("{name:?} begins to write");
        self.open.lock().insert(id, Arc::new(Session { most: self.most, files: Mutex::default() }));
        Guard { id, sessions: Arc::downgrade(self) }
    }

    /// The session of this name.
    ///
    /// # Errors
    /// `BadHandle`: it has ended, or is one of an earlier process.
    pub fn find(&self, id: &[u8]) -> Result<Arc<Session>> {
        let known = Id::try_from(id).ok().and_then(|id| self.open.lock().get(&id).cloned());
        known.ok_or_else(|| Error::new(ErrorKind::BadHandle, "the session has ended; its files are closed"))
    }

    /// An open file.
    ///
    /// # Errors
    /// `BadHandle`.
    pub fn file(&self, id: &[u8], handle: u64) -> Result<Arc<OpenFile>> {
        let file = self.find(id)?.files.lock().open.get(&handle).cloned();
        file.ok_or_else(|| Error::new(ErrorKind::BadHandle, format!("no file {handle} is open in this session")))
    }

    /// Closes a file, if it is open.
    pub fn close(&self, id: &[u8], handle: u64) {
        if let Ok(session) = self.find(id) {
            let closed = session.files.lock().open.remove(&handle);
            drop(closed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_with_its_guard_and_is_known_to_nobody_else() {
        let sessions = Sessions::new(1);
        let (one, two) = (sessions.begin("one"), sessions.begin("two"));
        assert_ne!(one.id(), two.id());
        assert!(sessions.find(one.id()).is_ok() && sessions.find(two.id()).is_ok());
        let id = *one.id();
        drop(one);
        assert_eq!(sessions.find(&id).err().unwrap().kind(), ErrorKind::BadHandle);
        assert_eq!(sessions.find(b"short").err().unwrap().kind(), ErrorKind::BadHandle);
        assert_eq!(sessions.file(two.id(), 0).err().unwrap().kind(), ErrorKind::BadHandle);
    }
}
