//! The ring at the size that it is planned for: 1,000 workers with 2,000 virtual nodes each.
//!
//! Goals: built in 1 s, 40 MiB at most, a lookup of three replicas in 1 µs. Run: `cargo bench -p client --bench ring`.

use client::ring::{Ring, WorkerIdentity};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

const WORKERS: u64 = 1000;
const VIRTUAL_NODES: u32 = 2000;

fn workers() -> Vec<WorkerIdentity> {
    let identity = |number: u64| {
        let mut identifier = [0; 16];
        identifier[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        identifier[8..].copy_from_slice(&number.to_be_bytes());
        WorkerIdentity { identifier, version: 1 }
    };
    (0..WORKERS).map(identity).collect()
}

fn build(criterion: &mut Criterion) {
    let workers = workers();
    let memory = Ring::uniform(&workers, VIRTUAL_NODES).memory();
    println!(
        "ring of {WORKERS} workers, {VIRTUAL_NODES} virtual nodes each: {:.1} MiB",
        memory as f64 / f64::from(1 << 20)
    );
    let mut group = criterion.benchmark_group("ring");
    group.sample_size(10);
    group.bench_function("build", |bencher| bencher.iter(|| Ring::uniform(black_box(&workers), VIRTUAL_NODES)));
    group.finish();
}

fn lookup(criterion: &mut Criterion) {
    let ring = Ring::uniform(&workers(), VIRTUAL_NODES);
    // Far more keys than a cache holds places on the ring.
    let keys: Vec<String> =
        (0..1 << 16).map(|key| format!("s3://bucket/datasets/imagenet/train/n{:08}/{key}.JPEG", key * 7919)).collect();
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(1));
    for replicas in [1, 3] {
        let mut next = 0;
        group.bench_function(format!("lookup of {replicas}"), |bencher| {
            bencher.iter(|| {
                next = (next + 1) & (keys.len() - 1);
                ring.lookup(black_box(keys[next].as_bytes()), replicas)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, build, lookup);
criterion_main!(benches);
