//! The rows of the table, one function for each group that shares its mounts.

pub mod cold;
pub mod footprint;
pub mod small;
pub mod walk;
pub mod warm;

use crate::{data::Sizes, mounts::Places, server::Server, table::Row};
use anyhow::Result;
use std::path::PathBuf;

/// What every row gets.
pub struct Context {
    /// Where things are.
    pub places: Places,
    /// How much data.
    pub sizes: Sizes,
    /// Repetitions of each measurement.
    pub repetitions: usize,
    /// The directory whose sub-directories are also the server's buckets.
    pub data: PathBuf,
    /// Which rows were asked for; empty: all.
    pub wanted: Vec<String>,
}

impl Context {
    /// Whether a row was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| name.starts_with(wanted.as_str()))
    }

    /// An S3 server over the data, in a process of its own, that answers after `latency_ms`.
    pub fn server(&self, latency_ms: u64) -> Result<Server> {
        Server::start(&self.data, latency_ms)
    }
}

/// A group of rows.
pub type Group = fn(&Context) -> Result<Vec<Row>>;

/// All groups, in the order of the report.
pub const GROUPS: &[Group] = &[warm::rows, small::rows, cold::rows, walk::rows, footprint::rows];
