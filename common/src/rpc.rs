//! The worker's gRPC service: generated messages, and how errors and attributes travel in them.

use crate::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, Version,
    change::{Caller, NewNode, SetAttr, SetTime},
    wire,
};
use tonic::{Code, Status, metadata::MetadataValue};

/// What is generated from `common/proto/worker.proto`.
#[allow(missing_docs, clippy::all)]
pub mod worker {
    tonic::include_proto!("alluxio.worker.v1");
}

/// The metadata entry that carries the code of an error.
const ERROR: &str = "alluxio-error";
/// The one that says that nothing was done.
const BEGUN: &str = "alluxio-begun";

/// The status that tells a caller of `error`.
pub fn status_of(error: &Error) -> Status {
    let wire::Message::Failure { code, message } = wire::failure_of(error) else {
        return Status::internal(error.message());
    };
    let grpc = match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::PermissionDenied | ErrorKind::NotPermitted => Code::PermissionDenied,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Stale => Code::FailedPrecondition,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::NoMemory | ErrorKind::NoSpace => Code::ResourceExhausted,
        ErrorKind::TimedOut => Code::DeadlineExceeded,
        ErrorKind::Unavailable => Code::Unavailable,
        _ => Code::Unknown,
    };
    let mut status = Status::new(grpc, message);
    status.metadata_mut().insert(ERROR, MetadataValue::from(code));
    status
}

/// The same for a request of which nothing was done.
pub fn status_before(error: &Error) -> Status {
    let mut status = status_of(error);
    status.metadata_mut().insert(BEGUN, MetadataValue::from_static("no"));
    status
}

/// Whether a request that failed so may have been carried out, in part or as a whole: it is certain that it was not when
/// there was no connection for it, or when the worker says so.
pub fn may_be_done(status: &Status) -> bool {
    if status.metadata().get(BEGUN).is_some_and(|begun| begun == "no") {
        return false;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return false;
        }
        cause = error.source();
    }
    true
}

/// The error that a status told of. Without a code of ours (the worker is gone, the path broke) it is `Unavailable`,
/// or `TimedOut` for a deadline: then another worker may answer.
pub fn error_of(status: &Status) -> Error {
    let code = status.metadata().get(ERROR).and_then(|code| code.to_str().ok()).and_then(|code| code.parse().ok());
    match code {
        Some(code) => wire::error_of(code, status.message().to_owned()),
        None => {
            let kind = if status.code() == Code::DeadlineExceeded || status.code() == Code::Cancelled {
                ErrorKind::TimedOut
            } else {
                ErrorKind::Unavailable
            };
            Error::new(kind, format!("the worker's answer: {:?}: {}", status.code(), status.message()))
        }
    }
}

/// Whether a status comes from the worker's own code, and not from a connection that broke.
pub fn is_told(status: &Status) -> bool {
    status.metadata().contains_key(ERROR)
}

/// Whether another worker may have more luck: this one failed, or could not reach the storage.
pub fn is_worker_failure(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut | ErrorKind::Cancelled | ErrorKind::Corrupt)
}

impl From<&Attr> for worker::Attr {
    fn from(attr: &Attr) -> Self {
        let time = |time: Timestamp| Some(worker::Time { sec: time.sec, nsec: time.nsec });
        Self {
            kind: kind_bits(attr.kind),
            size: attr.size,
            mtime: time(attr.mtime),
            ctime: time(attr.ctime),
            atime: time(attr.atime),
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            rdev: attr.rdev,
            blocks: attr.blocks,
            version: attr.version.as_str().to_owned(),
        }
    }
}

impl From<worker::Attr> for Attr {
    fn from(attr: worker::Attr) -> Self {
        let time = |time: Option<worker::Time>| {
            time.map(|time| Timestamp { sec: time.sec, nsec: time.nsec.min(999_999_999) }).unwrap_or_default()
        };
        Self {
            kind: FileKind::from_mode(attr.kind),
            size: attr.size,
            mtime: time(attr.mtime),
            ctime: time(attr.ctime),
            atime: time(attr.atime),
            mode: attr.mode & 0o7777,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            rdev: attr.rdev,
            blocks: attr.blocks,
            version: if attr.version.is_empty() { Version::none() } else { Version::new(attr.version) },
            // What lies on a worker's host does not lie here.
            local: None,
        }
    }
}

impl From<Caller> for worker::Caller {
    fn from(caller: Caller) -> Self {
        Self { uid: caller.uid, gid: caller.gid }
    }
}

impl From<worker::Caller> for Caller {
    fn from(caller: worker::Caller) -> Self {
        Self { uid: caller.uid, gid: caller.gid }
    }
}

impl From<&SetAttr> for worker::SetAttr {
    fn from(change: &SetAttr) -> Self {
        let time = |time: SetTime| worker::SetTime {
            at: match time {
                SetTime::Now => None,
                SetTime::At(Timestamp { sec, nsec }) => Some(worker::Time { sec, nsec }),
            },
        };
        Self {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime.map(time),
            mtime: change.mtime.map(time),
            drop_set_id: change.drop_set_id,
        }
    }
}

impl From<worker::SetAttr> for SetAttr {
    fn from(change: worker::SetAttr) -> Self {
        let time = |time: worker::SetTime| match time.at {
            None => SetTime::Now,
            Some(worker::Time { sec, nsec }) => SetTime::At(Timestamp { sec, nsec: nsec.min(999_999_999) }),
        };
        Self {
            mode: change.mode,
            uid: change.uid,
            gid: change.gid,
            size: change.size,
            atime: change.atime.map(time),
            mtime: change.mtime.map(time),
            drop_set_id: change.drop_set_id,
        }
    }
}

/// What to make, with its mode, for whom.
pub fn make_of(node: &NewNode, mode: u32, caller: Caller) -> worker::Make {
    let (kind, device, target) = match node {
        NewNode::File => (FileKind::File, 0, Vec::new()),
        NewNode::Directory => (FileKind::Directory, 0, Vec::new()),
        NewNode::Fifo => (FileKind::Fifo, 0, Vec::new()),
        NewNode::Socket => (FileKind::Socket, 0, Vec::new()),
        NewNode::CharDevice(device) => (FileKind::CharDevice, *device, Vec::new()),
        NewNode::BlockDevice(device) => (FileKind::BlockDevice, *device, Vec::new()),
        NewNode::Symlink(target) => (FileKind::Symlink, 0, target.to_vec()),
    };
    worker::Make { kind: kind_bits(kind), device, target, mode, caller: Some(caller.into()) }
}

/// What a request asks to be made.
///
/// # Errors
/// `InvalidArgument`: there is no such kind.
pub fn node_of(make: &worker::Make) -> Result<NewNode> {
    Ok(match make.kind {
        libc::S_IFREG => NewNode::File,
        libc::S_IFDIR => NewNode::Directory,
        libc::S_IFIFO => NewNode::Fifo,
        libc::S_IFSOCK => NewNode::Socket,
        libc::S_IFCHR => NewNode::CharDevice(make.device),
        libc::S_IFBLK => NewNode::BlockDevice(make.device),
        libc::S_IFLNK => NewNode::Symlink(make.target.clone().into()),
        other => return Err(Error::new(ErrorKind::InvalidArgument, format!("no kind of file is {other:o}"))),
    })
}

/// The format bits (`S_IFMT`) of a kind.
pub fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::File => libc::S_IFREG,
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::Fifo => libc::S_IFIFO,
        FileKind::Socket => libc::S_IFSOCK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_way() {
        for kind in [FileKind::File, FileKind::Directory, FileKind::Symlink, FileKind::Fifo, FileKind::Socket] {
            let attr = Attr::of_object(kind, 77, Timestamp { sec: -5, nsec: 9 }, Version::new("etag"));
            assert_eq!(Attr::from(worker::Attr::from(&attr)), attr);
        }
    }

    #[test]
    fn changes_survive_the_way() {
        let time = Timestamp { sec: -3, nsec: 7 };
        for change in [
            SetAttr::default(),
            SetAttr { mode: Some(0o4755), uid: Some(0), size: Some(0), ..SetAttr::default() },
            SetAttr {
                atime: Some(SetTime::Now),
                mtime: Some(SetTime::At(time)),
                drop_set_id: true,
                ..SetAttr::default()
            },
        ] {
            assert_eq!(SetAttr::from(worker::SetAttr::from(&change)), change);
        }
        let caller = Caller { uid: 7, gid: 8 };
        for node in [NewNode::Directory, NewNode::CharDevice(0x103), NewNode::Symlink((&b"to"[..]).into())] {
            let made = make_of(&node, 0o700, caller);
            assert_eq!(node_of(&made).unwrap(), node);
            assert_eq!((made.mode, made.caller.map(Caller::from)), (0o700, Some(caller)));
        }
        assert!(node_of(&worker::Make::default()).is_err());
    }

    #[test]
    fn what_was_not_begun_is_known() {
        let error = Error::new(ErrorKind::Unavailable, "not served here");
        assert!(!may_be_done(&status_before(&error)) && may_be_done(&status_of(&error)));
        assert!(may_be_done(&Status::unavailable("the connection broke")));
    }

    #[test]
    fn an_error_of_the_storage_is_told_from_a_failure_of_the_worker() {
        for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::Stale, ErrorKind::Os(libc::ENXIO)] {
            let back = error_of(&status_of(&Error::new(kind, "why")));
            assert_eq!((back.kind(), back.message()), (kind, "why"));
            assert!(!is_worker_failure(&back));
        }
        assert!(is_worker_failure(&error_of(&Status::unavailable("gone"))));
        assert!(is_worker_failure(&error_of(&Status::deadline_exceeded("slow"))));
    }
}
