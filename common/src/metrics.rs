//! What the system counts, and how it is shown at `/metrics`.
//!
//! Every metric is declared once, in `metrics/list.rs`, as a public field of [`Metrics`] whose doc comment is its help
//! text. Bumping one costs an atomic addition: no lock, no lookup, no allocation. One process has one set, [`metrics`].

mod histogram;
mod labels;
mod list;

pub use histogram::Histogram;
pub use labels::{ByLabel, Failure, FuseOp, Health, Label, PassthroughBacking, UfsOp};
pub use list::{Description, LIST, Metrics};
pub use prometheus_client::metrics::counter::Counter;

use std::sync::LazyLock;

/// A value that goes up and down.
pub type Gauge = prometheus_client::metrics::gauge::Gauge;

/// The `Content-Type` of [`Metrics::encode`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of this process.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
    &METRICS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use std::collections::HashSet;
    use std::time::Duration;

    #[test]
    fn names_are_unique_and_documented() {
        let mut names = HashSet::new();
        for description in LIST {
            assert!(names.insert(description.name), "{}", description.name);
            assert!(description.help.ends_with('.') && !description.help.contains('\n'), "{}", description.name);
        }
    }

    #[test]
    fn everything_declared_is_encoded() {
        let metrics = Metrics::new();
        metrics.fuse_latency.of(FuseOp::Read).observe(Duration::from_micros(70));
        metrics.ufs_latency.of(UfsOp::Read).observe(Duration::from_secs(3600));
        let text = metrics.encode();
        for description in LIST {
            assert!(text.contains(&format!("# HELP {} ", description.name)), "{}: {text}", description.name);
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn gauges_are_set_when_they_are_looked_at_as_long_as_somebody_can_tell() {
        let metrics = Metrics::new();
        let (left, inodes) = (std::sync::atomic::AtomicI64::new(2), metrics.inodes.clone());
        metrics.refresh_by(move || {
            let left = left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            inodes.set(left);
            left > 1
        });
        for expected in [2, 1, 1] {
            let text = metrics.encode();
            assert!(text.contains(&format!("alluxio_fuse_inodes {expected}\n")), "{text}");
        }
    }

    #[test]
    fn values_appear_under_the_names_that_dashboards_know() {
        let metrics = Metrics::new();
        metrics.cached_read_bytes.inc_by(300);
        metrics.missed_read_bytes.inc_by(100);
        metrics.ufs_read_bytes.inc_by(7);
        metrics.open_files.set(3);
        metrics.ufs_requests.of(UfsOp::List).inc();
        metrics.ufs_errors.of(ErrorKind::TimedOut.into()).inc();
        metrics.passthrough_opens.of(PassthroughBacking::Source).inc();
        metrics.fuse_latency.of(FuseOp::Lookup).observe(Duration::from_millis(2));
        let text = metrics.encode();
        for line in [
            "alluxio_cached_data_read_bytes_total 300",
            "BytesReadLocal_total 300",
            "alluxio_missed_data_read_bytes_total 100",
            "alluxio_ufs_data_access_bytes_total 7",
            "BytesReadUfsAll_total 7",
            "CacheHitRate 0.75",
            "alluxio_fuse_open_files 3",
            "alluxio_ufs_requests_total{op=\"list\"} 1",
            "alluxio_ufs_error_total{kind=\"timed_out\"} 1",
            "alluxio_fuse_passthrough_opens_total{backing=\"source\"} 1",
            "alluxio_fuse_call_latency_ms_bucket{le=\"2.5\",method=\"lookup\"} 1",
            "alluxio_fuse_call_latency_ms_bucket{le=\"1.0\",method=\"lookup\"} 0",
            "alluxio_fuse_call_latency_ms_bucket{le=\"+Inf\",method=\"lookup\"} 1",
            "alluxio_fuse_call_latency_ms_count{method=\"lookup\"} 1",
        ] {
            assert!(text.lines().any(|given| given == line), "{line} is missing from\n{text}");
        }
        assert!(text.contains(&format!("alluxio_version_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"))));
    }
}
