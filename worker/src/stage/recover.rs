//! Opens a stage, and goes on with what an earlier process left: uploads, renames, attributes.
//!
//! Each storage has directories of its own below the stage directory, each locked by the process that uses it. Whoever
//! opens takes the first that is free, and what lies in others that nobody uses; so two mounts of one storage on a host
//! have one each, and what a mount left is found by the next one whichever it takes.

use super::{
    Caches, Pending, Stage, StageOptions,
    attributes::Attributes,
    file::{Base, Staged},
    journal::{FileRecord, Journal, MoveRecord, Record},
    publish::boot,
    space::Space,
    turns::{Claim, Turns},
    upload::{Upload, rand_bits},
};
use common::{Error, ErrorKind, Result, Timestamp, UfsPath, Version, budget::MemoryBudget, page::PagePool};
use futures::FutureExt;
use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    fs::{File, OpenOptions},
    io,
    num::NonZeroUsize,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
};
use ufs::UnderStorage;

/// Stages of one storage on one host.
const MOST: usize = 64;
/// Directories whose mark is remembered.
const MARKED: usize = 16_384;

/// Locks the stage directory; none when another process has it.
fn lock(directory: &Path) -> Result<Option<File>> {
    let failed = |error| Error::io(format!("stage directory {}", directory.display()), error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(directory.join("lock"));
    let file = file.map_err(failed)?;
    // SAFETY: the descriptor lives as long as `file`; the call takes no pointer.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(Some(file)),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(None),
            error => Err(failed(error)),
        },
    }
}

/// What stage directories of a storage nobody uses, each with its lock; the first is made when there is none.
fn free(base: &Path) -> Result<Vec<(PathBuf, File)>> {
    let mut found = Vec::new();
    for number in 0..MOST {
        let directory = base.join(number.to_string());
        let there = directory.exists();
        if !there && !found.is_empty() {
            continue;
        }
        found.extend(lock(&directory)?.map(|lock| (directory, lock)));
    }
    if found.is_empty() {
        let why = format!("{MOST} mounts of this storage use it");
        return Err(Error::new(ErrorKind::Busy, format!("stage directory {}: {why}", base.display())));
    }
    Ok(found)
}

/// Takes over what lies in a stage directory that nobody uses: files first, then their records, then away with the old ones.
fn adopt(from: &Path, into: &Path, journal: &Journal, next: &AtomicU64) -> Result<BTreeMap<u64, Record>> {
    let (old, records) = Journal::open(from)?;
    let mut adopted = BTreeMap::new();
    for (id, record) in records {
        let fresh = next.fetch_add(1, Ordering::Relaxed);
        let (source, target) = (from.join(format!("{id}.data")), into.join(format!("{fresh}.data")));
        if matches!(record, Record::File(_)) {
            match std::fs::hard_link(&source, &target) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(format!("stage file {}", source.display()), error)),
            }
        }
        journal.append(fresh, record.clone(), true)?;
        old.append(id, Record::Done, false)?;
        let _ = std::fs::remove_file(&source);
        adopted.insert(fresh, record);
    }
    Ok(adopted)
}

impl Stage {
    /// Opens the stage of `storage`, which takes changes of objects, and goes on in the background with what was left.
    pub(crate) fn open(
        storage: Arc<dyn UnderStorage>,
        attributes: Arc<Attributes>,
        options: StageOptions,
        budget: Arc<MemoryBudget>,
        caches: Box<dyn Caches>,
        handle: Handle,
    ) -> Result<Arc<Self>> {
        let Some(objects) = storage.objects() else {
            let why = "this storage takes no changes";
            return Err(Error::new(ErrorKind::Unsupported, format!("{}: {why}", storage.uri())));
        };
        let name = common::FileId::of(objects.identity().as_bytes()).hex();
        let base = options.directory.join(&name[..16]);
        let mut directories = free(&base)?.into_iter();
        let Some((directory, lock)) = directories.next() else {
            return Err(Error::new(ErrorKind::Busy, format!("stage directory {}", base.display())));
        };
        let (journal, mut records) = Journal::open(&directory)?;
        let next = AtomicU64::new(records.last_key_value().map_or(1, |(id, _)| id + 1));
        let ids = Arc::new(AtomicU64::new(u64::MAX / 2));
        let attribute_ids = records.keys().filter(|id| **id >= u64::MAX / 2).max().copied();
        if let Some(last) = attribute_ids {
            ids.store(last + 1, Ordering::Relaxed);
            let last = records.range(..u64::MAX / 2).next_back().map_or(0, |(id, _)| *id);
            next.store(last + 1, Ordering::Relaxed);
        }
        for (other, _lock) in directories {
            records.extend(adopt(&other, &directory, &journal, &next)?);
        }
        let journal = Arc::new(journal);
        let capacity = options.capacity;
        let stage = Arc::new(Self {
            storage,
            attributes,
            options,
            directory,
            _lock: lock,
            journal: journal.clone(),
            space: Space::new(capacity),
            pages: PagePool::new(budget.clone()),
            budget,
            parts: Semaphore::new(super::PARTS),
            turns: Arc::new(Turns::default()),
            files: Default::default(),
            marked: parking_lot::Mutex::new(lru::LruCache::new(NonZeroUsize::new(MARKED).unwrap_or(NonZeroUsize::MIN))),
            permission: Default::default(),
            steps: AtomicU64::new(0),
            moves: Default::default(),
            lost: Default::default(),
            caches,
            handle,
            next,
            nonce: rand_bits(),
            changed: Notify::new(),
            ended: AtomicBool::new(false),
        });
        stage.attributes.keep_in(journal, ids);
        stage.resume(records)?;
        stage.keep_up();
        Ok(stage)
    }

    fn resume(self: &Arc<Self>, records: BTreeMap<u64, Record>) -> Result<()> {
        let mut newest: HashMap<Vec<u8>, (u64, FileRecord)> = HashMap::new();
        let mut moves = Vec::new();
        for (id, record) in records {
            match record {
                Record::File(record) => self.sift(&mut newest, id, *record)?,
                Record::Move(record) => moves.push((id, record)),
                Record::Attributes(prefix, changes) => self.attributes.resume(id, prefix, changes),
                Record::Done => {}
            }
        }
        // What is there of a file that lost bytes stays until its record is done with.
        let mut kept: HashSet<String> = self.lost.lock().iter().map(|(id, _)| format!("{id}.data")).collect();
        for (id, record) in newest.into_values() {
            kept.insert(format!("{id}.data"));
            self.resume_file(id, record)?;
        }
        self.sweep(&kept)?;
        let files: Vec<Arc<Staged>> = self.files.lock().values().cloned().collect();
        // Taken before anybody can ask for anything: nobody writes where a rename is still to be settled.
        let claims = moves.iter().flat_map(|(_, record)| [&record.from, &record.to]);
        let claims: Vec<Claim> = claims.filter_map(|key| self.claim(key)).collect();
        let turn = self.turns.take(claims).now_or_never();
        let stage = self.clone();
        let moving = !moves.is_empty();
        let all = async move {
            for (id, record) in moves {
                stage.settle_move(id, record).await;
            }
            if moving {
                stage.caches.changed_tree(&UfsPath::root());
            }
            drop(turn);
            for staged in files {
                staged.retry_later(&stage);
            }
        };
        self.handle.spawn(all);
        Ok(())
    }

    /// The tree that a key or prefix of a rename stands for.
    fn claim(&self, key: &str) -> Option<Claim> {
        let root = self.objects().prefix(&UfsPath::root()).ok()?;
        let rest = key.strip_prefix(&root)?.trim_end_matches('/');
        UfsPath::parse(rest).ok().map(|path| Claim::tree(&path))
    }

    /// Goes on with a rename that was interrupted, for as long as the storage is away.
    async fn settle_move(&self, id: u64, record: MoveRecord) {
        let (from, to) = (&record.from, &record.to);
        loop {
            match self.finish_move(id, &record).await {
                Ok(()) => return tracing::info!("{from} to {to}: the rename that was interrupted is settled"),
                Err(error) if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut) => {
                    tracing::warn!("{from} to {to}: the rename is not finished yet: {error}");
                    tokio::time::sleep(self.options.retry_longest).await;
                }
                Err(error) => {
                    // Both names are there, and can be used; the next mount tries again.
                    tracing::error!("{from} to {to}: the rename cannot be finished, both are there: {error}");
                    return self.moves.lock().push((id, record));
                }
            }
        }
    }

    /// Takes the record of a file among those that count: whole, and the last of its path.
    fn sift(&self, newest: &mut HashMap<Vec<u8>, (u64, FileRecord)>, id: u64, record: FileRecord) -> Result<()> {
        let shown = String::from_utf8_lossy(&record.path).into_owned();
        if !record.synced && !record.boot.is_empty() && record.boot != boot() {
            // Neither close nor fsync was answered, and what lies here of it may be anything.
            tracing::warn!(
                "{shown}: was being uploaded when the machine went down, and is dropped as it was not synced"
            );
            return self.journal.append(id, Record::Done, false);
        }
        let end = record.dirty.iter().map(|(_, end)| *end).max().unwrap_or(0);
        let place = self.place(id);
        let here = match std::fs::metadata(&place) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io(format!("stage file {}", place.display()), error)),
        };
        if here < end {
            let why = format!("{} has {here} of {end} bytes: what was written is lost", place.display());
            let error = Error::new(ErrorKind::Corrupt, format!("{shown}: {why}; write the file anew, or remove it"));
            tracing::error!("{error}");
            let (path, failure) = (UfsPath::parse(&record.path)?, Some((error, Timestamp::now())));
            self.lost.lock().push((id, Pending { path, size: record.size, failure }));
            return Ok(());
        }
        match newest.entry(record.path.clone()) {
            Entry::Vacant(free) => drop(free.insert((id, record))),
            Entry::Occupied(mut known) => {
                tracing::info!("{shown}: was left by two processes, the later one counts");
                let (old, kept) = known.get();
                let older = if record.changed >= kept.changed { *old } else { id };
                if older != id {
                    known.insert((id, record));
                }
                self.journal.append(older, Record::Done, true)?;
            }
        }
        Ok(())
    }

    fn resume_file(self: &Arc<Self>, id: u64, record: FileRecord) -> Result<()> {
        let path = UfsPath::parse(&record.path)?;
        let base = match &record.base {
            Some((version, _, base)) => {
                Some(Base { path: UfsPath::parse(base)?, version: Version::new(version.as_str()) })
            }
            None => None,
        };
        let valid = record.base.as_ref().map_or(0, |(_, valid, _)| *valid);
        let staged = Staged::new(self, id, path.clone(), base, record.size, record.look);
        {
            let mut state = staged.state.lock();
            state.base_valid = valid;
            state.mark = record.mark;
            for (start, end) in record.dirty {
                state.staged.insert(start..end);
                state.dirty.insert(start..end);
            }
            if let Some((upload, mark, parts)) = record.upload {
                for (_, start, length, _) in parts.iter().filter(|(.., etag)| !etag.is_empty()) {
                    for gap in state.staged.gaps(*start..start + length) {
                        state.gone.insert(gap);
                    }
                }
                state.upload = Some(Upload::resumed(upload, mark, parts));
            }
            state.changed = 1;
            (state.journalled, state.durable) = (true, true);
            state.mtime = Timestamp { sec: record.changed.0, nsec: record.changed.1 };
            let lies_here = state.staged.total();
            self.space.take_anyway(lies_here).keep(lies_here);
        }
        tracing::info!("{path}: {} bytes from an earlier process are uploaded", record.size);
        self.files.lock().insert(path, Arc::new(staged));
        Ok(())
    }

    /// Removes stage files that no record names: they were never closed, or are in the storage.
    fn sweep(&self, kept: &HashSet<String>) -> Result<()> {
        let failed = |error| Error::io(format!("stage directory {}", self.directory.display()), error);
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(".data") && !kept.contains(&name) {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// How many changes below a stage directory of its own are not in the storage, when no process uses it.
///
/// # Errors
/// It cannot be read, or a process uses it.
pub fn left_behind(directory: &Path) -> Result<usize> {
    let failed = |error| Error::io(format!("stage directory {}", directory.display()), error);
    let entries = |directory: &Path| match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>().map_err(failed),
    };
    let mut left = 0;
    for storage in entries(directory)? {
        for stage in entries(&storage)? {
            if !stage.join("journal").exists() {
                continue;
            }
            let Some(_lock) = lock(&stage)? else {
                return Err(Error::new(ErrorKind::Busy, format!("stage directory {}: it is in use", stage.display())));
            };
            left += Journal::open(&stage)?.1.len();
        }
    }
    Ok(left)
}
