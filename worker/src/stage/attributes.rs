//! What objects cannot show: mode, owner, times, links, special files and extended attributes, in one attribute object for each
//! directory.
//!
//! The object has the key [`NAME`] in its directory, and is JSON. An entry counts only for the version (etag) that it
//! names, so what other tools replace shows its own; entries of directories name none. Changes are kept in memory and in
//! the journal, and written together within a second; what others wrote meanwhile is kept, since each write names the
//! version that it replaces.
//!
//! Invariants:
//! - a change that was answered is seen by every later question here, and outlives the process;
//! - a directory of nothing but defaults has no such object;
//! - what is kept of directories in memory is bounded, but for changes that are not written yet.

use super::journal::{Journal, Record};
use crate::clock::{Clock, Moment};
use common::{Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, Version, attr::process_owner};
use futures::{StreamExt, stream};
use lru::LruCache;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use ufs::{Condition, Metadata, UnderStorage};

/// The name of attribute objects; listings hide it, and nobody can use it.
pub(crate) const NAME: &str = ".alluxio-attributes";
/// The largest attribute object.
const LARGEST: u32 = 64 << 20;
/// Directories that are remembered.
const REMEMBERED: usize = 4096;
/// How often a write is tried again that another one overtook.
const RACES: usize = 8;

/// How a file looks, as far as that is not the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Look {
    /// Format bits of a special file or a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rdev: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtime: Option<(i64, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) atime: Option<(i64, u32)>,
    /// Names and values in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) xattrs: BTreeMap<String, String>,
}

/// An entry of an attribute object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The version that it counts for; none for directories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    pub(crate) look: Look,
}

type Entries = BTreeMap<String, Entry>;

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    /// 1.
    format: u32,
    entries: Entries,
}

fn kind_of(bits: u32) -> FileKind {
    FileKind::from_mode(bits)
}

/// The format bits of a kind.
pub(crate) fn bits_of(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

impl Look {
    /// The look of what `uid` and `gid` make with this mode; what is the default is left out.
    pub(crate) fn made(kind: FileKind, mode: u32, uid: u32, gid: u32) -> Self {
        let mut look = Self::default();
        if !matches!(kind, FileKind::File | FileKind::Directory) {
            look.kind = Some(bits_of(kind));
        }
        look.set_mode(kind, mode);
        look.set_owner(Some(uid), Some(gid));
        look
    }

    pub(crate) fn set_mode(&mut self, kind: FileKind, mode: u32) {
        let default = if kind == FileKind::Directory { 0o755 } else { 0o644 };
        self.mode = (mode & 0o7777 != default).then_some(mode & 0o7777);
    }

    pub(crate) fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        let own = process_owner();
        if let Some(uid) = uid {
            self.uid = (uid != own.0).then_some(uid);
        }
        if let Some(gid) = gid {
            self.gid = (gid != own.1).then_some(gid);
        }
    }

    /// Shows it in the attributes.
    pub(crate) fn apply(&self, attr: &mut Attr) {
        attr.kind = self.kind.map_or(attr.kind, kind_of);
        attr.rdev = self.rdev.unwrap_or(attr.rdev);
        attr.mode = self.mode.unwrap_or(attr.mode);
        attr.uid = self.uid.unwrap_or(attr.uid);
        attr.gid = self.gid.unwrap_or(attr.gid);
        let time = |(sec, nsec): (i64, u32)| Timestamp { sec, nsec };
        attr.mtime = self.mtime.map_or(attr.mtime, time);
        attr.atime = self.atime.map_or(attr.mtime, time);
        attr.ctime = attr.ctime.max(attr.mtime);
        if attr.kind == FileKind::Symlink {
            attr.mode = 0o777;
        } else if attr.kind != FileKind::File && attr.kind != FileKind::Directory {
            attr.size = 0;
            attr.blocks = 0;
        }
    }

    /// The same for other tools, as metadata of the object, as far as `most` bytes reach.
    pub(crate) fn metadata(&self, most: usize) -> Metadata {
        let mut metadata = Metadata::new();
        let bits = self.kind.unwrap_or(libc::S_IFREG);
        if self.mode.is_some() || self.kind.is_some() {
            metadata.insert("mode".into(), (bits | self.mode.unwrap_or(0o644)).to_string());
        }
        let mut number = |name: &str, value: Option<u32>| {
            metadata.extend(value.map(|value| (name.to_owned(), value.to_string())));
        };
        number("uid", self.uid);
        number("gid", self.gid);
        if let Some((sec, nsec)) = self.mtime {
            metadata.insert("mtime".into(), format!("{sec}.{nsec:09}"));
        }
        let mut left = most.saturating_sub(metadata.iter().map(|(name, value)| name.len() + value.len()).sum());
        for (name, value) in &self.xattrs {
            let name = format!("xattr-{name}");
            if name.len() + value.len() <= left {
                left -= name.len() + value.len();
                metadata.insert(name, value.clone());
            }
        }
        metadata
    }
}

struct Loaded {
    entries: Arc<Entries>,
    version: Option<Version>,
    at: Moment,
    /// Counts what was learnt of the directory: who asked before takes nothing back.
    learnt: u64,
}

#[derive(Default)]
struct Waiting {
    changes: BTreeMap<String, Option<Entry>>,
    /// Name them in the journal, oldest first; each has one, so that a change costs the same whatever waits with it.
    ids: Vec<u64>,
}

/// The attribute objects of one storage.
pub struct Attributes {
    storage: Arc<dyn UnderStorage>,
    clock: Clock,
    age: Duration,
    loaded: Mutex<LruCache<String, Loaded>>,
    waiting: Mutex<HashMap<String, Waiting>>,
    writing: tokio::sync::Mutex<()>,
    learnt: AtomicU64,
    journal: OnceLock<(Arc<Journal>, Arc<AtomicU64>)>,
}

impl Attributes {
    pub(crate) fn new(storage: Arc<dyn UnderStorage>, clock: Clock, age: Duration) -> Arc<Self> {
        let remembered = NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN);
        Arc::new(Self {
            storage,
            clock,
            age,
            loaded: Mutex::new(LruCache::new(remembered)),
            waiting: Mutex::default(),
            writing: tokio::sync::Mutex::new(()),
            learnt: AtomicU64::new(1),
            journal: OnceLock::new(),
        })
    }

    /// From now on changes are kept in `journal`, with identities from `ids`.
    pub(crate) fn keep_in(&self, journal: Arc<Journal>, ids: Arc<AtomicU64>) {
        let first = self.journal.set((journal, ids)).is_ok();
        debug_assert!(first);
    }

    /// Changes that an earlier process did not write; in the order of their identities.
    pub(crate) fn resume(&self, id: u64, prefix: String, changes: BTreeMap<String, Option<Entry>>) {
        let mut waiting = self.waiting.lock();
        let entry = waiting.entry(prefix).or_default();
        entry.ids.push(id);
        entry.changes.extend(changes);
    }

    fn prefix(&self, directory: &UfsPath) -> Option<String> {
        self.storage.objects()?.prefix(directory).ok()
    }

    /// The entries of a directory; `version`: that of its attribute object as a listing shows it, if one did.
    pub(crate) async fn of(&self, directory: &UfsPath, listed: Option<Option<&Version>>) -> Result<View> {
        match self.prefix(directory) {
            Some(prefix) => self.view(&prefix, listed).await,
            None => Ok(View::default()),
        }
    }

    async fn view(&self, prefix: &str, listed: Option<Option<&Version>>) -> Result<View> {
        let known = {
            let mut loaded = self.loaded.lock();
            loaded.get(prefix).and_then(|known| {
                let good = match listed {
                    Some(version) => known.version.as_ref() == version,
                    None => self.clock.now().since(known.at) < self.age,
                };
                good.then(|| known.entries.clone())
            })
        };
        let entries = match (known, listed) {
            (Some(entries), _) => entries,
            // A listing that began before an object was written does not show it; it is asked for, then.
            (None, Some(None)) if self.loaded.lock().peek(prefix).is_none_or(|known| known.version.is_none()) => {
                self.remember(prefix, Arc::default(), None);
                Arc::default()
            }
            (None, _) => self.load(prefix).await?.0,
        };
        let changes = self.waiting.lock().get(prefix).map(|waiting| waiting.changes.clone()).unwrap_or_default();
        Ok(View { entries, changes })
    }

    async fn load(&self, prefix: &str) -> Result<(Arc<Entries>, Option<Version>)> {
        let Some(objects) = self.storage.objects() else { return Ok(Default::default()) };
        let key = format!("{prefix}{NAME}");
        let learnt = |loaded: &LruCache<String, Loaded>| loaded.peek(prefix).map(|known| known.learnt);
        let before = learnt(&self.loaded.lock());
        let (entries, version) = match objects.get(&key, LARGEST).await {
            Ok(None) => (Arc::default(), None),
            Ok(Some((bytes, version))) => {
                let document: Document = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::new(ErrorKind::Corrupt, format!("attribute object {key}: {error}")))?;
                (Arc::new(document.entries), Some(version))
            }
            // Who may not list is told so of what is not there; and what may not be read says nothing.
            Err(error) if is_denied(&error) => (Arc::default(), None),
            Err(error) => return Err(error),
        };
        let mut loaded = self.loaded.lock();
        if learnt(&loaded) == before {
            self.put(&mut loaded, prefix, entries.clone(), version.clone());
        }
        Ok((entries, version))
    }

    fn remember(&self, prefix: &str, entries: Arc<Entries>, version: Option<Version>) {
        self.put(&mut self.loaded.lock(), prefix, entries, version);
    }

    fn put(
        &self,
        loaded: &mut LruCache<String, Loaded>,
        prefix: &str,
        entries: Arc<Entries>,
        version: Option<Version>,
    ) {
        let learnt = self.learnt.fetch_add(1, Ordering::Relaxed);
        loaded.put(prefix.to_owned(), Loaded { entries, version, at: self.clock.now(), learnt });
    }

    /// Forgets what is known of a directory and of those below it.
    pub(crate) fn forget_tree(&self, prefix: &str) {
        let mut loaded = self.loaded.lock();
        let below: Vec<String> =
            loaded.iter().map(|(key, _)| key).filter(|key| key.starts_with(prefix)).cloned().collect();
        for key in below {
            loaded.pop(&key);
        }
    }

    /// The look of a name, if there is one for this version.
    pub(crate) async fn look(&self, path: &UfsPath, version: Option<&Version>) -> Result<Option<Look>> {
        let Some((directory, name)) = split(path) else { return Ok(None) };
        Ok(self.of(&directory, None).await?.look(&name, version))
    }

    /// Sets the look of a name; `version` is that of a file, none of a directory. A default look needs no entry.
    pub(crate) async fn set(&self, path: &UfsPath, version: Option<&Version>, look: &Look) -> Result<()> {
        let entry = (*look != Look::default())
            .then(|| Entry { etag: version.map(|version| version.as_str().to_owned()), look: look.clone() });
        self.change(path, entry).await
    }

    /// Changes the entry of a name; `None` removes it.
    pub(crate) async fn change(&self, path: &UfsPath, entry: Option<Entry>) -> Result<()> {
        let Some((directory, name)) = split(path) else {
            return Err(Error::new(ErrorKind::NotPermitted, "the root of a bucket has no attributes of its own"));
        };
        if entry.is_none() && self.of(&directory, None).await?.entry(&name).is_none() {
            return Ok(());
        }
        let Some(prefix) = self.prefix(&directory) else { return Ok(()) };
        self.wait(prefix, name, entry)
    }

    /// Keeps a change until it is written, in the journal first. Changes of one name come one after the other, since who
    /// makes them has the turn of the name.
    fn wait(&self, prefix: String, name: String, entry: Option<Entry>) -> Result<()> {
        let id = match self.journal.get() {
            Some((journal, ids)) => {
                let id = ids.fetch_add(1, Ordering::Relaxed);
                let change = BTreeMap::from([(name.clone(), entry.clone())]);
                journal.append(id, Record::Attributes(prefix.clone(), change), false)?;
                Some(id)
            }
            None => None,
        };
        let mut waiting = self.waiting.lock();
        let changes = waiting.entry(prefix).or_default();
        changes.changes.insert(name, entry);
        changes.ids.extend(id);
        Ok(())
    }

    /// Has entries count for copies in other versions: rest of the key below `prefix`, the old and the new version.
    pub(crate) async fn follow(&self, prefix: &str, versions: &[(String, String, String)]) -> Result<()> {
        for (rest, old, new) in versions {
            let (directory, name) =
                rest.rsplit_once('/').map_or(("", rest.as_str()), |(directory, name)| (directory, name));
            if name.is_empty() || name == NAME {
                continue;
            }
            let directory = if directory.is_empty() { prefix.to_owned() } else { format!("{prefix}{directory}/") };
            let view = self.view(&directory, None).await?;
            if let Some(entry) = view.entry(name).filter(|entry| entry.etag.as_ref() == Some(old)) {
                let entry = Entry { etag: Some(new.clone()), look: entry.look.clone() };
                self.wait(directory, name.to_owned(), Some(entry))?;
            }
        }
        Ok(())
    }

    /// Writes the changes that wait for a directory and for those below it.
    pub(crate) async fn settle(&self, directory: &UfsPath) -> Result<()> {
        self.write_all(Some(directory)).await
    }

    /// Writes the changes that wait, of all directories or of those below one.
    pub(crate) async fn write_all(&self, below: Option<&UfsPath>) -> Result<()> {
        let _one = self.writing.lock().await;
        let within = match below {
            Some(directory) => self.prefix(directory),
            None => Some(String::new()),
        };
        let Some(within) = within else { return Ok(()) };
        let prefixes: Vec<String> =
            self.waiting.lock().keys().filter(|prefix| prefix.starts_with(&within)).cloned().collect();
        let writes = prefixes.into_iter().map(|prefix| async move { self.write(&prefix).await });
        let results: Vec<Result<()>> = stream::iter(writes).buffer_unordered(16).collect().await;
        results.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }

    async fn write(&self, prefix: &str) -> Result<()> {
        let Some(objects) = self.storage.objects() else { return Ok(()) };
        let (changes, ids) = match self.waiting.lock().get(prefix) {
            Some(waiting) => (waiting.changes.clone(), waiting.ids.clone()),
            None => return Ok(()),
        };
        let key = format!("{prefix}{NAME}");
        let known = self.loaded.lock().peek(prefix).map(|known| (known.entries.clone(), known.version.clone()));
        let mut known = match known {
            Some(known) => known,
            None => self.load(prefix).await?,
        };
        let mut races = 0;
        loop {
            let mut entries = (*known.0).clone();
            for (name, entry) in &changes {
                match entry {
                    Some(entry) => entries.insert(name.clone(), entry.clone()),
                    None => entries.remove(name),
                };
            }
            let written = if entries == *known.0 {
                Ok(known.1.clone())
            } else if entries.is_empty() {
                match &known.1 {
                    Some(version) => objects.delete_version(&key, version).await.map(|()| None),
                    None => Ok(None),
                }
            } else {
                let json = serde_json::to_vec(&Document { format: 1, entries: entries.clone() });
                let json =
                    json.map_err(|error| Error::new(ErrorKind::Io, format!("attribute object {key}: {error}")))?;
                if json.len() > LARGEST as usize {
                    let why = format!("more attributes than {LARGEST} bytes in one directory");
                    return Err(Error::new(ErrorKind::NoSpace, format!("attribute object {key}: {why}")));
                }
                let condition = known.1.clone().map_or(Condition::Absent, Condition::Version);
                objects.put(&key, &json.into(), &Metadata::new(), &condition).await.map(|stored| Some(stored.version))
            };
            match written {
                Ok(version) => {
                    self.remember(prefix, Arc::new(entries), version);
                    return self.written(prefix, &changes, &ids);
                }
                Err(error)
                    if races < RACES
                        && matches!(
                            error.kind(),
                            ErrorKind::Stale | ErrorKind::AlreadyExists | ErrorKind::NotFound
                        ) =>
                {
                    races += 1;
                    known = self.load(prefix).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn written(&self, prefix: &str, changes: &BTreeMap<String, Option<Entry>>, ids: &[u64]) -> Result<()> {
        {
            let mut waiting = self.waiting.lock();
            let Some(entry) = waiting.get_mut(prefix) else { return Ok(()) };
            entry.changes.retain(|name, change| changes.get(name) != Some(change));
            // Those that came since are behind them.
            entry.ids.drain(..ids.len().min(entry.ids.len()));
            if entry.changes.is_empty() && entry.ids.is_empty() {
                waiting.remove(prefix);
            }
        }
        if let Some((journal, _)) = self.journal.get() {
            for id in ids {
                journal.append(*id, Record::Done, false)?;
            }
        }
        Ok(())
    }
}

/// The entries of a directory at a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    entries: Arc<Entries>,
    changes: BTreeMap<String, Option<Entry>>,
}

impl View {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.changes.is_empty()
    }

    pub(crate) fn entry(&self, name: &str) -> Option<&Entry> {
        match self.changes.get(name) {
            Some(change) => change.as_ref(),
            None => self.entries.get(name),
        }
    }

    /// The look of a name in this version; of a directory none.
    pub(crate) fn look(&self, name: &str, version: Option<&Version>) -> Option<Look> {
        let entry = self.entry(name)?;
        (entry.etag.as_deref() == version.map(Version::as_str)).then(|| entry.look.clone())
    }

    /// Shows the look of a name in its attributes.
    pub(crate) fn dress(&self, name: &[u8], attr: &mut Attr) {
        let Ok(name) = std::str::from_utf8(name) else { return };
        let version = (!attr.is_dir()).then(|| attr.version.clone());
        if let Some(look) = self.look(name, version.as_ref()) {
            look.apply(attr);
        }
    }
}

/// Whether the credentials are good and this key is not for them; credentials that are expired or wrong may get better.
fn is_denied(error: &Error) -> bool {
    let codes = ["[AccessDenied]", "[AllAccessDisabled]", "[HTTP 403]"];
    error.kind() == ErrorKind::PermissionDenied && codes.iter().any(|code| error.message().contains(code))
}

fn split(path: &UfsPath) -> Option<(UfsPath, String)> {
    let name = std::str::from_utf8(path.name()?).ok()?.to_owned();
    Some((path.parent()?, name))
}
