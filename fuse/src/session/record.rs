//! The records of running mounts: one file each in the state directory, with a socket beside it (see [`super::control`]).
//!
//! Invariants:
//! - a record's file is locked (flock) by its daemon as long as that lives; the kernel drops the lock however it ends, so
//!   no process number that was used again can be mistaken for a daemon;
//! - a daemon removes only its own record; everybody may remove those of the dead;
//! - the directory belongs to this user and nobody else may write to it.

use super::{
    Result, SessionError,
    mounts::{self, Device},
    point,
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// The largest record that is read.
const RECORD_MAX: u64 = 64 * 1024;

/// What is recorded of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where it is mounted: absolute, without links.
    pub mount_point: PathBuf,
    /// What is mounted, without secrets.
    pub source: String,
    /// Device number, `major:minor`.
    pub device: String,
    /// The daemon's process number.
    pub pid: u32,
    /// When it was mounted, in seconds since 1970.
    pub started: i64,
    /// Directories that were created for the mount point, the topmost first.
    pub created: Vec<PathBuf>,
    /// The version of the daemon.
    pub version: String,
    /// Where the daemon logs to, if to a file.
    pub log_file: Option<PathBuf>,
}

impl Record {
    /// The device number.
    pub fn device(&self) -> Option<Device> {
        self.device.parse().ok()
    }

    fn name(&self) -> String {
        let minor = self.device().map_or(0, |device| device.minor);
        format!("{minor}-{}", self.pid)
    }
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct StateDir(PathBuf);

/// A record that was found.
#[derive(Debug)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// Whether its daemon lives.
    pub live: bool,
    /// Its socket.
    pub socket: PathBuf,
    file: File,
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory and makes it when missing.
    pub fn create(path: &Path) -> Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
            SessionError::refused(format!(
                "the state directory {} cannot be created: {error}; set alluxio.fuse.state.dir to one that can",
                path.display()
            ))
        })?;
        let found = path.symlink_metadata().map_err(|error| SessionError::system(path.display(), error))?;
        let me = nix::unistd::geteuid().as_raw();
        if !found.is_dir() || found.uid() != me || found.mode() & 0o022 != 0 {
            return Err(SessionError::refused(format!(
                "the state directory {} must be a directory of this user that nobody else may write to; put it right, or set alluxio.fuse.state.dir to another",
                path.display()
            )));
        }
        if let Some(parent) = path.parent().and_then(|parent| parent.symlink_metadata().ok())
            && parent.uid() != me
            && parent.uid() != 0
        {
            return Err(SessionError::refused(format!(
                "the state directory {} lies in a directory of another user; set alluxio.fuse.state.dir to another",
                path.display()
            )));
        }
        Ok(Self(path.to_owned()))
    }

    /// The directory if it is there.
    pub fn existing(path: &Path) -> Result<Option<Self>> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            _ => Self::create(path).map(Some),
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a record and locks it for the life of this process.
    pub fn write(&self, record: &Record) -> Result<RecordFile> {
        let name = record.name();
        let path = self.0.join(format!("{name}.json"));
        let temporary = self.0.join(format!(".{name}.new"));
        let failed = |error: io::Error| SessionError::system(format!("the record {}", path.display()), error);
        // What lies there under our process number is of a dead process.
        let _ = std::fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(failed)?;
        file.try_lock().map_err(|error| failed(error.into()))?;
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        file.write_all(&text).map_err(failed)?;
        std::fs::rename(&temporary, &path).map_err(failed)?;
        Ok(RecordFile { _locked: file, path, socket: self.0.join(format!("{name}.sock")), removed: false })
    }

    /// All records. Those of dead daemons are removed, unless their mount is still there.
    pub fn list(&self) -> Result<Vec<Found>> {
        let entries = self.0.read_dir().map_err(|error| SessionError::system(self.0.display(), error))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| SessionError::system(self.0.display(), error))?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden && path.extension().is_some_and(|extension| extension == "json") {
                found.extend(Self::look(path)?);
            }
        }
        found.sort_by(|a, b| a.record.mount_point.cmp(&b.record.mount_point));
        Ok(found)
    }

    /// Reads one record. `None`: it is gone, or it was of a dead daemon without a mount and is removed now.
    fn look(path: PathBuf) -> Result<Option<Found>> {
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(&path) else { return Ok(None) };
        let live = is_locked(&file).map_err(|error| SessionError::system(path.display(), error))?;
        let mut text = Vec::new();
        // What cannot be read is no record of ours.
        let read = (&file).take(RECORD_MAX).read_to_end(&mut text);
        let record = read.ok().and_then(|_| serde_json::from_slice::<Record>(&text).ok());
        let socket = path.with_extension("sock");
        let Some(record) = record else {
            if !live {
                remove_file_of(&file, &path, &socket);
            }
            return Ok(None);
        };
        let found = Found { record, live, socket, file, path };
        if !live && !found.is_mounted()? {
            found.clear();
            return Ok(None);
        }
        Ok(Some(found))
    }

    /// The live daemon, else the dead one, whose mount is at `point` with this device.
    pub fn find(&self, point: &Path, device: Device) -> Result<Option<Found>> {
        let mut all = self.list()?;
        all.retain(|found| found.record.mount_point == point && found.record.device() == Some(device));
        all.sort_by_key(|found| !found.live);
        Ok(all.into_iter().next())
    }
}

impl Found {
    /// Whether the mount is still there. The number of a dead mount may belong to another by now, which then is alive.
    fn is_mounted(&self) -> Result<bool> {
        let Some(device) = self.record.device() else { return Ok(false) };
        if !mounts::holds(&self.record.mount_point, device)? {
            return Ok(false);
        }
        match mounts::at(&self.record.mount_point)? {
            Some(top) if top.device == device => Ok(self.live || point::is_dead(&top)),
            _ => Ok(true),
        }
    }

    /// Removes the record of a dead daemon, and the mount point if it was created for it and is empty.
    pub fn clear(&self) {
        if self.live {
            return;
        }
        point::remove(&self.record.created);
        remove_file_of(&self.file, &self.path, &self.socket);
    }

    /// Waits until the daemon has ended, for at most `limit`. Returns whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        let start = Instant::now();
        loop {
            match is_locked(&self.file) {
                Ok(true) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(10)),
                Ok(locked) => return !locked,
                Err(_) => return false,
            }
        }
    }
}

/// Whether a daemon holds the lock. Shared, so that two who look do not take each other for daemons.
fn is_locked(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => {
            file.unlock()?;
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Removes `path` if it still is `file`.
fn remove_file_of(file: &File, path: &Path, socket: &Path) {
    let same = match (file.metadata(), path.symlink_metadata()) {
        (Ok(open), Ok(named)) => open.dev() == named.dev() && open.ino() == named.ino(),
        _ => false,
    };
    if same {
        // Whoever else removes it at this moment does the same.
        let _ = std::fs::remove_file(socket);
        let _ = std::fs::remove_file(path);
    }
}

/// The record of this process. The lock lives as long as it does.
#[derive(Debug)]
pub struct RecordFile {
    _locked: File,
    path: PathBuf,
    socket: PathBuf,
    removed: bool,
}

impl RecordFile {
    /// Where the socket of this daemon belongs.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Removes record and socket; the lock stays until the process ends, which is what those who wait for it watch.
    pub fn remove(&mut self) {
        if !std::mem::replace(&mut self.removed, true) {
            remove_file_of(&self._locked, &self.path, &self.socket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: u32) -> Record {
        Record {
            mount_point: "/no/such/place".into(),
            source: "s3://b".into(),
            device: format!("0:{}", u32::MAX),
            pid,
            started: 0,
            created: vec![],
            version: "1".into(),
            log_file: None,
        }
    }

    #[test]
    fn a_record_is_live_while_its_lock_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(&dir.path().join("a/b")).unwrap();
        let mut first = state.write(&record(1)).unwrap();
        let second = state.write(&record(2)).unwrap();
        assert_eq!(state.list().unwrap().iter().filter(|found| found.live).count(), 2);
        let found = state.list().unwrap().into_iter().find(|found| found.record.pid == 2).unwrap();
        assert_eq!(found.record, record(2));
        assert!(!found.wait(Duration::ZERO));
        drop(second);
        assert!(found.wait(Duration::from_secs(30)));
        // Dead and not mounted: removed by whoever looks.
        assert_eq!(state.list().unwrap().len(), 1);
        first.remove();
        first.remove();
        assert_eq!(state.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn rubbish_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::create(&dir.path().join("state")).unwrap();
        std::fs::write(state.path().join("1-2.json"), "{").unwrap();
        std::fs::create_dir(state.path().join("3-4.json")).unwrap();
        std::fs::write(state.path().join("other"), "").unwrap();
        assert!(state.list().unwrap().is_empty());
        assert!(state.path().join("other").exists());
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("open");
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(StateDir::create(&path).unwrap_err().to_string().contains("nobody else"));
        assert!(StateDir::existing(&dir.path().join("missing")).unwrap().is_none());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(StateDir::create(&dir.path().join("file")).is_err());
    }
}
