//! What can be set on a client.

use std::time::Duration;

/// Settings of a [`Client`](crate::Client).
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The most that one stream is prefetched ahead, in bytes (`alluxio.user.prefetch.window`); 0: no prefetch.
    pub prefetch_window: u64,
    /// The most that all streams together are prefetched ahead, in bytes; divided among them.
    pub prefetch_total: u64,
    /// Requests that a recognised stream keeps in flight (extents of its window).
    pub prefetch_extents: u32,
    /// Files of at most this size are prefetched when their siblings are read one after the other; 0: never.
    pub sibling_max_size: u64,
    /// Siblings fetched at the same time, for all directories together.
    pub sibling_parallel: usize,
    /// Whether a file of at most one page is completed by its open, so that it can be passed through to the kernel.
    pub complete_on_open: bool,
    /// For how long a read that fails for a passing reason is tried again.
    pub retry_deadline: Duration,
    /// How often one page is tried again within that time.
    pub retries: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            prefetch_window: 64 << 20,
            prefetch_total: 64 << 20,
            prefetch_extents: 16,
            sibling_max_size: 1 << 20,
            sibling_parallel: 64,
            complete_on_open: true,
            retry_deadline: Duration::from_secs(60),
            retries: 3,
        }
    }
}
