//! What stands between OpenDAL and the network: it judges answers that OpenDAL takes as they come, and repeats the
//! requests of a listing, which OpenDAL ends at the first failure.
//!
//! An answer to a request for a range is passed on only when it begins at the byte that was asked for: a service that
//! does not know ranges sends the whole file, whose first bytes would otherwise be taken for those of the range.

use crate::{options::UfsOptions, retry::Attempts};
use common::{ErrorKind, metrics::metrics};
use futures::stream;
use http::{Request, Response, StatusCode, header};
use opendal::{Buffer, Error, HttpBody, HttpTransport, raw::Operation};
use opendal_http_transport_reqwest::ReqwestTransport;

/// A client with judgement.
pub struct Transport {
    inner: ReqwestTransport,
    options: UfsOptions,
}

impl Transport {
    /// Wraps `client`; the bounds on attempts and time are those of `options`.
    pub fn new(client: reqwest::Client, options: &UfsOptions) -> Self {
        Self { inner: ReqwestTransport::new(client), options: options.clone() }
    }

    /// One page of a listing, whole.
    async fn page(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let (parts, mut body) = self.inner.fetch(request).await?.into_parts();
        let buffer = body.to_buffer().await?;
        let size = buffer.len() as u64;
        Ok(Response::from_parts(parts, HttpBody::new(stream::iter([Ok(buffer)]), Some(size))))
    }

    async fn listing(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let mut attempts = Attempts::new(&self.options, 0);
        loop {
            let wait = attempts.left().min(self.options.deadline);
            let done = match tokio::time::timeout(wait, self.page(request.clone())).await {
                Ok(done) => done,
                Err(_) => Err(temporary(format!("no answer within {wait:?}"))),
            };
            let why = match &done {
                Ok(answer) if passes(answer.status()) => answer.status().to_string(),
                Err(error) if error.is_temporary() => error.message().to_owned(),
                _ => return done,
            };
            let failure = common::Error::new(ErrorKind::Unavailable, format!("a page of a listing: {why}"));
            if attempts.again(failure).await.is_err() {
                return done;
            }
            metrics().ufs_requests.of(common::metrics::UfsOp::List).inc();
        }
    }
}

fn temporary(message: String) -> Error {
    Error::new(opendal::ErrorKind::Unexpected, message).set_temporary()
}

/// Whether the same request may be answered otherwise soon.
fn passes(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// The first byte that a request asks for; none when it asks for everything.
fn first_byte(request: &Request<Buffer>) -> Option<u64> {
    let range = request.headers().get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    range.split_once('-')?.0.parse().ok()
}

/// Whether the answer begins with the byte `first`.
fn begins_with(answer: &Response<HttpBody>, first: u64) -> bool {
    match answer.status() {
        StatusCode::OK => first == 0,
        StatusCode::PARTIAL_CONTENT => {
            let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let begin = range.and_then(|range| range.trim().strip_prefix("bytes ")?.split_once('-'));
            begin.and_then(|(begin, _)| begin.parse().ok()) == Some(first)
        }
        // No bytes of the file at all.
        _ => true,
    }
}

impl HttpTransport for Transport {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let query = request.uri().query().unwrap_or_default();
        if request.extensions().get() == Some(&Operation::List) || query.contains("op=LISTSTATUS") {
            return self.listing(request).await;
        }
        let first = first_byte(&request);
        let answer = self.inner.fetch(request).await?;
        match first {
            Some(first) if !begins_with(&answer, first) => Err(Error::new(
                opendal::ErrorKind::Unexpected,
                "it answers a request for a range with other bytes, so files cannot be read in pieces",
            )),
            _ => Ok(answer),
        }
    }
}
