//! The S3 storage against a real server with faults.

use common::{Attr, ErrorKind, FileKind, Result, UfsPath, UfsUri, Version};
use s3server::{
    Action, Credentials, Fault, Operation, Options, Server, Synthetic,
    credentials::{CredentialServer, Kind},
    test_ca,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
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
    let quick = UfsOptions { deadline: Duration::from_millis(500), ..options(&server) };
    let storage = open("s3://bkt", &quick);
    let attr = storage.stat(&path("k")).await.unwrap();
    for action in [
        Action::Error(503),
        Action::Error(500),
        Action::Drop,
        Action::Hang,
        Action::ResetAfter(70_000),
        Action::CloseAfter(70_000),
        Action::StallAfter(70_000),
        Action::Shorten(1000),
        Action::IgnoreRange,
    ] {
        for (offset, length) in [(0, 200_000), (1000, 150_000)] {
            let fault = server.fault(Fault::new(action.clone()).on(Operation::GetObject).times(2));
            let got = read(&*storage, "k", &attr, offset, length).await.unwrap();
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
    let quick = UfsOptions {
        deadline: Duration::from_millis(200),
        give_up: Duration::from_secs(2),
        retries: 2,
        ..options(&server)
    };
    let storage = open("s3://bkt", &quick);
    let attr = storage.stat(&path("k")).await.unwrap();
    for (action, kind) in [
        (Action::Error(503), ErrorKind::Unavailable),
        (Action::Drop, ErrorKind::Unavailable),
        (Action::Hang, ErrorKind::TimedOut),
        (Action::StallAfter(0), ErrorKind::TimedOut),
        (Action::Error(403), ErrorKind::PermissionDenied),
        (Action::Etag("other".into()), ErrorKind::Stale),
    ] {
        server.fault(Fault::new(action.clone()).on(Operation::GetObject));
        let error = read(&*storage, "k", &attr, 0, 50_000).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{action:?}: {error}");
        server.clear_faults();
        assert!(read(&*storage, "k", &attr, 0, 50_000).await.unwrap() == pattern(50_000), "recovers by itself");
    }
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
    let mut server = server();
    let options = UfsOptions { retries: 1, ..options(&server) };
    server.stop();
    let error = open("s3://bkt", &options).probe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains(&server.address().to_string()), "{error}");
}

#[tokio::test]
async fn an_outage_is_survived() {
    let server = server();
    server.put("bkt", "k", "1").unwrap();
    let storage = open("s3://bkt", &UfsOptions { retries: 0, ..options(&server) });
    storage.probe().await.unwrap();
    server.pause();
    assert!(storage.stat(&path("k")).await.is_err());
    server.resume();
    for _ in 0..100 {
        if storage.stat(&path("k")).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it did not recover");
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

/// A server that wants `keys`, and options that find credentials in `environment` only.
fn chained(keys: &Credentials, environment: &[(&str, &str)]) -> (Server, UfsOptions) {
    let given = Options { credentials: vec![keys.clone()], ..Options::with_buckets(["bkt"]) };
    let server = Server::start(given).unwrap();
    let mut options = options(&server);
    options.s3.anonymous = false;
    let off = [("AWS_EC2_METADATA_DISABLED", "true")];
    let off = off.iter().filter(|_| !environment.iter().any(|(name, _)| name.starts_with("AWS_EC2")));
    options.environment = Arc::new(Environment::of(environment.iter().chain(off).copied()));
    (server, options)
}

#[tokio::test]
async fn credentials_come_from_where_aws_tools_look() {
    let keys = Credentials::new("AK", "SK").token("TOKEN");
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let shared =
        file("credentials", "[work]\naws_access_key_id=AK\naws_secret_access_key=SK\naws_session_token=TOKEN\n");
    let token = file("token", "identity");
    let instance = Kind::Imds { role: "node".into(), region: "us-east-1".into() };
    let instance = CredentialServer::start(instance, keys.clone()).unwrap();
    let sts = Kind::Sts { role_arn: "arn:aws:iam::1:role/r".into(), identity_token: "identity".into() };
    let sts = CredentialServer::start(sts, keys.clone()).unwrap();
    for environment in [
        vec![("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "SK"), ("AWS_SESSION_TOKEN", "TOKEN")],
        vec![("AWS_SHARED_CREDENTIALS_FILE", shared.as_str()), ("AWS_PROFILE", "work")],
        vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url().as_str())],
        vec![
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
            ("AWS_ENDPOINT_URL_STS", sts.url().as_str()),
        ],
    ] {
        let (server, options) = chained(&keys, &environment);
        server.put("bkt", "k", "1").unwrap();
        let storage = open("s3://bkt", &options);
        storage.probe().await.unwrap_or_else(|error| panic!("{environment:?}: {error}"));
    }
    let (_server, options) = chained(&keys, &[]);
    let error = open("s3://bkt", &options).probe().await.unwrap_err();
    assert!(error.message().contains("AWS_ACCESS_KEY_ID"), "{error}");
}

#[tokio::test]
async fn keys_are_fetched_once_and_again_when_they_expire() {
    let keys = Credentials::new("AK", "SK").token("T1");
    let instance = Kind::Imds { role: "node".into(), region: "us-east-1".into() };
    let instance = CredentialServer::start(instance, keys.clone()).unwrap();
    let (server, options) = chained(&keys, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url().as_str())]);
    server.put("bkt", "k", "1").unwrap();
    let storage = open("s3://bkt", &options);
    let file = path("k");
    let stats = (0..20).map(|_| storage.stat(&file));
    for result in futures::future::join_all(stats).await {
        result.unwrap();
    }
    assert_eq!(instance.issued(), 1, "one fetch for all");
    // The service turns the old ones down as expired: new ones are fetched, once.
    let next = Credentials::new("AK2", "SK2").token("T2");
    instance.set_credentials(next.clone());
    let expired = keys.expires(SystemTime::now() - Duration::from_secs(5));
    server.set_credentials(vec![expired, next]);
    storage.stat(&file).await.unwrap();
    assert_eq!(instance.issued(), 2);
}
