use super::*;
use common::page::PagePool;
use common::{budget::MemoryBudget, budget::Purpose};
use std::{fs, path::Path, time::Instant};

const PAGE: u32 = 4096;

fn options(path: &Path, pages: u64) -> StoreOptions {
    StoreOptions {
        dirs: vec![DirOptions { path: path.to_owned(), capacity: pages * u64::from(PAGE) }],
        page_size: PAGE,
        high_watermark: 1.0,
        low_watermark: 1.0,
        ..StoreOptions::default()
    }
}

fn open(path: &Path, pages: u64) -> Arc<PageStore> {
    PageStore::open(options(path, pages)).unwrap()
}

fn file(store: &PageStore, name: &str, size: u64) -> Arc<StoredFile> {
    store.open_file(FileId::of(name.as_bytes()), &Version::new("v1"), size, name.as_bytes()).unwrap()
}

fn content(name: &str, page: u64, len: u64) -> Vec<u8> {
    let seed = name.bytes().fold(page + 1, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    (0..len).map(|at| (seed.wrapping_mul(at + 7) >> 3) as u8).collect()
}

fn fill(file: &StoredFile, name: &str, page: u64) -> Stored {
    file.write_page(page, &content(name, page, file.page_len(page)))
}

/// What a page reads as; none when it is absent.
fn read(file: &StoredFile, page: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; file.page_len(page) as usize];
    let read = file.read(page * u64::from(PAGE), &mut bytes).unwrap();
    assert!(read == 0 || read == bytes.len());
    (read > 0).then_some(bytes)
}

fn page_files(path: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(path.join("alluxio-pages/pages")).unwrap();
    folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap()).map(|file| file.unwrap().path()).collect()
}

#[test]
fn a_restart_finds_pages_without_reading_them_and_paths_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let size = 3 * 4096 + 100;
    {
        let store = open(dir.path(), 100);
        let a = file(&store, "/a\u{e9}", size);
        for page in [0, 1, 3] {
            assert_eq!(fill(&a, "/a", page), Stored::Written);
            assert_eq!(fill(&a, "/a", page), Stored::Present);
        }
        assert!(a.export().is_none(), "a page is missing");
    }
    let store = open(dir.path(), 100);
    let stats = store.stats();
    assert_eq!((stats.pages, stats.files, stats.used, stats.read_bytes), (3, 1, 3 * 4096, 0));
    let a = file(&store, "/a\u{e9}", size);
    assert_eq!(a.full_path(), "/a\u{e9}".as_bytes());
    assert!(a.is_present(0) && a.is_present(1) && !a.is_present(2) && a.is_present(3) && !a.is_present(4));
    for page in [0, 1, 3] {
        assert_eq!(read(&a, page), Some(content("/a", page, a.page_len(page))));
    }
    let mut run = vec![0; 3 * 4096];
    assert_eq!(a.read(10, &mut run).unwrap(), 2 * 4096 - 10, "the run of present pages");
    assert_eq!(a.read(size, &mut run).unwrap(), 0);
    assert_eq!(fill(&a, "/a", 2), Stored::Written);
    let lease = a.export().unwrap();
    let mut whole = Vec::new();
    std::io::Read::read_to_end(&mut &**lease.file(), &mut whole).unwrap();
    let wanted: Vec<u8> = (0..4).flat_map(|page| content("/a", page, a.page_len(page))).collect();
    assert!(whole == wanted);
}

#[test]
fn another_version_or_size_is_another_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 100);
    let a = file(&store, "/a", 4096);
    fill(&a, "/a", 0);
    let id = FileId::of(b"/a");
    for (version, size) in [("v2", 4096), ("v1", 4097), ("", 4096)] {
        let other = store.open_file(id, &Version::new(version), size, b"/a").unwrap();
        assert!(!other.is_present(0));
    }
    assert!(file(&store, "/a", 4096).is_present(0));
    assert!(Arc::ptr_eq(&a, &file(&store, "/a", 4096)));
}

#[test]
fn damaged_pages_are_absent_and_can_be_stored_again() {
    for damage in ["garbage", "truncate", "remove"] {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = open(dir.path(), 100);
            let a = file(&store, "/a", 3 * 4096);
            (0..3).for_each(|page| assert_eq!(fill(&a, "/a", page), Stored::Written));
        }
        let path = page_files(dir.path()).pop().unwrap();
        match damage {
            "garbage" => {
                let mut bytes = fs::read(&path).unwrap();
                bytes[4096..8192].fill(0xee);
                fs::write(&path, bytes).unwrap();
            }
            "truncate" => fs::File::options().write(true).open(&path).unwrap().set_len(5000).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
        let store = open(dir.path(), 100);
        let a = file(&store, "/a", 3 * 4096);
        assert!(a.export().is_none(), "{damage}");
        for page in 0..3 {
            let read = read(&a, page);
            assert!(read.is_none() || read.unwrap() == content("/a", page, 4096), "{damage}");
        }
        assert!(!a.is_present(1), "{damage}");
        if damage == "garbage" {
            assert!(a.is_present(0) && a.is_present(2), "the others are still good");
        }
        assert!(store.stats().corrupt_pages > 0);
        for page in 0..3 {
            assert_ne!(fill(&a, "/a", page), Stored::Bypassed, "{damage}");
            assert_eq!(read(&a, page), Some(content("/a", page, 4096)), "{damage}");
        }
        assert!(a.export().is_some(), "{damage}");
        assert_eq!(store.stats().used, 3 * 4096, "{damage}");
    }
}

#[test]
fn the_least_recently_used_go_first_and_capacity_holds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 10);
    let names: Vec<String> = (0..30).map(|at| format!("/f{at}")).collect();
    for name in &names[..10] {
        assert_eq!(fill(&file(&store, name, 4096), name, 0), Stored::Written);
    }
    // The first is used again, the second is not.
    assert!(read(&file(&store, &names[0], 4096), 0).is_some());
    assert_eq!(fill(&file(&store, &names[10], 4096), &names[10], 0), Stored::Written);
    assert!(file(&store, &names[0], 4096).is_present(0));
    assert!(!file(&store, &names[1], 4096).is_present(0));
    for name in &names[11..] {
        assert_eq!(fill(&file(&store, name, 4096), name, 0), Stored::Written);
        assert!(store.stats().used <= 10 * 4096);
    }
    let stats = store.stats();
    assert_eq!((stats.pages, stats.files, stats.evicted_pages), (10, 10, 20));
    assert_eq!(page_files(dir.path()).len(), 10, "evicted files are gone from disk");
}

#[test]
fn a_large_file_loses_single_pages_and_a_file_larger_than_the_cache_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 20);
    let large = file(&store, "/large", 200 * 4096);
    for page in 0..200 {
        assert_eq!(fill(&large, "/large", page), Stored::Written);
        assert_eq!(read(&large, page), Some(content("/large", page, 4096)));
        assert!(store.stats().used <= 20 * 4096);
    }
    let present = (0..200).filter(|page| large.is_present(*page)).count();
    assert_eq!(present, 20);
    assert_eq!(store.stats().pages, 20);
    for page in 0..200 {
        assert!(read(&large, page).is_none_or(|bytes| bytes == content("/large", page, 4096)));
    }
    use std::os::unix::fs::MetadataExt;
    let blocks = fs::metadata(page_files(dir.path()).pop().unwrap()).unwrap().blocks();
    assert!(blocks * 512 <= 40 * 4096, "holes give the space back: {blocks} blocks");
}

#[test]
fn a_borrowed_file_keeps_its_bytes_through_a_restart_of_the_lender() {
    let dir = tempfile::tempdir().unwrap();
    let lending = || PageStore::open(StoreOptions { punch: false, ..options(dir.path(), 100) }).unwrap();
    let lease = {
        let store = lending();
        let large = file(&store, "/large", 60 * 4096);
        (0..60).for_each(|page| assert_eq!(fill(&large, "/large", page), Stored::Written));
        let lease = large.export().unwrap();
        store.shutdown();
        lease
    };
    let store = lending();
    let other = file(&store, "/other", 90 * 4096);
    (0..90).for_each(|page| {
        fill(&other, "/other", page);
    });
    assert!((0..60).any(|page| !file(&store, "/large", 60 * 4096).is_present(page)), "something had to go");
    use std::os::unix::fs::FileExt;
    for page in 0..60u64 {
        let mut bytes = vec![0; 4096];
        lease.file().read_exact_at(&mut bytes, page * 4096).unwrap();
        assert!(bytes == content("/large", page, 4096), "page {page} changed under its borrower");
    }
}

#[test]
fn what_was_exported_keeps_its_bytes_and_its_space_until_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 40);
    let a = file(&store, "/a", 30 * 4096);
    (0..30).for_each(|page| assert_eq!(fill(&a, "/a", page), Stored::Written));
    let lease = a.export().unwrap();
    let wanted: Vec<u8> = (0..30).flat_map(|page| content("/a", page, 4096)).collect();
    let whole = |lease: &common::worker::FileLease| {
        let mut bytes = vec![0; 30 * 4096];
        std::os::unix::fs::FileExt::read_exact_at(&**lease.file(), &mut bytes, 0).unwrap();
        bytes
    };
    // Others are evicted first; then the file is unlinked, but nothing of its bytes goes.
    for at in 0..60 {
        let name = format!("/f{at}");
        fill(&file(&store, &name, 4096), &name, 0);
        assert!(whole(&lease) == wanted);
        assert!(store.stats().used <= 40 * 4096);
    }
    a.evict_all();
    assert!(!a.is_present(0) && store.stats().used <= 40 * 4096);
    assert!(store.stats().used >= 30 * 4096, "unlinked bytes count while they are open");
    assert!(whole(&lease) == wanted);
    drop(lease);
    assert!(store.stats().used <= 10 * 4096);
    // A new file on disk is another one.
    assert_eq!(fill(&a, "/a", 3), Stored::Written);
    assert_eq!(read(&a, 3), Some(content("/a", 3, 4096)));
}

#[test]
fn leased_files_are_evicted_only_when_nothing_else_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 10);
    let leases: Vec<_> = (0..9)
        .map(|at| {
            let name = format!("/leased{at}");
            let leased = file(&store, &name, 4096);
            fill(&leased, &name, 0);
            leased.export().unwrap()
        })
        .collect();
    for at in 0..20 {
        let name = format!("/other{at}");
        assert_eq!(fill(&file(&store, &name, 4096), &name, 0), Stored::Written);
    }
    assert!((0..9).all(|at| file(&store, &format!("/leased{at}"), 4096).is_present(0)));
    drop(leases);
    assert_eq!(store.stats().used, 10 * 4096);
}

#[test]
fn mistakes_are_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |options: StoreOptions, word: &str| {
        let error = PageStore::open(options).unwrap_err();
        let line = error.to_string();
        assert!(line.contains(word) && !line.contains('\n'), "{line}");
        error.kind()
    };
    let plain = dir.path().join("plain");
    fs::write(&plain, b"x").unwrap();
    assert_eq!(refused(options(&plain, 10), "not a directory"), ErrorKind::InvalidArgument);
    refused(options(&plain.join("below"), 10), "not a directory");
    let taken = dir.path().join("taken");
    fs::create_dir_all(&taken).unwrap();
    fs::write(taken.join("alluxio-pages"), b"x").unwrap();
    refused(options(&taken, 10), "alluxio-pages in it is not a directory");
    let link = dir.path().join("link");
    fs::create_dir_all(&link).unwrap();
    std::os::unix::fs::symlink("/", link.join("alluxio-pages")).unwrap();
    refused(options(&link, 10), "not a directory");
    refused(options(dir.path(), 1 << 50), "larger than its disk");
    let small = StoreOptions { page_size: 8192, ..options(dir.path(), 1) };
    refused(small, "less than one page");
    refused(StoreOptions { page_size: 5000, ..options(dir.path(), 10) }, "multiple of 4096");
    refused(StoreOptions { low_watermark: 0.9, high_watermark: 0.8, ..options(dir.path(), 10) }, "watermarks");
    let used = dir.path().join("used");
    let held = open(&used, 10);
    assert_eq!(refused(options(&used, 10), "this process already"), ErrorKind::Busy);
    drop(held);
    drop(open(&used, 10));
    fs::write(used.join("alluxio-pages/lock"), b"4711").unwrap();
    let file = fs::File::open(used.join("alluxio-pages/lock")).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error);
    refused(options(&used, 10), "process 4711");
    drop(lock);
    if common::attr::process_owner().0 == 0 {
        let foreign = dir.path().join("foreign");
        fs::create_dir_all(foreign.join("alluxio-pages")).unwrap();
        std::os::unix::fs::chown(foreign.join("alluxio-pages"), Some(12345), None).unwrap();
        refused(options(&foreign, 10), "belongs to user 12345");
    }
}

#[test]
fn the_folder_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("alluxio-pages");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let _store = open(dir.path(), 10);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_broken_directory_is_left_out_and_the_others_serve() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
    fs::create_dir_all(bad.join("alluxio-pages")).unwrap();
    fs::write(bad.join("alluxio-pages/pages"), b"not a folder").unwrap();
    let mut both = options(&bad, 10);
    let store = PageStore::open(both.clone()).unwrap();
    assert!(store.is_off());
    assert!(store.open_file(FileId::of(b"/a"), &Version::new("v"), 10, b"/a").is_none());
    assert!(store.stats().dirs[0].problem.is_some());
    drop(store);
    both.dirs.extend(options(&good, 10).dirs);
    let store = PageStore::open(both).unwrap();
    let a = file(&store, "/a", 4096);
    assert_eq!(fill(&a, "/a", 0), Stored::Written);
    assert_eq!(read(&a, 0), Some(content("/a", 0, 4096)));
    assert_eq!(store.stats().dirs.len(), 2);
    // A journal of zeros: the cache starts empty.
    drop((a, store));
    fs::write(good.join("alluxio-pages/journal"), [0; 4096]).unwrap();
    let store = open(&good, 10);
    assert_eq!(store.stats().pages, 0);
    assert_eq!(fill(&file(&store, "/a", 4096), "/a", 0), Stored::Written);
    drop(store);
    assert_eq!(open(&good, 10).stats().pages, 1);
}

#[test]
fn no_capacity_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 0);
    assert!(store.is_off());
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "the directory is left alone");
}

#[test]
fn a_directory_that_is_down_is_bypassed_until_a_probe_works() {
    let dir = tempfile::tempdir().unwrap();
    let health = HealthOptions { probe_interval: Duration::from_millis(10), ..HealthOptions::default() };
    let store = PageStore::open(StoreOptions { health, ..options(dir.path(), 10) }).unwrap();
    let a = file(&store, "/a", 2 * 4096);
    assert_eq!(fill(&a, "/a", 0), Stored::Written);
    // A folder in the way of the probe: it fails as long as that stands.
    let probe = dir.path().join("alluxio-pages/probe");
    fs::create_dir(&probe).unwrap();
    assert!(store.dirs[0].health.hung(Instant::now()));
    assert!(!a.is_present(0) && read(&a, 0).is_none() && a.export().is_none());
    assert_eq!(fill(&a, "/a", 1), Stored::Bypassed);
    assert!(store.open_file(FileId::of(b"/new"), &Version::new("v"), 10, b"/new").is_none());
    let pool = PagePool::new(MemoryBudget::new(1 << 20));
    let (load, _writer) = pool.try_load(4096, Purpose::Demand).unwrap();
    assert!(store.submit(&a, 1, load, Box::new(|_| {})).is_err());
    fs::remove_dir(&probe).unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while store.stats().dirs[0].health == HealthState::Down {
        assert!(Instant::now() < until, "the probe never worked");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(read(&a, 0), Some(content("/a", 0, 4096)));
    assert_eq!(fill(&a, "/a", 1), Stored::Written);
}

#[test]
fn open_descriptors_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = PageStore::open(StoreOptions { max_open_files: 8, ..options(dir.path(), 1000) }).unwrap();
    for round in 0..2 {
        for at in 0..100 {
            let name = format!("/f{at}");
            let one = file(&store, &name, 4096);
            if round == 0 {
                fill(&one, &name, 0);
            }
            assert_eq!(read(&one, 0), Some(content(&name, 0, 4096)));
        }
    }
    let open = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .filter(|path| path.starts_with(dir.path()) && path.to_string_lossy().contains("/pages/"))
        .count();
    assert!(open <= 10, "{open} page files are open");
}

#[test]
fn the_journal_stays_small_and_true() {
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("alluxio-pages/journal");
    {
        let store = open(dir.path(), 10);
        for at in 0..20_000 {
            let name = format!("/f{}", at % 40);
            fill(&file(&store, &name, 4096), &name, 0);
            if at % 1000 == 0 {
                store.flush();
            }
        }
        store.flush();
        assert!(fs::metadata(&journal).unwrap().len() < 2 << 20);
    }
    let store = open(dir.path(), 10);
    assert_eq!(store.stats().pages, 10);
    for at in 0..40 {
        let name = format!("/f{at}");
        let one = file(&store, &name, 4096);
        assert!(read(&one, 0).is_none_or(|bytes| bytes == content(&name, 0, 4096)));
    }
    assert_eq!(store.stats().corrupt_pages, 0);
}

#[test]
fn files_that_no_journal_knows_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), 10);
    let a = file(&store, "/a", 4096);
    fill(&a, "/a", 0);
    let known = page_files(dir.path()).pop().unwrap();
    let hex = FileId::of(b"/orphan").hex();
    let folder = dir.path().join("alluxio-pages/pages").join(&hex[..2]);
    fs::create_dir_all(&folder).unwrap();
    let orphan = folder.join(format!("{hex}-{:016x}", 1));
    let other = known.with_file_name("README");
    fs::write(&orphan, b"x").unwrap();
    fs::write(&other, b"x").unwrap();
    startup::sweep(&store.dirs[0], std::time::SystemTime::now() + Duration::from_secs(3600), || false);
    assert!(known.exists() && other.exists() && !orphan.exists());
}

#[test]
fn the_queue_is_bounded_and_everybody_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = PageStore::open(StoreOptions { max_queued_bytes: 4096, ..options(dir.path(), 100) }).unwrap();
    let pool = PagePool::new(MemoryBudget::new(1 << 20));
    let a = file(&store, "/a", 50 * 4096);
    let (told, heard) = std::sync::mpsc::channel();
    let mut taken = 0;
    for page in 0..50 {
        let (load, mut writer) = pool.try_load(4096, Purpose::Demand).unwrap();
        writer.append(&content("/a", page, 4096));
        writer.finish().unwrap();
        let told = told.clone();
        taken +=
            usize::from(store.submit(&a, page, load, Box::new(move |present| told.send(present).unwrap())).is_ok());
    }
    store.shutdown();
    drop(told);
    let outcomes: Vec<bool> = heard.iter().collect();
    assert_eq!(outcomes.len(), taken);
    assert!(taken > 0 && outcomes.iter().all(|present| *present));
    assert_eq!((0..50).filter(|page| a.is_present(*page)).count(), taken);
    assert_eq!(pool.budget().used(), 0);
    assert_eq!(fill(&a, "/a", 49), Stored::Bypassed, "nothing is stored after the shutdown");
}
