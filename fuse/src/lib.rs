//! Room fuse.
