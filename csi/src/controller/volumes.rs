//! The volumes of one root: which there are, how large they are, and where their data lies.
//!
//! ```text
//! <root>/.alluxio-volumes/volumes/<key>     the record: name, size, directory, parameters
//! <root>/.alluxio-volumes/claims/<hash>     whose a directory is
//! <root>/.alluxio-volumes/trash/<time>-<key>/   deleted data, until it is purged
//! <root>/<directory>/                       the data
//! ```
//!
//! Invariants: a record is made before the directory, and its name is decided by the storage, so two controllers never make
//! one volume twice; nothing is deleted but a directory that a claim gives to the volume; a directory that held something
//! before is never taken; of two directories none lies in the other.

use super::shelf::{Held, Shelf, Step};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::Status;

const VOLUMES: &str = ".alluxio-volumes/volumes";
const CLAIMS: &str = ".alluxio-volumes/claims";
const TRASH: &str = ".alluxio-volumes/trash";

/// The longest key, in bytes, so that it can be a label too.
const KEY_MAX: usize = 63;

/// What is kept of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// As the orchestrator named it.
    pub name: String,
    /// Its size in bytes, as asked for; 0 when nothing was asked.
    pub capacity: i64,
    /// Its directory below the root.
    pub directory: String,
    /// What its class said.
    pub parameters: BTreeMap<String, String>,
    /// The claim that it was made for, where that is known.
    pub owner: String,
}

/// The key of a volume's name: usable as a file name and a label, and different for different names.
pub fn key_of(name: &str) -> String {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c.to_ascii_lowercase() } else { '-' })
        .collect();
    if plain == name && plain.len() <= KEY_MAX && plain.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return plain;
    }
    let digest = hex::encode(&Sha256::digest(name.as_bytes())[..10]);
    let start: String = plain.trim_start_matches('-').chars().take(KEY_MAX - digest.len() - 1).collect();
    if start.is_empty() { format!("v-{digest}") } else { format!("{start}-{digest}") }
}

fn file(key: &str) -> String {
    format!("{VOLUMES}/{key}")
}

fn claim(directory: &str) -> String {
    format!("{CLAIMS}/{}", hex::encode(&Sha256::digest(directory.as_bytes())[..16]))
}

fn parse(bytes: &[u8], key: &str) -> Result<Record, Status> {
    serde_json::from_slice(bytes)
        .map_err(|_| Status::data_loss(format!("the record {} is damaged; restore or remove it", file(key))))
}

fn text(record: &Record) -> Vec<u8> {
    // Texts and numbers always serialize.
    serde_json::to_vec(record).unwrap_or_default()
}

/// The record of a volume.
///
/// # Errors
/// The storage's.
pub async fn get(shelf: &dyn Shelf, key: &str) -> Result<Option<Record>, Status> {
    match shelf.get(&file(key)).await? {
        Some((bytes, _)) => parse(&bytes, key).map(Some),
        None => Ok(None),
    }
}

/// The keys of volumes after `after`, in order, `most` at most.
///
/// # Errors
/// The storage's.
pub async fn keys(shelf: &dyn Shelf, after: &str, most: usize) -> Result<Vec<String>, Status> {
    shelf.names(VOLUMES, after, most).await
}

/// Makes a volume, or finishes making it. `limit`: the most bytes that will do, 0 for any.
///
/// # Errors
/// ALREADY_EXISTS: one of this name differs; FAILED_PRECONDITION: its directory is another's.
pub async fn create(shelf: &dyn Shelf, wanted: Record, limit: i64) -> Result<Record, Status> {
    let key = key_of(&wanted.name);
    let record = if shelf.put_new(&file(&key), text(&wanted)).await? {
        wanted
    } else {
        let Some(had) = get(shelf, &key).await? else {
            return Err(Status::aborted("the volume is being deleted at this moment; repeat the call"));
        };
        let fits = had.capacity >= wanted.capacity && (limit == 0 || had.capacity <= limit);
        if had.name != wanted.name || !fits || had.parameters != wanted.parameters || had.directory != wanted.directory
        {
            return Err(Status::already_exists(format!(
                "there is a volume {} of another size or with other parameters; delete it or choose another name",
                wanted.name
            )));
        }
        had
    };
    match claim_directory(shelf, &key, &record.directory).await {
        Ok(()) => Ok(record),
        Err(status) => {
            if status.code() == tonic::Code::FailedPrecondition {
                // It can never be: the name is free again. What cannot be removed now is found by the next call.
                let _ = shelf.remove(&file(&key)).await;
            }
            Err(status)
        }
    }
}

async fn claim_directory(shelf: &dyn Shelf, key: &str, directory: &str) -> Result<(), Status> {
    let taken = |other: &str| {
        Status::failed_precondition(format!(
            "the directory {directory} belongs to volume {other}; use another pathPattern"
        ))
    };
    for (at, _) in directory.match_indices('/') {
        if let Some((owner, _)) = shelf.get(&claim(&directory[..at])).await? {
            return Err(taken(&String::from_utf8_lossy(&owner)));
        }
    }
    match shelf.get(&claim(directory)).await? {
        Some((owner, _)) if owner == key.as_bytes() => {}
        Some((owner, _)) => return Err(taken(&String::from_utf8_lossy(&owner))),
        None => {
            if shelf.held(directory).await? == Held::Files {
                return Err(Status::failed_precondition(format!(
                    "the directory {directory} holds files already, which no volume owns; use another pathPattern, or a PersistentVolume made by hand"
                )));
            }
            if !shelf.put_new(&claim(directory), key.as_bytes().to_vec()).await? {
                return Err(Status::aborted("another controller claims the directory at this moment; repeat the call"));
            }
        }
    }
    if shelf.held(directory).await? == Held::Nothing {
        shelf.make(directory).await?;
    }
    Ok(())
}

/// Deletes a volume; one that is not there is deleted. Its data goes to the trash, or at once when nothing is retained.
///
/// # Errors
/// ABORTED: there is so much data that the call has to be repeated to go on.
pub async fn delete(shelf: &dyn Shelf, key: &str, retain: bool) -> Result<(), Status> {
    let Some(record) = get(shelf, key).await? else { return Ok(()) };
    let owner = shelf.get(&claim(&record.directory)).await?;
    if owner.is_some_and(|(owner, _)| owner == key.as_bytes()) {
        let step = if retain {
            // The same name for each try, so that all of the data comes together.
            let name = format!("{TRASH}/{}-{key}", start_of_deletion(shelf, key).await?);
            shelf.shift(&record.directory, &name).await?
        } else {
            shelf.purge(&record.directory).await?
        };
        if step == Step::More {
            return Err(Status::aborted("the volume has much data, some of which is moved; repeat the call to go on"));
        }
        shelf.remove(&claim(&record.directory)).await?;
    }
    shelf.remove(&format!("{VOLUMES}-deleted/{key}")).await?;
    shelf.remove(&file(key)).await
}

async fn start_of_deletion(shelf: &dyn Shelf, key: &str) -> Result<u64, Status> {
    let mark = format!("{VOLUMES}-deleted/{key}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    if shelf.put_new(&mark, now.to_string().into_bytes()).await? {
        return Ok(now);
    }
    let had = shelf.get(&mark).await?;
    Ok(had.and_then(|(bytes, _)| String::from_utf8(bytes).ok()?.parse().ok()).unwrap_or(now))
}

/// Makes a volume larger.
///
/// # Errors
/// NOT_FOUND: there is none; ABORTED: another controller changes it.
pub async fn expand(shelf: &dyn Shelf, key: &str, required: i64, limit: i64) -> Result<i64, Status> {
    let Some((bytes, version)) = shelf.get(&file(key)).await? else {
        return Err(Status::not_found(format!("there is no volume {key}")));
    };
    let mut record = parse(&bytes, key)?;
    if limit > 0 && record.capacity > limit {
        return Err(Status::out_of_range(format!("the volume has {} bytes, more than the limit", record.capacity)));
    }
    if record.capacity >= required {
        return Ok(record.capacity);
    }
    record.capacity = required;
    if shelf.put_over(&file(key), text(&record), &version).await? {
        return Ok(required);
    }
    Err(Status::aborted("another controller changes the volume at this moment; repeat the call"))
}

/// Removes what has been in the trash for longer than `retention`.
///
/// # Errors
/// The storage's; the rest is removed the next time.
pub async fn purge_trash(shelf: &dyn Shelf, retention: Duration) -> Result<(), Status> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut after = String::new();
    loop {
        let names = shelf.names(TRASH, &after, 1000).await?;
        let Some(last) = names.last() else { return Ok(()) };
        after.clone_from(last);
        for name in names {
            let age = name.split('-').next().and_then(|time| time.parse().ok()).map(Duration::from_secs);
            if age.is_some_and(|time| now.saturating_sub(time) >= retention) {
                tracing::info!("removing {name} from the trash");
                while shelf.purge(&format!("{TRASH}/{name}")).await? == Step::More {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::directory::Directory;

    fn record(name: &str, directory: &str) -> Record {
        Record {
            name: name.into(),
            capacity: 10,
            directory: directory.into(),
            parameters: BTreeMap::new(),
            owner: String::new(),
        }
    }

    #[test]
    fn keys_are_short_plain_and_different() {
        assert_eq!(key_of("pvc-1234"), "pvc-1234");
        for name in ["PVC 1", "pvc 1", "ä", "..", "-x", &"x".repeat(128), &"y".repeat(128)] {
            let key = key_of(name);
            assert!(key.len() <= KEY_MAX && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{key}");
        }
        assert_ne!(key_of("PVC 1"), key_of("pvc 1"));
    }

    #[tokio::test]
    async fn a_volume_lives_and_dies() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Directory::new(dir.path().to_owned());
        let made = create(&shelf, record("one", "ns/one"), 0).await.unwrap();
        assert_eq!(create(&shelf, made.clone(), 0).await.unwrap(), made);
        let larger = Record { capacity: 11, ..made.clone() };
        assert_eq!(create(&shelf, larger, 0).await.unwrap_err().code(), tonic::Code::AlreadyExists);
        std::fs::write(dir.path().join("ns/one/file"), "bytes").unwrap();
        // Neither in it, nor around it, nor over files of somebody else.
        std::fs::create_dir_all(dir.path().join("own")).unwrap();
        std::fs::write(dir.path().join("own/file"), "").unwrap();
        for directory in ["ns/one/inner", "ns", "ns/one", "own"] {
            let error = create(&shelf, record("two", directory), 0).await.unwrap_err();
            assert_eq!(error.code(), tonic::Code::FailedPrecondition, "{directory}");
            assert_eq!(get(&shelf, "two").await.unwrap(), None);
        }
        assert_eq!(expand(&shelf, "one", 50, 0).await.unwrap(), 50);
        assert_eq!(expand(&shelf, "one", 20, 0).await.unwrap(), 50);
        assert_eq!(expand(&shelf, "none", 20, 0).await.unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(keys(&shelf, "", 10).await.unwrap(), ["one"]);

        delete(&shelf, "one", true).await.unwrap();
        delete(&shelf, "one", true).await.unwrap();
        assert!(!dir.path().join("ns/one").exists() && dir.path().join("own/file").exists());
        let trash = dir.path().join(TRASH);
        let kept = std::fs::read_dir(&trash).unwrap().next().unwrap().unwrap().path();
        assert_eq!(std::fs::read(kept.join("file")).unwrap(), b"bytes");
        purge_trash(&shelf, Duration::from_secs(3600)).await.unwrap();
        assert!(kept.exists());
        purge_trash(&shelf, Duration::ZERO).await.unwrap();
        assert!(!kept.exists());
        create(&shelf, record("one", "ns/one"), 0).await.unwrap();
    }

    #[tokio::test]
    async fn two_controllers_make_one_volume() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Directory::new(dir.path().to_owned());
        let calls = (0..8).map(|_| create(&shelf, record("one", "one"), 0));
        let mut made = 0;
        for done in futures_join(calls.collect()).await {
            match done {
                Ok(_) => made += 1,
                Err(status) => assert_eq!(status.code(), tonic::Code::Aborted, "{status}"),
            }
        }
        assert!(made > 0);
        assert_eq!(keys(&shelf, "", 10).await.unwrap(), ["one"]);
    }

    async fn futures_join<T, F: Future<Output = T>>(calls: Vec<F>) -> Vec<T> {
        let mut done = Vec::new();
        let mut calls: Vec<_> = calls.into_iter().map(|call| Some(Box::pin(call))).collect();
        std::future::poll_fn(|context| {
            for call in &mut calls {
                if let Some(running) = call
                    && let std::task::Poll::Ready(answer) = running.as_mut().poll(context)
                {
                    done.push(answer);
                    *call = None;
                }
            }
            if calls.iter().all(Option::is_none) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        done
    }
}
