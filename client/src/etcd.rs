//! A connection to etcd, with a deadline on every call.
//!
//! Nothing on the read path comes here: membership and mount table are watched in the background, and whoever needs
//! them uses the last view that was seen.

use common::{
    Error, ErrorKind, Result,
    conf::{Conf, keys::cluster as keys},
    redact,
};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use std::{fmt, path::PathBuf, time::Duration};

/// How etcd is reached.
#[derive(Clone)]
pub struct EtcdOptions {
    /// `host:port` or `http(s)://host:port`.
    pub endpoints: Vec<String>,
    /// User and password.
    pub user: Option<(String, String)>,
    /// TLS, if it is on.
    pub tls: Option<EtcdTls>,
    /// The deadline of each call.
    pub deadline: Duration,
}

/// Certificates for a connection by TLS, as PEM files.
#[derive(Debug, Clone, Default)]
pub struct EtcdTls {
    /// Who is trusted; none: what the system trusts.
    pub ca: Option<PathBuf>,
    /// The certificate that is shown, and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl EtcdOptions {
    /// What the configuration says. Fails (`InvalidArgument`) when no endpoint is named, or half a client certificate.
    pub fn from_conf(conf: &Conf) -> Result<Self> {
        let wrong = |why: &str| Err(Error::new(ErrorKind::InvalidArgument, why));
        let endpoints = conf.get(&keys::ETCD_ENDPOINTS);
        if endpoints.is_empty() {
            return wrong(
                "alluxio.etcd.endpoints is not set: name the etcd of the cluster, for example http://etcd:2379",
            );
        }
        let user = match (conf.get(&keys::ETCD_USERNAME), conf.get(&keys::ETCD_PASSWORD)) {
            (Some(name), password) => Some((name, password.unwrap_or_default())),
            (None, _) => None,
        };
        let tls = if conf.get(&keys::ETCD_TLS_ENABLED) {
            let client = match (conf.get(&keys::ETCD_TLS_CLIENT_CERT), conf.get(&keys::ETCD_TLS_CLIENT_KEY)) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                _ => {
                    return wrong("set alluxio.etcd.tls.client.cert and alluxio.etcd.tls.client.key together");
                }
            };
            Some(EtcdTls { ca: conf.get(&keys::ETCD_TLS_CA_CERT), client })
        } else {
            None
        };
        Ok(Self { endpoints, user, tls, deadline: Duration::from_secs(5) })
    }
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtcdOptions({}, user {:?})", shown(&self.endpoints), self.user.as_ref().map(|(name, _)| name))
    }
}

/// A connection. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct Etcd {
    client: Client,
    deadline: Duration,
    shown: String,
}

impl Etcd {
    /// Connects, and asks for one key to be sure that etcd answers.
    ///
    /// # Errors
    /// `Unavailable` when nothing answers within the deadline; what etcd says otherwise (wrong password, …).
    pub async fn connect(options: &EtcdOptions) -> Result<Self> {
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        let endpoints: Vec<String> = options
            .endpoints
            .iter()
            .map(|endpoint| if endpoint.contains("://") { endpoint.clone() } else { format!("{scheme}://{endpoint}") })
            .collect();
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(options.deadline)
            .with_keep_alive(Duration::from_secs(5), Duration::from_secs(5))
            .with_keep_alive_while_idle(true);
        if let Some((name, password)) = &options.user {
            connect = connect.with_user(name, password);
        }
        if let Some(tls) = &options.tls {
            connect = connect.with_tls(tls_options(tls).await?);
        }
        let shown = shown(&options.endpoints);
        let connected = tokio::time::timeout(options.deadline, Client::connect(&endpoints, Some(connect))).await;
        let client = flatten(connected, &shown, "connect")?;
        let etcd = Self { client, deadline: options.deadline, shown };
        etcd.call("ask", async |client| client.get("/", None).await).await?;
        Ok(etcd)
    }

    /// The endpoints, for messages.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// Makes one call with the deadline; `what` is the verb of the message when it fails.
    pub async fn call<T>(
        &self,
        what: &str,
        call: impl AsyncFnOnce(&mut Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T> {
        let mut client = self.client.clone();
        flatten(tokio::time::timeout(self.deadline, call(&mut client)).await, &self.shown, what)
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Etcd({})", self.shown)
    }
}

/// The endpoints as people may see them.
fn shown(endpoints: &[String]) -> String {
    endpoints.iter().map(|endpoint| redact::uri(endpoint)).collect::<Vec<_>>().join(",")
}

fn flatten<T>(
    outcome: Result<Result<T, etcd_client::Error>, tokio::time::error::Elapsed>,
    shown: &str,
    what: &str,
) -> Result<T> {
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let kind = match &error {
                etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_) => ErrorKind::InvalidArgument,
                etcd_client::Error::GRpcStatus(status) if is_refusal(status.message()) => ErrorKind::PermissionDenied,
                _ => ErrorKind::Unavailable,
            };
            // Without the source: whoever prints a chain of causes would say the same thing once for each layer.
            Err(match unreachable(&error) {
                Some(cause) => Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "etcd at {shown} cannot be reached: {cause}; check alluxio.etcd.endpoints and that etcd runs"
                    ),
                ),
                None => Error::new(kind, format!("etcd at {shown}: cannot {what}: {}", said(&error))),
            })
        }
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("etcd at {shown} does not answer; check alluxio.etcd.endpoints and that etcd runs"),
        )),
    }
}

/// Why there is no connection, in the words of the innermost cause, when that is what failed.
fn unreachable(error: &etcd_client::Error) -> Option<String> {
    let mut cause: &(dyn std::error::Error + 'static) = match error {
        etcd_client::Error::TransportError(error) => error,
        etcd_client::Error::GRpcStatus(status) => std::error::Error::source(status)?,
        _ => return None,
    };
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

/// What etcd, or its client, says in one line.
fn said(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

/// etcd reports authentication by text; its status codes differ between versions.
fn is_refusal(message: &str) -> bool {
    ["authentication", "permission denied", "user name", "password"].iter().any(|word| message.contains(word))
}

async fn tls_options(tls: &EtcdTls) -> Result<TlsOptions> {
    let mut options = TlsOptions::new();
    if let Some(ca) = &tls.ca {
        options = options.ca_certificate(Certificate::from_pem(read(ca).await?));
    }
    if let Some((certificate, key)) = &tls.client {
        options = options.identity(Identity::from_pem(read(certificate).await?, read(key).await?));
    }
    Ok(options)
}

async fn read(path: &PathBuf) -> Result<Vec<u8>> {
    tokio::fs::read(path).await.map_err(|error| Error::io(path.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_endpoints_are_not_shown() {
        let endpoints = ["http://me:hidden@etcd:2379".to_owned(), "other:2379".to_owned()];
        let shown = shown(&endpoints);
        assert!(shown.contains("etcd:2379,other:2379") && !shown.contains("hidden"), "{shown}");
    }
}
