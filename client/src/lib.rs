//! The reading side: opens files through a worker, reads them, and fetches ahead of their readers.
//!
//! It knows only the traits of [`common::worker`]; whether the worker is in this process or far away is none of its
//! business.
//!
//! - [`Client::open`] gives an [`Opened`]: a local file, a cached file that is complete, or a [`FileReader`];
//! - [`streams`] recognises how a handle is read; siblings of small files are fetched by a private module.

pub mod buffers;
mod open;
pub mod options;
pub mod reader;
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
