//! Who this worker is: 32 hexadecimal digits in a file, made at the first start and kept for good.
//!
//! Invariant: the file appears whole or not at all, and two processes that make it at once end with the same identity.

use client::ring::WorkerIdentity;
use common::{Error, ErrorKind, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
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

#[cfg(test)]
mod tests {
    use super::*;
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
