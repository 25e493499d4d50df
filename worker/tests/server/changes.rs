//! Who is told when something changes.

use crate::{
    cluster::{etcd, in_cluster},
    etcd_server::EtcdServer,
    options,
    peer::within,
    start_over_memory,
};
use common::{
    UfsPath,
    rpc::worker::{self as proto, Change, GetAttrRequest, RefreshRequest, SubscribeRequest},
};
use proto::worker_client::WorkerClient;
use tonic::{Streaming, transport::Channel};
use worker::{server::Server, testing::MemoryStorage};

const MEMORY: &str = "memory://test";

async fn client_of(server: &Server) -> WorkerClient<Channel> {
    WorkerClient::connect(format!("http://127.0.0.1:{}", server.entry().address.rpc_port)).await.unwrap()
}

async fn subscribe(client: &mut WorkerClient<Channel>, storage: &str) -> Streaming<Change> {
    client.subscribe(SubscribeRequest { storage: storage.into() }).await.unwrap().into_inner()
}

async fn size(client: &mut WorkerClient<Channel>, path: &str) -> u64 {
    let request = GetAttrRequest { storage: MEMORY.into(), path: path.into(), fresh: false };
    client.get_attr(request).await.unwrap().into_inner().attr.unwrap().size
}

async fn next(stream: &mut Streaming<Change>) -> (Vec<String>, bool) {
    let change = within("a change", stream.message()).await.unwrap().unwrap();
    assert_eq!(change.storage, MEMORY);
    let mut paths: Vec<String> = change.paths.into_iter().map(|path| String::from_utf8(path).unwrap()).collect();
    paths.sort();
    (paths, change.below)
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_forgotten_at_once_and_told_to_subscribers() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    for name in ["d/f", "d/g", "e/h"] {
        storage.put(name, vec![1; 10]);
    }
    // What is known never ages here.
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    let mut client = client_of(&server).await;
    for name in ["d/f", "d/g", "e/h"] {
        assert_eq!(size(&mut client, name).await, 10);
        storage.put(name, vec![2; 20]);
        assert_eq!(size(&mut client, name).await, 10, "nobody has told of it");
    }
    let mut all = subscribe(&mut client, "").await;
    let mut those = subscribe(&mut client, MEMORY).await;
    let mut others = subscribe(&mut client, "s3://other").await;

    // As whoever writes through this worker does.
    let mounted = server.namespace().find(MEMORY).await.unwrap();
    mounted.published(&[path("d/f")], false);
    assert_eq!(size(&mut client, "d/f").await, 20, "it was forgotten before the call returned");
    for stream in [&mut all, &mut those] {
        assert_eq!(next(stream).await, (vec!["d/f".into()], false));
    }
    // And as who changed the storage from outside.
    let request = RefreshRequest { storage: MEMORY.into(), paths: vec!["d".into()], below: true, relayed: false };
    client.refresh(request).await.unwrap();
    assert_eq!(size(&mut client, "d/g").await, 20);
    assert_eq!(size(&mut client, "e/h").await, 10);
    for stream in [&mut all, &mut those] {
        assert_eq!(next(stream).await, (vec!["d".into()], true));
    }
    server.stop().await;
    assert!(
        matches!(within("the end", others.message()).await, Ok(None) | Err(_)),
        "of another storage nothing is told"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_workers_that_own_what_changed_hear_of_it() {
    let Some(server) = EtcdServer::start() else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let storage = MemoryStorage::new();
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for dir in &dirs {
        let worker = start_over_memory(in_cluster(dir.path(), etcd(&server)), &storage).await;
        clients.push(client_of(&worker).await);
        servers.push(worker);
    }
    storage.put("d/f", vec![1; 10]);
    for client in &mut clients {
        assert_eq!(size(client, "d/f").await, 10);
    }
    storage.put("d/f", vec![2; 20]);
    let mut streams = Vec::new();
    for client in &mut clients {
        streams.push(subscribe(client, "").await);
    }
    let mounted = servers[0].namespace().find(MEMORY).await.unwrap();
    // The first one may have looked at the members before the second was there.
    let told = within("the other worker", async {
        loop {
            mounted.published(&[path("d/f")], false);
            assert_eq!(next(&mut streams[0]).await, (vec!["d/f".into()], false));
            let patience = std::time::Duration::from_millis(500);
            if let Ok(change) = tokio::time::timeout(patience, next(&mut streams[1])).await {
                return change;
            }
        }
    });
    assert_eq!(told.await, (vec!["d/f".into()], false));
    assert_eq!(size(&mut clients[1], "d/f").await, 20, "it forgot what it knew");
    for server in servers {
        server.stop().await;
    }
}
