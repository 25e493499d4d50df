//! Answers to reads: present pages from disk by sendfile, absent ones as their bytes arrive from the storage.
//!
//! Invariants: a task holds at most one page in memory, and asks for memory only while it holds none; what all tasks of
//! a connection hold together is bounded.

use super::connection::{Connection, Handle};
use common::{Error, ErrorKind, Result, budget::Purpose, metrics::metrics, page::PageLoad, wire::DataPrefix};
use std::sync::Arc;

/// Bytes of an absent page that are waited for before they are sent on.
const PIECE: usize = 128 << 10;
/// Bytes of present pages that are copied at a time, when they cannot be sent as they lie.
const COPY: usize = 256 << 10;
/// How often a page may vanish between being found and being read.
const TURNS: u32 = 16;

/// Answers a small read when all of it is present. False: it was not, and nothing was sent.
pub(super) async fn at_once(
    connection: &Connection,
    request: u32,
    handle: &Handle,
    offset: u64,
    length: u32,
    scratch: &mut Vec<u8>,
) -> bool {
    scratch.resize(length as usize, 0);
    let read = handle.file.read_present(offset, scratch);
    if !matches!(read, Ok(read) if read == length as usize) {
        return false;
    }
    connection.send_data(request, offset, scratch, true).await;
    true
}

/// Answers a read whose range was checked.
pub(super) async fn read(
    connection: &Connection,
    request: u32,
    handle: &Handle,
    offset: u64,
    length: u32,
) -> Result<()> {
    let file = &handle.file;
    let (page_size, size) = (u64::from(file.page_size()), file.attr().size);
    let end = offset + u64::from(length);
    if length == 0 {
        connection.send_data(request, offset, &[], true).await;
        return Ok(());
    }
    let (mut at, mut turns, mut ahead) = (offset, 0, false);
    while at < end && !connection.broken.is_cancelled() {
        let page = at / page_size;
        let start = page * page_size;
        let stop = (start + page_size).min(size);
        let to = stop.min(end);
        if at == start
            && to == stop
            && let Some(stored) = file.stored_page(page)
        {
            let prefix = DataPrefix { offset: at, checksum: stored.checksum, last: to == end };
            connection.send_stored(request, prefix, &stored).await;
            metrics().cached_read_bytes.inc_by(to - at);
            at = to;
            continue;
        }
        if file.is_present(page) {
            let sent = copy(connection, request, handle, at, to, end).await?;
            if sent > 0 {
                at += sent;
                continue;
            }
        }
        turns += 1;
        if turns > TURNS + u32::try_from(u64::from(length) / page_size).unwrap_or(u32::MAX) {
            return Err(Error::new(ErrorKind::Io, "the pages are evicted faster than they can be sent"));
        }
        if !ahead {
            // The rest of the range is fetched meanwhile, as far as there is memory.
            ahead = true;
            file.prefetch(page, (end - 1) / page_size - page + 1);
        }
        let units = u32::try_from((stop - start).div_ceil(4096)).unwrap_or(u32::MAX);
        let units = units.min(u32::try_from(connection.server.limits.bytes / 4096).unwrap_or(u32::MAX)).max(1);
        let held = connection.bytes.acquire_many(units).await;
        let Some(load) = file.demand(page).await? else { continue };
        stream(connection, request, &load, start, (at, to), end).await?;
        metrics().missed_read_bytes.inc_by(to - at);
        drop(load);
        drop(held);
        at = to;
    }
    Ok(())
}

/// Sends present bytes from `at` to `to` at most; returns how many.
async fn copy(connection: &Connection, request: u32, handle: &Handle, at: u64, to: u64, end: u64) -> Result<u64> {
    let length = usize::try_from(to - at).unwrap_or(COPY).min(COPY);
    let budget = connection.server.namespace.pool().budget();
    let _reserved = match budget.try_reserve(length, Purpose::Demand) {
        Some(reserved) => reserved,
        None => budget.reserve(length).await?,
    };
    let mut bytes = vec![0; length];
    let read = handle.file.read_present(at, &mut bytes)?;
    if read > 0 {
        connection.send_data(request, at, &bytes[..read], at + read as u64 == end).await;
    }
    Ok(read as u64)
}

/// Sends the bytes of a page from `at` to `to` as they arrive.
async fn stream(
    connection: &Connection,
    request: u32,
    load: &Arc<PageLoad>,
    start: u64,
    (at, to): (u64, u64),
    end: u64,
) -> Result<()> {
    let (mut from, stop) = ((at - start) as usize, (to - start) as usize);
    while from < stop && !connection.broken.is_cancelled() {
        load.wait(from..(from + PIECE).min(stop)).await?;
        let arrived = load.filled().len().min(stop);
        connection
            .send_data(request, start + from as u64, &load.filled()[from..arrived], start + arrived as u64 == end)
            .await;
        from = arrived;
    }
    Ok(())
}
