//! The one list of metrics: field, type, name and, as doc comment, meaning.
//!
//! A counter's name is shown with `_total` after it. Names that dashboards plot already (see DESIGN: Alluxio's) must stay.

use super::{ByLabel, Counter, Failure, FuseOp, Gauge, Health, Histogram, PassthroughBacking, UfsOp};
use parking_lot::Mutex;
use prometheus_client::metrics::{gauge, info::Info};
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// What is known of a metric.
#[derive(Debug)]
pub struct Description {
    /// The name, for counters without `_total`.
    pub name: &'static str,
    /// The unit of its values.
    pub unit: &'static str,
    /// The meaning.
    pub help: &'static str,
}

/// The older line's share of bytes that came from the cache.
const HIT_RATE: Description = Description {
    name: "CacheHitRate",
    unit: "ratio",
    help: "Share of the bytes read that came from the cache; 0 before the first read.",
};

/// The older line's name for the bytes read from the cache.
const READ_LOCAL: Description = Description {
    name: "BytesReadLocal",
    unit: "bytes",
    help: "The same as alluxio_cached_data_read_bytes, under its older name.",
};

/// The older line's name for the bytes read from under storages.
const READ_UFS: Description = Description {
    name: "BytesReadUfsAll",
    unit: "bytes",
    help: "The same as alluxio_ufs_data_access_bytes, under its older name.",
};

/// Sets gauges when somebody looks at them; false when there is nothing left that it could tell of.
type Refresh = Box<dyn Fn() -> bool + Send + Sync>;

/// What is called before the metrics are shown.
#[derive(Default)]
struct Refreshes(Mutex<Vec<Refresh>>);

impl std::fmt::Debug for Refreshes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Refreshes({})", self.0.lock().len())
    }
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $name:literal, $unit:literal;)+) => {
        /// All metrics of a process.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[doc = $doc])+ pub $field: $type,)+
            hit_rate: gauge::Gauge<f64, AtomicU64>,
            registry: Registry,
            refreshes: Refreshes,
        }

        /// What there is.
        pub const LIST: &[Description] = &[
            $(Description { name: $name, unit: $unit, help: concat!($($doc),+).trim_ascii() },)+
            HIT_RATE, READ_LOCAL, READ_UFS,
        ];

        impl Metrics {
            /// A set of its own, all zero. Processes use [`super::metrics`]; this is for tests.
            pub fn new() -> Self {
                let mut metrics = Metrics { $($field: <$type>::default(),)+ hit_rate: gauge::Gauge::default(), registry: Registry::default(), refreshes: Refreshes::default() };
                $(metrics.registry.register($name, help(concat!($($doc),+)), metrics.$field.clone());)+
                metrics.register_derived();
                metrics
            }
        }
    };
}

/// The help text as the library wants it: it adds the full stop.
fn help(doc: &str) -> &str {
    doc.trim().trim_end_matches('.')
}

metrics! {
    /// Bytes given to readers out of the page store.
    cached_read_bytes: Counter = "alluxio_cached_data_read_bytes", "bytes";
    /// Bytes given to readers that were not in the page store.
    missed_read_bytes: Counter = "alluxio_missed_data_read_bytes", "bytes";
    /// Bytes that the page store holds.
    cached_bytes: Gauge = "alluxio_cached_storage_bytes", "bytes";
    /// Bytes that the page store may hold.
    cache_capacity_bytes: Gauge = "alluxio_cached_capacity_bytes", "bytes";
    /// Pages that the page store holds.
    cached_pages: Gauge = "alluxio_cached_pages", "pages";
    /// File versions of which the page store holds something.
    cached_files: Gauge = "alluxio_cached_files", "files";
    /// Bytes that were evicted from the page store to make room.
    evicted_bytes: Counter = "alluxio_cached_evicted_data_bytes", "bytes";
    /// Pages that were evicted from the page store to make room.
    evicted_pages: Counter = "alluxio_cached_evicted_pages", "pages";
    /// Pages of the page store that turned out damaged and were read again from the under storage.
    corrupt_pages: Counter = "alluxio_cached_corrupt_pages", "pages";
    /// Operations on the directories of the page store that failed.
    cache_errors: Counter = "alluxio_cached_storage_errors", "operations";
    /// Bytes that were read but not kept, since the page store was full, off or failing.
    bypassed_bytes: Counter = "alluxio_cached_bypassed_bytes", "bytes";
    /// Directories of the page store, by how they do.
    cache_dirs: ByLabel<Health, Gauge> = "alluxio_cached_directories", "directories";

    /// Bytes read from workers on this host, through their domain sockets.
    read_domain_bytes: Counter = "BytesReadDomain", "bytes";
    /// Bytes read from workers over the network.
    read_remote_bytes: Counter = "BytesReadRemote", "bytes";
    /// Bytes read from under storages.
    ufs_read_bytes: Counter = "alluxio_ufs_data_access_bytes", "bytes";
    /// Bytes written to under storages.
    ufs_written_bytes: Counter = "alluxio_ufs_data_written_bytes", "bytes";
    /// Bytes that the stage of files that are written takes on disk.
    stage_used_bytes: Gauge = "alluxio_stage_used_bytes", "bytes";
    /// Requests to under storages, by operation, repeated ones included.
    ufs_requests: ByLabel<UfsOp, Counter> = "alluxio_ufs_requests", "requests";
    /// Requests to under storages that were sent again.
    ufs_retries: Counter = "alluxio_ufs_retries", "requests";
    /// Calls of under storages that failed for good, by reason.
    ufs_errors: ByLabel<Failure, Counter> = "alluxio_ufs_error", "calls";
    /// How long calls of under storages took, in milliseconds.
    ufs_latency: ByLabel<UfsOp, Histogram> = "alluxio_ufs_call_latency_ms", "milliseconds";

    /// How long the calls of the kernel took, in milliseconds.
    fuse_latency: ByLabel<FuseOp, Histogram> = "alluxio_fuse_call_latency_ms", "milliseconds";
    /// Calls of the kernel that were answered with an error, by method; lookups of names that do not exist included.
    fuse_errors: ByLabel<FuseOp, Counter> = "alluxio_fuse_call_errors", "calls";
    /// Bytes read through the daemon; what passes through the kernel is not seen.
    fuse_read_bytes: Counter = "alluxio_fuse_read_bytes", "bytes";
    /// Bytes written through the daemon.
    fuse_write_bytes: Counter = "alluxio_fuse_write_bytes", "bytes";
    /// Files that are open.
    open_files: Gauge = "alluxio_fuse_open_files", "files";
    /// Inodes that are remembered for the kernel.
    inodes: Gauge = "alluxio_fuse_inodes", "inodes";
    /// Opens whose reads the kernel does itself, by the file that it reads.
    passthrough_opens: ByLabel<PassthroughBacking, Counter> = "alluxio_fuse_passthrough_opens", "opens";
    /// Opens whose reads go through the daemon.
    cached_opens: Counter = "alluxio_fuse_cached_opens", "opens";

    /// Memory taken by buffers for reading and prefetch.
    budget_used_bytes: Gauge = "alluxio_memory_budget_used_bytes", "bytes";
    /// The most memory that such buffers may take.
    budget_limit_bytes: Gauge = "alluxio_memory_budget_limit_bytes", "bytes";
    /// Requests that had to wait for such memory.
    budget_waits: Counter = "alluxio_memory_budget_waits", "requests";

    /// Bytes that were asked for ahead of a reader of the same file.
    prefetch_bytes: Counter = "alluxio_prefetch_bytes", "bytes";
    /// Files fetched because their siblings were read.
    prefetch_siblings: Counter = "alluxio_prefetch_siblings", "files";

    /// Questions about attributes that the metadata cache answered.
    metadata_hits: Counter = "alluxio_metadata_cache_hit_calls", "calls";
    /// Questions about attributes that went to the under storage.
    metadata_misses: Counter = "alluxio_metadata_cache_miss_calls", "calls";
    /// Entries of the metadata cache.
    metadata_entries: Gauge = "alluxio_metadata_cache_entries", "entries";
}

impl Metrics {
    /// What is shown beside the fields: the older names of some, and the version.
    fn register_derived(&mut self) {
        self.registry.register(HIT_RATE.name, help(HIT_RATE.help), self.hit_rate.clone());
        self.registry.register(READ_LOCAL.name, help(READ_LOCAL.help), self.cached_read_bytes.clone());
        self.registry.register(READ_UFS.name, help(READ_UFS.help), self.ufs_read_bytes.clone());
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        self.registry.register("alluxio_version", "The version that runs", version);
    }

    /// The share of the bytes read that came from the cache, from 0 to 1; 0 before the first read.
    pub fn cache_hit_rate(&self) -> f64 {
        let (hit, missed) = (self.cached_read_bytes.get() as f64, self.missed_read_bytes.get() as f64);
        if hit + missed > 0.0 { hit / (hit + missed) } else { 0.0 }
    }

    /// Has `refresh` called before each [`encode`](Self::encode), to set gauges, until it returns false. It must be quick,
    /// and must not encode.
    pub fn refresh_by(&self, refresh: impl Fn() -> bool + Send + Sync + 'static) {
        self.refreshes.0.lock().push(Box::new(refresh));
    }

    /// All metrics as text, in the format that Prometheus reads; see [`super::CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        self.refreshes.0.lock().retain(|refresh| refresh());
        self.hit_rate.set(self.cache_hit_rate());
        let mut text = String::new();
        // Writing to a String cannot fail, and no metric here does; the text so far is the best answer in any case.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!("metrics cannot be encoded: {error}");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
