//! Reads objects: attributes, the first bytes together with them, and ranges of one version.
//!
//! Whatever breaks, a range goes on from the byte where it stopped, with the same etag. An answer is believed only when
//! it is about exactly the bytes that were asked for, of exactly the version that was asked for.

use super::client::{Answer, Request, S3Client};
use crate::{
    retry::Attempts,
    storage::{Head, ReadSink},
};
use bytes::{Bytes, BytesMut};
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp, Version,
    metrics::{UfsOp, metrics},
};
use http::{HeaderMap, Method, StatusCode, header};

/// The most bytes that are read and thrown away when a service does not know ranges.
const SKIP: u64 = 64 << 20;
/// Begins versions that were made up for the lack of an etag.
const MADE_UP: char = '@';

/// The version of an object by what a listing or the headers say. Without an etag: by size and time.
pub fn version_of(etag: Option<&str>, size: u64, modified: Timestamp) -> Version {
    match etag.map(str::trim).filter(|etag| !etag.is_empty()) {
        // The quotes belong to the header, not to the etag; a listing may leave them out.
        Some(etag) => {
            let bare = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or(etag);
            Version::new(bare)
        }
        None => Version::new(format!("{MADE_UP}{size}-{}", modified.sec)),
    }
}

/// The `If-Match` header that asks for `version`, if there is one: weak etags match nothing.
pub fn if_match(version: &Version) -> Option<String> {
    let text = version.as_str();
    (!text.is_empty() && !text.starts_with("W/") && !text.starts_with(MADE_UP)).then(|| format!("\"{text}\""))
}

/// A header as text.
pub fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The attributes that the headers of an answer tell.
pub fn attr_of(headers: &HeaderMap, size: u64) -> Attr {
    let modified = text(headers, header::LAST_MODIFIED)
        .and_then(|time| httpdate::parse_http_date(time).ok())
        .map_or(Timestamp { sec: 0, nsec: 0 }, Timestamp::from);
    let version = version_of(text(headers, header::ETAG), size, modified);
    Attr::of_object(FileKind::File, size, modified, version)
}

/// The length that the headers tell.
pub fn content_length(what: &str, headers: &HeaderMap) -> Result<u64> {
    text(headers, header::CONTENT_LENGTH).and_then(|length| length.trim().parse().ok()).ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            format!("{what}: the answer does not say how long the object is; check the endpoint"),
        )
    })
}

/// First byte, the one after the last, and the size of the whole, from `Content-Range: bytes 0-9/100`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let (range, size) = text(headers, header::CONTENT_RANGE)?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse().ok()?, last.parse::<u64>().ok()?);
    Some((first, last.checked_add(1)?, size.parse().ok()?))
}

/// The attributes of an object.
pub async fn head(client: &S3Client, op: UfsOp, what: &str, key: &str) -> Result<Attr> {
    let mut attempts = Attempts::new(&client.options, 0);
    let request = Request { method: Method::HEAD, key, ..Default::default() };
    let answer = client.call(op, what, &request, &mut attempts).await?;
    Ok(attr_of(&answer.headers, content_length(what, &answer.headers)?))
}

/// The attributes of an object and its first `max` bytes, in one request.
pub async fn first_bytes(client: &S3Client, what: &str, key: &str, max: u32) -> Result<Head> {
    let max = u64::from(max);
    let mut attempts = Attempts::new(&client.options, max);
    loop {
        let request = Request { key, range: Some((0, max)), ..Default::default() };
        let mut answer = match client.call(UfsOp::StatAndRead, what, &request, &mut attempts).await {
            Ok(answer) => answer,
            // An empty object has no first byte to give.
            Err(error) if error.kind() == ErrorKind::Stale => {
                let attr = head(client, UfsOp::StatAndRead, what, key).await?;
                if attr.size == 0 {
                    return Ok(Head { attr, bytes: Bytes::new() });
                }
                attempts.again(error).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        match first_of(&mut answer, what, max).await {
            Err(error) if error.kind().is_transient() => attempts.again(error).await?,
            done => return done,
        }
    }
}

async fn first_of(answer: &mut Answer, what: &str, max: u64) -> Result<Head> {
    let size = if answer.status == StatusCode::PARTIAL_CONTENT {
        match content_range(&answer.headers) {
            Some((0, end, size)) if end == size.min(max) => size,
            _ => return Err(other_range(what, &answer.headers)),
        }
    } else {
        content_length(what, &answer.headers)?
    };
    let attr = attr_of(&answer.headers, size);
    let wanted = size.min(max);
    let mut bytes = BytesMut::new();
    while (bytes.len() as u64) < wanted {
        let Some(mut chunk) = answer.chunk(what).await? else { return Err(short(what, bytes.len() as u64, wanted)) };
        // Fits: it is less than `wanted`, which came from a u32 or is below one.
        chunk.truncate((wanted - bytes.len() as u64).min(chunk.len() as u64) as usize);
        metrics().ufs_read_bytes.inc_by(chunk.len() as u64);
        if bytes.is_empty() && chunk.len() as u64 == wanted {
            finish(answer, what).await;
            return Ok(Head { attr, bytes: chunk });
        }
        if bytes.is_empty() {
            bytes.reserve(wanted as usize);
        }
        bytes.extend_from_slice(&chunk);
    }
    finish(answer, what).await;
    Ok(Head { attr, bytes: bytes.freeze() })
}

/// Takes the end of a body, so that its connection can be used again; only when it is there already or about to be.
async fn finish(answer: &mut Answer, what: &str) {
    let end = tokio::time::timeout(std::time::Duration::from_millis(1), answer.chunk(what)).await;
    tracing::trace!("{what}: body ended in order: {}", matches!(end, Ok(Ok(None))));
}

fn short(what: &str, got: u64, wanted: u64) -> Error {
    Error::new(ErrorKind::Io, format!("{what}: the answer ended after {got} of {wanted} bytes"))
}

fn other_range(what: &str, headers: &HeaderMap) -> Error {
    let given = text(headers, header::CONTENT_RANGE).unwrap_or("none");
    Error::new(ErrorKind::Corrupt, format!("{what}: the service answered with another range ({given})"))
}

fn stale(what: &str, why: &str) -> Error {
    Error::new(ErrorKind::Stale, format!("{what}: {why}"))
}

/// Reads `length` bytes at `offset` of `version` into `sink`.
pub async fn range(
    client: &S3Client,
    what: &str,
    key: &str,
    version: &Version,
    offset: u64,
    length: u64,
    sink: &mut dyn ReadSink,
) -> Result<()> {
    let end = offset.checked_add(length).ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, format!("{what}: the range ends beyond the largest offset"))
    })?;
    let etag = if_match(version);
    let mut attempts = Attempts::new(&client.options, length);
    let mut at = offset;
    while at < end {
        let request = Request { key, range: Some((at, end)), if_match: etag.as_deref(), ..Default::default() };
        let mut answer = match client.call(UfsOp::Read, what, &request, &mut attempts).await {
            Ok(answer) => answer,
            Err(error) => {
                return Err(match error.kind() {
                    ErrorKind::NotFound => stale(what, "the object is gone"),
                    ErrorKind::Stale => stale(what, "the object changed since it was opened"),
                    _ => error,
                });
            }
        };
        match copy(&mut answer, what, version, &mut at, end, sink, &mut attempts).await {
            Ok(()) => return Ok(()),
            Err(error) if error.kind().is_transient() => attempts.again(error).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Passes the bytes from `at` to `end` on, and moves `at` along.
async fn copy(
    answer: &mut Answer,
    what: &str,
    version: &Version,
    at: &mut u64,
    end: u64,
    sink: &mut dyn ReadSink,
    attempts: &mut Attempts,
) -> Result<()> {
    let whole = answer.status == StatusCode::OK;
    let (from, size) = if whole {
        (0, content_length(what, &answer.headers)?)
    } else {
        match content_range(&answer.headers) {
            Some((from, to, size)) if from == *at && to == end => (from, size),
            _ => return Err(other_range(what, &answer.headers)),
        }
    };
    if !version.is_none() && attr_of(&answer.headers, size).version != *version {
        return Err(stale(what, "the object changed since it was opened"));
    }
    if size < end {
        return Err(stale(what, "the object is shorter than it was"));
    }
    let mut skip = *at - from;
    if skip > SKIP {
        return Err(Error::new(ErrorKind::Io, format!("{what}: the service does not answer requests for ranges")));
    }
    let begin = *at;
    while *at < end {
        if attempts.left().is_zero() {
            return Err(Error::new(ErrorKind::TimedOut, format!("{what}: the bytes come too slowly")));
        }
        let Some(mut chunk) = answer.chunk(what).await? else { return Err(short(what, *at - begin, end - begin)) };
        attempts.progress();
        let skipped = skip.min(chunk.len() as u64);
        skip -= skipped;
        // Both fit: they are no longer than the chunk.
        chunk = chunk.slice(skipped as usize..);
        chunk.truncate((end - *at).min(chunk.len() as u64) as usize);
        if chunk.is_empty() {
            continue;
        }
        metrics().ufs_read_bytes.inc_by(chunk.len() as u64);
        *at += chunk.len() as u64;
        if !sink.push(&chunk) {
            return Ok(());
        }
    }
    if !whole || end == size {
        finish(answer, what).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_the_same_from_listing_and_header() {
        let at = Timestamp { sec: 5, nsec: 0 };
        assert_eq!(version_of(Some("\"abc\""), 1, at), version_of(Some("abc"), 2, Timestamp::default()));
        assert_eq!(if_match(&version_of(Some("\"abc-2\""), 1, at)).as_deref(), Some("\"abc-2\""));
        assert_eq!(if_match(&version_of(Some("W/\"abc\""), 1, at)), None);
        let made_up = version_of(None, 7, at);
        assert_eq!((made_up.as_str(), if_match(&made_up)), ("@7-5", None));
    }

    #[test]
    fn ranges_are_read_strictly() {
        let range = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 0-9/100"), Some((0, 10, 100)));
        for wrong in ["bytes */0", "0-9/100", "bytes 0-9/*", "bytes 9/100", "bytes 0-18446744073709551615/1"] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
    }
}
