//! The file system over an in-memory worker, without a mount.

use super::{
    directory::{Item, Sink},
    *,
};
use crate::{
    fs::inode::ROOT,
    passthrough::{Registrar, Token},
};
use client::ClientOptions;
use common::{FileKind, budget::MemoryBudget, change::Caller};
use memory::MemoryWorker;
use std::{
    io,
    io::Write as _,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicI32, AtomicUsize, Ordering},
};
use tokio::runtime::{Handle, Runtime};

#[path = "../../tests/support/memory.rs"]
mod memory;
mod staged;

const PAGE: u32 = 4096;

/// Stands for the kernel where files are registered.
#[derive(Default)]
struct Kernel {
    registered: AtomicUsize,
    alive: Arc<()>,
    refuses: AtomicI32,
}

impl Registrar for Kernel {
    fn register(&self, _: BorrowedFd<'_>) -> io::Result<Token> {
        match self.refuses.load(Ordering::Relaxed) {
            0 => {
                self.registered.fetch_add(1, Ordering::Relaxed);
                Ok(Arc::new(self.alive.clone()))
            }
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Kernel {
    fn registered(&self) -> usize {
        self.registered.load(Ordering::Relaxed)
    }

    fn held(&self) -> usize {
        Arc::strong_count(&self.alive) - 1
    }
}

struct Setup {
    worker: Arc<MemoryWorker>,
    fs: Arc<Fs>,
    kernel: Kernel,
    runtime: Runtime,
}

impl Setup {
    fn with(options: FsOptions) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let worker = MemoryWorker::new(PAGE);
        let budget = MemoryBudget::new(32 << 20);
        let client = Client::new(worker.clone(), budget, ClientOptions::default(), handle(&runtime));
        Self { fs: Fs::new(client, options), worker, kernel: Kernel::default(), runtime }
    }

    /// Everything goes through the daemon.
    fn cached() -> Self {
        Self::with(FsOptions::default())
    }

    /// The kernel takes files.
    fn passing() -> Self {
        let setup = Self::cached();
        setup.worker.caches.store(true, Ordering::Relaxed);
        setup.fs.passthrough().switch(Switch::On);
        setup
    }

    fn lookup(&self, name: &str) -> Result<Entry> {
        self.lookup_in(ROOT, name)
    }

    fn lookup_in(&self, parent: u64, name: &str) -> Result<Entry> {
        match self.fs.lookup_now(parent, name.as_bytes()) {
            Some(found) => found,
            None => self.runtime.block_on(self.fs.lookup(parent, name.as_bytes())),
        }
    }

    fn open(&self, id: u64) -> Result<Opened> {
        match self.fs.open_now(id, &self.kernel) {
            Some(opened) => opened,
            None => self.runtime.block_on(self.fs.open(id, &self.kernel)),
        }
    }

    fn open_to_write(&self, id: u64, flags: i32) -> Result<Opened> {
        let caller = Caller { uid: 0, gid: 0 };
        self.runtime.block_on(self.fs.open_for_writing(id, flags, caller, &self.kernel))
    }

    fn getattr(&self, id: u64) -> Result<Arc<Attr>> {
        let found = match self.fs.getattr_now(id) {
            Some(found) => found,
            None => self.runtime.block_on(self.fs.getattr(id)),
        };
        found.map(|entry| entry.attr)
    }

    fn read(&self, handle: u64, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; length];
        match self.fs.read_now(handle, offset, &mut buffer) {
            Some(Ok(Read::Lent(read))) => Ok(buffer[..read].to_vec()),
            Some(Ok(Read::Own(data))) => Ok(data.to_vec()),
            Some(Err(error)) => Err(error),
            None => self.runtime.block_on(self.fs.read(handle, offset, length)).map(|data| data.to_vec()),
        }
    }

    fn release(&self, id: u64, opened: &Opened) {
        self.fs.release(id, opened.handle).unwrap();
    }
}

fn handle(runtime: &Runtime) -> Handle {
    runtime.handle().clone()
}

fn kind(result: Result<impl Sized>) -> ErrorKind {
    match result {
        Ok(_) => panic!("it was done"),
        Err(error) => error.kind(),
    }
}

#[test]
fn names_are_found_by_memory_or_by_asking_and_keep_their_node() {
    let setup = Setup::cached();
    setup.worker.directory("d");
    setup.worker.file("d/f", "hello");
    setup.worker.link("l", "d/f");
    for knows in [true, false] {
        setup.worker.knows.store(knows, Ordering::Relaxed);
        let d = setup.lookup("d").unwrap();
        let f = setup.lookup_in(d.id, "f").unwrap();
        assert_eq!((d.attr.kind, f.attr.size), (FileKind::Directory, 5));
        assert_eq!(setup.lookup_in(d.id, "f").unwrap().id, f.id);
        assert_eq!(setup.lookup_in(f.id, "x").err().map(|error| error.kind()), Some(ErrorKind::NotFound));
        assert_eq!(kind(setup.lookup("none")), ErrorKind::NotFound);
        assert_eq!(kind(setup.lookup(&"n".repeat(256))), ErrorKind::NameTooLong);
        let link = setup.lookup("l").unwrap();
        assert_eq!(&setup.runtime.block_on(setup.fs.read_link(link.id)).unwrap()[..], b"d/f");
    }
    assert_eq!(setup.fs.status().inodes, 4);
}

#[test]
fn nodes_go_when_all_their_lookups_are_forgotten() {
    let setup = Setup::cached();
    setup.worker.file("f", "x");
    let f = setup.lookup("f").unwrap();
    setup.lookup("f").unwrap();
    setup.fs.forget(f.id, 1);
    assert!(setup.getattr(f.id).is_ok());
    setup.fs.forget(f.id, 1);
    assert_eq!(kind(setup.getattr(f.id)), ErrorKind::Stale);
    assert_ne!(setup.lookup("f").unwrap().id, f.id, "a node id was used twice");
}

#[test]
fn reads_are_whole_at_any_offset() {
    let setup = Setup::cached();
    let bytes: Vec<u8> = (0..3 * PAGE + 17).map(|at| (at * 7 % 251) as u8).collect();
    setup.worker.file("f", bytes.clone());
    let f = setup.lookup("f").unwrap();
    let opened = setup.open(f.id).unwrap();
    for (offset, length) in [(0, 10), (4090, 20), (0, 20_000), (8192, 4096), (12_300, 100), (12_305, 1), (99_999, 5)] {
        let end = bytes.len().min(offset + length);
        let expected = bytes.get(offset..end).unwrap_or(&[]);
        assert_eq!(setup.read(opened.handle, offset as u64, length).unwrap(), expected, "{offset} {length}");
    }
    setup.release(f.id, &opened);
    assert_eq!(kind(setup.read(opened.handle, 0, 1)), ErrorKind::BadHandle);
    assert_eq!(kind(setup.fs.release(f.id, opened.handle)), ErrorKind::BadHandle);
}

#[test]
fn whatever_would_write_is_refused() {
    let setup = Setup::passing();
    setup.worker.file("f", "x");
    let f = setup.lookup("f").unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_RDONLY | libc::O_CREAT] {
        assert!(Fs::opens_for_writing(flags), "{flags:#o}");
        assert_eq!(kind(setup.open_to_write(f.id, flags)), ErrorKind::ReadOnly, "{flags:#o}");
    }
    assert_eq!(kind(setup.fs.access(&f.attr, libc::W_OK)), ErrorKind::ReadOnly);
    assert_eq!(kind(setup.fs.access(&f.attr, libc::X_OK)), ErrorKind::PermissionDenied);
    assert!(setup.fs.access(&f.attr, libc::R_OK).is_ok());
}

#[test]
fn the_kernel_keeps_pages_only_of_the_version_that_it_certainly_has() {
    let setup = Setup::cached();
    setup.worker.file("f", "one");
    let f = setup.lookup("f").unwrap();
    let first = setup.open(f.id).unwrap();
    assert!(!first.keep_cache);
    let second = setup.open(f.id).unwrap();
    assert!(!second.keep_cache, "the first open may still be on its way to dropping the old pages");
    setup.read(first.handle, 0, 3).unwrap();
    let third = setup.open(f.id).unwrap();
    assert!(third.keep_cache);
    for opened in [first, second, third] {
        setup.release(f.id, &opened);
    }
    assert!(setup.open(f.id).map(|opened| setup.release(f.id, &opened)).is_ok());
    setup.worker.file("f", "two!");
    assert_eq!(setup.lookup("f").unwrap().id, f.id, "nothing is open, so the node stays");
    let changed = setup.open(f.id).unwrap();
    assert!(!changed.keep_cache);
    setup.release(f.id, &changed);
    assert!(setup.open(f.id).unwrap().keep_cache);
}

#[test]
fn kernel_cache_and_direct_io_are_obeyed() {
    for (cache, expected) in [(KernelCache::Keep, (true, false)), (KernelCache::Direct, (false, true))] {
        let setup = Setup::with(FsOptions { kernel_cache: cache, ..FsOptions::default() });
        setup.worker.file("f", "x");
        let f = setup.lookup("f").unwrap();
        let opened = setup.open(f.id).unwrap();
        assert_eq!((opened.keep_cache, opened.direct_io), expected);
        assert_eq!(setup.fs.open_directory(ROOT).unwrap().cache, cache != KernelCache::Direct);
    }
}

#[test]
fn an_open_that_finds_another_version_makes_the_kernel_look_again_once() {
    let setup = Setup::cached();
    setup.worker.file("f", "one");
    let f = setup.lookup("f").unwrap();
    setup.worker.file("f", "longer");
    assert_eq!(kind(setup.open(f.id)), ErrorKind::Stale);
    let again = setup.lookup("f").unwrap();
    assert_eq!((again.id, again.attr.size), (f.id, 6));
    let opened = setup.open(again.id).unwrap();
    assert_eq!(setup.read(opened.handle, 0, 10).unwrap(), b"longer");
}

#[test]
fn two_versions_of_a_file_never_share_a_node() {
    for passing in [false, true] {
        let setup = if passing { Setup::passing() } else { Setup::cached() };
        setup.worker.file("f", "one");
        let old = setup.lookup("f").unwrap();
        let old_open = setup.open(old.id).unwrap();
        assert_eq!(old_open.backing.is_some(), passing);
        setup.worker.file("f", "two!");
        assert_eq!(setup.getattr(old.id).unwrap().size, 3, "an open version keeps its attributes");
        assert_eq!(kind(setup.open(old.id)), ErrorKind::Stale);
        let new = setup.lookup("f").unwrap();
        assert_ne!(new.id, old.id);
        let new_open = setup.open(new.id).unwrap();
        if !passing {
            assert_eq!(setup.read(new_open.handle, 0, 9).unwrap(), b"two!");
            assert_eq!(setup.read(old_open.handle, 0, 9).unwrap(), b"one");
        }
        setup.release(old.id, &old_open);
        assert_eq!(kind(setup.getattr(old.id)), ErrorKind::Stale);
        setup.fs.forget(old.id, 1);
        assert_eq!(setup.lookup("f").unwrap().id, new.id);
    }
}

#[test]
fn a_small_file_passes_through_from_its_first_open_and_is_registered_once() {
    let setup = Setup::passing();
    setup.worker.file("f", "hello");
    let f = setup.lookup("f").unwrap();
    let first = setup.open(f.id).unwrap();
    let second = setup.open(f.id).unwrap();
    assert!(first.backing.is_some() && !first.keep_cache && !first.direct_io);
    assert_eq!(second.handle, PASSTHROUGH_HANDLE);
    let opens = setup.worker.opens.load(Ordering::Relaxed);
    setup.release(f.id, &first);
    setup.release(f.id, &second);
    for _ in 0..10 {
        let again = setup.open(f.id).unwrap();
        assert!(again.backing.is_some());
        setup.release(f.id, &again);
    }
    assert_eq!(setup.kernel.registered(), 1);
    assert_eq!(setup.worker.opens.load(Ordering::Relaxed), opens, "what is kept is opened without the worker");
    setup.worker.file("f", "other");
    assert_eq!(setup.lookup("f").unwrap().id, f.id);
    let changed = setup.open(f.id).unwrap();
    assert!(changed.backing.is_some());
    assert_eq!(setup.kernel.registered(), 2);
    drop(second);
    drop(first);
    assert_eq!(setup.kernel.held(), 1, "the registration of the old version is taken back");
    setup.release(f.id, &changed);
    drop(changed);
    setup.fs.forget(f.id, 2);
    assert_eq!(setup.kernel.held(), 0, "a forgotten node keeps nothing registered");
    assert_eq!(setup.fs.status().open_handles, 0);
}

#[test]
fn a_large_file_or_one_without_a_cache_is_read_through_the_daemon() {
    let setup = Setup::passing();
    setup.worker.file("large", vec![1; 2 * PAGE as usize]);
    setup.worker.file("empty", "");
    for name in ["large", "empty"] {
        let file = setup.lookup(name).unwrap();
        assert!(setup.open(file.id).unwrap().backing.is_none(), "{name}");
    }
    setup.worker.caches.store(false, Ordering::Relaxed);
    setup.worker.file("small", "x");
    let small = setup.lookup("small").unwrap();
    let opened = setup.open(small.id).unwrap();
    assert!(opened.backing.is_none());
    assert_eq!(setup.read(opened.handle, 0, 9).unwrap(), b"x");
}

#[test]
fn the_way_of_reading_stays_from_the_first_open_to_the_last_release() {
    let setup = Setup::passing();
    setup.worker.file("f", "hello");
    setup.kernel.refuses.store(libc::EMFILE, Ordering::Relaxed);
    let f = setup.lookup("f").unwrap();
    let first = setup.open(f.id).unwrap();
    assert!(first.backing.is_none());
    setup.kernel.refuses.store(0, Ordering::Relaxed);
    let second = setup.open(f.id).unwrap();
    assert!(second.backing.is_none(), "a cached open is alive");
    assert_eq!(setup.read(second.handle, 0, 9).unwrap(), b"hello");
    setup.release(f.id, &first);
    setup.release(f.id, &second);
    let third = setup.open(f.id).unwrap();
    assert!(third.backing.is_some());
    setup.fs.passthrough().switch(Switch::Off("by the test".into()));
    let fourth = setup.open(f.id).unwrap();
    assert!(fourth.backing.is_some(), "a passing open is alive");
    setup.release(f.id, &third);
    setup.release(f.id, &fourth);
    assert!(setup.open(f.id).unwrap().backing.is_none());
}

#[test]
fn a_local_file_that_grows_stays_the_same_node_and_one_that_is_replaced_does_not() {
    let setup = Setup::passing();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"one").unwrap();
    let file = Arc::new(file);
    setup.worker.local("log", file.clone());
    let log = setup.lookup("log").unwrap();
    let first = setup.open(log.id).unwrap();
    assert!(first.backing.is_some());
    (&*file).write_all(b" and two").unwrap();
    setup.worker.refresh("log");
    assert_eq!(setup.getattr(log.id).unwrap().size, 11);
    assert_eq!(setup.lookup("log").unwrap().id, log.id);
    let second = setup.open(log.id).unwrap();
    assert!(second.backing.is_some());
    assert_eq!(setup.kernel.registered(), 1, "one inode has one backing file");
    let mut other = tempfile::tempfile().unwrap();
    other.write_all(b"another file").unwrap();
    setup.worker.local("log", Arc::new(other));
    let replaced = setup.lookup("log").unwrap();
    assert_ne!(replaced.id, log.id);
    assert_eq!(setup.getattr(log.id).unwrap().size, 11, "the open file is asked itself");
    assert!(setup.open(replaced.id).unwrap().backing.is_some());
    assert_eq!(setup.kernel.registered(), 2);
    setup.release(log.id, &first);
    setup.release(log.id, &second);
}

#[test]
fn after_a_look_at_a_replaced_file_the_next_open_makes_the_kernel_look_again() {
    let setup = Setup::cached();
    let file = |text: &str| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Arc::new(file)
    };
    setup.worker.local("f", file("one"));
    let old = setup.lookup("f").unwrap();
    let opened = setup.open(old.id).unwrap();
    setup.worker.local("f", file("another one"));
    assert_eq!(setup.getattr(old.id).unwrap().size, 3, "the open file is asked itself");
    setup.release(old.id, &opened);
    // The kernel believes in three bytes: it would read no more of the other file.
    assert_eq!(kind(setup.open(old.id)), ErrorKind::Stale);
    let new = setup.lookup("f").unwrap();
    assert_eq!(new.attr.size, 11);
    let opened = setup.open(new.id).unwrap();
    assert_eq!(setup.read(opened.handle, 0, 99).unwrap(), b"another one");
}

#[test]
fn a_link_with_another_target_is_another_node() {
    let setup = Setup::cached();
    setup.worker.link("l", "one");
    let old = setup.lookup("l").unwrap();
    assert_eq!(setup.lookup("l").unwrap().id, old.id);
    setup.worker.link("l", "two");
    assert_eq!(kind(setup.getattr(old.id)), ErrorKind::Stale);
    let new = setup.lookup("l").unwrap();
    assert_ne!(new.id, old.id, "the kernel keeps a target for as long as it knows the node");
    setup.fs.forget(old.id, 2);
    assert_eq!(setup.lookup("l").unwrap().id, new.id);
    assert_eq!(setup.fs.status().inodes, 2);
}

#[test]
fn a_listing_without_attributes_leaves_open_files_alone() {
    let setup = Setup::cached();
    setup.worker.file("f", "hello");
    let f = setup.lookup("f").unwrap();
    let opened = setup.open(f.id).unwrap();
    setup.worker.bare.store(true, Ordering::Relaxed);
    setup.worker.knows.store(false, Ordering::Relaxed);
    let directory = setup.fs.open_directory(ROOT).unwrap();
    assert_eq!(setup.list(directory.handle, 0, 100, true).nodes, [f.id]);
    assert_eq!(setup.lookup("f").unwrap().id, f.id);
    assert_eq!(setup.read(opened.handle, 0, 9).unwrap(), b"hello");
    setup.release(f.id, &opened);
}

#[test]
fn a_local_file_is_read_live_when_it_does_not_pass_through() {
    let setup = Setup::cached();
    let file = Arc::new(tempfile::tempfile().unwrap());
    setup.worker.local("f", file.clone());
    let f = setup.lookup("f").unwrap();
    let opened = setup.open(f.id).unwrap();
    assert!(opened.direct_io, "an empty local file may have something to read all the same");
    (&*file).write_all(b"now").unwrap();
    assert_eq!(setup.read(opened.handle, 0, 9).unwrap(), b"now");
    assert_eq!(setup.read(opened.handle, 1, 1).unwrap(), b"o");
}

#[test]
fn handles_are_limited() {
    let setup = Setup::with(FsOptions { max_handles: 2, ..FsOptions::default() });
    setup.worker.file("f", "x");
    let f = setup.lookup("f").unwrap();
    let first = setup.open(f.id).unwrap();
    let directory = setup.fs.open_directory(ROOT).unwrap();
    assert_eq!(setup.open(f.id).err().map(|error| error.errno()), Some(libc::ENFILE));
    setup.release(f.id, &first);
    let second = setup.open(f.id).unwrap();
    setup.release(f.id, &second);
    setup.fs.release_directory(directory.handle).unwrap();
    assert_eq!(setup.fs.status().open_handles, 0);
}

/// Takes entries as the kernel's buffer does.
#[derive(Default)]
struct Taken {
    names: Vec<String>,
    nodes: Vec<u64>,
    next: u64,
    room: usize,
    plus: bool,
}

impl Taken {
    fn new(room: usize, plus: bool) -> Self {
        Self { room, plus, ..Self::default() }
    }
}

impl Sink for Taken {
    fn wants_attributes(&self) -> bool {
        self.plus
    }

    fn add(&mut self, item: Item<'_>) -> bool {
        if self.names.len() == self.room {
            return false;
        }
        self.names.push(String::from_utf8(item.name.to_vec()).unwrap());
        if item.attr.is_some() {
            self.nodes.push(item.id);
        }
        self.next = item.next;
        true
    }
}

impl Setup {
    fn list(&self, handle: u64, position: u64, room: usize, plus: bool) -> Taken {
        let mut taken = Taken::new(room, plus);
        if !self.fs.read_directory_now(handle, position, &mut taken).unwrap() {
            self.runtime.block_on(self.fs.read_directory(handle, position, &mut taken)).unwrap();
        }
        taken
    }

    /// All names from a position on, `room` at a time.
    fn list_all(&self, handle: u64, mut position: u64, room: usize) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let taken = self.list(handle, position, room, false);
            if taken.names.is_empty() {
                return names;
            }
            position = taken.next;
            names.extend(taken.names);
        }
    }
}

#[test]
fn a_directory_is_listed_once_with_stable_positions() {
    let setup = Setup::cached();
    setup.worker.directory("d");
    for number in 0..250 {
        setup.worker.file(&format!("d/{number:03}"), "x");
    }
    let d = setup.lookup("d").unwrap();
    let opened = setup.fs.open_directory(d.id).unwrap();
    let all = setup.list_all(opened.handle, 0, 7);
    let expected: Vec<_> =
        [".", ".."].into_iter().map(str::to_owned).chain((0..250).map(|number| format!("{number:03}"))).collect();
    assert_eq!(all, expected);
    for number in 0..100 {
        setup.worker.remove(&format!("d/{number:03}"));
    }
    assert_eq!(setup.list_all(opened.handle, 50, 9), &expected[50..], "what was listed keeps its place");
    assert_eq!(setup.worker.listings.load(Ordering::Relaxed), 1);
    assert_eq!(setup.list_all(opened.handle, 0, 1000).len(), 152, "from the beginning it is listed anew");
    assert_eq!(setup.worker.listings.load(Ordering::Relaxed), 2);
}

#[test]
fn a_listing_with_attributes_counts_what_fits_and_no_more() {
    let setup = Setup::cached();
    for name in ["a", "b", "c"] {
        setup.worker.file(name, "x");
    }
    let opened = setup.fs.open_directory(ROOT).unwrap();
    let taken = setup.list(opened.handle, 0, 4, true);
    assert_eq!(taken.names, [".", "..", "a", "b"]);
    assert_eq!(taken.nodes.len(), 2, "the dots are not counted");
    assert_eq!(setup.fs.status().inodes, 3, "what did not fit was forgotten again");
    for node in &taken.nodes {
        setup.fs.forget(*node, 1);
    }
    assert_eq!(setup.fs.status().inodes, 1);
    let rest = setup.list(opened.handle, taken.next, 100, true);
    assert_eq!(rest.names, ["c"]);
}

#[test]
fn a_huge_directory_is_listed_in_a_window_and_positions_before_it_are_found_again() {
    const COUNT: u64 = 60_000;
    let setup = Setup::cached();
    setup.worker.generated("huge", COUNT);
    let huge = setup.lookup("huge").unwrap();
    let opened = setup.fs.open_directory(huge.id).unwrap();
    let all = setup.list_all(opened.handle, 0, 500);
    assert_eq!(all.len() as u64, COUNT + 2);
    assert!(all.iter().skip(2).enumerate().all(|(at, name)| *name == format!("entry{at}")));
    assert!(setup.fs.window_of(opened.handle) <= directory::WINDOW + 1000);
    for position in [COUNT - 10, 30_000, 29_000, 2, 1, 45_123] {
        let taken = setup.list(opened.handle, position, 3, false);
        assert!(!taken.names.is_empty());
        assert_eq!(taken.names, all[position as usize..][..taken.names.len()], "from {position}");
        assert!(setup.fs.window_of(opened.handle) <= directory::WINDOW + 1000);
    }
}

#[test]
fn the_kernel_keeps_a_listing_until_the_directory_changes() {
    let setup = Setup::cached();
    setup.worker.directory("d");
    setup.worker.file("d/a", "x");
    let d = setup.lookup("d").unwrap();
    let first = setup.fs.open_directory(d.id).unwrap();
    assert!(first.cache && !first.keep_cache);
    let half = setup.list(first.handle, 0, 2, true);
    assert!(!setup.fs.open_directory(d.id).unwrap().keep_cache, "not all of it was listed");
    assert_eq!(setup.list_all(first.handle, half.next, 100), ["a"]);
    assert!(setup.fs.open_directory(d.id).unwrap().keep_cache);
    setup.worker.directory("d");
    assert!(!setup.fs.open_directory(d.id).unwrap().keep_cache, "it has another version");
}

#[test]
fn errors_of_the_worker_arrive() {
    let setup = Setup::cached();
    setup.worker.directory("d");
    let d = setup.lookup("d").unwrap();
    let opened = setup.fs.open_directory(d.id).unwrap();
    setup.worker.remove("d");
    let mut taken = Taken::new(10, false);
    let listed = setup.runtime.block_on(setup.fs.read_directory(opened.handle, 0, &mut taken));
    assert_eq!(kind(listed), ErrorKind::NotFound);
    assert_eq!(kind(setup.fs.open_directory(d.id)), ErrorKind::NotFound);
    assert_eq!(kind(setup.getattr(d.id)), ErrorKind::NotFound);
    assert_eq!(kind(setup.getattr(4711)), ErrorKind::Stale);
}

#[test]
fn after_everything_changed_every_node_is_told_and_no_listing_is_kept() {
    let setup = Setup::cached();
    setup.worker.directory("d");
    setup.worker.file("d/a", "x");
    let d = setup.lookup("d").unwrap();
    let a = setup.lookup_in(d.id, "a").unwrap();
    setup.fs.notices().attend();
    let first = setup.fs.open_directory(d.id).unwrap();
    assert_eq!(setup.list_all(first.handle, 0, 100).len(), 3);
    assert!(setup.fs.open_directory(d.id).unwrap().keep_cache);
    setup.fs.changed_elsewhere(&[common::UfsPath::root()], true);
    assert!(!setup.fs.open_directory(d.id).unwrap().keep_cache);
    assert_eq!(setup.fs.notices().next(), Some(changed::Notice::Everything));
    let mut nodes: Vec<_> = setup.fs.all_nodes().flatten().collect();
    nodes.sort_unstable();
    assert_eq!(nodes, [ROOT, d.id, a.id]);
    let again = setup.fs.open_directory(d.id).unwrap();
    assert_eq!(setup.list_all(again.handle, 0, 100).len(), 3);
    assert!(setup.fs.open_directory(d.id).unwrap().keep_cache, "what was listed since is kept");
}
