//! Objects: where their bytes are, and the writer that makes new ones.
//!
//! An object never changes once it is in the index; replacing it swaps the index entry, and whoever still reads the old one keeps its bytes.

pub(crate) mod disk;
pub(crate) mod memory;
pub(crate) mod synthetic;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::body::Source;
use disk::{DiskFile, DiskWriter};

/// Bytes copied at a time from object to object.
const STEP: u64 = 1 << 20;

/// Where an object's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Memory(Bytes),
    File(Arc<DiskFile>),
    Synthetic(u64),
}

impl Content {
    /// A source of `length` bytes from `offset`; the range must lie within the object.
    pub(crate) fn source(&self, offset: u64, length: u64) -> io::Result<Source> {
        Ok(match self {
            Content::Memory(bytes) => Source::Bytes(bytes.slice(offset as usize..(offset + length) as usize)),
            Content::File(file) => Source::Bytes(file.read(offset, length)?),
            Content::Synthetic(seed) => Source::Synthetic { seed: *seed, offset },
        })
    }

    /// Hands `length` bytes from `offset` to `take`, piece by piece.
    pub(crate) fn each_piece(
        &self,
        offset: u64,
        length: u64,
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut buffer = Vec::new();
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let step = STEP.min(end - at);
            match self.source(at, step)? {
                Source::Bytes(bytes) => take(&bytes)?,
                Source::Synthetic { seed, offset } => {
                    buffer.resize(step as usize, 0);
                    synthetic::fill(seed, offset, &mut buffer);
                    take(&buffer)?;
                }
            }
            at += step;
        }
        Ok(())
    }
}

/// What is known of an object besides its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    /// Without quotes.
    pub(crate) etag: String,
    pub(crate) modified: SystemTime,
    /// User metadata (`x-amz-meta-…`) and the headers that go with the content, as they were sent.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

/// An object as the index holds it.
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) size: u64,
    pub(crate) description: Description,
    pub(crate) content: Content,
}

impl Object {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The etag without quotes.
    pub fn etag(&self) -> &str {
        &self.description.etag
    }

    /// When the object was made.
    pub fn modified(&self) -> SystemTime {
        self.description.modified
    }

    /// The value of a stored header, for instance `x-amz-meta-owner`; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.description.headers.iter().find(|(stored, _)| stored.as_str() == name)?;
        found.1.to_str().ok()
    }

    /// All bytes of the object.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        self.content.each_piece(0, self.size, |piece| {
            all.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(all)
    }
}

/// What [`crate::Server::adopt`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// Files that are objects now.
    pub objects: u64,
    /// Names left out: neither regular files nor directories, or not UTF-8.
    pub skipped: u64,
}

/// Receives the bytes of a new object or part.
pub(crate) enum Writer {
    Memory(Vec<u8>),
    Disk(DiskWriter),
}

impl Writer {
    /// A writer into a directory, or into memory. `expected` is a hint.
    pub(crate) fn new(directory: Option<&Path>, expected: u64) -> io::Result<Self> {
        Ok(match directory {
            Some(directory) => Writer::Disk(DiskWriter::new(directory)?),
            None => Writer::Memory(Vec::with_capacity(expected.min(64 << 20) as usize)),
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Writer::Memory(buffer) => buffer.extend_from_slice(bytes),
            Writer::Disk(writer) => writer.write(bytes)?,
        }
        Ok(())
    }

    /// Finishes an object.
    pub(crate) fn object(self, key: &str, description: Description) -> io::Result<Object> {
        Ok(match self {
            Writer::Memory(buffer) => memory::object(Bytes::from(buffer), description),
            Writer::Disk(writer) => {
                let (size, file) = writer.object(key, &description)?;
                Object { size, description, content: Content::File(file) }
            }
        })
    }

    /// Finishes a part of an upload, which goes away when it is dropped.
    pub(crate) fn part(self) -> io::Result<Content> {
        Ok(match self {
            Writer::Memory(buffer) => Content::Memory(Bytes::from(buffer)),
            Writer::Disk(writer) => Content::File(writer.part()?),
        })
    }

    /// The bytes, of a writer into memory.
    pub(crate) fn into_memory(self) -> Vec<u8> {
        match self {
            Writer::Memory(buffer) => buffer,
            Writer::Disk(_) => Vec::new(),
        }
    }
}

/// The directory of a bucket below the root; `None` for names that are no file names.
pub(crate) fn bucket_directory(root: &Path, bucket: &str) -> Option<PathBuf> {
    (!bucket.is_empty() && !bucket.starts_with('.') && !bucket.contains('/')).then(|| root.join(bucket))
}
