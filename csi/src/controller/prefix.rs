//! Volumes as prefixes of an object store.
//!
//! There is no rename: what is moved to the trash is copied by the store, object by object, a bounded number in each call.

use super::shelf::{Held, Shelf, Step, of};
use common::{ErrorKind, UfsPath};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::Status;
use ufs::{
    UnderStorage,
    object::writes::{Body, Condition, ListedKey, ObjectWrites},
};

/// The largest small object, in bytes.
const SMALL: u32 = 256 << 10;
/// Keys of a listing.
const PAGE: u32 = 1000;
/// How long one step may go on.
const STEP: Duration = Duration::from_secs(20);

/// A prefix.
pub struct Prefix {
    storage: Arc<dyn UnderStorage>,
}

fn path(text: &str) -> Result<UfsPath, Status> {
    UfsPath::parse(text).map_err(|error| of(&error))
}

impl Prefix {
    /// The root of `storage`, which takes objects.
    pub fn new(storage: Arc<dyn UnderStorage>) -> Self {
        Self { storage }
    }

    fn objects(&self) -> Result<&dyn ObjectWrites, Status> {
        self.storage.objects().ok_or_else(|| Status::failed_precondition("the storage takes no writes"))
    }

    fn key(&self, at: &str) -> Result<String, Status> {
        self.objects()?.key(&path(at)?).map_err(|error| of(&error))
    }

    fn prefix(&self, at: &str) -> Result<String, Status> {
        self.objects()?.prefix(&path(at)?).map_err(|error| of(&error))
    }

    async fn put(&self, at: &str, bytes: Vec<u8>, condition: &Condition) -> Result<bool, Status> {
        let key = self.key(at)?;
        match self.objects()?.put(&key, &Body::from(bytes), &BTreeMap::new(), condition).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::AlreadyExists | ErrorKind::Stale) => Ok(false),
            Err(error) => Err(of(&error)),
        }
    }
}

#[tonic::async_trait]
impl Shelf for Prefix {
    async fn get(&self, at: &str) -> Result<Option<(Vec<u8>, String)>, Status> {
        let found = self.objects()?.get(&self.key(at)?, SMALL).await.map_err(|error| of(&error))?;
        Ok(found.map(|(bytes, version)| (bytes.to_vec(), version.as_str().to_owned())))
    }

    async fn put_new(&self, at: &str, bytes: Vec<u8>) -> Result<bool, Status> {
        self.put(at, bytes, &Condition::Absent).await
    }

    async fn put_over(&self, at: &str, bytes: Vec<u8>, version: &str) -> Result<bool, Status> {
        self.put(at, bytes, &Condition::Version(common::Version::new(version))).await
    }

    async fn remove(&self, at: &str) -> Result<(), Status> {
        self.objects()?.delete(&self.key(at)?).await.map_err(|error| of(&error))
    }

    async fn names(&self, at: &str, after: &str, most: usize) -> Result<Vec<String>, Status> {
        let directory = path(at)?;
        let mut listing = match self.storage.list(&directory).await {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(of(&error)),
        };
        let mut least = std::collections::BTreeSet::new();
        loop {
            match listing.next().await {
                Ok(Some(batch)) => {
                    for entry in batch {
                        let Ok(name) = String::from_utf8(entry.name.to_vec()) else { continue };
                        if name.as_str() > after {
                            least.insert(name);
                            if least.len() > most {
                                least.pop_last();
                            }
                        }
                    }
                }
                Ok(None) => return Ok(least.into_iter().collect()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(of(&error)),
            }
        }
    }

    async fn held(&self, at: &str) -> Result<Held, Status> {
        let objects = self.objects()?;
        let prefix = self.prefix(at)?;
        let page = objects.keys(&prefix, None, 2).await.map_err(|error| of(&error))?;
        match page.keys.as_slice() {
            [] if objects.find(&self.key(at)?).await.map_err(|error| of(&error))?.is_some() => Ok(Held::Files),
            [] => Ok(Held::Nothing),
            [only] if only.key == prefix => Ok(Held::Empty),
            _ => Ok(Held::Files),
        }
    }

    async fn make(&self, at: &str) -> Result<(), Status> {
        let mark = self.prefix(at)?;
        let body = Body::from(Vec::new());
        self.objects()?.put(&mark, &body, &BTreeMap::new(), &Condition::Any).await.map(drop).map_err(|error| of(&error))
    }

    async fn shift(&self, from: &str, to: &str) -> Result<Step, Status> {
        let objects = self.objects()?;
        let (from, to) = (self.prefix(from)?, self.prefix(to)?);
        let begin = Instant::now();
        loop {
            let page = objects.keys(&from, None, PAGE).await.map_err(|error| of(&error))?;
            if page.keys.is_empty() {
                return Ok(Step::Done);
            }
            let mut moved = Vec::new();
            for ListedKey { key, size, version, .. } in &page.keys {
                let Some(rest) = key.strip_prefix(&from) else { continue };
                match objects.copy(key, version, *size, &format!("{to}{rest}")).await {
                    Ok(_) => moved.push(key.clone()),
                    // Somebody still writes there, or removed it.
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Stale) => {}
                    Err(error) => return Err(of(&error)),
                }
                if begin.elapsed() > STEP {
                    break;
                }
            }
            objects.delete_all(&moved).await.map_err(|error| of(&error))?;
            if begin.elapsed() > STEP {
                return Ok(Step::More);
            }
        }
    }

    async fn purge(&self, at: &str) -> Result<Step, Status> {
        let objects = self.objects()?;
        let prefix = self.prefix(at)?;
        let begin = Instant::now();
        loop {
            let page = objects.keys(&prefix, None, PAGE).await.map_err(|error| of(&error))?;
            if page.keys.is_empty() {
                return Ok(Step::Done);
            }
            let keys: Vec<String> = page.keys.into_iter().map(|listed| listed.key).collect();
            objects.delete_all(&keys).await.map_err(|error| of(&error))?;
            if begin.elapsed() > STEP {
                return Ok(Step::More);
            }
        }
    }

    async fn free(&self) -> Result<Option<i64>, Status> {
        Ok(None)
    }
}
