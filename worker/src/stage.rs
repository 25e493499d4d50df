//! Changes of object stores: files are staged on local disk, and put into the storage whole when they are closed or synced.
//!
//! - [`file`]: one staged file; [`upload`]: how it gets into the storage; [`handle`]: the handles that write it;
//! - [`changes`]: the interface; [`names`]: making, removing and renaming; [`tree`]: renames of directories; [`attributes`]: what a listing cannot show;
//! - [`journal`]: what outlives the process; [`recover`]: how the next one goes on;
//! - [`space`], [`turns`], [`ranges`]: the bounds of the stage, the order of changes, sets of offsets.
//!
//! Invariants:
//! - what a close or a sync answered with success is in the storage (with write-back: in the journal, synced);
//! - what could not be uploaded stays here, is tried again, is listed ([`Stage::pending`]), and goes only when it is in the
//!   storage or its name is removed;
//! - changes that ask the storage more than once are done in tasks of their own, so that no deadline of a request cuts them
//!   in half;
//! - one process has a stage directory, which it locks; memory is that of the budget, disk that of [`space`].

mod attributes;
mod changes;
mod dressed;
mod file;
mod handle;
mod journal;
mod names;
pub mod options;
mod overlay;
mod permission;
mod publish;
mod ranges;
mod recover;
mod space;
mod tree;
mod turns;
mod upload;

pub use attributes::Attributes;
pub(crate) use changes::ObjectChanges;
pub use dressed::Dressed;
pub(crate) use handle::StagedPages;
pub use options::StageOptions;
pub(crate) use overlay::unpublished;
pub use recover::left_behind;

use crate::cache::Known;
use bytes::Bytes;
use common::{Attr, Error, ErrorKind, Result, Timestamp, UfsPath, budget::MemoryBudget, page::PagePool};
use file::Staged;
use journal::{Journal, MoveRecord, Record};
use parking_lot::Mutex;
use permission::Permission;
use space::Space;
use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
};
use turns::Turns;
use ufs::{ObjectWrites, UnderStorage};

/// Parts under way at the same time, of all files.
const PARTS: usize = 16;

/// What the stage tells the caches of the worker, and asks them.
#[async_trait::async_trait]
pub(crate) trait Caches: Send + Sync {
    /// A name changed; `known`: to this, else it must be asked for.
    fn changed(&self, path: &UfsPath, known: Option<Known>);
    /// A file is there in a new version, with attributes that only the storage knows.
    fn stored(&self, path: &UfsPath);
    /// A directory and everything below it changed.
    fn changed_tree(&self, path: &UfsPath);
    /// The attributes, from what is known while that is fresh or (`fresh`) from the storage.
    async fn attr(&self, path: &UfsPath, fresh: bool) -> Result<Arc<Attr>>;
    /// The bytes of a file that was just put into the storage.
    fn seed(&self, path: &UfsPath, attr: Arc<Attr>, bytes: Bytes);
}

/// A file that is not in the storage as it was written.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Its path below the mount.
    pub path: UfsPath,
    /// Its size.
    pub size: u64,
    /// Why the last attempt failed, and when; none while it was not closed yet.
    pub failure: Option<(Error, Timestamp)>,
}

/// The stage of one storage.
pub struct Stage {
    storage: Arc<dyn UnderStorage>,
    attributes: Arc<Attributes>,
    options: StageOptions,
    directory: PathBuf,
    _lock: File,
    journal: Arc<Journal>,
    space: Arc<Space>,
    budget: Arc<MemoryBudget>,
    /// Buffers for readers of files that are staged while there is no room for what they read.
    pages: Arc<PagePool>,
    parts: Semaphore,
    turns: Arc<Turns>,
    files: Mutex<HashMap<UfsPath, Arc<Staged>>>,
    /// Directories that have a mark of their own, as far as that was seen to.
    marked: Mutex<lru::LruCache<String, ()>>,
    permission: Permission,
    /// Counts parts and files that were sent: who waits for all of them sees that it goes on.
    steps: AtomicU64,
    /// Renames that failed between their copies and the removal of the old names; the next mount goes on with them.
    moves: Mutex<Vec<(u64, MoveRecord)>>,
    /// What the journal names and the stage directory has not.
    lost: Mutex<Vec<(u64, Pending)>>,
    caches: Box<dyn Caches>,
    handle: Handle,
    next: AtomicU64,
    nonce: u64,
    changed: Notify,
    ended: AtomicBool,
}

impl Stage {
    /// Whether the storage takes changes of objects.
    pub(crate) fn suits(storage: &Arc<dyn UnderStorage>) -> bool {
        storage.objects().is_some()
    }

    fn objects(&self) -> &dyn ObjectWrites {
        match self.storage.objects() {
            Some(objects) => objects,
            // Checked when the stage was opened; a storage does not change.
            None => unreachable!("a stage over a storage that takes no changes"),
        }
    }

    fn object_max(&self) -> u64 {
        self.objects().limits().object_max
    }

    fn place(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{id}.data"))
    }

    fn fresh_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The file that is staged at a path.
    pub(crate) fn staged(&self, path: &UfsPath) -> Option<Arc<Staged>> {
        self.files.lock().get(path).cloned()
    }

    /// The attributes of a file that is written and not published.
    pub(crate) fn attr_now(&self, path: &UfsPath) -> Option<Arc<Attr>> {
        let staged = self.staged(path)?;
        let dirty = staged.state.lock().is_dirty();
        dirty.then(|| Arc::new(staged.attr()))
    }

    /// The files in a directory that are written and not published, by name.
    pub(crate) fn unpublished(&self, directory: &UfsPath) -> std::collections::BTreeMap<Box<[u8]>, Arc<Attr>> {
        let files: Vec<(UfsPath, Arc<Staged>)> = {
            let files = self.files.lock();
            let within = |path: &&UfsPath| path.is_within(directory) && path.parent().as_ref() == Some(directory);
            files.keys().filter(within).filter_map(|path| Some((path.clone(), files.get(path)?.clone()))).collect()
        };
        let dirty = files.into_iter().filter(|(_, staged)| staged.state.lock().is_dirty());
        dirty.filter_map(|(path, staged)| Some((path.name()?.into(), Arc::new(staged.attr())))).collect()
    }

    /// What is not in the storage as it was written, oldest first.
    pub fn pending(&self) -> Vec<Pending> {
        let mut files: Vec<Arc<Staged>> = self.files.lock().values().cloned().collect();
        files.sort_by_key(|staged| staged.id);
        let pending = files.iter().filter_map(|staged| {
            let state = staged.state.lock();
            let listed = state.is_dirty();
            listed.then(|| Pending { path: state.path.clone(), size: state.size, failure: state.failure.clone() })
        });
        let lost = self.lost.lock().iter().map(|(_, lost)| lost.clone()).collect::<Vec<_>>();
        pending.chain(lost).collect()
    }

    /// Does `work` whole, though whoever waits for it may be given up.
    async fn whole<T: Send + 'static>(&self, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
        let done = self.handle.spawn(work).await;
        done.unwrap_or_else(|gone| Err(Error::new(ErrorKind::Cancelled, format!("a change was not finished: {gone}"))))
    }

    /// Appends to the journal; what is `durable` is waited for on a thread that may wait.
    async fn append(&self, id: u64, record: Record, durable: bool) -> Result<()> {
        if !durable {
            return self.journal.append(id, record, false);
        }
        let journal = self.journal.clone();
        let appended = tokio::task::spawn_blocking(move || journal.append(id, record, true)).await;
        appended.map_err(|gone| Error::io("journal", std::io::Error::other(gone)))?
    }

    /// Says that something is written at a key: a rename that would remove it is not gone on with.
    fn overtaken(&self, key: &str) -> Result<()> {
        let ended: Vec<u64> = {
            let moves = self.moves.lock();
            moves.iter().filter(|(_, record)| record.concerns(key)).map(|(id, _)| *id).collect()
        };
        for id in ended {
            self.journal.append(id, Record::Done, false)?;
            self.moves.lock().retain(|(other, _)| *other != id);
        }
        Ok(())
    }

    /// Says that a name was written anew, or removed: what was lost of it is no matter any more.
    async fn found_again(&self, path: &UfsPath) {
        let ids: Vec<u64> = {
            let lost = self.lost.lock();
            lost.iter().filter(|(_, lost)| lost.path == *path).map(|(id, _)| *id).collect()
        };
        for id in ids {
            match self.append(id, Record::Done, true).await {
                Ok(()) => self.lost.lock().retain(|(other, _)| *other != id),
                Err(error) => tracing::warn!("{path}: {error}"),
            }
        }
    }

    /// Bytes that the stage takes on disk.
    pub fn used(&self) -> u64 {
        self.space.used()
    }

    /// Gives up in the stage what the storage has too.
    fn relieve(&self) {
        let files: Vec<Arc<Staged>> = self.files.lock().values().cloned().collect();
        let given: u64 = files.iter().map(|staged| staged.relieve()).sum();
        self.space.give(given);
    }

    /// Aborts an upload in the background.
    fn give_up(self: &Arc<Self>, key: String, upload: String) {
        let stage = self.clone();
        self.handle.spawn(async move {
            if let Err(error) = stage.objects().abort(&key, &upload).await {
                tracing::warn!("{key}: parts of an upload are left behind: {error}");
            }
        });
    }

    /// Writes attributes of directories when they are due, until the stage is gone. While that fails it tries less often.
    fn keep_up(self: &Arc<Self>) {
        const OFTEN: Duration = Duration::from_millis(500);
        let weak = Arc::downgrade(self);
        self.handle.spawn(async move {
            let mut pause = OFTEN;
            loop {
                tokio::time::sleep(pause).await;
                let Some(stage) = weak.upgrade() else { return };
                if stage.ended.load(Ordering::Relaxed) {
                    return;
                }
                pause = match stage.attributes.write_all(None).await {
                    Ok(()) => OFTEN,
                    Err(error) => {
                        tracing::warn!("attributes are not written yet: {error}");
                        (pause * 2).min(stage.options.retry_longest)
                    }
                };
            }
        });
    }

    /// Ends what is tried again and again in the background: the next mount goes on with it.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Waits until everything is in the storage, for as long as something gets there within `limit`. Fails with the reason
    /// why something is not: it stays in the stage, and the next mount goes on with it.
    pub async fn drain(self: &Arc<Self>, limit: Duration) -> Result<()> {
        let all = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let result = self.sync_below(&UfsPath::root()).await;
                if !self.files.lock().values().any(|staged| staged.state.lock().is_dirty()) {
                    return result;
                }
                // Looked at again without a sign too: what failed is tried again, though not at once.
                let pause = Duration::from_millis(if result.is_ok() { 200 } else { 1000 });
                let _ = tokio::time::timeout(pause, changed).await;
            }
        };
        let stalled = async {
            loop {
                let steps = self.steps.load(Ordering::Relaxed);
                tokio::time::sleep(limit).await;
                if self.steps.load(Ordering::Relaxed) == steps {
                    return;
                }
            }
        };
        tokio::select! {
            done = all => return done,
            () = stalled => {}
        }
        let pending = self.pending();
        let first = pending.first().map_or(String::new(), |first| match &first.failure {
            Some((error, _)) => format!(", first {}: {error}", first.path),
            None => format!(", first {}", first.path),
        });
        let count = pending.len();
        let why = format!("{count} files are not uploaded{first}; they stay in {}", self.directory.display());
        Err(Error::new(ErrorKind::TimedOut, why))
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stage({})", self.directory.display())
    }
}
