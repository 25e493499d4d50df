//! The worker's gRPC service: generated messages, and how errors and attributes travel in them.

use crate::{Attr, Error, ErrorKind, FileKind, Timestamp, Version, wire};
use tonic::{Code, Status, metadata::MetadataValue};

/// What is generated from `common/proto/worker.proto`.
#[allow(missing_docs, clippy::all)]
pub mod worker {
    tonic::include_proto!("alluxio.worker.v1");
}

/// The metadata entry that carries the code of an error.
const ERROR: &str = "alluxio-error";

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
