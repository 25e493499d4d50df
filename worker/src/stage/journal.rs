//! The journal of a stage: what is not yet in the storage, so that it outlives the process.
//!
//! Lines of JSON with a checksum in front. Invariants:
//! - a record counts only when its whole line is there and its checksum is right; at the first that is not reading ends,
//!   and the rest, which was never promised, is cut off;
//! - the live records (the last of each id that is not `Done`) outlive a rewrite: the new file is complete and synced before it
//!   takes the old one's name;
//! - an append that failed leaves no half line in front of the next one.

use common::{Error, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// The journal is written anew when it has this many bytes, and four times those of its live records.
const REWRITE: u64 = 4 << 20;

/// Number, start, length and etag of a part; the etag is empty when it is not sent yet.
pub(crate) type SentPart = (u32, u64, u64, String);

/// A file that is not in the storage as it is in the stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Its path, as bytes.
    pub(crate) path: Vec<u8>,
    pub(crate) size: u64,
    /// The version of the object that the other bytes are in, how many of its first bytes count, and its path.
    pub(crate) base: Option<(String, u64, Vec<u8>)>,
    /// The ranges that are in the stage file and nowhere else.
    pub(crate) dirty: Vec<(u64, u64)>,
    /// An upload that has begun: its name, its mark, and number, start, length and etag of its parts.
    pub(crate) upload: Option<(String, String, Vec<SentPart>)>,
    /// Begins the marks of all uploads of the file.
    pub(crate) mark: String,
    pub(crate) look: super::attributes::Look,
    /// When it was changed last: of two records of a path the later one counts.
    #[serde(default)]
    pub(crate) changed: (i64, u32),
    /// Its bytes were synced before the record was written.
    #[serde(default)]
    pub(crate) synced: bool,
    /// The boot of the machine in which it was written. What was not synced counts only in the same one.
    #[serde(default)]
    pub(crate) boot: String,
}

/// A rename that copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MoveRecord {
    /// Key, or prefix of a directory.
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) directory: bool,
    /// Everything is copied; what is left is to remove the old names.
    pub(crate) copied: bool,
    /// Version and time of the file that is renamed: only that one may be removed.
    #[serde(default)]
    pub(crate) version: Option<(String, (i64, u32))>,
    /// When the newest of the originals in a directory was stored: what is newer was written since, and stays.
    #[serde(default)]
    pub(crate) newest: Option<(i64, u32)>,
    /// Copies that have another version than their original: the rest of the key, the old and the new version.
    #[serde(default)]
    pub(crate) versions: Vec<(String, String, String)>,
}

impl MoveRecord {
    /// A rename that begins.
    pub(crate) fn new(from: &str, to: &str, directory: bool) -> Self {
        let (from, to) = (from.to_owned(), to.to_owned());
        Self { from, to, directory, copied: false, version: None, newest: None, versions: Vec::new() }
    }

    /// Whether a key is one of those that it would remove.
    pub(crate) fn concerns(&self, key: &str) -> bool {
        let one = |own: &str| if self.directory { key.starts_with(own) } else { key == own };
        one(&self.from) || one(&self.to)
    }
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    File(Box<FileRecord>),
    Move(MoveRecord),
    /// Changes of attributes in the directory with this prefix; `None` removes an entry.
    Attributes(String, BTreeMap<String, Option<super::attributes::Entry>>),
    /// What had this id is in the storage, or is no more.
    Done,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: u64,
    record: Record,
}

struct Open {
    file: File,
    length: u64,
    live: BTreeMap<u64, (Record, u64)>,
    live_bytes: u64,
}

/// The journal.
pub(crate) struct Journal {
    path: PathBuf,
    open: Mutex<Open>,
}

impl Journal {
    /// Opens or makes the journal in `directory`, and returns its live records.
    pub(crate) fn open(directory: &Path) -> Result<(Self, BTreeMap<u64, Record>)> {
        let path = directory.join("journal");
        let failed = |error| Error::io(format!("journal {}", path.display()), error);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        let (records, good) = read(&text);
        if good < text.len() {
            tracing::warn!("{}: {} bytes at its end were not whole and are dropped", path.display(), text.len() - good);
        }
        let mut live = BTreeMap::new();
        for (id, record, length) in records {
            match record {
                Record::Done => drop(live.remove(&id)),
                record => drop(live.insert(id, (record, length))),
            }
        }
        let records = live.iter().map(|(id, (record, _))| (*id, record.clone())).collect();
        let journal = Self { path: path.clone(), open: Mutex::new(rewrite(&path, live).map_err(failed)?) };
        Ok((journal, records))
    }

    /// Appends a record. It outlives the process when this returns; `durable`: the loss of power too.
    pub(crate) fn append(&self, id: u64, record: Record, durable: bool) -> Result<()> {
        let failed = |error| Error::io(format!("journal {}", self.path.display()), error);
        let line = line(id, &record).map_err(failed)?;
        let length = line.len() as u64;
        let mut open = self.open.lock();
        if let Err(error) = open.file.write_all_at(&line, open.length) {
            // Whatever half of it is there, the next one overwrites.
            let length = open.length;
            let _ = open.file.set_len(length);
            return Err(failed(error));
        }
        open.length += length;
        let old = match record {
            Record::Done => open.live.remove(&id),
            record => {
                open.live_bytes += length;
                open.live.insert(id, (record, length))
            }
        };
        open.live_bytes -= old.map_or(0, |(_, length)| length);
        if open.length > REWRITE && open.length > open.live_bytes.saturating_mul(4) {
            let live = std::mem::take(&mut open.live);
            match rewrite(&self.path, live.clone()) {
                Ok(fresh) => *open = fresh,
                // The old one goes on to be right, only long.
                Err(error) => {
                    open.live = live;
                    tracing::warn!("journal {} cannot be written anew: {error}", self.path.display());
                }
            }
        }
        if durable {
            let file = open.file.try_clone().map_err(failed)?;
            drop(open);
            file.sync_data().map_err(failed)?;
        }
        Ok(())
    }
}

fn line(id: u64, record: &Record) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(&Line { id, record: record.clone() }).map_err(io::Error::other)?;
    let mut line = format!("{:08x} ", crc32c::crc32c(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    Ok(line)
}

/// The records of a journal, each with the length of its line, and how many bytes of it are whole.
fn read(text: &[u8]) -> (Vec<(u64, Record, u64)>, usize) {
    let mut records = Vec::new();
    let mut good = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(record) = read_line(line) else { break };
        good += line.len();
        records.push((record.id, record.record, line.len() as u64));
    }
    (records, good)
}

fn read_line(line: &[u8]) -> Option<Line> {
    let line = line.strip_suffix(b"\n")?;
    let (checksum, json) = line.split_at_checked(9)?;
    let checksum = u32::from_str_radix(std::str::from_utf8(checksum).ok()?.strip_suffix(' ')?, 16).ok()?;
    (crc32c::crc32c(json) == checksum).then(|| serde_json::from_slice(json).ok())?
}

/// Writes the live records to a new file that takes the place of the journal.
fn rewrite(path: &Path, live: BTreeMap<u64, (Record, u64)>) -> io::Result<Open> {
    let fresh = path.with_extension("new");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&fresh)?;
    let mut writer = io::BufWriter::new(&file);
    let mut length = 0;
    for (id, (record, _)) in &live {
        let line = line(*id, record)?;
        length += line.len() as u64;
        writer.write_all(&line)?;
    }
    writer.flush()?;
    drop(writer);
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    let live_bytes = length;
    Ok(Open { file, length, live, live_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: u64) -> Record {
        Record::File(Box::new(FileRecord {
            path: b"a/\xff".to_vec(),
            size,
            base: Some(("etag".into(), 5, b"b".to_vec())),
            dirty: vec![(0, 7)],
            upload: None,
            mark: "m".into(),
            look: Default::default(),
            changed: (1, 2),
            synced: true,
            boot: "b".into(),
        }))
    }

    #[test]
    fn what_is_live_comes_back_and_what_is_torn_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let open = || Journal::open(directory.path()).unwrap();
        let (journal, records) = open();
        assert!(records.is_empty());
        journal.append(1, record(1), false).unwrap();
        journal.append(2, record(2), true).unwrap();
        journal.append(1, record(3), false).unwrap();
        journal.append(2, Record::Done, false).unwrap();
        let whole = std::fs::read(&path).unwrap();
        drop(journal);
        assert_eq!(open().1, BTreeMap::from([(1, record(3))]));
        // Cut or damaged anywhere, what comes before stays.
        let lines: Vec<usize> =
            whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let complete = lines.iter().filter(|end| **end <= cut).count();
            let wanted = match complete {
                0 => BTreeMap::new(),
                1 => BTreeMap::from([(1, record(1))]),
                2 => BTreeMap::from([(1, record(1)), (2, record(2))]),
                _ => BTreeMap::from([(1, record(3)), (2, record(2))]),
            };
            assert_eq!(read(&whole[..cut]).0.len(), complete);
            if cut % 37 == 0 {
                assert_eq!(open().1, wanted, "cut at {cut}");
            }
        }
        let mut damaged = whole.clone();
        damaged[lines[0] + 20] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let (journal, records) = open();
        assert_eq!(records, BTreeMap::from([(1, record(1))]));
        journal.append(9, record(9), true).unwrap();
        assert_eq!(open().1, BTreeMap::from([(1, record(1)), (9, record(9))]));
    }

    #[test]
    fn it_does_not_grow_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.append(0, record(0), false).unwrap();
        for id in 1..30_000 {
            journal.append(id, record(id), false).unwrap();
            journal.append(id, Record::Done, false).unwrap();
        }
        assert!(std::fs::metadata(directory.path().join("journal")).unwrap().len() < 2 * REWRITE);
        drop(journal);
        assert_eq!(Journal::open(directory.path()).unwrap().1, BTreeMap::from([(0, record(0))]));
    }
}
