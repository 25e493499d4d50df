//! Makes and takes down the mount itself: mount(2) and umount2(2) as root, fusermount3 as a plain user.
//!
//! Invariant: a mount is taken down by its device number, never by its place alone; one that is gone already is fine.

use super::{
    FS_NAME, FS_TYPE, Result, SessionError,
    mounts::{self, Device},
    process,
};
use common::conf::KernelFlag;
use nix::{
    cmsg_space,
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use std::{
    fs::OpenOptions,
    io::{self, IoSliceMut, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long fusermount3 may take.
const HELPER_LIMIT: Duration = Duration::from_secs(10);

/// What to mount where.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The mount point: absolute, without links, a directory.
    pub point: PathBuf,
    /// What is mounted, for people: without secrets, on one line.
    pub source: String,
    /// Whether other users may use the mount (for `allow_root` too: the session then refuses all but root).
    pub allow_other: bool,
    /// Whether the kernel refuses writes.
    pub read_only: bool,
    /// Further flags, as asked for.
    pub flags: Vec<KernelFlag>,
    /// The largest read, in bytes.
    pub max_read: u64,
}

/// A mount that was made.
#[derive(Debug)]
pub struct Mounted {
    /// The connection to the kernel.
    pub connection: OwnedFd,
    /// The device number of the mount.
    pub device: Device,
}

/// How a try to unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// The mount is gone (or was before).
    Gone,
    /// Somebody uses it.
    Busy,
}

/// Makes the mount: with mount(2) as root, else through fusermount3.
pub fn make(request: &MountRequest) -> Result<Mounted> {
    let connection = if is_root() { make_directly(request)? } else { make_by_helper(request)? };
    match mounts::at(&request.point)? {
        Some(mount) if mount.is_ours() => Ok(Mounted { connection, device: mount.device }),
        other => Err(SessionError::refused(format!(
            "{}: the mount vanished as soon as it was made{}; is another program mounting there?",
            request.point.display(),
            other.map(|mount| format!(" and {} is there", mount.fs_type)).unwrap_or_default()
        ))),
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn make_directly(request: &MountRequest) -> Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => SessionError::refused(
            "there is no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device (--device /dev/fuse)",
        ),
        Some(libc::EPERM | libc::EACCES) => SessionError::refused(
            "/dev/fuse may not be opened: give the container the device and CAP_SYS_ADMIN (or run it privileged)",
        ),
        _ => SessionError::system("/dev/fuse", error),
    })?;
    let mut options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={}",
        device.as_raw_fd(),
        nix::unistd::geteuid(),
        nix::unistd::getegid(),
        request.max_read
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    mount(Some(FS_NAME), &request.point, Some(FS_TYPE), flags(request), Some(options.as_str())).map_err(|error| {
        match error {
            Errno::EPERM => SessionError::refused(format!(
                "{}: mounting is not permitted here: the container needs CAP_SYS_ADMIN (or run it privileged)",
                request.point.display()
            )),
            Errno::ENODEV => SessionError::refused("this kernel has no FUSE: load the module (modprobe fuse)"),
            _ => SessionError::system(format!("mounting on {}", request.point.display()), error),
        }
    })?;
    Ok(device.into())
}

/// Device files and set-id bits of a storage are not trusted unless asked for.
fn flags(request: &MountRequest) -> MsFlags {
    let mut flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    flags.set(MsFlags::MS_RDONLY, request.read_only);
    for flag in &request.flags {
        match flag {
            KernelFlag::Dev => flags.remove(MsFlags::MS_NODEV),
            KernelFlag::NoDev => flags.insert(MsFlags::MS_NODEV),
            KernelFlag::Suid => flags.remove(MsFlags::MS_NOSUID),
            KernelFlag::NoSuid => flags.insert(MsFlags::MS_NOSUID),
            KernelFlag::Exec => flags.remove(MsFlags::MS_NOEXEC),
            KernelFlag::NoExec => flags.insert(MsFlags::MS_NOEXEC),
            KernelFlag::Atime => flags.remove(MsFlags::MS_NOATIME),
            KernelFlag::NoAtime => flags.insert(MsFlags::MS_NOATIME),
            KernelFlag::Sync => flags.insert(MsFlags::MS_SYNCHRONOUS),
            KernelFlag::Async => flags.remove(MsFlags::MS_SYNCHRONOUS),
            KernelFlag::DirSync => flags.insert(MsFlags::MS_DIRSYNC),
        }
    }
    flags
}

/// The options in the words of fusermount3, which forbids plain users device files and set-id bits by itself.
fn helper_options(request: &MountRequest) -> String {
    let (_, subtype) = FS_TYPE.split_once('.').unwrap_or((FS_TYPE, FS_TYPE));
    let mut options = format!(
        "fsname={},subtype={subtype},default_permissions,max_read={},nodev,nosuid,{}",
        FS_NAME,
        request.max_read,
        if request.read_only { "ro" } else { "rw" }
    );
    if request.allow_other {
        options.push_str(",allow_other");
    }
    for flag in &request.flags {
        options.push_str(match flag {
            KernelFlag::NoExec => ",noexec",
            KernelFlag::Exec => ",exec",
            KernelFlag::NoAtime => ",noatime",
            KernelFlag::Atime => ",atime",
            KernelFlag::Sync => ",sync",
            KernelFlag::Async => ",async",
            KernelFlag::DirSync => ",dirsync",
            KernelFlag::Dev | KernelFlag::NoDev | KernelFlag::Suid | KernelFlag::NoSuid => "",
        });
    }
    options
}

/// Where fusermount3 (or its predecessor) is.
fn helper() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = || std::env::split_paths(&path).chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    ["fusermount3", "fusermount"]
        .iter()
        .flat_map(|name| places().filter(|place| place.is_absolute()).map(move |place| place.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| {
            SessionError::refused(
                "fusermount3 is not installed, and only root can mount without it: install the package fuse3",
            )
        })
}

/// Whether fuse.conf lets plain users allow others; `None` when it cannot be read.
fn others_allowed() -> Option<bool> {
    match std::fs::read_to_string("/etc/fuse.conf") {
        Ok(text) => Some(text.lines().any(|line| line.trim() == "user_allow_other")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

fn make_by_helper(request: &MountRequest) -> Result<OwnedFd> {
    let not_allowed = || {
        SessionError::refused(
            "allow_other and allow_root are for root, unless /etc/fuse.conf has the line user_allow_other: add it or remove the option",
        )
    };
    if request.allow_other && others_allowed() == Some(false) {
        return Err(not_allowed());
    }
    let helper = helper()?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| SessionError::system("a socket for fusermount3", error))?;
    let number = theirs.as_raw_fd();
    let mut command = Command::new(&helper);
    command
        .arg("-o")
        .arg(helper_options(request))
        .arg("--")
        .arg(&request.point)
        .env("_FUSE_COMMFD", number.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: the closure runs between fork and exec and calls fcntl only, which is async-signal-safe; the descriptor is
    // open, because `theirs` lives until after the spawn.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(number, libc::F_SETFD, 0) == -1 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn().map_err(|error| SessionError::system(helper.display(), error))?;
    drop(theirs);
    ours.set_read_timeout(Some(HELPER_LIMIT))
        .map_err(|error| SessionError::system("a socket for fusermount3", error))?;
    let connection = receive(&ours);
    let (success, complaint) = finish(child, &helper)?;
    match connection {
        Ok(Some(connection)) if success => Ok(connection),
        _ if complaint.contains("open /dev/fuse: Permission denied") => Err(SessionError::refused(
            "this user may not open /dev/fuse: have root make it mode 0666 (chmod 666 /dev/fuse), or mount as root",
        )),
        _ if complaint.contains("user_allow_other") => Err(not_allowed()),
        Err(error) if complaint.is_empty() => Err(SessionError::system(helper.display(), error)),
        _ if complaint.is_empty() => Err(SessionError::refused(format!("{} gave no connection", helper.display()))),
        _ => Err(SessionError::refused(format!("{}: {complaint}", request.point.display()))),
    }
}

/// Receives the connection from fusermount3; `None` when it closes the socket without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; 1]);
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let descriptors = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // SAFETY: the kernel has just installed these descriptors for us, nothing else knows their numbers.
    let mut owned = descriptors.into_iter().flatten().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(owned.next())
}

/// Waits for a helper for a bounded time. Returns whether it succeeded and what it complained of, in one line.
fn finish(mut child: Child, helper: &Path) -> Result<(bool, String)> {
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| SessionError::system(helper.display(), error))? {
            Some(status) => break status,
            None if start.elapsed() < HELPER_LIMIT => std::thread::sleep(Duration::from_millis(2)),
            None => {
                // It may be stuck in the kernel: killed and reaped by whoever is left.
                let _ = child.kill();
                return Err(SessionError::refused(format!("{} does not end", helper.display())));
            }
        }
    };
    let mut text = String::new();
    if let Some(stderr) = child.stderr.take() {
        // What it says is a help for people only. It has ended, so this does not wait.
        let _ = stderr.take(4096).read_to_string(&mut text);
    }
    Ok((status.success(), text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")))
}

/// Unmounts the mount `device` at `point`. With `lazy` it is detached at once, whoever uses it; without, it may be busy.
pub fn unmount(point: &Path, device: Device, lazy: bool) -> Result<Unmounted> {
    match mounts::at(point)? {
        Some(mount) if mount.device == device && mount.is_fuse() => {}
        Some(mount) if mounts::holds(point, device)? => {
            return Err(SessionError::refused(format!(
                "{}: {} ({}) was mounted over it; unmount that first",
                point.display(),
                mount.source,
                mount.fs_type
            )));
        }
        _ => return Ok(Unmounted::Gone),
    }
    if !is_root() {
        return unmount_by_helper(point, device, lazy);
    }
    let flags = MntFlags::UMOUNT_NOFOLLOW | if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    let place = point.to_owned();
    match process::within(HELPER_LIMIT, move || umount2(&place, flags)) {
        Ok(Some(Ok(()) | Err(Errno::EINVAL | Errno::ENOENT))) => Ok(Unmounted::Gone),
        // A mount that does not answer is as good as busy.
        Ok(Some(Err(Errno::EBUSY)) | None) if !lazy => Ok(Unmounted::Busy),
        Ok(Some(Err(Errno::EPERM))) => {
            Err(SessionError::refused(format!("{}: unmounting needs CAP_SYS_ADMIN", point.display())))
        }
        Ok(Some(Err(error))) => Err(SessionError::system(format!("unmounting {}", point.display()), error)),
        Ok(None) => Err(SessionError::refused(format!("unmounting {} does not end", point.display()))),
        Err(error) => Err(SessionError::system("a thread to unmount", error)),
    }
}

fn unmount_by_helper(point: &Path, device: Device, lazy: bool) -> Result<Unmounted> {
    let helper = helper()?;
    let mut command = Command::new(&helper);
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    command.arg("--").arg(point).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| SessionError::system(helper.display(), error))?;
    let (success, complaint) = finish(child, &helper)?;
    if success || !mounts::holds(point, device)? {
        return Ok(Unmounted::Gone);
    }
    if !lazy && complaint.to_lowercase().contains("busy") {
        return Ok(Unmounted::Busy);
    }
    Err(SessionError::refused(format!("{}: {complaint}", point.display())))
}

fn connection_file(device: Device, name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/fuse/connections/{}/{name}", device.minor))
}

/// How many requests of the connection are unanswered; `None` when the kernel does not tell.
pub fn unanswered(device: Device) -> Option<u64> {
    std::fs::read_to_string(connection_file(device, "waiting")).ok()?.trim().parse().ok()
}

/// Ends the connection: every request fails, now and later. Returns whether that was possible.
pub fn abort(device: Device) -> bool {
    OpenOptions::new()
        .write(true)
        .open(connection_file(device, "abort"))
        .and_then(|mut file| io::Write::write_all(&mut file, b"1"))
        .is_ok()
}

/// Sets the readahead window of the mount, in KiB. The node appears a moment after the mount; without the right to
/// write it the kernel's window stays. Returns whether it was set.
pub fn set_readahead(device: Device, kib: u64) -> bool {
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    for _ in 0..100 {
        match std::fs::write(&file, kib.to_string()) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> MountRequest {
        MountRequest {
            point: "/mnt".into(),
            source: "s3://b".into(),
            allow_other: false,
            read_only: true,
            flags: vec![KernelFlag::Suid, KernelFlag::NoExec],
            max_read: 4096,
        }
    }

    #[test]
    fn flags_are_safe_unless_asked_for() {
        let flags = flags(&request());
        assert_eq!(flags, MsFlags::MS_NODEV | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC);
    }

    #[test]
    fn the_helper_gets_every_option() {
        let mut request = request();
        request.allow_other = true;
        assert_eq!(
            helper_options(&request),
            "fsname=alluxio-fuse,subtype=alluxio-fuse,default_permissions,max_read=4096,nodev,nosuid,ro,allow_other,noexec"
        );
    }

    #[test]
    fn what_is_not_mounted_is_gone() {
        let device = Device { major: 0, minor: u32::MAX };
        assert_eq!(unmount(Path::new("/proc/no such place"), device, true).unwrap(), Unmounted::Gone);
        // The root is mounted, but with another number.
        assert_eq!(unmount(Path::new("/"), device, true).unwrap(), Unmounted::Gone);
        assert!(!abort(device));
        assert_eq!(unanswered(device), None);
    }
}
