//! The journal of a cache directory: which files exist and which of their pages are present, in the order it happened.
//!
//! Append-only records, each with its length and CRC32C, written in batches by the keeper thread and never synced: a
//! page that the journal names is verified on its first use, so any record may be missing, stale or doubled. Reading
//! stops at the first record that is not whole; what follows is cut. When most of the journal is history it is written
//! anew beside the old one and renamed over it.

use super::file::StoredFile;
use common::FileId;
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, renameat},
    sys::stat::Mode,
};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, BufReader, Read, Write},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

const NAME: &str = "journal";
const NEW_NAME: &str = "journal.new";
const MAGIC: &[u8; 16] = b"alluxio pages 1\n";
/// Longer records are damage. (A version and a path have at most some KiB; pages are cut to `PAGES_PER_RECORD`.)
const MAX_RECORD: usize = 4 << 20;
const PAGES_PER_RECORD: usize = 4096;
/// Records that wait beyond this are dropped: the disk does not take them, and they are not needed for correctness.
const MAX_PENDING: usize = 8 << 20;
/// So much waiting wakes the keeper at once.
const BATCH: usize = 256 << 10;

const FILE: u8 = 1;
const PAGES: u8 = 2;
const DROP_PAGES: u8 = 3;
const DROP_FILE: u8 = 4;

/// One change.
pub(super) enum Record<'a> {
    /// A file, with pages that are present.
    File {
        slot: u64,
        id: FileId,
        size: u64,
        page_size: u32,
        version: &'a [u8],
        path: &'a [u8],
        pages: &'a [(u64, u32)],
    },
    /// Pages that became present.
    Pages { slot: u64, pages: &'a [(u64, u32)] },
    /// Pages that are gone.
    DropPages { slot: u64, pages: &'a [u64] },
    /// A file that is gone.
    DropFile { slot: u64 },
}

/// A file as the journal left it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub slot: u64,
    pub id: FileId,
    pub size: u64,
    pub page_size: u32,
    pub version: String,
    pub path: Box<[u8]>,
    pub pages: BTreeMap<u64, u32>,
    /// Position of its last record: the order of use.
    at: u64,
}

/// See the module.
pub(super) struct Journal {
    pending: Mutex<Pending>,
    file: Mutex<Appended>,
    next_slot: AtomicU64,
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
}

struct Appended {
    file: File,
    bytes: u64,
    /// The last write failed half way: only a journal written anew has a sound end.
    broken: bool,
}

impl Journal {
    /// Opens the journal in `folder`, or makes it, and reads it. A journal of another format is replaced.
    pub fn open(folder: &OwnedFd) -> Result<(Self, Vec<Loaded>), io::Error> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_APPEND;
        let mut file = File::from(openat(folder, NAME, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let (loaded, sound) = load(&mut BufReader::with_capacity(256 << 10, &file))?;
        let length = file.metadata()?.len();
        if sound < length {
            if sound > 0 {
                tracing::info!("the journal of a cache directory ends in {} torn bytes; they are cut", length - sound);
            } else {
                tracing::warn!("the journal of a cache directory is not readable; the directory starts empty");
            }
            file.set_len(sound)?;
        }
        let mut bytes = sound;
        if bytes == 0 {
            file.write_all(MAGIC)?;
            bytes = MAGIC.len() as u64;
        }
        let next_slot = loaded.iter().map(|file| file.slot + 1).max().unwrap_or(0);
        let appended = Appended { file, bytes, broken: false };
        let journal =
            Self { pending: Mutex::default(), file: Mutex::new(appended), next_slot: AtomicU64::new(next_slot) };
        Ok((journal, loaded))
    }

    /// A number that no other file of this journal has.
    pub fn new_slot(&self) -> u64 {
        self.next_slot.fetch_add(1, Relaxed)
    }

    /// Queues a record. True when the keeper should know: the first that waits, or so many that they should not.
    pub fn push(&self, record: &Record<'_>) -> bool {
        let mut pending = self.pending.lock();
        let before = pending.bytes.len();
        if before > MAX_PENDING {
            return false;
        }
        encode(&mut pending.bytes, record);
        before == 0 || (before < BATCH && pending.bytes.len() >= BATCH)
    }

    /// How many bytes wait, and whether they should be written at once.
    pub fn waiting(&self) -> (usize, bool) {
        let waiting = self.pending.lock().bytes.len();
        (waiting, waiting >= BATCH)
    }

    /// Writes what waits; rewrites the journal from `files` when it is far larger than `pages` and `count` files need.
    pub fn flush(
        &self,
        folder: &OwnedFd,
        pages: u64,
        count: u64,
        files: impl FnOnce() -> Vec<Arc<StoredFile>>,
    ) -> Result<(), Errno> {
        let mut appended = self.file.lock();
        let bytes = std::mem::take(&mut self.pending.lock().bytes);
        if !appended.broken && !bytes.is_empty() {
            match appended.file.write_all(&bytes) {
                Ok(()) => appended.bytes += bytes.len() as u64,
                Err(error) => {
                    appended.broken = true;
                    return Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)));
                }
            }
        }
        let needed = count * 256 + pages * 12;
        if appended.broken || appended.bytes > (1 << 20) + 4 * needed {
            self.rewrite(&mut appended, folder, files())?;
        }
        Ok(())
    }

    /// Records that are queued while this goes on stay queued; they may repeat what is written here, which is harmless.
    fn rewrite(&self, appended: &mut Appended, folder: &OwnedFd, files: Vec<Arc<StoredFile>>) -> Result<(), Errno> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC | OFlag::O_APPEND;
        let mut file = File::from(openat(folder, NEW_NAME, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        let failed = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        let mut bytes = MAGIC.to_vec();
        let mut written = 0;
        let mut done = std::collections::HashSet::new();
        for stored in files {
            if !done.insert(stored.slot) {
                continue;
            }
            let pages = stored.present_pages();
            if pages.is_empty() {
                continue;
            }
            encode(&mut bytes, &stored.record(&[]));
            encode(&mut bytes, &Record::Pages { slot: stored.slot, pages: &pages });
            if bytes.len() >= BATCH {
                file.write_all(&bytes).map_err(failed)?;
                written += bytes.len() as u64;
                bytes.clear();
            }
        }
        file.write_all(&bytes).map_err(failed)?;
        written += bytes.len() as u64;
        // Without this a power loss could leave an empty journal under the old one's name: a cold cache.
        file.sync_data().map_err(failed)?;
        renameat(folder, NEW_NAME, folder, NAME)?;
        *appended = Appended { file, bytes: written, broken: false };
        Ok(())
    }
}

fn encode(out: &mut Vec<u8>, record: &Record<'_>) {
    let page = |out: &mut Vec<u8>, (page, crc): &(u64, u32)| {
        out.extend_from_slice(&page.to_le_bytes());
        out.extend_from_slice(&crc.to_le_bytes());
    };
    match record {
        Record::File { slot, id, size, page_size, version, path, pages } => {
            frame(out, FILE, *slot, |out| {
                out.extend_from_slice(&id.0);
                out.extend_from_slice(&size.to_le_bytes());
                out.extend_from_slice(&page_size.to_le_bytes());
                for text in [version, path] {
                    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
                    out.extend_from_slice(text);
                }
            });
            if !pages.is_empty() {
                encode(out, &Record::Pages { slot: *slot, pages });
            }
        }
        Record::Pages { slot, pages } => {
            for some in pages.chunks(PAGES_PER_RECORD) {
                frame(out, PAGES, *slot, |out| some.iter().for_each(|one| page(out, one)));
            }
        }
        Record::DropPages { slot, pages } => {
            for some in pages.chunks(PAGES_PER_RECORD) {
                frame(out, DROP_PAGES, *slot, |out| some.iter().for_each(|page| out.extend(page.to_le_bytes())));
            }
        }
        Record::DropFile { slot } => frame(out, DROP_FILE, *slot, |_| {}),
    }
}

/// Length and checksum, then kind and slot, then the rest.
fn frame(out: &mut Vec<u8>, kind: u8, slot: u64, rest: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.push(kind);
    out.extend_from_slice(&slot.to_le_bytes());
    rest(out);
    let length = (out.len() - start - 8) as u32;
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads records until the end or the first that is not whole; returns the files, least recently changed first, and the
/// length of the sound part (0 when not even the head is right).
fn load(input: &mut impl Read) -> io::Result<(Vec<Loaded>, u64)> {
    let mut files: HashMap<u64, Loaded> = HashMap::new();
    let mut head = [0; MAGIC.len()];
    if !read_whole(input, &mut head)? || &head != MAGIC {
        return Ok((Vec::new(), 0));
    }
    let mut sound = MAGIC.len() as u64;
    let mut body = Vec::new();
    loop {
        let mut frame = [0; 8];
        if !read_whole(input, &mut frame)? {
            break;
        }
        let mut fields = Fields(&frame);
        let (Some(length), Some(crc)) = (fields.u32(), fields.u32()) else { break };
        let length = length as usize;
        if length > MAX_RECORD {
            break;
        }
        body.resize(length, 0);
        if !read_whole(input, &mut body)? || crc32c::crc32c(&body) != crc || apply(&mut files, &body, sound).is_none() {
            break;
        }
        sound += 8 + length as u64;
    }
    let mut files: Vec<_> = files.into_values().collect();
    files.sort_unstable_by_key(|file| file.at);
    Ok((files, sound))
}

fn apply(files: &mut HashMap<u64, Loaded>, body: &[u8], at: u64) -> Option<()> {
    let mut fields = Fields(body);
    let kind = fields.u8()?;
    let slot = fields.u64()?;
    match kind {
        FILE => {
            let id = FileId(fields.take(32)?.try_into().ok()?);
            let (size, page_size) = (fields.u64()?, fields.u32()?);
            let version = fields.text()?;
            let path: Box<[u8]> = fields.text()?.into();
            let version = String::from_utf8(version.to_vec()).ok()?;
            // A repeated record tells nothing new.
            files.entry(slot).or_insert(Loaded {
                slot,
                id,
                size,
                page_size,
                version,
                path,
                pages: BTreeMap::new(),
                at,
            });
        }
        PAGES => {
            if let Some(file) = files.get_mut(&slot) {
                while !fields.0.is_empty() {
                    let (page, crc) = (fields.u64()?, fields.u32()?);
                    file.pages.insert(page, crc);
                }
                file.at = at;
            }
        }
        DROP_PAGES => {
            if let Some(file) = files.get_mut(&slot) {
                while !fields.0.is_empty() {
                    file.pages.remove(&fields.u64()?);
                }
            }
        }
        DROP_FILE => {
            files.remove(&slot);
        }
        _ => return None,
    }
    Some(())
}

fn read_whole(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        let file = |slot, path| Record::File {
            slot,
            id: FileId::of(path),
            size: 10_000,
            page_size: 4096,
            version: b"v1",
            path,
            pages: &[(0, 7)],
        };
        encode(&mut bytes, &file(3, b"/a\xff"));
        encode(&mut bytes, &file(4, b"/b"));
        encode(&mut bytes, &Record::Pages { slot: 3, pages: &[(1, 8), (2, 9)] });
        encode(&mut bytes, &Record::DropPages { slot: 3, pages: &[0] });
        encode(&mut bytes, &Record::DropFile { slot: 4 });
        encode(&mut bytes, &Record::Pages { slot: 99, pages: &[(1, 8)] });
        bytes
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        let bytes = sample();
        let (files, sound) = load(&mut &bytes[..]).unwrap();
        assert_eq!(sound, bytes.len() as u64);
        assert_eq!(files.len(), 1);
        let file = &files[0];
        assert_eq!((file.slot, file.size, file.page_size), (3, 10_000, 4096));
        assert_eq!((&*file.version, &*file.path, file.id), ("v1", &b"/a\xff"[..], FileId::of(b"/a\xff")));
        assert_eq!(file.pages, BTreeMap::from([(1, 8), (2, 9)]));
    }

    #[test]
    fn any_cut_and_any_flipped_bit_leave_a_sound_beginning() {
        let bytes = sample();
        let mut last = 0;
        for cut in 0..bytes.len() {
            let (_, sound) = load(&mut &bytes[..cut]).unwrap();
            assert!(sound <= cut as u64 && sound >= last);
            last = sound;
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let (_, sound) = load(&mut &damaged[..]).unwrap();
            assert!(sound <= at as u64, "the record with the damage is not taken");
        }
    }
}
