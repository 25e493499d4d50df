//! The life of a mount: from the checks before it is made to the last file that is removed after it.
//!
//! Nothing here knows what the file system shows; [`run`](run::run) is given that by `assemble`.
//!
//! Invariants:
//! - what a failed start, an unmount or a signal leaves behind is nothing: no mount, no created mount point, no record,
//!   no socket (SIGKILL leaves them; the next `mount`, `umount` or `status` clears them);
//! - a mount is taken down only when its device number is the one that is meant, so that a mount that came to the same
//!   place later is never touched;
//! - no step waits without bound: whoever may be stuck in the kernel does so on a thread that nobody waits for.

pub mod control;
pub mod daemonize;
mod error;
pub mod kernel;
pub mod mounter;
pub mod mounts;
pub mod point;
pub mod process;
pub mod record;
pub mod run;
pub mod signals;
pub mod takeover;
pub mod teardown;

pub use error::{Result, SessionError};

pub use common::mountinfo::FS_TYPE;

/// What `mount` shows as the source, for all our mounts: what is mounted is for `alluxio-fuse status` to say.
pub const FS_NAME: &str = "alluxio-fuse";
