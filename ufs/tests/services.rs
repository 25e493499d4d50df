//! The services behind OpenDAL: that they can be set up, and one of them against a small imitation.

use common::{ErrorKind, UfsPath, UfsUri};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use ufs::{Environment, Secret, UfsOptions, UnderStorage};

fn open(uri: &str, settings: &[(&str, &str)]) -> common::Result<Arc<dyn UnderStorage>> {
    let service: BTreeMap<_, _> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
    let environment = Arc::new(Environment::default());
    let options = UfsOptions { service, environment, retries: 0, ..Default::default() };
    ufs::open(&UfsUri::parse(uri).unwrap(), &options)
}

#[tokio::test]
async fn every_service_can_be_set_up_and_says_when_it_is_away() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let endpoint = format!("http://{address}");
    let endpoint = endpoint.as_str();
    let web = format!("webhdfs://{address}/x");
    for (uri, settings) in [
        ("gs://bucket/p", vec![("endpoint", endpoint), ("skip_signature", "true")]),
        ("abfs://c@acme.dfs.core.windows.net/p", vec![("endpoint", endpoint), ("account_key", "aGVsbG8=")]),
        ("oss://bucket/p", vec![("endpoint", endpoint), ("access_key_id", "a"), ("access_key_secret", "hush")]),
        (web.as_str(), vec![]),
    ] {
        let storage = open(uri, &settings).unwrap_or_else(|error| panic!("{uri}: {error}"));
        let error = storage.probe().await.unwrap_err();
        assert!(error.kind().is_transient(), "{uri}: {error:?}");
        assert!(!error.message().contains('\n') && !error.message().contains("hush"), "{error}");
    }
    assert!(open("hdfs://name:8020/p", &[]).is_ok());
    for (uri, word) in [("oss://bucket", "fs.oss.endpoint"), ("abfs://c", "account")] {
        let error = open(uri, &[]).err().unwrap();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains(word), "{error}");
    }
}

/// Answers as a name node with one directory `/d` that holds the file `f` of ten bytes.
async fn name_node(listener: TcpListener) {
    while let Ok((mut connection, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = connection.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let target = head.split(' ').nth(1).unwrap();
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let path = path.trim_start_matches("/webhdfs/v1").trim_end_matches('/');
            let file = r#"{"length":10,"modificationTime":1700000000000,"pathSuffix":"NAME","type":"FILE"}"#;
            let directory = r#"{"length":0,"modificationTime":1700000000000,"pathSuffix":"","type":"DIRECTORY"}"#;
            let (status, body) = match (path, query) {
                ("/d/f", query) if query.contains("op=GETFILESTATUS") => {
                    ("200 OK", format!(r#"{{"FileStatus":{}}}"#, file.replace("NAME", "")))
                }
                ("/d" | "", query) if query.contains("op=GETFILESTATUS") => {
                    ("200 OK", format!(r#"{{"FileStatus":{directory}}}"#))
                }
                ("/d", query) if query.contains("op=LISTSTATUS_BATCH") => {
                    let statuses = format!(r#"{{"FileStatuses":{{"FileStatus":[{}]}}}}"#, file.replace("NAME", "f"));
                    (
                        "200 OK",
                        format!(r#"{{"DirectoryListing":{{"partialListing":{statuses},"remainingEntries":0}}}}"#),
                    )
                }
                ("/d/f", query) if query.contains("op=OPEN") => {
                    let number = |name: &str| {
                        let found = query.split('&').find_map(|part| part.strip_prefix(name));
                        found.map(|value| value.parse::<usize>().unwrap())
                    };
                    let from = number("offset=").unwrap_or(0);
                    let to = number("length=").map_or(10, |length| from + length);
                    ("200 OK", "0123456789"[from..to].to_owned())
                }
                _ => {
                    let why = r#"{"RemoteException":{"exception":"FileNotFoundException","javaClassName":"java.io.FileNotFoundException","message":"none"}}"#;
                    ("404 Not Found", why.to_owned())
                }
            };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            drop(connection.write_all(answer.as_bytes()).await);
        });
    }
}

#[tokio::test]
async fn files_of_webhdfs_are_found_listed_and_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("webhdfs://{}/", listener.local_addr().unwrap());
    let server = tokio::spawn(name_node(listener));
    let storage = open(&uri, &[]).unwrap();
    let file = UfsPath::parse("d/f").unwrap();
    let attr = storage.stat(&file).await.unwrap();
    assert_eq!((attr.is_file(), attr.size, attr.mtime.sec), (true, 10, 1_700_000_000));
    assert!(storage.stat(&UfsPath::parse("d").unwrap()).await.unwrap().is_dir());
    assert_eq!(storage.stat(&UfsPath::parse("d/none").unwrap()).await.unwrap_err().kind(), ErrorKind::NotFound);
    let mut listing = storage.list(&UfsPath::parse("d").unwrap()).await.unwrap();
    let batch = listing.next().await.unwrap().unwrap();
    assert_eq!(batch.len(), 1);
    assert_eq!((&*batch[0].name, batch[0].attr.as_deref()), (&b"f"[..], Some(&attr)));
    assert!(listing.next().await.unwrap().is_none());
    let mut bytes = Vec::new();
    storage.read(&file, &attr.version, 2, 5, &mut bytes).await.unwrap();
    assert_eq!(bytes, b"23456");
    let other = common::Version::new("@9-1");
    assert_eq!(storage.read(&file, &other, 0, 1, &mut bytes).await.unwrap_err().kind(), ErrorKind::Stale);
    server.abort();
}
