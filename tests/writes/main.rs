//! Writing through a real mount of a directory: random calls against a model, a tree beside its twin on the native file
//! system, files that move and go while they are in use, and the programs that people run.
//!
//! What is random prints its seed when it fails; `ALLUXIO_TESTS_SEED=<seed>` runs that one again. `ALLUXIO_TESTS=full` runs
//! longer.

mod beside;
mod files;
mod fsx;
mod moving;
mod programs;
mod twins;

use tests::{Mount, Mounting};

/// How files may be written: by the kernel itself, or through the daemon.
const WAYS: [&str; 2] = ["passthrough=auto", "passthrough=off"];

/// A directory and a mount of it, for all users.
fn mount(way: &str) -> (tempfile::TempDir, Mount) {
    use std::os::unix::fs::PermissionsExt as _;
    let source = tempfile::tempdir().expect("a temporary directory");
    std::fs::set_permissions(source.path(), std::fs::Permissions::from_mode(0o755)).expect("own directory");
    let mount = Mounting::of_dir(source.path()).options(["allow_other", way]).start();
    (source, mount)
}

/// The seed of a random test.
fn seed() -> u64 {
    match std::env::var("ALLUXIO_TESTS_SEED") {
        Ok(seed) => seed.parse().expect("ALLUXIO_TESTS_SEED is a number"),
        Err(_) => rand::random(),
    }
}
