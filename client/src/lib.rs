//! The reading side: opens files through a worker, reads them, and fetches ahead of their readers.
//!
//! Reading knows only the traits of [`common::worker`]; whether the worker is in this process or far away is none of its
//! business.
//!
//! - [`Client::open`] gives an [`Opened`]: a local file, a cached file that is complete, or a [`FileReader`];
//! - [`etcd`], [`membership`], [`mount_table`], [`ring`]: what a cluster is made of, and who owns which path;
//! - [`cluster`]: a storage whose data and metadata come from the workers of a cluster;
//! - [`streams`] recognises how a handle is read; siblings of small files are fetched by a private module.

pub mod buffers;
pub mod cluster;
pub mod etcd;
pub mod membership;
pub mod mount_table;
mod open;
pub mod options;
pub mod reader;
pub mod ring;
pub mod shared;
mod siblings;
pub mod streams;
#[cfg(test)]
mod testing;

pub use open::{Client, Opened};
pub use options::ClientOptions;
pub use reader::{FileReader, ReadData};
pub use shared::ClientShared;
pub use siblings::SiblingStats;
