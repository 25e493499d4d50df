//! From a URI and its options to an operator of OpenDAL.

use crate::{options::UfsOptions, tls};
use common::{Error, ErrorKind, Result, UfsUri};
use opendal::{HttpTransporter, Operator};
use opendal_http_transport_reqwest::ReqwestTransport;
use std::{collections::BTreeMap, time::Duration};

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
    let (service, settings) = settings(uri, options)?;
    opendal::init_default_registry();
    let wrong = |error: opendal::Error| {
        Error::new(ErrorKind::InvalidArgument, format!("{uri}: the settings are wrong: {}", error.message()))
    };
    let operator = Operator::via_iter(service, settings).map_err(wrong)?;
    if service == "hdfs-native" {
        return Ok(operator);
    }
    tls::install_provider();
    let config = tls::client_config(options.s3.ca_file.as_deref(), &options.environment)?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .connect_timeout(options.connect_timeout)
        .read_timeout(options.deadline)
        .pool_max_idle_per_host(options.concurrency)
        .pool_idle_timeout(Duration::from_secs(15))
        .tcp_nodelay(true)
        .http1_only()
        .build()
        .map_err(|error| Error::with_source(ErrorKind::InvalidArgument, format!("{uri}: no HTTP client"), error))?;
    let context = operator.base_context().with_http_transport(HttpTransporter::new(ReqwestTransport::new(client)));
    Ok(operator.with_context(context))
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
            if !options.service.contains_key("endpoint") {
                return Err(Error::new(ErrorKind::InvalidArgument, format!("{uri}: set fs.oss.endpoint")));
            }
            "oss"
        }
        "hdfs" => {
            default("name_node", format!("hdfs://{authority}"));
            "hdfs-native"
        }
        _ => {
            default("endpoint", format!("http://{authority}"));
            "webhdfs"
        }
    };
    Ok((service, settings.into_iter().collect()))
}
