//! What a client gets: bytes, descriptors, failures.

use crate::{
    PAGE, bytes, options,
    peer::{Peer, within},
    start_over_memory,
};
use common::{
    ErrorKind, Version,
    rpc::worker as proto,
    wire::{MAX_DATA, Message},
};
use std::{io::Write, os::unix::fs::FileExt, sync::atomic::Ordering};
use worker::{server::Server, testing::MemoryStorage};

const MEMORY: &str = "memory://test";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_equal_the_source_cold_and_warm_on_both_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let sizes = [0, 1, 4096, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE + 77, 40 * PAGE];
    let files: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(at, size)| {
            let content = bytes(*size, at as u64);
            (format!("d/{size}"), storage.put(&format!("d/{size}"), content.clone()), content)
        })
        .collect();
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    for mut peer in [Peer::tcp(&server).await, Peer::domain(&server).await, Peer::tcp(&server).await] {
        for (path, version, content) in &files {
            let handle = peer.open(MEMORY, path, version, content.len() as u64).await.unwrap();
            assert_eq!(peer.read(handle, 0, content.len() as u32).await.unwrap(), *content, "{path}");
            for (offset, length) in [(0, 1), (1, 4096), (PAGE - 5, 10), (PAGE, 3 * PAGE), (3 * PAGE - 1, 2 * PAGE + 3)]
            {
                let end = (offset + length).min(content.len());
                if offset < end {
                    let found = peer.read(handle, offset as u64, (end - offset) as u32).await.unwrap();
                    assert_eq!(found, content[offset..end], "{path} {offset} {length}");
                }
            }
            peer.send(Message::Close { handle }).await;
            assert_eq!(peer.read(handle, 0, 1).await.unwrap_err().kind(), ErrorKind::BadHandle);
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_pipelined_and_share_one_fetch() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let content = bytes(4 * PAGE, 1);
    let version = storage.put("f", content.clone());
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    let mut peers = vec![Peer::tcp(&server).await, Peer::domain(&server).await];
    let mut handles = Vec::new();
    for peer in &mut peers {
        handles.push(peer.open(MEMORY, "f", &version, content.len() as u64).await.unwrap());
    }
    // What a lookup brings along is no read; from here on each page is read once.
    storage.close_gate();
    let mut requests = Vec::new();
    for (peer, handle) in peers.iter_mut().zip(&handles) {
        requests.push(peer.send(Message::Read { handle: *handle, offset: 0, length: content.len() as u32 }).await);
    }
    storage.let_pass(1000);
    for (peer, request) in peers.iter_mut().zip(requests) {
        assert_eq!(peer.data_of(request, 0).await.unwrap(), content);
    }
    assert_eq!(storage.counts().read_bytes.load(Ordering::SeqCst), content.len() as u64, "one fetch for both");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_present_is_given_as_a_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let content = bytes(3 * PAGE + 9, 2);
    let version = storage.put("f", content.clone());
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    let mut peer = Peer::domain(&server).await;
    let handle = peer.open(MEMORY, "f", &version, content.len() as u64).await.unwrap();
    assert_eq!(peer.export(handle).await.unwrap_err().kind(), ErrorKind::Unsupported, "nothing is present yet");
    peer.read(handle, 0, content.len() as u32).await.unwrap();
    // The pages are stored after they were given out.
    let file = within("the pages to be stored", async {
        loop {
            match peer.export(handle).await {
                Ok(file) => return file,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let mut found = vec![0; content.len()];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, content);
    assert!(file.write_all_at(b"x", 0).is_err() && (&file).write(b"x").is_err(), "for reading only");

    // What is evicted meanwhile takes nothing from who holds the descriptor.
    server.namespace().store().free(&|_| true);
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, content);
    assert_eq!(peer.read(handle, 5, 100).await.unwrap(), content[5..105]);

    let mut remote = Peer::tcp(&server).await;
    let handle = remote.open(MEMORY, "f", &version, content.len() as u64).await.unwrap();
    assert_eq!(remote.export(handle).await.unwrap_err().kind(), ErrorKind::Unsupported);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_served_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let old = storage.put("f", bytes(100, 3));
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    let mut changes = server.namespace().subscribe();
    let mut peer = Peer::tcp(&server).await;
    peer.open(MEMORY, "f", &old, 100).await.unwrap();
    // The storage has a new version: the worker, which has the old one in its cache, looks again.
    let new = storage.put("f", bytes(200, 4));
    let handle = peer.open(MEMORY, "f", &new, 200).await.unwrap();
    assert_eq!(peer.read(handle, 0, 200).await.unwrap(), bytes(200, 4));
    assert_eq!(peer.open(MEMORY, "f", &old, 100).await.unwrap_err().kind(), ErrorKind::Stale);
    let change = within("the change", changes.recv()).await.unwrap();
    assert_eq!((&*change.storage, &*change.paths), (MEMORY, &[common::UfsPath::parse("f").unwrap()][..]));
    assert_eq!(peer.open(MEMORY, "g", &new, 1).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(peer.open(MEMORY, "../f", &new, 1).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(peer.open("s3://other", "f", &new, 1).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(peer.open(MEMORY, "", &Version::none(), 0).await.unwrap_err().kind(), ErrorKind::IsADirectory);
    for (offset, length) in [(0, 201), (200, 1), (u64::MAX, 1), (0, MAX_DATA as u32 + 1)] {
        assert_eq!(peer.read(handle, offset, length).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert_eq!(peer.read(handle, 0, 200).await.unwrap(), bytes(200, 4), "the connection lives");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_of_a_connection_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let version = storage.put("f", bytes(10, 5));
    let mut options = options(dir.path(), &[]);
    options.limits.handles = 3;
    let server = start_over_memory(options, &storage).await;
    let mut peer = Peer::tcp(&server).await;
    let mut last = 0;
    for _ in 0..3 {
        last = peer.open(MEMORY, "f", &version, 10).await.unwrap();
    }
    assert_eq!(peer.open(MEMORY, "f", &version, 10).await.unwrap_err().kind(), ErrorKind::TooManyFiles);
    peer.send(Message::Close { handle: last }).await;
    peer.open(MEMORY, "f", &version, 10).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_serves_from_its_cache() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let content = bytes(20 * PAGE + 3, 6);
    let version = storage.put("f", content.clone());
    let first = start_over_memory(options(dir.path(), &[]), &storage).await;
    let identity = first.entry().identity;
    let mut peer = Peer::tcp(&first).await;
    let handle = peer.open(MEMORY, "f", &version, content.len() as u64).await.unwrap();
    assert_eq!(peer.read(handle, 0, content.len() as u32).await.unwrap(), content);
    drop(peer);
    // Bytes are given out before they are stored.
    within("the pages to be stored", async {
        while first.namespace().store().stats().pages != 21 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    first.stop().await;

    let reads = || storage.counts().reads.load(Ordering::SeqCst);
    let before = reads();
    let second = start_over_memory(options(dir.path(), &[]), &storage).await;
    assert_eq!(second.entry().identity, identity);
    let mut peer = Peer::tcp(&second).await;
    let handle = peer.open(MEMORY, "f", &version, content.len() as u64).await.unwrap();
    assert_eq!(peer.read(handle, 0, content.len() as u32).await.unwrap(), content);
    assert_eq!(reads(), before, "nothing was read from the storage again");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_and_control_answer_by_grpc() {
    let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(source.path().join("many")).unwrap();
    for number in 0..2500 {
        std::fs::write(source.path().join(format!("many/{number}")), number.to_string()).unwrap();
    }
    std::os::unix::fs::symlink("many/7", source.path().join("link")).unwrap();
    let uri = format!("file://{}", source.path().display());
    let server = Server::start(options(dir.path(), &[("/data", &uri)])).await.unwrap();
    let url = format!("http://127.0.0.1:{}", server.entry().address.rpc_port);
    let mut client = proto::worker_client::WorkerClient::connect(url).await.unwrap();

    let request = |path: &str| proto::GetAttrRequest { storage: uri.clone(), path: path.into(), fresh: false };
    let attr = client.get_attr(request("many/77")).await.unwrap().into_inner().attr.unwrap();
    assert_eq!(attr.size, 2);
    let missing = client.get_attr(request("none")).await.unwrap_err();
    assert_eq!(common::rpc::error_of(&missing).kind(), ErrorKind::NotFound);

    let request = proto::ListRequest { storage: uri.clone(), path: "many".into() };
    let mut listing = client.list(request).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(reply) = within("a batch", listing.message()).await.unwrap() {
        assert!(!reply.entries.is_empty() && reply.entries.len() <= 1000);
        names.extend(reply.entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()));
    }
    names.sort_by_key(|name| name.parse::<u32>().unwrap());
    assert_eq!(names, (0..2500).map(|number| number.to_string()).collect::<Vec<_>>());

    let request = proto::ReadLinkRequest { storage: uri.clone(), path: "link".into() };
    assert_eq!(client.read_link(request).await.unwrap().into_inner().target, b"many/7");

    // Read once through the data server, so that something is cached.
    let attr = common::Attr::from(attr);
    let mut peer = Peer::domain(&server).await;
    let handle = peer.open(&uri, "many/77", &attr.version, 2).await.unwrap();
    assert_eq!(peer.read(handle, 0, 2).await.unwrap(), b"77");
    let check = || proto::CheckCachedRequest { storage: uri.clone(), path: "many/77".into() };
    within("the page to be stored", async {
        while client.check_cached(check()).await.unwrap().into_inner().cached != 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let status = client.status(proto::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.identifier, server.entry().identity.identifier);
    assert!(status.capacity > 0 && status.files == 1, "{status:?}");
    assert!(client.free_cache(proto::FreeCacheRequest::default()).await.unwrap().into_inner().bytes > 0);
    let cached = client.check_cached(check()).await.unwrap().into_inner();
    assert_eq!((cached.size, cached.cached), (2, 0));
    drop(client);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(options(dir.path(), &[])).await.unwrap();
    let port = server.entry().address.web_port;
    for (path, says) in [("/health", "OK\n"), ("/metrics", "alluxio_cached_capacity_bytes"), ("/none", " 404 ")] {
        let answer = tokio::task::spawn_blocking(move || {
            use std::io::Read;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(crate::peer::LIMIT)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        let answer = answer.await.unwrap();
        assert!(answer.contains(says), "{path}: {answer}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_is_answered_before_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let content = bytes(PAGE * 2, 8);
    let version = storage.put("f", content.clone());
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    let mut peer = Peer::tcp(&server).await;
    let handle = peer.open(MEMORY, "f", &version, content.len() as u64).await.unwrap();
    storage.close_gate();
    let request = peer.send(Message::Read { handle, offset: 0, length: content.len() as u32 }).await;
    within("the read to begin", async {
        while storage.counts().running.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let stopping = tokio::spawn(server.stop());
    storage.let_pass(1000);
    assert_eq!(peer.data_of(request, 0).await.unwrap(), content);
    within("the end", stopping).await.unwrap();
    assert!(!dir.path().join("socket").exists());
}
