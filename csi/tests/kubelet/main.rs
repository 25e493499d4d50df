//! The real programs against a client that plays kubelet: real sockets, real FUSE mounts, a real S3 server.
//!
//! Each test runs in a mount namespace of its own thread, in which its children live too, so that nothing outlives it: the
//! kernel kills the children with the thread, and the mounts go with the last of them.

mod cluster;
mod controller;
mod harness;
mod input;
mod measures;
mod publishing;
mod recovery;
mod takeover;
mod writing;
