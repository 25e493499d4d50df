//! A cluster whose clients and workers speak TLS with each other.

use crate::{processes::Cluster, reading};
use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// An authority and one certificate for everybody, in `dir`; the options that use them.
fn certificates(dir: &Path) -> Vec<String> {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let mut params = CertificateParams::new(vec!["worker.test".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("all.crt"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(dir.join("all.key"), key.serialize_pem()).unwrap();
    vec![
        "alluxio.network.tls.enabled=true".into(),
        format!("alluxio.network.tls.ca.cert={}", dir.join("ca.pem").display()),
        format!("alluxio.network.tls.cert={}", dir.join("all.crt").display()),
        format!("alluxio.network.tls.key={}", dir.join("all.key").display()),
        "alluxio.network.tls.server.name=worker.test".into(),
    ]
}

#[test]
fn everything_is_read_by_tls_and_only_with_a_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let options = certificates(dir.path());
    let Some(cluster) = Cluster::start_with(2, options.clone()) else { return };
    let (_dir, tree, store) = reading::source(60);
    cluster.mount_add("/data", &store);
    let before = store.body_bytes();
    let strict = [
        "alluxio.user.short.circuit.enabled=false",
        "alluxio.dora.client.ufs.fallback.enabled=false",
        "local_data_cache_size=0",
    ];
    let mount = cluster.mounting().options(strict).options(options.clone()).start();
    reading::check(&tree, &mount);
    assert!(store.body_bytes() > before);
    mount.stop();

    // Without a certificate no worker answers, so that there is nothing but the storage, which is forbidden here.
    let anonymous = options.iter().filter(|option| !option.contains(".cert=") || option.contains(".ca.cert="));
    let anonymous: Vec<String> = anonymous.filter(|option| !option.contains(".key=")).cloned().collect();
    for options in [anonymous, Vec::new()] {
        let mount = cluster.mounting().options(strict).options(options).start();
        let listed = fs::read_dir(mount.join("data")).map(|mut entries| entries.next().map(|entry| entry.is_ok()));
        assert!(matches!(listed, Err(_) | Ok(Some(false))), "{listed:?}: {}", mount.log());
        mount.stop();
    }
    // Where it is allowed it is read from there.
    let plain = cluster.mounting().start();
    reading::check(&tree, &plain);
    plain.stop();
}
