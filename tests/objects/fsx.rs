//! A random mix of everything that changes or reads the bytes of one file, checked against a model after each step.
//!
//! The model is the bytes in memory. What a storage cannot do it must refuse with EOPNOTSUPP, and then nothing may have
//! changed.

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::PathBuf,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tests::mounts_work;

use crate::place::{Kind, Place, amount, seed};

/// The largest size that the file reaches.
const LARGEST: u64 = 3 << 20;

/// The file, the model, and the last steps for the report of a failure.
struct Fsx {
    path: PathBuf,
    file: File,
    append: bool,
    model: Vec<u8>,
    random: StdRng,
    refusals: bool,
    steps: Vec<String>,
}

impl Fsx {
    fn new(path: PathBuf, seed: u64, refusals: bool) -> Self {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("create the file");
        Fsx {
            path,
            file,
            append: false,
            model: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            refusals,
            steps: Vec::new(),
        }
    }

    /// A range that may lie beyond the end; small ones are the most frequent, and page borders are sought.
    fn range(&mut self) -> (u64, usize) {
        let length = match self.random.random_range(0..10) {
            0..=5 => self.random.random_range(1..20_000),
            6..=8 => self.random.random_range(1..300_000),
            _ => self.random.random_range(1..1_200_000),
        };
        let end = (self.model.len() as u64 + 50_000).min(LARGEST - length as u64);
        let mut offset = self.random.random_range(0..=end);
        if self.random.random_bool(0.3) {
            offset -= offset % 4096;
        }
        (offset, length)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.random.fill(&mut bytes[..]);
        bytes
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let (offset, end) = (offset as usize, offset as usize + bytes.len());
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[offset..end].copy_from_slice(bytes);
    }

    /// The part of a range that lies within the file.
    fn within(&self, offset: u64, length: usize) -> &[u8] {
        let start = (offset as usize).min(self.model.len());
        &self.model[start..(start + length).min(self.model.len())]
    }

    fn same(&self, what: &str, offset: u64, found: &[u8], expected: &[u8]) {
        if found == expected {
            return;
        }
        let at = found.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
        panic!(
            "{what} at {offset}: {} bytes, expected {}; the first difference is at {} (file of {} bytes)\n{}",
            found.len(),
            expected.len(),
            offset + at as u64,
            self.model.len(),
            self.history()
        );
    }

    fn history(&self) -> String {
        let from = self.steps.len().saturating_sub(25);
        self.steps[from..].join("\n")
    }

    fn check<T>(&self, what: &str, done: std::io::Result<T>) -> T {
        done.unwrap_or_else(|error| panic!("{what}: {error}\n{}", self.history()))
    }

    /// The result of a call that storages may lack; false when it was refused.
    fn may_refuse(&self, what: &str, returned: i64) -> bool {
        if returned >= 0 {
            return true;
        }
        let error = std::io::Error::last_os_error();
        let refused = error.raw_os_error() == Some(libc::EOPNOTSUPP);
        assert!(refused && self.refusals, "{what}: {error}\n{}", self.history());
        false
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..=24 => self.write(),
            25..=44 => self.read(),
            45..=52 => self.truncate(),
            53..=60 => self.write_mapped(),
            61..=66 => self.read_mapped(),
            67..=76 => self.allocate(),
            77..=82 => self.copy_range(),
            83..=90 => self.reopen(),
            91..=94 => {
                self.steps.push("fsync".into());
                self.check("fsync", self.file.sync_all());
            }
            95..=97 => self.append(),
            _ => self.read_by_another_handle(),
        }
        let size = self.check("fstat", self.file.metadata()).size();
        assert_eq!(size, self.model.len() as u64, "the size\n{}", self.history());
    }

    fn write(&mut self) {
        let (offset, length) = self.range();
        let bytes = self.bytes(length);
        // With O_APPEND pwrite appends, whatever the offset.
        let at = if self.append { self.model.len() as u64 } else { offset };
        if at + length as u64 > LARGEST {
            return;
        }
        self.steps.push(format!("write {at} {length}"));
        self.check("write", self.file.write_all_at(&bytes, offset));
        self.put(at, &bytes);
    }

    fn append(&mut self) {
        let length = self.random.random_range(1..70_000);
        if self.model.len() + length > LARGEST as usize {
            return;
        }
        let bytes = self.bytes(length);
        self.steps.push(format!("append {length} by another handle"));
        let other = self.check("open to append", OpenOptions::new().append(true).open(&self.path));
        self.check("append", std::io::Write::write_all(&mut &other, &bytes));
        self.check("close", close(other));
        self.put(self.model.len() as u64, &bytes);
    }

    fn read(&mut self) {
        let (offset, length) = self.range();
        self.steps.push(format!("read {offset} {length}"));
        let found = self.check("read", tests::pread(&self.file, offset, length));
        self.same("read", offset, &found, self.within(offset, length));
    }

    fn read_by_another_handle(&mut self) {
        let (offset, length) = self.range();
        self.steps.push(format!("open, read {offset} {length}, close"));
        let other = self.check("open to read", File::open(&self.path));
        let found = self.check("read", tests::pread(&other, offset, length));
        self.same("read by another handle", offset, &found, self.within(offset, length));
    }

    fn truncate(&mut self) {
        let size = match self.random.random_range(0..6) {
            0 => 0,
            1 => self.model.len() as u64 + self.random.random_range(0..100_000),
            _ => self.random.random_range(0..=self.model.len() as u64),
        }
        .min(LARGEST);
        if self.random.random_bool(0.5) {
            self.steps.push(format!("ftruncate {size}"));
            self.check("ftruncate", self.file.set_len(size));
        } else {
            self.steps.push(format!("truncate {size}"));
            self.check("truncate", nix::unistd::truncate(&self.path, size as i64).map_err(Into::into));
        }
        self.model.resize(size as usize, 0);
    }

    /// Maps the pages of a range within the file; `None` when the file is empty.
    fn mapped<T>(&mut self, call: impl FnOnce(&mut Self, u64, &mut [u8]) -> T) -> Option<T> {
        let (offset, length) = self.range();
        if self.model.is_empty() {
            return None;
        }
        let offset = offset.min(self.model.len() as u64 - 1);
        let length = length.min(self.model.len() - offset as usize);
        let start = offset - offset % 4096;
        let span = (offset - start) as usize + length;
        // SAFETY: a fresh mapping of a file of ours, unmapped below; the range lies within the file while it is used.
        unsafe {
            let pages = libc::mmap(
                std::ptr::null_mut(),
                span,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.file.as_raw_fd(),
                start as i64,
            );
            assert_ne!(pages, libc::MAP_FAILED, "mmap: {}\n{}", std::io::Error::last_os_error(), self.history());
            let bytes = std::slice::from_raw_parts_mut(pages.cast::<u8>().add((offset - start) as usize), length);
            let done = call(self, offset, bytes);
            let synced = libc::msync(pages, span, libc::MS_SYNC);
            assert_eq!(synced, 0, "msync: {}\n{}", std::io::Error::last_os_error(), self.history());
            libc::munmap(pages, span);
            Some(done)
        }
    }

    fn write_mapped(&mut self) {
        self.mapped(|this, offset, mapped| {
            this.steps.push(format!("write {offset} {} by mmap", mapped.len()));
            let bytes = this.bytes(mapped.len());
            mapped.copy_from_slice(&bytes);
            this.put(offset, &bytes);
        });
    }

    fn read_mapped(&mut self) {
        self.mapped(|this, offset, mapped| {
            this.steps.push(format!("read {offset} {} by mmap", mapped.len()));
            this.same("mmap", offset, mapped, this.within(offset, mapped.len()));
        });
    }

    fn allocate(&mut self) {
        let (offset, length) = self.range();
        let end = offset + length as u64;
        let (name, mode) = match self.random.random_range(0..5) {
            0 => ("fallocate", 0),
            1 => ("fallocate keep-size", libc::FALLOC_FL_KEEP_SIZE),
            2 | 3 => ("punch hole", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            _ => ("zero range", libc::FALLOC_FL_ZERO_RANGE),
        };
        self.steps.push(format!("{name} {offset} {length}"));
        // SAFETY: a call on an open descriptor, without pointers.
        let done = unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset as i64, length as i64) };
        if !self.may_refuse(name, i64::from(done)) {
            return;
        }
        let grows = mode & libc::FALLOC_FL_KEEP_SIZE == 0;
        if grows && self.model.len() < end as usize {
            self.model.resize(end as usize, 0);
        }
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let size = self.model.len();
            self.model[(offset as usize).min(size)..(end as usize).min(size)].fill(0);
        }
    }

    fn copy_range(&mut self) {
        let (from, length) = self.range();
        let (to, _) = self.range();
        let from = from.min(self.model.len() as u64);
        let length = length.min(self.model.len() - from as usize);
        let apart = from + length as u64 <= to || to + length as u64 <= from;
        if self.append || !apart || length == 0 || to + length as u64 > LARGEST {
            return;
        }
        self.steps.push(format!("copy_file_range {from} to {to} {length}"));
        let (mut source, mut target, mut left) = (from as i64, to as i64, length);
        while left > 0 {
            let file = self.file.as_raw_fd();
            // SAFETY: both offsets live across the call.
            let copied = unsafe { libc::copy_file_range(file, &mut source, file, &mut target, left, 0) };
            assert!(copied > 0, "copy_file_range: {}\n{}", std::io::Error::last_os_error(), self.history());
            left -= copied as usize;
        }
        let bytes = self.model[from as usize..from as usize + length].to_vec();
        self.put(to, &bytes);
    }

    fn reopen(&mut self) {
        self.append = self.random.random_bool(0.2);
        let truncate = self.random.random_bool(0.1);
        self.steps.push(format!("close, open append={} truncate={truncate}", self.append));
        let null = self.check("open /dev/null", File::open("/dev/null"));
        let old = std::mem::replace(&mut self.file, null);
        self.check("close", close(old));
        let flags = if self.append { libc::O_APPEND } else { 0 } | if truncate { libc::O_TRUNC } else { 0 };
        self.file = self.check("open", OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path));
        if truncate {
            self.model.clear();
        }
    }

    /// Compares every byte.
    fn compare(&mut self) {
        self.steps.push("compare".into());
        let found = self.check("read", std::fs::read(&self.path));
        self.same("the whole file", 0, &found, &self.model);
    }
}

/// Closes a file and says how that went.
fn close(file: File) -> std::io::Result<()> {
    nix::unistd::close(std::os::fd::OwnedFd::from(file)).map_err(Into::into)
}

fn run(kind: Kind, operations: u64) {
    if !mounts_work() {
        return;
    }
    // A mount has a limited life in the tests, so that much work is done on several.
    let rounds = operations.div_ceil(20_000);
    for round in 0..rounds {
        let seed = seed(1_000 + round);
        eprintln!("{kind:?}: ALLUXIO_SEED={seed}");
        let mut place = Place::new(kind);
        let files = 4;
        for number in 0..files {
            let path = place.join(format!("file {number}"));
            let mut fsx = Fsx::new(path, seed * 1_000 + number, kind == Kind::S3);
            for _ in 0..operations / rounds / files {
                fsx.step();
            }
            fsx.compare();
            let (path, model) = (fsx.path.clone(), std::mem::take(&mut fsx.model));
            let file = std::mem::replace(&mut fsx.file, File::open("/dev/null").unwrap());
            fsx.check("close", close(file));
            // Everything that was closed is there in the next mount, too.
            if number == files - 1 {
                place.remount();
                let found = std::fs::read(&path).expect("read after the remount");
                fsx.same("after the remount", 0, &found, &model);
            }
        }
    }
}

#[test]
fn of_a_bucket() {
    run(Kind::S3, amount(2_000, 200_000));
}

/// Shows that the model itself is right.
#[test]
fn of_a_directory_without_a_mount() {
    run(Kind::Native, amount(3_000, 200_000));
}
