//! Receiving the body of a request, with every check that its headers ask for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::auth::{Hash, Payload};
use crate::chunked::ChunkDecoder;
use crate::counters::Counters;
use crate::error::{Code, S3Error};
use crate::request::header;
use crate::storage::Writer;

/// The largest object that can be put in one piece, and the largest part.
pub(crate) const OBJECT_LIMIT: u64 = 5 << 30;
/// The largest XML document.
const DOCUMENT_LIMIT: u64 = 4 << 20;

/// A body that was received.
pub(crate) struct Received {
    pub(crate) writer: Writer,
    pub(crate) size: u64,
    pub(crate) md5: [u8; 16],
}

/// The length of the object that a request brings, if its headers tell.
pub(crate) fn expected_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, "x-amz-decoded-content-length").or_else(|| header(headers, "content-length"))?.parse().ok()
}

struct Sink {
    writer: Writer,
    size: u64,
    limit: u64,
    md5: Md5,
    sha256: Option<Sha256>,
}

impl Sink {
    fn take(&mut self, bytes: &[u8]) -> Result<(), S3Error> {
        self.size += bytes.len() as u64;
        if self.size > self.limit {
            return Err(too_large(self.limit));
        }
        self.md5.update(bytes);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        self.writer.write(bytes).map_err(|error| S3Error::io("cannot store", &error))
    }
}

fn too_large(limit: u64) -> S3Error {
    S3Error::new(Code::EntityTooLarge, format!("the body is larger than {limit} bytes"))
}

/// Reads a body into a writer.
pub(crate) async fn receive(
    headers: &HeaderMap,
    mut body: Incoming,
    payload: Payload,
    writer: Writer,
    limit: u64,
    counters: &Counters,
) -> Result<Received, S3Error> {
    let expected = expected_length(headers);
    if expected.is_some_and(|expected| expected > limit) {
        return Err(too_large(limit));
    }
    let content_md5 = match header(headers, "content-md5") {
        None => None,
        Some(text) => Some(
            STANDARD
                .decode(text)
                .ok()
                .filter(|md5| md5.len() == 16)
                .ok_or_else(|| S3Error::new(Code::InvalidDigest, "Content-MD5 is not valid"))?,
        ),
    };
    let (hash, mut decoder) = match payload {
        Payload::Plain => (None, None),
        Payload::Hashed(hash) => (Some(hash), None),
        Payload::Chunked(signer) => (None, Some(ChunkDecoder::new(signer))),
    };
    let mut sink = Sink { writer, size: 0, limit, md5: Md5::new(), sha256: hash.map(|_| Sha256::new()) };
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| S3Error::new(Code::IncompleteBody, format!("the body broke off: {error}")))?;
        let Ok(bytes) = frame.into_data() else { continue };
        counters.add_received(bytes.len() as u64);
        match &mut decoder {
            Some(decoder) => decoder.feed(&bytes, |bytes| sink.take(bytes))?,
            None => sink.take(&bytes)?,
        }
    }
    if let Some(decoder) = &decoder {
        decoder.finish()?;
        if expected
            .is_some_and(|expected| headers.contains_key("x-amz-decoded-content-length") && expected != sink.size)
        {
            return Err(S3Error::new(
                Code::IncompleteBody,
                "the body has not the length that x-amz-decoded-content-length says",
            ));
        }
    }
    let md5: [u8; 16] = sink.md5.finalize().into();
    if content_md5.is_some_and(|expected| expected != md5) {
        return Err(S3Error::new(Code::BadDigest, "the body does not have the MD5 of the header Content-MD5"));
    }
    if let (Some(expected), Some(sha256)) = (hash, sink.sha256) {
        let actual: Hash = sha256.finalize().into();
        if actual != expected {
            return Err(S3Error::new(
                Code::XAmzContentSHA256Mismatch,
                "the body does not have the hash of x-amz-content-sha256",
            ));
        }
    }
    Ok(Received { writer: sink.writer, size: sink.size, md5 })
}

/// Reads a body that is an XML document.
pub(crate) async fn receive_text(
    headers: &HeaderMap,
    body: Incoming,
    payload: Payload,
    counters: &Counters,
) -> Result<String, S3Error> {
    let received = receive(headers, body, payload, Writer::Memory(Vec::new()), DOCUMENT_LIMIT, counters).await?;
    String::from_utf8(received.writer.into_memory())
        .map_err(|_| S3Error::new(Code::MalformedXML, "the body is not UTF-8"))
}
