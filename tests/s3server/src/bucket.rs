//! Buckets: the index from keys to objects, and conditional changes of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::RwLock;

use crate::error::{Code, S3Error};
use crate::storage::synthetic::Synthetic;
use crate::storage::{Adopted, Object, Writer, bucket_directory, disk};

/// The keys of a bucket. An entry of the map wins over a synthetic object of the same key; `None` hides one that was deleted.
#[derive(Default)]
pub(crate) struct Index {
    pub(crate) objects: BTreeMap<Arc<str>, Option<Arc<Object>>>,
    pub(crate) synthetic: Vec<Synthetic>,
}

impl Index {
    fn get(&self, key: &str) -> Option<Arc<Object>> {
        match self.objects.get(key) {
            Some(entry) => entry.clone(),
            None => self.synthetic.iter().find_map(|family| family.find(key)).map(Arc::new),
        }
    }

    fn insert(&mut self, key: &str, object: Arc<Object>) -> Option<Arc<Object>> {
        match self.objects.entry(Arc::from(key)) {
            Entry::Occupied(mut entry) => entry.insert(Some(object)),
            Entry::Vacant(entry) => {
                entry.insert(Some(object));
                None
            }
        }
    }

    fn remove(&mut self, key: &str) -> Option<Arc<Object>> {
        if self.synthetic.iter().any(|family| family.find(key).is_some()) {
            self.insert_hidden(key)
        } else {
            self.objects.remove(key).flatten()
        }
    }

    fn insert_hidden(&mut self, key: &str) -> Option<Arc<Object>> {
        self.objects.insert(Arc::from(key), None).flatten()
    }
}

/// What must hold of the present object for a change to happen (headers If-Match and If-None-Match of writes).
#[derive(Clone, Debug, Default)]
pub(crate) struct Condition {
    /// The etags of If-Match, without quotes; `*` stands for any.
    pub(crate) matches: Option<Vec<String>>,
    /// If-None-Match: *
    pub(crate) absent: bool,
}

impl Condition {
    fn check(&self, key: &str, present: Option<&Object>) -> Result<(), S3Error> {
        if self.absent && present.is_some() {
            return Err(
                S3Error::new(Code::PreconditionFailed, "the object exists").element("Condition", "If-None-Match")
            );
        }
        if let Some(etags) = &self.matches {
            let Some(present) = present else {
                return Err(S3Error::new(Code::NoSuchKey, "the key does not exist").element("Key", key));
            };
            if !etags.iter().any(|etag| etag == "*" || etag == present.etag()) {
                return Err(
                    S3Error::new(Code::PreconditionFailed, "the object is another").element("Condition", "If-Match")
                );
            }
        }
        Ok(())
    }

    fn is_none(&self) -> bool {
        self.matches.is_none() && !self.absent
    }
}

/// A bucket.
pub(crate) struct Bucket {
    pub(crate) name: String,
    pub(crate) created: SystemTime,
    /// Where uploads go; memory when `None`.
    directory: Option<PathBuf>,
    pub(crate) index: RwLock<Index>,
}

impl Bucket {
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// A writer for a new object or part.
    pub(crate) fn writer(&self, expected: u64) -> Result<Writer, S3Error> {
        Writer::new(self.directory(), expected).map_err(|error| S3Error::io("cannot store", &error))
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.index.read().get(key)
    }

    /// The object, or the error for a key that is not there.
    pub(crate) fn find(&self, key: &str) -> Result<Arc<Object>, S3Error> {
        self.get(key).ok_or_else(|| S3Error::new(Code::NoSuchKey, "the key does not exist").element("Key", key))
    }

    /// Fails early when a condition does not hold; [`Bucket::insert`] decides.
    pub(crate) fn check(&self, key: &str, condition: &Condition) -> Result<(), S3Error> {
        if condition.is_none() { Ok(()) } else { condition.check(key, self.get(key).as_deref()) }
    }

    /// Puts an object in place if the condition holds.
    pub(crate) fn insert(&self, key: &str, object: Object, condition: &Condition) -> Result<Arc<Object>, S3Error> {
        let object = Arc::new(object);
        let mut index = self.index.write();
        if !condition.is_none()
            && let Err(error) = condition.check(key, index.get(key).as_deref())
        {
            drop(index);
            disk::retire(&object, self.directory());
            return Err(error);
        }
        let old = index.insert(key, object.clone());
        drop(index);
        if let Some(old) = old {
            disk::retire(&old, self.directory());
        }
        Ok(object)
    }

    /// Removes an object if the condition holds; whether it was there.
    pub(crate) fn remove(&self, key: &str, condition: &Condition) -> Result<bool, S3Error> {
        let mut index = self.index.write();
        let present = index.get(key);
        if !condition.is_none() {
            condition.check(key, present.as_deref())?;
        }
        let old = index.remove(key);
        drop(index);
        if let Some(old) = old {
            disk::retire(&old, self.directory());
        }
        Ok(present.is_some())
    }

    /// Makes every file below a directory an object; keys are the paths below it.
    pub(crate) fn adopt(&self, root: &Path) -> io::Result<Adopted> {
        let mut adopted = Adopted::default();
        let mut found = Vec::new();
        let mut pending = vec![(root.to_owned(), String::new())];
        while let Some((directory, prefix)) = pending.pop() {
            for entry in std::fs::read_dir(&directory)? {
                let entry = entry?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                    adopted.skipped += 1;
                    continue;
                };
                let key = format!("{prefix}{name}");
                if entry.file_type()?.is_dir() {
                    pending.push((entry.path(), key + "/"));
                    continue;
                }
                // Follows symbolic links, to files only: a link to a directory could lead in circles.
                match std::fs::metadata(entry.path()) {
                    Ok(metadata) if metadata.is_file() => {
                        found.push((key, Arc::new(disk::adopt(entry.path(), &metadata))));
                        adopted.objects += 1;
                    }
                    _ => adopted.skipped += 1,
                }
            }
        }
        let mut old = Vec::new();
        let mut index = self.index.write();
        for (key, object) in found {
            old.extend(index.insert(&key, object));
        }
        drop(index);
        for object in old {
            disk::retire(&object, self.directory());
        }
        Ok(adopted)
    }
}

/// All buckets of a server.
pub(crate) struct Buckets {
    root: Option<PathBuf>,
    buckets: RwLock<BTreeMap<String, Arc<Bucket>>>,
}

impl Buckets {
    /// Buckets in memory, or below a directory, with what an earlier server stored there.
    pub(crate) fn new(root: Option<PathBuf>) -> io::Result<Self> {
        let buckets = Buckets { root: root.clone(), buckets: RwLock::default() };
        if let Some(root) = root {
            std::fs::create_dir_all(&root)?;
            for entry in std::fs::read_dir(&root)? {
                let entry = entry?;
                if let Some(name) = entry.file_name().to_str()
                    && valid(name)
                    && entry.file_type()?.is_dir()
                {
                    buckets.create(name)?;
                }
            }
        }
        Ok(buckets)
    }

    /// The bucket, made when it is not there; the flag says whether it was made.
    pub(crate) fn create(&self, name: &str) -> io::Result<(Arc<Bucket>, bool)> {
        let mut buckets = self.buckets.write();
        if let Some(bucket) = buckets.get(name) {
            return Ok((bucket.clone(), false));
        }
        let directory = self.root.as_deref().and_then(|root| bucket_directory(root, name));
        let bucket = Bucket { name: name.to_owned(), created: SystemTime::now(), directory, index: RwLock::default() };
        if let Some(directory) = bucket.directory() {
            std::fs::create_dir_all(directory)?;
            for (key, object) in disk::load(directory)? {
                if let Some(old) = bucket.index.write().insert(&key, Arc::new(object)) {
                    disk::retire(&old, Some(directory));
                }
            }
        }
        let bucket = Arc::new(bucket);
        buckets.insert(name.to_owned(), bucket.clone());
        Ok((bucket, true))
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Bucket>> {
        self.buckets.read().get(name).cloned()
    }

    /// The bucket, or the error for one that is not there.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Bucket>, S3Error> {
        self.get(name)
            .ok_or_else(|| S3Error::new(Code::NoSuchBucket, "the bucket does not exist").element("BucketName", name))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Bucket>> {
        self.buckets.read().values().cloned().collect()
    }

    /// Removes an empty bucket.
    pub(crate) fn remove(&self, name: &str) -> Result<(), S3Error> {
        let bucket = self.find(name)?;
        let mut buckets = self.buckets.write();
        let index = bucket.index.read();
        if !crate::list::is_empty(&index) {
            return Err(S3Error::new(Code::BucketNotEmpty, "the bucket holds objects").element("BucketName", name));
        }
        buckets.remove(name);
        if let Some(directory) = bucket.directory() {
            std::fs::remove_dir_all(directory).map_err(|error| S3Error::io("cannot remove the bucket", &error))?;
        }
        Ok(())
    }
}

/// Whether a name follows the rules for buckets.
pub(crate) fn valid(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.' || byte == b'-')
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.ends_with(|last: char| last.is_ascii_alphanumeric())
        && !name.contains("..")
        && name.parse::<std::net::IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names() {
        for good in ["abc", "a.b-c", "123"] {
            assert!(valid(good), "{good}");
        }
        for bad in ["", "ab", "Abc", "a_b", "-abc", "abc.", "a..b", "1.2.3.4", "a/b", &"a".repeat(64)] {
            assert!(!valid(bad), "{bad}");
        }
    }
}
