//! The system calls of the node service: mounting, binding, unmounting, all of which may block, and therefore run on threads
//! that no call of gRPC waits for longer than it has.
//!
//! Invariants: what is mounted where is read from the kernel's list, never found out by a look at the place, which could
//! hang; only mounts of our type are ever taken down; after an unmount the list is read again, since umount may claim
//! success too early.

use common::mountinfo::{self, Device, FS_TYPE, Mount};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::Status;

/// How long somebody may use a mount that is to go, before it is detached all the same.
const BUSY: Duration = Duration::from_secs(1);
/// Mounts on top of each other at one place that are taken down; more must be a mistake.
const STACK_MAX: usize = 64;

/// A connection to the kernel and the mount that it belongs to.
#[derive(Debug)]
pub struct Made {
    /// The connection.
    pub connection: OwnedFd,
    /// The device number of the mount.
    pub device: Device,
}

/// How a FUSE mount is made.
#[derive(Debug, Clone, Copy)]
pub struct FuseFlags {
    /// Whether the kernel refuses writes.
    pub read_only: bool,
    /// Whether programs are not run from it.
    pub noexec: bool,
    /// Whether access times are left alone.
    pub noatime: bool,
    /// The largest read, in bytes.
    pub max_read: u64,
}

fn failed(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Status {
    Status::internal(format!("{what}: {error}"))
}

/// Runs `work`, which may block, for at most `limit`; it goes on without listeners after that.
///
/// # Errors
/// DEADLINE_EXCEEDED, or what `work` answers.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    limit: Duration,
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    match tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(Status::internal(format!("{what}: a defect of the driver; see its log"))),
        Err(_) => Err(Status::deadline_exceeded(format!(
            "{what} did not end within {} s; the call is repeated by kubelet",
            limit.as_secs()
        ))),
    }
}

/// All mounts.
///
/// # Errors
/// INTERNAL: there is no /proc.
pub fn mounts() -> Result<Vec<Mount>, Status> {
    mountinfo::list().map_err(|error| failed("/proc/self/mountinfo", error))
}

/// The mounts at `place`, the lowest first.
///
/// # Errors
/// See [`mounts`].
pub fn mounts_at(place: &Path) -> Result<Vec<Mount>, Status> {
    let mut mounts = mounts()?;
    mounts.retain(|mount| mount.point == place);
    Ok(mounts)
}

/// Mounts FUSE at `place`, an empty directory.
///
/// # Errors
/// FAILED_PRECONDITION without /dev/fuse or the right to mount, INTERNAL otherwise.
pub fn mount_fuse(place: &Path, flags: FuseFlags) -> Result<Made, Status> {
    let device =
        OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                Status::failed_precondition("this node has no /dev/fuse: load the kernel module (modprobe fuse)")
            }
            Some(libc::EPERM | libc::EACCES) => {
                Status::failed_precondition("/dev/fuse may not be opened: the node service must run privileged")
            }
            _ => failed("/dev/fuse", error),
        })?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={}",
        device.as_raw_fd(),
        flags.max_read
    );
    mount(Some("alluxio-fuse"), place, Some(FS_TYPE), mount_flags(flags), Some(options.as_str())).map_err(|errno| {
        match errno {
            Errno::EPERM => {
                Status::failed_precondition("mounting is not permitted: the node service must run privileged")
            }
            Errno::ENODEV => Status::failed_precondition("this kernel has no FUSE: load the module (modprobe fuse)"),
            _ => failed(format_args!("mounting at {}", place.display()), errno),
        }
    })?;
    match mounts_at(place)?.pop() {
        Some(mount) if mount.is_ours() => Ok(Made { connection: device.into(), device: mount.device }),
        _ => Err(Status::internal(format!("{}: the mount vanished as soon as it was made", place.display()))),
    }
}

fn mount_flags(flags: FuseFlags) -> MsFlags {
    let mut bits = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    bits.set(MsFlags::MS_RDONLY, flags.read_only);
    bits.set(MsFlags::MS_NOEXEC, flags.noexec);
    bits.set(MsFlags::MS_NOATIME, flags.noatime);
    bits
}

/// Has the kernel refuse writes to the file system mounted at `place`, wherever it is bound.
///
/// # Errors
/// INTERNAL: the kernel does not.
pub fn refuse_writes(place: &Path, flags: FuseFlags) -> Result<(), Status> {
    let bits = mount_flags(FuseFlags { read_only: true, ..flags }) | MsFlags::MS_REMOUNT;
    mount(None::<&str>, place, None::<&str>, bits, None::<&str>)
        .map_err(|errno| failed(format_args!("making {} read-only", place.display()), errno))
}

/// Binds `directory` of the file system at `source` to `target`, on top of whatever is there, and returns what the kernel says
/// of it. The directory is found without following links or `..`.
///
/// # Errors
/// NOT_FOUND: there is no such directory; UNAVAILABLE: the file system does not work; INTERNAL otherwise.
pub fn bind(
    source: &Path,
    device: Device,
    directory: &str,
    target: &Path,
    read_only: bool,
    flags: FuseFlags,
) -> Result<(), Status> {
    let root = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(source)
        .map_err(|error| failed(source.display(), error))?;
    let found = if directory.is_empty() { root } else { open_below(&root, directory)? };
    let place = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    mount(Some(&place), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| failed(format_args!("binding to {}", target.display()), errno))?;
    let checked = finish(device, target, read_only, flags);
    if checked.is_err() {
        // The failure is told; a mount that stays is found by the next call.
        let _ = umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    checked
}

fn finish(device: Device, target: &Path, read_only: bool, flags: FuseFlags) -> Result<(), Status> {
    if read_only {
        let bits = mount_flags(FuseFlags { read_only, ..flags }) | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
        mount(None::<&str>, target, None::<&str>, bits, None::<&str>)
            .map_err(|errno| failed(format_args!("making {} read-only", target.display()), errno))?;
    }
    match mounts_at(target)?.pop() {
        Some(mount) if mount.device == device && mount.read_only >= read_only => Ok(()),
        _ => Err(Status::internal(format!("{}: another mount came in between", target.display()))),
    }
}

fn open_below(root: &File, directory: &str) -> Result<File, Status> {
    let path = CString::new(directory).map_err(|_| Status::invalid_argument("subPath has a NUL"))?;
    // SAFETY: open_how is a plain structure of integers, for which zeros are valid.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the descriptor is open, the path ends with NUL, and `how` is valid for its size; all outlive the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &how, std::mem::size_of_val(&how)) };
    if fd >= 0 {
        // SAFETY: the kernel has just returned this descriptor; nobody else knows it.
        return Ok(unsafe { File::from_raw_fd(fd as i32) });
    }
    let error = io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ENOENT) => Status::not_found(format!(
            "there is no directory /{directory} in the volume; make it, or correct alluxioPath or subPath"
        )),
        Some(libc::ENOTDIR) => Status::failed_precondition(format!("/{directory} in the volume is no directory")),
        Some(libc::ELOOP | libc::EXDEV) => Status::failed_precondition(format!(
            "/{directory} in the volume leads through a link, which is not followed"
        )),
        Some(libc::ENOTCONN | libc::ECONNABORTED) => {
            Status::unavailable("the file system has just ended; the call is repeated by kubelet")
        }
        _ => Status::unavailable(format!("/{directory} in the volume: {error}")),
    })
}

/// Takes down the mounts of ours at `place` until `keep` are left, whoever uses them, and checks that they are gone.
///
/// # Errors
/// FAILED_PRECONDITION when something else is mounted there, INTERNAL otherwise.
pub fn unmount(place: &Path, keep: usize) -> Result<(), Status> {
    for _ in 0..STACK_MAX {
        let stack = mounts_at(place)?;
        if stack.len() <= keep {
            return Ok(());
        }
        if let Some(top) = stack.last().filter(|top| !top.is_ours()) {
            return Err(Status::failed_precondition(format!(
                "{}: {} ({}) is mounted there, which is not ours; unmount it by hand",
                place.display(),
                top.source,
                top.fs_type
            )));
        }
        unmount_top(place)?;
    }
    Err(Status::internal(format!("{}: there are always more mounts", place.display())))
}

fn unmount_top(place: &Path) -> Result<(), Status> {
    let begin = Instant::now();
    loop {
        match umount2(place, MntFlags::UMOUNT_NOFOLLOW) {
            // Gone by itself, with its parent.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if begin.elapsed() < BUSY => std::thread::sleep(Duration::from_millis(50)),
            Err(_) => break,
        }
    }
    match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {
            tracing::warn!("{} was still in use and is detached", place.display());
            Ok(())
        }
        Err(Errno::EPERM) => {
            Err(Status::failed_precondition("unmounting is not permitted: the node service must run privileged"))
        }
        Err(errno) => Err(failed(format_args!("unmounting {}", place.display()), errno)),
    }
}

/// Takes the mount at `place` out of the tree at once, however it does.
///
/// # Errors
/// See [`unmount`].
pub fn detach(place: &Path) -> Result<(), Status> {
    for _ in 0..STACK_MAX {
        if !mounts_at(place)?.last().is_some_and(Mount::is_ours) {
            return Ok(());
        }
        match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(failed(format_args!("unmounting {}", place.display()), errno)),
        }
    }
    Ok(())
}

/// Ends a connection: every request on its mounts fails, now and later.
pub fn abort(device: Device) {
    let file = format!("/sys/fs/fuse/connections/{}/abort", device.minor);
    // Without it (not mounted here, or gone already) the close of the last descriptor ends the connection.
    let _ = OpenOptions::new().write(true).open(file).and_then(|mut file| io::Write::write_all(&mut file, b"1"));
}

/// Raises the readahead window of a mount. Its node in /sys appears a moment after the mount; where it may not be written the
/// kernel's window stays.
pub fn set_readahead(device: Device, kib: u64) {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    for _ in 0..40 {
        match std::fs::write(&file, kib.to_string()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(25)),
            _ => return,
        }
    }
}

/// Makes the directory `target` if it is missing; its parent must exist. Nothing is mounted there.
///
/// # Errors
/// FAILED_PRECONDITION: something else has the name, or the parent is missing.
pub fn make_target(target: &Path) -> Result<bool, Status> {
    match std::fs::create_dir(target) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = target.symlink_metadata().map_err(|error| failed(target.display(), error))?;
            if found.is_dir() {
                return Ok(false);
            }
            Err(Status::failed_precondition(format!("target_path {} is no directory; remove it", target.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Status::failed_precondition(format!("the parent of target_path {} does not exist", target.display())))
        }
        Err(error) => Err(failed(target.display(), error)),
    }
}

/// Removes the directory `target`, if it is there and nothing is in it.
///
/// # Errors
/// FAILED_PRECONDITION: there is something in it.
pub fn remove_target(target: &Path) -> Result<(), Status> {
    match std::fs::remove_dir(target) {
        Ok(()) => Ok(()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(Status::failed_precondition(format!(
            "{} has files of its own, which nothing of ours made; remove them by hand",
            target.display()
        ))),
        Err(error) => Err(failed(target.display(), error)),
    }
}

/// The target as mountinfo would name it: its parent without links.
///
/// # Errors
/// INVALID_ARGUMENT for what is no usable path.
pub fn resolve_target(text: &str, kubelet: &Path) -> Result<PathBuf, Status> {
    let invalid = |why: &str| Status::invalid_argument(format!("target_path {text:?} {why}"));
    if text.is_empty() {
        return Err(Status::invalid_argument("target_path is missing"));
    }
    let path = Path::new(text);
    if !path.is_absolute() || text.contains(['\0', '\n']) || text.len() > 4000 {
        return Err(invalid("is no absolute path of less than 4000 bytes"));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(invalid("has .. in it"));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid("is the root"));
    };
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.components().collect());
    let target = real(parent).join(name);
    if !kubelet.as_os_str().is_empty() && !target.as_os_str().as_bytes().is_empty() {
        let kubelet = real(kubelet);
        if !mountinfo::is_within(&target, &kubelet) || target == kubelet {
            return Err(invalid(&format!("is not below {}, kubelet's directory", kubelet.display())));
        }
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_resolved_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        let text = format!("{}/link/a b\t", real.display());
        assert_eq!(resolve_target(&text, Path::new("")).unwrap(), real.join("a b\t"));
        assert_eq!(resolve_target(&text, &real).unwrap(), real.join("a b\t"));
        for bad in ["", "relative", "/", "/a/../b", "/a\0b", &"/x".repeat(3000)] {
            assert_eq!(resolve_target(bad, Path::new("")).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
        assert_eq!(resolve_target("/etc/x", &real).unwrap_err().code(), tonic::Code::InvalidArgument);
    }

    #[test]
    fn targets_are_made_once_and_removed_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("t");
        assert!(make_target(&target).unwrap());
        assert!(!make_target(&target).unwrap());
        std::fs::write(target.join("f"), "").unwrap();
        assert_eq!(remove_target(&target).unwrap_err().code(), tonic::Code::FailedPrecondition);
        std::fs::remove_file(target.join("f")).unwrap();
        remove_target(&target).unwrap();
        remove_target(&target).unwrap();
        std::fs::write(&target, "").unwrap();
        assert_eq!(make_target(&target).unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!(make_target(&dir.path().join("no/t")).unwrap_err().code(), tonic::Code::FailedPrecondition);
    }
}
