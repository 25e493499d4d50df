//! Every fault, seen from the other end of the connection.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use s3server::{Action, Fault, Operation, Options, Server};

use crate::raw::{Client, PATIENCE};

const SIZE: usize = 3_000_000;

fn server() -> (Server, Vec<u8>) {
    let server = Server::start(Options::with_buckets(["data"])).expect("start");
    let bytes = s3server::synthetic_bytes("faults", 0, SIZE);
    server.put("data", "k", bytes.clone()).expect("put");
    (server, bytes)
}

fn wait(until: impl Fn() -> bool) {
    let begin = Instant::now();
    while !until() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn on_get(action: Action) -> Fault {
    Fault::new(action).on(Operation::GetObject)
}

#[test]
fn errors_and_redirects() {
    let (server, bytes) = server();
    let mut client = Client::new(server.address());
    for (status, code) in
        [(500, "InternalError"), (503, "SlowDown"), (403, "AccessDenied"), (404, "NoSuchKey"), (418, "InternalError")]
    {
        let id = server.fault(on_get(Action::Error(status)).key("k").times(1));
        let answer = client.get("/data/k");
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        assert_eq!(server.fault_hits(id), 1);
    }
    server.fault(on_get(Action::Redirect { status: 301, region: "eu-west-1".into(), location: None }).times(1));
    let answer = client.get("/data/k");
    assert_eq!(
        (answer.status, answer.code().as_str(), answer.header("x-amz-bucket-region")),
        (301, "PermanentRedirect", "eu-west-1")
    );
    server.fault(
        on_get(Action::Redirect { status: 307, region: "eu-west-1".into(), location: Some("http://h/".into()) })
            .times(1),
    );
    let answer = client.get("/data/k");
    assert_eq!((answer.status, answer.header("location")), (307, "http://h/"));
    assert!(client.get("/data/k").body == bytes);
}

#[test]
fn bodies_that_break_off() {
    let (server, bytes) = server();
    for after in [0, 1, 100_000, 2_500_000] {
        server.clear_faults();
        server.fault(on_get(Action::CloseAfter(after as u64)));
        let mut client = Client::new(server.address());
        let answer = client.get("/data/k");
        assert_eq!(answer.header("content-length"), SIZE.to_string());
        assert!(answer.body == bytes[..after], "{} bytes", answer.body.len());
        assert_eq!(answer.broken.map(|error| error.kind()), Some(ErrorKind::UnexpectedEof));

        server.clear_faults();
        server.fault(on_get(Action::ResetAfter(after as u64)));
        let mut client = Client::new(server.address());
        client.send("GET", "/data/k", &[], b"").expect("send");
        // The reset may overtake the head of the answer, too.
        let kind = match client.receive(false) {
            Ok(answer) => {
                assert!(bytes[..after].starts_with(&answer.body));
                answer.broken.map(|error| error.kind())
            }
            Err(error) => Some(error.kind()),
        };
        assert_eq!(kind, Some(ErrorKind::ConnectionReset));
    }
    server.clear_faults();
    server.fault(on_get(Action::CloseAfter(SIZE as u64)));
    assert!(Client::new(server.address()).get("/data/k").body == bytes);
}

#[test]
fn answers_that_never_come_or_never_end() {
    let (server, bytes) = server();
    let quiet = |client: &mut Client| {
        client.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("set");
        let error = client.stream.read(&mut [0; 1]).expect_err("nothing comes");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
    };
    server.fault(on_get(Action::Hang).times(1));
    let mut client = Client::new(server.address());
    client.send("GET", "/data/k", &[], b"").expect("send");
    wait(|| server.active() == 1);
    quiet(&mut client);
    drop(client);
    wait(|| server.active() == 0);

    server.fault(on_get(Action::StallAfter(1000)).times(1));
    let mut client = Client::new(server.address());
    client.send("GET", "/data/k", &[], b"").expect("send");
    let mut got = Vec::new();
    while !got.windows(4).any(|window| window == b"\r\n\r\n") || !got.ends_with(&bytes[990..1000]) {
        let mut piece = [0; 4096];
        let count = client.stream.read(&mut piece).expect("read");
        assert!(count > 0);
        got.extend_from_slice(&piece[..count]);
    }
    quiet(&mut client);

    server.fault(on_get(Action::Drop).times(1));
    let mut client = Client::new(server.address());
    client.send("GET", "/data/k", &[], b"").expect("send");
    assert_eq!(client.receive(false).expect_err("dropped").kind(), ErrorKind::ConnectionReset);
}

#[test]
fn answers_that_lie() {
    let (server, bytes) = server();
    let mut client = Client::new(server.address());
    let range = [("range", "bytes=10-19")];
    server.fault(on_get(Action::Shorten(4)).times(1));
    let answer = client.ask("GET", "/data/k", &range, b"");
    assert_eq!((answer.status, &answer.body[..], answer.header("content-length")), (206, &bytes[10..16], "6"));
    server.fault(on_get(Action::IgnoreRange).times(1));
    let answer = client.ask("GET", "/data/k", &range, b"");
    assert!(answer.status == 200 && answer.body == bytes);
    server.fault(on_get(Action::Corrupt(3)).times(1));
    let answer = client.ask("GET", "/data/k", &range, b"");
    assert_eq!((answer.body[3], answer.body[4]), (bytes[13] ^ 1, bytes[14]));
    let etag = format!("\"{}\"", server.object("data", "k").expect("there").etag());
    server.fault(on_get(Action::Etag("new".into())).times(2));
    assert_eq!(client.ask("GET", "/data/k", &[("if-match", &etag)], b"").status, 412);
    assert_eq!(client.get("/data/k").header("etag"), "\"new\"");
    assert_eq!(client.ask("GET", "/data/k", &[("if-match", &etag)], b"").status, 200);
}

#[test]
fn delays_and_slow_bodies_take_their_time() {
    let (server, bytes) = server();
    let mut client = Client::new(server.address());
    let begin = Instant::now();
    server.set_latency(Duration::from_millis(30));
    server.fault(on_get(Action::Delay(Duration::from_millis(40))).times(1));
    assert_eq!(client.get("/data/k").status, 200);
    assert!(begin.elapsed() >= Duration::from_millis(70));
    server.set_latency(Duration::ZERO);
    let begin = Instant::now();
    server.fault(on_get(Action::Slow(2000)).times(1));
    let answer = client.ask("GET", "/data/k", &[("range", "bytes=0-299")], b"");
    assert_eq!(answer.body, &bytes[..300]);
    assert!(begin.elapsed() >= Duration::from_millis(100));
}

#[test]
fn an_outage_and_its_end() {
    let (mut server, bytes) = server();
    let mut old = Client::new(server.address());
    assert_eq!(old.get("/data/k").status, 200);
    server.pause();
    let gone = |client: &mut Client| match client.send("GET", "/data/k", &[], b"") {
        Ok(()) => client.receive(false).is_err(),
        Err(_) => true,
    };
    assert!(gone(&mut old));
    // The connection may be refused by its first use only: the kernel accepts it before the server sees it.
    if let Ok(stream) = TcpStream::connect(server.address()) {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        assert!(matches!((&stream).read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    server.resume();
    let begin = Instant::now();
    loop {
        let mut client = Client::new(server.address());
        if client.send("GET", "/data/k", &[], b"").is_ok()
            && let Ok(answer) = client.receive(false)
        {
            assert!(answer.body == bytes);
            break;
        }
        assert!(begin.elapsed() < PATIENCE);
    }
    let mut client = Client::new(server.address());
    client.get("/data/k");
    server.stop();
    assert!(gone(&mut client));
    assert_eq!(server.keys("data"), ["k"]);
}
