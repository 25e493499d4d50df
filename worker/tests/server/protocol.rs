//! Peers that break the protocol: their connection ends, and nothing else happens.

use crate::{
    bytes, options,
    peer::{LIMIT, Peer},
    start_over_memory,
};
use common::wire::{Header, Kind, MAX_MESSAGE, Message};
use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
};
use worker::{server::Server, testing::MemoryStorage};

fn malformed() -> Vec<(String, Vec<u8>)> {
    let hello = Message::Hello { name: "a bad one".into() }.encode(1).unwrap();
    let after_hello = |rest: &[u8]| [&hello[..], rest].concat();
    let changed = |at: usize, to: u8| {
        let mut frame = hello.clone();
        frame[at] = to;
        frame
    };
    let mut all = vec![
        ("nothing".into(), Vec::new()),
        ("half a header".into(), hello[..7].to_vec()),
        ("half a body".into(), hello[..hello.len() - 2].to_vec()),
        ("another magic".into(), changed(0, 0)),
        ("another version".into(), changed(2, 99)),
        ("an unknown kind".into(), changed(3, 200)),
        ("a wrong checksum".into(), changed(12, !hello[12])),
        ("a length beyond all".into(), changed(11, 0xff)),
        ("no hello".into(), Message::Ping.encode(1).unwrap()),
        ("two hellos".into(), after_hello(&hello)),
        ("an answer".into(), after_hello(&Message::Pong.encode(2).unwrap())),
        ("data".into(), after_hello(&Header::encode(Kind::Data, 2, 1 << 20, &[]))),
        (
            "half a read".into(),
            after_hello(&Message::Read { handle: 0, offset: 0, length: 1 }.encode(2).unwrap()[..20]),
        ),
        ("a text longer than its frame".into(), {
            let body = u32::MAX.to_le_bytes();
            after_hello(&[&Header::encode(Kind::Open, 3, 4, &body)[..], &body].concat())
        }),
        ("the longest body, of zeros".into(), {
            let body = vec![0; MAX_MESSAGE];
            after_hello(&[&Header::encode(Kind::Open, 3, MAX_MESSAGE as u32, &body)[..], &body].concat())
        }),
    ];
    for seed in 0..32 {
        let noise = bytes(1 + 97 * seed as usize, seed);
        all.push((format!("noise {seed}"), noise.clone()));
        all.push((format!("noise {seed} after a hello"), after_hello(&noise)));
    }
    all
}

/// Sends `what`, then reads until the worker has ended the connection.
fn ends(stream: &mut (impl Read + Write), shutdown: impl FnOnce(), what: &[u8]) -> bool {
    // The worker may end the connection before all was sent.
    let _ = stream.write_all(what);
    shutdown();
    let mut rest = Vec::new();
    match stream.take(1 << 20).read_to_end(&mut rest) {
        Ok(read) => read < 1 << 20,
        Err(error) => matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
    }
}

fn check_tcp(port: u16, name: &str, what: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let other = stream.try_clone().unwrap();
    let shutdown = || drop(other.shutdown(Shutdown::Write));
    assert!(ends(&mut stream, shutdown, what), "{name}: the TCP connection goes on");
}

fn check_domain(path: &PathBuf, name: &str, what: &[u8]) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let other = stream.try_clone().unwrap();
    let shutdown = || drop(other.shutdown(Shutdown::Write));
    assert!(ends(&mut stream, shutdown, what), "{name}: the domain connection goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_their_connection_only() {
    let dir = tempfile::tempdir().unwrap();
    let storage = MemoryStorage::new();
    let content = bytes(1000, 1);
    let version = storage.put("f", content.clone());
    let server = start_over_memory(options(dir.path(), &[]), &storage).await;
    let mut bystander = Peer::tcp(&server).await;
    let handle = bystander.open("memory://test", "f", &version, 1000).await.unwrap();
    let (port, path) = (server.entry().address.data_port, PathBuf::from(&server.entry().address.domain_socket_path));
    tokio::task::spawn_blocking(move || {
        for (name, what) in malformed() {
            check_tcp(port, &name, &what);
            check_domain(&path, &name, &what);
        }
    })
    .await
    .unwrap();
    assert_eq!(bystander.read(handle, 0, 1000).await.unwrap(), content, "who was there is served on");
    let mut newcomer = Peer::domain(&server).await;
    assert_eq!(newcomer.ask(Message::Ping).await.unwrap(), Message::Pong);
    only(&server, 2).await;
    server.stop().await;
}

/// Waits until exactly `count` connections are left.
async fn only(server: &Server, count: usize) {
    crate::peer::within("the others to be gone", async {
        while server.data().connections() != count {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_and_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), &[]);
    options.limits.connections = 2;
    let server = Server::start(options).await.unwrap();
    let (one, two) = (Peer::tcp(&server).await, Peer::domain(&server).await);
    let port = server.entry().address.data_port;
    let refused = tokio::task::spawn_blocking(move || {
        check_tcp(port, "one too many", &Message::Hello { name: "third".into() }.encode(1).unwrap());
    });
    refused.await.unwrap();
    drop(one);
    only(&server, 1).await;
    let mut three = Peer::tcp(&server).await;
    assert_eq!(three.ask(Message::Ping).await.unwrap(), Message::Pong);
    drop(two);
    server.stop().await;
}
