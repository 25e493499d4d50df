//! Objects that are written through a worker's handle.

use super::*;
use common::change::{RenameMode, SetAttr};

const ME: Caller = Caller { uid: 0, gid: 0 };

impl Setup {
    fn writable() -> Self {
        let setup = Self::passing();
        setup.worker.writable.store(true, Ordering::Relaxed);
        setup
    }

    fn create(&self, name: &str) -> Result<(Entry, Opened)> {
        let flags = libc::O_WRONLY | libc::O_CREAT;
        self.runtime.block_on(self.fs.create(ROOT, name.as_bytes(), flags, 0o644, ME, &self.kernel))
    }

    fn write(&self, opened: &Opened, offset: u64, text: &str, append: bool) {
        assert!(self.fs.write_now(opened.handle, offset, text.as_bytes(), append, false).is_none());
        let data = bytes::Bytes::copy_from_slice(text.as_bytes());
        self.runtime.block_on(self.fs.write(opened.handle, offset, data, append, false)).unwrap();
    }

    fn flush(&self, id: u64, opened: &Opened) -> Result<()> {
        self.runtime.block_on(self.fs.flush(id, opened.handle))
    }

    fn close(&self, id: u64, opened: &Opened) {
        self.fs.release(id, opened.handle).unwrap();
    }
}

#[test]
fn what_one_handle_wrote_the_others_read_and_close_publishes_it() {
    let setup = Setup::writable();
    let (file, writer) = setup.create("f").unwrap();
    assert!(writer.flush && writer.backing.is_none() && !file.lasting);
    setup.write(&writer, 0, "hello", false);
    setup.write(&writer, 0, " world", true);
    assert_eq!(setup.getattr(file.id).unwrap().size, 11);
    let again = setup.lookup("f").unwrap();
    assert_eq!((again.id, again.attr.size, again.lasting), (file.id, 11, false));
    let reader = setup.open(file.id).unwrap();
    assert_eq!(setup.read(reader.handle, 0, 99).unwrap(), b"hello world");
    let second = setup.open_to_write(file.id, libc::O_RDWR).unwrap();
    setup.write(&second, 0, "J", false);
    assert_eq!(setup.read(reader.handle, 0, 5).unwrap(), b"Jello");
    setup.flush(file.id, &writer).unwrap();
    setup.flush(file.id, &writer).unwrap();
    assert_eq!(setup.worker.published.load(Ordering::Relaxed), 2, "each close publishes, of a forked child too");
    setup.close(file.id, &writer);
    setup.close(file.id, &second);
    setup.release(file.id, &reader);
    let after = setup.lookup("f").unwrap();
    assert_eq!((after.id, after.attr.size, after.lasting), (file.id, 11, true));
    let reader = setup.open(file.id).unwrap();
    assert!(reader.backing.is_some(), "closed, it is a file as any other");
    setup.release(file.id, &reader);
    assert_eq!(setup.fs.status().open_handles, 0);
}

#[test]
fn close_says_why_nothing_was_published() {
    let setup = Setup::writable();
    let (file, writer) = setup.create("f").unwrap();
    setup.write(&writer, 0, "refuse", false);
    assert_eq!(kind(setup.flush(file.id, &writer)), ErrorKind::QuotaExceeded);
    assert_eq!(kind(setup.runtime.block_on(setup.fs.sync(file.id, writer.handle, false))), ErrorKind::QuotaExceeded);
    let shorter = SetAttr { size: Some(1), ..SetAttr::default() };
    assert_eq!(setup.runtime.block_on(setup.fs.set_attr(file.id, shorter, ME)).unwrap().attr.size, 1);
    setup.flush(file.id, &writer).unwrap();
    setup.close(file.id, &writer);
}

#[test]
fn readers_of_a_version_keep_it_when_somebody_begins_to_write() {
    let setup = Setup::writable();
    setup.worker.file("f", "old");
    let old = setup.lookup("f").unwrap();
    let reader = setup.open(old.id).unwrap();
    assert_eq!(kind(setup.open_to_write(old.id, libc::O_WRONLY | libc::O_TRUNC)), ErrorKind::Stale);
    let new = setup.lookup("f").unwrap();
    assert_ne!(new.id, old.id, "one inode is read in one way");
    assert_eq!(new.attr.size, 3, "the first attempt changed nothing");
    let writer = setup.open_to_write(new.id, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    setup.write(&writer, 0, "new text", false);
    setup.flush(new.id, &writer).unwrap();
    assert_eq!(setup.getattr(old.id).unwrap().size, 3);
    setup.close(new.id, &writer);
    setup.release(old.id, &reader);
    assert_eq!(setup.lookup("f").unwrap().attr.size, 8);
}

#[test]
fn names_of_objects_move_and_go_with_their_nodes() {
    let setup = Setup::writable();
    setup.worker.file("a", "text");
    let a = setup.lookup("a").unwrap();
    let run = |from: &str, to: &str| {
        setup.runtime.block_on(setup.fs.rename((ROOT, from.as_bytes()), (ROOT, to.as_bytes()), RenameMode::Replace))
    };
    run("a", "b").unwrap();
    assert_eq!(setup.lookup("b").unwrap().id, a.id);
    assert_eq!(kind(setup.lookup("a")), ErrorKind::NotFound);
    assert_eq!(kind(run("a", "c")), ErrorKind::NotFound);
    setup.runtime.block_on(setup.fs.unlink(ROOT, b"b")).unwrap();
    assert_eq!(kind(setup.getattr(a.id)), ErrorKind::Stale);
}

#[test]
fn a_mount_for_reading_takes_nothing_though_its_storage_would() {
    let setup = Setup::with(FsOptions { read_only: true, ..FsOptions::default() });
    setup.worker.writable.store(true, Ordering::Relaxed);
    assert!(!setup.fs.takes_changes());
    assert_eq!(kind(setup.create("f")), ErrorKind::ReadOnly);
    assert_eq!(kind(setup.runtime.block_on(setup.fs.unlink(ROOT, b"f"))), ErrorKind::ReadOnly);
}
