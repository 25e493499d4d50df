//! Changes objects: in one piece, in parts, by copies that the service makes, and removes them.
//!
//! What is repeated and why that is safe: a PUT writes the same bytes again; a part replaces the one of its number; a copy
//! is made again; what is gone is removed again without harm. Only the end of an upload in parts is different: when its
//! answer is lost the object may be there, and is recognised by the mark that the upload began with.

use super::{
    S3, Target,
    body::Payload,
    client::{Answer, Request, S3Client},
    errors::{Failure, Remedy, failure},
    list,
    read::{self, if_match},
    xml::parse_fault,
};
use crate::{
    object::writes::{Body, Condition, Found, KeyPage, Limits, ListedKey, Metadata, ObjectWrites, Part, Stored},
    observe::observe,
    retry::Attempts,
};
use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use common::{Error, ErrorKind, Result, UfsPath, Version, metrics::UfsOp};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, Method, StatusCode, header};
use md5::{Digest, Md5};
use serde::Deserialize;
use std::{fmt::Write, ops::Range, time::Duration};

/// The most bytes of an answer.
const ANSWER: usize = 1 << 20;
/// How long a service may take to put parts together or to copy, without a word.
const THINKING: Duration = Duration::from_secs(120);
/// How long it is asked why a body could not be sent.
const VERDICT: Duration = Duration::from_secs(10);
/// Keys that are removed by one request.
const TOGETHER: usize = 1000;
/// Requests of one call at the same time.
const PARALLEL: usize = 16;
/// Bytes of a part that is copied.
const COPY_PART: u64 = 512 << 20;
const LIMITS: Limits =
    Limits { part_min: 5 << 20, part_max: 5 << 30, parts: 10_000, object_max: 5 << 40, metadata_max: 2 << 10 };
/// The metadata by which a copy that was made in parts is recognised.
const COPIED: &str = "alluxio-copy";
/// Begins the headers that carry metadata.
const META: &str = "x-amz-meta-";

/// An answer that names an etag.
#[derive(Debug, Deserialize, Default)]
struct Etag {
    #[serde(rename = "ETag", default)]
    etag: String,
}

#[derive(Debug, Deserialize, Default)]
struct Begun {
    #[serde(rename = "UploadId", default)]
    id: String,
}

#[derive(Debug, Deserialize, Default)]
struct Deleted {
    #[serde(rename = "Error", default)]
    errors: Vec<Kept>,
}

#[derive(Debug, Deserialize)]
struct Kept {
    #[serde(rename = "Key", default)]
    key: String,
    #[serde(rename = "Code", default)]
    code: String,
    #[serde(rename = "Message", default)]
    message: String,
}

fn read_xml<T: for<'de> Deserialize<'de>>(what: &str, text: &str) -> Result<T> {
    quick_xml::de::from_str(text).map_err(|error| {
        Error::new(ErrorKind::Corrupt, format!("{what}: the answer is none of S3 ({error}); check the endpoint"))
    })
}

fn headers_of(metadata: &Metadata) -> Vec<(String, String)> {
    metadata.iter().map(|(name, value)| (format!("{META}{name}"), value.clone())).collect()
}

fn borrowed(headers: &[(String, String)]) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn metadata_of(headers: &HeaderMap) -> Metadata {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        let name = name.as_str().strip_prefix(META)?;
        Some((name.to_owned(), value.to_str().ok()?.to_owned()))
    };
    headers.iter().filter_map(pair).collect()
}

impl S3Client {
    fn long(&self, bytes: u64) -> Attempts {
        let mut options = self.options.clone();
        options.give_up = options.give_up.max(self.options.deadline * 3);
        Attempts::new(&options, bytes)
    }

    /// Makes a request whose answer is a document, again as long as that may help. An error in the guise of an answer
    /// counts as what it is.
    async fn document(
        &self,
        op: UfsOp,
        what: &str,
        request: &Request<'_>,
        attempts: &mut Attempts,
    ) -> Result<String, Failure> {
        loop {
            match self.document_once(op, what, request, attempts).await {
                Err(Failure { remedy: Remedy::Again, error }) => {
                    attempts.again(error).await.map_err(Failure::passing)?;
                }
                done => return done,
            }
        }
    }

    async fn document_once(
        &self,
        op: UfsOp,
        what: &str,
        request: &Request<'_>,
        attempts: &Attempts,
    ) -> Result<String, Failure> {
        let answer = self.send(op, what, request, attempts).await?;
        let text = answer.text(what, ANSWER).await.map_err(Failure::passing)?;
        match parse_fault(&text) {
            Some(fault) => Err(failure(what, StatusCode::INTERNAL_SERVER_ERROR, Some(&fault), None)),
            None => Ok(text),
        }
    }

    async fn found(&self, op: UfsOp, what: &str, key: &str) -> Result<Option<Found>> {
        let request = Request { method: Method::HEAD, key, ..Default::default() };
        let answer = match self.call(op, what, &request, &mut Attempts::new(&self.options, 0)).await {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = read::content_length(what, &answer.headers)?;
        let attr = read::attr_of(&answer.headers, size);
        let metadata = metadata_of(&answer.headers);
        Ok(Some(Found { version: attr.version, size, modified: attr.mtime, metadata }))
    }

    /// The version that an answer names, or that the object has.
    async fn stored(&self, op: UfsOp, what: &str, key: &str, etag: Option<&str>) -> Result<Stored> {
        match etag.map(str::trim).filter(|etag| !etag.is_empty()) {
            Some(etag) => Ok(Stored { version: read::version_of(Some(etag), 0, common::Timestamp::default()) }),
            None => match self.found(op, what, key).await? {
                Some(found) => Ok(Stored { version: found.version }),
                None => Err(Error::new(ErrorKind::Io, format!("{what}: what was stored is not there"))),
            },
        }
    }
}

fn etag_of(answer: &Answer) -> Option<String> {
    read::text(&answer.headers, header::ETAG).map(str::to_owned)
}

impl S3 {
    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} s3://{}/{key}", self.uri.authority())
    }

    /// What to say of a body that could not be sent. A service that turns a request down before it has taken the body closes
    /// the connection, and its answer is lost with it. The beginning of an upload needs the same permission and has no body,
    /// so it brings the answer.
    async fn verdict(&self, key: &str, error: Error) -> Error {
        if error.kind() != ErrorKind::Unavailable {
            return error;
        }
        match tokio::time::timeout(VERDICT, self.may_write(key)).await {
            Ok(Err(why)) if why.kind() != ErrorKind::Unavailable => why,
            _ => error,
        }
    }

    /// The place of a path that is to be written.
    fn writable(&self, path: &UfsPath) -> Result<Target> {
        if std::str::from_utf8(path.as_bytes()).is_err() {
            let why = "keys of S3 are UTF-8, this name is not";
            return Err(Error::new(ErrorKind::Os(libc::EILSEQ), format!("{}: {why}", self.shown(path))));
        }
        match self.target(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{}: no key is shown by this name; %{{ has a meaning there", self.shown(path)),
            )),
            Ok(Target::Long { .. }) => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{}: nothing can be made in the directory of a long name", self.shown(path)),
            )),
            target => target,
        }
    }

    async fn put_once(
        &self,
        what: &str,
        key: &str,
        body: &Body,
        metadata: &Metadata,
        condition: &Condition,
    ) -> Result<Stored> {
        let payload = Payload::new(what, body).await?;
        let meta = headers_of(metadata);
        let mut headers = borrowed(&meta);
        let tag = match condition {
            Condition::Version(version) => if_match(version),
            _ => None,
        };
        if *condition == Condition::Absent {
            headers.push(("if-none-match", "*"));
        }
        let request = Request {
            method: Method::PUT,
            key,
            if_match: tag.as_deref(),
            headers: &headers,
            body: Some(&payload),
            ..Default::default()
        };
        let mut attempts = self.client.long(body.len());
        let mut repeated = false;
        loop {
            let failed = match self.client.send(UfsOp::Put, what, &request, &attempts).await {
                Ok(answer) => {
                    let etag = etag_of(&answer);
                    // Taken to its end, so that the connection can be used again.
                    answer.text(what, ANSWER).await?;
                    return self.client.stored(UfsOp::Put, what, key, etag.as_deref()).await;
                }
                Err(failed) => failed,
            };
            let error = failed.error;
            if error.kind() == ErrorKind::Stale && *condition != Condition::Any {
                // The condition may fail because an earlier attempt succeeded.
                if let (true, Body::Bytes(bytes)) = (repeated, body)
                    && let Some(found) = self.client.found(UfsOp::Put, what, key).await?
                    && found.version.as_str() == hex::encode(Md5::digest(bytes))
                {
                    return Ok(Stored { version: found.version });
                }
                if *condition == Condition::Absent {
                    return Err(Error::new(ErrorKind::AlreadyExists, format!("{what}: the object exists")));
                }
                return Err(error);
            }
            if failed.remedy != Remedy::Again {
                return Err(error);
            }
            attempts.again(error).await?;
            repeated = true;
        }
    }

    async fn complete_once(
        &self,
        what: &str,
        key: &str,
        upload: &str,
        parts: &[Part],
        mark: (&str, &str),
    ) -> Result<Stored> {
        let mut xml = String::from("<CompleteMultipartUpload>");
        for part in parts {
            let etag = quick_xml::escape::escape(&part.etag);
            let _ = write!(xml, "<Part><PartNumber>{}</PartNumber><ETag>{etag}</ETag></Part>", part.number);
        }
        xml.push_str("</CompleteMultipartUpload>");
        let payload = Payload::new(what, &xml.into()).await?;
        let request = Request {
            method: Method::POST,
            key,
            query: &[("uploadId", upload)],
            body: Some(&payload),
            patience: THINKING,
            ..Default::default()
        };
        let mut attempts = self.client.long(payload.length()).thinking(THINKING);
        loop {
            let failed = match self.client.document_once(UfsOp::Multipart, what, &request, &attempts).await {
                Ok(text) => {
                    let etag: Etag = read_xml(what, &text)?;
                    return self.client.stored(UfsOp::Multipart, what, key, Some(&etag.etag)).await;
                }
                Err(failed) => failed,
            };
            let doubtful = failed.remedy == Remedy::Again || failed.error.kind() == ErrorKind::NotFound;
            if doubtful
                && let Ok(Some(found)) = self.client.found(UfsOp::Multipart, what, key).await
                && found.metadata.get(mark.0).is_some_and(|value| value == mark.1)
            {
                tracing::info!("{what}: done, although the answer was: {}", failed.error);
                return Ok(Stored { version: found.version });
            }
            if failed.remedy != Remedy::Again {
                return Err(failed.error);
            }
            attempts.again(failed.error).await?;
        }
    }

    async fn copy_whole(&self, what: &str, from: &str, version: &Version, to: &str) -> Result<Stored> {
        let source = self.client.copy_source(from);
        let tag = if_match(version);
        let mut headers = vec![("x-amz-copy-source", source.as_str())];
        headers.extend(tag.as_deref().map(|tag| ("x-amz-copy-source-if-match", tag)));
        let request =
            Request { method: Method::PUT, key: to, headers: &headers, patience: THINKING, ..Default::default() };
        let mut attempts = self.client.long(0).thinking(THINKING);
        let text = self.client.document(UfsOp::Copy, what, &request, &mut attempts).await;
        let etag: Etag = read_xml(what, &text.map_err(|failed| failed.error)?)?;
        self.client.stored(UfsOp::Copy, what, to, Some(&etag.etag)).await
    }

    async fn copy_in_parts(&self, what: &str, from: &str, version: &Version, size: u64, to: &str) -> Result<Stored> {
        let found = self
            .client
            .found(UfsOp::Copy, what, from)
            .await?
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{what}: there is no such object")))?;
        let mut metadata = found.metadata;
        let mark = format!("{:032x}", rand::random::<u128>());
        // The mark of its own upload, if it has one, says still whose bytes these are.
        metadata.insert(COPIED.to_owned(), mark.clone());
        let upload = self.begin(to, &metadata).await?;
        let step = COPY_PART.max(size.div_ceil(u64::from(LIMITS.parts)));
        let numbers = (0..size.div_ceil(step)).map(|at| {
            let upload = upload.as_str();
            async move {
                let range = at * step..((at + 1) * step).min(size);
                let number = u32::try_from(at + 1).unwrap_or(u32::MAX);
                self.part_copy(to, upload, number, (from, version), range).await
            }
        });
        let parts: Result<Vec<Part>> = stream::iter(numbers).buffered(PARALLEL).try_collect().await;
        let done = match parts {
            Ok(parts) => self.complete(to, &upload, &parts, (COPIED, &mark)).await,
            Err(error) => Err(error),
        };
        if done.is_err()
            && let Err(error) = self.abort(to, &upload).await
        {
            tracing::warn!("{what}: parts are left behind: {error}");
        }
        done
    }

    async fn delete_together(&self, keys: &[&String]) -> Result<()> {
        let what = self.what("delete", keys.first().map_or("", |key| key.as_str()));
        let mut xml = String::from("<Delete><Quiet>true</Quiet>");
        for key in keys {
            let _ = write!(xml, "<Object><Key>{}</Key></Object>", quick_xml::escape::escape(key.as_str()));
        }
        xml.push_str("</Delete>");
        let md5 = STANDARD.encode(Md5::digest(xml.as_bytes()));
        let payload = Payload::new(&what, &xml.into()).await?;
        let request = Request {
            method: Method::POST,
            query: &[("delete", "")],
            headers: &[("content-md5", md5.as_str())],
            body: Some(&payload),
            patience: THINKING,
            ..Default::default()
        };
        let mut attempts = self.client.long(payload.length()).thinking(THINKING);
        loop {
            let text = self.client.document(UfsOp::Delete, &what, &request, &mut attempts).await;
            let kept: Deleted = read_xml(&what, &text.map_err(|failed| failed.error)?)?;
            let Some(first) = kept.errors.iter().find(|kept| kept.code != "NoSuchKey") else { return Ok(()) };
            let fault = super::xml::Fault { code: first.code.clone(), message: first.message.clone(), region: None };
            let what = self.what("delete", &first.key);
            let failed = failure(&what, StatusCode::INTERNAL_SERVER_ERROR, Some(&fault), None);
            if failed.remedy != Remedy::Again {
                return Err(failed.error);
            }
            attempts.again(failed.error).await?;
        }
    }
}

#[async_trait]
impl ObjectWrites for S3 {
    fn identity(&self) -> String {
        format!("{} at {}", self.uri, self.host)
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn key(&self, path: &UfsPath) -> Result<String> {
        match self.writable(path)? {
            Target::Either(key) | Target::File(key) => Ok(key),
            _ => Err(Error::new(ErrorKind::IsADirectory, format!("{}: is a directory", self.shown(path)))),
        }
    }

    fn prefix(&self, path: &UfsPath) -> Result<String> {
        let prefix = match self.writable(path)? {
            Target::Root => self.prefix.clone(),
            Target::Directory(prefix) => prefix,
            Target::Either(key) => format!("{key}/"),
            _ => return Err(Error::new(ErrorKind::NotADirectory, format!("{}: is a file", self.shown(path)))),
        };
        if prefix.len() > super::KEY_MAX {
            let why = format!("{} bytes; keys of S3 have {} at most", prefix.len(), super::KEY_MAX);
            return Err(Error::new(ErrorKind::NameTooLong, format!("{}: {why}", self.shown(path))));
        }
        Ok(prefix)
    }

    async fn find(&self, key: &str) -> Result<Option<Found>> {
        observe(UfsOp::Stat, self.client.found(UfsOp::Stat, &self.what("stat", key), key)).await
    }

    async fn get(&self, key: &str, most: u32) -> Result<Option<(Bytes, Version)>> {
        let what = self.what("read", key);
        let head = observe(UfsOp::StatAndRead, read::first_bytes(&self.client, &what, key, most)).await;
        match head {
            Ok(head) if head.attr.size > u64::from(most) => {
                let why = format!("{} bytes; {most} at most were expected", head.attr.size);
                Err(Error::new(ErrorKind::TooLarge, format!("{what}: {why}")))
            }
            Ok(head) => Ok(Some((head.bytes, head.attr.version))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn put(&self, key: &str, body: &Body, metadata: &Metadata, condition: &Condition) -> Result<Stored> {
        let what = self.what("write", key);
        match observe(UfsOp::Put, self.put_once(&what, key, body, metadata, condition)).await {
            Err(error) => Err(self.verdict(key, error).await),
            done => done,
        }
    }

    async fn may_write(&self, key: &str) -> Result<()> {
        let upload = self.begin(key, &Metadata::new()).await?;
        if let Err(error) = self.abort(key, &upload).await {
            tracing::debug!("{key}: an upload without parts is left behind: {error}");
        }
        Ok(())
    }

    async fn begin(&self, key: &str, metadata: &Metadata) -> Result<String> {
        let what = self.what("write", key);
        let headers = headers_of(metadata);
        let payload = Payload::new(&what, &Bytes::new().into()).await?;
        let request = Request {
            method: Method::POST,
            key,
            query: &[("uploads", "")],
            headers: &borrowed(&headers),
            body: Some(&payload),
            ..Default::default()
        };
        let mut attempts = self.client.long(0);
        let text = observe(UfsOp::Multipart, async {
            let text = self.client.document(UfsOp::Multipart, &what, &request, &mut attempts).await;
            text.map_err(|failed| failed.error)
        });
        let begun: Begun = read_xml(&what, &text.await?)?;
        if begun.id.is_empty() {
            return Err(Error::new(ErrorKind::Corrupt, format!("{what}: the service names no upload")));
        }
        Ok(begun.id)
    }

    async fn part(&self, key: &str, upload: &str, number: u32, body: &Body) -> Result<Part> {
        let what = format!("{}, part {number}", self.what("write", key));
        let payload = Payload::new(&what, body).await?;
        let shown = number.to_string();
        let request = Request {
            method: Method::PUT,
            key,
            query: &[("partNumber", shown.as_str()), ("uploadId", upload)],
            body: Some(&payload),
            ..Default::default()
        };
        let sent = observe(UfsOp::Upload, async {
            let mut attempts = self.client.long(body.len());
            let answer = self.client.call(UfsOp::Upload, &what, &request, &mut attempts).await?;
            let etag = etag_of(&answer).ok_or_else(|| {
                Error::new(ErrorKind::Corrupt, format!("{what}: the service names no etag; check the endpoint"))
            })?;
            answer.text(&what, ANSWER).await?;
            Ok(Part { number, etag })
        });
        match sent.await {
            Err(error) => Err(self.verdict(key, error).await),
            done => done,
        }
    }

    async fn part_copy(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        (from, version): (&str, &Version),
        range: Range<u64>,
    ) -> Result<Part> {
        let what = format!("{}, part {number}", self.what("copy to", key));
        let (source, tag) = (self.client.copy_source(from), if_match(version));
        let shown = (number.to_string(), format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        let mut headers = vec![("x-amz-copy-source", source.as_str())];
        headers.extend(tag.as_deref().map(|tag| ("x-amz-copy-source-if-match", tag)));
        headers.push(("x-amz-copy-source-range", &shown.1));
        let request = Request {
            method: Method::PUT,
            key,
            query: &[("partNumber", shown.0.as_str()), ("uploadId", upload)],
            headers: &headers,
            patience: THINKING,
            ..Default::default()
        };
        observe(UfsOp::Copy, async {
            let mut attempts = self.client.long(0).thinking(THINKING);
            let text = self.client.document(UfsOp::Copy, &what, &request, &mut attempts).await;
            let etag: Etag = read_xml(&what, &text.map_err(|failed| failed.error)?)?;
            Ok(Part { number, etag: etag.etag })
        })
        .await
    }

    async fn complete(&self, key: &str, upload: &str, parts: &[Part], mark: (&str, &str)) -> Result<Stored> {
        let what = self.what("write", key);
        observe(UfsOp::Multipart, self.complete_once(&what, key, upload, parts, mark)).await
    }

    async fn abort(&self, key: &str, upload: &str) -> Result<()> {
        let what = self.what("give up", key);
        let request = Request { method: Method::DELETE, key, query: &[("uploadId", upload)], ..Default::default() };
        let mut attempts = Attempts::new(&self.client.options, 0);
        observe(UfsOp::Multipart, async {
            match self.client.call(UfsOp::Multipart, &what, &request, &mut attempts).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn copy(&self, from: &str, version: &Version, size: u64, to: &str) -> Result<Stored> {
        let what = self.what("copy", from);
        observe(UfsOp::Copy, async {
            if size > LIMITS.part_max {
                self.copy_in_parts(&what, from, version, size, to).await
            } else {
                self.copy_whole(&what, from, version, to).await
            }
        })
        .await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let what = self.what("delete", key);
        let request = Request { method: Method::DELETE, key, ..Default::default() };
        let mut attempts = self.client.long(0);
        observe(UfsOp::Delete, async {
            match self.client.call(UfsOp::Delete, &what, &request, &mut attempts).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound && !error.message().contains("NoSuchBucket") => {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn delete_version(&self, key: &str, version: &Version) -> Result<()> {
        let what = self.what("delete", key);
        let changed = || Error::new(ErrorKind::Stale, format!("{what}: the object changed meanwhile"));
        observe(UfsOp::Delete, async {
            match self.client.found(UfsOp::Delete, &what, key).await? {
                None => return Ok(()),
                Some(found) if found.version != *version => return Err(changed()),
                Some(_) => {}
            }
            let tag = if_match(version);
            let request = Request { method: Method::DELETE, key, if_match: tag.as_deref(), ..Default::default() };
            match self.client.call(UfsOp::Delete, &what, &request, &mut self.client.long(0)).await {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                // Some services know no condition here.
                Err(error) if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::InvalidArgument) => {
                    let request = Request { method: Method::DELETE, key, ..Default::default() };
                    self.client.call(UfsOp::Delete, &what, &request, &mut self.client.long(0)).await.map(drop)
                }
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn delete_all(&self, keys: &[String]) -> Result<()> {
        // XML 1.0 has no way to write control characters.
        let (odd, plain): (Vec<&String>, Vec<&String>) = keys.iter().partition(|key| key.contains(char::is_control));
        let mut alone: Vec<String> = odd.into_iter().cloned().collect();
        for together in plain.chunks(TOGETHER) {
            if together.len() < 3 {
                alone.extend(together.iter().map(|key| (*key).clone()));
                continue;
            }
            match observe(UfsOp::Delete, self.delete_together(together)).await {
                // Some services know only one at a time.
                Err(error) if error.kind() == ErrorKind::Unsupported => {
                    alone.extend(together.iter().map(|key| (*key).clone()));
                }
                done => done?,
            }
        }
        let alone = alone.into_iter().map(|key| async move { self.delete(&key).await });
        stream::iter(alone).buffer_unordered(PARALLEL).try_collect().await
    }

    async fn keys(&self, prefix: &str, token: Option<&str>, most: u32) -> Result<KeyPage> {
        let what = self.what("list", prefix);
        let most = most.clamp(1, 1000).to_string();
        let mut query = Vec::with_capacity(5);
        if let Some(token) = token {
            query.push(("continuation-token", token));
        }
        query.extend([("encoding-type", "url"), ("list-type", "2"), ("max-keys", most.as_str()), ("prefix", prefix)]);
        let attempts = Attempts::new(&self.client.options, 0);
        let page = observe(UfsOp::List, list::fetch(&self.client, UfsOp::List, &what, &query, attempts)).await?;
        let keys = page.objects.into_iter().map(|object| {
            let modified = super::xml::parse_time(&object.modified).unwrap_or_default();
            let version = read::version_of(Some(&object.etag), object.size, modified);
            ListedKey { key: object.key, size: object.size, version, modified }
        });
        let keys = keys.collect();
        let next = page.next.filter(|next| page.truncated && !next.is_empty());
        Ok(KeyPage { keys, next })
    }
}
