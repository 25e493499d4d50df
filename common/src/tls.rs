//! TLS between clients and workers: which certificate a process shows, and whom it trusts.
//!
//! One pair of certificate and key serves both ways: a worker shows it to clients, and as a client of other workers; a
//! client shows it when the worker asks. Files are read once, at the start, and each fault of theirs is one line.

use crate::{
    Error, ErrorKind, Result,
    conf::{Conf, keys::cluster as keys},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{fmt, path::Path, path::PathBuf, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where the certificates are.
#[derive(Debug, Clone, Default)]
pub struct TlsOptions {
    /// The certificate that is shown, with those between it and its authority, and its key; PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The authorities that are trusted, PEM.
    pub ca: PathBuf,
    /// Whether a worker refuses clients without a certificate of these authorities.
    pub verify_clients: bool,
    /// The name that workers' certificates have; none: the host under which a worker registered.
    pub server_name: Option<String>,
}

impl TlsOptions {
    /// What `conf` says; none when TLS is off.
    ///
    /// # Errors
    /// `InvalidArgument` when a key is missing that goes with another.
    pub fn from_conf(conf: &Conf) -> Result<Option<Self>> {
        if !conf.get(&keys::TLS_ENABLED) {
            return Ok(None);
        }
        let identity = match (conf.get(&keys::TLS_CERT), conf.get(&keys::TLS_KEY)) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(wrong("set alluxio.network.tls.cert and alluxio.network.tls.key together")),
        };
        let Some(ca) = conf.get(&keys::TLS_CA_CERT) else {
            return Err(wrong(
                "alluxio.network.tls.enabled is true: name the certificates of the authorities to trust by alluxio.network.tls.ca.cert",
            ));
        };
        Ok(Some(Self {
            identity,
            ca,
            verify_clients: conf.get(&keys::TLS_VERIFY_CLIENTS),
            server_name: conf.get(&keys::TLS_SERVER_NAME),
        }))
    }
}

/// What a worker serves by.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    rpc: ServerTlsConfig,
}

impl ServerTls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// One line that names the key and the file: it is missing, cannot be read, is no PEM, or key and certificate differ.
    pub fn load(options: &TlsOptions) -> Result<Self> {
        let Some((certificate, key)) = &options.identity else {
            return Err(wrong(
                "alluxio.network.tls.enabled is true: a worker needs alluxio.network.tls.cert and alluxio.network.tls.key",
            ));
        };
        let (ca, roots) = authorities(&options.ca)?;
        let identity = PemIdentity::read(certificate, key)?;
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&format!("TLS: {error}")))?;
        let builder = if options.verify_clients {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| wrong(&format!("{}={}: {error}", keys::TLS_CA_CERT.name(), options.ca.display())))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let config = builder
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|error| mismatch(certificate, key, &error))?;
        let mut rpc = ServerTlsConfig::new().identity(identity.for_rpc()).timeout(HANDSHAKE);
        if options.verify_clients {
            rpc = rpc.client_ca_root(Certificate::from_pem(ca));
        }
        Ok(Self { config: Arc::new(config), rpc })
    }

    /// For a gRPC server.
    pub fn rpc(&self) -> ServerTlsConfig {
        self.rpc.clone()
    }

    /// The handshake on a connection that was accepted.
    ///
    /// # Errors
    /// `PermissionDenied` when the client has no certificate that is trusted, `Corrupt` when it speaks no TLS.
    pub async fn accept(&self, stream: TcpStream) -> Result<TlsStream> {
        let accepted = tokio_rustls::TlsAcceptor::from(self.config.clone()).accept(stream);
        let accepted = tokio::time::timeout(HANDSHAKE, accepted).await;
        Ok(accepted.map_err(|_| late())?.map_err(|error| refused("a client's TLS handshake", error))?.into())
    }
}

/// What a client connects by.
#[derive(Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    rpc: ClientTlsConfig,
    server_name: Option<String>,
}

impl ClientTls {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// As of [`ServerTls::load`].
    pub fn load(options: &TlsOptions) -> Result<Self> {
        let (ca, roots) = authorities(&options.ca)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&format!("TLS: {error}")))?
            .with_root_certificates(roots);
        let mut rpc = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).timeout(HANDSHAKE);
        let config = match &options.identity {
            Some((certificate, key)) => {
                let identity = PemIdentity::read(certificate, key)?;
                rpc = rpc.identity(identity.for_rpc());
                builder
                    .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                    .map_err(|error| mismatch(certificate, key, &error))?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(Self { config: Arc::new(config), rpc, server_name: options.server_name.clone() })
    }

    /// What `conf` says; none when TLS is off.
    ///
    /// # Errors
    /// As of [`TlsOptions::from_conf`] and [`ServerTls::load`].
    pub fn from_conf(conf: &Conf) -> Result<Option<Self>> {
        TlsOptions::from_conf(conf)?.map(|options| Self::load(&options)).transpose()
    }

    /// For a gRPC client of the worker at `host`.
    pub fn rpc(&self, host: &str) -> ClientTlsConfig {
        self.rpc.clone().domain_name(self.name_of(host))
    }

    /// The handshake on a connection to the worker at `host`.
    ///
    /// # Errors
    /// `Unavailable`, saying what is wrong with the worker's certificate, or that it speaks no TLS.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> Result<TlsStream> {
        let name = ServerName::try_from(self.name_of(host).to_owned())
            .map_err(|_| wrong(&format!("{:?} is no name that a certificate could have", self.name_of(host))))?;
        let connected = tokio_rustls::TlsConnector::from(self.config.clone()).connect(name, stream);
        let connected = tokio::time::timeout(HANDSHAKE, connected).await.map_err(|_| late())?;
        let connected = connected.map_err(|error| {
            Error::new(ErrorKind::Unavailable, format!("the TLS handshake with the worker failed: {error}"))
        })?;
        Ok(connected.into())
    }

    fn name_of<'n>(&'n self, host: &'n str) -> &'n str {
        self.server_name.as_deref().unwrap_or(host)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

/// A connection by TLS, from either end.
pub type TlsStream = tokio_rustls::TlsStream<TcpStream>;

struct PemIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    pem: (Vec<u8>, Vec<u8>),
}

impl PemIdentity {
    fn read(certificate: &Path, key: &Path) -> Result<Self> {
        let chain_pem = read(keys::TLS_CERT.name(), certificate)?;
        let chain = certificates(keys::TLS_CERT.name(), certificate, &chain_pem)?;
        let key_pem = read(keys::TLS_KEY.name(), key)?;
        let parsed = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
            wrong(&format!("{}={}: has no private key in PEM form", keys::TLS_KEY.name(), key.display()))
        })?;
        Ok(Self { chain, key: parsed, pem: (chain_pem, key_pem) })
    }

    fn for_rpc(&self) -> Identity {
        Identity::from_pem(&self.pem.0, &self.pem.1)
    }
}

fn authorities(path: &Path) -> Result<(Vec<u8>, RootCertStore)> {
    let key = keys::TLS_CA_CERT.name();
    let pem = read(key, path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(key, path, &pem)? {
        roots.add(certificate).map_err(|error| {
            wrong(&format!("{key}={}: has a certificate that cannot be used: {error}", path.display()))
        })?;
    }
    Ok((pem, roots))
}

fn certificates(key: &str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(wrong(&format!("{key}={}: has no certificate in PEM form", path.display()))),
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io(format_args!("{key}={}", path.display()), error))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn mismatch(certificate: &Path, key: &Path, error: &rustls::Error) -> Error {
    let (certificate, key) = (certificate.display(), key.display());
    wrong(&match error {
        rustls::Error::InconsistentKeys(_) => format!(
            "{}={key} is not the key of the certificate in {}={certificate}",
            keys::TLS_KEY.name(),
            keys::TLS_CERT.name()
        ),
        other => format!(
            "{}={certificate} and {}={key} cannot be used: {other}",
            keys::TLS_CERT.name(),
            keys::TLS_KEY.name()
        ),
    })
}

fn wrong(why: &str) -> Error {
    Error::new(ErrorKind::InvalidArgument, why)
}

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, format!("no TLS handshake within {HANDSHAKE:?}"))
}

fn refused(what: &str, error: std::io::Error) -> Error {
    let kind = match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
            ErrorKind::PermissionDenied
        }
        Some(_) => ErrorKind::Corrupt,
        None => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{what} failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};

    fn pair(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
        let paths = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    #[test]
    fn each_fault_of_the_files_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (pair(dir.path(), "one"), pair(dir.path(), "two"));
        let none = dir.path().join("none");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "hello").unwrap();
        let options = |certificate: &PathBuf, key: &PathBuf, ca: &PathBuf| TlsOptions {
            identity: Some((certificate.clone(), key.clone())),
            ca: ca.clone(),
            verify_clients: true,
            server_name: None,
        };
        ServerTls::load(&options(&one.0, &one.1, &two.0)).unwrap();
        ClientTls::load(&options(&one.0, &one.1, &two.0)).unwrap();
        for (options, says) in [
            (options(&none, &one.1, &one.0), ["alluxio.network.tls.cert=", "none"]),
            (options(&one.0, &none, &one.0), ["alluxio.network.tls.key=", "none"]),
            (options(&one.0, &one.1, &none), ["alluxio.network.tls.ca.cert=", "none"]),
            (options(&empty, &one.1, &one.0), ["alluxio.network.tls.cert=", "no certificate in PEM form"]),
            (options(&one.0, &empty, &one.0), ["alluxio.network.tls.key=", "no private key in PEM form"]),
            (options(&one.0, &one.1, &empty), ["alluxio.network.tls.ca.cert=", "no certificate in PEM form"]),
            (options(&one.0, &two.1, &one.0), ["two.key is not the key of the certificate in", "one.crt"]),
        ] {
            for message in
                [ServerTls::load(&options).unwrap_err().to_string(), ClientTls::load(&options).unwrap_err().to_string()]
            {
                assert!(says.iter().all(|says| message.contains(says)), "{message}");
            }
        }
        let anonymous = TlsOptions { identity: None, ca: one.0.clone(), ..TlsOptions::default() };
        assert!(ServerTls::load(&anonymous).unwrap_err().to_string().contains("a worker needs"));
        ClientTls::load(&anonymous).unwrap();
    }

    #[test]
    fn keys_that_go_together_are_asked_for() {
        use crate::conf::{Environment, Source};
        let options = |settings: &[(&str, &str)]| {
            let mut builder = Conf::builder().environment(Environment::of([], 0));
            for (key, value) in settings {
                builder = builder.set(key, value, Source::CommandLine("-D".into()));
            }
            TlsOptions::from_conf(&builder.load().unwrap())
        };
        assert!(options(&[]).unwrap().is_none());
        let on = ("alluxio.network.tls.enabled", "true");
        assert!(options(&[on]).unwrap_err().to_string().contains("alluxio.network.tls.ca.cert"));
        let half = [on, ("alluxio.network.tls.ca.cert", "/ca"), ("alluxio.network.tls.cert", "/c")];
        assert!(options(&half).unwrap_err().to_string().contains("together"));
        let whole = options(&[half[0], half[1]]).unwrap().unwrap();
        assert!(whole.verify_clients && whole.identity.is_none());
    }
}
