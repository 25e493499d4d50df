//! What the suites that cross crates share: real mounts, a real S3 server, trees of files with known content.
//!
//! Rules that keep the suites quiet on a busy machine:
//! - nothing measures time; what takes a while is polled with a generous bound ([`wait_for`]);
//! - ports, directories and mount points are fresh for each test, and each test could run alone;
//! - whatever a test starts is gone when it ends, also when it fails or the whole test process is killed;
//! - a call that hangs in the kernel ends, because the daemon behind it is killed after a while ([`mount`]).

pub mod daemon;
pub mod data;
pub mod machine;
pub mod mount;
pub mod s3;
pub mod tree;

pub use data::{content, pread, sha256};
pub use machine::{full, heavy, mounted, mounts_work, try_for, wait_for};
pub use mount::{Failure, Mount, Mounting};
pub use s3::Store;
pub use tree::Tree;
