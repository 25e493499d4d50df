//! Trees of files of all kinds, and comparing what a mount shows with what was made.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use crate::data::{content, sha256, sha256_of};

/// What a tree consists of: the path of each file relative to the root, with its size and the SHA-256 of its bytes; and
/// its directories.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    /// The files.
    pub files: BTreeMap<PathBuf, (u64, [u8; 32])>,
    /// The directories, without the root.
    pub directories: Vec<PathBuf>,
}

impl Tree {
    /// Makes a tree of `count` files below `root`. The sizes stand around the page size `page` and that of the kernel;
    /// there are deep paths, names of 255 bytes and names beyond ASCII. The same arguments make the same tree.
    pub fn make(root: &Path, count: usize, page: u64, seed: u64) -> io::Result<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut tree = Tree::default();
        let directories = directories();
        for directory in &directories {
            std::fs::create_dir_all(root.join(directory))?;
        }
        for number in 0..count {
            let directory = match number % 50 {
                0 => &directories[directories.len() - 1],
                1 => &directories[directories.len() - 2],
                _ => &directories[random.random_range(0..directories.len())],
            };
            let path = directory.join(name(number));
            let size = size(number, page, &mut random);
            let bytes = content(&format!("{seed}/{number}"), 0, size as usize);
            std::fs::write(root.join(&path), &bytes)?;
            tree.files.insert(path, (size, sha256_of(&bytes)));
        }
        let mut known: Vec<PathBuf> = directories
            .iter()
            .flat_map(|directory| directory.ancestors().map(Path::to_owned).collect::<Vec<_>>())
            .filter(|directory| !directory.as_os_str().is_empty())
            .collect();
        known.sort();
        known.dedup();
        tree.directories = known;
        Ok(tree)
    }

    /// Adds a file that is there already.
    pub fn add(&mut self, root: &Path, path: &str) -> io::Result<()> {
        let full = root.join(path);
        let size = std::fs::metadata(&full)?.len();
        self.files.insert(path.into(), (size, sha256(&full)?));
        Ok(())
    }

    /// Compares names, kinds and sizes below `root` with the tree's. The message names what differs.
    pub fn compare_names(&self, root: &Path) -> Result<(), String> {
        let mut files = 0;
        let mut directories = 0;
        for entry in walkdir::WalkDir::new(root).min_depth(1) {
            let entry = entry.map_err(|error| format!("walking: {error}"))?;
            let path = entry.path().strip_prefix(root).map_err(|error| error.to_string())?;
            if entry.file_type().is_dir() {
                directories += 1;
                if self.directories.binary_search_by(|directory| directory.as_path().cmp(path)).is_err() {
                    return Err(format!("{path:?} is a directory that was never made"));
                }
                continue;
            }
            files += 1;
            let (size, _) = self.files.get(path).ok_or_else(|| format!("{path:?} was never made"))?;
            let found = entry.metadata().map_err(|error| format!("{path:?}: {error}"))?;
            if !found.is_file() || found.len() != *size {
                return Err(format!("{path:?} has {} bytes, not {size}", found.len()));
            }
        }
        if (files, directories) != (self.files.len(), self.directories.len()) {
            let expected = (self.files.len(), self.directories.len());
            return Err(format!("{files} files and {directories} directories are shown, not {expected:?}"));
        }
        Ok(())
    }

    /// Reads every file below `root` with so many threads, in an order of its own, and compares the SHA-256 with what
    /// was made. With `again`, each thread reads every file; else the threads share the work.
    pub fn compare_bytes(&self, root: &Path, threads: usize, seed: u64, again: bool) -> Result<(), String> {
        let files: Vec<_> = self.files.iter().collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..threads)
                .map(|thread| {
                    let (files, next) = (&files, &next);
                    scope.spawn(move || {
                        let mut order: Vec<usize> = (0..files.len()).collect();
                        let own = if again { seed + thread as u64 } else { seed };
                        order.shuffle(&mut StdRng::seed_from_u64(own));
                        let mut at = 0;
                        loop {
                            let turn = if again { at } else { next.fetch_add(1, Ordering::Relaxed) };
                            at += 1;
                            let Some(number) = order.get(turn) else { return Ok(()) };
                            let (path, (size, expected)) = files[*number];
                            match sha256(&root.join(path)) {
                                Ok(found) if found == *expected => {}
                                Ok(_) => return Err(format!("{path:?} ({size} bytes) has other bytes")),
                                Err(error) => return Err(format!("{path:?} ({size} bytes): {error}")),
                            }
                        }
                    })
                })
                .collect();
            readers.into_iter().try_for_each(|reader| reader.join().unwrap_or_else(|_| Err("a reader panicked".into())))
        })
    }
}

/// Directories with few and many files, deep ones, one with a name of 255 bytes, some beyond ASCII. The last two get
/// files for sure.
fn directories() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = (0..24).map(|number| PathBuf::from(format!("part-{number:02}"))).collect();
    all.extend((0..12).map(|number| PathBuf::from(format!("nested/{}/{number}", number % 3))));
    all.push(PathBuf::from("umläut und leer"));
    all.push(PathBuf::from("目录/каталог/🗂"));
    all.push(PathBuf::from("L".repeat(255)));
    all.push((0..60).map(|level| format!("level{level:02}")).collect());
    all
}

fn name(number: usize) -> String {
    match number % 23 {
        3 => format!("файл {number}"),
        5 => format!("データ-{number}.bin"),
        7 => format!("{number}-{}", "x".repeat(254 - number.to_string().len())),
        11 => format!("{number}{}", "é".repeat((255 - number.to_string().len()) / 2)),
        13 => format!("with +%&=?#\"'<>*:\\ {number}"),
        17 => format!(".hidden~{number}"),
        19 => format!(" {number} "),
        _ => format!("file-{number:06}.dat"),
    }
}

fn size(number: usize, page: u64, random: &mut StdRng) -> u64 {
    match number % 100 {
        0..10 => 0,
        10..20 => 1,
        20 | 21 => page - 1,
        22 | 23 => page,
        24 | 25 => page + 1,
        26..30 => [4095, 4096, 4097, 8192][number % 4],
        30 => 3 * page + random.random_range(0..page),
        31 if number % 1000 == 31 => 20 * page + 1,
        _ => random.random_range(2..1500),
    }
}

/// Makes a sparse file of `size` bytes with data at the beginning, at the end, and at some places between.
pub fn sparse_file(path: &Path, size: u64, seed: &str) -> io::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = File::create(path)?;
    file.set_len(size)?;
    let piece = 3 << 16;
    for place in 0..16u64 {
        let at = ((size - piece) / 15 * place).min(size - piece);
        file.write_all_at(&content(seed, at, piece as usize), at)?;
    }
    file.sync_all()
}

/// The names in a directory, sorted, as bytes.
pub fn names(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> =
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().as_bytes().to_vec())).collect::<io::Result<_>>()?;
    names.sort();
    Ok(names)
}
