//! The services behind OpenDAL, set up from configuration keys, against imitations of them on this host.

#[path = "../support/http.rs"]
mod http;
mod imitations;
mod objects;

use crate::{
    http::{Answer, Fault, Request, Server},
    objects::{MODIFIED, Objects},
};
use common::{
    Attr, ErrorKind, FileKind, Result, UfsPath, UfsUri,
    conf::{Conf, Source},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::net::TcpSocket;
use ufs::{Environment, UfsOptions, UnderStorage};

/// The storage at `uri` as the keys of the configuration have it.
fn open(uri: &str, settings: &[(&str, &str)]) -> Result<Arc<dyn UnderStorage>> {
    let mut builder = Conf::builder().environment(common::conf::Environment::of([], 0));
    for (key, value) in settings {
        builder = builder.set(key, value, Source::CommandLine("-o".into()));
    }
    let conf = builder.load().unwrap();
    assert!(conf.warnings().is_empty(), "{:?}", conf.warnings());
    let uri = UfsUri::parse(uri).unwrap();
    let environment = Arc::new(Environment::default());
    ufs::open(&uri, &UfsOptions { environment, ..UfsOptions::from_conf(&conf, &uri) })
}

fn path(text: &str) -> UfsPath {
    UfsPath::parse(text).unwrap()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// An address of this host where nobody listens, and what keeps others from it.
fn closed() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

/// A service with what it stores, and how it is reached.
struct Place {
    objects: Objects,
    server: Server,
    uri: &'static str,
    settings: Vec<(&'static str, String)>,
}

impl Place {
    fn open(&self, more: &[(&str, &str)]) -> Arc<dyn UnderStorage> {
        let own = self.settings.iter().map(|(key, value)| (*key, value.as_str()));
        open(self.uri, &own.chain(more.iter().copied()).collect::<Vec<_>>()).unwrap()
    }
}

/// All three object stores, each below the prefix `p` of its bucket.
async fn places() -> Vec<Place> {
    let mut places = Vec::new();
    let objects = Objects::default();
    let server = imitations::google(objects.clone()).await;
    let settings =
        vec![("alluxio.underfs.gcs.endpoint", server.url.clone()), ("alluxio.underfs.gcs.anonymous", "true".into())];
    places.push(Place { objects, server, uri: "gs://bkt/p", settings });
    let objects = Objects::default();
    let server = imitations::azure(objects.clone()).await;
    let settings = vec![
        ("alluxio.underfs.abfs.endpoint", server.url.clone()),
        ("fs.azure.account.key.acme.dfs.core.windows.net", "aHVzaC1odXNo".into()),
    ];
    places.push(Place { objects, server, uri: "abfs://c@acme.dfs.core.windows.net/p", settings });
    let objects = Objects::default();
    let server = imitations::azure(objects.clone()).await;
    let settings = vec![
        ("alluxio.underfs.abfs.endpoint", server.url.clone()),
        ("alluxio.underfs.abfs.account.name", "acme".into()),
        ("alluxio.underfs.abfs.account.key", "aHVzaC1odXNo".into()),
    ];
    places.push(Place { objects, server, uri: "abfss://c/p", settings });
    let objects = Objects::default();
    let server = imitations::aliyun(objects.clone()).await;
    let settings = vec![
        ("fs.oss.endpoint", server.url.clone()),
        ("fs.oss.accessKeyId", "AK".into()),
        ("fs.oss.accessKeySecret", "aHVzaC1odXNo".into()),
    ];
    places.push(Place { objects, server, uri: "oss://bkt/p", settings });
    for place in &places {
        place.objects.put("p/dir/file", pattern(3000));
        place.objects.put("p/dir/empty", "");
        place.objects.put("p/dir/sub/x", "x");
        place.objects.put("p/sp ace+%25&=#\u{e4}", "odd");
        place.objects.put("outside", "not below the prefix");
        for number in 0..25 {
            place.objects.put(&format!("p/many/f{number:02}"), "many");
        }
    }
    places
}

async fn read(storage: &dyn UnderStorage, at: &str, attr: &Attr, offset: u64, length: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    storage.read(&path(at), &attr.version, offset, length, &mut bytes).await.map(|()| bytes)
}

async fn entries(storage: &dyn UnderStorage, at: &str) -> Result<BTreeMap<String, (FileKind, Option<Attr>)>> {
    let mut listing = storage.list(&path(at)).await?;
    let mut all = BTreeMap::new();
    while let Some(batch) = listing.next().await? {
        for entry in batch {
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            let attr = entry.attr.map(|attr| (*attr).clone());
            assert!(all.insert(name.clone(), (entry.kind, attr)).is_none(), "{name} came twice");
        }
    }
    Ok(all)
}

#[tokio::test]
async fn files_of_object_stores_are_found_listed_and_read() {
    for place in places().await {
        let (storage, uri) = (place.open(&[]), place.uri);
        storage.probe().await.unwrap_or_else(|error| panic!("{uri}: {error}"));
        assert!(storage.stat(&UfsPath::root()).await.unwrap().is_dir());
        let attr = storage.stat(&path("dir/file")).await.unwrap_or_else(|error| panic!("{uri}: {error}"));
        assert_eq!((attr.kind, attr.size, attr.mtime.sec), (FileKind::File, 3000, MODIFIED.1), "{uri}");
        assert!(!attr.version.is_none() && !attr.version.as_str().starts_with('@'), "{uri}: the etag is the version");
        assert!(storage.stat(&path("dir")).await.unwrap_or_else(|error| panic!("{uri}: {error}")).is_dir());
        for none in ["none", "dir/none", "dir/file/x", "outside"] {
            assert_eq!(storage.stat(&path(none)).await.unwrap_err().kind(), ErrorKind::NotFound, "{uri} {none}");
        }
        for (offset, length) in [(0, 3000), (1, 1), (2999, 1), (1000, 1500)] {
            place.server.take_log();
            let got = read(&*storage, "dir/file", &attr, offset, length).await.unwrap();
            assert!(got == pattern(3000)[offset as usize..(offset + length) as usize], "{uri} {offset} {length}");
            let asked = place.server.take_log();
            assert_eq!(asked.len(), 1, "{uri}: one request for a range");
            assert!(asked[0].header("range").is_some() && asked[0].header("if-match").is_some(), "{uri}");
        }
        let all = entries(&*storage, "dir").await.unwrap();
        let kinds: Vec<_> = all.iter().map(|(name, (kind, _))| (name.as_str(), *kind)).collect();
        assert_eq!(kinds, [("empty", FileKind::File), ("file", FileKind::File), ("sub", FileKind::Directory)], "{uri}");
        assert_eq!(all["file"].1.as_ref(), Some(&attr), "{uri}: a listing says the same");
        place.server.take_log();
        assert_eq!(entries(&*storage, "many").await.unwrap().len(), 25, "{uri}");
        assert_eq!(place.server.take_log().len(), 3, "{uri}: a request for each page");
        let root: Vec<String> = entries(&*storage, "").await.unwrap().into_keys().collect();
        assert_eq!(root, ["dir", "many", "sp ace+%25&=#\u{e4}"], "{uri}");
        let odd = storage.stat(&path("sp ace+%25&=#\u{e4}")).await.unwrap();
        assert_eq!(read(&*storage, "sp ace+%25&=#\u{e4}", &odd, 0, 3).await.unwrap(), b"odd", "{uri}");
        assert_eq!(storage.list(&path("none")).await.err().unwrap().kind(), ErrorKind::NotFound, "{uri}");
        assert_eq!(storage.list(&path("dir/file")).await.err().unwrap().kind(), ErrorKind::NotADirectory, "{uri}");
        let head = storage.stat_and_read(&path("dir/file"), 100).await.unwrap();
        assert_eq!(head.attr, attr, "{uri}");
    }
}

#[tokio::test]
async fn a_change_of_an_object_is_stale() {
    for place in places().await {
        let (storage, uri) = (place.open(&[]), place.uri);
        let attr = storage.stat(&path("dir/file")).await.unwrap();
        place.objects.put("p/dir/file", vec![7; 3000]);
        let error = read(&*storage, "dir/file", &attr, 0, 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale, "{uri}: {error}");
        let fresh = storage.stat(&path("dir/file")).await.unwrap();
        assert_eq!(read(&*storage, "dir/file", &fresh, 0, 10).await.unwrap(), [7; 10], "{uri}");
        place.objects.delete("p/dir/file");
        let error = read(&*storage, "dir/file", &fresh, 0, 10).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stale, "{uri}: {error}");
    }
}

#[tokio::test]
async fn faults_that_pass_are_not_seen() {
    for place in places().await {
        let (storage, uri) = (place.open(&[]), place.uri);
        let attr = storage.stat(&path("dir/file")).await.unwrap();
        for fault in [Fault::Status(503), Fault::Status(500), Fault::Status(429), Fault::Drop] {
            place.server.fail(fault, 2);
            let again = storage.stat(&path("dir/file")).await;
            assert_eq!(again.unwrap_or_else(|error| panic!("{uri} {fault:?}: {error}")), attr);
            assert_eq!(place.server.heal(), 0);
            place.server.fail(fault, 2);
            assert!(read(&*storage, "dir/file", &attr, 10, 2000).await.unwrap() == pattern(3000)[10..2010]);
            assert_eq!(place.server.heal(), 0);
            place.server.fail(fault, 2);
            let all = entries(&*storage, "many").await;
            assert_eq!(all.unwrap_or_else(|error| panic!("{uri} {fault:?}: {error}")).len(), 25);
            assert_eq!(place.server.heal(), 0);
            place.server.fail(fault, 1);
            storage.probe().await.unwrap_or_else(|error| panic!("{uri} {fault:?}: {error}"));
            assert_eq!(place.server.heal(), 0);
        }
        // The body ends early: the rest is asked for, from the byte where it stopped.
        place.server.fail(Fault::Half, 2);
        assert!(read(&*storage, "dir/file", &attr, 10, 2000).await.unwrap() == pattern(3000)[10..2010], "{uri}");
        place.server.fail(Fault::Half, 2);
        assert_eq!(entries(&*storage, "many").await.unwrap().len(), 25, "{uri}");
        assert_eq!(place.server.heal(), 0);
    }
}

#[tokio::test]
async fn faults_that_stay_end_in_an_error() {
    for place in places().await {
        let patient = place.open(&[("alluxio.user.ufs.retries", "1")]);
        // Only what never answers is waited for in vain, so that no busy machine is taken for it.
        let hasty = place.open(&[("alluxio.user.ufs.retries", "1"), ("alluxio.user.ufs.deadline", "1s")]);
        let uri = place.uri;
        let attr = patient.stat(&path("dir/file")).await.unwrap();
        for (fault, kinds, storage) in [
            (Fault::Status(403), [ErrorKind::PermissionDenied; 2], &patient),
            (Fault::Status(503), [ErrorKind::Unavailable; 2], &patient),
            // Which of two clocks ends it is a matter of chance.
            (Fault::Hang, [ErrorKind::TimedOut, ErrorKind::Unavailable], &hasty),
        ] {
            place.server.fail(fault, u64::MAX);
            let calls = async {
                let list = entries(&**storage, "many").await.err();
                let read = read(&**storage, "dir/file", &attr, 0, 100).await.err();
                let stat = storage.stat(&path("dir/file")).await.err();
                [("probe", storage.probe().await.err()), ("list", list), ("read", read), ("stat", stat)]
            };
            let ended = tokio::time::timeout(Duration::from_secs(300), calls).await;
            for (what, error) in ended.unwrap_or_else(|_| panic!("{uri} {fault:?}: no end")) {
                let error = error.unwrap_or_else(|| panic!("{uri} {fault:?} {what}: no error"));
                assert!(kinds.contains(&error.kind()), "{uri} {fault:?} {what}: {error:?}");
                assert!(!error.message().contains("hush") && !error.message().contains('\n'), "{error}");
            }
            place.server.heal();
        }
        assert!(patient.stat(&path("dir/file")).await.is_ok(), "{uri}: recovers by itself");
    }
}

#[tokio::test]
async fn a_service_that_ignores_ranges_gives_no_wrong_bytes() {
    for place in places().await {
        let (storage, uri) = (place.open(&[]), place.uri);
        let attr = storage.stat(&path("dir/file")).await.unwrap();
        place.server.fail(Fault::IgnoreRange, u64::MAX);
        for (offset, length) in [(0, 3000), (0, 100), (1000, 100)] {
            match read(&*storage, "dir/file", &attr, offset, length).await {
                Ok(bytes) => assert!(bytes == pattern(3000)[offset as usize..(offset + length) as usize], "{uri}"),
                Err(error) => assert_eq!(common::errno::errno(error.kind()), libc::EIO, "{uri}: {error}"),
            }
        }
    }
}

#[tokio::test]
async fn every_service_says_when_it_is_away() {
    let (_socket, address) = closed();
    let endpoint = format!("http://{address}");
    let endpoint = endpoint.as_str();
    let (web, hdfs) = (format!("webhdfs://{address}/x"), format!("hdfs://{address}/x"));
    let key = ("fs.azure.account.key.acme.dfs.core.windows.net", "aHVzaC1odXNo");
    for (uri, mut settings) in [
        ("gs://bkt/p", vec![("alluxio.underfs.gcs.endpoint", endpoint), ("alluxio.underfs.gcs.anonymous", "true")]),
        ("abfs://c@acme.dfs.core.windows.net/p", vec![("alluxio.underfs.abfs.endpoint", endpoint), key]),
        (
            "oss://bkt/p",
            vec![
                ("fs.oss.endpoint", endpoint),
                ("fs.oss.accessKeyId", "AK"),
                ("fs.oss.accessKeySecret", "aHVzaC1odXNo"),
            ],
        ),
        (web.as_str(), vec![]),
        (hdfs.as_str(), vec![]),
    ] {
        settings.push(("alluxio.user.ufs.retries", "1"));
        let storage = open(uri, &settings).unwrap_or_else(|error| panic!("{uri}: {error}"));
        for error in [storage.probe().await.unwrap_err(), storage.stat(&path("f")).await.unwrap_err()] {
            assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut), "{uri}: {error:?}");
            let (scheme, message) = (uri.split_once(':').unwrap().0, error.message());
            assert!(message.contains(&format!("{scheme}://")), "names the storage: {error}");
            assert!(!message.contains('\n') && !message.contains("hush"), "{error}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
    let missing = ("alluxio.underfs.hdfs.configuration", "/nowhere/core-site.xml");
    for (uri, settings, word) in [
        ("oss://bucket", vec![], "fs.oss.endpoint"),
        ("abfs://c", vec![], "account"),
        ("hdfs://h/", vec![missing], "/nowhere/core-site.xml"),
    ] {
        let error = open(uri, &settings).err().unwrap();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains(word), "{error}");
    }
}

#[tokio::test]
async fn the_configuration_of_hdfs_tells_where_the_name_nodes_are() {
    let ((_one, one), (_two, two)) = (closed(), closed());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hdfs-site.xml");
    let property = |name: &str, value: &str| format!("<property><name>{name}</name><value>{value}</value></property>");
    let text = [
        property("dfs.ha.namenodes.prod", "a,b"),
        property("dfs.namenode.rpc-address.prod.a", &one),
        property("dfs.namenode.rpc-address.prod.b", &two),
    ]
    .concat();
    std::fs::write(&file, format!("<configuration>{text}</configuration>")).unwrap();
    let settings = [("alluxio.underfs.hdfs.configuration", file.to_str().unwrap()), ("alluxio.user.ufs.retries", "1")];
    let storage = open("hdfs://prod/x", &settings).unwrap();
    let error = storage.probe().await.unwrap_err();
    // Without the file, `prod` would be looked up as the name of a host.
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.message().contains("hdfs://prod") && error.message().contains("refused"), "{error}");
}

/// Answers as a name node with one directory `/d` that holds the file `f` of ten bytes.
fn name_node(request: &Request) -> Answer {
    let path = request.path.trim_start_matches("/webhdfs/v1").trim_end_matches('/');
    let file = r#"{"length":10,"modificationTime":1700000000000,"pathSuffix":"NAME","type":"FILE"}"#;
    let directory = r#"{"length":0,"modificationTime":1700000000000,"pathSuffix":"","type":"DIRECTORY"}"#;
    match (path, request.query("op")) {
        ("/d/f", "GETFILESTATUS") => Answer::new(200, format!(r#"{{"FileStatus":{}}}"#, file.replace("NAME", ""))),
        ("/d" | "", "GETFILESTATUS") => Answer::new(200, format!(r#"{{"FileStatus":{directory}}}"#)),
        ("/d", "LISTSTATUS_BATCH") => {
            let statuses = format!(r#"{{"FileStatuses":{{"FileStatus":[{}]}}}}"#, file.replace("NAME", "f"));
            Answer::new(200, format!(r#"{{"DirectoryListing":{{"partialListing":{statuses},"remainingEntries":0}}}}"#))
        }
        ("/d/f", "OPEN") => {
            let from = request.query("offset").parse().unwrap_or(0);
            let to = request.query("length").parse::<usize>().map_or(10, |length| from + length);
            Answer::new(200, &"0123456789"[from..to])
        }
        _ => Answer::new(
            404,
            r#"{"RemoteException":{"exception":"FileNotFoundException","javaClassName":"java.io.FileNotFoundException","message":"none"}}"#,
        ),
    }
}

#[tokio::test]
async fn files_of_webhdfs_are_found_listed_and_read() {
    let server = Server::start(name_node).await;
    let uri = server.url.replace("http://", "webhdfs://");
    let storage = open(&uri, &[("alluxio.underfs.webhdfs.user", "ann")]).unwrap();
    let file = path("d/f");
    let attr = storage.stat(&file).await.unwrap();
    assert_eq!((attr.is_file(), attr.size, attr.mtime.sec), (true, 10, 1_700_000_000));
    assert!(storage.stat(&path("d")).await.unwrap().is_dir());
    assert_eq!(storage.stat(&path("d/none")).await.unwrap_err().kind(), ErrorKind::NotFound);
    server.fail(Fault::Status(503), 1);
    let all = entries(&*storage, "d").await.unwrap();
    assert_eq!((all.len(), all["f"].1.as_ref()), (1, Some(&attr)));
    assert_eq!(read(&*storage, "d/f", &attr, 2, 5).await.unwrap(), b"23456");
    assert!(server.take_log().iter().all(|request| request.query("user.name") == "ann"));
    let other = Attr { version: common::Version::new("@9-1"), ..attr };
    assert_eq!(read(&*storage, "d/f", &other, 0, 1).await.unwrap_err().kind(), ErrorKind::Stale);
}
