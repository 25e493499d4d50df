//! Programs that people run, on a mount: version control, archives, copies, databases, builds.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use tests::{daemon, heavy, mounts_work};

use crate::place::{Kind, Place};

const KINDS: [Kind; 2] = [Kind::Native, Kind::S3];

/// Runs a shell script in a directory; it must succeed. Returns what it printed.
#[track_caller]
fn sh(dir: &Path, script: &str) -> String {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(dir)
        .env("HOME", home.path())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.com")
        .env("GIT_COMMITTER_NAME", "A")
        .env("GIT_COMMITTER_EMAIL", "a@example.com")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .stdin(Stdio::null());
    let output = daemon::run(command);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}\n{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed
}

fn on_each(test: impl Fn(&mut Place, &Path)) {
    if !mounts_work() {
        return;
    }
    let _alone = heavy();
    for kind in KINDS {
        eprintln!("on {kind:?}");
        let mut place = Place::new(kind);
        let root = place.path().to_owned();
        test(&mut place, &root);
    }
}

/// A small tree with what archives contain: directories, an executable, a symbolic link, an empty file and directory.
fn make_tree(dir: &Path) {
    sh(
        dir,
        "mkdir -p tree/sub/deep tree/empty; seq 1 50000 > tree/numbers; echo '#!/bin/sh' > tree/sub/run; chmod 755 tree/sub/run
         ln -s ../numbers tree/sub/link; : > tree/sub/deep/nothing; for n in $(seq 1 40); do seq 1 $n > tree/sub/deep/f$n; done
         touch -d '2020-02-03 04:05:06.789' tree/numbers tree/sub/run",
    );
}

#[test]
fn version_control() {
    on_each(|place, root| {
        let origin = tempfile::tempdir().unwrap();
        sh(
            origin.path(),
            "git init -q -b main .; for n in $(seq 1 30); do seq 1 $((n * 50)) > f$n; done; git add .; git commit -qm one
             for n in $(seq 1 10); do echo more >> f$n; done; git commit -qam two",
        );
        sh(root, &format!("git clone -q '{}' work", origin.path().display()));
        let work = root.join("work");
        sh(
            &work,
            "echo new > new; mkdir d; echo x > d/x; git add .; git commit -qm three; git rm -q f1; git mv f2 d/f2; git commit -qm four",
        );
        sh(
            &work,
            "git checkout -q -b side HEAD~2; echo side > side; git add side; git commit -qm side; git checkout -q main; git merge -q -m merged side",
        );
        sh(&work, "git gc -q; git fsck --full --strict; test -z \"$(git status --porcelain)\"");
        place.remount();
        assert_eq!(sh(&work, "git fsck --full; git status --porcelain; git log --oneline | wc -l").trim(), "6");
    });
}

#[test]
fn archives_and_copies() {
    on_each(|place, root| {
        let native = tempfile::tempdir().unwrap();
        make_tree(native.path());
        let native = native.path().display();
        sh(root, &format!("tar -C '{native}' -cf - tree | tar xf -; diff -r --no-dereference '{native}/tree' tree"));
        sh(root, &format!("cp -a '{native}/tree' copied; diff -r --no-dereference '{native}/tree' copied"));
        let first = sh(
            root,
            &format!("rsync -a --stats '{native}/tree/' synced/; diff -r --no-dereference '{native}/tree' synced"),
        );
        assert!(!first.contains("files transferred: 0\n"), "{first}");
        let second = sh(root, &format!("rsync -a --stats '{native}/tree/' synced/"));
        assert!(second.contains("files transferred: 0\n"), "the second copies nothing: {second}");
        place.remount();
        let third = sh(root, &format!("rsync -a --stats '{native}/tree/' synced/"));
        assert!(third.contains("files transferred: 0\n"), "nor after a remount: {third}");
        sh(
            root,
            &format!(
                "mkdir moved; mv tree moved/there; mv moved elsewhere; diff -r --no-dereference '{native}/tree' elsewhere/there; test ! -e tree"
            ),
        );
        sh(
            root,
            "test -x synced/sub/run; test \"$(readlink synced/sub/link)\" = ../numbers; test \"$(stat -c %y synced/numbers | cut -c1-23)\" = '2020-02-03 04:05:06.789'",
        );
        sh(root, "rm -rf synced copied elsewhere; test -z \"$(ls -A)\"");
    });
}

#[test]
fn newer_files_are_found() {
    on_each(|_, root| {
        sh(root, "echo a > old; touch -d '2001-01-01' old; echo b > mark; touch -d '2010-01-01' mark; echo c > new");
        assert_eq!(sh(root, "find . -type f -newer mark").trim(), "./new");
    });
}

#[test]
fn databases() {
    on_each(|place, root| {
        let insert = "pragma journal_mode=delete; create table if not exists t(a integer primary key, b text); begin;
            with recursive n(x) as (select 1 union all select x + 1 from n where x < 3000)
            insert into t(b) select hex(randomblob(40)) from n; commit; delete from t where a % 7 = 0; vacuum;";
        for _ in 0..3 {
            sh(root, &format!("sqlite3 data.db \"{insert}\""));
        }
        let check = "sqlite3 data.db 'pragma integrity_check; select count(*) > 5000 from t'";
        assert_eq!(sh(root, check).trim(), "ok\n1");
        place.remount();
        assert_eq!(sh(root, check).trim(), "ok\n1");
    });
}

#[test]
fn builds() {
    on_each(|_, root| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        fs::create_dir_all(root.join("project/src")).unwrap();
        fs::write(
            root.join("project/Cargo.toml"),
            "[package]\nname = \"project\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
        )
        .unwrap();
        fs::write(root.join("project/src/main.rs"), "fn main() { println!(\"built on a mount\"); }\n").unwrap();
        // The tools are found by the real home.
        let home = std::env::var("HOME").unwrap_or_default();
        let set =
            format!("export HOME='{home}'; unset CARGO_TARGET_DIR RUSTFLAGS; export CARGO_INCREMENTAL=1; cd project");
        assert_eq!(sh(root, &format!("{set}; '{cargo}' run -q --offline")).trim(), "built on a mount");
        // The times that a bucket gives are whole seconds: cargo takes what is changed within the same one for unchanged.
        let second = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let built = second();
        while second() <= built {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        fs::write(root.join("project/src/main.rs"), "fn main() { println!(\"built again\"); }\n").unwrap();
        assert_eq!(sh(root, &format!("{set}; '{cargo}' run -q --offline")).trim(), "built again");
    });
}

#[test]
fn checkpoints_logs_and_overwrites() {
    on_each(|place, root| {
        sh(
            root,
            "for step in 1 2 3; do head -c 9000000 /dev/urandom > ckpt.tmp; sync -d ckpt.tmp; mv ckpt.tmp ckpt; done
             for n in $(seq 1 60); do echo \"event $n\" >> events; done; test $(wc -l < events) = 60
             head -c 3000000 /dev/zero > image; for n in 5 100 7 300 0; do printf block | dd of=image bs=4096 seek=$n conv=notrunc status=none; done
             test $(stat -c %s image) = 3000000; test $(tr -d '\\0' < image | wc -c) = 25",
        );
        let before = sh(root, "sha256sum ckpt events image");
        place.remount();
        assert_eq!(sh(root, "sha256sum ckpt events image"), before);
    });
}

#[test]
fn locks_between_processes() {
    on_each(|_, root| {
        sh(
            root,
            "echo 0 > counter; : > lock
             for p in 1 2 3 4; do (for n in $(seq 1 25); do flock lock sh -c 'echo $(( $(cat counter) + 1 )) > counter'; done) & done; wait
             test $(cat counter) = 100",
        );
    });
}

#[test]
fn editors() {
    on_each(|_, root| {
        sh(root, "printf 'one\\ntwo\\n' > text; chmod 640 text");
        sh(root, "vi -u NONE -es -c 'set backup' -c '%s/two/three/' -c 'wq' text < /dev/null");
        assert_eq!(sh(root, "cat text; stat -c %a text"), "one\nthree\n640\n");
    });
}
