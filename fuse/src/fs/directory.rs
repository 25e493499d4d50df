//! Listing directories: stable positions over a stream that cannot go back.
//!
//! A position counts entries: 0 is before `.`, 1 before `..`, 2 before the first name. A handle keeps a window of the
//! entries that it listed last; a directory that fits the window is listed once per handle and every position in it
//! stays what it was. Of a larger one the handle keeps, besides, the name at every so many positions: to go back to a
//! position before the window it lists again and finds its place by the nearest such name, so that entries that came or
//! went in the meantime do not shift what follows.
//!
//! Invariants:
//! - memory per handle is bounded by the window, one batch of the listing, and a bounded number of names;
//! - no name is given twice and none left out on the way from the first position to the end, whatever is deleted
//!   meanwhile, unless the reader itself goes back;
//! - going back to position 0 (rewinddir) lists anew.

use super::{Fs, inode::Inode};
use common::{
    Attr, ErrorKind, FileKind, Result, UfsPath, Version,
    conf::keys::fuse::KernelCache,
    worker::{DirEntry, Listing},
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Entries that a handle keeps, beside one batch.
pub(super) const WINDOW: usize = 8192;

/// Names kept for going back; when there are more, every other one is dropped.
const MARKS: usize = 4096;

/// A directory that changed this shortly before it was listed may change again without another mtime.
const MTIME_GRAIN: Duration = Duration::from_millis(50);

/// The number of an entry whose node is not known yet, as libfuse has it.
const UNKNOWN_NODE: u64 = 0xffff_ffff;

/// Positions of `.` and `..`.
const DOTS: u64 = 2;

/// An open directory.
pub struct DirectoryHandle {
    inode: Arc<Inode>,
    /// The version when it was opened.
    version: Version,
    stream: tokio::sync::Mutex<Stream>,
}

impl DirectoryHandle {
    /// One of which nothing is listed yet, and no version is known.
    pub(super) fn fresh(inode: Arc<Inode>) -> Self {
        let stream = tokio::sync::Mutex::new(Stream { stride: 1024, ..Stream::default() });
        Self { inode, version: Version::none(), stream }
    }
}

/// What the kernel is told of an open directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedDirectory {
    /// The handle's number.
    pub handle: u64,
    /// Whether the kernel may keep the entries.
    pub cache: bool,
    /// Whether those that it has are still right.
    pub keep_cache: bool,
}

/// An entry on its way to the kernel.
pub struct Item<'a> {
    /// Its node, or a number that stands for "not known".
    pub id: u64,
    /// The position after it.
    pub next: u64,
    /// Its name.
    pub name: &'a [u8],
    /// Its kind.
    pub kind: FileKind,
    /// The attributes of a node that was counted as looked up, and whether they may be relied on.
    pub attr: Option<(&'a Attr, bool)>,
}

/// Takes entries, with attributes or without.
pub trait Sink {
    /// Whether attributes are wanted.
    fn wants_attributes(&self) -> bool;

    /// Takes one; false when it did not fit, and then it takes no more.
    fn add(&mut self, item: Item<'_>) -> bool;
}

#[derive(Default)]
struct Stream {
    listing: Option<Box<dyn Listing>>,
    /// Entries from `base` on.
    window: VecDeque<DirEntry>,
    base: u64,
    ended: bool,
    /// Whether every entry since position 0 came from one listing, so that at its end the kernel has them all.
    whole: bool,
    started: Option<(Instant, SystemTime)>,
    marks: Vec<(u64, Box<[u8]>)>,
    stride: u64,
}

impl Fs {
    /// Opens a directory. Nothing is listed yet, so this asks nobody.
    ///
    /// # Errors
    /// `NotFound` when it is known to be gone; ENFILE beyond the limit of handles.
    pub fn open_directory(&self, id: u64) -> Result<OpenedDirectory> {
        let inode = self.inode(id)?;
        let version = match self.worker().attr_now(&self.place(&inode)?) {
            Some(attr) => attr?.version.clone(),
            None => Version::none(),
        };
        self.limit.take()?;
        let cache = self.options.kernel_cache != KernelCache::Direct;
        let keep_cache = cache && {
            let relisted = *self.relisted.lock();
            let state = inode.state.lock();
            match (&state.cached, state.listed) {
                (_, Some(listed)) if relisted.is_some_and(|relisted| relisted >= listed) => false,
                // A version says whether anything changed; without one only age does.
                (Some(cached), Some(_)) if !version.is_none() => *cached == version,
                (Some(cached), Some(listed)) => cached.is_none() && listed.elapsed() < self.options.entry_timeout,
                _ => false,
            }
        };
        let handle = self.directories.insert(DirectoryHandle { version, ..DirectoryHandle::fresh(inode) });
        Ok(OpenedDirectory { handle, cache, keep_cache })
    }

    /// Gives the entries from a position on, if the handle has listed them already. False: it must list first.
    pub fn read_directory_now(&self, handle: u64, position: u64, sink: &mut dyn Sink) -> Result<bool> {
        let handle = self.directories.get(handle)?;
        let Ok(mut stream) = handle.stream.try_lock() else { return Ok(false) };
        let at_hand = stream.started.is_some() && stream.has(position.saturating_sub(DOTS));
        if !at_hand || stream.must_restart(position) {
            return Ok(false);
        }
        self.give(&handle, &mut stream, position, sink);
        Ok(true)
    }

    /// Gives the entries from a position on, listing as far as need be: as many as the sink takes and are at hand, none
    /// only at the end.
    ///
    /// # Errors
    /// Whatever the storage says.
    pub async fn read_directory(&self, handle: u64, position: u64, sink: &mut (dyn Sink + Send)) -> Result<()> {
        let handle = self.directories.get(handle)?;
        let mut stream = handle.stream.lock().await;
        if stream.must_restart(position) {
            stream.restart();
        }
        let wanted = position.saturating_sub(DOTS);
        loop {
            let path = self.place(&handle.inode)?;
            match self.bounded(&handle.inode, stream.reach(self, &path, wanted)).await {
                Ok(()) => break,
                Err(error) if self.has_moved(&handle.inode, &path, &error).await => {}
                Err(error) => return Err(error),
            }
        }
        self.give(&handle, &mut stream, position, sink);
        Ok(())
    }

    fn give(&self, handle: &DirectoryHandle, stream: &mut Stream, position: u64, sink: &mut dyn Sink) {
        let directory = &handle.inode;
        for at in position..DOTS {
            let (name, id): (&[u8], u64) = if at == 0 {
                (b".", handle.inode.id)
            } else {
                (b"..", directory.parent().map_or(directory.id, |parent| parent.id))
            };
            if !sink.add(Item { id, next: at + 1, name, kind: FileKind::Directory, attr: None }) {
                return;
            }
        }
        let first = position.saturating_sub(DOTS).max(stream.base);
        let skip = usize::try_from(first - stream.base).unwrap_or(usize::MAX);
        for (at, entry) in (first + DOTS..).zip(stream.window.iter().skip(skip)) {
            if !self.give_one(directory, entry, at + 1, sink) {
                return;
            }
        }
        if stream.ended && stream.whole {
            self.note_listed(handle, stream);
        }
    }

    fn give_one(&self, directory: &Arc<Inode>, entry: &DirEntry, next: u64, sink: &mut dyn Sink) -> bool {
        let name = &entry.name[..];
        if sink.wants_attributes() {
            let known = match &entry.attr {
                Some(attr) => Some(Ok(attr.clone())),
                None => match directory.path().join(name) {
                    Ok(path) => self.worker().attr_now(&path),
                    // A listing has no names that are none; one that does is not shown, since nothing could be done
                    // with it.
                    Err(_) => return true,
                },
            };
            let (node, valid) = match known {
                Some(Ok(attr)) => {
                    let entry = self.entry(directory, name, attr);
                    let valid = entry.lasting;
                    (entry, valid)
                }
                Some(Err(error)) if error.kind() == ErrorKind::NotFound => return true,
                // It is there, whatever it is like; the kernel asks again when somebody wants to know.
                _ => (self.bare_entry(directory, name, entry.kind), false),
            };
            let attr = Some((&*node.attr, valid));
            let fits = sink.add(Item { id: node.id, next, name, kind: node.attr.kind, attr });
            if !fits {
                self.forget(node.id, 1);
            }
            return fits;
        }
        let id = self.inodes.find(directory.id, name).map_or(UNKNOWN_NODE, |inode| inode.id);
        sink.add(Item { id, next, name, kind: entry.kind, attr: None })
    }

    /// Notes that the kernel may have all entries of this directory now.
    fn note_listed(&self, handle: &DirectoryHandle, stream: &Stream) {
        let Some((started, wall)) = stream.started else { return };
        if !handle.version.is_none() {
            // Had it changed just before, another change could hide behind the same mtime.
            let settled = match self.worker().attr_now(&handle.inode.path()) {
                Some(Ok(attr)) => {
                    attr.version == handle.version
                        && wall.duration_since(attr.mtime.to_system_time()).is_ok_and(|age| age >= MTIME_GRAIN)
                }
                _ => false,
            };
            if !settled {
                return;
            }
        }
        let mut state = handle.inode.state.lock();
        if state.changed.is_some_and(|changed| changed >= started) {
            return;
        }
        state.cached = Some(handle.version.clone());
        state.listed = Some(started);
    }

    /// Entries that a handle holds in memory.
    #[cfg(test)]
    pub(super) fn window_of(&self, handle: u64) -> usize {
        let handle = self.directories.get(handle);
        handle.map_or(0, |handle| handle.stream.try_lock().map_or(0, |stream| stream.window.len()))
    }

    /// Ends a directory handle.
    ///
    /// # Errors
    /// `BadHandle` when there is none with this number.
    pub fn release_directory(&self, handle: u64) -> Result<()> {
        self.directories.remove(handle)?;
        self.limit.give();
        Ok(())
    }
}

impl Stream {
    /// Whether an answer for `position` must come from a new listing: the reader went back to the beginning.
    fn must_restart(&self, position: u64) -> bool {
        position == 0 && self.started.is_some()
    }

    fn restart(&mut self) {
        *self = Stream { stride: 1024, ..Stream::default() };
    }

    fn end(&self) -> u64 {
        self.base + self.window.len() as u64
    }

    /// Whether the entry `index` is in the window, or known not to exist.
    fn has(&self, index: u64) -> bool {
        index >= self.base && (index < self.end() || self.ended)
    }

    /// Lists until the entry `index` is in the window or the directory has ended.
    async fn reach(&mut self, fs: &Fs, path: &UfsPath, index: u64) -> Result<()> {
        let mut place = None;
        if self.started.is_none() {
            self.started = Some((Instant::now(), SystemTime::now()));
            self.whole = index == 0;
        } else if index < self.base {
            place = self.marks.iter().rev().find(|(at, _)| *at <= index).cloned();
            self.listing = None;
            self.window.clear();
            self.base = 0;
            self.ended = false;
            self.whole = false;
        }
        while place.is_some() || !self.has(index) {
            if self.ended {
                return Ok(());
            }
            let listing = match &mut self.listing {
                Some(listing) => listing,
                none => none.insert(fs.worker().list(path).await?),
            };
            match listing.next().await? {
                Some(batch) => self.append(batch, index, &mut place),
                None => {
                    self.ended = true;
                    self.listing = None;
                }
            }
            if place.as_ref().is_some_and(|(at, _)| self.ended || self.end() > at + 2 * WINDOW as u64) {
                // The name is gone; the count must do.
                place = None;
            }
        }
        Ok(())
    }

    /// Adds what was listed; entries before `index` leave the window when it is full. Where the name in `place` comes
    /// by, the count is set to its position.
    fn append(&mut self, batch: Vec<DirEntry>, index: u64, place: &mut Option<(u64, Box<[u8]>)>) {
        for entry in batch {
            let mut at = self.end();
            if let Some((position, _)) = place.take_if(|(_, name)| *name == entry.name) {
                self.window.clear();
                self.base = position;
                at = position;
            }
            if place.is_none() && at.is_multiple_of(self.stride) && self.marks.last().is_none_or(|(last, _)| *last < at)
            {
                self.marks.push((at, entry.name.clone()));
            }
            self.window.push_back(entry);
            // While the place is still looked for, all that was listed may turn out to come before it.
            let keep_from = if place.is_some() { self.end() } else { index };
            while self.window.len() > WINDOW && self.base < keep_from {
                self.window.pop_front();
                self.base += 1;
            }
        }
        if self.marks.len() > MARKS {
            self.stride *= 2;
            let stride = self.stride;
            self.marks.retain(|(at, _)| at.is_multiple_of(stride));
        }
    }
}
