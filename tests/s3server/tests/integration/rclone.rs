//! A client that was not written here: rclone, with signatures.

use std::process::{Command, Stdio};

use s3server::{Credentials, Operation, Options, Server};

struct Rclone<'a> {
    server: &'a Server,
    secret: &'a str,
}

impl Rclone<'_> {
    fn run(&self, arguments: &[&str]) -> (bool, String, String) {
        let mut command = Command::new("rclone");
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_lowercase();
            if text.starts_with("aws_") || text.starts_with("rclone_") || text.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        for (name, value) in [
            ("TYPE", "s3"),
            ("PROVIDER", "Other"),
            ("ENV_AUTH", "false"),
            ("REGION", "eu-west-1"),
            ("ENDPOINT", self.server.url().as_str()),
            ("ACCESS_KEY_ID", "test-key"),
            ("SECRET_ACCESS_KEY", self.secret),
        ] {
            command.env(format!("RCLONE_CONFIG_T_{name}"), value);
        }
        let common = [
            "--config",
            "/dev/null",
            "--retries",
            "1",
            "--low-level-retries",
            "1",
            "--s3-chunk-size",
            "5M",
            "--s3-upload-cutoff",
            "5M",
        ];
        let output = command.args(common).args(arguments).stdin(Stdio::null()).output().expect("run rclone");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let (success, out, error) = self.run(arguments);
        assert!(success, "rclone {arguments:?}: {error}");
        out
    }
}

#[test]
fn rclone_copies_lists_reads_and_deletes() {
    if Command::new("rclone").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        println!("rclone is not installed: skipped");
        return;
    }
    let root = tempfile::tempdir().expect("temporary directory");
    let credentials = vec![Credentials::new("test-key", "test-secret")];
    let options = Options {
        root: Some(root.path().join("root")),
        region: Some("eu-west-1".into()),
        credentials,
        ..Options::with_buckets(["data"])
    };
    let server = Server::start(options).expect("start");
    let tree = root.path().join("tree");
    std::fs::create_dir_all(tree.join("sub dir")).expect("create");
    let large = s3server::synthetic_bytes("rclone", 0, (11 << 20) + 5);
    std::fs::write(tree.join("sub dir/large"), &large).expect("write");
    std::fs::write(tree.join("sub dir/ü +&"), "odd").expect("write");
    std::fs::write(tree.join("empty"), "").expect("write");
    let rclone = Rclone { server: &server, secret: "test-secret" };
    rclone.ok(&["copy", tree.to_str().expect("UTF-8"), "t:data/up"]);
    assert_eq!(server.keys("data"), ["up/empty", "up/sub dir/large", "up/sub dir/ü +&"]);
    assert!(server.object("data", "up/sub dir/large").expect("there").bytes().expect("read") == large);
    assert_eq!((server.count(Operation::CompleteMultipartUpload), server.open_uploads()), (1, 0));
    let mut listed: Vec<String> = rclone.ok(&["lsf", "-R", "t:data"]).lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, ["up/", "up/empty", "up/sub dir/", "up/sub dir/large", "up/sub dir/ü +&"]);
    assert_eq!(rclone.ok(&["cat", "t:data/up/sub dir/ü +&"]), "odd");
    rclone.ok(&["check", "--download", tree.to_str().expect("UTF-8"), "t:data/up"]);
    rclone.ok(&["copyto", "t:data/up/empty", "t:data/copy"]);
    rclone.ok(&["delete", "t:data/up"]);
    assert_eq!(server.keys("data"), ["copy"]);
    let (success, _, error) = Rclone { server: &server, secret: "wrong" }.run(&["lsf", "t:data"]);
    assert!(!success && error.contains("SignatureDoesNotMatch"), "{error}");
}
