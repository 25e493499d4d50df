//! Connections by TLS: who is let in, and that what is read is the same.

use crate::{PAGE, bytes, options, peer::within, start_over_memory};
use client::cluster::{DataConnection, Dial, FileKey, Link, LinkOptions};
use common::{
    Attr, FileKind, Result, Timestamp, UfsPath, Version,
    rpc::worker::GetAttrRequest,
    tls::{ClientTls, TlsOptions},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use worker::{
    server::{Server, ServerOptions},
    testing::MemoryStorage,
};

const MEMORY: &str = "memory://test";
const LIMIT: Duration = Duration::from_secs(60);

/// An authority, and what it signs, as files in a directory.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority of tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        std::fs::write(dir.path().join("ca"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn ca(&self) -> PathBuf {
        self.dir.path().join("ca")
    }

    fn identity(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let paths = (self.dir.path().join(format!("{name}.crt")), self.dir.path().join(format!("{name}.key")));
        std::fs::write(&paths.0, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }
}

fn by_tls(dir: &Path, authority: &Authority, verify_clients: bool) -> ServerOptions {
    let identity = Some(authority.identity("127.0.0.1"));
    let tls = TlsOptions { identity, ca: authority.ca(), verify_clients, server_name: None };
    ServerOptions { tls: Some(tls), ..options(dir, &[]) }
}

fn client(identity: Option<(PathBuf, PathBuf)>, ca: PathBuf, server_name: Option<&str>) -> ClientTls {
    let server_name = server_name.map(str::to_owned);
    ClientTls::load(&TlsOptions { identity, ca, verify_clients: true, server_name }).unwrap()
}

/// Asks for attributes and reads the file, both over the network.
async fn use_it(server: &Server, tls: Option<ClientTls>, version: &Version, size: usize) -> Result<Vec<u8>> {
    let address = &server.entry().address;
    let dial = Dial {
        worker: server.entry().identity.identifier,
        name: "a test",
        patience: LIMIT,
        tls: tls.as_ref(),
        owners: &[],
    };
    let data = within("connect", DataConnection::tcp("127.0.0.1", address.data_port, dial)).await;
    let link_options = LinkOptions {
        name: "a test".into(),
        short_circuit: false,
        patience: LIMIT,
        tls: tls.clone(),
        socket_owners: Vec::new(),
    };
    let link = Link::new(server.entry().clone(), link_options)?;
    let request = GetAttrRequest { storage: MEMORY.into(), path: "f".into(), fresh: false };
    let asked = within("attributes", link.call(async move |client| client.get_attr(request).await)).await;
    // Both let in, or neither.
    assert_eq!(data.is_ok(), asked.is_ok(), "{:?} {:?}", data.as_ref().err(), asked.as_ref().err());
    let data = data?;
    assert_eq!(asked?.attr.unwrap().size, size as u64);
    let key = FileKey { storage: MEMORY.into(), path: UfsPath::parse("f").unwrap(), version: version.clone() };
    let attr = Attr::of_object(FileKind::File, size as u64, Timestamp::default(), version.clone());
    let mut found = Vec::new();
    for _ in 0..2 {
        found.clear();
        within("read", data.read(&key, &attr, 0, size as u64, &mut found)).await.1?;
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_the_same_cold_and_from_the_store() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let storage = MemoryStorage::new();
    let content = bytes(300 * PAGE + 77, 1);
    let version = storage.put("f", content.clone());
    let server = start_over_memory(by_tls(dir.path(), &authority, true), &storage).await;
    assert_eq!(server.entry().address.secure_rpc_port, server.entry().address.rpc_port);
    let tls = client(Some(authority.identity("client")), authority.ca(), None);
    for _ in 0..3 {
        assert!(use_it(&server, Some(tls.clone()), &version, content.len()).await.unwrap() == content);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_shows_a_certificate_of_the_authority_is_let_in() {
    let (dir, authority, other) = (tempfile::tempdir().unwrap(), Authority::new(), Authority::new());
    let storage = MemoryStorage::new();
    let version = storage.put("f", bytes(100, 1));
    let server = start_over_memory(by_tls(dir.path(), &authority, true), &storage).await;
    let refused = async |tls: Option<ClientTls>| use_it(&server, tls, &version, 100).await.unwrap_err().to_string();

    let message = refused(Some(client(None, authority.ca(), None))).await;
    assert!(message.contains("CertificateRequired"), "{message}");
    let message = refused(Some(client(Some(other.identity("client")), authority.ca(), None))).await;
    assert!(message.contains("UnknownCA") || message.contains("DecryptError"), "{message}");
    let plain = refused(None).await;
    assert!(plain.contains("connection"), "{plain}");
    // And the client does not take just anybody for the worker.
    let message = refused(Some(client(Some(authority.identity("client")), other.ca(), None))).await;
    assert!(message.contains("invalid peer certificate"), "{message}");
    let elsewhere = client(Some(authority.identity("client")), authority.ca(), Some("worker.elsewhere"));
    let message = refused(Some(elsewhere)).await;
    assert!(message.contains("worker.elsewhere") || message.contains("not valid for name"), "{message}");

    // A client without TLS is told why, by what the worker registered.
    let link_options = LinkOptions {
        name: "a test".into(),
        short_circuit: false,
        patience: LIMIT,
        tls: None,
        socket_owners: Vec::new(),
    };
    let link = Link::new(server.entry().clone(), link_options).unwrap();
    let message = within("data", link.data(0)).await.err().expect("refused").to_string();
    assert!(message.contains("alluxio.network.tls.enabled"), "{message}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_need_no_certificate_where_none_is_asked_for() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let storage = MemoryStorage::new();
    let content = bytes(3 * PAGE, 1);
    let version = storage.put("f", content.clone());
    let server = start_over_memory(by_tls(dir.path(), &authority, false), &storage).await;
    let found = use_it(&server, Some(client(None, authority.ca(), None)), &version, content.len()).await;
    assert!(found.unwrap() == content);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_without_its_certificate_does_not_start() {
    let (dir, authority) = (tempfile::tempdir().unwrap(), Authority::new());
    let mut broken = by_tls(dir.path(), &authority, true);
    if let Some(tls) = &mut broken.tls {
        tls.ca = dir.path().join("none");
    }
    let message = Server::start(broken).await.unwrap_err().to_string();
    assert!(message.contains("alluxio.network.tls.ca.cert=") && message.contains("none"), "{message}");
}
