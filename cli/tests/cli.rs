//! The binary as a user runs it: output, exit codes, one-line errors.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `alluxio` in an environment that holds nothing of the machine's.
fn alluxio<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alluxio"));
    command.args(arguments).env_clear().env("ALLUXIO_CONF_DIR", "/nonexistent").env("TZ", "UTC").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Output of a run that succeeds and says nothing on standard error.
fn good<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> String {
    let Output { status, stdout, stderr } = alluxio(arguments).output().unwrap();
    assert!(status.success() && stderr.is_empty(), "{status} {}", text(&stderr));
    text(&stdout)
}

/// The one line on standard error of a run that fails with `code` and prints nothing.
fn bad<S: AsRef<OsStr>>(code: i32, arguments: impl IntoIterator<Item = S>) -> String {
    let Output { status, stdout, stderr } = alluxio(arguments).output().unwrap();
    assert_eq!((status.code(), text(&stdout).as_str()), (Some(code), ""), "{}", text(&stderr));
    let line = text(&stderr);
    assert!(code == 2 || line.lines().count() == 1, "{line}");
    line
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_documentation_is_what_the_declarations_say() {
    let docs = good(["conf", "docs"]);
    assert_eq!(docs, good(["conf", "get", "--docs"]));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFIGURATION.md");
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(docs == written, "docs/CONFIGURATION.md is out of date: run `alluxio conf docs > docs/CONFIGURATION.md`");
}

#[test]
fn conf_get_prints_values_and_their_sources() {
    assert_eq!(good(["conf", "get", "alluxio.fuse.web.port"]), "49999\n");
    assert_eq!(good(["conf", "get", "--source", "alluxio.fuse.web.port"]), "49999 (default)\n");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("alluxio-site.properties");
    std::fs::write(&file, "# here\nalluxio.fuse.web.port = 1\ns3a.accessKeyId=PUBLIC\ns3a.secretKey=SECRET\n").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = alluxio(arguments);
        command.env("ALLUXIO_CONF_DIR", dir.path()).env("ALLUXIO_FUSE_JAVA_OPTS", "-Xmx1g -Dalluxio.fuse.threads=3");
        text(&command.output().unwrap().stdout)
    };
    assert_eq!(run(&["conf", "get", "--source", "alluxio.fuse.web.port"]), format!("1 ({} line 2)\n", file.display()));
    assert_eq!(run(&["conf", "get", "-D", "alluxio.fuse.web.port=2", "alluxio.fuse.web.port"]), "2\n");
    assert_eq!(run(&["conf", "get", "alluxio.fuse.threads"]), "0\n");
    assert_eq!(run(&["conf", "get", "--process", "fuse", "alluxio.fuse.threads"]), "3\n");
    let all = run(&["conf", "get", "--source", "--process", "fuse"]);
    assert!(all.contains("alluxio.fuse.threads=3 (environment variable ALLUXIO_FUSE_JAVA_OPTS)\n"), "{all}");
    assert!(all.contains("s3a.secretKey=****** (") && !all.contains("SECRET") && !all.contains("PUBLIC"), "{all}");
}

#[test]
fn conf_mistakes_are_one_line() {
    assert!(bad(1, ["conf", "get", "alluxio.fuse.web.prot"]).contains("did you mean alluxio.fuse.web.port?"));
    let line = bad(1, ["-D", "alluxio.fuse.web.port=many", "conf", "get"]);
    assert!(line.contains("alluxio.fuse.web.port=many (command line -D alluxio.fuse.web.port)"), "{line}");
    bad(2, ["conf", "get", "--docs", "alluxio.fuse.web.port"]);
    bad(2, ["-D", "nothing", "conf", "get"]);
    let warned = alluxio(["-D", "alluxio.fuse.web.prot=1", "conf", "get", "alluxio.home"]).output().unwrap();
    assert!(warned.status.success() && text(&warned.stderr).contains("did you mean alluxio.fuse.web.port?"));
}

#[test]
fn version_completion_and_help() {
    assert_eq!(good(["info", "version"]), format!("{}\n", env!("CARGO_PKG_VERSION")));
    for shell in ["bash", "zsh", "fish"] {
        assert!(good(["completion", shell]).contains("alluxio"));
    }
    for group in
        [&["--help"][..], &["conf", "--help"], &["fs", "--help"], &["info", "--help"], &["completion", "--help"]]
    {
        assert!(good(group).contains("Examples:\n"), "{group:?}");
    }
    bad(2, Vec::<String>::new());
    bad(2, ["nonsense"]);
}

#[test]
fn ls_has_the_format_of_alluxio() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("b file");
    std::fs::write(&file, vec![7; 6_912_251]).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_708_896_135_742);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    set_mode(&file, 0o700);
    std::fs::create_dir(dir.path().join("a")).unwrap();
    set_mode(&dir.path().join("a"), 0o750);
    std::fs::write(dir.path().join("a/inner"), "x").unwrap();
    let listed = good(["fs", "ls", &path(dir.path())]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 2, "{listed}");
    assert!(
        lines[0].starts_with("drwxr-x---        0 ") && lines[0].ends_with(&format!(" DIR {}/a", dir.path().display()))
    );
    let expected = format!("-rwx------  6912251 02-25-2024 21:22:15:742 FILE {}", file.display());
    assert_eq!(lines[1], expected);
    assert_eq!(good(["fs", "ls", &path(&file)]), format!("{expected}\n"));
    assert_eq!(
        good(["fs", "ls", &format!("file://{}", file.display())]).replace("file://", ""),
        format!("{expected}\n")
    );
    assert!(good(["fs", "ls", "-R", &path(dir.path())]).contains("/a/inner\n"));
    assert!(good(["fs", "ls", "--human-readable", &path(&file)]).contains("  6.59MB "));
    assert_eq!(good(["fs", "ls", "-d", &path(dir.path())]).lines().count(), 1);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn contents_come_whole_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    // Several pieces, the last one short, and none like another.
    let bytes: Vec<u8> = (0u32..2_700_003).flat_map(u32::to_le_bytes).collect();
    std::fs::write(&file, &bytes).unwrap();
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let run = |arguments: &[&str]| alluxio(arguments).output().unwrap().stdout;
    let name = path(&file);
    assert!(run(&["fs", "cat", &name, &path(&empty), &name]) == [bytes.clone(), bytes.clone()].concat());
    assert!(run(&["fs", "head", &name]) == bytes[..1024]);
    assert!(run(&["fs", "head", "-c", "5MB", &name]) == bytes[..5 << 20]);
    assert!(run(&["fs", "tail", "-c", "7", &name]) == bytes[bytes.len() - 7..]);
    assert!(run(&["fs", "tail", "-c", "1TB", &name]) == bytes);
    assert!(run(&["fs", "head", "-c", "0", &name]).is_empty());
    std::fs::write(&file, "abc").unwrap();
    assert_eq!(good(["fs", "checksum", &name]), "md5sum: 900150983cd24fb0d6963f7d28e17f72\n");
    assert_eq!(
        good(["fs", "checksum", "--algorithm", "sha256", &name]),
        "sha256sum: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"
    );
}

#[test]
fn stat_says_what_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    std::fs::write(&file, "abc").unwrap();
    set_mode(&file, 0o640);
    assert_eq!(good(["fs", "stat", "-f", "%z %N %a %F 100%%", &path(&file)]), "3 data 640 FILE 100%\n");
    let json = good(["fs", "stat", "--json", &path(&file)]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((value["length"].as_u64(), value["type"].as_str()), (Some(3), Some("file")));
    assert!(good(["fs", "stat", &path(dir.path())]).contains("Type: directory\n"));
    assert!(bad(1, ["fs", "stat", "-f", "%q", &path(&file)]).contains("%q"));
}

#[test]
fn test_answers_by_its_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let (empty, full, none) = (dir.path().join("empty"), dir.path().join("full"), dir.path().join("none"));
    std::fs::write(&empty, "").unwrap();
    std::fs::write(&full, "x").unwrap();
    let nothing = dir.path().join("nothing");
    std::fs::create_dir(&nothing).unwrap();
    for (option, place, code) in [
        ("-e", &full, 0),
        ("-e", &none, 1),
        ("-f", &full, 0),
        ("-f", &nothing, 1),
        ("-d", &nothing, 0),
        ("-d", &full, 1),
        ("-z", &empty, 0),
        ("-z", &full, 1),
        ("-z", &none, 1),
        ("-s", &nothing, 1),
        ("-s", &dir.path().to_owned(), 0),
    ] {
        let status = alluxio(["fs", "test", option, &path(place)]).output().unwrap().status;
        assert_eq!(status.code(), Some(code), "{option} {}", place.display());
    }
    bad(2, ["fs", "test", "-e", "nosuch://bucket/key"]);
    bad(2, ["fs", "test", &path(&full)]);
}

#[test]
fn mistakes_in_places_are_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let none = path(&dir.path().join("none"));
    for command in ["ls", "cat", "head", "tail", "stat", "checksum"] {
        assert!(bad(1, ["fs", command, &none]).contains(&none));
    }
    assert!(bad(1, ["fs", "cat", &path(dir.path())]).contains("is a directory"));
    assert!(bad(1, ["fs", "ls", "nosuch://bucket/key"]).contains("nosuch"));
    bad(2, ["fs", "head", "-c", "5QB", &none]);
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    for arguments in [vec!["fs".to_owned(), "cat".into(), path(&file)], vec!["conf".into(), "docs".into()]] {
        let mut child = alluxio(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    }
}
