//! Many files and directories against a model of them: random changes must be answered, and leave the tree, as the model
//! says. What the kernel's file systems differ in is left open ([`No::Some`]).

use super::*;
use crate::options::UfsOptions;
use common::UfsUri;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

const ME: Caller = Caller { uid: 0, gid: 0 };
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

type Names = Vec<usize>;

#[derive(Debug, Clone)]
enum Step {
    Create { at: Names, exclusive: bool },
    Write { at: Names, offset: usize, byte: u8, truncate: bool },
    Append { at: Names, byte: u8 },
    Truncate { at: Names, size: usize },
    MakeDirectory { at: Names },
    MakeLink { at: Names },
    Link { from: Names, to: Names, held: bool },
    RemoveFile { at: Names },
    RemoveDirectory { at: Names },
    Rename { from: Names, to: Names, how: u8 },
    Mode { at: Names, mode: u32 },
    Hold { at: Names },
    UseHeld { byte: u8 },
}

fn at() -> impl Strategy<Value = Names> {
    proptest::collection::vec(0..NAMES.len(), 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (at(), any::<bool>()).prop_map(|(at, exclusive)| Step::Create { at, exclusive }),
        4 => (at(), 0usize..5000, any::<u8>(), any::<bool>())
            .prop_map(|(at, offset, byte, truncate)| Step::Write { at, offset, byte, truncate }),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Step::Append { at, byte }),
        1 => (at(), 0usize..9000).prop_map(|(at, size)| Step::Truncate { at, size }),
        6 => at().prop_map(|at| Step::MakeDirectory { at }),
        1 => at().prop_map(|at| Step::MakeLink { at }),
        3 => (at(), at(), any::<bool>()).prop_map(|(from, to, held)| Step::Link { from, to, held }),
        2 => at().prop_map(|at| Step::RemoveFile { at }),
        2 => at().prop_map(|at| Step::RemoveDirectory { at }),
        6 => (at(), at(), 0u8..5).prop_map(|(from, to, how)| Step::Rename { from, to, how }),
        1 => (at(), 0u32..0o1000).prop_map(|(at, mode)| Step::Mode { at, mode }),
        1 => at().prop_map(|at| Step::Hold { at }),
        1 => any::<u8>().prop_map(|byte| Step::UseHeld { byte }),
    ]
}

/// How a change is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
enum No {
    Kind(ErrorKind),
    /// With one error or another.
    Some,
}

const MISSING: No = No::Kind(ErrorKind::NotFound);
const TAKEN: No = No::Kind(ErrorKind::AlreadyExists);

#[derive(Debug, Clone)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<usize, usize>),
    Link,
}

#[derive(Debug, Clone)]
struct Node {
    body: Body,
    mode: u32,
}

/// Nodes are never taken away, since somebody may hold them; the first is the root.
struct Model {
    nodes: Vec<Node>,
}

impl Model {
    fn new() -> Self {
        Self { nodes: vec![Node { body: Body::Directory(BTreeMap::new()), mode: 0o755 }] }
    }

    fn entries(&mut self, directory: usize) -> &mut BTreeMap<usize, usize> {
        match &mut self.nodes[directory].body {
            Body::Directory(entries) => entries,
            _ => panic!("no directory"),
        }
    }

    /// The directory that a name is in.
    fn parent(&self, at: &[usize]) -> Result<usize, No> {
        let mut here = 0;
        for name in &at[..at.len() - 1] {
            let Body::Directory(entries) = &self.nodes[here].body else { panic!("walked into no directory") };
            here = *entries.get(name).ok_or(MISSING)?;
            match self.nodes[here].body {
                Body::Directory(_) => {}
                Body::File(_) => return Err(No::Kind(ErrorKind::NotADirectory)),
                Body::Link => return Err(No::Some),
            }
        }
        Ok(here)
    }

    fn find(&self, at: &[usize]) -> Result<usize, No> {
        let parent = self.parent(at)?;
        let Body::Directory(entries) = &self.nodes[parent].body else { panic!("no directory") };
        entries.get(&at[at.len() - 1]).copied().ok_or(MISSING)
    }

    fn add(&mut self, at: &[usize], body: Body, mode: u32, taken: No) -> Result<(), No> {
        let parent = self.parent(at)?;
        if self.find(at).is_ok() {
            return Err(taken);
        }
        let new = self.nodes.len();
        self.nodes.push(Node { body, mode });
        self.entries(parent).insert(at[at.len() - 1], new);
        Ok(())
    }

    fn file(&mut self, node: usize) -> Result<&mut Vec<u8>, No> {
        match &mut self.nodes[node].body {
            Body::File(bytes) => Ok(bytes),
            Body::Directory(_) => Err(No::Kind(ErrorKind::IsADirectory)),
            Body::Link => Err(No::Some),
        }
    }

    fn is_directory(&self, node: usize) -> bool {
        matches!(self.nodes[node].body, Body::Directory(_))
    }

    fn is_empty(&self, node: usize) -> bool {
        !matches!(&self.nodes[node].body, Body::Directory(entries) if !entries.is_empty())
    }

    fn write(&mut self, node: usize, offset: usize, byte: u8) -> Result<(), No> {
        let bytes = self.file(node)?;
        bytes.resize(bytes.len().max(offset + 100), 0);
        bytes[offset..offset + 100].fill(byte);
        Ok(())
    }

    fn link(&mut self, from: &[usize], to: &[usize], held: bool) -> Result<(), No> {
        let parent = if held {
            self.find(from)?;
            self.parent(to)?
        } else {
            self.parent(to)?
        };
        let node = self.find(from)?;
        if self.find(to).is_ok() {
            return Err(TAKEN);
        }
        if self.is_directory(node) {
            return Err(No::Some);
        }
        self.entries(parent).insert(to[to.len() - 1], node);
        Ok(())
    }

    fn remove(&mut self, at: &[usize], directory: bool) -> Result<(), No> {
        let node = self.find(at)?;
        match (directory, self.is_directory(node)) {
            (false, true) => return Err(No::Kind(ErrorKind::IsADirectory)),
            (true, false) => return Err(No::Kind(ErrorKind::NotADirectory)),
            _ => {}
        }
        if !self.is_empty(node) {
            return Err(No::Kind(ErrorKind::NotEmpty));
        }
        let parent = self.parent(at)?;
        self.entries(parent).remove(&at[at.len() - 1]);
        Ok(())
    }

    fn rename(&mut self, from: &[usize], to: &[usize], how: RenameMode) -> Result<(), No> {
        let new_parent = self.parent(to)?;
        let old_parent = self.parent(from)?;
        let node = self.find(from)?;
        let other = self.find(to).ok();
        match (how, other) {
            (RenameMode::NoReplace, Some(_)) => return Err(TAKEN),
            (RenameMode::Exchange, None) => return Err(MISSING),
            _ => {}
        }
        // Directories have one name, so the names say who lies within whom.
        if from != to && to.starts_with(from) {
            return Err(No::Kind(ErrorKind::InvalidArgument));
        }
        if from != to && from.starts_with(to) {
            let exchange = how == RenameMode::Exchange;
            return Err(No::Kind(if exchange { ErrorKind::InvalidArgument } else { ErrorKind::NotEmpty }));
        }
        if other == Some(node) {
            return Ok(());
        }
        let (old, new) = (from[from.len() - 1], to[to.len() - 1]);
        if how == RenameMode::Exchange {
            self.entries(old_parent).insert(old, other.unwrap());
        } else {
            if let Some(other) = other {
                match (self.is_directory(node), self.is_directory(other)) {
                    (true, false) => return Err(No::Kind(ErrorKind::NotADirectory)),
                    (false, true) => return Err(No::Kind(ErrorKind::IsADirectory)),
                    _ if !self.is_empty(other) => return Err(No::Kind(ErrorKind::NotEmpty)),
                    _ => {}
                }
            }
            self.entries(old_parent).remove(&old);
        }
        self.entries(new_parent).insert(new, node);
        Ok(())
    }

    /// Everything below a directory, with names and what `show` says of it.
    fn whole(&self) -> BTreeMap<String, String> {
        let mut links = BTreeMap::<usize, u64>::new();
        let mut all = Vec::new();
        let mut left = vec![(String::new(), 0)];
        while let Some((path, node)) = left.pop() {
            let Body::Directory(entries) = &self.nodes[node].body else { continue };
            for (name, child) in entries {
                let path = format!("{path}/{}", NAMES[*name]);
                *links.entry(*child).or_default() += 1;
                all.push((path.clone(), *child));
                left.push((path, *child));
            }
        }
        let show = |node: usize| match &self.nodes[node] {
            Node { body: Body::File(bytes), mode } => format!("file {mode:o} {} {bytes:?}", links[&node]),
            Node { body: Body::Directory(_), mode } => format!("directory {mode:o}"),
            Node { body: Body::Link, .. } => "link".into(),
        };
        all.into_iter().map(|(path, node)| (path, show(node))).collect()
    }
}

fn found(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mode = meta.permissions().mode() & 0o7777;
            let text = match () {
                () if meta.is_dir() => format!("directory {mode:o}"),
                () if meta.is_file() => format!("file {mode:o} {} {:?}", meta.nlink(), fs::read(&path).unwrap()),
                () => "link".into(),
            };
            all.insert(path.to_str().unwrap()[root.to_str().unwrap().len()..].to_owned(), text);
            if meta.is_dir() {
                left.push(path);
            }
        }
    }
    all
}

fn path(at: &[usize]) -> UfsPath {
    UfsPath::parse(at.iter().map(|name| NAMES[*name]).collect::<Vec<_>>().join("/")).unwrap()
}

fn how(number: u8) -> RenameMode {
    match number {
        0 => RenameMode::NoReplace,
        1 => RenameMode::Exchange,
        _ => RenameMode::Replace,
    }
}

/// A file that is held open, here and in the model.
type Held = Vec<(LocalFile, usize)>;

async fn really(storage: &Posix, step: &Step, held: &mut Held) -> Result<()> {
    let local = |opened| match opened {
        OpenedForWriting::Local(local) => local,
        OpenedForWriting::Staged(_) => panic!("a local file is not staged"),
    };
    let failed = |errno| Error::os("write", errno as i32);
    match step {
        Step::Create { at, exclusive } => {
            let flags = libc::O_RDWR | if *exclusive { libc::O_EXCL } else { 0 };
            storage.create(&path(at), flags, 0o644, ME).await.map(drop)
        }
        Step::Write { at, offset, byte, truncate } => {
            let flags = libc::O_WRONLY | if *truncate { libc::O_TRUNC } else { 0 };
            let file = local(storage.open(&path(at), flags).await?).file;
            local::write_all(&*file, *offset as u64, &[*byte; 100], false).map_err(failed)
        }
        Step::Append { at, byte } => {
            let file = local(storage.open(&path(at), libc::O_WRONLY | libc::O_APPEND).await?).file;
            local::write_all(&*file, 0, &[*byte; 100], true).map_err(failed)
        }
        Step::Truncate { at, size } => {
            let change = SetAttr { size: Some(*size as u64), ..SetAttr::default() };
            storage.set_attr(&path(at), change).await.map(drop)
        }
        Step::MakeDirectory { at } => storage.make(&path(at), &NewNode::Directory, 0o755, ME).await.map(drop),
        Step::MakeLink { at } => {
            storage.make(&path(at), &NewNode::Symlink(Bytes::from_static(b"a/b")), 0o777, ME).await.map(drop)
        }
        Step::Link { from, to, held: false } => storage.link(&path(from), &path(to)).await.map(drop),
        Step::Link { from, to, held: true } => {
            let from = storage.hold(&path(from)).unwrap()?;
            storage.link_held(&from.file, &path(to)).unwrap().map(drop)
        }
        Step::RemoveFile { at } => storage.remove_file(&path(at)).await,
        Step::RemoveDirectory { at } => storage.remove_directory(&path(at)).await,
        Step::Rename { from, to, how: number } => storage.rename(&path(from), &path(to), how(*number)).await,
        Step::Mode { at, mode } => {
            let change = SetAttr { mode: Some(*mode), ..SetAttr::default() };
            storage.set_attr(&path(at), change).await.map(drop)
        }
        Step::Hold { at } => {
            // The model says which node it is.
            held.push((local(storage.open(&path(at), libc::O_RDWR).await?), usize::MAX));
            Ok(())
        }
        Step::UseHeld { byte } => match held.last() {
            Some((file, _)) => local::write_all(&*file.file, 7, &[*byte; 100], false).map_err(failed),
            None => Ok(()),
        },
    }
}

fn modelled(model: &mut Model, step: &Step, held: &mut Held) -> Result<(), No> {
    match step {
        Step::Create { at, exclusive } => {
            let taken = if *exclusive { TAKEN } else { No::Kind(ErrorKind::Stale) };
            model.add(at, Body::File(Vec::new()), 0o644, taken)
        }
        Step::Write { at, offset, byte, truncate } => {
            let node = model.find(at)?;
            if *truncate {
                model.file(node)?.clear();
            }
            model.write(node, *offset, *byte)
        }
        Step::Append { at, byte } => {
            let node = model.find(at)?;
            let end = model.file(node)?.len();
            model.write(node, end, *byte)
        }
        Step::Truncate { at, size } => {
            let node = model.find(at)?;
            model.file(node).map(|bytes| bytes.resize(*size, 0))
        }
        Step::MakeDirectory { at } => model.add(at, Body::Directory(BTreeMap::new()), 0o755, TAKEN),
        Step::MakeLink { at } => model.add(at, Body::Link, 0o777, TAKEN),
        Step::Link { from, to, held } => model.link(from, to, *held),
        Step::RemoveFile { at } => model.remove(at, false),
        Step::RemoveDirectory { at } => model.remove(at, true),
        Step::Rename { from, to, how: number } => model.rename(from, to, how(*number)),
        Step::Mode { at, mode } => {
            let node = model.find(at)?;
            match &mut model.nodes[node] {
                Node { body: Body::Link, .. } => Err(No::Some),
                node => {
                    node.mode = *mode;
                    Ok(())
                }
            }
        }
        Step::Hold { at } => {
            let node = model.find(at)?;
            model.file(node)?;
            if let Some((_, number)) = held.last_mut() {
                *number = node;
            }
            Ok(())
        }
        Step::UseHeld { byte } => match held.pop() {
            Some((_, node)) => model.write(node, 7, *byte),
            None => Ok(()),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_is_changed_as_a_model_of_it(steps in proptest::collection::vec(step(), 1..150)) {
        // Without its rights a directory of another mode would refuse.
        prop_assume!(nix::unistd::geteuid().is_root());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let uri = UfsUri::parse(directory.path().to_str().unwrap()).unwrap();
        let storage = Posix::open(&uri, &UfsOptions::default()).unwrap();
        let (mut model, mut held) = (Model::new(), Held::new());
        for step in &steps {
            let got = runtime.block_on(really(&storage, step, &mut held));
            let expected = modelled(&mut model, step, &mut held);
            match (&got, expected) {
                (Ok(()), Ok(())) | (Err(_), Err(No::Some)) => {}
                (Err(error), Err(No::Kind(kind))) => prop_assert_eq!(error.kind(), kind, "{:?}: {}", step, error),
                (got, expected) => prop_assert!(false, "{step:?}: {got:?}, where the model says {expected:?}"),
            }
        }
        prop_assert_eq!(found(directory.path()), model.whole());
    }
}
