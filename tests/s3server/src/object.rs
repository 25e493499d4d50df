//! GET, HEAD, PUT and DELETE of objects.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use hyper::body::Incoming;

use crate::auth::Payload;
use crate::body::{Body, Response};
use crate::bucket::{Bucket, Condition};
use crate::counters::Counters;
use crate::dates::seconds;
use crate::error::{Code, S3Error};
use crate::faults::Action;
use crate::list::{answer, invalid};
use crate::request::header as text_header;
use crate::storage::{Description, Object};
use crate::upload::{OBJECT_LIMIT, expected_length, receive, receive_text};
use crate::xml::{Writer as Xml, parse};

/// Headers that are stored with an object and come back with it, besides `x-amz-meta-…`.
const STORED: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LANGUAGE,
    header::CACHE_CONTROL,
    header::EXPIRES,
];
/// User metadata of an object, in bytes.
const METADATA_LIMIT: usize = 2 << 10;

/// The etags of a header, without quotes and marks of weakness.
fn etags(text: &str) -> Vec<String> {
    text.split(',').map(|etag| etag.trim().trim_start_matches("W/").trim_matches('"').to_owned()).collect()
}

/// The headers of a request that are to be stored.
pub(crate) fn stored_headers(headers: &HeaderMap) -> Result<Vec<(HeaderName, HeaderValue)>, S3Error> {
    let mut stored = Vec::new();
    let mut metadata = 0;
    for (name, value) in headers {
        if name.as_str().starts_with("x-amz-meta-") {
            metadata += name.as_str().len() - "x-amz-meta-".len() + value.len();
            stored.push((name.clone(), value.clone()));
        } else if *name == header::CONTENT_ENCODING {
            // "aws-chunked" describes the request, not the object.
            let text = value.to_str().unwrap_or_default();
            let rest: Vec<&str> =
                text.split(',').map(str::trim).filter(|part| *part != "aws-chunked" && !part.is_empty()).collect();
            if !rest.is_empty()
                && let Ok(value) = HeaderValue::from_str(&rest.join(","))
            {
                stored.push((name.clone(), value));
            }
        } else if STORED.contains(name) {
            stored.push((name.clone(), value.clone()));
        }
    }
    if metadata > METADATA_LIMIT {
        return Err(S3Error::new(
            Code::MetadataTooLarge,
            format!("user metadata has more than {METADATA_LIMIT} bytes"),
        ));
    }
    Ok(stored)
}

/// If-Match and If-None-Match of a write.
pub(crate) fn write_condition(headers: &HeaderMap) -> Result<Condition, S3Error> {
    let absent = match text_header(headers, "if-none-match") {
        None => false,
        Some("*") => true,
        Some(_) => return Err(S3Error::new(Code::NotImplemented, "If-None-Match of a write takes only *")),
    };
    Ok(Condition { matches: text_header(headers, "if-match").map(etags), absent })
}

/// If-Match and its kin on a read; names carry `prefix` when they stand for the source of a copy.
pub(crate) fn read_condition(
    headers: &HeaderMap,
    prefix: &str,
    etag: &str,
    modified: SystemTime,
) -> Result<(), S3Error> {
    let find = |name: &str| text_header(headers, &format!("{prefix}{name}"));
    let date = |name: &str| find(name).and_then(|text| httpdate::parse_http_date(text).ok()).map(seconds);
    let matches = |text: &str| etags(text).iter().any(|wanted| wanted == "*" || wanted == etag);
    let failed =
        |name: &str| S3Error::new(Code::PreconditionFailed, "the object is another").element("Condition", name);
    match find("if-match") {
        Some(text) if !matches(text) => return Err(failed("If-Match")),
        None if date("if-unmodified-since").is_some_and(|date| seconds(modified) > date) => {
            return Err(failed("If-Unmodified-Since"));
        }
        _ => {}
    }
    let unchanged = match find("if-none-match") {
        Some(text) => matches(text),
        None => date("if-modified-since").is_some_and(|date| seconds(modified) <= date),
    };
    if !unchanged {
        return Ok(());
    }
    if !prefix.is_empty() {
        return Err(failed("x-amz-copy-source"));
    }
    let error = S3Error::new(Code::NotModified, "not modified");
    Err(match HeaderValue::from_str(&format!("\"{etag}\"")) {
        Ok(etag) => error.header(header::ETAG, etag),
        Err(_) => error,
    })
}

/// The range a header asks for, as start and length. `Ok(None)` is the whole object, also for headers that make no sense or ask for several
/// ranges, which S3 ignores.
fn range(text: &str, size: u64) -> Result<Option<(u64, u64)>, S3Error> {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let number = |text: &str| {
        if text.bytes().all(|byte| byte.is_ascii_digit()) { Some(text.parse().unwrap_or(u64::MAX)) } else { None }
    };
    let (start, end) = match (first.trim(), last.trim()) {
        ("", "") => return Ok(None),
        ("", suffix) => match number(suffix) {
            Some(0) => (size, size),
            Some(length) => (size.saturating_sub(length), size),
            None => return Ok(None),
        },
        (first, "") => match number(first) {
            Some(first) => (first, size),
            None => return Ok(None),
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1).min(size)),
            _ => return Ok(None),
        },
    };
    if start >= size {
        let error = S3Error::new(Code::InvalidRange, "the range begins behind the end of the object")
            .element("RangeRequested", text)
            .element("ActualObjectSize", size.to_string());
        return Err(match HeaderValue::from_str(&format!("bytes */{size}")) {
            Ok(value) => error.header(header::CONTENT_RANGE, value),
            Err(_) => error,
        });
    }
    Ok(Some((start, end - start)))
}

/// A range that must be valid, as of UploadPartCopy.
pub(crate) fn strict_range(text: &str, size: u64) -> Result<(u64, u64), S3Error> {
    let valid = text.strip_prefix("bytes=").and_then(|range| {
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < size).then(|| (first, last - first + 1))
    });
    valid.ok_or_else(|| invalid("x-amz-copy-source-range", text))
}

/// Answers GetObject and HeadObject. `action` is a fault that concerns the object.
pub(crate) fn get(
    object: &Object,
    headers: &HeaderMap,
    head: bool,
    action: Option<&Action>,
) -> Result<Response, S3Error> {
    let etag = match action {
        Some(Action::Etag(etag)) => etag,
        _ => object.etag(),
    };
    read_condition(headers, "", etag, object.modified())?;
    let asked = match headers.get(header::RANGE) {
        Some(_) if matches!(action, Some(Action::IgnoreRange)) => None,
        Some(text) => range(text.to_str().unwrap_or_default(), object.size())?,
        None => None,
    };
    let (start, mut length) = asked.unwrap_or((0, object.size()));
    let content_range = asked.map(|_| format!("bytes {start}-{}/{}", start + length - 1, object.size()));
    if let Some(Action::Shorten(by)) = action {
        length = length.saturating_sub(*by);
    }
    let body = if head {
        Body::empty()
    } else {
        let source =
            object.content.source(start, length).map_err(|error| S3Error::io("cannot read the object", &error))?;
        Body::new(source, length)
    };
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.reserve(8);
    let mut put = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            out.insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, "binary/octet-stream");
    put(header::ETAG, &format!("\"{etag}\""));
    put(header::LAST_MODIFIED, &httpdate::fmt_http_date(object.modified()));
    if head {
        put(header::CONTENT_LENGTH, &length.to_string());
    }
    if let Some(content_range) = &content_range {
        put(header::CONTENT_RANGE, content_range);
    }
    out.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    for (name, value) in &object.description.headers {
        out.insert(name.clone(), value.clone());
    }
    if asked.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// An empty answer with an etag.
pub(crate) fn etag_answer(etag: &str) -> Response {
    let mut response = Response::new(Body::empty());
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// Answers PutObject.
pub(crate) async fn put(
    bucket: &Bucket,
    key: &str,
    headers: &HeaderMap,
    body: Incoming,
    payload: Payload,
    counters: &Counters,
) -> Result<Response, S3Error> {
    let condition = write_condition(headers)?;
    bucket.check(key, &condition)?;
    let stored = stored_headers(headers)?;
    let writer = bucket.writer(expected_length(headers).unwrap_or(0))?;
    let received = receive(headers, body, payload, writer, OBJECT_LIMIT, counters).await?;
    let description = Description { etag: hex::encode(received.md5), modified: SystemTime::now(), headers: stored };
    let object = received.writer.object(key, description).map_err(|error| S3Error::io("cannot store", &error))?;
    let object = bucket.insert(key, object, &condition)?;
    Ok(etag_answer(object.etag()))
}

/// Answers DeleteObject; a key that is not there is no error.
pub(crate) fn delete(bucket: &Bucket, key: &str, headers: &HeaderMap) -> Result<Response, S3Error> {
    bucket.remove(key, &write_condition(headers)?)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// Answers DeleteObjects.
pub(crate) async fn delete_many(
    bucket: &Bucket,
    headers: &HeaderMap,
    body: Incoming,
    payload: Payload,
    counters: &Counters,
) -> Result<Response, S3Error> {
    let text = receive_text(headers, body, payload, counters).await?;
    let malformed = || S3Error::new(Code::MalformedXML, "the body is not a Delete document with 1 to 1000 keys");
    let root = parse(&text).filter(|root| root.name == "Delete").ok_or_else(malformed)?;
    let quiet = root.child_text("Quiet") == Some("true");
    let objects: Vec<_> = root.children.iter().filter(|child| child.name == "Object").collect();
    if objects.is_empty() || objects.len() > 1000 {
        return Err(malformed());
    }
    let mut xml = Xml::document();
    xml.open_root("DeleteResult");
    for object in objects {
        let key = object.child_text("Key").ok_or_else(malformed)?;
        let condition = Condition { matches: object.child_text("ETag").map(etags), absent: false };
        match bucket.remove(key, &condition) {
            Ok(_) if quiet => {}
            Ok(_) => {
                xml.open("Deleted");
                xml.text("Key", key);
                xml.close("Deleted");
            }
            Err(error) => {
                xml.open("Error");
                xml.text("Key", key);
                xml.text("Code", error.code());
                xml.text("Message", error.message());
                xml.close("Error");
            }
        }
    }
    xml.close("DeleteResult");
    Ok(answer(xml))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes=0-0", Some(Some((0, 1)))),
            ("bytes=2-", Some(Some((2, 8)))),
            ("bytes=-3", Some(Some((7, 3)))),
            ("bytes=-30", Some(Some((0, 10)))),
            ("bytes=5-500", Some(Some((5, 5)))),
            ("bytes=9-99999999999999999999999", Some(Some((9, 1)))),
            ("bytes=10-", None),
            ("bytes=10-11", None),
            ("bytes=-0", None),
            ("bytes=3-2", Some(None)),
            ("bytes=-", Some(None)),
            ("bytes=a-b", Some(None)),
            ("bytes=0-1,3-4", Some(None)),
            ("pages=0-1", Some(None)),
        ] {
            assert_eq!(range(text, 10).ok(), expected, "{text}");
        }
        assert!(range("bytes=0-", 0).is_err());
        assert_eq!(strict_range("bytes=0-9", 10).ok(), Some((0, 10)));
        for wrong in ["bytes=0-10", "bytes=5-4", "bytes=5-", "5-6"] {
            assert!(strict_range(wrong, 10).is_err(), "{wrong}");
        }
    }
}
