//! Random changes of a few files and directories against a model, with uploads that fail and processes that end.

use crate::{CALLER, Mount, object, path, server};
use bytes::Bytes;
use common::{
    ErrorKind,
    change::{NewNode, RenameMode},
};
use proptest::prelude::*;
use s3server::{Action, Fault, Operation};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Clone)]
enum Step {
    Write {
        file: usize,
        offset: usize,
        length: usize,
    },
    Append {
        file: usize,
        length: usize,
    },
    Truncate {
        file: usize,
        size: usize,
    },
    Remove {
        file: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    MakeDirectory {
        directory: usize,
    },
    RemoveDirectory {
        directory: usize,
    },
    RenameDirectory {
        from: usize,
        to: usize,
    },
    Read {
        file: usize,
    },
    List {
        directory: usize,
    },
    /// The next uploads go wrong in this way.
    Fail {
        how: usize,
    },
    Kill,
}

const DIRECTORIES: [&str; 3] = ["", "a", "b"];
const FILES: [&str; 6] = ["x", "y", "a/x", "a/y", "b/x", "b/y"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (file, directory) = (0..FILES.len(), 1..DIRECTORIES.len());
    let step = prop_oneof![
        4 => (file.clone(), 0..5000usize, 1..3000usize).prop_map(|(file, offset, length)| Step::Write { file, offset, length }),
        2 => (file.clone(), 1..3000usize).prop_map(|(file, length)| Step::Append { file, length }),
        2 => (file.clone(), 0..6000usize).prop_map(|(file, size)| Step::Truncate { file, size }),
        1 => file.clone().prop_map(|file| Step::Remove { file }),
        2 => (file.clone(), file.clone()).prop_map(|(from, to)| Step::Rename { from, to }),
        2 => directory.clone().prop_map(|directory| Step::MakeDirectory { directory }),
        1 => directory.clone().prop_map(|directory| Step::RemoveDirectory { directory }),
        1 => (directory.clone(), directory).prop_map(|(from, to)| Step::RenameDirectory { from, to }),
        3 => file.prop_map(|file| Step::Read { file }),
        1 => (0..DIRECTORIES.len()).prop_map(|directory| Step::List { directory }),
        1 => (0..4usize).prop_map(|how| Step::Fail { how }),
        1 => Just(Step::Kill),
    ];
    proptest::collection::vec(step, 1..40)
}

#[derive(Default)]
struct Model {
    files: BTreeMap<String, Vec<u8>>,
    directories: Vec<String>,
}

impl Model {
    fn has_directory(&self, name: &str) -> bool {
        name.is_empty() || self.directories.iter().any(|known| known == name)
    }

    fn parent<'a>(&self, file: &'a str) -> &'a str {
        file.split_once('/').map_or("", |(directory, _)| directory)
    }

    fn below(&self, directory: &str) -> Vec<String> {
        let within = |file: &&String| self.parent(file) == directory;
        self.files.keys().filter(within).cloned().collect()
    }
}

fn run(steps: Vec<Step>) {
    let (server, stage) = (server(), tempfile::tempdir().unwrap());
    let mut mount = Mount::new(&server, stage.path());
    let mut model = Model::default();
    let mut seed = 0usize;
    for step in steps {
        match step {
            Step::Write { file, length, .. } | Step::Append { file, length } => {
                let name = FILES[file];
                if !model.has_directory(model.parent(name)) {
                    continue;
                }
                seed += 1;
                let bytes = crate::pattern(seed * 17, length);
                let handle = mount.create(name).unwrap();
                let content = model.files.entry(name.to_owned()).or_default();
                let written = if let Step::Write { offset, .. } = step {
                    content.resize(content.len().max(offset + length), 0);
                    content[offset..offset + length].copy_from_slice(&bytes);
                    mount.run(handle.write(offset as u64, Bytes::from(bytes)))
                } else {
                    content.extend_from_slice(&bytes);
                    mount.run(handle.append(Bytes::from(bytes)))
                };
                written.unwrap();
                // Whether the upload succeeds or not, the bytes are there from now on.
                let _ = mount.run(handle.flush());
            }
            Step::Truncate { file, size } => {
                let Some(content) = model.files.get_mut(FILES[file]) else { continue };
                content.resize(size, 0);
                let handle = mount.open(FILES[file], libc::O_RDWR).unwrap();
                mount.run(handle.truncate(size as u64)).unwrap();
                let _ = mount.run(handle.sync(false));
            }
            Step::Remove { file } => {
                let removed = mount.run(mount.changes().remove_file(&path(FILES[file])));
                match model.files.remove(FILES[file]) {
                    Some(_) => removed.unwrap(),
                    None => assert_eq!(removed.unwrap_err().kind(), ErrorKind::NotFound),
                }
            }
            Step::Rename { from, to } => {
                let (from, to) = (FILES[from], FILES[to]);
                if !model.has_directory(model.parent(to)) {
                    continue;
                }
                server.clear_faults();
                let renamed = mount.run(mount.changes().rename(&path(from), &path(to), RenameMode::Replace));
                match model.files.remove(from) {
                    Some(content) => {
                        renamed.unwrap();
                        model.files.insert(to.to_owned(), content);
                    }
                    None => assert_eq!(renamed.unwrap_err().kind(), ErrorKind::NotFound),
                }
            }
            Step::MakeDirectory { directory } => {
                server.clear_faults();
                let name = DIRECTORIES[directory];
                let made = mount.run(mount.changes().make(&path(name), &NewNode::Directory, 0o755, CALLER));
                if model.has_directory(name) {
                    assert_eq!(made.unwrap_err().kind(), ErrorKind::AlreadyExists);
                } else {
                    made.unwrap();
                    model.directories.push(name.to_owned());
                }
            }
            Step::RemoveDirectory { directory } => {
                server.clear_faults();
                let name = DIRECTORIES[directory];
                let removed = mount.run(mount.changes().remove_directory(&path(name)));
                if !model.has_directory(name) {
                    assert_eq!(removed.unwrap_err().kind(), ErrorKind::NotFound);
                } else if !model.below(name).is_empty() {
                    assert_eq!(removed.unwrap_err().kind(), ErrorKind::NotEmpty);
                } else {
                    removed.unwrap();
                    model.directories.retain(|known| known != name);
                }
            }
            Step::RenameDirectory { from, to } => {
                server.clear_faults();
                let (from, to) = (DIRECTORIES[from], DIRECTORIES[to]);
                let renamed = mount.run(mount.changes().rename(&path(from), &path(to), RenameMode::Replace));
                if !model.has_directory(from) {
                    assert_eq!(renamed.unwrap_err().kind(), ErrorKind::NotFound);
                } else if from == to {
                    renamed.unwrap();
                } else if !model.below(to).is_empty() {
                    assert_eq!(renamed.unwrap_err().kind(), ErrorKind::NotEmpty);
                } else {
                    renamed.unwrap();
                    for file in model.below(from) {
                        let content = model.files.remove(&file).unwrap();
                        model.files.insert(file.replacen(from, to, 1), content);
                    }
                    model.directories.retain(|known| known != from && known != to);
                    model.directories.push(to.to_owned());
                }
            }
            Step::Read { file } => check(&mount, &model, FILES[file]),
            Step::List { directory } => {
                let name = DIRECTORIES[directory];
                if model.has_directory(name) {
                    let mut wanted: Vec<String> =
                        model.below(name).iter().map(|file| file.rsplit('/').next().unwrap().to_owned()).collect();
                    if name.is_empty() {
                        wanted.extend(model.directories.iter().cloned());
                    }
                    wanted.sort();
                    let names: Vec<String> = mount.list(name).unwrap_or_default().into_keys().collect();
                    assert_eq!(names, wanted, "in {name:?}");
                }
            }
            Step::Fail { how } => {
                let action = [Action::Error(403), Action::Error(503), Action::ActThenError(500), Action::ActThenDrop]
                    [how]
                    .clone();
                server.fault(Fault::new(action).on(Operation::PutObject).times(2));
            }
            Step::Kill => {
                // The attributes of what was synced are in the journal, and so is every upload that failed.
                mount.kill();
                mount = Mount::new(&server, stage.path());
            }
        }
    }
    server.clear_faults();
    mount.run(mount.stage.drain(Duration::from_secs(30))).unwrap();
    crate::until("what is counted is what lies on disk: nothing", || {
        mount.stage.used() == 0 && crate::losses::data_files(stage.path()).is_empty()
    });
    for file in FILES {
        check(&mount, &model, file);
        assert_eq!(object(&server, file).as_ref(), model.files.get(file), "{file} in the bucket");
    }
    for directory in DIRECTORIES {
        assert_eq!(mount.exists(directory), model.has_directory(directory), "directory {directory:?}");
    }
}

fn check(mount: &Mount, model: &Model, file: &str) {
    match (mount.read(file), model.files.get(file)) {
        (Ok(bytes), Some(wanted)) => assert!(bytes == *wanted, "{file} has other bytes"),
        (Err(error), None) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error}"),
        (got, wanted) => panic!("{file}: {:?}, wanted {:?}", got.map(|b| b.len()), wanted.map(Vec::len)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 20, ..ProptestConfig::default() })]

    #[test]
    fn it_behaves_as_a_file_system(steps in steps()) {
        run(steps);
    }
}
