//! The page store (cached bytes on local disks) and the read-through loads that fill it.
//!
//! - [`pages`]: [`PageStore`] keeps one sparse file per version of a file, with presence and checksum of each page;
//! - [`read_through`]: [`ReadThrough`] opens files of an under storage page by page, through the store.

pub mod pages;
pub mod read_through;

pub use pages::{
    DirOptions, DirStats, HealthOptions, HealthState, PageStore, StoreOptions, StoreStats, Stored, StoredFile,
};
pub use read_through::{ReadOptions, ReadThrough};
