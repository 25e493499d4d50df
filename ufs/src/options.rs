//! How under storages are reached: deadlines, limits, and what each service needs.

use crate::environment::Environment;
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

/// Text that must not be shown: its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for signing only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// What all under storages share, and what each kind needs.
#[derive(Debug, Clone)]
pub struct UfsOptions {
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for the first byte of an answer, and for each further piece of it.
    pub deadline: Duration,
    /// The longest time that one call may take without any progress, its retries included.
    pub give_up: Duration,
    /// How often a request that failed for a passing reason is made again.
    pub retries: u32,
    /// Requests under way at once, at most; also the size of the connection pool.
    pub concurrency: usize,
    /// For `s3://` and `s3a://`.
    pub s3: S3Options,
    /// For the services behind OpenDAL: its own names of settings, such as `endpoint`, as they are.
    pub service: BTreeMap<String, Secret>,
    /// The environment that credentials may come from.
    pub environment: Arc<Environment>,
}

impl Default for UfsOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(10),
            give_up: Duration::from_secs(30),
            retries: 5,
            concurrency: 64,
            s3: S3Options::default(),
            service: BTreeMap::new(),
            environment: Arc::new(Environment::of_process()),
        }
    }
}

/// What S3 needs beside bucket and prefix.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// `http(s)://host[:port]` of a service other than AWS; without a scheme `secure` decides.
    pub endpoint: Option<String>,
    /// Region; found out when not given.
    pub region: Option<String>,
    /// Bucket in the path instead of the host name; when not given: for custom endpoints and bucket names with dots.
    pub path_style: Option<bool>,
    /// Whether an endpoint without a scheme is reached by TLS; when not given: yes.
    pub secure: Option<bool>,
    /// PEM file with the certificates of authorities to trust beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Access key.
    pub access_key: Option<String>,
    /// Its secret.
    pub secret_key: Option<Secret>,
    /// Token of a temporary access key.
    pub session_token: Option<Secret>,
    /// Profile of the shared configuration files, before `AWS_PROFILE`.
    pub profile: Option<String>,
    /// Role to assume with the credentials found, as an ARN.
    pub role_arn: Option<String>,
    /// No credentials at all: requests are not signed.
    pub anonymous: bool,
    /// Whether every look-up of a name asks for a directory beside the object, in a second request at the same time.
    pub check_directory: bool,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            path_style: None,
            secure: None,
            ca_file: None,
            access_key: None,
            secret_key: None,
            session_token: None,
            profile: None,
            role_arn: None,
            anonymous: false,
            check_directory: true,
        }
    }
}
