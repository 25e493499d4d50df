//! Writes through real mounts: the same tests over a directory and over S3.
//!
//! `ALLUXIO_TESTS=full` multiplies the number of operations; a seed that failed is printed, and is tried again alone with
//! `ALLUXIO_SEED`.

mod fsx;
mod killed;
mod mirror;
mod place;
mod programs;
