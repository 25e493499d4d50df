//! One file in the stage: what of it lies on local disk, what still lies in its object, and what of it is new.
//!
//! A byte comes from the stage file when its offset is in `staged` or beyond `base_valid` (where the stage file has holes,
//! which read as the zeros that they stand for); else from the object `base`.
//!
//! Invariants:
//! - writers hold the gate for reading while they write, and whoever publishes, truncates, gives up bytes or fills the stage
//!   from the object holds it alone; so what is published is one state of the file;
//! - `dirty` is within `staged` or `gone`; `gone` is what was sent in whole parts of `upload` and then given up here to make
//!   room: those parts stay as they are until the file is published, and nobody reads or writes there;
//! - a write is done whole or not at all, though nobody waits for it any more;
//! - space is taken before bytes are written, and the sum of `staged` is what the file has taken;
//! - a stage file is removed only when nothing of it is dirty, or the name is removed, and the journal knows.

use super::{Stage, attributes::Look, ranges::RangeSet, space::Taken, upload::Upload};
use bytes::{Bytes, BytesMut};
use common::{Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, Version};
use parking_lot::Mutex;
use std::{
    fs::{File, OpenOptions},
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    sync::{Arc, OnceLock, Weak, atomic::AtomicU64},
};
use tokio::sync::{Notify, RwLock};

/// What is fetched from an object at a time.
const BLOCK: u64 = 1 << 20;
/// What is written or read without leaving the thread.
const AT_ONCE: usize = 128 << 10;

/// The object that has what is not staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) path: UfsPath,
    pub(crate) version: Version,
}

/// What is known of a staged file.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) path: UfsPath,
    /// The name is gone; the handles that are open go on.
    pub(crate) removed: bool,
    pub(crate) size: u64,
    pub(crate) staged: RangeSet,
    pub(crate) dirty: RangeSet,
    pub(crate) gone: RangeSet,
    pub(crate) base: Option<Base>,
    /// How many of the first bytes of the base still count.
    pub(crate) base_valid: u64,
    pub(crate) look: Look,
    pub(crate) mtime: Timestamp,
    /// Counts changes; the state with number `published` is the one in the storage.
    pub(crate) changed: u64,
    pub(crate) published: u64,
    pub(crate) failure: Option<(Error, Timestamp)>,
    pub(crate) failures: u32,
    pub(crate) retrying: bool,
    pub(crate) opens: usize,
    /// There is a live record of it in the journal.
    pub(crate) journalled: bool,
    /// The record outlives the loss of power, so its end must too.
    pub(crate) durable: bool,
    pub(crate) upload: Option<Upload>,
    /// Parts under way.
    pub(crate) running: usize,
    pub(crate) publishing: bool,
    /// Parts that were sent in vain; after some the file is no more sent while it is written.
    pub(crate) touched: u32,
    /// Begins the marks of all uploads of this file, so that an object is known as a state of it whatever was answered.
    pub(crate) mark: String,
    /// Raised whenever bytes are given up here.
    pub(crate) epoch: u64,
}

impl State {
    pub(crate) fn is_dirty(&self) -> bool {
        self.changed != self.published && !self.removed
    }
}

/// A file in the stage.
pub(crate) struct Staged {
    pub(crate) id: u64,
    pub(crate) stage: Weak<Stage>,
    pub(crate) state: Mutex<State>,
    pub(crate) gate: Arc<RwLock<()>>,
    pub(crate) progress: Notify,
    /// Counts what was sent, so that who waits sees that it goes on.
    pub(crate) steps: AtomicU64,
    appending: tokio::sync::Mutex<()>,
    file: OnceLock<Arc<File>>,
    place: PathBuf,
}

impl Staged {
    /// A file of `size` bytes that are all in `base`.
    pub(crate) fn new(stage: &Arc<Stage>, id: u64, path: UfsPath, base: Option<Base>, size: u64, look: Look) -> Self {
        let state = State {
            path,
            removed: false,
            size,
            staged: RangeSet::default(),
            dirty: RangeSet::default(),
            gone: RangeSet::default(),
            base_valid: if base.is_some() { size } else { 0 },
            base,
            look,
            mtime: Timestamp::now(),
            changed: 0,
            published: 0,
            failure: None,
            failures: 0,
            retrying: false,
            opens: 0,
            journalled: false,
            durable: false,
            upload: None,
            running: 0,
            publishing: false,
            touched: 0,
            mark: format!("{:016x}", super::upload::rand_bits()),
            epoch: 0,
        };
        Self {
            id,
            stage: Arc::downgrade(stage),
            state: Mutex::new(state),
            gate: Arc::default(),
            progress: Notify::new(),
            steps: AtomicU64::new(0),
            appending: tokio::sync::Mutex::new(()),
            file: OnceLock::new(),
            place: stage.place(id),
        }
    }

    pub(crate) fn stage(&self) -> Result<Arc<Stage>> {
        self.stage.upgrade().ok_or_else(|| Error::new(ErrorKind::Cancelled, "the mount has ended"))
    }

    /// The stage file; made when it is first needed.
    pub(crate) fn file(&self) -> Result<Arc<File>> {
        if let Some(file) = self.file.get() {
            return Ok(file.clone());
        }
        // Two may open it at the same time; they open the same one, since nobody truncates.
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.place);
        let file = opened.map_err(|error| Error::io(format!("stage file {}", self.place.display()), error))?;
        Ok(self.file.get_or_init(|| Arc::new(file)).clone())
    }

    /// The attributes as of now.
    pub(crate) fn attr(&self) -> Attr {
        let state = self.state.lock();
        let version = match &state.base {
            Some(base) if state.changed == state.published => base.version.clone(),
            _ => {
                let nonce = self.stage.upgrade().map_or(0, |stage| stage.nonce);
                Version::new(format!("staged-{nonce:x}-{}-{}", self.id, state.changed))
            }
        };
        let mut attr = Attr::of_object(FileKind::File, state.size, state.mtime, version);
        state.look.apply(&mut attr);
        attr
    }

    /// The path now.
    pub(crate) fn path(&self) -> UfsPath {
        self.state.lock().path.clone()
    }

    fn failed(&self, what: &str, error: std::io::Error) -> Error {
        Error::io(format!("{}: cannot {what} the stage file", self.path()), error)
    }

    /// Reads what is there of `offset` and `length`.
    pub(crate) async fn read(&self, offset: u64, length: usize) -> Result<Bytes> {
        let end = self.state.lock().size.min(offset.saturating_add(length as u64));
        if offset >= end {
            return Ok(Bytes::new());
        }
        let mut bytes = BytesMut::with_capacity((end - offset) as usize);
        let mut at = offset;
        while at < end {
            at += self.read_some(at, end, &mut bytes).await?;
        }
        Ok(bytes.freeze())
    }

    /// Appends what comes from one place of `at..end` to `bytes`; returns its length, never 0.
    async fn read_some(&self, at: u64, end: u64, bytes: &mut BytesMut) -> Result<u64> {
        let (local, from_base, epoch) = {
            let state = self.state.lock();
            if state.gone.next(at).is_some_and(|gone| gone <= at) {
                return Err(self.sent(&state));
            }
            let local = at..state.local_run(at).min(end).max(at);
            let block = at / BLOCK * BLOCK..(at / BLOCK + 1) * BLOCK;
            let from_base = state.base.clone().map(|base| (base, block.start..block.end.min(state.base_valid)));
            (local, from_base, state.epoch)
        };
        if !local.is_empty() {
            // Fits: it is a part of a request that came in memory.
            let length = (local.end - local.start) as usize;
            let file = self.file()?;
            let got = if length <= AT_ONCE {
                read_zeros(&file, local.start, length)
            } else {
                tokio::task::spawn_blocking(move || read_zeros(&file, local.start, length))
                    .await
                    .map_err(std::io::Error::other)
                    .flatten()
            };
            let got = got.map_err(|error| self.failed("read", error))?;
            if self.state.lock().epoch != epoch {
                // Given up meanwhile: what was read may be a hole.
                return Box::pin(self.read_some(at, end, bytes)).await;
            }
            bytes.extend_from_slice(&got);
            return Ok(length as u64);
        }
        let Some((base, block)) = from_base else {
            return Err(Error::new(ErrorKind::Io, format!("{}: a byte has no place", self.path())));
        };
        let fetched = match self.fetch(&base, block.clone()).await {
            Err(error) if error.kind() == ErrorKind::Stale && self.moved_on(&base).await? => {
                return Box::pin(self.read_some(at, end, bytes)).await;
            }
            fetched => fetched?,
        };
        self.keep(&base, block.start, &fetched).await;
        let stop = {
            let state = self.state.lock();
            // What was written over meanwhile is read again.
            let stop = if state.base.as_ref() == Some(&base) { state.written(at) } else { at };
            stop.min(block.end).min(end)
        };
        if stop <= at {
            return Box::pin(self.read_some(at, end, bytes)).await;
        }
        bytes.extend_from_slice(&fetched[(at - block.start) as usize..(stop - block.start) as usize]);
        Ok(stop - at)
    }

    fn sent(&self, state: &State) -> Error {
        Error::new(
            ErrorKind::NoSpace,
            format!(
                "{}: these bytes are sent and no longer staged; raise alluxio.user.stage.size to go back in such a file",
                state.path
            ),
        )
    }

    /// Bytes of the object.
    pub(crate) async fn fetch(&self, base: &Base, range: Range<u64>) -> Result<Bytes> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let storage = self.stage()?.storage.clone();
        storage.read(&base.path, &base.version, range.start, range.end - range.start, &mut bytes).await?;
        Ok(bytes.into())
    }

    /// When an upload succeeded although its answer said otherwise, the object is an earlier state of this file: what is not
    /// dirty is the same in it, so it takes the place of the base. Tells whether that was so.
    pub(crate) async fn rebase(&self) -> Result<bool> {
        let (base, mark) = {
            let state = self.state.lock();
            (state.base.clone(), state.mark.clone())
        };
        let Some(base) = base else { return Ok(false) };
        let stage = self.stage()?;
        let Some(found) = stage.objects().find(&stage.objects().key(&base.path)?).await? else { return Ok(false) };
        let ours = found.metadata.get(super::upload::MARK).is_some_and(|found| found.starts_with(&mark));
        if !ours || found.version == base.version {
            return Ok(false);
        }
        let mut state = self.state.lock();
        let same = state.base.as_ref() == Some(&base) && found.size >= state.base_valid;
        if same {
            state.base = Some(Base { path: base.path, version: found.version });
        }
        Ok(same)
    }

    /// Whether the bytes of `base` lie in another version by now, which is known here: it was published, or is
    /// [an earlier state](Self::rebase).
    async fn moved_on(&self, base: &Base) -> Result<bool> {
        let known = || self.state.lock().base.as_ref() != Some(base);
        // Looked at once more: an upload may have found it out meanwhile, and then there is nothing left to find.
        Ok(known() || self.rebase().await? || known())
    }

    /// Keeps bytes of the object in the stage, if that is possible at once.
    async fn keep(&self, base: &Base, start: u64, bytes: &Bytes) {
        let Ok(_alone) = self.gate.try_write() else { return };
        let Ok(stage) = self.stage() else { return };
        let missing = self.state.lock().staged.missing(start..start + bytes.len() as u64);
        let Some(mut taken) = stage.space.try_take(missing) else { return };
        if let Err(error) = self.keep_alone(&mut taken, base, start, bytes) {
            tracing::debug!("{error}");
        }
    }

    /// The same for who holds the gate alone, in the space that is `taken`. Returns what was not here before.
    pub(crate) fn keep_alone(
        &self,
        taken: &mut Taken,
        base: &Base,
        start: u64,
        bytes: &Bytes,
    ) -> Result<Vec<Range<u64>>> {
        let gaps = {
            let state = self.state.lock();
            if state.base.as_ref() != Some(base) {
                return Ok(Vec::new());
            }
            state.staged.gaps(start..(start + bytes.len() as u64).min(state.base_valid).max(start))
        };
        let file = self.file()?;
        for gap in &gaps {
            let piece = &bytes[(gap.start - start) as usize..(gap.end - start) as usize];
            if let Err(error) = file.write_all_at(piece, gap.start) {
                let _ = punch(&file, gap.clone());
                return Err(self.failed("write", error));
            }
            taken.keep(self.state.lock().staged.insert(gap.clone()));
        }
        Ok(gaps)
    }

    /// Writes all of `data` at `offset`.
    pub(crate) async fn write(self: &Arc<Self>, offset: u64, data: Bytes) -> Result<()> {
        let stage = self.stage()?;
        let range = offset..offset.saturating_add(data.len() as u64);
        if range.end > stage.object_max() {
            return Err(self.too_large(&stage));
        }
        if data.is_empty() {
            return Ok(());
        }
        loop {
            let missing = self.state.lock().staged.missing(range.clone());
            let taken = stage.space.take(missing, stage.options.wait, || stage.relieve()).await?;
            let gate = self.gate.clone().read_owned().await;
            {
                let state = self.state.lock();
                if state.gone_within(&range) {
                    return Err(self.sent(&state));
                }
                // Bytes may have been given up while this waited. From now on they are not.
                if state.staged.missing(range.clone()) > taken.bytes() {
                    continue;
                }
            }
            let file = self.clone();
            let work = move || {
                let done = file.write_within(offset, &data, taken);
                drop(gate);
                done
            };
            if range.end - range.start <= AT_ONCE as u64 {
                work()?;
            } else {
                // Goes on though nobody waits any more: half of a write would be none.
                let done = tokio::task::spawn_blocking(work).await;
                done.map_err(|gone| self.failed("write", std::io::Error::other(gone)))??;
            }
            self.advance();
            return Ok(());
        }
    }

    /// Writes for who holds the gate, in the space that is `taken`.
    fn write_within(&self, offset: u64, data: &[u8], mut taken: Taken) -> Result<()> {
        let range = offset..offset + data.len() as u64;
        let file = self.file()?;
        if let Err(error) = file.write_all_at(data, offset) {
            let gaps = {
                let mut state = self.state.lock();
                // Some of it may be written: parts that have these bytes are sent again.
                if let Some(upload) = &mut state.upload {
                    upload.touch(range.clone());
                }
                state.staged.gaps(range)
            };
            for gap in gaps {
                let _ = punch(&file, gap);
            }
            return Err(self.failed("write", error));
        }
        let mut state = self.state.lock();
        taken.keep(state.staged.insert(range.clone()));
        state.dirty.insert(range.clone());
        state.size = state.size.max(range.end);
        state.touch(range);
        Ok(())
    }

    fn too_large(&self, stage: &Stage) -> Error {
        Error::new(ErrorKind::TooLarge, format!("{}: objects have {} bytes at most", self.path(), stage.object_max()))
    }

    /// Writes all of `data` at the end.
    pub(crate) async fn append(self: &Arc<Self>, data: Bytes) -> Result<()> {
        let _turn = self.appending.lock().await;
        let end = self.state.lock().size;
        self.write(end, data).await
    }

    /// Sets the size.
    pub(crate) async fn truncate(&self, size: u64) -> Result<()> {
        let stage = self.stage()?;
        if size > stage.object_max() {
            return Err(self.too_large(&stage));
        }
        let _alone = self.gate.write().await;
        self.quiet().await;
        {
            let state = self.state.lock();
            // A part whose bytes are only in the storage stays whole or goes whole.
            if size < state.size && state.gone_across(size) {
                return Err(self.sent(&state));
            }
        }
        // The file first: when that fails nothing has changed.
        if self.state.lock().size > size
            && let Some(file) = self.file.get()
        {
            file.set_len(size).map_err(|error| self.failed("truncate", error))?;
        }
        let given = {
            let mut state = self.state.lock();
            let given = state.staged.remove(size..u64::MAX);
            state.dirty.remove(size..u64::MAX);
            state.gone.remove(size..u64::MAX);
            state.base_valid = state.base_valid.min(size);
            let from = size.min(state.size);
            state.size = size;
            state.touch(from..u64::MAX);
            given
        };
        stage.space.give(given);
        Ok(())
    }

    /// Waits until no part is under way; for who holds the gate alone.
    pub(crate) async fn quiet(&self) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.state.lock().running == 0 {
                return;
            }
            progress.await;
        }
    }

    /// fallocate(2).
    pub(crate) async fn allocate(self: &Arc<Self>, mode: i32, offset: u64, length: u64) -> Result<()> {
        let end = offset.saturating_add(length);
        let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {
                if !keep && end > self.state.lock().size {
                    self.truncate(end).await?;
                }
                Ok(())
            }
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                let size = self.state.lock().size;
                let zeros = offset..if keep { end.min(size) } else { end };
                let mut at = zeros.start;
                while at < zeros.end {
                    let step = (zeros.end - at).min(BLOCK);
                    self.write(at, Bytes::from(vec![0; step as usize])).await?;
                    at += step;
                }
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::Unsupported, format!("{}: no such fallocate on objects", self.path()))),
        }
    }

    /// lseek(2): all of an object is data.
    pub(crate) fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        let size = self.state.lock().size;
        match (offset < size, hole) {
            (false, _) => Err(Error::os(format!("{}: offset {offset} is beyond the end", self.path()), libc::ENXIO)),
            (true, true) => Ok(size),
            (true, false) => Ok(offset),
        }
    }

    /// Copies what lies here of `offset` on: the length of the run, cut at the end of the buffer. What lies beyond the end by
    /// now reads as zeros.
    pub(crate) fn read_now(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        loop {
            let (end, epoch) = {
                let state = self.state.lock();
                (state.local_run(offset).min(offset + buffer.len() as u64), state.epoch)
            };
            let length = (end - offset) as usize;
            if length == 0 {
                return Ok(0);
            }
            let file = self.file()?;
            let bytes = read_zeros(&file, offset, length).map_err(|error| self.failed("read", error))?;
            if self.state.lock().epoch == epoch {
                buffer[..length].copy_from_slice(&bytes);
                return Ok(length);
            }
        }
    }

    /// Whether a range lies here.
    pub(crate) fn is_here(&self, range: Range<u64>) -> bool {
        self.state.lock().local_run(range.start) >= range.end
    }

    /// Brings a range here, fetching what only the object has. Tells whether there was room for it.
    pub(crate) async fn bring(self: &Arc<Self>, range: Range<u64>) -> Result<bool> {
        let stage = self.stage()?;
        let wanted = {
            let state = self.state.lock();
            if state.gone_within(&range) {
                return Err(self.sent(&state));
            }
            let end = range.end.min(state.base_valid).max(range.start);
            (state.staged.gaps(range.start..end), state.base.clone())
        };
        let (gaps, Some(base)) = wanted else { return Ok(true) };
        for gap in gaps {
            let length = gap.end - gap.start;
            let taken = stage.space.try_take(length).or_else(|| {
                stage.relieve();
                stage.space.try_take(length)
            });
            let Some(mut taken) = taken else { return Ok(false) };
            let bytes = match self.fetch(&base, gap.clone()).await {
                Err(error) if error.kind() == ErrorKind::Stale && self.moved_on(&base).await? => {
                    drop(taken);
                    return Box::pin(self.bring(range)).await;
                }
                fetched => fetched?,
            };
            let _alone = self.gate.write().await;
            self.keep_alone(&mut taken, &base, gap.start, &bytes)?;
        }
        Ok(true)
    }

    /// Gives up what need not be staged: bytes that the object has too, and parts that are sent. Only while nobody reads or
    /// writes, and not what the journal says is here: the next process would look for it.
    pub(crate) fn relieve(&self) -> u64 {
        let Ok(_alone) = self.gate.try_write() else { return 0 };
        let mut state = self.state.lock();
        if state.removed || state.journalled || state.publishing {
            return 0;
        }
        let clean = !state.is_dirty() && state.base.is_some();
        let mut holes: Vec<Range<u64>> = Vec::new();
        if clean {
            holes.extend(state.staged.iter());
        } else if let Some(upload) = &state.upload
            && upload.planned_for.is_none()
            && state.opens <= 1
        {
            holes.extend(upload.sent().filter(|range| state.staged.covers(range.clone())));
        }
        if holes.is_empty() {
            return 0;
        }
        // Raised first: a reader that has begun looks again.
        state.epoch += 1;
        let mut given = 0;
        for hole in holes {
            let Some(file) = self.file.get() else { break };
            if punch(file, hole.clone()).is_err() {
                break;
            }
            given += state.staged.remove(hole.clone());
            if !clean {
                state.gone.insert(hole);
            }
        }
        given
    }

    /// Gives up again what was fetched for a part that is sent by now, unless it was written to. For who holds the gate.
    pub(crate) fn forget(&self, stage: &Stage, ranges: Vec<Range<u64>>) {
        let mut state = self.state.lock();
        let Some(file) = self.file.get() else { return };
        state.epoch += 1;
        let mut given = 0;
        for range in ranges {
            for clean in state.dirty.gaps(range) {
                if punch(file, clean.clone()).is_ok() {
                    given += state.staged.remove(clean);
                }
            }
        }
        stage.space.give(given);
    }

    /// Gives the space back that the file has, for its end.
    pub(crate) fn discard(&self, stage: &Stage) {
        let given = {
            let mut state = self.state.lock();
            let given = state.staged.total();
            state.staged.clear();
            given
        };
        stage.space.give(given);
        if let Err(error) = std::fs::remove_file(&self.place)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("stage file {} cannot be removed: {error}", self.place.display());
        }
    }
}

impl State {
    /// Whether bytes of a range are given up here.
    pub(crate) fn gone_within(&self, range: &Range<u64>) -> bool {
        self.gone.next(range.start).is_some_and(|gone| gone < range.end)
    }

    /// Whether a part lies across `at` whose bytes are given up here.
    fn gone_across(&self, at: u64) -> bool {
        let mut parts = self.upload.iter().flat_map(|upload| upload.sent());
        parts.any(|part| part.start < at && at < part.end && self.gone_within(&part))
    }

    /// How far from `at` on everything lies here.
    fn local_run(&self, at: u64) -> u64 {
        let stop = self.gone.next(at).unwrap_or(u64::MAX);
        let run = if at >= self.base_valid { u64::MAX } else { self.staged.end_of_run(at) };
        // What follows the base is local too.
        let run = if run >= self.base_valid { u64::MAX } else { run };
        run.min(stop).max(at)
    }

    /// Where the next bytes are that the object has not.
    fn written(&self, at: u64) -> u64 {
        self.dirty.next(at).unwrap_or(u64::MAX)
    }

    /// Notes a change of the bytes in `range`.
    pub(crate) fn touch(&mut self, range: Range<u64>) {
        self.changed += 1;
        self.mtime = Timestamp::now();
        self.look.mtime = None;
        if let Some(upload) = &mut self.upload {
            self.touched += upload.touch(range);
        }
    }
}

/// Gives up bytes of a file; they read as zeros then.
fn punch(file: &File, range: Range<u64>) -> std::io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (start, length) = (range.start as libc::off_t, (range.end - range.start) as libc::off_t);
    // SAFETY: the descriptor lives as long as `file`; the call takes no pointer.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, start, length) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Reads exactly `length` bytes; beyond the end of the file they are zeros.
pub(crate) fn read_zeros(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut at = 0;
    while at < length {
        match file.read_at(&mut bytes[at..], offset + at as u64) {
            Ok(0) => break,
            Ok(count) => at += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
