//! The mount point: finding it, checking it, making it when missing.
//!
//! Nothing here may hang on a dead or stuck mount: looks at the file system are made on threads of their own.

use super::{
    Result, SessionError,
    kernel::{self, Unmounted},
    mounts::{self, Mount},
    process,
};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a look at a path may take.
const LOOK: Duration = Duration::from_secs(3);

/// What a mount point must not be in, and what must not be in it.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    /// The directory that is mounted, when it is one of this host.
    pub source: Option<PathBuf>,
    /// What of ours must not lie on the mount: a word for people, and the path.
    pub ours: Vec<(&'static str, PathBuf)>,
}

/// The path without links and dots. What does not exist is kept as it is; a mount point, dead or not, is not looked at.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(SessionError::refused("the path is empty"));
    }
    let absolute = std::path::absolute(path).map_err(|error| SessionError::system(path.display(), error))?;
    // `absolute` keeps a trailing slash; components do not.
    let absolute: PathBuf = absolute.components().collect();
    if mounts::at(&absolute)?.is_some() {
        return Ok(absolute);
    }
    let mut missing: Vec<std::ffi::OsString> = Vec::new();
    let mut at = absolute.as_path();
    loop {
        // A dead mount answers no question, so its directory is asked, and the list of mounts for the rest.
        if let (Some(parent), Some(name)) = (at.parent(), at.file_name())
            && let Ok(parent) = look(parent, |path| path.canonicalize())
        {
            let candidate = parent.join(name);
            if mounts::at(&candidate)?.is_some() {
                return Ok(rejoin(candidate, &missing));
            }
        }
        match look(at, |path| path.canonicalize()) {
            Ok(found) => return Ok(rejoin(found, &missing)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match (at.parent(), at.file_name()) {
                (Some(parent), Some(name)) => {
                    missing.push(name.to_owned());
                    at = parent;
                }
                _ => return Err(unusable(path, at, error)),
            },
            Err(error) => return Err(unusable(path, at, error)),
        }
    }
}

fn rejoin(mut path: PathBuf, missing: &[std::ffi::OsString]) -> PathBuf {
    path.extend(missing.iter().rev());
    path
}

fn unusable(path: &Path, at: &Path, error: io::Error) -> SessionError {
    let path = path.display();
    match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED) => SessionError::refused(format!(
            "{path}: {} is on a mount whose daemon is gone; unmount that first",
            at.display()
        )),
        Some(libc::ENOTDIR) => {
            SessionError::refused(format!("{path}: a part of the path is no directory; correct the path"))
        }
        Some(libc::EACCES) => SessionError::refused(format!(
            "{path}: {} may not be entered by this user; choose another place",
            at.display()
        )),
        Some(libc::ELOOP) => SessionError::refused(format!("{path}: too many symbolic links; correct the path")),
        Some(libc::ENAMETOOLONG) => {
            SessionError::refused(format!("{path}: a name or the path is too long; choose a shorter one"))
        }
        _ => SessionError::system(path, error),
    }
}

fn look<T: Send + 'static>(path: &Path, how: impl FnOnce(&Path) -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let owned = path.to_owned();
    match process::within(LOOK, move || how(&owned))? {
        Some(answer) => answer,
        None => Err(io::Error::new(io::ErrorKind::TimedOut, "does not answer")),
    }
}

/// Whether the daemon of a mount is gone.
pub fn is_dead(mount: &Mount) -> bool {
    matches!(process::probe(&mount.point, LOOK), Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)))
}

/// Checks that `point` (from [`resolve`]) can be mounted on. Dead mounts of ours at this place are taken away.
pub fn check(point: &Path, neighbours: &Neighbours) -> Result<()> {
    clear(point)?;
    let shown = point.display();
    if let Some(source) = &neighbours.source {
        if point == source {
            return Err(SessionError::refused(format!(
                "{shown}: a directory cannot be mounted on itself; choose another mount point"
            )));
        }
        if mounts::is_within(point, source) {
            return Err(SessionError::refused(format!(
                "{shown}: the mount point is inside of {}, which would contain itself; choose a mount point outside of it",
                source.display()
            )));
        }
        if mounts::is_within(source, point) {
            return Err(SessionError::refused(format!(
                "{shown}: the mount would hide its own source {}; choose another mount point",
                source.display()
            )));
        }
    }
    for (word, path) in &neighbours.ours {
        if mounts::is_within(path, point) {
            return Err(SessionError::refused(format!(
                "{shown}: the {word} {} is inside of the mount point; choose a {word} outside of it",
                path.display()
            )));
        }
    }
    match process::probe(point, LOOK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unusable(point, point, error)),
        Ok(found) if !found.is_dir => {
            return Err(SessionError::refused(format!("{shown} is no directory; choose a directory or a new name")));
        }
        Ok(_) => {}
    }
    match look(point, |path| path.read_dir()?.next().transpose()) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => {
            Err(SessionError::refused(format!("{shown} is not empty; choose an empty directory or a new name")))
        }
        // A plain user may mount on a directory that cannot be read; fusermount3 decides.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(unusable(point, point, error)),
    }
}

/// Takes away dead mounts of ours; refuses when something else is mounted there.
fn clear(point: &Path) -> Result<()> {
    // Each turn takes one of a pile of dead mounts; more than a few are not to be expected.
    for _ in 0..64 {
        let Some(mount) = mounts::at(point)? else { return Ok(()) };
        if !mount.is_fuse() {
            // A directory that is a mount point of something else, such as a volume of a container, is fine when empty.
            return Ok(());
        }
        let shown = point.display();
        match (is_dead(&mount), mount.is_ours()) {
            (true, true) => {
                if kernel::unmount(point, mount.device, true)? != Unmounted::Gone {
                    break;
                }
            }
            (true, false) => {
                return Err(SessionError::refused(format!(
                    "{shown}: a dead mount of {} ({}) is there; unmount it first: umount -l {shown}",
                    mount.source, mount.fs_type
                )));
            }
            (false, ours) => {
                let command = if ours { "alluxio-fuse umount" } else { "umount" };
                return Err(SessionError::refused(format!(
                    "{shown}: {} ({}) is mounted there already; unmount it first: {command} {shown}",
                    mount.source, mount.fs_type
                )));
            }
        }
    }
    Err(SessionError::refused(format!("{}: dead mounts cannot be taken away; try umount -l", point.display())))
}

/// Makes the directory and those above it that are missing. Returns what was made, the topmost first; when it fails
/// nothing stays.
pub fn create(point: &Path) -> Result<Vec<PathBuf>> {
    let mut wanted: Vec<&Path> = point.ancestors().take_while(|path| path.symlink_metadata().is_err()).collect();
    wanted.reverse();
    let mut made = Vec::new();
    for path in wanted {
        match std::fs::create_dir(path) {
            Ok(()) => made.push(path.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            Err(error) => {
                remove(&made);
                let above = path.parent().unwrap_or(path).display();
                return Err(SessionError::refused(format!(
                    "{} cannot be created in {above}: {error}; create it yourself or choose another place",
                    path.display()
                )));
            }
        }
    }
    Ok(made)
}

/// Removes directories that [`create`] made, as far as they are empty.
pub fn remove(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // What somebody has put something into is theirs now.
        if std::fs::remove_dir(path).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn temp() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        (dir, path)
    }

    #[test]
    fn paths_are_resolved_as_far_as_they_exist() {
        let (_dir, root) = temp();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        assert_eq!(resolve(&root.join("link/new/./er/")).unwrap(), root.join("real/new/er"));
        assert_eq!(resolve(&root.join("link")).unwrap(), root.join("real"));
        assert_eq!(resolve(Path::new("/proc/")).unwrap(), Path::new("/proc"));
        fs::write(root.join("file"), "").unwrap();
        assert!(resolve(&root.join("file/below")).unwrap_err().to_string().contains("no directory"));
        assert!(resolve(Path::new("")).is_err());
    }

    #[test]
    fn what_cannot_be_a_mount_point_is_named() {
        let (_dir, root) = temp();
        fs::write(root.join("file"), "").unwrap();
        fs::create_dir_all(root.join("full/sub")).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        let plain = Neighbours::default();
        let error = |name: &str, neighbours: &Neighbours| check(&root.join(name), neighbours).unwrap_err().to_string();
        assert!(error("file", &plain).contains("is no directory"));
        assert!(error("full", &plain).contains("is not empty"));
        check(&root.join("empty"), &plain).unwrap();
        check(&root.join("missing"), &plain).unwrap();
        let of = |source: &str| Neighbours { source: Some(root.join(source)), ours: vec![] };
        assert!(error("full/sub", &of("full")).contains("contain itself"));
        assert!(error("full", &of("full")).contains("on itself"));
        assert!(error("full", &of("full/sub")).contains("hide its own source"));
        let cache = Neighbours { source: None, ours: vec![("cache directory", root.join("empty/cache"))] };
        assert!(error("empty", &cache).contains("cache directory"));
    }

    #[test]
    fn created_directories_go_again_but_not_what_was_put_there() {
        let (_dir, root) = temp();
        let made = create(&root.join("a/b/c")).unwrap();
        assert_eq!(made, [root.join("a"), root.join("a/b"), root.join("a/b/c")]);
        fs::write(root.join("a/mine"), "").unwrap();
        remove(&made);
        assert!(root.join("a/mine").exists() && !root.join("a/b").exists());
        assert!(create(&root.join("a")).unwrap().is_empty());
        assert!(create(&root.join("a/mine/x")).unwrap_err().to_string().contains("cannot be created"));
    }
}
