//! One file, used in every way at random, against the bytes that it should have.

use std::{
    fs::File,
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tests::{Mount, data::pread, mounts_work};

use crate::{WAYS, mount, seed};

/// The file never grows beyond this.
const MOST: usize = 1 << 18;

struct Fsx<'a> {
    random: StdRng,
    path: &'a Path,
    file: File,
    model: Vec<u8>,
    done: Vec<String>,
}

impl<'a> Fsx<'a> {
    fn new(path: &'a Path, seed: u64) -> Self {
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        Self { random: StdRng::seed_from_u64(seed), path, file, model: Vec::new(), done: Vec::new() }
    }

    /// Mostly within the file, often at its end or at the edge of a page.
    fn offset(&mut self) -> usize {
        let any = self.random.random_range(0..MOST);
        match self.random.random_range(0..6) {
            0 => any & !4095,
            1 => self.model.len(),
            2 => any,
            _ => any % (self.model.len() + 1),
        }
    }

    fn range(&mut self) -> (usize, usize) {
        let offset = self.offset();
        let most = if self.random.random_bool(0.1) { 1 << 16 } else { 1 << 13 };
        let length = self.random.random_range(1..=most);
        (offset, length.min(MOST - offset.min(MOST - 1)))
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes[..]);
        bytes
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset..end].copy_from_slice(bytes);
    }

    fn note(&mut self, what: String) {
        self.done.push(what);
        if self.done.len() > 60 {
            self.done.remove(0);
        }
    }

    fn write(&mut self) {
        let (offset, length) = self.range();
        let bytes = self.bytes(length);
        self.note(format!("write {offset} {length}"));
        self.file.write_all_at(&bytes, offset as u64).unwrap();
        self.put(offset, &bytes);
    }

    fn append(&mut self) {
        use std::io::Write as _;
        if self.model.len() >= MOST {
            return;
        }
        let length = self.random.random_range(1..=(MOST - self.model.len()).min(8192));
        let bytes = self.bytes(length);
        self.note(format!("append {length}"));
        File::options().append(true).open(self.path).unwrap().write_all(&bytes).unwrap();
        self.put(self.model.len(), &bytes);
    }

    fn read(&mut self) {
        let (offset, length) = self.range();
        self.note(format!("read {offset} {length}"));
        let read = pread(&self.file, offset as u64, length).unwrap();
        let end = self.model.len().min(offset + length);
        assert!(read == self.model.get(offset..end).unwrap_or(&[]), "read {offset} {length} gives other bytes");
    }

    fn truncate(&mut self) {
        let size = self.offset();
        self.note(format!("truncate {size}"));
        if self.random.random_bool(0.5) {
            self.file.set_len(size as u64).unwrap();
        } else {
            nix::unistd::truncate(self.path, size as i64).unwrap();
        }
        self.model.resize(size, 0);
    }

    /// Reads or writes through a shared mapping.
    fn map(&mut self) {
        let (offset, length) = self.range();
        if offset >= self.model.len() {
            return;
        }
        let length = length.min(self.model.len() - offset);
        let bytes = self.random.random_bool(0.5).then(|| self.bytes(length));
        self.note(format!("map {offset} {length} {}", if bytes.is_some() { "write" } else { "read" }));
        let (page, all) = (offset & !4095, offset + length);
        let size = std::num::NonZeroUsize::new(all - page).unwrap();
        let rights = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_WRITE;
        // SAFETY: a mapping of its own of a file that only this test changes, unmapped below and used within its length.
        unsafe {
            let flags = nix::sys::mman::MapFlags::MAP_SHARED;
            let at = nix::sys::mman::mmap(None, size, rights, flags, &self.file, page as i64).unwrap();
            let here = at.as_ptr().cast::<u8>().add(offset - page);
            match &bytes {
                Some(bytes) => std::ptr::copy_nonoverlapping(bytes.as_ptr(), here, length),
                None => {
                    let mapped = std::slice::from_raw_parts(here, length);
                    assert!(*mapped == self.model[offset..all], "a mapping at {offset} of {length} has other bytes");
                }
            }
            if self.random.random_bool(0.5) {
                nix::sys::mman::msync(at, size.get(), nix::sys::mman::MsFlags::MS_SYNC).unwrap();
            }
            nix::sys::mman::munmap(at, size.get()).unwrap();
        }
        if let Some(bytes) = bytes {
            self.put(offset, &bytes);
        }
    }

    fn allocate(&mut self) {
        let (offset, length) = self.range();
        let keep = libc::FALLOC_FL_KEEP_SIZE;
        let modes = [0, keep, libc::FALLOC_FL_PUNCH_HOLE | keep, libc::FALLOC_FL_ZERO_RANGE];
        let mode = modes[self.random.random_range(0..modes.len())];
        self.note(format!("fallocate {mode:#x} {offset} {length}"));
        // SAFETY: the descriptor is open, the rest are numbers.
        let done = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, length as i64) };
        if done != 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "fallocate {mode:#x}: {error}");
            return;
        }
        let end = offset + length;
        if mode & keep == 0 && self.model.len() < end {
            self.model.resize(end, 0);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let end = end.min(self.model.len());
            if offset < end {
                self.model[offset..end].fill(0);
            }
        }
    }

    fn copy(&mut self) {
        let (from, length) = self.range();
        let length = length.min(self.model.len().saturating_sub(from));
        let to = self.offset();
        let apart = from + length <= to || to + length <= from;
        if length == 0 || !apart || to + length > MOST {
            return;
        }
        self.note(format!("copy_file_range {from} to {to}, {length}"));
        let (mut at, mut to_at, mut left) = (from as i64, to as i64, length);
        while left > 0 {
            let fd = self.file.as_raw_fd();
            // SAFETY: the descriptor is open, both offsets live through the call.
            let copied = unsafe { libc::copy_file_range(fd, &mut at, fd, &mut to_at, left, 0) };
            assert!(copied > 0, "copy_file_range: {copied} {}", io::Error::last_os_error());
            left -= copied as usize;
        }
        let bytes = self.model[from..from + length].to_vec();
        self.put(to, &bytes);
    }

    fn reopen(&mut self) {
        let direct = self.random.random_bool(0.1);
        let sync = if self.random.random_bool(0.2) { libc::O_DSYNC } else { 0 };
        self.note(format!("reopen {sync:#o} {direct}"));
        if direct {
            // A second open with another way of reading stays beside the first for a moment.
            let other = File::options().read(true).custom_flags(libc::O_DIRECT).open(self.path).unwrap();
            assert_eq!(other.metadata().unwrap().len(), self.model.len() as u64);
        }
        self.file = File::options().read(true).write(true).custom_flags(sync).open(self.path).unwrap();
    }

    fn size(&mut self) {
        self.note("stat".into());
        assert_eq!(self.file.metadata().unwrap().len(), self.model.len() as u64, "fstat");
        assert_eq!(std::fs::metadata(self.path).unwrap().len(), self.model.len() as u64, "stat");
    }

    fn holes(&mut self) {
        let offset = self.offset();
        self.note(format!("lseek {offset}"));
        // SAFETY: the descriptor is open, the rest are numbers.
        let data = unsafe { libc::lseek(self.file.as_raw_fd(), offset as i64, libc::SEEK_DATA) };
        let until = if data < 0 { self.model.len() } else { data as usize };
        let hole = self.model.get(offset..until).unwrap_or(&[]);
        assert!(hole.iter().all(|byte| *byte == 0), "a hole at {offset} has bytes");
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..28 => self.write(),
            28..53 => self.read(),
            53..60 => self.truncate(),
            60..76 => self.map(),
            76..83 => self.allocate(),
            83..88 => self.copy(),
            88..92 => self.append(),
            92..94 => self.reopen(),
            94..97 => self.size(),
            97..99 => self.holes(),
            _ => {
                self.note("fsync".into());
                self.file.sync_data().unwrap();
            }
        }
    }
}

fn run(mount: &Mount, source: &Path, name: &str, seed: u64, steps: usize) {
    let path = mount.join(name);
    let mut fsx = Fsx::new(&path, seed);
    for at in 0..steps {
        let step = std::panic::AssertUnwindSafe(|| fsx.step());
        if std::panic::catch_unwind(step).is_err() {
            panic!("step {at} with ALLUXIO_TESTS_SEED={seed}; the last steps were:\n{}", fsx.done.join("\n"));
        }
    }
    fsx.file.sync_all().unwrap();
    assert!(std::fs::read(source.join(name)).unwrap() == fsx.model, "the source has other bytes, seed {seed}");
}

#[test]
fn one_file_in_every_way() {
    if !mounts_work() {
        return;
    }
    let seed = seed();
    let steps = if tests::full() { 100_000 } else { 4_000 };
    for way in WAYS {
        let (source, mount) = mount(way);
        run(&mount, source.path(), "file", seed, steps);
        mount.stop();
    }
}

#[test]
fn several_files_at_once() {
    if !mounts_work() {
        return;
    }
    let seed = seed();
    let steps = if tests::full() { 20_000 } else { 700 };
    let (source, mount) = mount(WAYS[0]);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (mount, source) = (&mount, source.path());
            scope.spawn(move || run(mount, source, &format!("file{number}"), seed.wrapping_add(number), steps));
        }
    });
    mount.stop();
}
