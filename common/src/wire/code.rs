//! Failures on the wire: kinds of error as numbers that never change their meaning.

use super::Message;
use crate::{Error, ErrorKind};

const CODES: &[(u16, ErrorKind)] = &[
    (1, ErrorKind::NotFound),
    (2, ErrorKind::PermissionDenied),
    (3, ErrorKind::NotPermitted),
    (4, ErrorKind::AlreadyExists),
    (5, ErrorKind::NotADirectory),
    (6, ErrorKind::IsADirectory),
    (7, ErrorKind::NotEmpty),
    (8, ErrorKind::InvalidArgument),
    (9, ErrorKind::NameTooLong),
    (10, ErrorKind::TooManyLinks),
    (11, ErrorKind::ReadOnly),
    (12, ErrorKind::NoSpace),
    (13, ErrorKind::QuotaExceeded),
    (14, ErrorKind::Stale),
    (15, ErrorKind::Unsupported),
    (16, ErrorKind::TooLarge),
    (17, ErrorKind::Busy),
    (18, ErrorKind::CrossDevice),
    (19, ErrorKind::NoAttribute),
    (20, ErrorKind::NoMemory),
    (21, ErrorKind::TooManyFiles),
    (22, ErrorKind::BadHandle),
    (23, ErrorKind::TimedOut),
    (24, ErrorKind::Unavailable),
    (25, ErrorKind::Corrupt),
    (26, ErrorKind::Cancelled),
    (27, ErrorKind::Io),
];

/// Codes from here on are an errno of the worker's host.
const OS: u16 = 1000;

/// The message that tells a client of `error`. Long texts are cut.
pub fn failure_of(error: &Error) -> Message {
    let code = match error.kind() {
        ErrorKind::Os(errno) => OS.saturating_add(u16::try_from(errno).unwrap_or(0)),
        kind => CODES.iter().find(|(_, known)| *known == kind).map_or(27, |(code, _)| *code),
    };
    let mut message = error.message().to_owned();
    message.truncate(message.floor_char_boundary(4096));
    Message::Failure { code, message }
}

/// The error that a failure told of. A code from a newer worker is an input/output error.
pub fn error_of(code: u16, message: String) -> Error {
    let kind = match code.checked_sub(OS) {
        Some(errno) => crate::errno::kind(i32::from(errno)),
        None => CODES.iter().find(|(known, _)| *known == code).map_or(ErrorKind::Io, |(_, kind)| *kind),
    };
    Error::new(kind, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_way() {
        for kind in CODES.iter().map(|(_, kind)| *kind).chain([ErrorKind::Os(libc::ENXIO)]) {
            let Message::Failure { code, message } = failure_of(&Error::new(kind, "what happened")) else { panic!() };
            let back = error_of(code, message);
            assert_eq!((back.kind(), back.message()), (kind, "what happened"));
        }
        assert_eq!(error_of(999, String::new()).kind(), ErrorKind::Io);
    }
}
