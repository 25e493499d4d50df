//! The chain of sources as a whole, and rules that every declaration keeps.

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::time::Duration;

fn cli() -> Source {
    Source::CommandLine("-o".into())
}

fn error(key: &str, value: &str) -> String {
    Conf::builder().set(key, value, cli()).load().unwrap_err().to_string()
}

#[test]
fn every_declaration_is_complete() {
    let mut seen = HashSet::new();
    for decl in keys::all() {
        for name in std::iter::once(&decl.name).chain(decl.aliases) {
            assert!(seen.insert(*name), "{name} is declared twice");
        }
        assert!(
            !decl.doc.trim().is_empty() && decl.doc.trim().ends_with(['.', ')']),
            "{} lacks documentation",
            decl.name
        );
        assert!(decl.optional || !matches!(decl.default, DefaultValue::None), "{} has no default", decl.name);
        assert_eq!(
            decl.kind == Kind::Integer,
            !decl.unit.is_empty(),
            "{}: integers have a unit, others none",
            decl.name
        );
        if crate::redact::is_secret_name(&decl.name.replace("alluxio", "x")) && !decl.name.ends_with("path") {
            assert!(decl.secret, "{} looks like a secret", decl.name);
        }
    }
}

#[test]
fn defaults_are_valid_in_every_environment() {
    for environment in [
        Environment::of([], 0),
        Environment::of([], 1000),
        Environment::of([("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/1000"), ("ALLUXIO_HOME", "/opt/a")], 1000),
    ] {
        let conf = Conf::builder().environment(environment).process(Role::Fuse).load().unwrap();
        assert!(conf.warnings().is_empty() && conf.notes().is_empty());
    }
    let conf = Conf::defaults();
    assert_eq!(conf.get(&keys::user::CLIENT_CACHE_SIZE), Size(512 << 20));
    assert_eq!(conf.get(&keys::fuse::WEB_PORT), 49999);
    assert!(conf.get(&keys::user::MEMORY_LIMIT).bytes() <= 2 << 30);
    assert_eq!(conf.source_of(&keys::fuse::WEB_PORT), Source::Default);
}

#[test]
fn later_sources_override_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("alluxio-site.properties"),
        "alluxio.fuse.web.port=1\nalluxio.fuse.threads=1\nalluxio.fuse.max.background=1\nalluxio.user.ufs.retries=1\nalluxio.fuse.readahead.kb=64",
    )
    .unwrap();
    let environment = Environment::of(
        [
            ("ALLUXIO_CONF_DIR", dir.path().to_str().unwrap()),
            ("ALLUXIO_FUSE_JAVA_OPTS", "-Xmx1g -Dalluxio.fuse.threads=3 -Dalluxio.fuse.max.background=3"),
            ("ALLUXIO_WORKER_JAVA_OPTS", "-Dalluxio.fuse.threads=9"),
            ("ALLUXIO_JAVA_OPTS", "-Dalluxio.fuse.web.port=2 -Dalluxio.fuse.threads=2 -Dalluxio.fuse.max.background=2"),
        ],
        0,
    );
    // The command line wins although it is added first.
    let conf = Conf::builder()
        .environment(environment)
        .set("alluxio.fuse.max.background", "4", cli())
        .process(Role::Fuse)
        .load()
        .unwrap();
    assert_eq!(conf.get(&keys::user::UFS_RETRIES), 1);
    assert_eq!(conf.get(&keys::fuse::WEB_PORT), 2);
    assert_eq!(conf.get(&keys::fuse::THREADS), 3);
    assert_eq!(conf.get(&keys::fuse::MAX_BACKGROUND), 4);
    assert!(conf.source_of(&keys::user::UFS_RETRIES).to_string().ends_with("alluxio-site.properties line 4"));
    assert_eq!(conf.source_of(&keys::fuse::THREADS).to_string(), "environment variable ALLUXIO_FUSE_JAVA_OPTS");
    assert_eq!(conf.notes().len(), 1);
    assert!(conf.notes()[0].contains("-Xmx1g"));
    let changed = conf.to_builder().set("alluxio.user.ufs.retries", "2", cli()).load().unwrap();
    assert_eq!((changed.get(&keys::user::UFS_RETRIES), changed.get(&keys::fuse::THREADS)), (2, 3));
}

#[test]
fn errors_name_key_value_place_and_fix() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p");
    std::fs::write(&path, "# cache\nalluxio.user.client.cache.size = 12QB\n").unwrap();
    let message = Conf::builder().site_properties(&path).load().unwrap_err().to_string();
    for part in ["alluxio.user.client.cache.size=12QB", "p line 2", "'QB'", "512MiB"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(error("alluxio.user.client.cache.page.size", "1").contains("use 64KiB to 64MiB"));
    assert!(error("alluxio.fuse.web.port", "65536").contains("use 0 to 65535"));
    assert!(error("alluxio.fuse.passthrough", "maybe").contains("AUTO, OFF"));
    assert!(error("alluxio.fuse.threads", "").contains("whole number"));
    assert!(error("alluxio.fuse.threads", "${alluxio.fuse.readahead.kb}").contains("becomes '4096'"));
    assert!(Conf::builder().site_properties(dir.path().join("none")).load().is_err());
    let message = Conf::builder().java_opts("ALLUXIO_JAVA_OPTS", "-Da='").load().unwrap_err().to_string();
    assert!(message.contains("ALLUXIO_JAVA_OPTS"), "{message}");
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    assert!(error("alluxio.user.client.cache.watermark.low.ratio", "0.99").contains("below"));
    assert!(error("alluxio.user.client.cache.sizes", "1GB,2GB").contains("2 sizes for the 1 directories"));
    let message = error("s3a.accessKeyId", "PUBLICPART");
    assert!(message.contains("s3a.secretKey is not") && !message.contains("PUBLICPART"), "{message}");
}

#[test]
fn unknown_keys_are_warnings_with_the_nearest_key() {
    let conf = Conf::builder()
        .set("alluxio.fuse.web.prot", "1", cli())
        .set("s3a.secretkey", "1", cli())
        .set("alluxio.something.entirely.different.from.all", "1", cli())
        .set("log4j.rootLogger", "1", cli())
        .set("alluxio.fuse.special.command.enabled", "true", cli())
        .load()
        .unwrap();
    let warnings = conf.warnings();
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    for part in
        ["did you mean alluxio.fuse.web.port?", "did you mean s3a.secretKey?", "entirely.different", "no effect"]
    {
        assert!(warnings.iter().any(|line| line.contains(part)), "{part}: {warnings:?}");
    }
    assert_eq!(conf.show("log4j.rootLogger").unwrap().0.as_deref(), Some("1"));
    assert_eq!(conf.show("nobody.knows"), None);
}

#[test]
fn references_and_aliases_are_resolved() {
    let conf = Conf::builder()
        .environment(Environment::of([("ALLUXIO_HOME", "/opt/a"), ("PORT", "81")], 0))
        .set("my.level", "debug", cli())
        .set("alluxio.fuse.log.level", "${my.level}", cli())
        .set("alluxio.fuse.log.file", " ${alluxio.home}/logs/fuse.log ", cli())
        .set("alluxio.fuse.web.port", "${env.PORT}", cli())
        .set("aws.accessKeyId", "one", cli())
        .set("s3a.accessKeyId", "two", cli())
        .set("aws.secretKey", "s", cli())
        .set("fs.azure.account.key.acme.dfs.core.windows.net", "azure", cli())
        .load()
        .unwrap();
    assert_eq!(conf.get(&keys::fuse::LOG_LEVEL).0, "debug");
    assert_eq!(conf.get(&keys::fuse::LOG_FILE).unwrap().to_str(), Some("/opt/a/logs/fuse.log"));
    assert_eq!(conf.get(&keys::fuse::WEB_PORT), 81);
    assert_eq!(conf.get(&keys::underfs::S3_ACCESS_KEY_ID).as_deref(), Some("two"));
    assert_eq!(conf.get(&keys::underfs::ABFS_ACCOUNT_KEY).as_deref(), Some("azure"));
    assert_eq!(
        conf.show("alluxio.worker.identity.uuid.file.path").unwrap().0.as_deref(),
        Some("/opt/a/conf/worker_identity")
    );
    let cycle = Conf::builder()
        .set("alluxio.home", "${alluxio.conf.dir}", cli())
        .set("alluxio.conf.dir", "${alluxio.home}/conf", cli())
        .load()
        .unwrap_err()
        .to_string();
    assert!(cycle.contains("alluxio.home -> alluxio.conf.dir -> alluxio.home"), "{cycle}");
}

#[test]
fn secrets_are_never_shown() {
    let conf = Conf::builder()
        .set("s3a.accessKeyId", "PUBLICPART", cli())
        .set("s3a.secretKey", "SECRETPART", cli())
        .set("my.own.password", "OTHERPART", cli())
        .java_opts("ALLUXIO_JAVA_OPTS", "-Dalluxio.secret.thing=THING -javaagent:x=password=AGENT")
        .load()
        .unwrap();
    let mut texts = vec![format!("{conf:?}"), conf.warnings().join(" "), conf.notes().join(" ")];
    texts.extend(["aws.secretKey", "s3a.accessKeyId", "my.own.password"].map(|key| format!("{:?}", conf.show(key))));
    for secret in ["PUBLICPART", "SECRETPART", "OTHERPART", "THING", "AGENT"] {
        assert!(texts.iter().all(|text| !text.contains(secret)), "{secret}: {texts:?}");
    }
    assert_eq!(conf.get(&keys::underfs::S3_SECRET_KEY).as_deref(), Some("SECRETPART"));
    let message = error("s3a.secretKey", "HIDDENPART${nothing}");
    assert!(!message.contains("HIDDENPART"), "{message}");
}

#[test]
fn typed_values() {
    let conf = Conf::builder()
        .set("alluxio.user.metadata.sync.interval", "-1", cli())
        .set("alluxio.user.metadata.negative.ttl", "250", cli())
        .set("alluxio.user.client.cache.dirs", "/a, /b", cli())
        .set("alluxio.user.client.cache.sizes", "1GB,2GB", cli())
        .load()
        .unwrap();
    assert_eq!(conf.get(&keys::user::METADATA_SYNC_INTERVAL), Expiry::Never);
    assert_eq!(conf.get(&keys::user::METADATA_NEGATIVE_TTL), Duration::from_millis(250));
    assert_eq!(conf.get(&keys::user::CLIENT_CACHE_DIRS), [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(conf.get(&keys::user::CLIENT_CACHE_SIZES), [Size(1 << 30), Size(2 << 30)]);
    assert_eq!(conf.get(&keys::underfs::S3_DISABLE_DNS_BUCKETS), None);
}

#[test]
fn the_documentation_mentions_every_key_and_option() {
    let docs = docs();
    assert!(keys::names().all(|name| docs.contains(&format!("`{name}`"))));
    assert!(docs.contains("`local_data_cache=VALUE`") && docs.contains("not together with `auto_cache`, `direct_io`"));
}

proptest! {
    #[test]
    fn no_value_panics(at in any::<prop::sample::Index>(), value in "\\PC{0,20}") {
        let names: Vec<&str> = keys::all().map(|decl| decl.name).collect();
        let _ = Conf::builder().environment(Environment::of([], 0)).set(names[at.index(names.len())], &value, cli()).load();
    }
}
