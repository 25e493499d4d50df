//! Where a test writes: a fresh mount over a fresh under storage of one of several kinds.

use std::path::{Path, PathBuf};

use tests::{Mount, Mounting, Store, machine::MountPoint};

/// The kinds of mount that every test is run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory without a mount: what a test expects there it expects rightly.
    Native,
    /// A directory of this host, passed through where that is possible.
    Directory,
    /// A bucket.
    S3,
}

/// What is mounted, for as long as the test needs it.
pub struct Place {
    pub kind: Kind,
    source: tempfile::TempDir,
    cache: tempfile::TempDir,
    stage: tempfile::TempDir,
    store: Option<Store>,
    point: MountPoint,
    mount: Option<Mount>,
}

impl Place {
    /// Mounts a fresh one.
    pub fn new(kind: Kind) -> Self {
        let store = (kind == Kind::S3).then(Store::start);
        let dir = || tempfile::Builder::new().prefix("alluxio-test-").tempdir().expect("a temporary directory");
        let mut place =
            Place { kind, source: dir(), cache: dir(), stage: dir(), store, point: MountPoint::new(), mount: None };
        place.mount_again();
        place
    }

    /// Mounts what was there before, with the same cache and stage.
    pub fn mount_again(&mut self) {
        self.mount = None;
        if self.kind == Kind::Native {
            return;
        }
        let mounting = match &self.store {
            Some(store) => store.mount("tree"),
            None => Mounting::of_dir(self.source.path()),
        };
        let mut mounting = mounting.cache(self.cache.path()).at(&self.point.path());
        if self.kind == Kind::S3 {
            mounting = mounting.option(format!("alluxio.user.stage.dir={}", self.stage.path().display()));
        }
        self.mount = Some(mounting.start());
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        match self.kind {
            Kind::Native => self.source.path(),
            _ => self.mount.as_ref().expect("it is mounted").path(),
        }
    }

    /// A path below it.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path().join(path)
    }

    /// Kills the daemon; the dead mount stays until [`mount_again`](Self::mount_again).
    pub fn kill(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.abandon();
        }
    }

    /// Unmounts in order and mounts again.
    pub fn remount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.stop();
        }
        self.mount_again();
    }
}

/// How much a test does: `usual` in CI, `full` with `ALLUXIO_TESTS=full`, or what `ALLUXIO_AMOUNT` says: a part of the full
/// run, for another seed each.
pub fn amount(usual: u64, full: u64) -> u64 {
    if let Some(amount) = std::env::var("ALLUXIO_AMOUNT").ok().and_then(|value| value.parse().ok()) {
        return amount;
    }
    if tests::full() { full } else { usual }
}

/// The seed to begin with: `ALLUXIO_SEED`, else the one given.
pub fn seed(usual: u64) -> u64 {
    std::env::var("ALLUXIO_SEED").ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}
