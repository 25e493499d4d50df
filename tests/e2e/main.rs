//! End to end: the program, real mounts, a real S3 server, the kernel's own view of files.
//!
//! Every test mounts for itself and stands for one promise of the issue. Without root or /dev/fuse they say that they are
//! skipped.

mod awkward;
mod bad_input;
mod command;
mod crash;
mod disks;
mod memory;
mod metrics;
mod outage;
mod passthrough;
mod reading;
mod readonly;
mod semantics;
mod symlinks;
mod trees;
mod versions;
