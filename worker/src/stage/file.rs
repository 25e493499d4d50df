//! One file in the stage: what of it lies on local disk, what still lies in its object, and what of it is new.
//!
//! A byte comes from the stage file when its offset is in `staged` or beyond `base_valid` (where the stage file has holes,
//! which read as the zeros that they stand for); else from the object `base`.
//!
//! Invariants:
//! - writers hold the gate for reading while they write, and whoever publishes, truncates or fills the stage from the
//!   object holds it alone; so what is published is one state of the file;
//! - `dirty` is within `staged` or `gone`; `gone` is what was sent in parts and then given up here to make room;
//! - space is taken before bytes are written, and the sum of `staged` is what the file has taken;
//! - a stage file is removed only when nothing of it is dirty, or the name is removed.

use super::{Stage, attributes::Look, ranges::RangeSet, upload::Upload};
use bytes::{Bytes, BytesMut};
use common::{Attr, Error, ErrorKind, FileKind, Result, Timestamp, UfsPath, Version};
use parking_lot::Mutex;
use std::{
    fs::{File, OpenOptions},
    ops::Range,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
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
    pub(crate) gate: RwLock<()>,
    pub(crate) progress: Notify,
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
            gate: RwLock::new(()),
            progress: Notify::new(),
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
            Err(error) if error.kind() == ErrorKind::Stale && self.rebase().await? => {
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

    /// Keeps bytes of the object in the stage, if that is possible at once.
    async fn keep(&self, base: &Base, start: u64, bytes: &Bytes) {
        let Ok(_alone) = self.gate.try_write() else { return };
        let Ok(stage) = self.stage() else { return };
        if let Err(error) = self.keep_alone(&stage, base, start, bytes, false) {
            tracing::debug!("{error}");
        }
    }

    /// The same for who holds the gate alone; `must`: whether space is there or not.
    pub(crate) fn keep_alone(&self, stage: &Stage, base: &Base, start: u64, bytes: &Bytes, must: bool) -> Result<()> {
        let range = {
            let state = self.state.lock();
            if state.base.as_ref() != Some(base) {
                return Ok(());
            }
            start..(start + bytes.len() as u64).min(state.base_valid)
        };
        let gaps = self.state.lock().staged.gaps(range);
        let file = self.file()?;
        for gap in gaps {
            let length = gap.end - gap.start;
            if must {
                stage.space.take_anyway(length);
            } else if !stage.space.try_take(length) {
                return Ok(());
            }
            let piece = &bytes[(gap.start - start) as usize..(gap.end - start) as usize];
            if let Err(error) = file.write_all_at(piece, gap.start) {
                stage.space.give(length);
                return Err(self.failed("write", error));
            }
            self.state.lock().staged.insert(gap);
        }
        Ok(())
    }

    /// Writes all of `data` at `offset`.
    pub(crate) async fn write(self: &Arc<Self>, offset: u64, data: Bytes) -> Result<()> {
        let stage = self.stage()?;
        let end = offset.saturating_add(data.len() as u64);
        if end > stage.object_max() {
            return Err(self.too_large(&stage));
        }
        if data.is_empty() {
            return Ok(());
        }
        let taken = {
            let state = self.state.lock();
            state.staged.missing(offset..end)
        };
        stage.space.take(taken, stage.options.wait, || stage.relieve()).await?;
        let written = {
            let _gate = self.gate.read().await;
            self.write_through_gate(offset, data).await
        };
        match &written {
            Ok(new) if *new > taken => stage.space.take_anyway(*new - taken),
            Ok(new) => stage.space.give(taken - *new),
            Err(_) => stage.space.give(taken),
        }
        written?;
        self.advance();
        Ok(())
    }

    /// Returns how many bytes were not staged before.
    async fn write_through_gate(&self, offset: u64, data: Bytes) -> Result<u64> {
        let range = offset..offset + data.len() as u64;
        {
            let state = self.state.lock();
            if state.gone.next(offset).is_some_and(|gone| gone < range.end) {
                return Err(self.sent(&state));
            }
        }
        let file = self.file()?;
        let done = if data.len() <= AT_ONCE {
            file.write_all_at(&data, offset)
        } else {
            tokio::task::spawn_blocking(move || file.write_all_at(&data, offset))
                .await
                .map_err(std::io::Error::other)
                .flatten()
        };
        done.map_err(|error| self.failed("write", error))?;
        let mut state = self.state.lock();
        let new = state.staged.insert(range.clone());
        state.dirty.insert(range.clone());
        state.size = state.size.max(range.end);
        state.touch(range);
        Ok(new)
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

    /// Brings a range here, fetching what only the object has.
    pub(crate) async fn bring(self: &Arc<Self>, range: Range<u64>) -> Result<()> {
        let stage = self.stage()?;
        let wanted = {
            let state = self.state.lock();
            if state.gone.next(range.start).is_some_and(|gone| gone < range.end) {
                return Err(self.sent(&state));
            }
            let end = range.end.min(state.base_valid).max(range.start);
            (state.staged.gaps(range.start..end), state.base.clone())
        };
        let (gaps, Some(base)) = wanted else { return Ok(()) };
        for gap in gaps {
            let bytes = self.fetch(&base, gap.clone()).await?;
            let _alone = self.gate.write().await;
            self.keep_alone(&stage, &base, gap.start, &bytes, true)?;
        }
        Ok(())
    }

    /// Gives up what need not be staged: bytes that the object has too, and parts that are sent.
    pub(crate) fn relieve(&self) -> u64 {
        let mut given = 0;
        let alone = self.gate.try_write();
        let mut state = self.state.lock();
        let mut holes: Vec<Range<u64>> = Vec::new();
        if alone.is_ok() && state.changed == state.published && !state.removed && state.base.is_some() {
            holes.extend(state.staged.iter());
        } else if let Some(upload) = &state.upload {
            holes.extend(upload.sent().filter(|range| state.staged.covers(range.clone())));
        }
        if holes.is_empty() {
            return 0;
        }
        // Raised first: a reader that has begun looks again.
        state.epoch += 1;
        let clean = state.changed == state.published;
        for hole in holes {
            let Some(file) = self.file.get() else { break };
            // SAFETY: the descriptor lives as long as `file`; the call takes no pointer.
            let done = unsafe {
                libc::fallocate(
                    file.as_raw_fd(),
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    hole.start as libc::off_t,
                    (hole.end - hole.start) as libc::off_t,
                )
            };
            if done != 0 {
                break;
            }
            given += state.staged.remove(hole.clone());
            if !clean {
                state.gone.insert(hole);
            }
        }
        given
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
