//! Opening: decides from where a file will be read.
//!
//! A file on this host is opened itself. One that is wholly in the cache can be passed through to the kernel. One of at
//! most a page is completed by its open, since its first read would fetch that page anyway; the others are read by page.

use crate::{
    options::ClientOptions,
    reader::FileReader,
    shared::ClientShared,
    siblings::{SiblingStats, Siblings},
};
use common::{
    Attr, ErrorKind, Result, UfsPath,
    budget::MemoryBudget,
    worker::{FileLease, Freshness, LocalFile, OpenedFile, PagedFile, Worker},
};
use std::sync::Arc;
use tokio::runtime::Handle;

/// A file that was opened for reading.
pub enum Opened {
    /// The source file itself, on this host.
    Local(LocalFile),
    /// Wholly in the cache: to be passed through, or read by `reader` where that is not possible.
    Complete {
        /// The cached file.
        lease: FileLease,
        /// Reads the same bytes.
        reader: FileReader,
    },
    /// To be read by page.
    Paged(FileReader),
}

impl Opened {
    /// The attributes at the time of opening.
    pub fn attr(&self) -> &Arc<Attr> {
        match self {
            Opened::Local(local) => &local.attr,
            Opened::Complete { reader, .. } | Opened::Paged(reader) => reader.attr(),
        }
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self {
            Opened::Local(_) => "Local",
            Opened::Complete { .. } => "Complete",
            Opened::Paged(_) => "Paged",
        };
        write!(f, "{kind}({:?})", self.attr().version)
    }
}

/// Opens files through a worker. Shared by `Arc`.
pub struct Client {
    worker: Arc<dyn Worker>,
    shared: Arc<ClientShared>,
    siblings: Siblings,
}

impl Client {
    /// A client of `worker` within `budget`; what is fetched ahead runs on `handle`.
    pub fn new(
        worker: Arc<dyn Worker>,
        budget: Arc<MemoryBudget>,
        options: ClientOptions,
        handle: Handle,
    ) -> Arc<Self> {
        let siblings = Siblings::new(worker.clone(), &options, &budget, handle);
        Arc::new(Self { worker, shared: ClientShared::new(options, budget), siblings })
    }

    /// The worker, for metadata.
    pub fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }

    /// What handles share.
    pub fn shared(&self) -> &Arc<ClientShared> {
        &self.shared
    }

    /// Gives idle reply buffers back to the system. To be called when nothing was read for a while.
    pub fn trim(&self) {
        self.shared.buffers().trim();
    }

    /// Counters of the sibling prefetch.
    pub fn sibling_stats(&self) -> SiblingStats {
        self.siblings.stats()
    }

    /// Opens from what is known without waiting; `None`: go on with [`open`](Self::open).
    pub fn open_now(&self, path: &UfsPath) -> Option<Result<Opened>> {
        let file = match self.worker.open_now(path)? {
            Ok(OpenedFile::Local(local)) => return Some(Ok(Opened::Local(local))),
            Ok(OpenedFile::Paged(file)) => file,
            Err(error) => return Some(Err(error)),
        };
        if let Some(lease) = file.export() {
            self.siblings.opened(path, file.attr().size, false);
            return Some(Ok(self.complete(lease, file)));
        }
        if self.is_completed_by_open(&*file) {
            return None;
        }
        self.siblings.opened(path, file.attr().size, !file.is_present(0));
        Some(Ok(self.paged(file)))
    }

    /// Opens a regular file.
    ///
    /// # Errors
    /// As [`Worker::open`]. That a small file cannot be completed is no error, its reads will tell.
    pub async fn open(&self, path: &UfsPath, freshness: Freshness) -> Result<Opened> {
        let mut freshness = freshness;
        loop {
            let file = match self.worker.open(path, freshness).await? {
                OpenedFile::Local(local) => return Ok(Opened::Local(local)),
                OpenedFile::Paged(file) => file,
            };
            let size = file.attr().size;
            if let Some(lease) = file.export() {
                self.siblings.opened(path, size, false);
                return Ok(self.complete(lease, file));
            }
            self.siblings.opened(path, size, size > 0 && !file.is_present(0));
            if !self.is_completed_by_open(&*file) {
                return Ok(self.paged(file));
            }
            match file.complete().await {
                Ok(()) => {}
                // The cached attributes were of a version that is gone: look once more, at the storage itself.
                Err(error) if error.kind() == ErrorKind::Stale && freshness == Freshness::Cached => {
                    self.worker.forget(path);
                    freshness = Freshness::Storage;
                    continue;
                }
                Err(error) => tracing::debug!("{path} is read by page, not completed: {error}"),
            }
            return Ok(match file.export() {
                Some(lease) => self.complete(lease, file),
                None => self.paged(file),
            });
        }
    }

    fn is_completed_by_open(&self, file: &dyn PagedFile) -> bool {
        let size = file.attr().size;
        self.shared.options.complete_on_open && size > 0 && size <= u64::from(file.page_size())
    }

    fn complete(&self, lease: FileLease, file: Arc<dyn PagedFile>) -> Opened {
        Opened::Complete { lease, reader: FileReader::new(file, self.shared.clone()) }
    }

    fn paged(&self, file: Arc<dyn PagedFile>) -> Opened {
        Opened::Paged(FileReader::new(file, self.shared.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeWorker;
    use std::{io::Read, os::unix::fs::FileExt};

    fn path(text: &str) -> UfsPath {
        UfsPath::parse(text).unwrap()
    }

    fn client(worker: &Arc<FakeWorker>) -> Arc<Client> {
        Client::new(worker.clone(), worker.pool().budget().clone(), ClientOptions::default(), Handle::current())
    }

    #[tokio::test]
    async fn a_small_file_is_complete_after_its_open_and_a_large_one_is_read_by_page() {
        let worker = FakeWorker::new(8 << 20);
        worker.put("small", b"hello".to_vec());
        worker.put("large", vec![3; 1 << 20]);
        let client = client(&worker);
        assert!(client.open_now(&path("small")).is_none());
        let Opened::Complete { lease, reader } = client.open(&path("small"), Freshness::Cached).await.unwrap() else {
            panic!("not complete")
        };
        let mut text = String::new();
        lease.file().try_clone().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(&*reader.read_at(1, 100).await.unwrap(), b"ello");
        assert!(matches!(client.open_now(&path("small")), Some(Ok(Opened::Complete { .. }))));
        assert!(matches!(client.open_now(&path("large")), Some(Ok(Opened::Paged(_)))));
        assert_eq!(client.open(&path("none"), Freshness::Cached).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_file_that_changed_since_it_was_known_is_opened_as_it_is_now() {
        let worker = FakeWorker::new(8 << 20);
        worker.put("f", b"old".to_vec());
        let client = client(&worker);
        worker.replace_behind("f", b"newer".to_vec());
        let Opened::Complete { lease, .. } = client.open(&path("f"), Freshness::Cached).await.unwrap() else {
            panic!("not complete")
        };
        let mut bytes = [0; 5];
        lease.file().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"newer");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_completed_is_opened_all_the_same() {
        let worker = FakeWorker::new(8 << 20);
        worker.put("f", b"data".to_vec());
        worker.fail_from_now(ErrorKind::Unavailable);
        let client = client(&worker);
        let opened = client.open(&path("f"), Freshness::Cached).await.unwrap();
        let Opened::Paged(reader) = opened else { panic!("not by page") };
        worker.heal();
        assert_eq!(&*reader.read_at(0, 10).await.unwrap(), b"data");
    }
}
