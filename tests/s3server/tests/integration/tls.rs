//! https with a certificate authority of our own.

use s3server::{Options, Server, TlsPem, synthetic_bytes, test_ca};

#[test]
fn serves_https_to_clients_that_trust_the_authority() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ca = test_ca().expect("certificates");
    let server =
        Server::start(Options { tls: Some(ca.server.clone()), ..Options::with_buckets(["data"]) }).expect("start");
    let bytes = synthetic_bytes("tls", 0, 3_000_000);
    server.put("data", "k", bytes.clone()).expect("put");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let root = reqwest::Certificate::from_pem(ca.ca.as_bytes()).expect("PEM");
        let trusting = reqwest::Client::builder()
            .no_proxy()
            .resolve("localhost", server.address())
            .tls_certs_only([root])
            .build()
            .expect("client");
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("https://{host}:{}/data/k", server.address().port());
            let answer = trusting.get(url).send().await.expect("trusted");
            assert!(answer.bytes().await.expect("body") == bytes);
        }
        let other = test_ca().expect("certificates");
        let other = reqwest::Certificate::from_pem(other.ca.as_bytes()).expect("PEM");
        let wary = reqwest::Client::builder().no_proxy().tls_certs_only([other]).build().expect("client");
        assert!(wary.get(format!("{}/data/k", server.url())).send().await.is_err());
        // Stopping inside a runtime must work, too.
        drop(server);
    });
}

#[test]
fn refuses_certificates_that_are_none() {
    let tls = Some(TlsPem { cert: "x".into(), key: "y".into() });
    assert!(Server::start(Options { tls, ..Options::default() }).is_err());
}
