//! A histogram of durations that is bumped without a lock.
//!
//! The library's own takes a mutex at each observation, which every FUSE call of every thread would contend for.

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets in nanoseconds; one more bucket holds the rest.
const BOUNDS: [u64; 18] = [
    20_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    30_000_000_000,
];

#[derive(Debug, Default)]
struct Inner {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

/// A histogram of durations, shown in milliseconds. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Inner>);

impl Histogram {
    /// Adds one observation.
    pub fn observe(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        self.0.buckets[bucket].fetch_add(1, Relaxed);
        self.0.nanos.fetch_add(nanos, Relaxed);
    }

    /// The number of observations.
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Relaxed)).sum()
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.iter().map(|nanos| *nanos as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.0.buckets.iter().map(|bucket| bucket.load(Relaxed))).collect();
        // Counted from the same snapshot as the buckets, so that they agree while others observe.
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.0.nanos.load(Relaxed) as f64 / 1e6, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_observation_is_in_the_bucket_below_its_bound(nanos in prop::collection::vec(0u64..40_000_000_000, 0..50)) {
            let histogram = Histogram::default();
            nanos.iter().for_each(|nanos| histogram.observe(Duration::from_nanos(*nanos)));
            prop_assert_eq!(histogram.count(), nanos.len() as u64);
            let mut cumulated = 0;
            for (bound, bucket) in BOUNDS.iter().zip(&histogram.0.buckets) {
                cumulated += bucket.load(Relaxed);
                prop_assert_eq!(cumulated, nanos.iter().filter(|nanos| *nanos <= bound).count() as u64);
            }
        }
    }
}
