//! Objects in files.
//!
//! An uploaded object is one file named by the hash of its key and a number, so any key works. Its bytes come first; a footer holds key, etag,
//! time and headers, so that a server started again on the same root finds its objects. The file appears under its name when it is complete.
//! An adopted file stays where it is and is never removed.
//!
//! Large ranges are sent from a mapping of the file: the kernel copies from the page cache to the socket, nothing else does. Small ones are
//! read, since setting up a mapping costs more than a copy of a few pages.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::{Content, Description, Object};
use crate::encoding::{decode, encode};

/// Ranges up to this length are read, longer ones mapped.
const MAP_FROM: u64 = 128 << 10;
/// Mappings kept for the next range of the same file.
const KEPT_MAPPINGS: usize = 32;
/// The last bytes of an object's file.
const MAGIC: &[u8; 8] = b"s3objct1";
/// Prefix of files that are being written, and of parts.
const TEMPORARY: &str = "tmp-";

static NUMBER: AtomicU64 = AtomicU64::new(0);
static KEPT: Mutex<VecDeque<Arc<Mapping>>> = Mutex::new(VecDeque::new());

/// A file with the bytes of an object or part.
#[derive(Debug)]
pub(crate) struct DiskFile {
    path: PathBuf,
    size: u64,
    /// Remove the file when nobody reads it any more.
    discard: AtomicBool,
    mapping: Mutex<Weak<Mapping>>,
}

impl DiskFile {
    fn new(path: PathBuf, size: u64, discard: bool) -> Self {
        DiskFile { path, size, discard: AtomicBool::new(discard), mapping: Mutex::new(Weak::new()) }
    }

    /// Removes the file as soon as nobody reads it. Not for adopted files.
    fn discard(&self) {
        self.discard.store(true, Ordering::Relaxed);
    }

    /// Bytes of the object.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        if length <= MAP_FROM {
            let mut buffer = vec![0; length as usize];
            File::open(&self.path)?.read_exact_at(&mut buffer, offset)?;
            return Ok(Bytes::from(buffer));
        }
        let mut cached = self.mapping.lock();
        let mapping = match cached.upgrade() {
            Some(mapping) => mapping,
            None => {
                let mapping = Arc::new(Mapping::new(&self.path, self.size)?);
                *cached = Arc::downgrade(&mapping);
                let mut kept = KEPT.lock();
                let old = if kept.len() >= KEPT_MAPPINGS { kept.pop_front() } else { None };
                kept.push_back(mapping.clone());
                drop(kept);
                drop(old);
                mapping
            }
        };
        drop(cached);
        Ok(Bytes::from_owner(Mapped(mapping)).slice(offset as usize..(offset + length) as usize))
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.get_mut().upgrade() {
            KEPT.lock().retain(|kept| !Arc::ptr_eq(kept, &mapping));
        }
        if *self.discard.get_mut()
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove");
        }
    }
}

/// A file in the address space.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is read-only and belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; there is no way to write through it.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file, which must be there.
    fn new(path: &Path, length: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        if file.metadata()?.len() < length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{} is shorter than when it was indexed", path.display()),
            ));
        }
        let length = length as usize;
        // SAFETY: a new mapping at an address of the kernel's choice; length is not 0 (callers map only long ranges).
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Mapping { start, length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: start and length are those of the mapping, and no slice of it outlives the owner.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.length);
        }
    }
}

/// Owner of the bytes handed out.
struct Mapped(Arc<Mapping>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping lives as long as `self`. Files this server wrote never change. An adopted file may be changed or cut by its
        // owner: its bytes are only handed to the kernel (or to TLS, byte by byte), never interpreted.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), self.0.length) }
    }
}

/// An object whose bytes stay in a file of somebody else. The etag follows from inode, size and time.
pub(crate) fn adopt(path: PathBuf, metadata: &fs::Metadata) -> Object {
    let identity = format!("{} {} {}.{}", metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    let digest = Sha256::digest(identity.as_bytes());
    Object {
        size: metadata.len(),
        description: Description {
            etag: hex::encode(&digest[..16]),
            modified: metadata.modified().unwrap_or(UNIX_EPOCH),
            headers: Vec::new(),
        },
        content: Content::File(Arc::new(DiskFile::new(path, metadata.len(), false))),
    }
}

/// Called when an object leaves the index: a file of ours goes away once its readers are done.
pub(crate) fn retire(object: &Object, directory: Option<&Path>) {
    if let (Content::File(file), Some(directory)) = (&object.content, directory)
        && file.path.parent() == Some(directory)
    {
        file.discard();
    }
}

/// Writes a file that has no name yet, as far as the index is concerned.
pub(crate) struct DiskWriter {
    directory: PathBuf,
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl DiskWriter {
    pub(crate) fn new(directory: &Path) -> io::Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(DiskWriter { directory: directory.to_owned(), path, file: Some(file), size: 0 })
    }

    fn file(&mut self) -> io::Result<&mut File> {
        self.file.as_mut().ok_or_else(|| io::Error::other("already finished"))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file()?.write_all(bytes)?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Adds the footer and gives the file its name; returns the length of the object and its file.
    pub(crate) fn object(mut self, key: &str, description: &Description) -> io::Result<(u64, Arc<DiskFile>)> {
        let footer = footer(key, self.size, description);
        self.file()?.write_all(&footer)?;
        // Numbers ascend with time, also over restarts, so of two files of a key the newer is known.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        NUMBER.fetch_max(now, Ordering::Relaxed);
        let unique = NUMBER.fetch_add(1, Ordering::Relaxed);
        let hash = hex::encode(&Sha256::digest(key.as_bytes())[..16]);
        let path = self.directory.join(format!("{hash}-{unique:016x}"));
        fs::rename(&self.path, &path)?;
        self.file = None;
        Ok((self.size, Arc::new(DiskFile::new(path, self.size, false))))
    }

    /// Keeps the file for as long as the returned value lives.
    pub(crate) fn part(mut self) -> io::Result<Arc<DiskFile>> {
        self.file = None;
        Ok(Arc::new(DiskFile::new(self.path.clone(), self.size, true)))
    }
}

impl Drop for DiskWriter {
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn footer(key: &str, size: u64, description: &Description) -> Vec<u8> {
    let modified = description.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut text = format!("key {}\nsize {size}\netag {}\nmodified {modified}\n", encode(key), description.etag);
    for (name, value) in &description.headers {
        text.push_str(&format!("header {name} {}\n", hex::encode(value.as_bytes())));
    }
    let mut footer = text.into_bytes();
    let length = footer.len() as u64;
    footer.extend_from_slice(&length.to_le_bytes());
    footer.extend_from_slice(MAGIC);
    footer
}

fn read_footer(path: &Path) -> io::Result<Option<(String, Object)>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut tail = [0; 16];
    if length < 16 {
        return Ok(None);
    }
    file.read_exact_at(&mut tail, length - 16)?;
    let (count, magic) = tail.split_at(8);
    let count = count.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    if magic != MAGIC || count > length - 16 || count > 1 << 20 {
        return Ok(None);
    }
    let mut text = vec![0; count as usize];
    file.read_exact_at(&mut text, length - 16 - count)?;
    Ok(String::from_utf8(text).ok().and_then(|text| parse_footer(&text, path, length - 16 - count)))
}

fn parse_footer(text: &str, path: &Path, size: u64) -> Option<(String, Object)> {
    let (mut key, mut etag, mut modified, mut headers) = (None, None, None, Vec::new());
    for line in text.lines() {
        let (name, value) = line.split_once(' ')?;
        match name {
            "key" => key = Some(decode(value)?),
            "size" if value.parse() == Ok(size) => {}
            "etag" => etag = Some(value.to_owned()),
            "modified" => modified = Some(UNIX_EPOCH + Duration::from_nanos(value.parse().ok()?)),
            "header" => {
                let (name, value) = value.split_once(' ')?;
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                headers.push((name, HeaderValue::from_bytes(&hex::decode(value).ok()?).ok()?));
            }
            _ => return None,
        }
    }
    let content = Content::File(Arc::new(DiskFile::new(path.to_owned(), size, false)));
    Some((key?, Object { size, description: Description { etag: etag?, modified: modified?, headers }, content }))
}

/// Reads the objects of a bucket's directory, oldest first, and removes what an earlier server left unfinished.
pub(crate) fn load(directory: &Path) -> io::Result<Vec<(String, Object)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(TEMPORARY) {
            fs::remove_file(entry.path())?;
        } else if let Some((_, number)) = name.split_once('-')
            && let Some((key, object)) = read_footer(&entry.path())?
        {
            found.push((number.to_owned(), key, object));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found.into_iter().map(|(_, key, object)| (key, object)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_found_again_and_leftovers_removed() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let description = Description {
            etag: "e".into(),
            modified: UNIX_EPOCH + Duration::new(5, 6),
            headers: vec![(HeaderName::from_static("x-amz-meta-a"), HeaderValue::from_static("b c"))],
        };
        let long = "ü/ \n".repeat(100);
        for (key, bytes) in [("a//b", "1"), ("a/", ""), (long.as_str(), "three"), ("a//b", "newer")] {
            let mut writer = DiskWriter::new(directory.path()).expect("create");
            writer.write(bytes.as_bytes()).expect("write");
            writer.object(key, &description).expect("finish");
        }
        drop(DiskWriter::new(directory.path()).expect("create"));
        fs::write(directory.path().join("tmp-1-1"), "left over").expect("write");
        let found = load(directory.path()).expect("load");
        let contents: Vec<(&str, Vec<u8>)> =
            found.iter().map(|(key, object)| (key.as_str(), object.bytes().expect("read"))).collect();
        let expected: [(&str, &[u8]); 4] = [("a//b", b"1"), ("a/", b""), (&long, b"three"), ("a//b", b"newer")];
        assert_eq!(contents, expected.map(|(key, bytes)| (key, bytes.to_vec())));
        assert_eq!(found[0].1.header("x-amz-meta-a"), Some("b c"));
        assert_eq!(found[0].1.modified(), description.modified);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 4);
    }

    #[test]
    fn a_discarded_file_lives_as_long_as_its_readers() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut writer = DiskWriter::new(directory.path()).expect("create");
        let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        writer.write(&bytes).expect("write");
        let part = writer.part().expect("finish");
        let mapped = part.read(1, 299_999).expect("map");
        let read = part.read(10, 100).expect("read");
        drop(part);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 0);
        assert_eq!((&mapped[..], &read[..]), (&bytes[1..], &bytes[10..110]));
    }
}
