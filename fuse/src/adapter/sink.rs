//! Entries of a directory on their way into a reply.

use super::{GENERATION, convert, run::Timer};
use crate::fs::directory::{Item, Sink};
use common::Result;
use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use std::{ffi::OsStr, os::unix::ffi::OsStrExt, time::Duration};

/// A sink that is a reply.
pub(super) trait Reply: Sink + Send + 'static {
    /// Sends what it took, or the failure.
    fn send(self, timer: Timer, listed: Result<()>);
}

/// Names and kinds.
pub(super) struct Names(pub(super) ReplyDirectory);

impl Sink for Names {
    fn wants_attributes(&self) -> bool {
        false
    }

    fn add(&mut self, item: Item<'_>) -> bool {
        !self.0.add(INodeNo(item.id), item.next, convert::kind(item.kind), OsStr::from_bytes(item.name))
    }
}

impl Reply for Names {
    fn send(self, timer: Timer, listed: Result<()>) {
        match listed {
            Ok(()) => {
                self.0.ok();
                timer.done();
            }
            Err(error) => {
                self.0.error(convert::errno(&error));
                timer.failed();
            }
        }
    }
}

/// Nodes with their attributes.
pub(super) struct Nodes {
    pub(super) reply: ReplyDirectoryPlus,
    /// fuser has one for the name and the attributes.
    pub(super) timeout: Duration,
}

impl Sink for Nodes {
    fn wants_attributes(&self) -> bool {
        true
    }

    fn add(&mut self, item: Item<'_>) -> bool {
        let (attr, timeout) = match item.attr {
            Some((attr, valid)) => {
                (convert::file_attr(item.id, attr), if valid { self.timeout } else { Duration::ZERO })
            }
            // `.` and `..`: the kernel links these to nothing, whatever they come with.
            None => (convert::bare(item.id, item.kind), Duration::ZERO),
        };
        let name = OsStr::from_bytes(item.name);
        !self.reply.add(attr.ino, item.next, name, &timeout, &attr, GENERATION)
    }
}

impl Reply for Nodes {
    fn send(self, timer: Timer, listed: Result<()>) {
        match listed {
            Ok(()) => {
                self.reply.ok();
                timer.done();
            }
            Err(error) => {
                self.reply.error(convert::errno(&error));
                timer.failed();
            }
        }
    }
}
