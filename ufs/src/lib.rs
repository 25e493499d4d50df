//! Under storages: where the data lives. Directories natively, S3 with a client of our own, the rest through OpenDAL.

pub mod storage;

pub use storage::{Head, ReadSink, UnderStorage};
