//! Signature Version 4: who sent a request, and how its body is signed.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::request::Parts;
use sha2::{Digest as _, Sha256};

use crate::dates::{parse_basic, seconds};
use crate::encoding::{decode, decode_query, encode, encode_path};
use crate::error::{Code, S3Error};
use crate::request::header;

/// SHA-256 or HMAC-SHA-256.
pub(crate) type Hash = [u8; 32];

/// How far the clocks of client and server may be apart.
const SKEW: Duration = Duration::from_secs(15 * 60);
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Keys that the server accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Public part.
    pub access_key: String,
    /// Secret part.
    pub secret_key: String,
    /// Must be sent as x-amz-security-token when set.
    pub session_token: Option<String>,
    /// From then on the keys are refused with ExpiredToken.
    pub expires: Option<SystemTime>,
}

impl Credentials {
    /// Keys without a token that do not expire.
    pub fn new(access_key: impl Into<String>, secret_key: impl Into<String>) -> Self {
        Credentials { access_key: access_key.into(), secret_key: secret_key.into(), session_token: None, expires: None }
    }

    /// Adds a session token.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.session_token = Some(token.into());
        self
    }

    /// Makes the keys expire.
    pub fn expires(mut self, at: SystemTime) -> Self {
        self.expires = Some(at);
        self
    }
}

/// How the body of a request is to be read.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// As it is.
    Plain,
    /// As it is, and it must have this hash.
    Hashed(Hash),
    /// In the form of aws-chunked; signed when there is a signer.
    Chunked(Option<ChunkSigner>),
}

/// Signs the chunks of an aws-chunked body, each with the signature before it.
#[derive(Clone, Debug)]
pub(crate) struct ChunkSigner {
    key: Hash,
    timestamp: String,
    scope: String,
    previous: String,
}

impl ChunkSigner {
    /// The signature of the next chunk, whose bytes have this hash.
    pub(crate) fn sign(&mut self, chunk: &Hash) -> String {
        let (timestamp, scope, previous) = (&self.timestamp, &self.scope, &self.previous);
        let nothing = hex::encode(Sha256::digest(b""));
        let text = format!("{ALGORITHM}-PAYLOAD\n{timestamp}\n{scope}\n{previous}\n{nothing}\n{}", hex::encode(chunk));
        self.previous = hex::encode(hmac(&self.key, text.as_bytes()));
        self.previous.clone()
    }
}

/// HMAC-SHA-256.
pub(crate) fn hmac(key: &[u8], message: &[u8]) -> Hash {
    let mut block = [0u8; 64];
    if key.len() > block.len() {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new().chain_update(block.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(block.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

/// What a signature was made of.
struct Signed<'a> {
    access_key: String,
    scope: String,
    region: String,
    date: String,
    timestamp: String,
    headers: Vec<&'a str>,
    signature: String,
    token: Option<String>,
    /// Whether the signature stands in the query.
    presigned: bool,
}

/// Checks a request against the keys. Without keys everybody is let in and only the body's own hashes are checked.
pub(crate) fn verify(
    parts: &Parts,
    credentials: &[Credentials],
    region: Option<&str>,
    now: SystemTime,
) -> Result<Payload, S3Error> {
    if credentials.is_empty() {
        return payload(&parts.headers, None);
    }
    let query = decode_query(parts.uri.query().unwrap_or_default()).unwrap_or_default();
    let authorization = header(&parts.headers, "authorization").map(str::to_owned);
    let signed = match &authorization {
        Some(authorization) => of_header(authorization, &parts.headers)?,
        None if query.iter().any(|(name, _)| name == "X-Amz-Signature") => of_query(&query, now)?,
        None => return Err(S3Error::new(Code::AccessDenied, "the request is not signed")),
    };
    let Some(known) = credentials.iter().find(|known| known.access_key == signed.access_key) else {
        return Err(S3Error::new(Code::InvalidAccessKeyId, "the access key is not known")
            .element("AWSAccessKeyId", signed.access_key));
    };
    if known.expires.is_some_and(|expires| expires <= now) {
        return Err(S3Error::new(Code::ExpiredToken, "the keys have expired"));
    }
    if known.session_token != signed.token {
        return Err(S3Error::new(Code::InvalidToken, "the session token is missing or wrong"));
    }
    if let Some(region) = region
        && signed.region != region
    {
        let message = format!("the region '{}' is wrong; expecting '{region}'", signed.region);
        return Err(S3Error::new(Code::AuthorizationHeaderMalformed, message).element("Region", region));
    }
    let time = parse_basic(&signed.timestamp).filter(|_| signed.timestamp.starts_with(&signed.date));
    let Some(time) = time else { return Err(malformed("the date of the signature is not valid")) };
    if !signed.presigned && seconds(time).abs_diff(seconds(now)) > SKEW.as_secs() {
        return Err(S3Error::new(Code::RequestTimeTooSkewed, "the clocks of client and server are too far apart"));
    }
    check_all_signed(&parts.headers, &signed)?;

    let hash = match header(&parts.headers, "x-amz-content-sha256") {
        Some(hash) => hash,
        None if signed.presigned => "UNSIGNED-PAYLOAD",
        None => return Err(S3Error::new(Code::InvalidRequest, "the header x-amz-content-sha256 is missing")),
    };
    let canonical = canonical(parts, &query, &signed, hash)?;
    let text = format!(
        "{ALGORITHM}\n{}\n{}\n{}",
        signed.timestamp,
        signed.scope,
        hex::encode(Sha256::digest(canonical.as_bytes()))
    );
    let key = signing_key(&known.secret_key, &signed.date, &signed.region);
    let expected = hex::encode(hmac(&key, text.as_bytes()));
    if expected != signed.signature {
        return Err(S3Error::new(Code::SignatureDoesNotMatch, "the signature is not the one the server computes")
            .element("AWSAccessKeyId", signed.access_key)
            .element("StringToSign", text)
            .element("SignatureProvided", signed.signature)
            .element("CanonicalRequest", canonical));
    }
    let signer = ChunkSigner { key, timestamp: signed.timestamp, scope: signed.scope, previous: expected };
    if signed.presigned && !parts.headers.contains_key("x-amz-content-sha256") {
        return Ok(Payload::Plain);
    }
    payload(&parts.headers, Some(signer))
}

fn malformed(message: &str) -> S3Error {
    S3Error::new(Code::AuthorizationHeaderMalformed, message)
}

/// The form of the body, from x-amz-content-sha256.
fn payload(headers: &HeaderMap, signer: Option<ChunkSigner>) -> Result<Payload, S3Error> {
    match header(headers, "x-amz-content-sha256") {
        None | Some("UNSIGNED-PAYLOAD") => Ok(Payload::Plain),
        Some("STREAMING-AWS4-HMAC-SHA256-PAYLOAD" | "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER") => {
            Ok(Payload::Chunked(signer))
        }
        Some("STREAMING-UNSIGNED-PAYLOAD-TRAILER") => Ok(Payload::Chunked(None)),
        Some(text) => {
            let mut hash = Hash::default();
            hex::decode_to_slice(text, &mut hash).map_err(|_| {
                S3Error::new(Code::InvalidArgument, "x-amz-content-sha256 is neither a hash nor a known form")
            })?;
            Ok(Payload::Hashed(hash))
        }
    }
}

/// `Credential=…/date/region/s3/aws4_request`
fn credential(text: &str) -> Option<(String, String, String, String)> {
    let mut rest = text.rsplitn(5, '/');
    let (end, service, region, date, key) = (rest.next()?, rest.next()?, rest.next()?, rest.next()?, rest.next()?);
    (end == "aws4_request" && service == "s3")
        .then(|| (key.to_owned(), format!("{date}/{region}/{service}/{end}"), region.to_owned(), date.to_owned()))
}

fn of_header<'a>(authorization: &'a str, headers: &HeaderMap) -> Result<Signed<'a>, S3Error> {
    let Some(fields) = authorization.strip_prefix(ALGORITHM) else {
        return Err(S3Error::new(Code::InvalidRequest, format!("only {ALGORITHM} is supported")));
    };
    let field = |name: &str| {
        fields
            .split(',')
            .find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| malformed(&format!("{name} is missing")))
    };
    let (access_key, scope, region, date) = credential(field("Credential")?)
        .ok_or_else(|| malformed("Credential is not of the form key/date/region/s3/aws4_request"))?;
    Ok(Signed {
        access_key,
        scope,
        region,
        date,
        timestamp: header(headers, "x-amz-date")
            .ok_or_else(|| S3Error::new(Code::AccessDenied, "the header x-amz-date is missing"))?
            .to_owned(),
        headers: field("SignedHeaders")?.split(';').collect(),
        signature: field("Signature")?.to_owned(),
        token: header(headers, "x-amz-security-token").map(str::to_owned),
        presigned: false,
    })
}

fn of_query(query: &[(String, String)], now: SystemTime) -> Result<Signed<'_>, S3Error> {
    let find = |name: &str| query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let need = |name: &str| {
        find(name).ok_or_else(|| S3Error::new(Code::InvalidRequest, format!("the query parameter {name} is missing")))
    };
    if need("X-Amz-Algorithm")? != ALGORITHM {
        return Err(S3Error::new(Code::InvalidRequest, format!("only {ALGORITHM} is supported")));
    }
    let (access_key, scope, region, date) = credential(need("X-Amz-Credential")?)
        .ok_or_else(|| malformed("X-Amz-Credential is not of the form key/date/region/s3/aws4_request"))?;
    let timestamp = need("X-Amz-Date")?;
    let lasts: u64 = need("X-Amz-Expires")?.parse().ok().filter(|lasts| *lasts <= 604_800).ok_or_else(|| {
        S3Error::new(Code::InvalidArgument, "X-Amz-Expires is not a number of seconds of at most a week")
    })?;
    if let Some(time) = parse_basic(timestamp)
        && (seconds(now) > seconds(time) + lasts || seconds(time) > seconds(now) + SKEW.as_secs())
    {
        return Err(S3Error::new(Code::AccessDenied, "the request has expired or is not yet valid"));
    }
    Ok(Signed {
        access_key,
        scope,
        region,
        date,
        timestamp: timestamp.to_owned(),
        headers: need("X-Amz-SignedHeaders")?.split(';').collect(),
        signature: need("X-Amz-Signature")?.to_owned(),
        token: find("X-Amz-Security-Token").map(str::to_owned),
        presigned: true,
    })
}

/// S3 insists that `host` and every x-amz header is signed, except some that proxies and clients add later.
fn check_all_signed(headers: &HeaderMap, signed: &Signed<'_>) -> Result<(), S3Error> {
    let unsigned = headers.keys().map(|name| name.as_str()).find(|name| {
        (*name == "host" || (name.starts_with("x-amz-") && *name != "x-amz-content-sha256"))
            && !signed.headers.contains(name)
    });
    match unsigned {
        None => Ok(()),
        Some(name) => {
            Err(S3Error::new(Code::AccessDenied, "there were headers present in the request which were not signed")
                .element("HeadersNotSigned", name))
        }
    }
}

/// The text whose hash is signed.
fn canonical(parts: &Parts, query: &[(String, String)], signed: &Signed<'_>, hash: &str) -> Result<String, S3Error> {
    let path = decode(parts.uri.path()).unwrap_or_default();
    let mut pairs: Vec<(String, String)> = query
        .iter()
        .filter(|(name, _)| !(signed.presigned && name == "X-Amz-Signature"))
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut text = format!("{}\n{}\n{}\n", parts.method, encode_path(&path), pairs.join("&"));
    for name in &signed.headers {
        let mut values = Vec::new();
        for value in parts.headers.get_all(*name) {
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| S3Error::new(Code::InvalidRequest, format!("the header {name} is not UTF-8")))?;
            values.push(value.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        text.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    text.push_str(&format!("\n{}\n{hash}", signed.headers.join(";")));
    Ok(text)
}

fn signing_key(secret: &str, date: &str, region: &str) -> Hash {
    let key = hmac(format!("AWS4{secret}").as_bytes(), date.as_bytes());
    let key = hmac(&key, region.as_bytes());
    let key = hmac(&key, b"s3");
    hmac(&key, b"aws4_request")
}

#[cfg(test)]
pub(crate) mod tests;
