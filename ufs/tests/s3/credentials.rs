//! Where keys come from: every place that AWS tools look at, on servers that hand them out.

use crate::{
    http::{self, Answer},
    open, options, path,
};
use common::{ErrorKind, UfsUri, conf::Conf, conf::Source};
use s3server::{
    Credentials, Options, Server,
    credentials::{CredentialServer, Kind},
};
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use ufs::{Environment, UfsOptions};

/// A server that wants `keys`, and options that find credentials in `environment` only.
fn chained(keys: &Credentials, environment: &[(&str, &str)]) -> (Server, UfsOptions) {
    let given = Options { credentials: vec![keys.clone()], ..Options::with_buckets(["bkt"]) };
    let server = Server::start(given).unwrap();
    let mut options = options(&server);
    options.s3.anonymous = false;
    let off = [("AWS_EC2_METADATA_DISABLED", "true")];
    let off = off.iter().filter(|_| !environment.iter().any(|(name, _)| name.starts_with("AWS_EC2")));
    options.environment = Arc::new(Environment::of(environment.iter().chain(off).copied()));
    (server, options)
}

#[tokio::test]
async fn credentials_come_from_where_aws_tools_look() {
    let keys = Credentials::new("AK", "SK").token("TOKEN");
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let shared =
        file("credentials", "[work]\naws_access_key_id=AK\naws_secret_access_key=SK\naws_session_token=TOKEN\n");
    let token = file("token", "identity");
    let instance = Kind::Imds { role: "node".into(), region: "us-east-1".into() };
    let instance = CredentialServer::start(instance, keys.clone()).unwrap();
    let sts = Kind::Sts { role_arn: "arn:aws:iam::1:role/r".into(), identity_token: "identity".into() };
    let sts = CredentialServer::start(sts, keys.clone()).unwrap();
    for environment in [
        vec![("AWS_ACCESS_KEY_ID", "AK"), ("AWS_SECRET_ACCESS_KEY", "SK"), ("AWS_SESSION_TOKEN", "TOKEN")],
        vec![("AWS_SHARED_CREDENTIALS_FILE", shared.as_str()), ("AWS_PROFILE", "work")],
        vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url().as_str())],
        vec![
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
            ("AWS_ENDPOINT_URL_STS", sts.url().as_str()),
        ],
    ] {
        let (server, options) = chained(&keys, &environment);
        server.put("bkt", "k", "1").unwrap();
        let storage = open("s3://bkt", &options);
        storage.probe().await.unwrap_or_else(|error| panic!("{environment:?}: {error}"));
    }
    let (_server, options) = chained(&keys, &[]);
    let error = open("s3://bkt", &options).probe().await.unwrap_err();
    assert!(error.message().contains("AWS_ACCESS_KEY_ID"), "{error}");
}

#[tokio::test]
async fn keys_are_fetched_once_and_again_when_they_expire() {
    let keys = Credentials::new("AK", "SK").token("T1");
    let instance = Kind::Imds { role: "node".into(), region: "us-east-1".into() };
    let instance = CredentialServer::start(instance, keys.clone()).unwrap();
    let (server, options) = chained(&keys, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url().as_str())]);
    server.put("bkt", "k", "1").unwrap();
    let storage = open("s3://bkt", &options);
    let file = path("k");
    let stats = (0..20).map(|_| storage.stat(&file));
    for result in futures::future::join_all(stats).await {
        result.unwrap();
    }
    assert_eq!(instance.issued(), 1, "one fetch for all");
    // The service turns the old ones down as expired: new ones are fetched, once.
    let next = Credentials::new("AK2", "SK2").token("T2");
    instance.set_credentials(next.clone());
    let expired = keys.expires(SystemTime::now() - Duration::from_secs(5));
    server.set_credentials(vec![expired, next]);
    storage.stat(&file).await.unwrap();
    assert_eq!(instance.issued(), 2);
}

/// Files in a directory of their own, by name and text; gives their paths.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_container_gives_keys_to_those_it_knows() {
    let keys = Credentials::new("AK", "SK").token("TOKEN");
    let kind = Kind::Container { path: "/v1/keys".into(), authorization: Some("Basic let-me-in".into()) };
    let container = CredentialServer::start(kind, keys.clone()).unwrap();
    let url = container.url();
    let files = Files::new();
    let token = files.put("token", "Basic let-me-in\n");
    for authorization in [
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic let-me-in"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.as_str()),
    ] {
        let before = container.issued();
        let (_server, options) = chained(&keys, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()), authorization]);
        open("s3://bkt", &options).probe().await.unwrap_or_else(|error| panic!("{authorization:?}: {error}"));
        assert_eq!(container.issued(), before + 1);
    }
    let wrong = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "Basic wrong-token");
    let (_server, options) = chained(&keys, &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()), wrong]);
    let error = open("s3://bkt", &options).probe().await.unwrap_err();
    assert!(error.kind() == ErrorKind::PermissionDenied && error.message().contains("container"), "{error}");
    assert!(!error.message().contains("wrong-token"), "{error}");
}

/// An imitation of STS that gives the role `arn:aws:iam::123456789012:role/NAME` the keys `NAMEPADDED…`, to whom signs
/// with keys whose access key begins as `allowed` says.
async fn sts(allowed: &'static [(&'static str, &'static str)]) -> http::Server {
    http::Server::start(move |request| {
        let mut asked = request.query.clone();
        asked.extend(http::pairs(&request.body));
        let value = |name: &str| asked.get(name).cloned().unwrap_or_default();
        let role = value("RoleArn").rsplit('/').next().unwrap_or_default().to_owned();
        let signature = request.header("authorization").unwrap_or_default();
        let signer = signature.split("Credential=").nth(1).unwrap_or_default();
        // The signature covers the host, so the one that was signed for must be the one that is sent.
        let host = request.header("host").unwrap_or_default();
        let sound = signer.contains("/us-east-1/sts/aws4_request") && host == "sts.us-east-1.amazonaws.com";
        let may = allowed.iter().any(|(name, keys)| role == *name && signer.starts_with(keys));
        if value("Action") != "AssumeRole" || !sound || !may {
            let text = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>\
                        <Message>not allowed to take this role</Message></Error></ErrorResponse>";
            return Answer::new(403, text);
        }
        let keys = keys_of(&role);
        let (access, secret, token) = (&keys.access_key, &keys.secret_key, keys.session_token.as_ref().unwrap());
        Answer::new(
            200,
            format!(
                "<AssumeRoleResponse><AssumeRoleResult><AssumedRoleUser><Arn>a</Arn><AssumedRoleId>i</AssumedRoleId>\
                 </AssumedRoleUser><Credentials><AccessKeyId>{access}</AccessKeyId><SecretAccessKey>{secret}\
                 </SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
                 </Credentials></AssumeRoleResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata>\
                 </AssumeRoleResponse>"
            ),
        )
    })
    .await
}

/// The keys of a role.
fn keys_of(role: &str) -> Credentials {
    Credentials::new(format!("{:0<20}", role.to_uppercase()), format!("{role}-secret")).token(format!("{role}-token"))
}

#[tokio::test]
async fn the_role_of_the_options_is_assumed() {
    let sts = sts(&[("reader", "BASE/")]).await;
    let (server, found) = chained(&keys_of("reader"), &[("AWS_ENDPOINT_URL_STS", sts.url.as_str())]);
    let given = |role: &str| {
        let builder = Conf::builder().environment(common::conf::Environment::of([], 0));
        let mut builder = builder.set("alluxio.underfs.s3.role.arn", role, Source::CommandLine("-o".into()));
        for (key, value) in [
            ("s3a.accessKeyId", "BASE"),
            ("s3a.secretKey", "base-secret"),
            ("alluxio.underfs.s3.endpoint", server.url().as_str()),
        ] {
            builder = builder.set(key, value, Source::CommandLine("-o".into()));
        }
        let conf = builder.load().unwrap();
        assert!(conf.warnings().is_empty(), "{:?}", conf.warnings());
        let from_conf = UfsOptions::from_conf(&conf, &UfsUri::parse("s3://bkt").unwrap());
        UfsOptions { environment: found.environment.clone(), ..from_conf }
    };
    let storage = open("s3://bkt", &given("arn:aws:iam::123456789012:role/reader"));
    storage.probe().await.unwrap();
    storage.probe().await.unwrap();
    assert_eq!(sts.take_log().len(), 1, "the keys are kept");
    for (role, word) in [("arn:aws:iam::123456789012:role/other", "not allowed"), ("reader", "ARN")] {
        let error = open("s3://bkt", &given(role)).probe().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        assert!(error.message().contains(word) && !error.message().contains("base-secret"), "{error}");
    }
}

#[tokio::test]
async fn a_profile_may_name_a_role() {
    let sts = sts(&[("reader", "BASE/"), ("middle", "BASE/"), ("last", "MIDDLE00000000000000/")]).await;
    let container = Kind::Container { path: "/keys".into(), authorization: None };
    let container = CredentialServer::start(container, Credentials::new("BASE", "base-secret").token("T")).unwrap();
    let files = Files::new();
    let arn = "role_arn = arn:aws:iam::123456789012:role";
    let config = files.put(
        "config",
        &format!(
            "[profile work]\n{arn}/reader\nsource_profile = base\nexternal_id = ours\nrole_session_name = me\n\
             [profile own]\n{arn}/reader\nsource_profile = own\n\
             [profile middle]\n{arn}/middle\nsource_profile = base\n\
             [profile last]\n{arn}/last\nsource_profile = middle\n\
             [profile task]\n{arn}/reader\ncredential_source = EcsContainer\n\
             [profile variables]\n{arn}/reader\ncredential_source = Environment\n\
             [profile refused]\n{arn}/nobody\nsource_profile = base\n\
             [profile circle]\n{arn}/reader\nsource_profile = round\n\
             [profile round]\n{arn}/reader\nsource_profile = circle\n\
             [profile bare]\n{arn}/reader\n\
             [profile empty]\n{arn}/reader\nsource_profile = nothing\n"
        ),
    );
    let base = |name: &str| format!("[{name}]\naws_access_key_id = BASE\naws_secret_access_key = base-secret\n");
    let shared = files.put("credentials", &["base", "own", "refused"].map(base).concat());
    let environment = [
        ("AWS_CONFIG_FILE", config.as_str()),
        ("AWS_SHARED_CREDENTIALS_FILE", shared.as_str()),
        ("AWS_ENDPOINT_URL_STS", sts.url.as_str()),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container.url()),
        ("AWS_ACCESS_KEY_ID", "BASE"),
        ("AWS_SECRET_ACCESS_KEY", "base-secret"),
    ];
    for (profile, role, requests) in [
        ("work", "reader", 1),
        ("own", "reader", 1),
        ("middle", "middle", 1),
        ("last", "last", 2),
        ("task", "reader", 1),
        ("variables", "reader", 1),
    ] {
        let (_server, mut options) = chained(&keys_of(role), &environment);
        options.s3.profile = Some(profile.to_owned());
        open("s3://bkt", &options).probe().await.unwrap_or_else(|error| panic!("{profile}: {error}"));
        let log = sts.take_log();
        assert_eq!(log.len(), requests, "{profile}");
        if profile == "work" {
            assert_eq!((log[0].query("ExternalId"), log[0].query("RoleSessionName")), ("ours", "me"));
        }
    }
    assert_eq!(container.issued(), 1);
    // By the environment, which has no keys then.
    let by_name: Vec<_> = environment[..4].iter().copied().chain([("AWS_PROFILE", "work")]).collect();
    let (_server, options) = chained(&keys_of("reader"), &by_name);
    open("s3://bkt", &options).probe().await.unwrap();
    for (profile, word) in [
        // Although there are keys beside the role, and in the container.
        ("refused", "not allowed"),
        ("circle", "is its own source"),
        ("bare", "no source_profile"),
        ("empty", "no keys to ask for it with"),
    ] {
        let (_server, mut options) = chained(&Credentials::new("BASE", "base-secret"), &environment);
        options.s3.profile = Some(profile.to_owned());
        let error = open("s3://bkt", &options).probe().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{profile}: {error}");
        let message = error.message();
        assert!(message.contains(word) && !message.contains('\n') && !message.contains("base-secret"), "{error}");
    }
}
