//! What was meant, on disk: a small JSON file for each session and each target.
//!
//! Invariants: a record is written (beside, synced, renamed, the directory synced) before what it speaks of is mounted, and
//! removed after that is gone; one that cannot be read, or is of another boot, is put aside and never trusted; no secret is in it.

use crate::volume::{Publication, Volume};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use std::{
    fs::{DirBuilder, File},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

/// The largest record that is read, in bytes.
const RECORD_MAX: u64 = 256 * 1024;

/// A session that should be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// What it serves.
    pub volume: Volume,
    /// When the machine was started, as the kernel names it.
    pub boot: String,
}

/// A target that should be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// The volume's id.
    pub volume_id: String,
    /// Where.
    pub target: PathBuf,
    /// What.
    pub publication: Publication,
    /// When the machine was started, as the kernel names it.
    pub boot: String,
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
    boot: String,
}

impl Records {
    /// Opens the state directory, made when missing, for this process alone.
    ///
    /// # Errors
    /// One line.
    pub fn open(dir: &Path) -> Result<(Self, File), String> {
        let failed = |error: io::Error| format!("the state directory {}: {error}", dir.display());
        for part in ["sessions", "targets"] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir.join(part)).map_err(failed)?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
        if let Err(error) = lock.try_lock() {
            return Err(match error {
                std::fs::TryLockError::WouldBlock => {
                    format!("the state directory {} is in use by another alluxio-csi node", dir.display())
                }
                std::fs::TryLockError::Error(error) => failed(error),
            });
        }
        Ok((Self::look(dir), lock))
    }

    /// The records as they are, without the right to change them.
    pub fn look(dir: &Path) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Self { dir: dir.to_owned(), boot }
    }

    /// This boot.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    fn session_file(&self, key: &str) -> PathBuf {
        self.dir.join("sessions").join(format!("{key}.json"))
    }

    fn target_file(&self, target: &Path) -> PathBuf {
        let name = hex::encode(&Sha256::digest(target.as_os_str().as_bytes())[..16]);
        self.dir.join("targets").join(format!("{name}.json"))
    }

    /// Writes the record of a session.
    ///
    /// # Errors
    /// The disk is full or failing.
    pub fn write_session(&self, volume: &Volume) -> io::Result<()> {
        let record = SessionRecord { volume: volume.clone(), boot: self.boot.clone() };
        write(&self.session_file(&volume.key()), &record)
    }

    /// Writes the record of a target.
    ///
    /// # Errors
    /// The disk is full or failing.
    pub fn write_target(&self, record: &TargetRecord) -> io::Result<()> {
        write(&self.target_file(&record.target), record)
    }

    /// Removes the record of a session.
    ///
    /// # Errors
    /// The disk is failing.
    pub fn remove_session(&self, key: &str) -> io::Result<()> {
        remove(&self.session_file(key))
    }

    /// Removes the record of a target.
    ///
    /// # Errors
    /// The disk is failing.
    pub fn remove_target(&self, target: &Path) -> io::Result<()> {
        remove(&self.target_file(target))
    }

    /// All sessions and targets of this boot, and the files that say nothing of it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load(&self) -> io::Result<(Vec<SessionRecord>, Vec<TargetRecord>, Vec<PathBuf>)> {
        let mut useless = Vec::new();
        let sessions = self.read("sessions", &mut useless, |record: &SessionRecord| &record.boot)?;
        let targets = self.read("targets", &mut useless, |record: &TargetRecord| &record.boot)?;
        Ok((sessions, targets, useless))
    }

    fn read<T: DeserializeOwned>(
        &self,
        part: &str,
        useless: &mut Vec<PathBuf>,
        boot: impl Fn(&T) -> &String,
    ) -> io::Result<Vec<T>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(self.dir.join(part))? {
            let path = entry?.path();
            let record = (path.extension().is_some_and(|end| end == "json"))
                .then(|| std::fs::metadata(&path).ok().filter(|found| found.len() <= RECORD_MAX))
                .flatten()
                .and_then(|_| std::fs::read(&path).ok())
                .and_then(|text| serde_json::from_slice::<T>(&text).ok())
                .filter(|record| *boot(record) == self.boot);
            match record {
                Some(record) => records.push(record),
                None => useless.push(path),
            }
        }
        Ok(records)
    }
}

fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    sync_parent(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(path),
    }
}

/// Makes a new or removed name durable.
///
/// # Errors
/// The directory cannot be synced.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &str) -> TargetRecord {
        TargetRecord {
            volume_id: "v".into(),
            target: path.into(),
            publication: Publication {
                volume: Volume { source: "s3://b".into(), ..Volume::default() },
                directory: String::new(),
                read_only: true,
                exclusive: false,
            },
            boot: Records::look(Path::new("/")).boot,
        }
    }

    #[test]
    fn records_are_found_again_and_rubbish_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (records, _lock) = Records::open(dir.path()).unwrap();
        let record = target("/a b");
        records.write_target(&record).unwrap();
        records.write_session(&record.publication.volume).unwrap();
        let mut old = target("/old");
        old.boot = "another".into();
        records.write_target(&old).unwrap();
        std::fs::write(dir.path().join("targets/torn.json"), "{\"volu").unwrap();
        let (sessions, targets, useless) = records.load().unwrap();
        assert_eq!((sessions.len(), targets, useless.len()), (1, vec![record.clone()], 2));
        records.remove_target(&record.target).unwrap();
        records.remove_target(&record.target).unwrap();
        records.remove_session(&record.publication.volume.key()).unwrap();
        let (sessions, targets, _) = records.load().unwrap();
        assert!(sessions.is_empty() && targets.is_empty());
    }

    #[test]
    fn one_process_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Records::open(dir.path()).unwrap();
        assert!(Records::open(dir.path()).unwrap_err().contains("in use"));
    }
}
