//! TLS for every client of this crate: the ring provider, the system's authorities, and those the user names.

use crate::environment::Environment;
use common::{Error, ErrorKind, Result};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{path::Path, sync::Arc};

/// Has ring do the cryptography for whoever names no provider; done once, however often it is called.
pub fn install_provider() {
    // An error means that a provider is there already, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
}

/// A client configuration that trusts the system's authorities, those in `ca_file` (an error when it cannot be used),
/// and those in `AWS_CA_BUNDLE` (which is ignored when it cannot be read).
pub fn client_config(ca_file: Option<&Path>, environment: &Environment) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = environment.get("AWS_CA_BUNDLE") {
        match read(Path::new(path)) {
            Ok(certificates) => {
                roots.add_parsable_certificates(certificates);
            }
            Err(error) => tracing::warn!("AWS_CA_BUNDLE is not used: {error}"),
        }
    }
    if let Some(path) = ca_file {
        let wrong = |why| Error::new(ErrorKind::InvalidArgument, format!("{}: {why}", path.display()));
        let certificates = read(path)?;
        if certificates.is_empty() {
            return Err(wrong("has no certificate in PEM form"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|_| wrong("has a certificate that cannot be used"))?;
        }
    }
    trusting(roots)
}

/// A client configuration that trusts nobody, for clients that use no TLS.
pub fn without_authorities() -> Result<ClientConfig> {
    trusting(RootCertStore::empty())
}

fn trusting(roots: RootCertStore) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::with_source(ErrorKind::Unsupported, format!("TLS: {error}"), error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io(path.display(), error))?;
    CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|error| {
        Error::new(ErrorKind::InvalidArgument, format!("{}: no certificates in PEM form: {error:?}", path.display()))
    })
}
