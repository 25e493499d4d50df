//! Clusters: what remote reads cost against bare sockets, and what a domain socket saves.

mod memory;
mod sockets;

pub use memory::{idle, streaming};

use super::{Context, NATIVE, WHOLE};
use crate::{
    bare::Bare,
    cluster::{Cluster, Library},
    mounts::Mount,
    table::Row,
    work,
};
use anyhow::Result;
use std::{fs::File, thread, time::Duration};

const LIBRARY: &str = "ours, client library";
const MOUNT: &str = "ours, mount";
const SHORT: &str = "ours, short circuit";
const BARE: &str = "bare sockets";
const BARES: &[&str] = &[BARE];

/// A mount of the namespace. Without a client cache everything comes from the worker.
fn mount(context: &Context, cluster: &Cluster, name: &str, short_circuit: bool) -> Result<Mount> {
    let options = cluster.mount_options(short_circuit);
    let options: Vec<&str> = options.iter().map(String::as_str).chain(["local_data_cache_size=0"]).collect();
    context.places.ours(name, "alluxio://DefaultAlluxioCluster/", &options)
}

/// The names of the streams' files, and where they are natively.
fn files(streams: usize) -> Vec<String> {
    (0..streams).map(|number| format!("streams/file{number}")).collect()
}

/// The worker has them, and the page cache what the worker has.
fn warm(library: &Library, files: &[String]) -> Result<()> {
    for _ in 0..2 {
        for file in files {
            library.sequential(std::slice::from_ref(file))?;
        }
    }
    // Pages are stored a moment after they were sent.
    thread::sleep(Duration::from_secs(1));
    library.sequential(files).map(drop)
}

/// MB/s of `streams` files, read sequentially from a worker by TCP over loopback.
pub fn sequential(context: &Context, name: &'static str, streams: usize) -> Result<Row> {
    let server = context.server(0)?;
    let cluster = Cluster::start(&context.places.scratch, &server, &["streams"], false)?;
    let files = files(streams);
    let library = cluster.library()?;
    warm(&library, &files)?;
    let mut row = Row::new(name, "MB/s, 1 MiB reads of files that a remote worker has, client cache off")
        .goal(LIBRARY, BARES, 0.7)
        .goal(MOUNT, BARES, 0.4);
    for _ in 0..context.repetitions {
        context.memory.settle()?;
        let native: Vec<_> = files.iter().map(|file| context.data.join(file)).collect();
        row.add(BARE, work::rate(|| sockets::sequential(&native))?);
        row.add(LIBRARY, work::rate(|| library.sequential(&files))?);
        // The kernel keeps what a mount has read: each time a new one.
        let mount = mount(context, &cluster, "cluster", false)?;
        row.add(MOUNT, work::rate(|| through_mount(&mount, &files))?);
    }
    Ok(row)
}

fn through_mount(mount: &Mount, files: &[String]) -> Result<f64> {
    thread::scope(|scope| {
        let readers: Vec<_> =
            files.iter().map(|file| scope.spawn(move || work::sequential(&mount.point().join(file)))).collect();
        let mut total = 0.0;
        for reader in readers {
            total += reader.join().map_err(|_| anyhow::anyhow!("a reader failed"))??;
        }
        Ok(total)
    })
}

/// Microseconds of a random read of 4 KiB from a worker by TCP over loopback.
pub fn random(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let cluster = Cluster::start(&context.places.scratch, &server, &["streams"], false)?;
    let library = cluster.library()?;
    warm(&library, &files(1))?;
    let count = if context.sizes.label == "tiny" { 200 } else { 20_000 };
    let mut row = Row::new(name, "µs of a random read of 4 KiB from a remote worker, one after the other")
        .less_is_better()
        .goal(LIBRARY, BARES, 2.0);
    for repetition in 0..context.repetitions as u64 {
        context.memory.settle()?;
        row.add(BARE, sockets::ping_pong(count)?);
        row.add(LIBRARY, library.random("streams/file0", count, repetition)?);
    }
    Ok(row)
}

/// MB/s of a warm file that a worker on this host lends, against the native file, and against the same file from the
/// worker by TCP.
pub fn short_circuit(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let cluster = Cluster::start(&context.places.scratch, &server, &["streams"], true)?;
    let file = files(1).remove(0);
    warm(&cluster.library()?, std::slice::from_ref(&file))?;
    let mut row = Row::new(name, "MB/s, 1 MiB reads of a warm file of a worker on this host, client cache off")
        .goal(SHORT, NATIVE, 0.9);
    let lent = mount(context, &cluster, "lent", true)?;
    for _ in 0..2 {
        work::sequential(&lent.point().join(&file))?;
    }
    for _ in 0..context.repetitions {
        context.memory.settle()?;
        row.add(NATIVE[0], work::rate(|| work::sequential(&context.data.join(&file)))?);
        row.add(SHORT, work::rate(|| work::sequential(&lent.point().join(&file)))?);
        let remote = mount(context, &cluster, "remote", false)?;
        row.add("ours, remote", work::rate(|| work::sequential(&remote.point().join(&file)))?);
    }
    Ok(row)
}

/// Files each second, 100 KiB each, through a mount that was just made, from a worker that has them all.
pub fn small(context: &Context, name: &'static str) -> Result<Row> {
    let server = context.server(0)?;
    let cluster = Cluster::start(&context.places.scratch, &server, &["small"], true)?;
    let all = work::small_files(&context.sizes.small)?;
    {
        let warmer = mount(context, &cluster, "warmer", false)?;
        work::small(&warmer.point().join("small"), &all, WHOLE)?;
    }
    let bare = Bare::new(server.endpoint())?;
    let mut row = Row::new(
        name,
        "files/s, open+read+close of 100 KiB from a warm worker by a client that has nothing, 1 process",
    );
    for repetition in 0..context.repetitions as u64 {
        context.memory.settle()?;
        let files = work::shuffled(&all, 200 + repetition);
        let keys: Vec<String> = files.iter().map(work::SmallFile::name).collect();
        row.add("bare S3 client", work::rate(|| bare.get_each("small", &keys))?);
        for (candidate, short_circuit) in [("ours, remote", false), (SHORT, true)] {
            let mount = mount(context, &cluster, "small", short_circuit)?;
            let root = mount.point().join("small");
            File::open(&root)?;
            row.add(candidate, work::rate(|| work::small(&root, &files, WHOLE))?);
        }
    }
    Ok(row)
}
