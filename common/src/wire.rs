//! The binary protocol between clients and workers: what data connections speak, on TCP and on the domain socket.
//!
//! A connection carries frames in both directions. A frame is a fixed [header](frame) and a body; a request's number
//! comes back in its answers, which may arrive in any order, so requests are pipelined. Integers are little-endian.
//!
//! ```text
//! client                                   worker
//!   Hello ────────────────────────────────▶        protocol version, a name for the logs
//!        ◀──────────────────────────────── Welcome identity, page size, requests that may be under way
//!   Open ─────────────────────────────────▶        one version of one file
//!        ◀───────────────────────── Opened/Failure a handle on this connection
//!   Read ─────────────────────────────────▶        a range
//!        ◀───────────────────────── Data…/Failure  in order of offset, the last one marked
//!   Prefetch, Close ──────────────────────▶        no answer
//!   Export ───────────────────────────────▶        domain socket only
//!        ◀─────────────────────── Exported/Failure with a descriptor (SCM_RIGHTS) when the file is complete
//!   Ping ─────────────────────────────────▶
//!        ◀──────────────────────────────── Pong
//! ```
//!
//! Invariants: nothing is allocated from a length that was not checked against a limit; a frame whose magic, version,
//! length or checksum is wrong ends the connection (after it nothing on the stream can be trusted); the payload of Data
//! has a checksum of its own, which the receiver verifies before it uses the bytes.

mod code;
mod frame;
mod message;
mod socket;

pub use code::{error_of, failure_of};
pub use frame::{DATA_PREFIX, HEADER, Header, Kind, MAX_DATA, MAX_MESSAGE, VERSION, WireError};
pub use message::{DataPrefix, Message};
pub use socket::{FrameReader, Socket, peer};
