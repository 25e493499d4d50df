//! Where the bucket is: host, path and region, and how a key becomes a URL.

use super::sign::encode;
use crate::{environment::Environment, options::S3Options};
use common::{Error, ErrorKind, Result};
use http::Uri;

/// The address of a bucket in a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The region that requests are signed for.
    pub region: String,
    /// `http` or `https`.
    scheme: String,
    /// Host and port, with the bucket in front unless it is in the path.
    pub host: String,
    /// What comes before the key: `/`, or the bucket and `/`, encoded.
    base: String,
    custom: bool,
    /// The bucket.
    pub bucket: String,
    path_style: bool,
}

impl Endpoint {
    /// The address of `bucket`, by the options, then the environment, then as Amazon has it.
    pub fn new(bucket: &str, options: &S3Options, environment: &Environment, region: &str) -> Result<Self> {
        let given = options
            .endpoint
            .as_deref()
            .filter(|endpoint| !endpoint.is_empty())
            .or_else(|| environment.get("AWS_ENDPOINT_URL_S3"))
            .or_else(|| environment.get("AWS_ENDPOINT_URL"));
        let secure = if options.secure.unwrap_or(true) { "https" } else { "http" };
        let path_style = options.path_style.unwrap_or(given.is_some() || bucket.contains('.'));
        let mut endpoint = Self {
            region: region.to_owned(),
            scheme: secure.to_owned(),
            host: String::new(),
            base: String::new(),
            custom: given.is_some(),
            bucket: bucket.to_owned(),
            path_style,
        };
        match given {
            Some(given) => endpoint.custom(given)?,
            None => endpoint.amazon(),
        }
        let wrong =
            endpoint.uri("", "").is_err() || bucket.contains(|letter: char| letter.is_control() || letter == '@');
        if wrong {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{bucket}: this is no name of a bucket")));
        }
        Ok(endpoint)
    }

    fn custom(&mut self, given: &str) -> Result<()> {
        let wrong = |why: &str| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("alluxio.underfs.s3.endpoint={given}: {why}; it looks like http://host:9000"),
            )
        };
        let (scheme, rest) = match given.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (self.scheme.clone(), given),
        };
        if scheme != "http" && scheme != "https" {
            return Err(wrong("only http and https work"));
        }
        let uri: Uri = format!("{scheme}://{rest}").parse().map_err(|_| wrong("this is no URL"))?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the host is missing"))?;
        if uri.query().is_some() || rest.contains('@') {
            return Err(wrong("only scheme, host, port and path belong there"));
        }
        // The port that the scheme implies is not sent in the Host header by anybody, and so is not signed.
        let default = if scheme == "https" { 443 } else { 80 };
        let host = match uri.port_u16().filter(|port| *port != default) {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        self.scheme = scheme;
        self.base = format!("{}/", uri.path().trim_end_matches('/'));
        self.place(host);
        Ok(())
    }

    fn amazon(&mut self) {
        let suffix = if self.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let host = format!("s3.{}.{suffix}", self.region);
        self.base = "/".into();
        self.place(host);
    }

    fn place(&mut self, host: String) {
        if self.path_style {
            let bucket = self.bucket.clone();
            encode(&bucket, false, &mut self.base);
            self.base.push('/');
            self.host = host;
        } else {
            self.host = format!("{}.{host}", self.bucket);
        }
    }

    /// The same bucket in another region.
    pub fn in_region(&self, region: &str) -> Self {
        let mut moved = Self { region: region.to_owned(), ..self.clone() };
        if !self.custom {
            moved.amazon();
        }
        moved
    }

    /// Whether it is reached by TLS.
    pub fn is_secure(&self) -> bool {
        self.scheme == "https"
    }

    /// The path of a key (empty: of the bucket itself), encoded.
    pub fn path(&self, key: &str) -> String {
        let mut path = String::with_capacity(self.base.len() + key.len() + key.len() / 8);
        path.push_str(&self.base);
        if key.is_empty() && path.len() > 1 {
            path.pop();
        }
        encode(key, true, &mut path);
        path
    }

    /// The URL of an encoded path and query.
    pub fn uri(&self, path: &str, query: &str) -> Result<Uri> {
        let separator = if query.is_empty() { "" } else { "?" };
        let path = if path.is_empty() { "/" } else { path };
        format!("{}://{}{path}{separator}{query}", self.scheme, self.host).parse().map_err(|error| {
            Error::with_source(ErrorKind::InvalidArgument, format!("{}{path}: no URL", self.host), error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(bucket: &str, endpoint: Option<&str>, path_style: Option<bool>, secure: Option<bool>) -> Endpoint {
        let options = S3Options { endpoint: endpoint.map(Into::into), path_style, secure, ..Default::default() };
        Endpoint::new(bucket, &options, &Environment::default(), "eu-west-1").unwrap()
    }

    fn url(endpoint: &Endpoint, key: &str) -> String {
        endpoint.uri(&endpoint.path(key), "").unwrap().to_string()
    }

    #[test]
    fn buckets_are_in_the_host_or_in_the_path() {
        assert_eq!(url(&at("b", None, None, None), "k"), "https://b.s3.eu-west-1.amazonaws.com/k");
        assert_eq!(url(&at("b.c", None, None, None), "k"), "https://s3.eu-west-1.amazonaws.com/b.c/k");
        assert_eq!(url(&at("b", Some("http://h:9000"), None, None), "k"), "http://h:9000/b/k");
        assert_eq!(url(&at("b", Some("http://h:9000"), Some(false), None), "k"), "http://b.h:9000/k");
        assert_eq!(url(&at("b", Some("h:9000"), None, Some(false)), "k"), "http://h:9000/b/k");
        assert_eq!(url(&at("b", Some("h"), None, None), ""), "https://h/b");
        assert_eq!(url(&at("b", Some("https://h:443/s3/"), None, None), "k"), "https://h/s3/b/k");
    }

    #[test]
    fn keys_keep_their_dots_and_slashes() {
        let endpoint = at("b", Some("http://h"), None, None);
        assert_eq!(url(&endpoint, "a/../b//./c"), "http://h/b/a/../b//./c");
        assert_eq!(url(&endpoint, "/x y"), "http://h/b//x%20y");
    }

    #[test]
    fn only_amazon_has_hosts_by_region() {
        assert_eq!(at("b", None, None, None).in_region("us-east-2").host, "b.s3.us-east-2.amazonaws.com");
        let own = at("b", Some("http://h"), None, None).in_region("us-east-2");
        assert_eq!((own.host.as_str(), own.region.as_str()), ("h", "us-east-2"));
    }

    #[test]
    fn endpoints_that_are_none_are_refused() {
        for endpoint in ["ftp://h", "http://", "http://u:p@h", "http://h?x=1", "a b"] {
            let options = S3Options { endpoint: Some(endpoint.into()), ..Default::default() };
            let error = Endpoint::new("b", &options, &Environment::default(), "r").unwrap_err();
            assert!(error.message().contains("alluxio.underfs.s3.endpoint"), "{error}");
        }
    }
}
