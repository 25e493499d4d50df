//! Random steps, all at the same time, on a storage with random faults: every read gives the bytes of its version or an error.

use super::{
    PAGE,
    faulty::{Fault, Faulty, Setup, content, read},
};
use common::ErrorKind;
use proptest::prelude::*;
use std::{sync::Arc, time::Duration};
use store::ReadOptions;

#[derive(Debug, Clone)]
enum Step {
    Read { file: usize, offset: u64, len: usize },
    Prefetch { file: usize, first: u64, count: u64 },
    Complete { file: usize },
    Change { file: usize },
    Reopen { file: usize },
    Fault(Fault),
}

const SIZES: [u64; 4] = [10, PAGE, 3 * PAGE + 1, 40 * PAGE - 5];

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..SIZES.len();
    let fault = prop_oneof![
        Just(Fault::Fail(ErrorKind::Unavailable)),
        (1..2 * PAGE).prop_map(Fault::Short),
        (1..100_usize).prop_map(Fault::Long),
        (0..2 * PAGE).prop_map(Fault::Break),
        Just(Fault::Slow),
    ];
    prop_oneof![
        8 => (file(), 0..40 * PAGE, 1..60_000_usize).prop_map(|(file, offset, len)| Step::Read { file, offset, len }),
        3 => (file(), 0..40_u64, 1..40_u64).prop_map(|(file, first, count)| Step::Prefetch { file, first, count }),
        2 => file().prop_map(|file| Step::Complete { file }),
        1 => file().prop_map(|file| Step::Change { file }),
        2 => file().prop_map(|file| Step::Reopen { file }),
        3 => fault.prop_map(Step::Fault),
    ]
}

async fn play(steps: &[Step], setup: &Setup) {
    let rig = Arc::new(setup.rig(Faulty::new()));
    let name = |file: usize| format!("dir/{file}");
    let mut versions = [1_u64; SIZES.len()];
    let open = |file: usize, version: u64| {
        let attr = rig.storage.put(&name(file), version, SIZES[file]);
        (version, rig.open(&name(file), &attr))
    };
    let mut files: Vec<_> = (0..SIZES.len()).map(|file| open(file, 1)).collect();
    let mut readers = Vec::new();
    for step in steps {
        match step {
            Step::Read { file, offset, len } => {
                let (version, paged) = files[*file].clone();
                let (name, offset, len, size) = (name(*file), *offset % SIZES[*file], *len, SIZES[*file]);
                // All reads run at the same time, and with what comes after.
                readers.push(tokio::spawn(async move {
                    let end = (offset + len as u64).min(size) as usize;
                    match read(&*paged, offset, len).await {
                        Ok(bytes) => {
                            assert!(bytes == content(&name, version, size)[offset as usize..end], "wrong bytes")
                        }
                        Err(error) => assert!(
                            matches!(error.kind(), ErrorKind::Stale | ErrorKind::Unavailable | ErrorKind::Corrupt),
                            "{error:?}"
                        ),
                    }
                }));
                tokio::task::yield_now().await;
            }
            Step::Prefetch { file, first, count } => {
                let (_, paged) = &files[*file];
                assert!(paged.prefetch(*first, *count) <= *count);
            }
            Step::Complete { file } => {
                let (version, paged) = &files[*file];
                if paged.complete().await.is_ok()
                    && let Some(lease) = paged.export()
                {
                    let mut bytes = vec![0; SIZES[*file] as usize];
                    std::os::unix::fs::FileExt::read_exact_at(&**lease.file(), &mut bytes, 0).unwrap();
                    assert!(bytes == content(&name(*file), *version, SIZES[*file]));
                }
            }
            Step::Change { file } => {
                versions[*file] += 1;
                rig.storage.put(&name(*file), versions[*file], SIZES[*file]);
            }
            Step::Reopen { file } => files[*file] = open(*file, versions[*file]),
            Step::Fault(fault) => rig.storage.next([fault.clone()]),
        }
    }
    for reader in readers {
        tokio::time::timeout(Duration::from_secs(60), reader).await.expect("a reader hangs").unwrap();
    }
    // Without faults everything can be read in its last version.
    rig.storage.faults.lock().clear();
    for (file, size) in SIZES.iter().enumerate() {
        let (version, paged) = open(file, versions[file]);
        // A fetch that had its fault already may still be on its way to the readers.
        let mut tries = 0;
        let bytes = loop {
            match read(&*paged, 0, *size as usize).await {
                Ok(bytes) => break bytes,
                Err(error) => assert!(tries < 100, "{error:?}"),
            }
            tries += 1;
        };
        assert!(bytes == content(&name(file), version, *size), "wrong bytes at the end");
    }
    drop(files);
    rig.all_memory_is_back().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_give_the_bytes_of_their_version_or_an_error(steps in prop::collection::vec(step(), 1..50), kind in 0..3) {
        let setup = match kind {
            0 => Setup {
                options: ReadOptions { complete_share: 0.5, ..Setup::default().options },
                ..Setup::default()
            },
            1 => Setup { capacity: 6 * PAGE, budget: 8 * PAGE, queue: 2 * PAGE as usize, ..Setup::default() },
            _ => Setup { budget: 8 * PAGE, ..Setup::without_store() },
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(play(&steps, &setup));
    }
}
