//! Objects in memory: what tests put, and everything uploaded to a server without a root directory.

use bytes::Bytes;
use md5::{Digest as _, Md5};

use super::{Content, Description, Object};

/// An object of bytes.
pub(crate) fn object(bytes: Bytes, description: Description) -> Object {
    Object { size: bytes.len() as u64, description, content: Content::Memory(bytes) }
}

/// The etag of an object that was put in one piece.
pub(crate) fn etag(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}
