//! Keys that no file name can express are shown by a rule, and can be read; nothing is hidden, nothing is shown twice.

use std::collections::BTreeMap;

use tests::{Store, content, mounts_work};

/// Every file below a directory, with its bytes.
fn files(root: &std::path::Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let bytes = std::fs::read(entry.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(entry.metadata().unwrap().len(), bytes.len() as u64, "{name}");
            assert!(found.insert(name.clone(), bytes).is_none(), "{name} is shown twice");
        }
    }
    found
}

#[test]
fn no_object_is_hidden() {
    if !mounts_work() {
        return;
    }
    let long = format!("long/{}/file", "n".repeat(300));
    let longer = format!("long/{}", "m".repeat(300));
    let keys = [
        "plain",
        "double//slash",
        "double/slash",
        "/leading",
        "trailing/",
        "both",
        "both/below",
        "both/",
        "dots/./here",
        "dots/../there",
        "dots/...",
        ".",
        "..",
        "a//b//c",
        "percent/%2F/%25",
        "percent/%/x",
        "rule/100%{x}",
        "nul-free/\u{1}\u{7f}/control",
        "line\nbreak",
        "ends with blank ",
        "//",
        &long,
        &longer,
    ];
    let store = Store::start();
    for key in keys {
        // A marker of a directory has no bytes; one that has bytes is data, and must not get lost.
        store.put(key, content(key, 0, 100 + key.len()));
    }
    let mount = store.mount("").start();
    let shown = files(mount.path());
    for key in keys {
        let bytes = content(key, 0, 100 + key.len());
        let names: Vec<_> = shown.iter().filter(|(_, found)| **found == bytes).map(|(name, _)| name).collect();
        assert_eq!(names.len(), 1, "{key:?} is shown as {names:?} among {:#?}", shown.keys());
    }
    assert_eq!(shown.len(), keys.len(), "{:#?}", shown.keys());
    // The rule of ufs/src/object/names.rs, which docs/SEMANTICS.md repeats.
    for (key, path) in [
        ("plain", "plain"),
        ("double/slash", "double/slash"),
        ("double//slash", "double/%{}/slash"),
        ("/leading", "%{}/leading"),
        ("trailing/", "trailing/%{file}"),
        ("both", "both%{file}"),
        ("both/", "both/%{file}"),
        ("both/below", "both/below"),
        ("dots/./here", "dots/%{2e}/here"),
        ("dots/../there", "dots/%{2e}./there"),
        ("dots/...", "dots/..."),
        ("a//b//c", "a/%{}/b/%{}/c"),
        ("percent/%2F/%25", "percent/%2F/%25"),
        ("rule/100%{x}", "rule/100%{25}{x}"),
        ("ends with blank ", "ends with blank "),
        ("line\nbreak", "line\nbreak"),
    ] {
        let bytes = content(key, 0, 100 + key.len());
        assert!(shown.get(path) == Some(&bytes), "{key:?} is not at {path:?} among {:#?}", shown.keys());
    }
    mount.stop();
    // A second mount shows the same names, also when they are looked up without a listing.
    let mount = store.mount("").start();
    for (name, bytes) in &shown {
        assert!(
            std::fs::read(mount.join(name)).unwrap_or_else(|error| panic!("{name:?}: {error}")) == *bytes,
            "{name:?}"
        );
    }
    mount.stop();
}

#[test]
fn markers_of_directories_are_directories() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    for key in ["empty/", "full/", "deep/er/"] {
        store.put(key, Vec::new());
    }
    store.put("full/file", *b"content");
    let mount = store.mount("").start();
    assert_eq!(tests::tree::names(mount.path()).unwrap(), [&b"deep"[..], b"empty", b"full"]);
    assert_eq!(tests::tree::names(&mount.join("empty")).unwrap(), Vec::<Vec<u8>>::new());
    assert_eq!(tests::tree::names(&mount.join("full")).unwrap(), [b"file"]);
    assert_eq!(tests::tree::names(&mount.join("deep")).unwrap(), [b"er"]);
    assert!(mount.join("deep/er").metadata().unwrap().is_dir());
    mount.stop();
}

#[test]
fn a_prefix_without_objects_is_an_empty_directory_or_refused() {
    if !mounts_work() {
        return;
    }
    let store = Store::start();
    store.put("other", *b"x");
    match store.mount("nothing/here").try_start() {
        Ok(mount) => {
            assert_eq!(std::fs::read_dir(mount.path()).unwrap().count(), 0);
            mount.stop();
        }
        Err(failure) => assert!(failure.message.contains("nothing/here"), "{failure:?}"),
    }
}
