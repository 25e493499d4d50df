use super::*;
use crate::{
    options::ClientOptions,
    testing::{FakeFile, FakeWorker, PAGE, eventually},
};
use proptest::prelude::*;

const MIB: usize = 1 << 20;

fn content(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9) ^ (at >> 8) ^ seed) as u8).collect()
}

fn shared(worker: &FakeWorker, options: ClientOptions) -> Arc<ClientShared> {
    ClientShared::new(options, worker.pool().budget().clone())
}

fn reader(worker: &FakeWorker, file: Arc<FakeFile>) -> FileReader {
    FileReader::new(file, shared(worker, ClientOptions::default()))
}

#[tokio::test]
async fn what_lies_in_one_page_in_memory_is_not_copied() {
    let worker = FakeWorker::new(8 * MIB);
    let bytes = content(PAGE as usize * 3, 1);
    let file = worker.put("f", bytes.clone());
    worker.close_gate();
    let reader = reader(&worker, file);
    assert!(reader.read_now(10, 100).is_none());
    let reading = reader.read(10, 100);
    tokio::pin!(reading);
    worker.let_pass(100);
    let data = reading.await.unwrap();
    assert!(matches!(data, ReadData::Page(..)));
    assert_eq!(&*data, &bytes[10..110]);
    eventually("the page is stored", || reader.paged().is_present(0)).await;
    drop(data);
    let data = reader.read_now(10, 100).unwrap().unwrap();
    assert!(matches!(data, ReadData::Owned(_)));
    assert_eq!(&*data, &bytes[10..110]);
}

#[tokio::test]
async fn reads_are_short_only_at_the_end() {
    let worker = FakeWorker::new(8 * MIB);
    let bytes = content(PAGE as usize * 2 + 77, 2);
    let reader = reader(&worker, worker.put("f", bytes.clone()));
    for (offset, len) in [(0, MIB), (PAGE as u64 - 1, 2), (PAGE as u64 * 2, 77), (PAGE as u64 * 2 + 76, 500), (5, 0)] {
        let end = (offset as usize + len).min(bytes.len());
        assert_eq!(&*reader.read_at(offset, len).await.unwrap(), &bytes[offset as usize..end]);
    }
    for offset in [bytes.len() as u64, bytes.len() as u64 + 1, u64::MAX] {
        assert!(reader.read_at(offset, 10).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_passing_failure_is_tried_again_and_a_lasting_one_is_reported() {
    let worker = FakeWorker::new(8 * MIB);
    let bytes = content(PAGE as usize * 4, 3);
    let file = worker.put("f", bytes.clone());
    worker.set_fault(Some(Arc::new(|_, tries| (tries < 2).then_some(ErrorKind::Unavailable))));
    let reader = reader(&worker, file);
    assert_eq!(&*reader.read_at(100, PAGE as usize * 2).await.unwrap(), &bytes[100..100 + PAGE as usize * 2]);
    let other = worker.put("g", bytes.clone());
    worker.set_fault(Some(Arc::new(|_, _| Some(ErrorKind::Unavailable))));
    let reader = super::tests::reader(&worker, other);
    let tries = worker.fetches();
    assert_eq!(reader.read_at(20_000, 10).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(worker.fetches() > tries + 1);
    worker.set_fault(Some(Arc::new(|_, _| Some(ErrorKind::PermissionDenied))));
    assert_eq!(reader.read_at(20_000, 10).await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    worker.heal();
    assert_eq!(&*reader.read_at(20_000, 10).await.unwrap(), &bytes[20_000..20_010]);
}

#[tokio::test]
async fn a_version_that_is_gone_is_stale_at_once() {
    let worker = FakeWorker::new(8 * MIB);
    let reader = reader(&worker, worker.put("f", content(PAGE as usize * 4, 3)));
    worker.replace_behind("f", content(10, 4));
    assert_eq!(reader.read_at(30_000, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(worker.fetches(), 1, "not tried again");
}

#[tokio::test]
async fn the_second_read_in_order_has_many_pages_on_their_way() {
    let worker = FakeWorker::new(64 * MIB);
    let bytes = content(8 * MIB, 5);
    let file = worker.put("f", bytes.clone());
    file.store(0);
    worker.close_gate();
    let reader = reader(&worker, file);
    for step in 0..2 {
        assert!(reader.read_now(step * 4096, 4096).is_some());
    }
    eventually("fetches are under way", || worker.running() >= 15).await;
    worker.let_pass(1 << 20);
    for step in 2..2048u64 {
        let data = reader.read_at(step * 4096, 4096).await.unwrap();
        assert_eq!(&*data, &bytes[step as usize * 4096..][..4096]);
    }
    assert_eq!(worker.fetches(), 127, "each page once");
}

#[tokio::test]
async fn readers_of_one_page_share_one_fetch() {
    let worker = FakeWorker::new(8 * MIB);
    let bytes = content(PAGE as usize, 6);
    let file = worker.put("f", bytes.clone());
    worker.close_gate();
    let reader = Arc::new(reader(&worker, file));
    let tasks: Vec<_> = (0..32u64)
        .map(|at| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.read_at(at * 100, 100).await.map(|data| data.to_vec()) })
        })
        .collect();
    eventually("the fetch is under way", || worker.running() == 1).await;
    worker.let_pass(64);
    for (at, task) in tasks.into_iter().enumerate() {
        assert_eq!(task.await.unwrap().unwrap(), &bytes[at * 100..at * 100 + 100]);
    }
    assert_eq!(worker.fetches(), 1);
}

#[tokio::test]
async fn reads_that_are_given_up_leave_nothing_behind() {
    let worker = FakeWorker::new(4 * MIB);
    let shared = shared(&worker, ClientOptions::default());
    let file = worker.put("f", content(3 * MIB, 7));
    worker.close_gate();
    let reader = Arc::new(FileReader::new(file, shared.clone()));
    let tasks: Vec<_> = (0..8u64)
        .map(|at| {
            let reader = reader.clone();
            tokio::spawn(async move { reader.read_at(at * 300_000, 200_000).await.map(|data| data.len()) })
        })
        .collect();
    eventually("fetches are under way", || worker.running() > 0).await;
    for task in &tasks {
        task.abort();
    }
    for task in tasks {
        let _ = task.await;
    }
    assert_eq!(shared.buffers().used(), 0);
    worker.let_pass(1 << 20);
    eventually("fetches end", || worker.running() == 0).await;
    drop(reader);
    assert_eq!(shared.streams(), 0);
    drop(shared);
    eventually("memory is given back", || worker.pool().budget().used() == 0).await;
}

#[tokio::test]
async fn many_readers_with_little_memory_come_to_an_end() {
    // Room for a dozen pages, and eight readers whose reads span three each.
    let worker = FakeWorker::new(12 * PAGE as usize);
    let shared = shared(&worker, ClientOptions::default());
    let bytes = Arc::new(content(2 * MIB, 8));
    let mut tasks = Vec::new();
    for at in 0..8 {
        let file = worker.put(&format!("f{at}"), bytes.to_vec());
        let reader = FileReader::new(file, shared.clone());
        let bytes = bytes.clone();
        tasks.push(tokio::spawn(async move {
            let len = 2 * PAGE as usize + 100;
            let mut offset = 0;
            while offset < bytes.len() {
                let data = reader.read_at(offset as u64, len).await.unwrap();
                assert_eq!(&*data, &bytes[offset..(offset + len).min(bytes.len())]);
                offset += data.len();
            }
        }));
    }
    let all = async {
        for task in tasks {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("no reader waits for ever");
    let budget = worker.pool().budget();
    assert!(budget.used() <= budget.limit());
}

#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    ReadOn(usize),
    Evict(u64),
    Store(u64),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is present, evicted or fails for a while: a read gives the file's bytes, as many as there are.
    #[test]
    fn reads_equal_the_content(
        size in 1usize..(9 * PAGE as usize),
        failing in 0u32..3,
        steps in proptest::collection::vec(prop_oneof![
            (0u64..(10 * u64::from(PAGE)), 0usize..200_000).prop_map(|(offset, len)| Step::Read(offset, len)),
            (1usize..100_000).prop_map(Step::ReadOn),
            (0u64..9).prop_map(Step::Evict),
            (0u64..9).prop_map(Step::Store),
        ], 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result: std::result::Result<(), TestCaseError> = runtime.block_on(async {
            let worker = FakeWorker::new(MIB);
            let bytes = content(size, 9);
            let file = worker.put("f", bytes.clone());
            worker.set_fault(Some(Arc::new(move |page, tries| {
                (u64::from(failing) > page % 3 && tries % 2 == 0).then_some(ErrorKind::Corrupt)
            })));
            let shared = shared(&worker, ClientOptions::default());
            let reader = FileReader::new(file.clone(), shared.clone());
            let pages = size.div_ceil(PAGE as usize) as u64;
            let mut at = 0u64;
            for step in steps {
                let (offset, len) = match step {
                    Step::Read(offset, len) => (offset, len),
                    Step::ReadOn(len) => (at, len),
                    Step::Evict(page) => { file.evict(page); continue }
                    Step::Store(page) => {
                        if page < pages && file.page_now(page).is_none() {
                            file.store(page);
                        }
                        continue;
                    }
                };
                let data = reader.read_at(offset, len).await
                    .map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
                let start = (offset as usize).min(size);
                prop_assert_eq!(&*data, &bytes[start..(start + len).min(size)]);
                at = offset + data.len() as u64;
            }
            drop(reader);
            prop_assert_eq!(shared.buffers().used(), 0);
            prop_assert_eq!(shared.streams(), 0);
            drop(shared);
            eventually("memory is given back", || worker.pool().budget().used() == 0).await;
            Ok(())
        });
        result?;
    }
}
