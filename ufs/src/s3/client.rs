//! Sends requests to S3: signed, bounded in number and time, repeated when that may help.

use super::{
    body::{Outgoing, Payload},
    credentials::Credentials,
    endpoint::Endpoint,
    errors::{Failure, Remedy, failure},
    sign::{EMPTY_HASH, Signer, encode},
    transport::{Http, http},
    xml::parse_fault,
};
use crate::{deadline::timed_out, options::UfsOptions, retry::Attempts};
use arc_swap::ArcSwap;
use bytes::Bytes;
use common::{
    Error, ErrorKind, Result,
    metrics::{UfsOp, metrics},
};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The most bytes of an error document.
const FAULT: usize = 64 << 10;

/// A request; an empty key is the bucket itself.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    /// GET unless it is said otherwise.
    pub method: Method,
    /// The key, as it is.
    pub key: &'a str,
    /// Names and values of the query, sorted by name.
    pub query: &'a [(&'a str, &'a str)],
    /// First byte and the one after the last.
    pub range: Option<(u64, u64)>,
    /// The etag that the object must have, as the header wants it.
    pub if_match: Option<&'a str>,
    /// Further headers, names in lower case; those that begin with `x-amz-` are signed.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, with its hash.
    pub body: Option<&'a Payload>,
    /// How long the service may think when it has the body; the usual deadline when that is longer.
    pub patience: Duration,
}

/// The head of an answer that was no error; the body is still to come. Dropping it frees its place among the requests.
pub struct Answer {
    /// 200, 204 or 206.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    body: Incoming,
    deadline: Duration,
    _place: OwnedSemaphorePermit,
}

impl Answer {
    /// The next bytes of the body, none at its end.
    pub async fn chunk(&mut self, what: &str) -> Result<Option<Bytes>> {
        loop {
            match tokio::time::timeout(self.deadline, self.body.frame()).await {
                Err(_) => return Err(timed_out(self.deadline, what)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => {
                    return Err(Error::with_source(
                        ErrorKind::Unavailable,
                        format!("{what}: the connection broke in the middle of the answer"),
                        error,
                    ));
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, `most` bytes at most.
    pub async fn text(mut self, what: &str, most: usize) -> Result<String> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(what).await? {
            if bytes.len() + chunk.len() > most {
                return Err(Error::new(ErrorKind::Corrupt, format!("{what}: the answer is longer than {most} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::Corrupt, format!("{what}: the answer is no text")))
    }
}

/// A client for one bucket.
pub struct S3Client {
    http: Http,
    endpoint: ArcSwap<Endpoint>,
    credentials: Credentials,
    signer: Signer,
    places: Arc<Semaphore>,
    /// Bounds and limits.
    pub options: UfsOptions,
}

impl S3Client {
    /// A client for the bucket at `endpoint`.
    pub fn new(endpoint: Endpoint, credentials: Credentials, options: &UfsOptions) -> Result<Self> {
        Ok(Self {
            http: http(options, endpoint.is_secure(), options.s3.ca_file.as_deref())?,
            endpoint: ArcSwap::from_pointee(endpoint),
            credentials,
            signer: Signer::default(),
            places: Arc::new(Semaphore::new(options.concurrency.max(1))),
            options: options.clone(),
        })
    }

    /// Sends a request until it succeeds, cannot succeed, or `attempts` are used up.
    pub async fn call(&self, op: UfsOp, what: &str, request: &Request<'_>, attempts: &mut Attempts) -> Result<Answer> {
        loop {
            match self.send(op, what, request, attempts).await {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.remedy == Remedy::None => return Err(failure.error),
                Err(failure) => attempts.again(failure.error).await?,
            }
        }
    }

    /// Sends a request once, or again at once in another region or with other keys.
    pub async fn send(
        &self,
        op: UfsOp,
        what: &str,
        request: &Request<'_>,
        attempts: &Attempts,
    ) -> Result<Answer, Failure> {
        let mut mended = 0;
        loop {
            let endpoint = self.endpoint.load_full();
            let keys = self.credentials.keys().await.map_err(Failure::lasting)?;
            match self.send_to(op, &endpoint, keys.as_ref(), what, request, attempts).await {
                Err(Failure { remedy: Remedy::Region(region), error }) => {
                    if mended >= 2 || region == endpoint.region {
                        return Err(Failure::lasting(error));
                    }
                    tracing::info!("{what}: the bucket lies in {region}");
                    self.endpoint.store(Arc::new(endpoint.in_region(&region)));
                }
                Err(Failure { remedy: Remedy::Credentials, error }) => match &keys {
                    Some(keys) if mended < 2 => self.credentials.renew(keys),
                    _ => return Err(Failure::lasting(error)),
                },
                done => return done,
            }
            mended += 1;
        }
    }

    async fn send_to(
        &self,
        op: UfsOp,
        endpoint: &Endpoint,
        keys: Option<&Arc<super::credentials::Keys>>,
        what: &str,
        request: &Request<'_>,
        attempts: &Attempts,
    ) -> Result<Answer, Failure> {
        let path = endpoint.path(request.key);
        let mut query = String::new();
        for (name, value) in request.query {
            if !query.is_empty() {
                query.push('&');
            }
            encode(name, false, &mut query);
            query.push('=');
            encode(value, false, &mut query);
        }
        let head = request.method == Method::HEAD;
        let hash = request.body.map_or(EMPTY_HASH, |body| body.hash.as_str());
        let mut built = http::Request::builder()
            .method(request.method.clone())
            .uri(endpoint.uri(&path, &query).map_err(Failure::lasting)?)
            .header(header::HOST, &endpoint.host)
            .header(header::USER_AGENT, concat!("alluxio/", env!("CARGO_PKG_VERSION")));
        if let Some((from, to)) = request.range {
            built = built.header(header::RANGE, format!("bytes={from}-{}", to.saturating_sub(1)));
        }
        if let Some(etag) = request.if_match {
            built = built.header(header::IF_MATCH, etag);
        }
        if let Some(body) = request.body {
            built = built.header(header::CONTENT_LENGTH, body.length());
        }
        for (name, value) in request.headers {
            built = built.header(*name, *value);
        }
        if let Some(keys) = keys {
            let time = amz_date(SystemTime::now());
            let mut own = vec![("x-amz-content-sha256", hash), ("x-amz-date", &time)];
            if let Some(token) = keys.token() {
                own.push(("x-amz-security-token", token.reveal()));
            }
            let mut signed = vec![("host", endpoint.host.as_str())];
            signed.extend(&own);
            signed.extend(request.headers.iter().filter(|(name, _)| name.starts_with("x-amz-")));
            signed.sort_unstable();
            let path = if path.is_empty() { "/" } else { &path };
            let method = request.method.as_str();
            let value = self.signer.authorization(keys, &endpoint.region, &time, method, path, &query, &signed, hash);
            for (name, value) in &own {
                built = built.header(*name, *value);
            }
            built = built.header(header::AUTHORIZATION, value);
        }
        let outgoing = request.body.map_or_else(Outgoing::empty, Payload::outgoing);
        let sent = outgoing.sent();
        let built = built.body(outgoing).map_err(|error| {
            Failure::lasting(Error::with_source(ErrorKind::InvalidArgument, format!("{what}: {error}"), error))
        })?;

        let wait = attempts.left();
        let place = match tokio::time::timeout(wait, self.places.clone().acquire_owned()).await {
            Ok(Ok(place)) => place,
            _ => return Err(Failure::lasting(timed_out(wait, what))),
        };
        metrics().ufs_requests.of(op).inc();
        let deadline = self.options.deadline.max(request.patience);
        let wait = attempts.left().min(deadline);
        let answer = match self.await_answer(self.http.request(built), sent, wait, attempts).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                let reason = innermost(&error);
                let say = if error.is_connect() { "cannot connect to" } else { "lost the connection to" };
                let lasting = say == "cannot connect to" && is_certificate(&reason);
                let advice =
                    if lasting { "; set alluxio.underfs.s3.ca.cert to the authority's certificate" } else { "" };
                let message = format!("{what}: {say} {}: {reason}{advice}", endpoint.host);
                let error = Error::with_source(ErrorKind::Unavailable, message, error);
                return Err(if lasting { Failure::lasting(error) } else { Failure::passing(error) });
            }
            Err(_) => return Err(Failure::passing(timed_out(wait, what))),
        };
        let (parts, body) = answer.into_parts();
        let answer = Answer { status: parts.status, headers: parts.headers, body, deadline, _place: place };
        if matches!(answer.status, StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT) {
            return Ok(answer);
        }
        let region =
            answer.headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok()).map(str::to_owned);
        let status = answer.status;
        let fault = if head { None } else { answer.text(what, FAULT).await.ok().and_then(|text| parse_fault(&text)) };
        let region = region.or_else(|| fault.as_ref().and_then(|fault| fault.region.clone()));
        let region = region.filter(|region| *region != endpoint.region);
        let mut failed = failure(what, status, fault.as_ref(), region.as_deref());
        // The answer to a HEAD has no code; for temporary keys this is how it says that they are expired.
        let temporary = keys.is_some_and(|keys| keys.token().is_some());
        if head && status == StatusCode::BAD_REQUEST && temporary && failed.remedy == Remedy::None {
            failed.remedy = Remedy::Credentials;
        }
        Err(failed)
    }
}

impl S3Client {
    /// Waits for the head of an answer: `wait` from the last byte of the body that was taken, and no longer than the call
    /// may take as a whole.
    async fn await_answer<T>(
        &self,
        answer: impl Future<Output = T>,
        sent: Arc<AtomicU64>,
        wait: Duration,
        attempts: &Attempts,
    ) -> Result<T, ()> {
        let mut answer = std::pin::pin!(answer);
        let mut before = 0;
        loop {
            if let Ok(done) = tokio::time::timeout(wait, &mut answer).await {
                return Ok(done);
            }
            let now = sent.load(Ordering::Relaxed);
            if now == before || attempts.is_over() {
                return Err(());
            }
            before = now;
        }
    }

    /// The bucket and a key, as the header that names the source of a copy wants them.
    pub fn copy_source(&self, key: &str) -> String {
        let mut text = String::from("/");
        encode(&self.endpoint.load().bucket, false, &mut text);
        text.push('/');
        encode(key, true, &mut text);
        text
    }
}

/// The cause at the bottom: it says what went wrong, the ones above only where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(below) = at.source() {
        at = below;
    }
    at.to_string()
}

fn is_certificate(reason: &str) -> bool {
    reason.contains("certificate") || reason.contains("UnknownIssuer") || reason.contains("CaUsed")
}

/// `20130524T000000Z`.
fn amz_date(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let days = i64::try_from(seconds / 86_400).unwrap_or(0) + 719_468;
    // The civil date of a day, with years that begin in March.
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let of_day = seconds % 86_400;
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| amz_date(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(1_709_210_096), "20240229T123456Z");
        assert_eq!(at(1_735_689_599), "20241231T235959Z");
        assert_eq!(at(4_107_542_400), "21000301T000000Z");
    }
}
