//! From a URI and its options to an operator of OpenDAL.

#[cfg(feature = "hdfs")]
use super::hdfs;
use super::transport::Transport;
use crate::{options::UfsOptions, tls};
use common::{Error, ErrorKind, Result, UfsUri};
use opendal::{HttpTransporter, Operator};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// The schemes of this build.
pub const SCHEMES: &[&str] = &[
    #[cfg(feature = "gs")]
    "gs",
    #[cfg(feature = "gs")]
    "gcs",
    #[cfg(feature = "abfs")]
    "abfs",
    #[cfg(feature = "abfs")]
    "abfss",
    #[cfg(feature = "oss")]
    "oss",
    #[cfg(feature = "hdfs")]
    "hdfs",
    #[cfg(feature = "webhdfs")]
    "webhdfs",
];

/// The operator for `uri`, with a client of its own.
pub fn operator(uri: &UfsUri, options: &UfsOptions) -> Result<Operator> {
    #[cfg(feature = "hdfs")]
    if uri.scheme() == "hdfs" {
        return hdfs::operator(uri, options);
    }
    let (service, settings) = settings(uri, options)?;
    let endpoint = settings.iter().find(|(name, _)| name == "endpoint").map(|(_, endpoint)| endpoint.clone());
    opendal::init_default_registry();
    let wrong = |error: opendal::Error| {
        Error::new(ErrorKind::InvalidArgument, format!("{uri}: the settings are wrong: {}", error.message()))
    };
    let operator = Operator::via_iter(service, settings).map_err(wrong)?;
    tls::install_provider();
    let config = tls::client_config(options.s3.ca_file.as_deref(), &options.environment)?;
    let mut client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.deadline)
        .pool_max_idle_per_host(options.concurrency)
        .pool_idle_timeout(Duration::from_secs(15))
        .tcp_nodelay(true)
        .http1_only();
    // What is on this host is not behind a proxy.
    if endpoint
        .is_some_and(|endpoint| host(&endpoint) == "localhost" || address(&endpoint).is_some_and(|ip| ip.is_loopback()))
    {
        client = client.no_proxy();
    }
    let client = client
        .build()
        .map_err(|error| Error::with_source(ErrorKind::InvalidArgument, format!("{uri}: no HTTP client"), error))?;
    let context = operator.base_context().with_http_transport(HttpTransporter::new(Transport::new(client, options)));
    Ok(operator.with_context(context))
}

/// The host of an endpoint.
fn host(endpoint: &str) -> &str {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or(rest);
    match rest.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or(six),
        None => rest.split(':').next().unwrap_or(rest),
    }
}

/// The host of an endpoint, when it is an address and no name.
fn address(endpoint: &str) -> Option<IpAddr> {
    host(endpoint).parse().ok()
}

/// OpenDAL's name of the service, and its settings.
fn settings(uri: &UfsUri, options: &UfsOptions) -> Result<(&'static str, Vec<(String, String)>)> {
    let mut settings: BTreeMap<String, String> =
        options.service.iter().map(|(name, value)| (name.clone(), value.reveal().to_owned())).collect();
    let authority = uri.authority();
    let mut default = |name: &str, value: String| {
        settings.entry(name.to_owned()).or_insert(value);
    };
    default("root", format!("/{}", uri.path()));
    let service = match uri.scheme() {
        "gs" | "gcs" => {
            default("bucket", authority.to_owned());
            "gcs"
        }
        "abfs" | "abfss" => {
            let (container, host) = match authority.split_once('@') {
                Some((container, host)) => (container, Some(host)),
                None => (authority, None),
            };
            default("filesystem", container.to_owned());
            if let Some(host) = host {
                default("account_name", host.split('.').next().unwrap_or(host).to_owned());
                default("endpoint", format!("https://{host}"));
            } else if !options.service.contains_key("endpoint") {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "{uri}: name the account, as in {}://container@account.dfs.core.windows.net/",
                        uri.scheme()
                    ),
                ));
            }
            "azdls"
        }
        "oss" => {
            default("bucket", authority.to_owned());
            let Some(endpoint) = options.service.get("endpoint") else {
                return Err(Error::new(ErrorKind::InvalidArgument, format!("{uri}: set fs.oss.endpoint")));
            };
            // No bucket can be put before an address.
            if address(endpoint.reveal()).is_some() {
                default("addressing_style", "path".to_owned());
            }
            "oss"
        }
        _ => {
            default("endpoint", format!("http://{authority}"));
            "webhdfs"
        }
    };
    Ok((service, settings.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_addresses() {
        assert_eq!(host("https://oss-cn-x.aliyuncs.com/"), "oss-cn-x.aliyuncs.com");
        assert_eq!(host("localhost:80"), "localhost");
        assert_eq!(address("http://127.0.0.1:80"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(address("http://[::1]:80/x"), Some("::1".parse().unwrap()));
        assert_eq!(address("oss.example.com"), None);
    }
}
