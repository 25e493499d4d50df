//! The S3 storage against a real server with faults.

mod credentials;
#[path = "../support/http.rs"]
mod http;
mod writes;

use common::{Attr, ErrorKind, FileKind, Result, UfsPath, UfsUri, Version};
use s3server::{Action, Credentials, Fault, Operation, Options, Server, Synthetic, test_ca};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use ufs::{Environment, S3Options, Secret, UfsOptions, UnderStorage};

fn server() -> Server {
    Server::start(Options::with_buckets(["bkt"])).unwrap()
}

fn options(server: &Server) -> UfsOptions {
    UfsOptions {
        s3: S3Options { endpoint: Some(server.url()), anonymous: true, ..Default::default() },
        environment: Arc::new(Environment::default()),
        ..Default::default()
    }
}

fn open(uri: &str, options: &UfsOptions) -> Arc<dyn UnderStorage> {
    ufs::open(&UfsUri::parse(uri).unwrap(), options).unwrap()
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

async fn read(storage: &dyn UnderStorage, at: &str, attr: &Attr, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    storage.read(&path(at), &attr.version, offset, length, &mut bytes).await.map(|()| bytes)
}

async fn names(storage: &dyn UnderStorage, at: &str) -> BTreeMap<String, FileKind> {
    let mut listing = storage.list(&path(at)).await.unwrap();
    let mut all = BTreeMap::new();
    while let Some(batch) = listing.next().await.unwrap() {
        assert!(!batch.is_empty());
        for entry in batch {
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            assert!(all.insert(name.clone(), entry.kind).is_none(), "{name} came twice");
        }
    }
    all
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[tokio::test]
async fn attributes_bytes_and_ranges() {
    let server = server();
    let bytes = pattern(300_000);
    server.put("bkt", "p/dir/file", bytes.clone()).unwrap();
    server.put("bkt", "p/empty", "").unwrap();
    let storage = open("s3://bkt/p", &options(&server));
    storage.probe().await.unwrap();
    let attr = storage.stat(&path("dir/file")).await.unwrap();
    assert_eq!((attr.kind, attr.size), (FileKind::File, 300_000));
    assert!(storage.stat(&path("dir")).await.unwrap().is_dir());
    assert!(storage.stat(&UfsPath::root()).await.unwrap().is_dir());
    assert_eq!(storage.stat(&path("none")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage.stat(&path("dir/file/x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    for (offset, length) in [(0, 300_000), (1, 1), (299_999, 1), (5, 0), (1000, 200_000)] {
        let got = read(&*storage, "dir/file", &attr, offset, length).await.unwrap();
        assert!(got == bytes[offset as usize..(offset + length) as usize]);
    }
    for (max, wanted) in [(10, 10), (300_000, 300_000), (1 << 20, 300_000)] {
        let head = storage.stat_and_read(&path("dir/file"), max).await.unwrap();
        assert_eq!(head.attr, attr);
        assert!(head.bytes == bytes[..wanted]);
    }
    let empty = storage.stat_and_read(&path("empty"), 10).await.unwrap();
    assert_eq!((empty.attr.size, empty.bytes.len()), (0, 0));
    assert!(storage.stat_and_read(&path("dir"), 10).await.unwrap().attr.is_dir());
    let mut listing = storage.list(&path("dir")).await.unwrap();
    let batch = listing.next().await.unwrap().unwrap();
    assert_eq!(**batch[0].attr.as_ref().unwrap(), attr, "a listing and a HEAD say the same");
    assert!(listing.next().await.unwrap().is_none());
    assert_eq!(storage.list(&path("dir/file")).await.err().unwrap().kind(), ErrorKind::NotADirectory);
    assert_eq!(storage.list(&path("none")).await.err().unwrap().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn long_listings_come_in_pages() {
    let server = Server::start(Options { page_limit: 700, ..Options::with_buckets(["bkt"]) }).unwrap();
    server.synthetic("bkt", Synthetic::new("d/f", 2500, 3)).unwrap();
    let storage = open("s3a://bkt", &options(&server));
    assert_eq!(names(&*storage, "d").await.len(), 2500);
    assert!(server.count(Operation::ListObjectsV2) >= 4);
    server.fault(Fault::new(Action::Error(500)).on(Operation::ListObjectsV2).skip(1));
    let quick = UfsOptions { retries: 1, ..options(&server) };
    let mut listing = open("s3://bkt", &quick).list(&path("d")).await.unwrap();
    let mut seen = 0;
    let error = loop {
        match listing.next().await {
            Ok(Some(batch)) => seen += batch.len(),
            Ok(None) => panic!("a listing that failed ended as if it were whole, after {seen}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(listing.next().await.is_err(), "it goes on to fail");
}

#[tokio::test]
async fn awkward_keys_are_shown_and_read() {
    let server = server();
    let long = format!("long/{}", "x".repeat(300));
    let keys = [
        "a",
        "a-",
        "a/b",
        "a//c",
        "a/./d",
        "a/../e",
        "/lead",
        "m/",
        "full/",
        "sp ace+%25&=?#",
        "\u{e4}\u{1f600}",
        "new\nline",
        "100%{x}",
        &long,
        "tab\t\"'<>&",
    ];
    for key in keys {
        server.put("bkt", key, if key == "m/" { String::new() } else { format!("<{key}>") }).unwrap();
    }
    let storage = open("s3://bkt", &options(&server));
    let mut found = BTreeSet::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        for (name, kind) in names(&*storage, &directory).await {
            let at = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            let head = storage.stat_and_read(&path(&at), 2000).await.unwrap();
            assert_eq!(head.attr.kind, kind, "{at}");
            if kind == FileKind::Directory {
                directories.push(at);
                continue;
            }
            let bytes = read(&*storage, &at, &head.attr, 0, head.attr.size).await.unwrap();
            assert_eq!(bytes, head.bytes);
            assert_eq!(storage.stat(&path(&at)).await.unwrap(), head.attr);
            assert!(found.insert(String::from_utf8(bytes).unwrap()));
        }
    }
    let expected: BTreeSet<String> = keys.iter().filter(|key| **key != "m/").map(|key| format!("<{key}>")).collect();
    assert_eq!(found, expected);
    assert!(storage.stat(&path("m")).await.unwrap().is_dir());
    assert!(names(&*storage, "m").await.is_empty());
    assert_eq!(storage.stat(&path("a-%{file}")).await.unwrap_err().kind(), ErrorKind::NotFound, "one key, one path");
}

#[tokio::test]
async fn a_change_while_reading_is_stale() {
    let server = server();
    server.put("bkt", "k", pattern(1000)).unwrap();
    let storage = open("s3://bkt", &options(&server));
    let attr = storage.stat(&path("k")).await.unwrap();
    server.put("bkt", "k", vec![1; 1000]).unwrap();
    assert_eq!(read(&*storage, "k", &attr, 0, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    server.delete("bkt", "k").unwrap();
    assert_eq!(read(&*storage, "k", &attr, 0, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    server.put("bkt", "k", pattern(10)).unwrap();
    assert_eq!(read(&*storage, "k", &attr, 500, 10).await.unwrap_err().kind(), ErrorKind::Stale);
    let any = Attr { version: Version::none(), ..attr };
    assert_eq!(read(&*storage, "k", &any, 0, 10).await.unwrap(), pattern(10));
}

#[tokio::test]
async fn faults_that_pass_are_not_seen() {
    let server = server();
    let bytes = pattern(200_000);
    server.put("bkt", "k", bytes.clone()).unwrap();
    // Long enough for a busy machine; retries end what goes wrong, not time.
    let patient =
        UfsOptions { deadline: Duration::from_secs(30), give_up: Duration::from_secs(300), ..options(&server) };
    // A silence must be waited out, and a machine that is too busy for one attempt has others, so these have more of them.
    let silence = UfsOptions {
        deadline: Duration::from_secs(1),
        give_up: Duration::from_secs(300),
        retries: 50,
        ..options(&server)
    };
    let (patient, silence) = (open("s3://bkt", &patient), open("s3://bkt", &silence));
    let attr = patient.stat(&path("k")).await.unwrap();
    for (action, storage) in [
        (Action::Error(503), &patient),
        (Action::Error(500), &patient),
        (Action::Drop, &patient),
        (Action::Hang, &silence),
        (Action::ResetAfter(70_000), &patient),
        (Action::CloseAfter(70_000), &patient),
        (Action::StallAfter(70_000), &silence),
        (Action::Shorten(1000), &patient),
        (Action::IgnoreRange, &patient),
    ] {
        for (offset, length) in [(0, 200_000), (1000, 150_000)] {
            let fault = server.fault(Fault::new(action.clone()).on(Operation::GetObject).times(2));
            let got = read(&**storage, "k", &attr, offset, length).await.unwrap();
            assert!(got == bytes[offset as usize..(offset + length) as usize], "{action:?}");
            assert!(server.fault_hits(fault) > 0);
            server.clear_faults();
            server.fault(Fault::new(action.clone()).on(Operation::GetObject).times(2));
            let head = storage.stat_and_read(&path("k"), 100_000).await.unwrap();
            assert!(head.attr == attr && head.bytes == bytes[..100_000], "{action:?}");
            server.clear_faults();
        }
    }
}

#[tokio::test]
async fn faults_that_stay_end_in_an_error() {
    let server = server();
    server.put("bkt", "k", pattern(50_000)).unwrap();
    let patient = UfsOptions { deadline: Duration::from_secs(30), retries: 2, ..options(&server) };
    // Only what never answers is waited for in vain, so that no busy machine is taken for it.
    let hasty = UfsOptions { deadline: Duration::from_millis(300), retries: 1, ..options(&server) };
    let (patient, hasty) = (open("s3://bkt", &patient), open("s3://bkt", &hasty));
    let attr = patient.stat(&path("k")).await.unwrap();
    for (action, kind, storage) in [
        (Action::Error(503), ErrorKind::Unavailable, &patient),
        (Action::Drop, ErrorKind::Unavailable, &patient),
        (Action::Hang, ErrorKind::TimedOut, &hasty),
        (Action::StallAfter(0), ErrorKind::TimedOut, &hasty),
        (Action::Error(403), ErrorKind::PermissionDenied, &patient),
        (Action::Etag("other".into()), ErrorKind::Stale, &patient),
    ] {
        server.fault(Fault::new(action.clone()).on(Operation::GetObject));
        let error = read(&**storage, "k", &attr, 0, 50_000).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{action:?}: {error}");
        server.clear_faults();
        assert!(read(&*patient, "k", &attr, 0, 50_000).await.unwrap() == pattern(50_000), "recovers by itself");
    }
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_an_input_output_error_far_into_a_file() {
    let server = server();
    server.synthetic("bkt", Synthetic::new("f", 1, 100 << 20)).unwrap();
    let storage = open("s3://bkt", &UfsOptions { retries: 1, ..options(&server) });
    let attr = storage.stat(&path("f0000000")).await.unwrap();
    let right = read(&*storage, "f0000000", &attr, 1000, 10).await.unwrap();
    server.fault(Fault::new(Action::IgnoreRange).on(Operation::GetObject));
    let error = read(&*storage, "f0000000", &attr, 90 << 20, 10).await.unwrap_err();
    assert_eq!(common::errno::errno(error.kind()), libc::EIO, "{error}");
    assert_eq!(read(&*storage, "f0000000", &attr, 1000, 10).await.unwrap(), right, "near its begin it is read through");
}

#[tokio::test]
async fn buckets_may_be_host_names() {
    let given = Options {
        credentials: vec![Credentials::new("AK", "SK")],
        domain: Some("s3.test".into()),
        ..Options::with_buckets(["bkt"])
    };
    let server = Server::start(given).unwrap();
    server.put("bkt", "dir/a b", "virtual").unwrap();
    let mut options = signed(&server, "AK", "SK");
    options.s3.endpoint = Some("http://s3.test".into());
    options.s3.path_style = Some(false);
    // No resolver knows the host: as a proxy, the server gets what is meant for it.
    options.environment = Arc::new(Environment::of([("HTTP_PROXY", server.url())]));
    let storage = open("s3://bkt/dir", &options);
    storage.probe().await.unwrap();
    let attr = storage.stat(&path("a b")).await.unwrap();
    assert_eq!(read(&*storage, "a b", &attr, 1, 4).await.unwrap(), b"irtu");
    assert_eq!(names(&*storage, "").await.len(), 1);
    assert!(server.log().iter().all(|record| record.bucket == "bkt"));
    let error = open("s3://other", &options).probe().await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.message().contains("no such bucket"), "{error}");
}

#[tokio::test]
async fn a_sink_that_has_enough_ends_the_read() {
    struct Little(Vec<u8>);
    impl ufs::ReadSink for Little {
        fn push(&mut self, bytes: &[u8]) -> bool {
            self.0.extend_from_slice(bytes);
            false
        }
    }
    let server = server();
    server.put("bkt", "k", pattern(5_000_000)).unwrap();
    let storage = open("s3://bkt", &options(&server));
    let attr = storage.stat(&path("k")).await.unwrap();
    let mut sink = Little(Vec::new());
    storage.read(&path("k"), &attr.version, 7, 4_000_000, &mut sink).await.unwrap();
    assert!(!sink.0.is_empty() && sink.0.len() < 4_000_000);
    assert!(sink.0 == pattern(5_000_000)[7..7 + sink.0.len()]);
}

fn signed(server: &Server, access: &str, secret: &str) -> UfsOptions {
    let mut options = options(server);
    options.s3.anonymous = false;
    options.s3.access_key = Some(access.into());
    options.s3.secret_key = Some(Secret::new(secret));
    options
}

#[tokio::test]
async fn what_is_wrong_is_named_when_mounting() {
    let given = Options { credentials: vec![Credentials::new("AK", "SK")], ..Options::with_buckets(["bkt"]) };
    let server = Server::start(given).unwrap();
    server.put("bkt", "k +\u{e4}/x", "1").unwrap();
    let storage = open("s3://bkt", &signed(&server, "AK", "SK"));
    storage.probe().await.unwrap();
    assert_eq!(storage.stat(&path("k +\u{e4}/x")).await.unwrap().size, 1);
    for (uri, options, kind, word) in [
        ("s3://missing", signed(&server, "AK", "SK"), ErrorKind::NotFound, "no such bucket"),
        ("s3://bkt", signed(&server, "AK", "wrong-secret"), ErrorKind::PermissionDenied, "s3a.secretKey"),
        ("s3://bkt", signed(&server, "nobody", "SK"), ErrorKind::PermissionDenied, "access key"),
        ("s3://bkt", options(&server), ErrorKind::PermissionDenied, "denied"),
    ] {
        let error = open(uri, &options).probe().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(word), "{error}");
        assert!(!error.message().contains("wrong-secret") && !error.message().contains('\n'), "{error}");
    }
    let mut half = options(&server);
    half.s3.anonymous = false;
    half.s3.access_key = Some("AK".into());
    let error = ufs::open(&UfsUri::parse("s3://bkt").unwrap(), &half).err().unwrap();
    assert!(error.message().contains("s3a.secretKey"), "{error}");
    let unknown = ufs::open(&UfsUri::parse("ftp://b").unwrap(), &half).err().unwrap();
    assert!(unknown.message().contains("s3"), "{unknown}");
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_named() {
    // Bound and not listened to: nobody else can have the port meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let mut options = UfsOptions { retries: 1, ..options(&server()) };
    options.s3.endpoint = Some(format!("http://{address}"));
    let error = open("s3://bkt", &options).probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains(&address), "{error}");
}

#[tokio::test]
async fn an_outage_is_survived() {
    let server = server();
    server.put("bkt", "k", "1").unwrap();
    let storage = open("s3://bkt", &UfsOptions { retries: 0, ..options(&server) });
    storage.probe().await.unwrap();
    // The server's threads learn of the outage and of its end one after the other, so both are waited for.
    server.pause();
    until("it is away", async || storage.stat(&path("k")).await.is_err()).await;
    server.resume();
    until("it is back", async || storage.stat(&path("k")).await.is_ok()).await;
}

/// Waits until `holds`, for a minute at most.
async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let polling = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), polling).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn the_region_is_found_out() {
    let given = Options {
        credentials: vec![Credentials::new("AK", "SK")],
        region: Some("eu-central-1".into()),
        ..Options::with_buckets(["bkt"])
    };
    let server = Server::start(given).unwrap();
    server.put("bkt", "k", "1").unwrap();
    let storage = open("s3://bkt", &signed(&server, "AK", "SK"));
    storage.probe().await.unwrap();
    assert_eq!(storage.stat(&path("k")).await.unwrap().size, 1);
    let moved = Action::Redirect { status: 301, region: "us-west-2".into(), location: None };
    server.fault(Fault::new(moved).on(Operation::GetObject).times(1));
    let error = storage.stat_and_read(&path("k"), 9).await;
    assert!(error.is_ok(), "{error:?}");
}

#[tokio::test]
async fn tls_trusts_whom_it_is_told_to() {
    let ca = test_ca().unwrap();
    let server = Server::start(Options { tls: Some(ca.server.clone()), ..Options::with_buckets(["bkt"]) }).unwrap();
    server.put("bkt", "k", "1").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, &ca.ca).unwrap();
    let mut given = options(&server);
    let error = open("s3://bkt", &given).probe().await.unwrap_err();
    assert!(error.message().contains("alluxio.underfs.s3.ca.cert"), "{error}");
    given.s3.ca_file = Some(file.clone());
    let storage = open("s3://bkt", &given);
    storage.probe().await.unwrap();
    assert_eq!(storage.stat(&path("k")).await.unwrap().size, 1);
    let mut bundle = options(&server);
    bundle.environment = Arc::new(Environment::of([("AWS_CA_BUNDLE", file.to_str().unwrap())]));
    open("s3://bkt", &bundle).probe().await.unwrap();
    given.s3.ca_file = Some(directory.path().join("none.pem"));
    assert!(ufs::open(&UfsUri::parse("s3://bkt").unwrap(), &given).err().unwrap().message().contains("none.pem"));
    // Nobody needs certificates without TLS.
    let plain = self::server();
    let mut broken = options(&plain);
    broken.environment = Arc::new(Environment::of([("AWS_CA_BUNDLE", "/nowhere")]));
    open("s3://bkt", &broken).probe().await.unwrap();
}
