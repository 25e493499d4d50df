//! `fs cp` as a user runs it: what is copied, what is refused, and that nothing half done is left.

use s3server::{Options, Server};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn cp(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_alluxio"))
        .args(words)
        .env_clear()
        .env("ALLUXIO_CONF_DIR", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn good(words: &[&str]) -> String {
    let output = cp(words);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn bad(words: &[&str]) -> String {
    let output = cp(words);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b""[..]), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn directories_of_this_host_are_copied_with_links_and_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("sub/file"), "content").unwrap();
    fs::set_permissions(from.join("sub/file"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("sub/file", from.join("link")).unwrap();
    let said = good(&["fs", "cp", "-R", "--preserve", text(&from), text(&to)]);
    assert_eq!(said, "Copied 2 files, 7 bytes (7B)\n");
    let copied = to.join("from/sub/file");
    assert_eq!(fs::read_to_string(&copied).unwrap(), "content");
    assert_eq!(fs::metadata(&copied).unwrap().permissions().mode() & 0o777, 0o750);
    assert_eq!(fs::read_link(to.join("from/link")).unwrap(), Path::new("sub/file"));

    // What is there stays, unless it is to be replaced; no part is left behind.
    fs::write(from.join("sub/file"), "changed").unwrap();
    let file = from.join("sub/file");
    assert!(bad(&["fs", "cp", text(&file), text(&copied)]).contains("--force"));
    assert_eq!(fs::read_to_string(&copied).unwrap(), "content");
    good(&["fs", "cp", "--force", text(&file), text(&copied)]);
    assert_eq!(fs::read_to_string(&copied).unwrap(), "changed");
    assert_eq!(fs::read_dir(to.join("from/sub")).unwrap().count(), 1);
}

#[test]
fn mistakes_are_one_line_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let here = text(dir.path());
    assert!(bad(&["fs", "cp", text(&file), "s3://bucket/key"]).contains("this host only"));
    assert!(bad(&["fs", "cp", here, &format!("{here}/copy")]).contains("copy it with -R"));
    assert!(bad(&["fs", "cp", "-R", here, &format!("{here}/a/b")]).contains("copied into itself"));
    assert!(bad(&["fs", "cp", text(&file), text(&file), text(&file)]).contains("is no directory"));
    assert!(bad(&["fs", "cp", &format!("{here}/none"), here]).contains("none"));
    assert!(bad(&["fs", "cp", text(&file), &format!("{here}/none/deeper")]).contains("none/deeper"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn buckets_are_copied_and_a_failed_copy_leaves_nothing() {
    let server = Server::start(Options::with_buckets(["bucket"])).unwrap();
    let large: Vec<u8> = (0..9_000_000u32).map(|number| (number % 251) as u8).collect();
    server.put("bucket", "p/large", large.clone()).unwrap();
    server.put("bucket", "p/q/small", b"small".to_vec()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("alluxio.underfs.s3.endpoint={}", server.url());
    let options = ["-D", &endpoint, "-D", "s3a.accessKeyId=a", "-D", "s3a.secretKey=b"];
    let with = |words: &[&'static str]| -> Vec<String> {
        options.iter().chain(words).map(|word| (*word).to_owned()).collect()
    };
    let to = dir.path().join("to");
    let mut words = with(&["fs", "cp", "-R", "s3://bucket/p"]);
    words.push(text(&to).to_owned());
    good(&words.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(fs::read(to.join("large")).unwrap() == large);
    assert_eq!(fs::read_to_string(to.join("q/small")).unwrap(), "small");

    // A disk that is full (here: a file that may not grow) fails the copy, and its part is removed.
    let limited = dir.path().join("limited");
    fs::create_dir(&limited).unwrap();
    let program = env!("CARGO_BIN_EXE_alluxio");
    let script = format!("trap '' XFSZ; ulimit -f 1000; exec \"{program}\" \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, "sh"])
        .args(with(&["fs", "cp", "s3://bucket/p/large"]))
        .arg(&limited)
        .env_clear()
        .env("ALLUXIO_CONF_DIR", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("limited/large"), "{output:?}");
    assert_eq!(fs::read_dir(&limited).unwrap().count(), 0);
}
