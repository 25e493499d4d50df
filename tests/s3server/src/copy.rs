//! CopyObject, and the source that it shares with UploadPartCopy.

use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderMap;
use md5::{Digest as _, Md5};

use crate::body::Response;
use crate::bucket::{Bucket, Buckets};
use crate::dates::iso;
use crate::encoding::decode;
use crate::error::{Code, S3Error};
use crate::list::{answer, invalid};
use crate::object::{read_condition, stored_headers, write_condition};
use crate::request::header;
use crate::storage::{Content, Description, Object, Writer};
use crate::upload::OBJECT_LIMIT;
use crate::xml::Writer as Xml;

/// The object that x-amz-copy-source names, if its conditions hold.
pub(crate) fn source(buckets: &Buckets, headers: &HeaderMap) -> Result<Arc<Object>, S3Error> {
    let name = header(headers, "x-amz-copy-source").unwrap_or_default();
    let wrong = || invalid("x-amz-copy-source", name);
    let path = decode(name.split_once("?versionId=").map_or(name, |(path, _)| path)).ok_or_else(wrong)?;
    let (bucket, key) = path.strip_prefix('/').unwrap_or(&path).split_once('/').ok_or_else(wrong)?;
    let object = buckets.find(bucket)?.find(key)?;
    read_condition(headers, "x-amz-copy-source-", object.etag(), object.modified())?;
    Ok(object)
}

/// Writes a range of an object somewhere else and returns the MD5 of it.
pub(crate) fn copy_range(
    content: &Content,
    offset: u64,
    length: u64,
    writer: &mut Writer,
) -> Result<[u8; 16], S3Error> {
    let mut md5 = Md5::new();
    let copied = tokio::task::block_in_place(|| {
        content.each_piece(offset, length, |piece| {
            md5.update(piece);
            writer.write(piece)
        })
    });
    copied.map_err(|error| S3Error::io("cannot copy", &error))?;
    Ok(md5.finalize().into())
}

/// A document that tells the etag and time of a copy.
pub(crate) fn result(root: &str, etag: &str, modified: SystemTime) -> Response {
    let mut xml = Xml::document();
    xml.open_root(root);
    xml.text("ETag", &format!("\"{etag}\""));
    xml.text("LastModified", &iso(modified));
    xml.close(root);
    answer(xml)
}

/// Answers CopyObject.
pub(crate) fn copy(buckets: &Buckets, bucket: &Bucket, key: &str, headers: &HeaderMap) -> Result<Response, S3Error> {
    let source = source(buckets, headers)?;
    if source.size() > OBJECT_LIMIT {
        return Err(S3Error::new(Code::InvalidRequest, "the source is too large for one copy; copy it in parts"));
    }
    let stored = match header(headers, "x-amz-metadata-directive") {
        None | Some("COPY") => source.description.headers.clone(),
        Some("REPLACE") => stored_headers(headers)?,
        Some(other) => return Err(invalid("x-amz-metadata-directive", other)),
    };
    let mut writer = bucket.writer(source.size())?;
    let md5 = copy_range(&source.content, 0, source.size(), &mut writer)?;
    let description = Description { etag: hex::encode(md5), modified: SystemTime::now(), headers: stored };
    let object = writer.object(key, description).map_err(|error| S3Error::io("cannot store", &error))?;
    let object = bucket.insert(key, object, &write_condition(headers)?)?;
    Ok(result("CopyObjectResult", object.etag(), object.modified()))
}
