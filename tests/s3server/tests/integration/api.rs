//! The operations of S3, in memory and on disk.

use s3server::{Operation, Options, Server, Synthetic, synthetic_bytes};

use crate::raw::Client;

const KEYS: [&str; 7] = ["a", "a/", "a//b", "a/b", "ü &<>\"'", "..", "/"];

fn encode(key: &str) -> String {
    key.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A server in memory and one on disk, each with the bucket `data`.
fn both(test: impl Fn(&Server)) {
    let root = tempfile::tempdir().expect("temporary directory");
    test(&Server::start(Options::with_buckets(["data"])).expect("start"));
    test(&Server::start(Options { root: Some(root.path().into()), ..Options::with_buckets(["data"]) }).expect("start"));
}

fn pattern(length: usize) -> Vec<u8> {
    synthetic_bytes("pattern", 0, length)
}

#[test]
fn objects_with_any_key_are_put_read_listed_and_deleted() {
    both(|server| {
        let mut client = Client::new(server.address());
        let long = format!("{}/{}", "l".repeat(500), "k".repeat(500));
        let keys: Vec<&str> = KEYS.iter().copied().chain([long.as_str()]).collect();
        for key in &keys {
            let path = format!("/data/{}", encode(key));
            let answer =
                client.ask("PUT", &path, &[("x-amz-meta-name", "n"), ("content-type", "text/x")], key.as_bytes());
            assert_eq!(answer.status, 200, "{key}: {}", answer.text());
            let etag = answer.header("etag").to_owned();
            let answer = client.get(&path);
            assert_eq!((answer.status, &answer.body[..]), (200, key.as_bytes()));
            let got = [answer.header("etag"), answer.header("x-amz-meta-name"), answer.header("content-type")];
            assert_eq!(got, [&etag, "n", "text/x"]);
            let answer = client.ask("HEAD", &path, &[], b"");
            assert_eq!((answer.status, answer.header("content-length")), (200, key.len().to_string().as_str()));
        }
        let mut sorted: Vec<String> = keys.iter().map(|key| key.to_string()).collect();
        sorted.sort();
        assert_eq!(server.keys("data"), sorted);
        let listed = client.get("/data?list-type=2&encoding-type=url").elements("Key");
        let decoded: Vec<String> = listed
            .iter()
            .map(|key| percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned())
            .collect();
        assert_eq!(decoded, sorted);
        for key in &keys {
            assert_eq!(client.ask("DELETE", &format!("/data/{}", encode(key)), &[], b"").status, 204);
        }
        assert_eq!(client.get("/data/a").code(), "NoSuchKey");
        assert!(server.keys("data").is_empty());
        assert_eq!(server.count(Operation::PutObject), keys.len() as u64);
        assert_eq!(server.answers(404), 1);
    });
}

#[test]
fn ranges_of_every_kind() {
    both(|server| {
        let mut client = Client::new(server.address());
        let bytes = pattern(400_000);
        server.put("data", "k", bytes.clone()).expect("put");
        for (range, start, end) in [
            ("0-0", 0, 1),
            ("5-9", 5, 10),
            ("399999-", 399_999, 400_000),
            ("-300000", 100_000, 400_000),
            ("1-999999", 1, 400_000),
            ("0-", 0, 400_000),
        ] {
            let answer = client.ask("GET", "/data/k", &[("range", &format!("bytes={range}"))], b"");
            assert_eq!((answer.status, &answer.body[..]), (206, &bytes[start..end]), "{range}");
            assert_eq!(answer.header("content-range"), format!("bytes {start}-{}/400000", end - 1));
        }
        let answer = client.ask("GET", "/data/k", &[("range", "bytes=400000-")], b"");
        assert_eq!(
            (answer.status, answer.code().as_str(), answer.header("content-range")),
            (416, "InvalidRange", "bytes */400000")
        );
        assert_eq!(server.log().last().and_then(|record| record.range.clone()).as_deref(), Some("bytes=400000-"));
    });
}

#[test]
fn conditions() {
    both(|server| {
        let mut client = Client::new(server.address());
        let etag = format!("\"{}\"", server.put("data", "k", "1").expect("put").etag());
        let mut status = |method: &str, key: &str, name: &str, value: &str| {
            client
                .ask(method, &format!("/data/{key}"), &[(name, value)], if method == "PUT" { b"2" } else { b"" })
                .status
        };
        assert_eq!(status("GET", "k", "if-match", &etag), 200);
        assert_eq!(status("GET", "k", "if-match", "\"x\""), 412);
        assert_eq!(status("GET", "k", "if-none-match", &etag), 304);
        assert_eq!(status("GET", "k", "if-none-match", "\"x\""), 200);
        assert_eq!(status("HEAD", "k", "if-match", "\"x\""), 412);
        assert_eq!(status("GET", "k", "if-modified-since", "Fri, 01 Jan 2100 00:00:00 GMT"), 304);
        assert_eq!(status("GET", "k", "if-unmodified-since", "Fri, 01 Jan 2010 00:00:00 GMT"), 412);
        assert_eq!(status("PUT", "k", "if-none-match", "*"), 412);
        assert_eq!(status("PUT", "new", "if-none-match", "*"), 200);
        assert_eq!(status("PUT", "none", "if-match", &etag), 404);
        assert_eq!(status("PUT", "k", "if-match", "\"x\""), 412);
        assert_eq!(status("PUT", "k", "if-match", &etag), 200);
        assert_eq!(status("DELETE", "k", "if-match", &etag), 412);
        assert_eq!(server.object("data", "k").expect("there").bytes().expect("read"), b"2");
    });
}

#[test]
fn bodies_in_the_aws_chunked_form() {
    both(|server| {
        let mut client = Client::new(server.address());
        let headers = [
            ("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"),
            ("x-amz-decoded-content-length", "8"),
            ("content-encoding", "aws-chunked"),
        ];
        let body = b"5\r\nhello\r\n3\r\n you\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
        assert_eq!(client.ask("PUT", "/data/k", &headers, &body.replace(b" you", b"you")).status, 200);
        let answer = client.get("/data/k");
        assert_eq!((&answer.body[..], answer.header("content-encoding")), (&b"helloyou"[..], ""));
        let answer = client.ask("PUT", "/data/k", &headers, b"5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(answer.code(), "IncompleteBody");
        let mut client = Client::new(server.address());
        let wrong = "0".repeat(64);
        assert_eq!(
            client.ask("PUT", "/data/k", &[("x-amz-content-sha256", &wrong)], b"x").code(),
            "XAmzContentSHA256Mismatch"
        );
        assert_eq!(
            client.ask("PUT", "/data/k", &[("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==")], b"x").code(),
            "BadDigest"
        );
        assert_eq!(server.object("data", "k").expect("there").size(), 8);
    });
}

trait Replace {
    fn replace(&self, from: &[u8], to: &[u8]) -> Vec<u8>;
}

impl Replace for [u8] {
    fn replace(&self, from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = self.windows(from.len()).position(|window| window == from).expect("found");
        [&self[..at], to, &self[at + from.len()..]].concat()
    }
}

#[test]
fn copies_and_uploads_in_parts() {
    both(|server| {
        let mut client = Client::new(server.address());
        let bytes = pattern(6 << 20);
        server.put_with("data", "from", bytes.clone(), &[("x-amz-meta-a", "b")]).expect("put");
        assert_eq!(client.ask("PUT", "/data/to%2F", &[("x-amz-copy-source", "/data/from")], b"").status, 200);
        let copy = server.object("data", "to/").expect("copied");
        assert_eq!((copy.bytes().expect("read") == bytes, copy.header("x-amz-meta-a")), (true, Some("b")));

        let answer = client.ask("POST", "/data/parts?uploads", &[("x-amz-meta-p", "q")], b"");
        let id = answer.elements("UploadId").pop().expect("an id");
        assert_eq!(client.get("/data?uploads").elements("UploadId"), [id.as_str()]);
        let part = |number: u32| format!("/data/parts?partNumber={number}&uploadId={id}");
        let first = client.ask(
            "PUT",
            &part(1),
            &[("x-amz-copy-source", "data/from"), ("x-amz-copy-source-range", "bytes=1-5242880")],
            b"",
        );
        let first = first.elements("ETag").pop().expect("an etag");
        let third = client.ask("PUT", &part(3), &[], b"end").header("etag").to_owned();
        let listed = client.get(&format!("/data/parts?uploadId={id}"));
        assert_eq!(
            (listed.elements("PartNumber"), listed.elements("Size")),
            (vec!["1".into(), "3".into()], vec!["5242880".to_owned(), "3".into()])
        );
        let document = |parts: &[(u32, &str)]| {
            let parts: String = parts
                .iter()
                .map(|(number, etag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"))
                .collect();
            format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
        };
        let path = format!("/data/parts?uploadId={id}");
        for (parts, code) in [
            (&[(3, third.as_str()), (1, first.as_str())][..], "InvalidPartOrder"),
            (&[(1, "x")], "InvalidPart"),
            (&[(2, first.as_str())], "InvalidPart"),
            (&[], "MalformedXML"),
        ] {
            assert_eq!(client.ask("POST", &path, &[], document(parts).as_bytes()).code(), code);
        }
        let answer = client.ask("POST", &path, &[], document(&[(1, &first), (3, &third)]).as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let object = server.object("data", "parts").expect("complete");
        assert!(object.bytes().expect("read") == [&bytes[1..=5 << 20], b"end"].concat());
        assert!(object.etag().ends_with("-2") && object.header("x-amz-meta-p") == Some("q"));
        assert_eq!(client.ask("POST", &path, &[], document(&[(1, &first)]).as_bytes()).code(), "NoSuchUpload");

        let id = client.ask("POST", "/data/small?uploads", &[], b"").elements("UploadId").pop().expect("an id");
        let path = format!("/data/small?uploadId={id}");
        let etags: Vec<String> = (1..3)
            .map(|number| {
                client.ask("PUT", &format!("{path}&partNumber={number}"), &[], b"x").header("etag").to_owned()
            })
            .collect();
        assert_eq!(
            client.ask("POST", &path, &[], document(&[(1, &etags[0]), (2, &etags[1])]).as_bytes()).code(),
            "EntityTooSmall"
        );
        assert_eq!(client.ask("DELETE", &path, &[], b"").status, 204);
        assert_eq!(server.open_uploads(), 0);

        let delete = "<Delete><Object><Key>parts</Key></Object><Object><Key>none</Key></Object></Delete>";
        assert_eq!(client.ask("POST", "/data?delete", &[], delete.as_bytes()).elements("Key"), ["parts", "none"]);
        assert_eq!(server.keys("data"), ["from", "to/"]);
    });
}

#[test]
fn a_million_synthetic_keys_in_pages() {
    let server = Server::start(Options::with_buckets(["data"])).expect("start");
    let family = Synthetic::new("dir/", 1_000_000, 1 << 40).per_directory(1000);
    server.synthetic("data", family.clone()).expect("bucket");
    server.put("data", "dir/d00500/extra", "x").expect("put");
    server.delete("data", &family.key(0)).expect("delete");
    let mut client = Client::new(server.address());
    let page = client.get("/data?list-type=2&delimiter=%2F&prefix=dir%2F");
    assert_eq!((page.elements("Prefix").len(), page.elements("IsTruncated")), (1001, vec!["false".to_owned()]));
    let page = client.get("/data?list-type=2&delimiter=%2F&prefix=dir%2Fd00500%2F&max-keys=900");
    assert_eq!(page.elements("Key")[899], family.key(500_898));
    let token = page.elements("NextContinuationToken").pop().expect("a token");
    let page =
        client.get(&format!("/data?list-type=2&delimiter=%2F&prefix=dir%2Fd00500%2F&continuation-token={token}"));
    assert_eq!((page.elements("Key").len(), page.elements("Key").first().cloned()), (101, Some(family.key(500_899))));
    let page = client.get(&format!("/data?marker={}&max-keys=2", family.key(999_997)));
    assert_eq!(page.elements("Key"), [family.key(999_998), family.key(999_999)]);
    assert_eq!(client.get(&format!("/data/{}", family.key(0))).status, 404);
    let key = family.key(7);
    let answer = client.ask("GET", &format!("/data/{key}"), &[("range", "bytes=1099511627000-1099511627099")], b"");
    assert_eq!(answer.body, synthetic_bytes(&key, 1_099_511_627_000, 100));
    assert_eq!(client.get("/data?list-type=2&max-keys=x").code(), "InvalidArgument");
    assert_eq!(client.get("/data?list-type=2&continuation-token=%21").code(), "InvalidArgument");
}

#[test]
fn an_adopted_tree_is_served_in_place() {
    let tree = tempfile::tempdir().expect("temporary directory");
    let bytes = pattern(1 << 20);
    std::fs::create_dir_all(tree.path().join("x/y")).expect("create");
    std::fs::write(tree.path().join("x/y/large"), &bytes).expect("write");
    std::fs::write(tree.path().join("x/small"), "small").expect("write");
    std::os::unix::fs::symlink("/", tree.path().join("loop")).expect("link");
    let server = Server::start(Options::with_buckets(["data"])).expect("start");
    let adopted = server.adopt("data", tree.path()).expect("adopt");
    assert_eq!((adopted.objects, adopted.skipped), (2, 1));
    server.put_file("data", "again", tree.path().join("x/small")).expect("put");
    assert_eq!(server.keys("data"), ["again", "x/small", "x/y/large"]);
    let mut client = Client::new(server.address());
    assert!(client.get("/data/x/y/large").body == bytes);
    assert_eq!(client.get("/data/x/small").body, b"small");
    assert_eq!(client.ask("PUT", "/data/x/small", &[], b"other").status, 200);
    assert_eq!(client.ask("DELETE", "/data/x/y/large", &[], b"").status, 204);
    assert_eq!(std::fs::read(tree.path().join("x/small")).expect("read"), b"small");
    assert!(tree.path().join("x/y/large").exists());
}

#[test]
fn a_server_on_the_same_root_finds_its_objects() {
    let root = tempfile::tempdir().expect("temporary directory");
    let options = Options { root: Some(root.path().into()), ..Options::with_buckets(["data"]) };
    let server = Server::start(options.clone()).expect("start");
    server.put("data", "a//b", "old").expect("put");
    let etag = server.put("data", "a//b", "new").expect("put").etag().to_owned();
    server.put("data", "gone", "x").expect("put");
    server.delete("data", "gone").expect("delete");
    drop(server);
    let server = Server::start(Options { buckets: Vec::new(), ..options }).expect("start");
    assert_eq!(server.keys("data"), ["a//b"]);
    let object = server.object("data", "a//b").expect("found");
    assert_eq!((object.bytes().expect("read"), object.etag()), (b"new".to_vec(), etag.as_str()));
}

#[test]
fn buckets_and_their_host_names() {
    let server = Server::start(Options::with_buckets(["data"])).expect("start");
    server.put("data", "data/k", "deep").expect("put");
    let mut client = Client::new(server.address());
    assert_eq!(client.ask("PUT", "/more", &[], b"").status, 200);
    assert_eq!(client.ask("PUT", "/more", &[], b"").code(), "BucketAlreadyOwnedByYou");
    assert_eq!(client.ask("PUT", "/No", &[], b"").code(), "InvalidBucketName");
    assert_eq!(client.get("/").elements("Name"), ["data", "more"]);
    assert_eq!(client.ask("HEAD", "/data", &[], b"").header("x-amz-bucket-region"), "us-east-1");
    assert_eq!(client.ask("HEAD", "/none", &[], b"").status, 404);
    assert_eq!(client.get("/none/k").code(), "NoSuchBucket");
    assert_eq!(client.ask("DELETE", "/data", &[], b"").code(), "BucketNotEmpty");
    assert_eq!(client.ask("DELETE", "/more", &[], b"").status, 204);
    assert_eq!(client.get("/data?location").status, 200);
    assert_eq!(client.get("/data?policy").code(), "NotImplemented");
    client.host = "data.localhost:80".into();
    assert_eq!(client.get("/data/k").body, b"deep");
    assert_eq!(client.get("/?list-type=2").elements("Key"), ["data/k"]);
}
