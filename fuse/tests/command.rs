//! Command lines that cannot work: each is answered by one line that names the thing, and leaves nothing behind.

use std::{fs, path::Path, process::Command, process::Stdio};

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Room(tempfile::tempdir().unwrap());
        let path = room.0.path();
        fs::create_dir_all(path.join("source/inner")).unwrap();
        fs::create_dir_all(path.join("full/entry")).unwrap();
        fs::create_dir(path.join("empty")).unwrap();
        fs::write(path.join("file"), "").unwrap();
        std::os::unix::fs::symlink("loop", path.join("loop")).unwrap();
        std::os::unix::fs::symlink("source", path.join("link")).unwrap();
        room
    }

    /// Runs a command line, in which `@` stands for the directory of the test.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let root = self.0.path().canonicalize().unwrap();
        let line = line.replace('@', root.to_str().unwrap());
        let output = Command::new(env!("CARGO_BIN_EXE_alluxio-fuse"))
            .args(line.split_whitespace())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("ALLUXIO_FUSE_RUNTIME_DIR", root.join("state"))
            .env("ALLUXIO_CONF_DIR", root.join("conf"))
            .env(
                "ALLUXIO_FUSE_JAVA_OPTS",
                format!("-Dalluxio.fuse.web.port=0 -Dalluxio.user.client.cache.dirs={}/cache", root.display()),
            )
            .stdin(Stdio::null())
            .current_dir("/")
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

/// A command line, and what its answer must name.
const BAD: &[(&str, &[&str])] = &[
    ("mount @/mnt", &["no under storage given", "@/mnt"]),
    ("mount s3://bucket", &["no mount point given", "s3://bucket"]),
    ("mount", &["no under storage given"]),
    ("mount nowhere://bucket @/mnt", &["nowhere"]),
    ("mount s3:// @/mnt", &["s3://", "missing"]),
    ("mount file://host/dir @/mnt", &["file:///"]),
    ("mount @/missing @/mnt", &["@/missing"]),
    ("mount @/file @/mnt", &["@/file"]),
    ("mount @/source @/file", &["@/file", "no directory"]),
    ("mount @/source @/file/below", &["@/file/below"]),
    ("mount @/source @/full", &["@/full", "not empty"]),
    ("mount @/source @/source", &["@/source", "itself"]),
    ("mount @/source @/source/inner", &["@/source/inner", "inside"]),
    ("mount @/source @/source/new", &["@/source/new", "inside"]),
    ("mount @/link @/source/new", &["@/source/new", "inside"]),
    ("mount @/source @/link/new", &["@/source/new", "inside"]),
    ("mount @/source/inner @/source", &["hide"]),
    ("mount @/source @/loop", &["@/loop"]),
    ("mount @/source /proc/no/such", &["/proc/no"]),
    ("mount @/source @/mnt -o nonsense", &["nonsense", "unknown"]),
    ("mount @/source @/mnt -o atr_timeout=1", &["atr_timeout", "attr_timeout"]),
    ("mount @/source @/mnt -o attr_timeout=long", &["attr_timeout=long"]),
    ("mount @/source @/mnt -o attr_timeout", &["attr_timeout", "value"]),
    ("mount @/source @/mnt -o ro,rw", &["contradicts"]),
    ("mount @/source @/mnt -o kernel_cache,direct_io", &["contradicts"]),
    ("mount @/source @/mnt -o max_background=0", &["max_background"]),
    ("mount @/source @/mnt -o alluxio.fuse.web.port=70000", &["alluxio.fuse.web.port", "65535"]),
    ("mount @/source @/mnt -o passthrough=maybe", &["passthrough=maybe"]),
    ("mount @/source @/empty -o local_data_cache=@/empty/cache", &["cache directory", "@/empty/cache"]),
    ("mount @/source @/empty -o alluxio.fuse.log.file=@/empty/log", &["log file", "@/empty/log"]),
    ("mount @/source @/mnt -o alluxio.fuse.log.file=@/full", &["@/full"]),
    ("mount @/source @/mnt -o alluxio.fuse.log.level=loud", &["loud"]),
    ("mount @/source @/mnt -o alluxio.fuse.state.dir=@/file", &["@/file", "state"]),
    ("umount @/empty", &["@/empty", "not mounted"]),
    ("umount @/missing", &["@/missing", "not mounted"]),
    ("umount /proc", &["/proc", "not one of alluxio-fuse"]),
];

#[test]
fn what_cannot_work_is_said_in_one_line_and_leaves_nothing() {
    let room = Room::new();
    let root = room.0.path().canonicalize().unwrap();
    for foreground in [false, true] {
        for (line, parts) in BAD {
            let line = match line.strip_prefix("mount ") {
                Some(rest) if foreground => format!("mount -f {rest}"),
                _ => (*line).to_owned(),
            };
            let (code, _, error) = room.run(&line);
            assert_eq!(code, Some(1), "{line}: {error}");
            for part in *parts {
                let part = part.replace('@', root.to_str().unwrap());
                assert!(error.contains(&part), "{line}: {part} is missing in {error}");
            }
            assert_eq!(error.lines().count(), 1, "{line}: {error}");
            assert!(error.starts_with("alluxio-fuse: "), "{line}: {error}");
            let mounts = fuse::session::mounts::list().unwrap();
            assert!(!mounts.iter().any(|mount| mount.point.starts_with(&root)), "{line}");
            assert!(!root.join("mnt").exists(), "{line}");
        }
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_code_2() {
    let room = Room::new();
    for line in ["", "moutn", "mount -q a /b", "mount a /b /c", "umount", "status --format xml", "status extra"] {
        let (code, _, error) = room.run(line);
        assert_eq!(code, Some(2), "{line}: {error}");
        assert!(!error.is_empty());
    }
}

#[test]
fn help_has_examples_and_the_version_is_told() {
    let room = Room::new();
    for line in ["--help", "mount --help", "umount --help", "status --help"] {
        let (code, text, _) = room.run(line);
        assert_eq!(code, Some(0), "{line}");
        assert!(text.contains("Example") && text.contains("alluxio-fuse "), "{line}: {text}");
    }
    let (code, text, _) = room.run("--version");
    assert_eq!((code, text.trim()), (Some(0), concat!("alluxio-fuse ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn status_without_mounts_is_no_failure() {
    let room = Room::new();
    assert_eq!(room.run("status").0, Some(0));
    let (code, text, _) = room.run("status --format json");
    assert_eq!(code, Some(0));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["mounts"].as_array().unwrap().len(), 0);
    assert!(!Path::new(&room.0.path().join("state")).exists());
}
