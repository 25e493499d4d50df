//! Writes through real mounts of a bucket. Each test is run on a native directory too, which shows that what it expects is
//! what a file system does.
//!
//! `ALLUXIO_TESTS=full` multiplies the number of operations; a seed that failed is printed, and is tried again alone with
//! `ALLUXIO_SEED`.

mod fsx;
mod killed;
mod mirror;
mod place;
mod programs;
mod trouble;
