//! Programs that people run, on a mount.

use std::{path::Path, process::Command};

use tests::{daemon, mounts_work};

use crate::{WAYS, mount};

/// Runs a script in the root of a mount of each way.
fn script(needs: &[&str], text: &str) {
    if !mounts_work() {
        return;
    }
    for program in needs {
        assert!(installed(program), "{program} is missing; tests/run installs it");
    }
    for way in WAYS {
        let (_source, mount) = mount(way);
        let output = run(mount.path(), text);
        assert!(output.0, "{way}: {}", output.1);
        mount.stop();
    }
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).exists())
}

fn run(root: &Path, text: &str) -> (bool, String) {
    let mut command = Command::new("bash");
    command.args(["-exc", text]).current_dir(root);
    command.env("HOME", root).env("GIT_CONFIG_NOSYSTEM", "1").env("LC_ALL", "C");
    let output = daemon::run(command);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}

/// A tree of files, directories and links.
const TREE: &str = r"
    for d in 1 2 3 4 5; do mkdir -p tree/$d/deep/er; for f in 1 2 3 4 5 6 7 8; do
        head -c $((f * d * 700)) /dev/urandom >tree/$d/f$f; echo $f >tree/$d/deep/er/$f; done; done
    ln -s 1/f1 tree/soft; ln tree/2/f2 tree/hard; chmod 711 tree/3; touch -d 2001-02-03T04:05:06.789Z tree/4/f4
";

#[test]
fn git() {
    script(
        &["git"],
        r"
        git init -q one && cd one && git config user.email a@b && git config user.name n && git config gc.auto 0
        for i in $(seq 40); do echo $i >f$i; done; git add . && git commit -qm one
        for i in $(seq 5); do echo more >>f$i; git commit -qam more$i; done
        git gc -q && git fsck --strict && git status --porcelain | wc -l | grep -qx 0
        cd .. && git clone -q one two && diff -r -x .git one two && cd two && git fsck
        git mv f1 moved && git -c user.email=a@b -c user.name=n commit -qm moved && git checkout -q HEAD~1 && test -e f1
        ",
    );
}

#[test]
fn tar_rsync_cp_and_mv() {
    let text = format!(
        r#"{TREE}
        tar cf tree.tar tree && mkdir out && tar xf tree.tar -C out && diff -r --no-dereference tree out/tree
        test $(stat -c %h out/tree/hard) = 2 && test $(stat -c %a out/tree/3) = 711
        rsync -aH tree/ synced/ && diff -r --no-dereference tree synced
        test -z "$(rsync -aH --itemize-changes tree/ synced/)"
        cp -a tree copied && diff -r --no-dereference tree copied
        mv copied/1 copied/renamed && mv copied elsewhere && diff -r tree/1 elsewhere/renamed
        mkdir -p into && mv elsewhere into/ && diff -r tree/5 into/elsewhere/5
        rm -rf out synced into && test $(ls | wc -l) = 2
        "#
    );
    script(&["tar", "rsync", "diff"], &text);
}

#[test]
fn sqlite() {
    script(
        &["sqlite3"],
        r#"
        sqlite3 base 'create table t(a integer primary key, b blob)'
        for i in $(seq 10); do sqlite3 base "begin; with recursive n(i) as (select 1 union all select i+1 from n where i<50)
            insert into t(b) select randomblob(300) from n; commit" & done; wait
        for i in $(seq 5); do sqlite3 -cmd '.timeout 30000' base "update t set b = randomblob(100) where a % 7 = $i"; done
        test "$(sqlite3 base 'pragma integrity_check')" = ok
        test "$(sqlite3 base 'select count(*) % 50 from t')" = 0
        sqlite3 base 'pragma journal_mode=wal; insert into t(b) values (1); pragma wal_checkpoint; vacuum' >/dev/null
        test "$(sqlite3 base 'pragma integrity_check')" = ok
        "#,
    );
}

#[test]
fn checkpoints_editors_and_find() {
    script(
        &["find", "dd", "cmp"],
        r"
        for step in 1 2 3; do
            head -c 300000 /dev/urandom >model.tmp && sync model.tmp && mv model.tmp model && test $(stat -c %s model) = 300000
        done
        echo old >text && cp -p text text~ && echo new >text.new && mv text.new text && test $(cat text) = new
        touch mark && sleep 0.02 && echo x >>text && test $(find . -newer mark -type f) = ./text
        dd if=/dev/zero of=big bs=1M count=3 status=none && cp big native
        for at in 5 100 700 333; do
            head -c 4096 /dev/urandom >piece
            for f in big native; do dd if=piece of=$f bs=4096 seek=$at conv=notrunc status=none; done
        done
        cmp big native
        ",
    );
}
