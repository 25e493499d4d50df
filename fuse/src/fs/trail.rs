//! What the kernel holds of a mount, written down as it changes: node ids and their names, open handles. A process that
//! takes the connection over from one that died reads it and knows what the kernel speaks of ([`super::resume`]).
//!
//! A directory has a base (what held when it was written) and numbered parts of what came after it, each an append-only file of
//! records. When a part has grown, the next one is begun, and a thread of its own makes one new base of the old one and
//! all finished parts.
//!
//! Invariants:
//! - a record is in the file, in one write, before the kernel is told of what it says; so it outlives this process, though not
//!   the machine, with which the mount goes anyway;
//! - reading ends at the first record that is not whole, and a trail that could not be written to is removed: a
//!   successor has all of it or none;
//! - the space that it takes is bounded by what the kernel holds, plus two parts.

use super::open::PASSTHROUGH_HANDLE;
use common::{Error, FileKind, Result, Timestamp, attr::LocalId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// A part that has this many bytes is finished.
const PART: u64 = 16 << 20;

/// A change of what the kernel holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Record {
    /// What was agreed with the kernel.
    Agreed(Agreed),
    /// A node.
    Node { id: u64, kind: Kind, local: Option<(u64, u64)> },
    /// It has a further name.
    Named { id: u64, parent: u64, name: Vec<u8> },
    /// It has lost one.
    Unnamed { id: u64, parent: u64, name: Vec<u8> },
    /// The kernel forgot it.
    Gone { id: u64 },
    /// A file was opened.
    Opened(OpenFile),
    /// It was released.
    Released { id: u64, handle: u64 },
    /// A directory was opened.
    OpenedDirectory { handle: u64, id: u64 },
    /// It was released.
    ReleasedDirectory { handle: u64 },
    /// Numbers below these were given away.
    Next { node: u64, file: u64, directory: u64 },
    /// A base has everything up to the part with this number.
    Covers(u64),
}

/// A kind, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kind(u8);

const KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::Socket,
    FileKind::CharDevice,
    FileKind::BlockDevice,
];

impl From<FileKind> for Kind {
    fn from(kind: FileKind) -> Self {
        Kind(KINDS.iter().position(|known| *known == kind).unwrap_or(0) as u8)
    }
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        KINDS.get(usize::from(kind.0)).copied().unwrap_or(FileKind::File)
    }
}

/// What was agreed with the kernel when the mount began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// Its version of the protocol.
    pub minor: u32,
    /// The capabilities that are in use, as bits.
    pub capabilities: u64,
    /// The largest write.
    pub max_write: u32,
}

/// An open file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFile {
    /// Its node.
    pub id: u64,
    /// Its handle.
    pub handle: u64,
    /// Whether it was opened for writing.
    pub writes: bool,
    /// The registered file that it passes through to.
    pub backing: Option<u32>,
    /// The version, size and time of change of what is open.
    pub version: String,
    /// See `version`.
    pub size: u64,
    /// See `version`.
    pub mtime: (i64, u32),
}

impl OpenFile {
    /// Its time of change.
    pub fn mtime(&self) -> Timestamp {
        Timestamp { sec: self.mtime.0, nsec: self.mtime.1 }
    }
}

/// A node that the kernel holds.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub kind: FileKind,
    /// Which file of this host it is.
    pub local: Option<LocalId>,
    /// Its names, and the directories that they are in.
    pub names: Vec<(u64, Vec<u8>)>,
}

/// The handles of a node that pass through.
#[derive(Debug, Clone)]
pub struct Passing {
    /// The first of them.
    pub file: OpenFile,
    /// How many there are.
    pub handles: u64,
    /// How many of them write.
    pub writers: u64,
}

/// What the kernel holds.
#[derive(Debug, Default)]
pub struct Held {
    /// What was agreed with it.
    pub agreed: Option<Agreed>,
    /// Nodes, by id.
    pub nodes: BTreeMap<u64, Node>,
    /// Handles that are read and written through the daemon.
    pub files: BTreeMap<u64, OpenFile>,
    /// Nodes that pass through.
    pub passing: BTreeMap<u64, Passing>,
    /// Handles of directories, with their nodes.
    pub directories: BTreeMap<u64, u64>,
    /// Numbers that were never given away: of a node, a file, a directory.
    pub next: (u64, u64, u64),
}

impl Held {
    fn take(&mut self, record: Record) {
        match record {
            Record::Agreed(agreed) => self.agreed = Some(agreed),
            Record::Node { id, kind, local } => {
                let local = local.map(|(dev, ino)| LocalId { dev, ino });
                self.next.0 = self.next.0.max(id + 1);
                self.nodes.insert(id, Node { kind: kind.into(), local, names: Vec::new() });
            }
            Record::Named { id, parent, name } => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.names.push((parent, name));
                }
            }
            Record::Unnamed { id, parent, name } => {
                if let Some(node) = self.nodes.get_mut(&id)
                    && let Some(at) = node.names.iter().position(|known| *known == (parent, name.clone()))
                {
                    node.names.remove(at);
                }
            }
            Record::Gone { id } => drop(self.nodes.remove(&id)),
            Record::Opened(file) => {
                if file.backing.is_some() {
                    let none = Passing { file: file.clone(), handles: 0, writers: 0 };
                    let passing = self.passing.entry(file.id).or_insert(none);
                    passing.handles += 1;
                    passing.writers += u64::from(file.writes);
                }
                // Those that only read and pass through have one number for all.
                if file.handle != PASSTHROUGH_HANDLE {
                    self.next.1 = self.next.1.max(file.handle + 1);
                    self.files.insert(file.handle, file);
                }
            }
            Record::Released { id, handle } => {
                let file = self.files.remove(&handle);
                // All handles that pass through have the one number; another that is not known was ended before.
                if file.as_ref().map_or(handle == PASSTHROUGH_HANDLE, |file| file.backing.is_some())
                    && let Some(passing) = self.passing.get_mut(&id)
                {
                    passing.handles -= 1;
                    passing.writers = passing.writers.saturating_sub(u64::from(file.is_some_and(|file| file.writes)));
                    if passing.handles == 0 {
                        self.passing.remove(&id);
                    }
                }
            }
            Record::OpenedDirectory { handle, id } => {
                self.next.2 = self.next.2.max(handle + 1);
                self.directories.insert(handle, id);
            }
            Record::ReleasedDirectory { handle } => drop(self.directories.remove(&handle)),
            Record::Next { node, file, directory } => {
                let (a, b, c) = self.next;
                self.next = (a.max(node), b.max(file), c.max(directory));
            }
            Record::Covers(_) => {}
        }
    }

    /// The records that say all of it.
    fn records(&self) -> impl Iterator<Item = Record> {
        let (node, file, directory) = self.next;
        let first = self.agreed.map(Record::Agreed).into_iter().chain([Record::Next { node, file, directory }]);
        let nodes = self.nodes.iter().map(|(id, node)| Record::Node {
            id: *id,
            kind: node.kind.into(),
            local: node.local.map(|local| (local.dev, local.ino)),
        });
        let names = self.nodes.iter().flat_map(|(id, node)| {
            node.names.iter().map(move |(parent, name)| Record::Named { id: *id, parent: *parent, name: name.clone() })
        });
        let files = self.files.values().cloned().map(Record::Opened);
        let mut numbered = BTreeMap::<u64, u64>::new();
        for file in self.files.values().filter(|file| file.backing.is_some()) {
            *numbered.entry(file.id).or_default() += 1;
        }
        let passing = self.passing.values().flat_map(move |passing| {
            let without = passing.handles.saturating_sub(numbered.get(&passing.file.id).copied().unwrap_or(0));
            let file = OpenFile { handle: PASSTHROUGH_HANDLE, writes: false, ..passing.file.clone() };
            (0..without).map(move |_| Record::Opened(file.clone()))
        });
        let directories =
            self.directories.iter().map(|(handle, id)| Record::OpenedDirectory { handle: *handle, id: *id });
        first.chain(nodes).chain(names).chain(files).chain(passing).chain(directories)
    }

    /// What a trail says; none when there is none that can be relied on.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let Some((held, _)) = read_up_to(directory, u64::MAX)? else { return Ok(None) };
        Ok(held.agreed.is_some().then_some(held))
    }
}

/// Reads one file into `held`; false when there is none. Returns the part that a base covers too.
fn read_file(path: &Path, held: &mut Held) -> io::Result<Option<u64>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut covers = 0;
    let mut rest = &bytes[..];
    while let [a, b, c, d, body @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let Some((record, after)) = body.split_at_checked(length) else { break };
        let Ok(record) = postcard::from_bytes::<Record>(record) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record of another version"));
        };
        if let Record::Covers(part) = record {
            covers = part;
        }
        held.take(record);
        rest = after;
    }
    Ok(Some(covers))
}

fn part(directory: &Path, number: u64) -> PathBuf {
    directory.join(number.to_string())
}

/// What the base and the parts up to `last` say, and the number of the last part.
fn read_up_to(directory: &Path, last: u64) -> io::Result<Option<(Held, u64)>> {
    let mut held = Held::default();
    let covered = read_file(&directory.join("base"), &mut held)?;
    let mut number = covered.unwrap_or(0) + 1;
    while number <= last && read_file(&part(directory, number), &mut held)?.is_some() {
        number += 1;
    }
    Ok((covered.is_some() || number > 1).then_some((held, number - 1)))
}

fn encode(record: &Record, into: &mut Vec<u8>) -> io::Result<()> {
    let body = postcard::to_stdvec(record).map_err(io::Error::other)?;
    into.extend((body.len() as u32).to_le_bytes());
    into.extend(body);
    Ok(())
}

/// Writes the base that covers everything up to `number`, in place of the one before and the parts that it covers.
fn write_base(directory: &Path, held: &Held, number: u64) -> io::Result<()> {
    let beside = directory.join("base.new");
    let mut file = io::BufWriter::new(File::create(&beside)?);
    let mut bytes = Vec::new();
    for record in [Record::Covers(number)].into_iter().chain(held.records()) {
        bytes.clear();
        encode(&record, &mut bytes)?;
        file.write_all(&bytes)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    fs::rename(&beside, directory.join("base"))?;
    // The oldest last, so that what is left has no gap.
    for entry in fs::read_dir(directory)?.flatten() {
        let covered =
            entry.file_name().to_str().and_then(|name| name.parse::<u64>().ok()).is_some_and(|at| at <= number);
        if covered {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Part {
    file: Option<File>,
    number: u64,
    length: u64,
    bytes: Vec<u8>,
    /// Whether a thread makes a base.
    making: bool,
}

/// Writes it down.
#[derive(Debug)]
pub struct Trail {
    directory: PathBuf,
    part: Mutex<Part>,
    /// See [`PART`].
    most: u64,
}

impl Trail {
    /// Begins one in `directory`, with what is held already; what was in it before is gone.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn begin(directory: &Path, held: &Held) -> Result<Arc<Self>> {
        Self::with_parts(directory, held, PART)
    }

    fn with_parts(directory: &Path, held: &Held, most: u64) -> Result<Arc<Self>> {
        let failed = |error| Error::io(format!("the trail {}", directory.display()), error);
        let begin = || {
            let _ = fs::remove_dir_all(directory);
            fs::create_dir_all(directory)?;
            write_base(directory, held, 0)?;
            File::create(part(directory, 1))
        };
        let file = Some(begin().map_err(failed)?);
        let part = Part { file, number: 1, length: 0, bytes: Vec::new(), making: false };
        Ok(Arc::new(Self { directory: directory.to_owned(), part: Mutex::new(part), most }))
    }

    /// Notes a change.
    pub fn note(self: &Arc<Self>, record: &Record) {
        let mut part = self.part.lock();
        let Part { file: Some(file), bytes, .. } = &mut *part else { return };
        bytes.clear();
        if let Err(error) = encode(record, bytes).and_then(|()| file.write_all(bytes)) {
            tracing::warn!("{}: {error}; a successor cannot take this mount over", self.directory.display());
            part.file = None;
            // A part of it is worse than none.
            let _ = fs::remove_dir_all(&self.directory);
            return;
        }
        part.length += part.bytes.len() as u64;
        if part.length >= self.most && !part.making {
            self.turn(&mut part);
        }
    }

    /// Begins the next part.
    fn turn(self: &Arc<Self>, part: &mut Part) {
        let finished = part.number;
        // Without a new part this one grows on, and it is tried again with the next record.
        let Ok(file) = File::create(self::part(&self.directory, finished + 1)) else { return };
        (part.file, part.number, part.length, part.making) = (Some(file), finished + 1, 0, true);
        let trail = self.clone();
        let make = move || {
            let made = read_up_to(&trail.directory, finished).and_then(|found| match found {
                Some((held, number)) => write_base(&trail.directory, &held, number),
                None => Ok(()),
            });
            if let Err(error) = made {
                tracing::warn!("{}: {error}; it grows on", trail.directory.display());
            }
            trail.part.lock().making = false;
        };
        if std::thread::Builder::new().name("trail".into()).spawn(make).is_err() {
            part.making = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: u64, handle: u64, backing: Option<u32>) -> OpenFile {
        OpenFile { id, handle, writes: handle % 2 == 1, backing, version: "v".into(), size: 5, mtime: (1, 2) }
    }

    #[test]
    fn what_is_held_is_read_again_through_many_parts() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("t");
        let trail = Trail::with_parts(&directory, &Held::default(), 4000).unwrap();
        assert!(Held::read(&directory).unwrap().is_none(), "nothing was agreed yet");
        trail.note(&Record::Agreed(Agreed { minor: 40, capabilities: 1 << 40, max_write: 7 }));
        for id in 2..2000 {
            trail.note(&Record::Node { id, kind: FileKind::Symlink.into(), local: Some((3, id)) });
            trail.note(&Record::Named { id, parent: 1, name: id.to_string().into_bytes() });
            trail.note(&Record::Opened(file(id, id, None)));
            trail.note(&Record::Opened(file(id, 0, Some(9))));
            trail.note(&Record::Opened(file(id, 0, Some(9))));
            trail.note(&Record::OpenedDirectory { handle: id, id });
            trail.note(&Record::Released { id, handle: 0 });
            if id >= 10 {
                trail.note(&Record::Unnamed { id, parent: 1, name: id.to_string().into_bytes() });
                trail.note(&Record::Released { id, handle: id });
                trail.note(&Record::Released { id, handle: 0 });
                trail.note(&Record::ReleasedDirectory { handle: id });
                trail.note(&Record::Gone { id });
            }
        }
        let look = || {
            let held = Held::read(&directory).unwrap().unwrap();
            assert_eq!(held.next, (2000, 2000, 2000));
            assert_eq!(held.agreed.unwrap().capabilities, 1 << 40);
            let ids = || 2..10;
            assert!(held.nodes.keys().copied().eq(ids()) && held.files.keys().copied().eq(ids()));
            assert!(held.passing.keys().copied().eq(ids()) && held.directories.keys().copied().eq(ids()));
            assert_eq!((held.passing[&2].handles, held.passing[&2].file.backing), (1, Some(9)));
            assert_eq!((held.nodes[&2].kind, &held.nodes[&2].names), (FileKind::Symlink, &vec![(1, b"2".to_vec())]));
            held
        };
        // While a base is made, files come and go under the reader; a process that died makes none.
        while trail.part.lock().making {
            std::thread::yield_now();
        }
        let held = look();
        assert!(fs::read_dir(&directory).unwrap().count() < 40, "old parts went");
        Trail::begin(&directory, &held).unwrap();
        look();
    }

    #[test]
    fn a_torn_end_is_left_out() {
        let home = tempfile::tempdir().unwrap();
        let trail = Trail::begin(home.path(), &Held::default()).unwrap();
        trail.note(&Record::Agreed(Agreed { minor: 40, capabilities: 0, max_write: 7 }));
        trail.note(&Record::Node { id: 2, kind: FileKind::File.into(), local: None });
        let mut bytes = fs::read(home.path().join("1")).unwrap();
        let whole = bytes.len();
        bytes.extend(&bytes.clone()[..whole - 1]);
        fs::write(home.path().join("1"), &bytes).unwrap();
        let held = Held::read(home.path()).unwrap().unwrap();
        assert!(held.nodes.len() == 1 && held.agreed.is_some());
    }
}
