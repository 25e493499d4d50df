//! Many clients on one worker: none starves, and what they take is bounded.

use crate::{bytes, options, peer::Peer, peer::within, start_over_memory};
use common::wire::Message;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use worker::testing::MemoryStorage;

const CLIENTS: usize = 200;
/// Clients that ask for large pieces and never wait for one before they ask for the next.
const GREEDY: usize = 40;
const SIZE: usize = 4 << 20;
/// What each client must have got before any of them may stop.
const READS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_are_all_served_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    // Of one file everything is on disk soon, of the other nothing ever: it is larger than the whole page store.
    let content = Arc::new(bytes(SIZE, 1));
    let version = storage.put("f", content.to_vec());
    let mut options = options(dir.path(), &[]);
    options.store.dirs[0].capacity = 16 << 20;
    let cold = Arc::new(bytes(24 << 20, 2));
    let cold_version = storage.put("cold", cold.to_vec());
    let server = start_over_memory(options, &storage).await;

    let counts: Arc<Vec<AtomicU64>> = Arc::new((0..CLIENTS).map(|_| AtomicU64::new(0)).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let mut peer = if number % 2 == 0 { Peer::tcp(&server).await } else { Peer::domain(&server).await };
        let (path, content, version) =
            if number % 4 == 0 { ("cold", cold.clone(), &cold_version) } else { ("f", content.clone(), &version) };
        let handle = peer.open("memory://test", path, version, content.len() as u64).await.unwrap();
        let (counts, stop) = (counts.clone(), stop.clone());
        clients.spawn(async move {
            let length = if number < GREEDY { 1 << 20 } else { 4096 };
            let mut at = number * 4099;
            while !stop.load(Relaxed) {
                let offset = at % (content.len() - length);
                at += 7 * length + 13;
                if number < GREEDY {
                    // Its answer is never asked for: only the place in the queue counts.
                    peer.send(Message::Prefetch { handle, first: offset as u64 / crate::PAGE as u64, count: 16 }).await;
                }
                let read = peer.read(handle, offset as u64, length as u32).await.unwrap();
                assert!(read == content[offset..offset + length], "wrong bytes at {offset} of {path}");
                counts[number].fetch_add(1, Relaxed);
            }
        });
    }
    let pool = server.namespace().pool().clone();
    within("every client to be served", async {
        loop {
            let budget = pool.budget();
            assert!(budget.used() <= budget.limit(), "{} of {} bytes", budget.used(), budget.limit());
            if counts.iter().all(|count| count.load(Relaxed) >= READS) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(server.data().connections(), CLIENTS);
    stop.store(true, Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    // Alike clients got about as much as each other.
    let alike: Vec<u64> = (GREEDY..CLIENTS).filter(|n| n % 4 != 0).map(|n| counts[n].load(Relaxed)).collect();
    let (least, mean) = (alike.iter().min().unwrap(), alike.iter().sum::<u64>() / alike.len() as u64);
    assert!(least * 20 >= mean, "the slowest client had {least} reads, the mean is {mean}");
    within("their connections to end", async {
        while server.data().connections() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    server.stop().await;
}
