//! Reading through a storage that fails, lies, is slow and changes: each read gives the bytes of its version or an
//! error, pages are fetched once, and all memory comes back.

#[path = "read_through/faulty.rs"]
mod faulty;
#[path = "read_through/random.rs"]
mod random;

use bytes::Bytes;
use common::{Attr, ErrorKind, worker::PagedFile};
use faulty::{Fault, Faulty, Rig, Setup, content, path, read, until};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use store::ReadOptions;
use ufs::UnderStorage;

const PAGE: u64 = 16384;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_fetched_once_for_all_its_readers() {
    for setup in [Setup::default(), Setup::without_store()] {
        let rig = setup.rig(Faulty::closed());
        let attr = rig.storage.put("x", 1, 3 * PAGE);
        let wanted = content("x", 1, 3 * PAGE);
        let mut readers = Vec::new();
        for number in 0..40_u64 {
            // Several opens are one file.
            let file = rig.open("x", &attr);
            readers.push(tokio::spawn(async move { read(&*file, PAGE + number * 10, 100).await }));
        }
        until("the request is made", || rig.storage.requests() == 1).await;
        rig.storage.gate.add_permits(1);
        for (number, reader) in readers.into_iter().enumerate() {
            let at = PAGE as usize + number * 10;
            assert!(reader.await.unwrap().unwrap() == wanted[at..at + 100]);
        }
        assert_eq!(*rig.storage.requests.lock(), [(PAGE, PAGE)]);
        rig.all_memory_is_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_stored_and_not_asked_for_again() {
    let rig = Setup::default().rig(Faulty::new());
    let size = 10 * PAGE + 77;
    let attr = rig.storage.put("dir/x", 1, size);
    let wanted = content("dir/x", 1, size);
    let file = rig.open("dir/x", &attr);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    until("all pages are stored", || (0..11).all(|page| file.is_present(page))).await;
    until("they leave memory", || (0..11).all(|page| file.page_now(page).is_none())).await;
    let before = rig.storage.requests();
    let mut bytes = vec![0; size as usize];
    assert_eq!(file.read_present(0, &mut bytes).unwrap(), size as usize);
    assert!(bytes == wanted);
    assert!(file.demand(3).await.unwrap().is_none());
    assert!(file.export().is_some());
    file.complete().await.unwrap();
    assert_eq!(rig.storage.requests(), before);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_store_small_reads_in_sequence_fetch_a_page_once() {
    let rig = Setup::without_store().rig(Faulty::new());
    let size = 20 * PAGE;
    let attr = rig.storage.put("x", 1, size);
    let wanted = content("x", 1, size);
    let file = rig.open("x", &attr);
    for at in (0..size).step_by(1024) {
        assert!(read(&*file, at, 1024).await.unwrap() == wanted[at as usize..at as usize + 1024]);
    }
    assert_eq!(rig.storage.requests(), 20);
    assert!(file.export().is_none());
    assert_eq!(file.complete().await.unwrap_err().kind(), ErrorKind::Unsupported);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_makes_few_requests_within_its_share_and_demands_join_them() {
    let rig = Setup::default().rig(Faulty::closed());
    let size = 64 * PAGE;
    let attr = rig.storage.put("x", 1, size);
    let wanted = content("x", 1, size);
    let file = rig.open("x", &attr);
    assert_eq!(file.prefetch(0, 32), 32);
    until("they are made", || rig.storage.requests() == 8).await;
    assert!(rig.storage.requests.lock().iter().all(|(_, length)| *length == 4 * PAGE));
    assert_eq!(file.prefetch(0, 32), 32, "again: nothing new");
    let load = file.demand(5).await.unwrap().unwrap();
    assert_eq!(rig.storage.requests(), 8);
    rig.storage.gate.add_permits(1000);
    assert!(load.wait_end().await.unwrap() == &wanted[5 * PAGE as usize..6 * PAGE as usize]);
    drop(load);
    // As much as the budget leaves, and it never says more than it has.
    let all = file.prefetch(0, 64);
    assert!((32..=64).contains(&all));
    // Cut at the end of the file; taken as soon as the store has caught up.
    until("the last page is taken", || file.prefetch(63, 100) == 1).await;
    assert_eq!(file.prefetch(64, 1), 0);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefetch_stops_where_memory_does() {
    let setup = Setup { budget: 8 * PAGE, ..Setup::without_store() };
    let rig = setup.rig(Faulty::closed());
    let attr = rig.storage.put("x", 1, 64 * PAGE);
    let file = rig.open("x", &attr);
    assert_eq!(file.prefetch(0, 64), 6, "a quarter is left to those who wait");
    let demanded = file.demand(40).await.unwrap();
    assert!(demanded.is_some());
    assert!(rig.pool.budget().used() <= rig.pool.budget().limit());
    rig.storage.gate.add_permits(1000);
    drop(demanded);
    let wanted = content("x", 1, 64 * PAGE);
    assert!(read(&*file, 0, 64 * PAGE as usize).await.unwrap() == wanted);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_reach_every_reader_and_the_next_one_tries_again() {
    let faults = [
        (Fault::Fail(ErrorKind::Unavailable), ErrorKind::Unavailable),
        (Fault::Fail(ErrorKind::PermissionDenied), ErrorKind::PermissionDenied),
        (Fault::Short(1), ErrorKind::Corrupt),
        (Fault::Short(PAGE), ErrorKind::Corrupt),
        (Fault::Long(1), ErrorKind::Corrupt),
        (Fault::Break(100), ErrorKind::Unavailable),
        (Fault::Hang, ErrorKind::TimedOut),
    ];
    for setup in [Setup::default(), Setup::without_store()] {
        let options = ReadOptions { deadline: Duration::from_millis(300), ..setup.options.clone() };
        let rig = Setup { options, ..setup }.rig(Faulty::closed());
        for (number, (fault, kind)) in faults.iter().enumerate() {
            let name = format!("x{number}");
            let attr = rig.storage.put(&name, 1, PAGE);
            let wanted = content(&name, 1, PAGE);
            let file = rig.open(&name, &attr);
            rig.storage.next([fault.clone()]);
            let mut readers = Vec::new();
            let load = file.demand(0).await.unwrap().unwrap();
            for _ in 0..5 {
                let load = file.demand(0).await.unwrap().unwrap();
                readers.push(tokio::spawn(async move { load.wait_end().await.map(<[u8]>::to_vec) }));
            }
            rig.storage.gate.add_permits(1);
            for reader in readers {
                assert_eq!(reader.await.unwrap().unwrap_err().kind(), *kind, "{fault:?}");
            }
            assert_eq!(load.wait_end().await.unwrap_err().kind(), *kind);
            drop(load);
            assert!(!file.is_present(0), "{fault:?}");
            rig.storage.gate.add_permits(1);
            assert!(read(&*file, 0, PAGE as usize).await.unwrap() == wanted, "{fault:?}");
        }
        rig.all_memory_is_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_arrived_are_given_before_the_page_is_complete() {
    let rig = Setup::default().rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 2 * PAGE);
    let file = rig.open("x", &attr);
    rig.storage.next([Fault::Break(5000)]);
    let load = file.demand(0).await.unwrap().unwrap();
    assert!(load.wait(100..5000).await.unwrap() == &content("x", 1, PAGE)[100..5000]);
    assert_eq!(load.wait(100..5001).await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(load);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_object_is_stale_for_good_but_what_is_stored_stays_readable() {
    let rig = Setup::default().rig(Faulty::new());
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = told.clone();
    rig.reads.on_stale(move |path| heard.lock().push(path.clone()));
    let attr = rig.storage.put("x", 1, 4 * PAGE);
    let old = rig.open("x", &attr);
    assert!(read(&*old, 0, 10).await.is_ok());
    until("the first page is stored", || old.is_present(0)).await;
    let new_attr = rig.storage.put("x", 2, 4 * PAGE);
    assert_eq!(read(&*old, PAGE, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    let before = rig.storage.requests();
    assert_eq!(read(&*old, 2 * PAGE, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(old.prefetch(1, 3), 0);
    assert_eq!(rig.storage.requests(), before, "nobody asks again");
    assert_eq!(*told.lock(), [path("x")]);
    assert!(read(&*old, 0, 10).await.unwrap() == content("x", 1, 10));
    let new = rig.open("x", &new_attr);
    assert!(read(&*new, 0, 4 * PAGE as usize).await.unwrap() == content("x", 2, 4 * PAGE));
    // An object that is back in its old state can be opened again.
    rig.storage.put("x", 1, 4 * PAGE);
    let again = rig.open("x", &attr);
    assert!(read(&*again, 0, 4 * PAGE as usize).await.unwrap() == content("x", 1, 4 * PAGE));
    drop((old, new, again));
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_small_file_is_complete_after_one_request_and_a_seeded_one_after_none() {
    let rig = Setup::default().rig(Faulty::new());
    for (number, size) in [1, 100, PAGE - 1, PAGE].into_iter().enumerate() {
        let name = format!("small{number}");
        let attr = rig.storage.put(&name, 1, size);
        let before = rig.storage.requests();
        let file = rig.open(&name, &attr);
        let other = rig.open(&name, &attr);
        let (one, two) = tokio::join!(file.complete(), other.complete());
        one.and(two).unwrap();
        assert_eq!(rig.storage.requests(), before + 1);
        check_lease(&*file, &content(&name, 1, size));

        let name = format!("seeded{number}");
        let attr = rig.storage.put(&name, 1, size);
        let mut bytes = content(&name, 1, size);
        let file = rig.reads.open_seeded(&path(&name), attr, &bytes.clone().into());
        file.complete().await.unwrap();
        check_lease(&*file, &bytes);
        assert_eq!(rig.storage.requests(), before + 1, "no request for a seeded file");

        // A part is no seed.
        let name = format!("part{number}");
        let attr = rig.storage.put(&name, 1, size + 1);
        bytes = content(&name, 1, size);
        let file = rig.reads.open_seeded(&path(&name), attr, &bytes.clone().into());
        assert!(!file.is_present(0) && file.page_now(0).is_none());
    }
    let attr = rig.storage.put("few", 1, 5 * PAGE - 3);
    let file = rig.open("few", &attr);
    file.complete().await.unwrap();
    check_lease(&*file, &content("few", 1, 5 * PAGE - 3));
    rig.storage.next([Fault::Fail(ErrorKind::PermissionDenied)]);
    let attr = rig.storage.put("refused", 1, 10);
    assert_eq!(rig.open("refused", &attr).complete().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    for size in [0, 100 * PAGE] {
        let attr = rig.storage.put("other", 1, size);
        assert_eq!(rig.open("other", &attr).complete().await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    rig.all_memory_is_back().await;
}

fn check_lease(file: &dyn PagedFile, wanted: &[u8]) {
    let lease = file.export().unwrap();
    let mut bytes = vec![0; wanted.len() + 1];
    let read = std::os::unix::fs::FileExt::read_at(&**lease.file(), &mut bytes, 0).unwrap();
    assert!(bytes[..read] == *wanted);
    assert_eq!(lease.version(), &file.attr().version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_page_begins_with_the_bytes_of_the_lookup_and_only_the_rest_is_fetched() {
    let rig = Setup::default().rig(Faulty::closed());
    let size = 3 * PAGE + 5;
    let wanted = content("x", 1, size);
    let attr = rig.storage.put("x", 1, size);
    let file = rig.reads.open_seeded(&path("x"), attr.clone(), &wanted[..1000].to_vec().into());
    assert_eq!(rig.storage.requests(), 0, "an open alone fetches nothing");
    let load = file.demand(0).await.unwrap().unwrap();
    assert!(load.wait(0..1000).await.unwrap() == &wanted[..1000], "before the storage answers");
    until("the rest is asked for", || rig.storage.requests() == 1).await;
    assert_eq!(rig.storage.requests.lock().clone(), [(1000, PAGE - 1000)]);
    rig.storage.gate.add_permits(1000);
    drop(load);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    drop(file);

    // A fetch that fails leaves nothing behind: the next one is of the whole page.
    let attr = rig.storage.put("y", 1, size);
    let wanted = content("y", 1, size);
    let file = rig.reads.open_seeded(&path("y"), attr, &wanted[..1000].to_vec().into());
    rig.storage.next([Fault::Fail(ErrorKind::PermissionDenied)]);
    let load = file.demand(0).await.unwrap().unwrap();
    assert_eq!(load.wait_end().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    drop(load);
    assert!(read(&*file, 0, size as usize).await.unwrap() == wanted);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_without_a_store_lives_in_memory_for_a_while() {
    let rig = Setup::without_store().rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 100);
    let file = rig.reads.open_seeded(&path("x"), attr, &content("x", 1, 100).into());
    assert!(read(&*file, 0, 100).await.unwrap() == content("x", 1, 100));
    assert_eq!(rig.storage.requests(), 0);
    rig.reads.trim();
    assert!(read(&*file, 0, 100).await.unwrap() == content("x", 1, 100));
    assert_eq!(rig.storage.requests(), 1);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_away_cancels_nobody() {
    let setup = Setup { budget: PAGE, ..Setup::without_store() };
    let rig = setup.rig(Faulty::closed());
    let attr = rig.storage.put("x", 1, 2 * PAGE);
    let wanted = content("x", 1, 2 * PAGE);
    let file = rig.open("x", &attr);
    // Holds all memory.
    let first = file.demand(0).await.unwrap().unwrap();
    let spawn = || {
        let file = file.clone();
        tokio::spawn(async move { read(&*file, PAGE, 100).await })
    };
    // One of these waits for memory, the others for it. Whichever goes, the rest go on.
    let readers: Vec<_> = (0..6).map(|_| spawn()).collect();
    tokio::task::yield_now().await;
    for reader in &readers[..3] {
        reader.abort();
    }
    // More than two: without memory to keep the page, a reader that comes late has it fetched again.
    rig.storage.gate.add_permits(1000);
    assert!(first.wait_end().await.unwrap() == &wanted[..PAGE as usize]);
    drop(first);
    for reader in readers.into_iter().skip(3) {
        assert!(reader.await.unwrap().unwrap() == wanted[PAGE as usize..PAGE as usize + 100]);
    }
    assert!(rig.storage.requests() >= 2);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_share_a_tiny_budget() {
    for setup in [Setup::default(), Setup::without_store()] {
        // Less memory than readers, and a store that takes one page at a time and holds few.
        let capacity = if setup.capacity > 0 { 12 * PAGE } else { 0 };
        let rig = Arc::new(Setup { budget: 4 * PAGE, queue: 1, capacity, ..setup }.rig(Faulty::new()));
        let size = 30 * PAGE;
        let attrs: Vec<_> = (0..4).map(|at| rig.storage.put(&format!("x{at}"), 1, size)).collect();
        let most = Arc::new(AtomicU64::new(0));
        let mut readers = Vec::new();
        for number in 0..48_u64 {
            let (rig, attrs, most) = (rig.clone(), attrs.clone(), most.clone());
            readers.push(tokio::spawn(async move {
                for step in 0..12_u64 {
                    let at = (number + step) as usize % attrs.len();
                    let name = format!("x{at}");
                    let file = rig.open(&name, &attrs[at]);
                    let offset = (number * 7919 + step * 104_729) % size;
                    if step % 3 == 0 {
                        file.prefetch(offset / PAGE, 4);
                    }
                    let bytes = read(&*file, offset, 2 * PAGE as usize).await.unwrap();
                    most.fetch_max(rig.pool.budget().used() as u64, SeqCst);
                    let end = (offset + 2 * PAGE).min(size) as usize;
                    assert!(bytes == content(&name, 1, size)[offset as usize..end]);
                }
            }));
        }
        for reader in readers {
            tokio::time::timeout(Duration::from_secs(120), reader).await.expect("readers wait for each other").unwrap();
        }
        assert!(most.load(SeqCst) <= 4 * PAGE);
        rig.all_memory_is_back().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_bounded() {
    let setup = Setup::default();
    let options = ReadOptions { concurrency: 4, prefetch_concurrency: 2, ..setup.options.clone() };
    let rig = Setup { options, ..setup }.rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 200 * PAGE);
    rig.storage.next(std::iter::repeat_n(Fault::Slow, 400));
    let file = rig.open("x", &attr);
    let readers: Vec<_> = (0..50)
        .map(|at| {
            let file = file.clone();
            tokio::spawn(async move {
                file.prefetch(at * 4, 8);
                read(&*file, at * 4 * PAGE, 4 * PAGE as usize).await
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert!(rig.storage.most.load(SeqCst) <= 4);
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_memory_is_given_back() {
    let setup = Setup::without_store();
    let options = ReadOptions { idle_after: Duration::from_millis(5), ..setup.options.clone() };
    let rig = Setup { options, ..setup }.rig(Faulty::new());
    let attr = rig.storage.put("x", 1, 20 * PAGE);
    let file = rig.open("x", &attr);
    read(&*file, 0, 20 * PAGE as usize).await.unwrap();
    until("memory is given back without being asked for", || {
        rig.pool.budget().used() == 0 && rig.pool.idle_bytes() == 0
    })
    .await;
}

/// A file of 20 pages of which the first `read` ones were read and stored, closed again.
async fn read_partly(rig: &Rig, name: &str, read_pages: u64) -> Arc<Attr> {
    let attr = rig.storage.put(name, 1, 20 * PAGE);
    let file = rig.open(name, &attr);
    read(&*file, 0, (read_pages * PAGE) as usize).await.unwrap();
    until("what was read is stored", || (0..read_pages).all(|page| file.is_present(page))).await;
    attr
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_lacks_little_is_completed_after_its_close() {
    let setup = Setup::default();
    let options = ReadOptions { complete_share: 0.75, ..setup.options.clone() };
    let rig = Setup { options, ..setup }.rig(Faulty::new());
    let half = read_partly(&rig, "half", 10).await;
    let most = read_partly(&rig, "most", 16).await;
    // Opened from outside: an open of the test's own would be closed too, and begin it anew.
    let store = rig.reads.store().unwrap();
    let complete = |name: &str, attr: &Arc<Attr>| {
        let full = rig.storage.uri().full_path(&path(name));
        store.open_file(common::FileId::of(&full), &attr.version, attr.size, &full).unwrap().is_complete()
    };
    until("the rest is fetched", || complete("most", &most)).await;
    let file = rig.open("most", &most);
    check_lease(&*file, &content("most", 1, 20 * PAGE));
    assert!(!complete("half", &half), "half a file is left as it is");
    drop(file);
    rig.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_large_for_its_cache_or_fails_is_not_completed() {
    let setup = Setup::default();
    let options = ReadOptions { complete_share: 0.75, ..setup.options.clone() };
    // An eighth of it is less than the file.
    let small = Setup { options: options.clone(), capacity: 100 * PAGE, ..setup.clone() }.rig(Faulty::new());
    read_partly(&small, "large", 16).await;
    let rig = Setup { options, ..setup }.rig(Faulty::new());
    let attr = rig.storage.put("failing", 1, 20 * PAGE);
    let file = rig.open("failing", &attr);
    read(&*file, 0, 16 * PAGE as usize).await.unwrap();
    until("what was read is stored", || (0..16).all(|page| file.is_present(page))).await;
    rig.storage.next((0..100).map(|_| Fault::Fail(ErrorKind::Unavailable)));
    let before = rig.storage.requests();
    drop(file);
    until("the rest is asked for", || rig.storage.requests() > before).await;
    // Given up at the first failure, and not begun anew by the next close.
    drop(rig.open("failing", &attr));
    rig.storage.faults.lock().clear();
    read_partly(&rig, "other", 5).await;
    assert!(rig.storage.requests() < before + 10, "{} requests", rig.storage.requests() - before);
    assert_eq!(small.storage.requests.lock().iter().map(|(_, length)| length).sum::<u64>(), 16 * PAGE);
    rig.all_memory_is_back().await;
    small.all_memory_is_back().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_bytes_of_files_whose_beginning_nobody_reads_hold_little_memory() {
    let setup = Setup::default();
    let rig = setup.rig(Faulty::new());
    let head = Bytes::from(vec![1; PAGE as usize / 2]);
    let files: Vec<_> = (0..200)
        .map(|at| {
            let attr = rig.storage.put(&format!("f{at}"), 1, 2 * PAGE);
            rig.reads.open_seeded(&path(&format!("f{at}")), attr, &head)
        })
        .collect();
    let used = rig.pool.budget().used();
    assert!(used > 0 && used <= rig.pool.budget().limit() / 16, "{used} bytes for the beginnings of open files");
    rig.reads.trim();
    assert_eq!(rig.pool.budget().used(), 0, "none while the memory is wanted");
    drop(files);
}
