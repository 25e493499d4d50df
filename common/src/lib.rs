//! What every room of the system shares: configuration, identities and paths, errors and their errno, pages and the
//! memory budget, the worker interface, metric names, logging.
//!
//! Nothing here knows a storage, a network or FUSE.

pub mod attr;
pub mod backing;
pub mod budget;
pub mod change;
pub mod conf;
pub mod errno;
pub mod error;
pub mod handover;
pub mod limited;
pub mod logging;
pub mod metrics;
pub mod mountinfo;
pub mod page;
pub mod path;
pub mod redact;
pub mod rpc;
pub mod tls;
pub mod web;
pub mod wire;
pub mod worker;

pub use attr::{Attr, FileKind, StatFs, Timestamp, Version};
pub use error::{Error, ErrorKind, Result};
pub use path::{FileId, UfsPath, UfsUri};
