//! Metadata and control by gRPC: the service of common/proto/worker.proto.
//!
//! Invariants: every call has a deadline; a listing is sent in batches of bounded size, no faster than it is taken; a
//! subscriber that is too far behind is sent away, and knows by it that it missed something.

use super::{
    changes::Changed,
    namespace::{Mounted, Namespace},
};
use common::{
    Error, ErrorKind, Result, UfsPath,
    rpc::{
        kind_bits, status_of,
        worker::{
            Change, CheckCachedReply, CheckCachedRequest, Entry, FreeCacheReply, FreeCacheRequest, GetAttrReply,
            GetAttrRequest, ListReply, ListRequest, ReadLinkReply, ReadLinkRequest, RefreshReply, RefreshRequest,
            SetLogLevelReply, SetLogLevelRequest, StatusReply, StatusRequest, SubscribeRequest,
            worker_server::Worker as Service,
        },
    },
    worker::{DirEntry, Freshness, Listing, Worker},
};
use futures::{Stream, stream};
use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Entries in one message: some hundred bytes each, far below the 4 MiB that a message may have.
const BATCH: usize = 1000;
/// What a call may take: more than one call on a storage.
const DEADLINE: Duration = Duration::from_secs(60);

/// The service.
pub struct Rpc {
    namespace: Arc<Namespace>,
    identity: [u8; 16],
    started: SystemTime,
    end: CancellationToken,
}

impl Rpc {
    /// Serves `namespace`; streams end with `end`.
    pub fn new(namespace: Arc<Namespace>, identity: [u8; 16], end: CancellationToken) -> Self {
        Self { namespace, identity, started: SystemTime::now(), end }
    }

    async fn find(&self, storage: &str, path: &[u8]) -> Result<(Arc<Mounted>, UfsPath)> {
        Ok((self.namespace.find(storage).await?, UfsPath::parse(path)?))
    }
}

type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

async fn bounded<T>(call: impl Future<Output = Result<T>>) -> Result<Response<T>, Status> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(answer)) => Ok(Response::new(answer)),
        Ok(Err(error)) => Err(status_of(&error)),
        Err(_) => Err(status_of(&Error::new(ErrorKind::TimedOut, format!("no answer within {DEADLINE:?}")))),
    }
}

#[tonic::async_trait]
impl Service for Rpc {
    type ListStream = Streamed<ListReply>;
    type SubscribeStream = Streamed<Change>;

    async fn get_attr(&self, request: Request<GetAttrRequest>) -> Result<Response<GetAttrReply>, Status> {
        let request = request.into_inner();
        bounded(async {
            let (mounted, path) = self.find(&request.storage, &request.path).await?;
            let freshness = if request.fresh { Freshness::Storage } else { Freshness::Cached };
            let attr = mounted.worker().attr(&path, freshness).await?;
            Ok(GetAttrReply { attr: Some((&*attr).into()) })
        })
        .await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let request = request.into_inner();
        bounded(async {
            let (mounted, path) = self.find(&request.storage, &request.path).await?;
            let listing = mounted.worker().list(&path).await?;
            let listed = stream::unfold(Some(Batches { listing, rest: VecDeque::new() }), |state| async {
                let mut batches = state?;
                match bounded(batches.next()).await.map(Response::into_inner) {
                    Ok(Some(reply)) => Some((Ok(reply), Some(batches))),
                    Ok(None) => None,
                    Err(status) => Some((Err(status), None)),
                }
            });
            Ok(Box::pin(listed) as Self::ListStream)
        })
        .await
    }

    async fn read_link(&self, request: Request<ReadLinkRequest>) -> Result<Response<ReadLinkReply>, Status> {
        let request = request.into_inner();
        bounded(async {
            let (mounted, path) = self.find(&request.storage, &request.path).await?;
            Ok(ReadLinkReply { target: mounted.worker().read_link(&path).await?.into() })
        })
        .await
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let storage = request.into_inner().storage;
        let follower = Follower { changes: self.namespace.subscribe(), storage, end: self.end.clone() };
        let changes = stream::unfold(Some(follower), |state| async {
            let mut follower = state?;
            match follower.next().await {
                Ok(Some(change)) => Some((Ok(change), Some(follower))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<RefreshReply>, Status> {
        let RefreshRequest { storage, paths, below, relayed } = request.into_inner();
        bounded(async {
            let mounted = self.namespace.find(&storage).await?;
            let paths: Vec<UfsPath> = paths.iter().map(UfsPath::parse).collect::<Result<_>>()?;
            if relayed {
                mounted.heard(&paths, below)
            } else {
                mounted.published(&paths, below)
            }
            Ok(RefreshReply {})
        })
        .await
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let stats = self.namespace.store().stats();
        let started = self.started.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Ok(Response::new(StatusReply {
            identifier: self.identity.to_vec(),
            capacity: stats.capacity,
            used: stats.used,
            files: stats.files,
            started_unix: started,
            version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn set_log_level(&self, request: Request<SetLogLevelRequest>) -> Result<Response<SetLogLevelReply>, Status> {
        let SetLogLevelRequest { target, level } = request.into_inner();
        let directives = common::logging::set_level(&target, &level)
            .map_err(|error| status_of(&Error::new(ErrorKind::InvalidArgument, error.to_string())))?;
        Ok(Response::new(SetLogLevelReply { directives }))
    }

    async fn free_cache(&self, request: Request<FreeCacheRequest>) -> Result<Response<FreeCacheReply>, Status> {
        let FreeCacheRequest { storage, path } = request.into_inner();
        bounded(async {
            let root = match storage.as_str() {
                "" => None,
                storage => Some(common::UfsUri::parse(storage)?.full_path(&UfsPath::parse(&path)?)),
            };
            let store = self.namespace.store().clone();
            let freed = tokio::task::spawn_blocking(move || {
                store.free(&|path| root.as_ref().is_none_or(|root| is_below(path, root)))
            });
            let bytes = freed.await.map_err(|error| Error::new(ErrorKind::Io, format!("free: {error}")))?;
            Ok(FreeCacheReply { bytes })
        })
        .await
    }

    async fn check_cached(&self, request: Request<CheckCachedRequest>) -> Result<Response<CheckCachedReply>, Status> {
        let request = request.into_inner();
        bounded(async {
            let (mounted, path) = self.find(&request.storage, &request.path).await?;
            let file = mounted.open_stored(&path).await?;
            let (size, page_size) = (file.attr().size, u64::from(file.page_size()));
            let cached = (0..size.div_ceil(page_size))
                .filter(|page| file.is_present(*page))
                .map(|page| (size - page * page_size).min(page_size))
                .sum();
            Ok(CheckCachedReply { size, cached })
        })
        .await
    }
}

fn is_below(path: &[u8], root: &[u8]) -> bool {
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest[0] == b'/' || root.ends_with(b"/"))
}

/// A listing in batches of bounded size.
struct Batches {
    listing: Box<dyn Listing>,
    rest: VecDeque<DirEntry>,
}

impl Batches {
    async fn next(&mut self) -> Result<Option<ListReply>> {
        if self.rest.is_empty() {
            match self.listing.next().await? {
                Some(entries) => self.rest = entries.into(),
                None => return Ok(None),
            }
        }
        let count = self.rest.len().min(BATCH);
        let entries = self.rest.drain(..count).map(|entry| Entry {
            name: entry.name.into_vec(),
            kind: kind_bits(entry.kind),
            attr: entry.attr.as_deref().map(Into::into),
        });
        Ok(Some(ListReply { entries: entries.collect() }))
    }
}

/// A subscriber's end.
struct Follower {
    changes: Receiver<Changed>,
    storage: String,
    end: CancellationToken,
}

impl Follower {
    async fn next(&mut self) -> Result<Option<Change>, Status> {
        loop {
            let changed = tokio::select! {
                () = self.end.cancelled() => return Ok(None),
                changed = self.changes.recv() => changed,
            };
            match changed {
                Ok(Changed { storage, paths, below }) if self.storage.is_empty() || *self.storage == *storage => {
                    let paths = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
                    return Ok(Some(Change { storage: storage.to_string(), paths, below }));
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    return Err(Status::resource_exhausted(format!("{missed} changes were missed; subscribe again")));
                }
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_frees_its_own_files_only() {
        assert!(is_below(b"s3://b/p/x", b"s3://b/p"));
        assert!(!is_below(b"s3://b/pq/x", b"s3://b/p"));
        assert!(is_below(b"file:///x", b"file:///"));
    }
}
