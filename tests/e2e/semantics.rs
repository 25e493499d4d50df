//! What docs/SEMANTICS.md says is true: its examples are run and its tables are looked up, from the document itself.
//!
//! A console block stands below a marker, `<!-- test: NAME (SOURCE; OPTION; …) -->`, and is run by one shell in the root of
//! a fresh mount. A line that begins with `$` is a command, what follows it is everything that it prints; `...` stands for
//! any text. A line that begins with `#` is done to the bucket by the test. A block without a marker fails the test, so
//! that no example goes unchecked.

mod document;
mod shell;

use std::{collections::BTreeMap, path::Path};

use common::ErrorKind;
use document::{Document, Example, Step};
use nix::errno::Errno;
use shell::Shell;
use tests::{Mounting, Store, daemon, mounts_work};

const TEXT: &str = include_str!("../../docs/SEMANTICS.md");

/// Every kind of error. One that is added to the program and neither here nor in the document goes unnoticed.
const KINDS: [ErrorKind; 27] = [
    ErrorKind::NotFound,
    ErrorKind::PermissionDenied,
    ErrorKind::NotPermitted,
    ErrorKind::AlreadyExists,
    ErrorKind::NotADirectory,
    ErrorKind::IsADirectory,
    ErrorKind::NotEmpty,
    ErrorKind::InvalidArgument,
    ErrorKind::NameTooLong,
    ErrorKind::TooManyLinks,
    ErrorKind::ReadOnly,
    ErrorKind::NoSpace,
    ErrorKind::QuotaExceeded,
    ErrorKind::Stale,
    ErrorKind::Unsupported,
    ErrorKind::TooLarge,
    ErrorKind::Busy,
    ErrorKind::CrossDevice,
    ErrorKind::NoAttribute,
    ErrorKind::NoMemory,
    ErrorKind::TooManyFiles,
    ErrorKind::BadHandle,
    ErrorKind::TimedOut,
    ErrorKind::Unavailable,
    ErrorKind::Corrupt,
    ErrorKind::Cancelled,
    ErrorKind::Io,
];

fn document() -> Document {
    Document::parse(TEXT).unwrap_or_else(|why| panic!("docs/SEMANTICS.md: {why}"))
}

/// Runs the examples of one source, with passthrough and without, and reports all that are not true.
fn run_all(source: &str, least: usize, run: impl Fn(&Document, &Example, &str) -> Result<(), String>) {
    if !mounts_work() {
        return;
    }
    let document = document();
    let examples: Vec<_> = document.examples.iter().filter(|example| example.source == source).collect();
    assert!(examples.len() >= least, "only {} examples with a {source} are left", examples.len());
    let mut wrong = Vec::new();
    for example in examples {
        for option in ["passthrough=auto", "passthrough=off"] {
            println!("{}, {option}", example.name);
            if let Err(why) = run(&document, example, option) {
                wrong.push(format!("docs/SEMANTICS.md:{}: {}, {option}: {why}", example.line, example.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn examples_with_a_directory() {
    run_all("directory", 8, |document, example, option| {
        let source = tempfile::tempdir().expect("a temporary directory");
        let mut setup = std::process::Command::new("sh");
        setup.args(["-ec", &document.directory]).current_dir(source.path());
        let made = daemon::run(setup);
        assert!(made.status.success(), "the directory: {}", String::from_utf8_lossy(&made.stderr));
        let mount = Mounting::of_dir(source.path()).options(&example.options).option(option).start();
        let done = follow(example, mount.path(), source.path(), &|action| {
            Err(format!("{action:?} is for buckets; a directory is changed by commands"))
        });
        mount.stop();
        done
    });
}

#[test]
fn examples_with_a_bucket() {
    run_all("bucket", 7, |document, example, option| {
        let store = Store::start();
        for (key, text) in &document.bucket {
            store.put(key, text.as_bytes());
        }
        let mount = store.mount("").options(&example.options).option(option).start();
        let done = follow(example, mount.path(), Path::new("/"), &|action| act(&store, action));
        store.server().resume();
        mount.stop();
        done
    });
}

/// What another client does to the bucket.
fn act(store: &Store, action: &str) -> Result<(), String> {
    match action.split_whitespace().collect::<Vec<_>>()[..] {
        ["put", key, text] => store.put(key, format!("{text}\n")),
        ["delete", key] => store.delete(key),
        ["pause"] => store.server().pause(),
        ["resume"] => store.server().resume(),
        _ => return Err(format!("nobody knows how to {action:?}")),
    }
    Ok(())
}

/// Goes through an example step by step.
fn follow(
    example: &Example,
    root: &Path,
    source: &Path,
    act: &dyn Fn(&str) -> Result<(), String>,
) -> Result<(), String> {
    let mut shell = Shell::start(root, source);
    for step in &example.steps {
        match step {
            Step::Act(action) => act(action)?,
            Step::Run { command, expected } => {
                let printed = shell.run(command)?;
                if !document::alike(expected, &printed) {
                    return Err(format!(
                        "`{command}` prints\n{}\nand not\n{}",
                        printed.join("\n"),
                        expected.join("\n")
                    ));
                }
            }
        }
    }
    shell.end()
}

#[test]
fn the_table_of_keys_is_true() {
    if !mounts_work() {
        return;
    }
    let rows = document().table("keys");
    assert!(rows.len() >= 10, "{rows:?}");
    let store = Store::start();
    for (key, _) in &rows {
        store.put(key, format!("the object {key}"));
    }
    let mount = store.mount("").start();
    let mut shown = BTreeMap::new();
    for entry in walkdir::WalkDir::new(mount.path()) {
        let entry = entry.expect("an entry");
        if entry.file_type().is_file() {
            let path = entry.path().strip_prefix(mount.path()).expect("below the mount").to_str().expect("UTF-8");
            shown.insert(path.to_owned(), std::fs::read_to_string(entry.path()).expect("a file that can be read"));
        }
    }
    let said: BTreeMap<_, _> = rows.iter().map(|(key, path)| (path.clone(), format!("the object {key}"))).collect();
    assert_eq!(shown, said);
    mount.stop();
}

#[test]
fn the_table_of_errors_is_true() {
    let said: BTreeMap<_, _> = document().table("errno").into_iter().collect();
    let name = |kind: ErrorKind| format!("{:?}", Errno::from_raw(common::errno::errno(kind)));
    let is: BTreeMap<_, _> = KINDS.iter().map(|kind| (format!("{kind:?}"), name(*kind))).collect();
    assert_eq!(said, is);
}
