//! The header of a frame.
//!
//! | bytes | field |
//! |---|---|
//! | 0–1 | magic `A1 D5` |
//! | 2 | protocol version |
//! | 3 | kind |
//! | 4–7 | number of the request |
//! | 8–11 | length of the body |
//! | 12–15 | CRC32C of the 12 bytes before and of the body (of Data: of its prefix only) |

use std::fmt;

/// Bytes of a header.
pub const HEADER: usize = 16;
/// Bytes between the header of a Data frame and its payload.
pub const DATA_PREFIX: usize = 16;
/// The version of the protocol that this build speaks.
pub const VERSION: u8 = 1;
/// The longest body of a message.
pub const MAX_MESSAGE: usize = 64 << 10;
/// The longest payload of a Data frame.
pub const MAX_DATA: usize = 16 << 20;

const MAGIC: [u8; 2] = [0xA1, 0xD5];

/// What a frame is. The numbers are the protocol's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Opens a connection.
    Hello = 1,
    /// Answers it.
    Welcome = 2,
    /// Asks for a handle.
    Open = 3,
    /// Gives one.
    Opened = 4,
    /// Asks for a range.
    Read = 5,
    /// Bytes of a range.
    Data = 6,
    /// Asks for pages to be fetched ahead.
    Prefetch = 7,
    /// Gives a handle up.
    Close = 8,
    /// The request failed.
    Failure = 9,
    /// Asks for the file's descriptor.
    Export = 10,
    /// Gives it.
    Exported = 11,
    /// Is anybody there?
    Ping = 12,
    /// Yes.
    Pong = 13,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        use Kind::*;
        [Hello, Welcome, Open, Opened, Read, Data, Prefetch, Close, Failure, Export, Exported, Ping, Pong]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// Why bytes are no frame. Each ends the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Something else speaks here.
    #[error("not this protocol: the frame begins with {0:02x?}")]
    Magic([u8; 2]),
    /// Another version of the protocol.
    #[error("protocol version {0}, where {VERSION} is spoken; upgrade the older side")]
    Version(u8),
    /// A kind that this version does not have.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// Too long for its kind.
    #[error("a frame of {length} bytes, where {limit} are the most")]
    Length {
        /// What the header says.
        length: u32,
        /// What its kind may have.
        limit: usize,
    },
    /// Header or body were changed on the way.
    #[error("wrong checksum")]
    Checksum,
    /// The body ends too early, too late, or has a value that means nothing.
    #[error("a {0:?} frame whose body makes no sense")]
    Body(Kind),
}

impl From<WireError> for crate::Error {
    fn from(error: WireError) -> Self {
        crate::Error::with_source(crate::ErrorKind::Corrupt, error.to_string(), error)
    }
}

/// A header whose magic, version, kind and length are right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// The number that the client gave the request.
    pub request: u32,
    /// Bytes of the body.
    pub length: u32,
    checksum: u32,
    first: [u8; 12],
}

impl Header {
    /// The header for a body: `checked` is what the checksum covers of it, `length` all of it.
    pub fn encode(kind: Kind, request: u32, length: u32, checked: &[u8]) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = VERSION;
        bytes[3] = kind as u8;
        bytes[4..8].copy_from_slice(&request.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), checked);
        bytes[12..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header and checks what can be checked before the body is there.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, WireError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[..2] != MAGIC {
            return Err(WireError::Magic([bytes[0], bytes[1]]));
        }
        if bytes[2] != VERSION {
            return Err(WireError::Version(bytes[2]));
        }
        let kind = Kind::of(bytes[3]).ok_or(WireError::Kind(bytes[3]))?;
        let length = word(8);
        let limit = if kind == Kind::Data { DATA_PREFIX + MAX_DATA } else { MAX_MESSAGE };
        if length as usize > limit {
            return Err(WireError::Length { length, limit });
        }
        if kind == Kind::Data && (length as usize) < DATA_PREFIX {
            return Err(WireError::Body(kind));
        }
        let mut first = [0; 12];
        first.copy_from_slice(&bytes[..12]);
        Ok(Self { kind, request: word(4), length, checksum: word(12), first })
    }

    /// Whether header and `checked` (the body; of Data its prefix) are what was sent.
    pub fn verify(&self, checked: &[u8]) -> Result<(), WireError> {
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&self.first), checked);
        if checksum == self.checksum { Ok(()) } else { Err(WireError::Checksum) }
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{} of {} bytes", self.kind, self.request, self.length)
    }
}
