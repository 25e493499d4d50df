//! An S3 server for tests and benchmarks.
//!
//! Why not one of the servers on the market: the tests need faults at an exact byte, counters of requests, keys that no file system can hold,
//! a million objects that cost no disk, and answers so fast that a benchmark measures the client and not the server.
//!
//! [`Server::start`] gives a server on a free port of 127.0.0.1 with threads of its own, so tests need no runtime. The handle stores and lists
//! objects in process, counts requests, and injects [`Fault`]s. [`credentials`] has the small servers from which clients fetch keys.
//!
//! Invariants: an answer's length and bytes are what the object's index entry says, unless a fault says otherwise; an object is replaced in one
//! step (a reader sees the old bytes with the old etag, or the new ones with the new); no lock is held while bytes move.

mod auth;
mod body;
mod bucket;
mod chunked;
mod connection;
mod control;
mod copy;
mod counters;
pub mod credentials;
mod dates;
mod encoding;
mod error;
mod faults;
mod list;
mod listener;
mod multipart;
mod object;
mod operation;
mod request;
mod server;
mod service;
mod storage;
mod tls;
mod upload;
mod xml;

pub use auth::Credentials;
pub use counters::Record;
pub use faults::{Action, Fault, FaultId};
pub use operation::Operation;
pub use server::{Options, Server};
pub use storage::synthetic::{Synthetic, synthetic_bytes, synthetic_fill};
pub use storage::{Adopted, Object};
pub use tls::{TestCa, TlsPem, test_ca};
