//! Bytes that follow from a name: what a file should contain can be said without keeping it.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

/// `length` bytes at `offset` of the endless content that `name` stands for. Different names have different bytes.
pub fn content(name: &str, offset: u64, length: usize) -> Vec<u8> {
    s3server::synthetic_bytes(name, offset, length)
}

/// SHA-256 of everything that can be read from a file.
pub fn sha256(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash.finalize().into()),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// SHA-256 of bytes.
pub fn sha256_of(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Reads up to `length` bytes at `offset`; fewer only at the end of the file.
pub fn pread(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut buffer[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// Opens with O_DIRECT, for reads with [`pread_aligned`].
pub fn open_direct(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path)
}

/// One pread(2) into a buffer aligned to 4 KiB, as O_DIRECT wants it.
pub fn pread_aligned(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut space = vec![0u8; length + 4096];
    let skip = space.as_ptr().align_offset(4096);
    let count = file.read_at(&mut space[skip..skip + length], offset)?;
    Ok(space[skip..skip + count].to_vec())
}

/// A file mapped into memory for reading.
pub struct Mapped {
    start: std::ptr::NonNull<libc::c_void>,
    length: usize,
}

impl Mapped {
    /// Maps the first `length` (more than 0) bytes of a file.
    pub fn new(file: &File, length: usize) -> io::Result<Self> {
        let wanted = std::num::NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let (read, shared) = (nix::sys::mman::ProtFlags::PROT_READ, nix::sys::mman::MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice overlays nothing.
        let start = unsafe { nix::sys::mman::mmap(None, wanted, read, shared, file, 0) }?;
        Ok(Mapped { start, length })
    }

    /// The bytes. Touching one that cannot be read kills the process (SIGBUS), which is a failed test as well.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length, lives as long as self, and nobody writes to these files.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and no slice of it outlives self.
        let _ = unsafe { nix::sys::mman::munmap(self.start, self.length) };
    }
}

/// The errno of a failure, 0 when there is none.
pub fn errno<T>(result: &io::Result<T>) -> i32 {
    result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0)
}

/// Drops what the kernel keeps of a file, so that the next read asks the daemon.
pub fn drop_cached(file: &File) {
    let _ = nix::fcntl::posix_fadvise(file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Puts the bytes of `name` into a new file of `size` bytes.
pub fn write_file(path: &Path, name: &str, size: u64) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = File::create(path)?;
    let mut at = 0;
    while at < size {
        let step = (size - at).min(1 << 20);
        file.write_all(&content(name, at, step as usize))?;
        at += step;
    }
    Ok(())
}
