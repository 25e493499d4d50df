use super::*;
use crate::{
    clock::Clock,
    testing::{Fault, MemoryStorage, Request},
};
use common::{page::PagePool, worker::PagedFile};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use store::{ReadOptions, ReadThrough};

struct World {
    storage: Arc<MemoryStorage>,
    worker: Arc<EmbeddedWorker>,
    pool: Arc<PagePool>,
    clock: Clock,
}

fn world(change: impl FnOnce(&mut WorkerOptions)) -> World {
    let storage = MemoryStorage::new();
    let clock = Clock::manual();
    let pool = PagePool::new(MemoryBudget::new(64 << 20));
    let mut options = WorkerOptions { clock: clock.clone(), ..WorkerOptions::default() };
    // No test depends on how long a listing takes.
    options.listing_patience = Duration::from_secs(30);
    change(&mut options);
    let handle = Handle::current();
    let reads = ReadThrough::new(storage.clone(), None, pool.clone(), ReadOptions::default(), handle.clone());
    let worker = EmbeddedWorker::over(storage.clone(), &reads, pool.budget().clone(), options, handle);
    World { storage, worker, pool, clock }
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 30 seconds");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn names(worker: &EmbeddedWorker, dir: &str) -> Result<Vec<String>> {
    let mut listing = worker.list(&path(dir)).await?;
    let mut names = Vec::new();
    while let Some(batch) = listing.next().await? {
        assert!(!batch.is_empty());
        names.extend(batch.into_iter().map(|entry| String::from_utf8_lossy(&entry.name).into_owned()));
    }
    Ok(names)
}

async fn size(worker: &EmbeddedWorker, file: &str) -> Result<u64> {
    worker.attr(&path(file), Freshness::Cached).await.map(|attr| attr.size)
}

async fn read(opened: OpenedFile) -> Result<Vec<u8>> {
    let OpenedFile::Paged(file) = opened else { panic!("not by page") };
    let file: Arc<dyn PagedFile> = file;
    let mut bytes = Vec::new();
    for page in 0..file.attr().size.div_ceil(u64::from(file.page_size())) {
        match file.demand(page).await? {
            Some(load) => bytes.extend_from_slice(load.wait_end().await?),
            None => panic!("there is no disk"),
        }
    }
    Ok(bytes)
}

#[tokio::test]
async fn attributes_are_asked_for_once_per_interval() {
    let world = world(|options| options.sync_interval = Some(Duration::from_secs(10)));
    world.storage.put("d/a", "hello");
    assert!(world.worker.attr_now(&path("d/a")).is_none());
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 5);
    for _ in 0..10 {
        assert_eq!(size(&world.worker, "d/a").await.unwrap(), 5);
        assert_eq!(world.worker.attr_now(&path("d/a")).unwrap().unwrap().size, 5);
    }
    assert_eq!(world.storage.counts().lookups(), 1);
    world.storage.put("d/a", "changed");
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 5, "within the interval");
    world.clock.advance(Duration::from_secs(10));
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 7);
    world.storage.put("d/a", "again!");
    let fresh = world.worker.attr(&path("d/a"), Freshness::Storage).await.unwrap();
    assert_eq!(fresh.size, 6);
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 6, "what was asked is known from then on");
    world.storage.put("d/a", "8 bytes.");
    world.worker.forget(&path("d/a"));
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 8);
}

#[tokio::test]
async fn a_walk_in_any_order_over_siblings_costs_a_listing() {
    let world = world(|_| {});
    for at in 0..5000u32 {
        world.storage.put(&format!("d/{at:05}"), vec![1; at as usize % 100]);
    }
    let mut at = 1u32;
    for _ in 0..5000 {
        at = (at * 7 + 3) % 5000;
        assert_eq!(size(&world.worker, &format!("d/{at:05}")).await.unwrap(), u64::from(at % 100));
    }
    assert!(world.storage.counts().lookups() <= 2, "{}", world.storage.counts().lookups());
    assert_eq!(world.storage.counts().lists(), 6);
    let missing = size(&world.worker, "d/none").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(world.storage.counts().lookups() <= 2, "the listing knows what is not there");
    world.clock.advance(Duration::from_secs(6));
    assert_eq!(size(&world.worker, "d/none").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.storage.counts().lists(), 6, "five pages are not listed again for one absent name");
}

#[tokio::test]
async fn directories_in_use_that_grew_old_together_are_listed_anew_side_by_side() {
    let world = world(|options| options.sync_interval = Some(Duration::from_secs(10)));
    for dir in 0..40 {
        for file in 0..4 {
            world.storage.put(&format!("d{dir}/{file}"), "x");
        }
    }
    for dir in 0..40 {
        names(&world.worker, &format!("d{dir}")).await.unwrap();
        // In the last ten only one name is looked for.
        let looked_for = if dir < 30 { 4 } else { 1 };
        for file in 0..looked_for {
            assert_eq!(size(&world.worker, &format!("d{dir}/{file}")).await.unwrap(), 1);
        }
    }
    let before = (world.storage.counts().lists(), world.storage.counts().lookups());
    let each = before.0 / 40;
    world.clock.advance(Duration::from_secs(10));
    world.storage.put("d7/2", "longer");
    assert_eq!(size(&world.worker, "d3/1").await.unwrap(), 1);
    eventually("the others are listed", || world.storage.counts().lists() - before.0 >= 30 * each).await;
    eventually("they are known", || world.worker.attr_now(&path("d7/2")).is_some()).await;
    for dir in 0..30 {
        let expected = if dir == 7 { 6 } else { 1 };
        assert_eq!(size(&world.worker, &format!("d{dir}/2")).await.unwrap(), expected);
    }
    assert_eq!(
        world.storage.counts().lists() - before.0,
        30 * each,
        "once each, and those that are not in use not at all"
    );
    assert_eq!(world.storage.counts().lookups(), before.1);
    assert!(world.worker.attr_now(&path("d35/0")).is_none(), "what is too old is not given out");
}

#[tokio::test]
async fn listings_without_attributes_are_not_made_for_lookups_again() {
    let world = world(|_| {});
    world.storage.set_listing_attrs(false);
    for at in 0..100 {
        world.storage.put(&format!("d/{at}"), "x");
    }
    for at in 0..100 {
        assert_eq!(size(&world.worker, &format!("d/{at}")).await.unwrap(), 1);
    }
    eventually("the one listing ends", || world.storage.counts().running.load(Ordering::SeqCst) == 0).await;
    assert!(world.storage.counts().lists() <= 2);
    assert_eq!(world.storage.counts().lookups(), 100);
}

#[tokio::test]
async fn the_same_question_is_asked_once_at_a_time() {
    let world = world(|_| {});
    world.storage.put("a", "hello");
    world.storage.close_gate();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let worker = world.worker.clone();
            tokio::spawn(async move { size(&worker, "a").await })
        })
        .collect();
    eventually("the request is under way", || world.storage.counts().lookups() == 1).await;
    // Whoever gives up takes nothing from the others, the first least of all.
    tasks[0].abort();
    world.storage.let_pass(1000);
    for task in tasks.into_iter().skip(1) {
        assert_eq!(task.await.unwrap().unwrap(), 5);
    }
    assert_eq!(world.storage.counts().lookups(), 1);
    assert!(world.worker.inner.asking.lock().is_empty());
}

#[tokio::test]
async fn a_question_that_everybody_gave_up_is_asked_again() {
    let world = world(|_| {});
    world.storage.put("a", "hello");
    world.storage.close_gate();
    let worker = world.worker.clone();
    let task = tokio::spawn(async move { size(&worker, "a").await });
    eventually("the request is under way", || world.storage.counts().lookups() == 1).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    world.storage.let_pass(1000);
    assert_eq!(size(&world.worker, "a").await.unwrap(), 5);
    assert_eq!(world.worker.inner.requests.available_permits(), WorkerOptions::default().metadata_requests);
}

#[tokio::test]
async fn failures_are_not_remembered() {
    let world = world(|_| {});
    world.storage.put("a", "hello");
    world.storage.set_faults(Some(Arc::new(|_| Some(Fault::Fail(ErrorKind::Unavailable)))));
    assert_eq!(size(&world.worker, "a").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(size(&world.worker, "a").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(names(&world.worker, "").await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.storage.set_faults(None);
    assert_eq!(size(&world.worker, "a").await.unwrap(), 5);
    assert_eq!(names(&world.worker, "").await.unwrap(), ["a"]);
}

#[tokio::test]
async fn a_listing_that_fails_in_the_middle_fails_for_its_reader() {
    let world = world(|_| {});
    world.storage.make_synthetic("d", 3000);
    world.storage.set_faults(Some(Arc::new(|request| match request {
        Request::List(_, 2) => Some(Fault::Fail(ErrorKind::TimedOut)),
        _ => None,
    })));
    assert_eq!(names(&world.worker, "d").await.unwrap_err().kind(), ErrorKind::TimedOut);
    world.storage.set_faults(None);
    assert_eq!(names(&world.worker, "d").await.unwrap().len(), 3000);
}

#[tokio::test]
async fn readers_of_one_listing_share_it_and_the_next_is_answered_from_memory() {
    let world = world(|_| {});
    world.storage.make_synthetic("d", 4500);
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let worker = world.worker.clone();
        tasks.push(tokio::spawn(async move { names(&worker, "d").await }));
    }
    for task in tasks {
        let names = task.await.unwrap().unwrap();
        assert_eq!(names.len(), 4500);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 4500);
    }
    assert_eq!(world.storage.counts().lists(), 6);
    assert_eq!(names(&world.worker, "d").await.unwrap().len(), 4500);
    assert_eq!(world.storage.counts().lists(), 6);
    assert_eq!(world.worker.attr_now(&path("d/00000007")).unwrap().unwrap().size, 8);
    assert_eq!(world.storage.counts().lookups(), 0);
    world.clock.advance(Duration::from_secs(61));
    assert_eq!(names(&world.worker, "d").await.unwrap().len(), 4500);
    assert_eq!(world.storage.counts().lists(), 12);
}

#[tokio::test]
async fn a_million_entries_stream_by_for_two_readers_in_bounded_memory() {
    let world = world(|options| {
        options.metadata_entries = 20_000;
        options.directory_entries = 10_000;
    });
    world.storage.make_synthetic("d", 1_000_000);
    let run = |worker: Arc<EmbeddedWorker>| async move {
        let mut listing = worker.list(&path("d")).await.unwrap();
        let (mut count, mut last) = (0u64, None);
        while let Some(batch) = listing.next().await.unwrap() {
            for entry in batch {
                assert!(last.as_ref().is_none_or(|last| *last < entry.name), "each once, in order");
                last = Some(entry.name);
                count += 1;
            }
        }
        count
    };
    let other = tokio::spawn(run(world.worker.clone()));
    assert_eq!(run(world.worker.clone()).await, 1_000_000);
    assert_eq!(other.await.unwrap(), 1_000_000);
    assert!(world.worker.stats().metadata_entries <= 20_000);
    assert!(world.worker.inner.cache.listing(&path("d")).is_none());
}

#[tokio::test]
async fn a_listing_that_is_dropped_stops() {
    let world = world(|_| {});
    world.storage.set_batch(10);
    world.storage.make_synthetic("d", 50_000);
    let mut listing = world.worker.list(&path("d")).await.unwrap();
    listing.next().await.unwrap();
    drop(listing);
    eventually("the flight ends", || world.worker.inner.lister.under_way(&path("d")).is_none()).await;
    assert!(world.storage.counts().lists() < 5000);
}

#[tokio::test]
async fn a_file_is_no_directory_and_nothing_is_none() {
    let world = world(|_| {});
    world.storage.put("f", "x");
    assert_eq!(names(&world.worker, "f").await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(names(&world.worker, "none").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(world.worker.attr_now(&path("none")).unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    world.storage.make_dir("empty");
    assert!(names(&world.worker, "empty").await.unwrap().is_empty());
    assert!(names(&world.worker, "empty").await.unwrap().is_empty());
    assert_eq!(world.worker.open(&path("empty"), Freshness::Cached).await.unwrap_err().kind(), ErrorKind::IsADirectory);
}

#[tokio::test]
async fn a_walk_finds_its_listings_made_and_asks_for_each_once() {
    let world = world(|_| {});
    let mut expected = 1;
    for a in 0..10 {
        for b in 0..10 {
            for f in 0..3 {
                world.storage.put(&format!("a{a}/b{b}/f{f}"), "x");
            }
            expected += 1;
        }
        expected += 1;
    }
    world.storage.set_latency(Duration::from_millis(2));
    let mut stack = vec![String::new()];
    let (mut visited, mut files) = (0, 0);
    while let Some(dir) = stack.pop() {
        visited += 1;
        let mut below: Vec<String> = Vec::new();
        for name in names(&world.worker, &dir).await.unwrap() {
            let full = format!("{dir}/{name}");
            let attr = world.worker.attr(&path(&full), Freshness::Cached).await.unwrap();
            match attr.kind {
                FileKind::Directory => below.push(full),
                _ => files += 1,
            }
        }
        stack.extend(below.into_iter().rev());
    }
    assert_eq!((visited, files), (expected, 300));
    eventually("what was started ends", || world.storage.counts().running.load(Ordering::SeqCst) == 0).await;
    // Two pages each: the entries, and the end.
    assert_eq!(world.storage.counts().lists(), 2 * expected, "each directory once");
    assert_eq!(world.storage.counts().lookups(), 0);
    let most = world.storage.counts().most_running.load(Ordering::SeqCst);
    assert!((2..=13).contains(&most), "{most} at the same time");
}

#[tokio::test]
async fn one_directory_looked_at_lists_no_other() {
    let world = world(|_| {});
    for at in 0..20 {
        world.storage.put(&format!("d{at}/f"), "x");
    }
    names(&world.worker, "").await.unwrap();
    names(&world.worker, "d3").await.unwrap();
    eventually("all ends", || world.storage.counts().running.load(Ordering::SeqCst) == 0).await;
    assert_eq!(world.storage.counts().lists(), 4);
}

#[tokio::test]
async fn a_cold_small_file_takes_one_request_from_lookup_to_bytes() {
    let world = world(|_| {});
    world.storage.put("d/a", "hello");
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 5);
    let opened = world.worker.open_now(&path("d/a")).unwrap().unwrap();
    assert_eq!(read(opened).await.unwrap(), b"hello");
    assert_eq!(world.storage.counts().lookups(), 1);
    assert_eq!(world.storage.counts().reads.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn first_bytes_of_another_version_are_not_used() {
    let world = world(|_| {});
    world.storage.put("d/a", "hello");
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 5);
    world.storage.put("d/a", "HELLO");
    let opened = world.worker.open(&path("d/a"), Freshness::Storage).await.unwrap();
    assert_eq!(read(opened).await.unwrap(), b"HELLO");
}

#[tokio::test]
async fn a_version_that_proves_gone_is_forgotten() {
    let world = world(|options| options.head_bytes = 0);
    world.storage.put("d/a", "hello");
    let opened = world.worker.open(&path("d/a"), Freshness::Cached).await.unwrap();
    world.storage.put("d/a", "changed");
    assert_eq!(read(opened).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(size(&world.worker, "d/a").await.unwrap(), 7);
    let opened = world.worker.open(&path("d/a"), Freshness::Cached).await.unwrap();
    assert_eq!(read(opened).await.unwrap(), b"changed");
}

#[tokio::test]
async fn the_memory_of_first_bytes_is_given_back() {
    let world = world(|options| options.clock = Clock::system());
    for at in 0..10 {
        world.storage.put(&format!("d{at}/a"), vec![1; 50_000]);
        assert_eq!(size(&world.worker, &format!("d{at}/a")).await.unwrap(), 50_000);
    }
    assert!(world.pool.budget().used() > 0);
    eventually("memory is given back", || world.pool.budget().used() == 0).await;
}

#[tokio::test]
async fn without_a_sync_interval_every_lookup_asks() {
    let world = world(|options| options.sync_interval = Some(Duration::ZERO));
    world.storage.put("d/a", "x");
    for len in 1..5 {
        world.storage.put("d/a", vec![0; len]);
        assert_eq!(size(&world.worker, "d/a").await.unwrap(), len as u64);
        assert!(world.worker.attr_now(&path("d/a")).is_none());
        assert_eq!(names(&world.worker, "d").await.unwrap(), ["a"]);
    }
    assert_eq!(world.storage.counts().lookups(), 4);
}

#[tokio::test]
async fn the_number_of_requests_at_once_is_bounded() {
    let world = world(|options| options.metadata_requests = 4);
    world.storage.set_latency(Duration::from_millis(1));
    let mut tasks = Vec::new();
    for at in 0..100 {
        world.storage.put(&format!("d{at}/f"), "x");
        let worker = world.worker.clone();
        tasks.push(tokio::spawn(async move { size(&worker, &format!("d{at}/f")).await }));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), 1);
    }
    assert!(world.storage.counts().most_running.load(Ordering::SeqCst) <= 4);
}

#[tokio::test]
async fn space_is_that_of_the_cache() {
    let world = world(|_| {});
    let space = world.worker.stat_fs();
    assert_eq!((space.block_size, space.blocks, space.name_max), (4096, 0, 255));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_counts_while_the_storage_is_away() {
    let world = world(|_| {});
    world.storage.put("dir/file", "hello");
    assert_eq!(size(&world.worker, "dir/file").await.unwrap(), 5);
    assert_eq!(names(&world.worker, "dir").await.unwrap(), ["file"]);
    world.clock.advance(Duration::from_secs(3600));
    world.storage.set_faults(Some(Arc::new(|_| Some(Fault::Fail(ErrorKind::Unavailable)))));
    assert_eq!(size(&world.worker, "dir/file").await.unwrap(), 5);
    assert_eq!(names(&world.worker, "dir").await.unwrap(), ["file"]);
    assert_eq!(size(&world.worker, "dir/other").await.unwrap_err().kind(), ErrorKind::Unavailable);
    // Back again: what is old is asked for anew.
    world.storage.set_faults(None);
    world.storage.put("dir/file", "longer than before");
    let back = Instant::now() + Duration::from_secs(30);
    while size(&world.worker, "dir/file").await.unwrap() == 5 {
        assert!(Instant::now() < back, "the old size counts for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
