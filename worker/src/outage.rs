//! Notices that the storage is away, and when it is back.
//!
//! Reads of what is cached go on through an outage: from the first request that the storage leaves unanswered until a
//! probe succeeds, attributes and listings count whatever their age ([`MetadataCache::set_away`]). Without that every
//! open would wait for a deadline as soon as what is known of the file is older than the sync interval.

use crate::cache::MetadataCache;
use common::{Error, ErrorKind};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::runtime::Handle;
use ufs::UnderStorage;

/// The pause before each probe.
const PAUSE: Duration = Duration::from_secs(1);

/// The state of one storage.
pub(crate) struct Outage {
    storage: Arc<dyn UnderStorage>,
    cache: Arc<MetadataCache>,
    handle: Handle,
    probing: AtomicBool,
}

impl Outage {
    pub fn new(storage: Arc<dyn UnderStorage>, cache: Arc<MetadataCache>, handle: Handle) -> Arc<Self> {
        Arc::new(Self { storage, cache, handle, probing: AtomicBool::new(false) })
    }

    /// Judges a failed request. True when the storage is away.
    pub fn noticed(self: &Arc<Self>, error: &Error) -> bool {
        if !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::TimedOut) {
            return false;
        }
        self.cache.set_away(true);
        if !self.probing.swap(true, Ordering::AcqRel) {
            tracing::warn!(storage = %self.storage.uri(), %error, "the storage is away; what is cached is served whatever its age");
            let outage = Arc::downgrade(self);
            self.handle.spawn(async move {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    let Some(outage) = outage.upgrade() else { return };
                    if outage.storage.probe().await.is_ok() {
                        // In this order: a failure from now on is judged anew.
                        outage.probing.store(false, Ordering::Release);
                        outage.cache.set_away(false);
                        tracing::info!(storage = %outage.storage.uri(), "the storage is back");
                        return;
                    }
                }
            });
        }
        true
    }
}
