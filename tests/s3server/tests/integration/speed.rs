//! Figures, not checks: `cargo test -p s3server --test integration speed -- --ignored --nocapture`.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use s3server::{Options, Server, Synthetic};

use crate::raw::Client;

/// Reads answers whose bodies have a known length and looks at nothing but their end.
fn drain(client: &mut Client, requests: usize, request: &[u8], size: usize, depth: usize) -> f64 {
    let mut buffer = vec![0; 1 << 20];
    let begin = Instant::now();
    for _ in 0..requests / depth {
        client.stream.write_all(&request.repeat(depth)).expect("send");
        for _ in 0..depth {
            let (mut got, mut head) = (0, None);
            while head.is_none_or(|head| got < head + size) {
                let count = client.stream.read(&mut buffer[if head.is_none() { got } else { 0 }..]).expect("read");
                assert!(count > 0);
                got += count;
                if head.is_none() {
                    head = buffer[..got].windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
                }
            }
        }
    }
    begin.elapsed().as_secs_f64()
}

#[test]
#[ignore = "prints figures"]
fn speed() {
    let root = tempfile::tempdir().expect("temporary directory");
    let server =
        Server::start(Options { root: Some(root.path().into()), ..Options::with_buckets(["data"]) }).expect("start");
    server.synthetic("data", Synthetic::new("s/", 1_000_000, 1 << 30)).expect("bucket");
    server.put("data", "large", vec![7; 1 << 30]).expect("put");
    server.put("data", "small", vec![7; 1000]).expect("put");
    for key in ["large", "large", "s/0000000"] {
        let mut client = Client::new(server.address());
        let request = format!("GET /data/{key} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let seconds = drain(&mut client, 2, request.as_bytes(), 1 << 30, 1);
        println!("{key}: {:.2} GB/s", 2.0 * (1u64 << 30) as f64 / seconds / 1e9);
    }
    let address = server.address();
    for (key, size) in [("small", 1000), ("large", 100_000)] {
        let begin = Instant::now();
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(move || {
                    let range =
                        format!("GET /data/{key} HTTP/1.1\r\nhost: localhost\r\nrange: bytes=0-{}\r\n\r\n", size - 1);
                    drain(&mut Client::new(address), 5000, range.as_bytes(), size, 1);
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("client");
        }
        println!(
            "{size} bytes: {:.0} requests per second over 8 connections",
            40_000.0 / begin.elapsed().as_secs_f64()
        );
    }
    let mut client = Client::new(address);
    let begin = Instant::now();
    for _ in 0..100 {
        assert_eq!(client.get("/data?list-type=2&prefix=s%2F").elements("Key").len(), 1000);
    }
    println!("pages of 1000 keys: {:.0} per second", 100.0 / begin.elapsed().as_secs_f64());
}
