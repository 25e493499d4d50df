//! Uploads in parts.
//!
//! A part's bytes wait in memory or in a file that goes away with it; completing an upload copies them, in order, into a new object.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Incoming;
use md5::{Digest as _, Md5};
use parking_lot::Mutex;

use crate::auth::Payload;
use crate::body::{Body, Response};
use crate::bucket::{Bucket, Buckets};
use crate::copy::{copy_range, result, source};
use crate::counters::Counters;
use crate::dates::iso;
use crate::error::{Code, S3Error};
use crate::list::{answer, invalid, owner_element};
use crate::object::{etag_answer, stored_headers, strict_range, write_condition};
use crate::request::{Target, header};
use crate::storage::{Content, Description};
use crate::upload::{OBJECT_LIMIT, expected_length, receive, receive_text};
use crate::xml::{Writer as Xml, parse};

/// Numbers of parts go from 1 to this.
const PARTS: u32 = 10_000;

#[derive(Clone)]
struct Part {
    content: Content,
    size: u64,
    md5: [u8; 16],
    modified: SystemTime,
}

struct Upload {
    bucket: String,
    key: String,
    started: SystemTime,
    headers: Vec<(HeaderName, HeaderValue)>,
    parts: Mutex<BTreeMap<u32, Part>>,
}

/// The uploads that are not completed.
pub(crate) struct Uploads {
    uploads: Mutex<BTreeMap<String, Arc<Upload>>>,
    next: AtomicU64,
    /// The least size of a part that is not the last.
    least: u64,
}

impl Uploads {
    pub(crate) fn new(least: u64) -> Self {
        Uploads { uploads: Mutex::default(), next: AtomicU64::new(1), least }
    }

    /// How many uploads are not completed.
    pub(crate) fn count(&self) -> usize {
        self.uploads.lock().len()
    }

    fn find(&self, target: &Target) -> Result<(String, Arc<Upload>), S3Error> {
        let id = target.query("uploadId").unwrap_or_default();
        let upload = self.uploads.lock().get(id).cloned();
        upload
            .filter(|upload| upload.bucket == target.bucket && upload.key == target.key)
            .map(|upload| (id.to_owned(), upload))
            .ok_or_else(|| S3Error::new(Code::NoSuchUpload, "the upload does not exist").element("UploadId", id))
    }

    /// Answers CreateMultipartUpload.
    pub(crate) fn create(&self, target: &Target, headers: &HeaderMap) -> Result<Response, S3Error> {
        let upload = Upload {
            bucket: target.bucket.clone(),
            key: target.key.clone(),
            started: SystemTime::now(),
            headers: stored_headers(headers)?,
            parts: Mutex::default(),
        };
        let id = format!("upload-{:08x}", self.next.fetch_add(1, Ordering::Relaxed));
        self.uploads.lock().insert(id.clone(), Arc::new(upload));
        let mut xml = Xml::document();
        xml.open_root("InitiateMultipartUploadResult");
        xml.text("Bucket", &target.bucket);
        xml.text("Key", &target.key);
        xml.text("UploadId", &id);
        xml.close("InitiateMultipartUploadResult");
        Ok(answer(xml))
    }

    /// Answers UploadPart.
    pub(crate) async fn part(
        &self,
        bucket: &Bucket,
        target: &Target,
        headers: &HeaderMap,
        body: Incoming,
        payload: Payload,
        counters: &Counters,
    ) -> Result<Response, S3Error> {
        let (_, upload) = self.find(target)?;
        let number = part_number(target)?;
        let writer = bucket.writer(expected_length(headers).unwrap_or(0))?;
        let received = receive(headers, body, payload, writer, OBJECT_LIMIT, counters).await?;
        let content = received.writer.part().map_err(|error| S3Error::io("cannot store", &error))?;
        let part = Part { content, size: received.size, md5: received.md5, modified: SystemTime::now() };
        upload.parts.lock().insert(number, part);
        Ok(etag_answer(&hex::encode(received.md5)))
    }

    /// Answers UploadPartCopy.
    pub(crate) fn part_copy(
        &self,
        buckets: &Buckets,
        bucket: &Bucket,
        target: &Target,
        headers: &HeaderMap,
    ) -> Result<Response, S3Error> {
        let (_, upload) = self.find(target)?;
        let number = part_number(target)?;
        let source = source(buckets, headers)?;
        let (offset, length) = match header(headers, "x-amz-copy-source-range") {
            Some(text) => strict_range(text, source.size())?,
            None => (0, source.size()),
        };
        if length > OBJECT_LIMIT {
            return Err(S3Error::new(Code::EntityTooLarge, "the range is too large for one part"));
        }
        let mut writer = bucket.writer(length)?;
        let md5 = copy_range(&source.content, offset, length, &mut writer)?;
        let content = writer.part().map_err(|error| S3Error::io("cannot store", &error))?;
        let modified = SystemTime::now();
        upload.parts.lock().insert(number, Part { content, size: length, md5, modified });
        Ok(result("CopyPartResult", &hex::encode(md5), modified))
    }

    /// Answers CompleteMultipartUpload.
    pub(crate) async fn complete(
        &self,
        bucket: &Bucket,
        target: &Target,
        headers: &HeaderMap,
        body: Incoming,
        payload: Payload,
        counters: &Counters,
    ) -> Result<Response, S3Error> {
        let (id, upload) = self.find(target)?;
        let condition = write_condition(headers)?;
        bucket.check(&target.key, &condition)?;
        let text = receive_text(headers, body, payload, counters).await?;
        let parts = self.chosen(&upload, &text)?;
        let mut writer = bucket.writer(parts.iter().map(|part| part.size).sum())?;
        let mut md5 = Md5::new();
        for part in &parts {
            copy_range(&part.content, 0, part.size, &mut writer)?;
            md5.update(part.md5);
        }
        let etag = format!("{}-{}", hex::encode(md5.finalize()), parts.len());
        let description = Description { etag, modified: SystemTime::now(), headers: upload.headers.clone() };
        let object = writer.object(&target.key, description).map_err(|error| S3Error::io("cannot store", &error))?;
        let object = bucket.insert(&target.key, object, &condition)?;
        self.uploads.lock().remove(&id);
        let mut xml = Xml::document();
        xml.open_root("CompleteMultipartUploadResult");
        xml.text("Location", &format!("/{}/{}", target.bucket, target.key));
        xml.text("Bucket", &target.bucket);
        xml.text("Key", &target.key);
        xml.text("ETag", &format!("\"{}\"", object.etag()));
        xml.close("CompleteMultipartUploadResult");
        Ok(answer(xml))
    }

    /// The parts that a CompleteMultipartUpload document names, in order.
    fn chosen(&self, upload: &Upload, text: &str) -> Result<Vec<Part>, S3Error> {
        let malformed =
            || S3Error::new(Code::MalformedXML, "the body is not a CompleteMultipartUpload document with parts");
        let root = parse(text).filter(|root| root.name == "CompleteMultipartUpload").ok_or_else(malformed)?;
        let known = upload.parts.lock();
        let mut chosen: Vec<Part> = Vec::new();
        let mut last = 0;
        for element in root.children.iter().filter(|child| child.name == "Part") {
            let number: u32 =
                element.child_text("PartNumber").and_then(|text| text.trim().parse().ok()).ok_or_else(malformed)?;
            let etag = element.child_text("ETag").ok_or_else(malformed)?.trim().trim_matches('"');
            if number <= last {
                return Err(S3Error::new(Code::InvalidPartOrder, "the numbers of the parts do not ascend"));
            }
            last = number;
            let part = known.get(&number).filter(|part| hex::encode(part.md5) == etag).ok_or_else(|| {
                S3Error::new(Code::InvalidPart, "a part does not exist or has another etag")
                    .element("PartNumber", number.to_string())
            })?;
            chosen.push(part.clone());
        }
        let Some((_, all_but_last)) = chosen.split_last() else { return Err(malformed()) };
        if let Some(small) = all_but_last.iter().find(|part| part.size < self.least) {
            return Err(S3Error::new(Code::EntityTooSmall, "a part that is not the last is too small")
                .element("ProposedSize", small.size.to_string())
                .element("MinSizeAllowed", self.least.to_string()));
        }
        Ok(chosen)
    }

    /// Answers AbortMultipartUpload.
    pub(crate) fn abort(&self, target: &Target) -> Result<Response, S3Error> {
        let (id, _) = self.find(target)?;
        self.uploads.lock().remove(&id);
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        Ok(response)
    }

    /// Answers ListParts.
    pub(crate) fn list_parts(&self, target: &Target) -> Result<Response, S3Error> {
        let (id, upload) = self.find(target)?;
        let number = |name: &str, default: u32| match target.query(name) {
            None | Some("") => Ok(default),
            Some(text) => text.parse().map_err(|_| invalid(name, text)),
        };
        let (after, limit) = (number("part-number-marker", 0)?, number("max-parts", 1000)?.min(1000));
        let parts = upload.parts.lock();
        let listed: Vec<(&u32, &Part)> = parts.range(after.saturating_add(1)..).take(limit as usize).collect();
        let last = listed.last().map_or(after, |(number, _)| **number);
        let truncated = limit > 0 && parts.range(last.saturating_add(1)..).next().is_some();
        let mut xml = Xml::document();
        xml.open_root("ListPartsResult");
        xml.text("Bucket", &target.bucket);
        xml.text("Key", &target.key);
        xml.text("UploadId", &id);
        owner_element(&mut xml, "Initiator");
        owner_element(&mut xml, "Owner");
        xml.text("StorageClass", "STANDARD");
        xml.number("PartNumberMarker", after.into());
        xml.number("NextPartNumberMarker", last.into());
        xml.number("MaxParts", limit.into());
        xml.text("IsTruncated", if truncated { "true" } else { "false" });
        for (number, part) in listed {
            xml.open("Part");
            xml.number("PartNumber", (*number).into());
            xml.text("LastModified", &iso(part.modified));
            xml.text("ETag", &format!("\"{}\"", hex::encode(part.md5)));
            xml.number("Size", part.size);
            xml.close("Part");
        }
        xml.close("ListPartsResult");
        Ok(answer(xml))
    }

    /// Answers ListMultipartUploads: all uploads under a prefix on one page.
    pub(crate) fn list(&self, target: &Target) -> Result<Response, S3Error> {
        let prefix = target.query("prefix").unwrap_or_default();
        let mut found: Vec<(String, Arc<Upload>)> = self
            .uploads
            .lock()
            .iter()
            .filter(|(_, upload)| upload.bucket == target.bucket && upload.key.starts_with(prefix))
            .map(|(id, upload)| (id.clone(), upload.clone()))
            .collect();
        found.sort_by(|a, b| (&a.1.key, &a.0).cmp(&(&b.1.key, &b.0)));
        let mut xml = Xml::document();
        xml.open_root("ListMultipartUploadsResult");
        xml.text("Bucket", &target.bucket);
        xml.text("KeyMarker", "");
        xml.text("UploadIdMarker", "");
        xml.text("Prefix", prefix);
        xml.number("MaxUploads", found.len().max(1000) as u64);
        xml.text("IsTruncated", "false");
        for (id, upload) in found {
            xml.open("Upload");
            xml.text("Key", &upload.key);
            xml.text("UploadId", &id);
            owner_element(&mut xml, "Initiator");
            owner_element(&mut xml, "Owner");
            xml.text("StorageClass", "STANDARD");
            xml.text("Initiated", &iso(upload.started));
            xml.close("Upload");
        }
        xml.close("ListMultipartUploadsResult");
        Ok(answer(xml))
    }
}

fn part_number(target: &Target) -> Result<u32, S3Error> {
    let text = target.query("partNumber").unwrap_or_default();
    text.parse().ok().filter(|number| (1..=PARTS).contains(number)).ok_or_else(|| invalid("partNumber", text))
}
