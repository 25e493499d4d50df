//! One client and one worker.

use crate::fake::{FakeWorker, byte_at};
use client::cluster::{DataConnection, Dial, FileKey, Link, LinkOptions};
use common::{Attr, ErrorKind, FileKind, Timestamp, UfsPath, Version};
use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// The longest that anything may take here; only a hang takes as long.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until something holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}: not within {LIMIT:?}");
}

async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"))
}

fn dial(worker: &FakeWorker) -> Dial<'static> {
    Dial { worker: worker.entry.identity.identifier, name: "a test", patience: LIMIT, tls: None, owners: &[] }
}

fn file() -> (FileKey, Attr) {
    let version = Version::new("1");
    let key = FileKey { storage: "s3://b".into(), path: UfsPath::parse("f").unwrap(), version: version.clone() };
    (key, Attr::of_object(FileKind::File, 1 << 40, Timestamp::default(), version))
}

async fn connect(worker: &FakeWorker) -> Arc<DataConnection> {
    let port = worker.entry.address.data_port;
    Arc::new(within("connect", DataConnection::tcp("127.0.0.1", port, dial(worker))).await.unwrap())
}

async fn read(connection: Arc<DataConnection>, offset: u64) -> common::Result<Vec<u8>> {
    let (key, attr) = file();
    let mut bytes = Vec::new();
    let (_, outcome) = connection.read(&key, &attr, offset, 1000, &mut bytes).await;
    outcome.map(|()| bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_requests_are_under_way_than_the_worker_allows() {
    let worker = FakeWorker::start(1, None).await;
    worker.state.in_flight.store(3, Ordering::SeqCst);
    worker.state.gate.forget_permits(usize::MAX);
    let connection = connect(&worker).await;
    let reads: Vec<_> = (0..12u64).map(|number| tokio::spawn(read(connection.clone(), number * 5000))).collect();
    until("three reads", || worker.state.reading.load(Ordering::SeqCst) == 3).await;
    // Those that wait are no reason to take the worker for dead, and pings get through beside them.
    within("a ping", connection.ping()).await.unwrap();
    until("a ping by who waits", || worker.state.pings.load(Ordering::SeqCst) >= 2).await;
    worker.state.gate.add_permits(1000);
    for (number, read) in reads.into_iter().enumerate() {
        let bytes = within("a read", read).await.unwrap().unwrap();
        let expected: Vec<u8> = (0..1000).map(|at| byte_at(number as u64 * 5000 + at)).collect();
        assert!(bytes == expected, "read {number}");
    }
    assert_eq!(worker.state.most.load(Ordering::SeqCst), 3);
    assert!(connection.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_was_given_up_counts_until_the_worker_has_answered_it() {
    let worker = FakeWorker::start(1, None).await;
    worker.state.in_flight.store(2, Ordering::SeqCst);
    worker.state.gate.forget_permits(usize::MAX);
    let connection = connect(&worker).await;
    let given_up: Vec<_> = (0..2u64).map(|number| tokio::spawn(read(connection.clone(), number))).collect();
    until("two reads", || worker.state.reading.load(Ordering::SeqCst) == 2).await;
    for read in &given_up {
        read.abort();
    }
    let later = tokio::spawn(read(connection.clone(), 9));
    // It waits long enough to ask whether the worker lives.
    let pings = worker.state.pings.load(Ordering::SeqCst);
    until("a ping", || worker.state.pings.load(Ordering::SeqCst) > pings).await;
    assert_eq!(worker.state.most.load(Ordering::SeqCst), 2);
    worker.state.gate.add_permits(1000);
    assert_eq!(within("the later read", later).await.unwrap().unwrap()[0], byte_at(9));
    until("all answers", || worker.state.reads.load(Ordering::SeqCst) == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_domain_socket_comes_later_is_found_on_this_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut worker = FakeWorker::start(1, Some(&dir.path().join("socket"))).await;
    let options = LinkOptions {
        name: "a test".into(),
        short_circuit: true,
        patience: LIMIT,
        tls: None,
        socket_owners: Vec::new(),
    };
    let link = Link::new(worker.entry.clone(), options).unwrap();
    let first = within("a connection", link.data(0)).await.unwrap();
    assert!(!first.is_domain() && !link.is_here() && !link.may_be_here());
    worker.listen_domain();
    // It is tried again while it is used, and not at every use.
    let found = within("the domain socket", async {
        loop {
            let connection = link.data(0).await.unwrap();
            if connection.is_domain() {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(link.is_here());
    assert!(worker.state.by_domain.load(Ordering::SeqCst) <= 3, "one to look, one to use");
    assert_eq!(read(found, 7).await.unwrap()[0], byte_at(7));
    assert_eq!(read(first, 7).await.unwrap()[0], byte_at(7), "what was begun over the network goes on there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_worker_at_the_same_address_is_not_taken_for_this_one() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut other = FakeWorker::start(2, Some(&socket)).await;
    other.listen_domain();
    // As on hosts that all have their domain socket at the same path.
    let worker = FakeWorker::start(1, Some(&socket)).await;
    let options = LinkOptions {
        name: "a test".into(),
        short_circuit: true,
        patience: LIMIT,
        tls: None,
        socket_owners: Vec::new(),
    };
    let link = Link::new(worker.entry.clone(), options).unwrap();
    let connection = within("a connection", link.data(0)).await.unwrap();
    assert!(!connection.is_domain() && !link.is_here());
    assert_eq!(read(connection, 3).await.unwrap()[0], byte_at(3));
    assert_eq!((worker.state.reads.load(Ordering::SeqCst), other.state.reads.load(Ordering::SeqCst)), (1, 0));

    let port = other.entry.address.data_port;
    let refused = DataConnection::tcp("127.0.0.1", port, dial(&worker)).await.err().expect("another worker");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.message().contains("another worker answers there"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sign_of_life_is_no_answer_to_a_read() {
    let worker = FakeWorker::start(1, None).await;
    worker.state.pongs.store(true, Ordering::SeqCst);
    let connection = connect(&worker).await;
    assert_eq!(within("a read", read(connection.clone(), 3)).await.unwrap()[0], byte_at(3));
    // One that waits for longer than the silence asks, and gets its answer all the same.
    worker.state.gate.forget_permits(usize::MAX);
    let slow = tokio::spawn(read(connection.clone(), 9));
    until("a question", || worker.state.pings.load(Ordering::SeqCst) > 0).await;
    worker.state.gate.add_permits(1);
    assert_eq!(within("a slow read", slow).await.unwrap().unwrap()[0], byte_at(9));
    assert!(connection.is_usable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_that_nobody_waits_for_any_more_is_closed() {
    let worker = FakeWorker::start(1, None).await;
    worker.state.open_gate.forget_permits(usize::MAX);
    let connection = connect(&worker).await;
    let given_up = tokio::spawn(read(connection.clone(), 0));
    until("an open", || worker.state.opening.load(Ordering::SeqCst) == 1).await;
    given_up.abort();
    assert!(given_up.await.unwrap_err().is_cancelled());
    worker.state.open_gate.add_permits(1);
    until("the handle to be closed", || worker.state.closed.load(Ordering::SeqCst) == 1).await;
    worker.state.open_gate.add_permits(1);
    assert_eq!(within("a read", read(connection, 5)).await.unwrap()[0], byte_at(5));
    assert_eq!(worker.state.closed.load(Ordering::SeqCst), 1, "one that is used stays open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_sends_what_was_not_asked_for_loses_its_connection() {
    for (what, frames) in
        [("no bytes", vec![0, 1000]), ("too many", vec![600, 600]), ("more after all of it", vec![1000, 1])]
    {
        let worker = FakeWorker::start(1, None).await;
        *worker.state.frames.lock().unwrap() = Some(frames);
        let connection = connect(&worker).await;
        let _ = within("a read", read(connection.clone(), 0)).await;
        until(what, || !connection.is_usable()).await;
        drop(worker);
    }
    let worker = FakeWorker::start(1, None).await;
    *worker.state.frames.lock().unwrap() = Some(vec![1, 999]);
    let connection = connect(&worker).await;
    assert_eq!(within("a read", read(connection.clone(), 0)).await.unwrap().len(), 1000);
    assert!(connection.is_usable());
}
