//! HTTPS: the server's certificate, and a certificate authority for tests.

use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate chain and its key.
#[derive(Clone, Debug)]
pub struct TlsPem {
    /// The certificates, the server's own first.
    pub cert: String,
    /// The private key.
    pub key: String,
}

/// A certificate authority made for one test, with a server certificate it signed.
#[derive(Clone, Debug)]
pub struct TestCa {
    /// The authority's certificate as PEM, for the client to trust.
    pub ca: String,
    /// Certificate and key for localhost, *.localhost, 127.0.0.1 and ::1.
    pub server: TlsPem,
}

/// Makes a new certificate authority and a server certificate.
pub fn test_ca() -> anyhow::Result<TestCa> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "s3server test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?.pem();
    let issuer = Issuer::new(params, ca_key);

    let names = ["localhost", "*.localhost", "127.0.0.1", "::1"];
    let mut params = CertificateParams::new(names.map(str::to_owned).to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "localhost");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let cert = params.signed_by(&key, &issuer)?.pem();
    Ok(TestCa { ca, server: TlsPem { cert, key: key.serialize_pem() } })
}

/// The acceptor for a certificate.
pub(crate) fn acceptor(pem: &TlsPem) -> anyhow::Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.cert.as_bytes())
        .collect::<Result<_, _>>()
        .context("TLS certificate is not PEM")?;
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).context("TLS key is not PEM")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("TLS certificate and key do not fit")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
