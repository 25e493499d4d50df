//! Who this worker is: 32 hexadecimal digits in a file, made at the first start and kept for good.
//!
//! Beside it lies a file that the process that has the identity holds locked ([`Claim`]). In it stands where that process
//! registered. A successor that gets the lock knows by it that whoever is registered there is dead, and need not wait for
//! the end of its lease.
//!
//! Invariants: the identity file appears whole or not at all, and two processes that make it at once end with the same
//! identity; the note of where a worker was counts only in the file in which it was written: a copy of it, taken along
//! with a copy of the identity, proves nothing.

use client::{membership::WorkerNetAddress, ring::WorkerIdentity};
use common::{Error, ErrorKind, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The identity in `path`, which is made when it is missing (readable by its owner only).
///
/// # Errors
/// One line that names the file: it cannot be read or made, or holds something else.
pub fn load_or_create(path: &Path) -> Result<WorkerIdentity> {
    match fs::read_to_string(path) {
        Ok(text) => parse(path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path).map_err(|error| failed(path, "cannot be made", error))?;
            let text = fs::read_to_string(path).map_err(|error| failed(path, "cannot be read", error))?;
            parse(path, &text)
        }
        Err(error) => Err(failed(path, "cannot be read", error)),
    }
}

fn parse(path: &Path, text: &str) -> Result<WorkerIdentity> {
    WorkerIdentity::parse(text.trim()).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "identity file {}: not the 32 hexadecimal digits of a worker's identity; name another file \
                 (alluxio.worker.identity.uuid.file.path) or move this one away",
                path.display()
            ),
        )
    })
}

fn create(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent)?;
    let identity = uuid::Uuid::new_v4().simple().to_string();
    let temporary = parent.join(format!(".worker_identity.{identity}"));
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut file| {
        file.write_all(format!("{identity}\n").as_bytes())?;
        file.sync_all()?;
        // A link, unlike a rename, leaves alone what another process put there first.
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    });
    // Left over it would only be a file that nobody reads.
    let _ = fs::remove_file(&temporary);
    written?;
    File::open(parent)?.sync_all()
}

fn failed(path: &Path, what: &str, error: io::Error) -> Error {
    Error::io(
        format_args!(
            "identity file {} {what} (set alluxio.worker.identity.uuid.file.path to a file that this user may write)",
            path.display()
        ),
        error,
    )
}

/// The right to be this worker; given up when dropped, and by the end of the process however that comes.
#[derive(Debug)]
pub struct Claim {
    file: Flock<File>,
    path: PathBuf,
    former: Vec<WorkerNetAddress>,
}

/// What the file holds.
#[derive(Default, Serialize, Deserialize)]
struct Note {
    device: u64,
    inode: u64,
    addresses: Vec<WorkerNetAddress>,
}

impl Claim {
    /// Takes the identity in `identity_file`.
    ///
    /// # Errors
    /// `AlreadyExists` while another process has it; the file beside it cannot be made.
    pub fn take(identity_file: &Path, identity: &WorkerIdentity) -> Result<Self> {
        let mut path = identity_file.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let opened = opened.map_err(|error| failed(&path, "cannot be made", error))?;
        let file = Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::new(
                ErrorKind::AlreadyExists,
                format!(
                    "{identity} runs already with the identity file {}: stop it, or give this worker one of its own (alluxio.worker.identity.uuid.file.path)",
                    identity_file.display()
                ),
            ),
            other => failed(&path, "cannot be locked", other.into()),
        })?;
        let former = former(&file).unwrap_or_default();
        Ok(Self { file, path, former })
    }

    /// Where the dead processes that had the identity may still be registered.
    pub fn former(&self) -> &[WorkerNetAddress] {
        &self.former
    }

    /// Notes that this process may be registered at `address` from now on, as others were elsewhere.
    pub fn note_also(&mut self, address: &WorkerNetAddress) -> Result<()> {
        let addresses = self.former.iter().chain([address]).cloned().collect();
        self.note(addresses)
    }

    /// Notes that this process is registered at `address` and nobody elsewhere.
    pub fn note_only(&mut self, address: &WorkerNetAddress) -> Result<()> {
        self.note(vec![address.clone()])
    }

    fn note(&mut self, addresses: Vec<WorkerNetAddress>) -> Result<()> {
        let written = self.file.metadata().and_then(|found| {
            let note = Note { device: found.dev(), inode: found.ino(), addresses };
            let text = serde_json::to_vec(&note)?;
            self.file.rewind()?;
            self.file.set_len(0)?;
            self.file.write_all(&text)
        });
        written.map_err(|error| failed(&self.path, "cannot be written", error))
    }
}

/// What a former process noted; none when the note is damaged or was written in another file.
fn former(mut file: &File) -> Option<Vec<WorkerNetAddress>> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let note: Note = serde_json::from_str(&text).ok()?;
    let found = file.metadata().ok()?;
    ((note.device, note.inode) == (found.dev(), found.ino())).then_some(note.addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> WorkerNetAddress {
        WorkerNetAddress { host: "h".into(), rpc_port: port, ..Default::default() }
    }

    #[test]
    fn an_identity_has_one_process_at_a_time_and_a_successor_knows_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let identity = load_or_create(&path).unwrap();
        let mut first = Claim::take(&path, &identity).unwrap();
        assert_eq!(first.former(), []);
        let refused = Claim::take(&path, &identity).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists);
        assert!(refused.message().contains(&identity.to_string()), "{refused}");
        first.note_also(&address(1)).unwrap();
        drop(first);
        let mut second = Claim::take(&path, &identity).unwrap();
        assert_eq!(second.former(), [address(1)]);
        second.note_also(&address(2)).unwrap();
        drop(second);
        // It died before it was registered: it may be registered at either.
        let mut third = Claim::take(&path, &identity).unwrap();
        assert_eq!(third.former(), [address(1), address(2)]);
        third.note_only(&address(3)).unwrap();
        drop(third);
        assert_eq!(Claim::take(&path, &identity).unwrap().former(), [address(3)]);
    }

    #[test]
    fn a_copy_of_the_note_proves_nothing() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = one.path().join("identity");
        let identity = load_or_create(&path).unwrap();
        Claim::take(&path, &identity).unwrap().note_only(&address(1)).unwrap();
        let copy = two.path().join("identity");
        for end in ["", ".lock"] {
            fs::copy(format!("{}{end}", path.display()), format!("{}{end}", copy.display())).unwrap();
        }
        assert_eq!(Claim::take(&copy, &identity).unwrap().former(), []);
        fs::write(two.path().join("identity.lock"), "{damaged").unwrap();
        assert_eq!(Claim::take(&copy, &identity).unwrap().former(), []);
    }
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_identity_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/worker_identity");
        let found: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| load_or_create(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found.iter().all(|identity| *identity == found[0]), "{found:?}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_is_wrong_with_the_file_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        fs::write(&path, "hello").unwrap();
        let message = load_or_create(&path).unwrap_err().to_string();
        assert!(message.contains("32 hexadecimal digits") && message.contains("identity"), "{message}");
        let below_a_file = path.join("deeper");
        let message = load_or_create(&below_a_file).unwrap_err().to_string();
        assert!(message.contains("alluxio.worker.identity.uuid.file.path"), "{message}");
    }
}
