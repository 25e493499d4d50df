//! What a worker's process holds.

use super::{Context, files};
use crate::{cluster::Cluster, machine, rows::footprint::peak_during, table::Row};
use anyhow::{Context as _, Result};
use std::{thread, time::Duration};

const WORKER: &str = "ours, worker";
/// Clients that stream at the same time.
const CLIENTS: usize = 100;

/// MiB that a worker holds which did nothing but start.
pub fn idle(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let mut row =
        Row::new(name, "MiB resident, 3 s after the start of a worker").less_is_better().goal(WORKER, &[], 100.0);
    for _ in 0..context.repetitions {
        let cluster = Cluster::start(&context.places.scratch, &server, &["streams"], false)?;
        thread::sleep(Duration::from_secs(3));
        row.add(WORKER, machine::resident_mib(cluster.worker()).context("the worker is gone")?);
    }
    Ok(row)
}

/// The most MiB that a worker holds while 100 clients stream from it, first what it has to fetch, then what it has.
pub fn streaming(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let mut row = Row::new(name, "MiB resident at most, 100 clients that stream").less_is_better();
    row = row.goal("ours, worker, cold", &[], 512.0).goal("ours, worker, warm", &[], 512.0);
    for _ in 0..context.repetitions.min(3) {
        let cluster = Cluster::start(&context.places.scratch, &server, &["streams"], false)?;
        let clients = cluster.clients(CLIENTS)?;
        for pass in ["ours, worker, cold", "ours, worker, warm"] {
            let peak = peak_during(cluster.worker(), || clients.stream(&files(4)))?;
            row.add(pass, peak);
        }
    }
    Ok(row)
}
