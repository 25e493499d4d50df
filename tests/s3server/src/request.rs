//! What a request is about: bucket, key, query, operation.

use http::HeaderMap;
use http::request::Parts;

use crate::bucket::Buckets;
use crate::encoding::{decode, decode_query};
use crate::error::{Code, S3Error};
use crate::operation::Operation;

/// The longest key, in bytes.
const KEY_LIMIT: usize = 1024;

/// The subject of a request.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) operation: Operation,
    /// Empty for the service itself.
    pub(crate) bucket: String,
    /// Empty for the bucket itself.
    pub(crate) key: String,
    pub(crate) query: Vec<(String, String)>,
}

impl Target {
    /// Reads it from the head of a request. `domain` is the name under which buckets are host names, if it is fixed.
    pub(crate) fn of(parts: &Parts, buckets: &Buckets, domain: Option<&str>) -> Result<Self, S3Error> {
        let not_utf8 = || S3Error::new(Code::InvalidURI, "the request's path or query is not UTF-8");
        let path = decode(parts.uri.path()).ok_or_else(not_utf8)?;
        let path = path.strip_prefix('/').unwrap_or(&path);
        let query = decode_query(parts.uri.query().unwrap_or_default()).ok_or_else(not_utf8)?;
        let host = parts.uri.host().map(str::to_owned).or_else(|| {
            let host = parts.headers.get(http::header::HOST)?.to_str().ok()?;
            Some(
                host.rsplit_once(':')
                    .map_or(host, |(name, port)| if port.contains(']') { host } else { name })
                    .to_owned(),
            )
        });
        let plain_service = path.is_empty() && parts.method == http::Method::GET && query.is_empty();
        let virtual_bucket =
            host.and_then(|host| bucket_of_host(&host, buckets, domain, path.is_empty() && !plain_service));
        let (bucket, key) = match &virtual_bucket {
            Some(bucket) => (bucket.as_str(), path),
            None => path.split_once('/').unwrap_or((path, "")),
        };
        if key.len() > KEY_LIMIT {
            return Err(S3Error::new(Code::KeyTooLongError, format!("a key has at most {KEY_LIMIT} bytes")));
        }
        let has = |name: &str| match name.strip_prefix("x-") {
            Some(_) => parts.headers.contains_key(name),
            None => query.iter().any(|(found, _)| found == name),
        };
        let list_v2 = query.iter().any(|(name, value)| name == "list-type" && value == "2");
        let operation = Operation::of(&parts.method, !bucket.is_empty(), !key.is_empty(), has, list_v2);
        Ok(Target { operation, bucket: bucket.to_owned(), key: key.to_owned(), query })
    }

    /// The value of the first query parameter with this name.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The name that rules and the log go by: the key, for listings the prefix.
    pub(crate) fn subject(&self) -> &str {
        match self.operation {
            Operation::ListObjects | Operation::ListObjectsV2 => self.query("prefix").unwrap_or_default(),
            _ => &self.key,
        }
    }
}

/// The bucket that a host name begins with. Without a fixed domain that is a bucket that exists, or, when the request can only mean a bucket
/// (`needed`), the first label.
fn bucket_of_host(host: &str, buckets: &Buckets, domain: Option<&str>, needed: bool) -> Option<String> {
    if let Some(domain) = domain {
        return host.strip_suffix(domain)?.strip_suffix('.').map(str::to_owned);
    }
    if host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok() {
        return None;
    }
    let known = host.rmatch_indices('.').map(|(at, _)| &host[..at]).find(|name| buckets.get(name).is_some());
    known.or_else(|| host.split_once('.').map(|(first, _)| first).filter(|_| needed)).map(str::to_owned)
}

/// A header as text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(method: &str, host: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Target, S3Error> {
        let buckets = Buckets::new(None).expect("in memory");
        for name in ["data", "a.b"] {
            buckets.create(name).expect("in memory");
        }
        let mut request = http::Request::builder().method(method).uri(uri).header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        Target::of(&parts, &buckets, None)
    }

    #[test]
    fn path_style_and_host_style() {
        for (host, uri, bucket, key) in [
            ("127.0.0.1:9", "/data/a//b", "data", "a//b"),
            ("localhost:9", "/data//", "data", "/"),
            ("[::1]:9", "/data/a%2Fb%20+", "data", "a/b +"),
            ("data.localhost:9", "/x/y", "data", "x/y"),
            ("a.b.s3.test", "/data/", "a.b", "data/"),
            ("s3.test", "/data/k", "data", "k"),
            ("other.test", "/", "", ""),
            ("other.test", "/?list-type=2", "other", ""),
        ] {
            let target = target("GET", host, uri, &[]).expect("valid");
            assert_eq!((target.bucket.as_str(), target.key.as_str()), (bucket, key), "{host} {uri}");
        }
        assert!(target("GET", "h", "/data/%ff", &[]).is_err());
        assert!(target("GET", "h", &format!("/data/{}", "k".repeat(1025)), &[]).is_err());
    }

    #[test]
    fn operations() {
        use Operation::*;
        let copy: &[(&str, &str)] = &[("x-amz-copy-source", "/data/k")];
        for (method, uri, headers, operation) in [
            ("GET", "/", &[][..], ListBuckets),
            ("GET", "/data?list-type=2", &[], ListObjectsV2),
            ("GET", "/data/", &[], ListObjects),
            ("GET", "/data?location", &[], GetBucketLocation),
            ("GET", "/data?uploads", &[], ListMultipartUploads),
            ("GET", "/data?acl", &[], Unknown),
            ("HEAD", "/data", &[], HeadBucket),
            ("PUT", "/data", &[], CreateBucket),
            ("DELETE", "/data", &[], DeleteBucket),
            ("POST", "/data?delete", &[], DeleteObjects),
            ("GET", "/data/k", &[], GetObject),
            ("GET", "/data/k?tagging", &[], Unknown),
            ("HEAD", "/data/k", &[], HeadObject),
            ("PUT", "/data/k", &[], PutObject),
            ("PUT", "/data/k", copy, CopyObject),
            ("PUT", "/data/k?partNumber=1&uploadId=u", &[], UploadPart),
            ("PUT", "/data/k?partNumber=1&uploadId=u", copy, UploadPartCopy),
            ("POST", "/data/k?uploads", &[], CreateMultipartUpload),
            ("POST", "/data/k?uploadId=u", &[], CompleteMultipartUpload),
            ("DELETE", "/data/k?uploadId=u", &[], AbortMultipartUpload),
            ("GET", "/data/k?uploadId=u", &[], ListParts),
            ("DELETE", "/data/k", &[], DeleteObject),
            ("PATCH", "/data/k", &[], Unknown),
        ] {
            assert_eq!(target(method, "h", uri, headers).expect("valid").operation, operation, "{method} {uri}");
        }
    }
}
