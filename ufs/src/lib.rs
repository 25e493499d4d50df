//! Under storages: where the data lives. Directories natively, S3 with a client of our own, the rest through OpenDAL.

mod deadline;
pub mod environment;
mod from_conf;
pub mod local;
pub mod object;
mod observe;
pub mod open;
pub mod options;
mod posix;
mod retry;
mod s3;
#[cfg(feature = "opendal")]
mod services;
pub mod storage;
mod tls;

pub use environment::Environment;
pub use object::writes::{Body, Condition, Found, KeyPage, Limits, ListedKey, Metadata, ObjectWrites, Part, Stored};
pub use open::open;
pub use options::{S3Options, Secret, UfsOptions};
pub use storage::{ChangeListener, Changed, Head, ReadSink, UnderStorage};
