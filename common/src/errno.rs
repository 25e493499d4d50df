//! The one table from a kind of error to the errno that a program sees.
//!
//! Nothing else in the project names an errno for an [`Error`](crate::error::Error): a storage says what happened
//! ([`ErrorKind`]), and this table says what POSIX calls it. docs/SEMANTICS.md prints the same table.

use crate::error::ErrorKind;

/// The errno (a positive number, as in `libc::ENOENT`) for a kind of error.
pub fn errno(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::PermissionDenied => libc::EACCES,
        ErrorKind::NotPermitted => libc::EPERM,
        ErrorKind::AlreadyExists => libc::EEXIST,
        ErrorKind::NotADirectory => libc::ENOTDIR,
        ErrorKind::IsADirectory => libc::EISDIR,
        ErrorKind::NotEmpty => libc::ENOTEMPTY,
        ErrorKind::InvalidArgument => libc::EINVAL,
        ErrorKind::NameTooLong => libc::ENAMETOOLONG,
        ErrorKind::TooManyLinks => libc::ELOOP,
        ErrorKind::ReadOnly => libc::EROFS,
        ErrorKind::NoSpace => libc::ENOSPC,
        ErrorKind::QuotaExceeded => libc::EDQUOT,
        ErrorKind::Stale => libc::ESTALE,
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::TooLarge => libc::EFBIG,
        ErrorKind::Busy => libc::EBUSY,
        ErrorKind::CrossDevice => libc::EXDEV,
        ErrorKind::NoAttribute => libc::ENODATA,
        ErrorKind::NoMemory => libc::ENOMEM,
        ErrorKind::TooManyFiles => libc::EMFILE,
        ErrorKind::BadHandle => libc::EBADF,
        ErrorKind::TimedOut | ErrorKind::Unavailable | ErrorKind::Corrupt | ErrorKind::Cancelled | ErrorKind::Io => {
            libc::EIO
        }
        ErrorKind::Os(code) => code,
    }
}

/// The kind for an errno that an operating system call gave; what has no kind of its own is kept as it is.
pub fn kind(errno: i32) -> ErrorKind {
    match errno {
        libc::ENOENT => ErrorKind::NotFound,
        libc::EACCES => ErrorKind::PermissionDenied,
        libc::EPERM => ErrorKind::NotPermitted,
        libc::EEXIST => ErrorKind::AlreadyExists,
        libc::ENOTDIR => ErrorKind::NotADirectory,
        libc::EISDIR => ErrorKind::IsADirectory,
        libc::ENOTEMPTY => ErrorKind::NotEmpty,
        libc::EINVAL => ErrorKind::InvalidArgument,
        libc::ENAMETOOLONG => ErrorKind::NameTooLong,
        libc::ELOOP => ErrorKind::TooManyLinks,
        libc::EROFS => ErrorKind::ReadOnly,
        libc::ENOSPC => ErrorKind::NoSpace,
        libc::EDQUOT => ErrorKind::QuotaExceeded,
        libc::ESTALE => ErrorKind::Stale,
        libc::EOPNOTSUPP => ErrorKind::Unsupported,
        libc::EFBIG => ErrorKind::TooLarge,
        libc::EBUSY => ErrorKind::Busy,
        libc::EXDEV => ErrorKind::CrossDevice,
        libc::ENODATA => ErrorKind::NoAttribute,
        libc::ENOMEM => ErrorKind::NoMemory,
        libc::EMFILE => ErrorKind::TooManyFiles,
        libc::EBADF => ErrorKind::BadHandle,
        libc::EIO => ErrorKind::Io,
        other => ErrorKind::Os(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_of_a_system_call_comes_back_as_it_was() {
        for code in 1..134 {
            assert_eq!(errno(kind(code)), code, "errno {code}");
        }
    }

    #[test]
    fn a_storage_that_is_away_is_an_input_output_error() {
        assert_eq!(errno(ErrorKind::TimedOut), libc::EIO);
        assert_eq!(errno(ErrorKind::Unavailable), libc::EIO);
    }
}
