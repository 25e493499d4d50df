//! Opening a cache directory: what is wrong with it, said in one line; its journal; the files that nobody knows.

use super::{
    DirOptions, StoreOptions,
    dir::{CacheDir, Parts},
    file::StoredFile,
    health::Health,
    journal::Journal,
    names::{FOLDER, Key},
    shared::Shared,
};
use common::{Error, ErrorKind, Version};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, open, openat},
    sys::{
        stat::{Mode, fchmod, fstat, mkdirat},
        statvfs::fstatvfs,
    },
};
use std::{
    fs::File,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

/// Why a directory cannot be used.
pub(super) enum Failure {
    /// The user has to change something.
    Mistake(Error),
    /// The disk fails, or what lies on it is beyond use; the mount goes on without.
    Broken(Error),
}

/// Opens the directory and registers the files that its journal names.
pub(super) fn open_dir(
    options: &DirOptions,
    store: &StoreOptions,
    shared: &Arc<Shared>,
) -> Result<Arc<CacheDir>, Failure> {
    let path = &options.path;
    let index = store.dirs.iter().filter(|dir| dir.capacity > 0).position(|dir| std::ptr::eq(dir, options));
    let folder = open_folder(path)?;
    let disk = fstatvfs(&folder).map_err(|error| failure(path, "its space cannot be told", error))?;
    let disk = disk.blocks() * disk.fragment_size();
    if disk < options.capacity {
        return Err(mistake(format!(
            "cache directory {}: its capacity of {} bytes is larger than its disk of {disk} bytes; lower the capacity",
            path.display(),
            options.capacity
        )));
    }
    let lock = lock(path, &folder)?;
    match mkdirat(&folder, "pages", Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(failure(path, "its folder pages cannot be made", error)),
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let pages = openat(&folder, "pages", flags, Mode::empty())
        .map_err(|error| broken(path, format!("its folder pages cannot be opened: {error}")))?;
    let (journal, loaded) =
        Journal::open(&folder).map_err(|error| broken(path, format!("its journal cannot be read: {error}")))?;
    let dir = Arc::new(CacheDir::new(Parts {
        index: index.unwrap_or(0),
        path: path.clone(),
        folder,
        pages,
        lock,
        capacity: options.capacity,
        watermarks: (store.low_watermark, store.high_watermark),
        punch: store.punch,
        disk,
        health: Health::new(store.health),
        journal,
        shared: shared.clone(),
    }));
    for file in loaded {
        // Pages of another size belong to another configuration; their files go with the sweep.
        if file.page_size != store.page_size || file.pages.is_empty() {
            continue;
        }
        let version = Version::new(file.version);
        let key = Key::new(file.id, &version, file.size, file.page_size);
        if shared.find(&key).is_some() {
            continue;
        }
        let stored =
            StoredFile::with_slot(key, version, file.size, file.page_size, file.path, dir.clone(), shared, file.slot);
        let stored = shared.insert(stored);
        stored.adopt(&file.pages.into_iter().collect::<Vec<_>>());
    }
    Ok(dir)
}

fn mistake(message: String) -> Failure {
    Failure::Mistake(Error::new(ErrorKind::InvalidArgument, message))
}

fn broken(path: &Path, why: String) -> Failure {
    Failure::Broken(Error::new(ErrorKind::Io, format!("cache directory {}: {why}", path.display())))
}

/// A failed call: a mistake when the user can put it right, else the disk's fault.
fn failure(path: &Path, what: &str, error: Errno) -> Failure {
    let (uid, _) = common::attr::process_owner();
    match error {
        Errno::ENOTDIR | Errno::EEXIST => mistake(format!("cache directory {}: it is not a directory", path.display())),
        Errno::EACCES | Errno::EPERM | Errno::EROFS => mistake(format!(
            "cache directory {}: {what}: {error}; give user {uid} the right to write there, or name another directory",
            path.display()
        )),
        Errno::ELOOP | Errno::ENAMETOOLONG | Errno::ENOENT | Errno::EINVAL => {
            mistake(format!("cache directory {}: {what}: {error}", path.display()))
        }
        error => broken(path, format!("{what}: {error}")),
    }
}

/// The store's own folder: made when missing, ours, closed to others.
fn open_folder(path: &Path) -> Result<OwnedFd, Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).create(path);
    if let Err(error) = made {
        let error = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        return Err(failure(path, "it cannot be made", error));
    }
    let directory = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let parent = open(path, directory, Mode::empty()).map_err(|error| failure(path, "it cannot be opened", error))?;
    match mkdirat(&parent, FOLDER, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(failure(path, "it cannot be written", error)),
    }
    let folder = match openat(&parent, FOLDER, directory | OFlag::O_NOFOLLOW, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Err(mistake(format!(
                "cache directory {}: {FOLDER} in it is not a directory; remove it",
                path.display()
            )));
        }
        Err(error) => return Err(failure(path, "its folder alluxio-pages cannot be opened", error)),
    };
    let stat = fstat(&folder).map_err(|error| failure(path, "its folder cannot be examined", error))?;
    let (uid, _) = common::attr::process_owner();
    if stat.st_uid != uid {
        return Err(mistake(format!(
            "cache directory {}: {FOLDER} in it belongs to user {}, not to user {uid}; remove it or name another directory",
            path.display(),
            stat.st_uid
        )));
    }
    if stat.st_mode & 0o777 != 0o700 {
        fchmod(&folder, Mode::S_IRWXU)
            .map_err(|error| failure(path, "its folder cannot be closed to others", error))?;
    }
    Ok(folder)
}

/// Takes the directory for this process; who has it now is in the message.
fn lock(path: &Path, folder: &OwnedFd) -> Result<Flock<File>, Failure> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let file = openat(folder, "lock", flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|error| failure(path, "it cannot be written", error))?;
    match Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) {
        Ok(mut held) => {
            // The number is a help for people only; without it the lock is as good.
            let _ = held.set_len(0);
            let _ = held.write_all(std::process::id().to_string().as_bytes());
            Ok(held)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            let who = match pid.trim() {
                "" => "another process".to_owned(),
                own if own == std::process::id().to_string() => "this process already".to_owned(),
                pid => format!("process {pid}"),
            };
            Err(Failure::Mistake(Error::new(
                ErrorKind::Busy,
                format!("cache directory {} is in use by {who}; give each mount its own", path.display()),
            )))
        }
        Err((_, error)) => Err(failure(path, "it cannot be locked", error)),
    }
}

/// Removes page files that no journal knows: a crash came between the file and its record. Those changed after `before`
/// stay: they may be in the making. `stop` ends it early.
pub(super) fn sweep(dir: &CacheDir, before: SystemTime, stop: impl Fn() -> bool) {
    let before = common::Timestamp::from(before);
    let root = dir.path.join(FOLDER).join("pages");
    let Ok(folders) = std::fs::read_dir(&root) else { return };
    let mut removed = 0_u64;
    for entry in folders.flatten().filter_map(|folder| std::fs::read_dir(folder.path()).ok()).flatten().flatten() {
        if stop() {
            return;
        }
        let name = entry.file_name();
        let Some(key) = name.to_str().and_then(Key::from_name) else { continue };
        let old =
            entry.metadata().is_ok_and(|meta| (meta.ctime(), meta.ctime_nsec()) < (before.sec, before.nsec.into()));
        // One that is wanted after all loses its bytes, which counts as a miss; nothing worse.
        if old && dir.shared.find(&key).is_none_or(|file| file.dir().index != dir.index) && dir.unlink(&key).is_ok() {
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!("removed {removed} page files without a record from {}", dir.path.display());
        dir.look_at_space();
    }
}
