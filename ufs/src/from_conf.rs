//! From the configuration to the options of an under storage: the one place where the two sets of names meet.

use crate::options::{S3Options, Secret, UfsOptions};
use common::UfsUri;
use common::conf::{Conf, keys::underfs, keys::user};
use std::time::Duration;

/// The longest silence of a storage that is waited out, within the deadline of the whole call.
const SILENCE: Duration = Duration::from_secs(10);

impl UfsOptions {
    /// The options that `conf` holds for the storage at `uri`.
    pub fn from_conf(conf: &Conf, uri: &UfsUri) -> Self {
        let give_up = conf.get(&user::UFS_DEADLINE);
        Self {
            connect_timeout: conf.get(&user::UFS_CONNECT_TIMEOUT).min(give_up),
            deadline: give_up.min(SILENCE),
            give_up,
            retries: u32::try_from(conf.get(&user::UFS_RETRIES)).unwrap_or(u32::MAX),
            concurrency: usize::try_from(conf.get(&user::UFS_CONCURRENCY)).unwrap_or(usize::MAX),
            s3: S3Options {
                endpoint: conf.get(&underfs::S3_ENDPOINT),
                region: conf.get(&underfs::S3_REGION),
                path_style: conf.get(&underfs::S3_DISABLE_DNS_BUCKETS),
                secure: Some(conf.get(&underfs::S3_SECURE_HTTP_ENABLED)),
                ca_file: conf.get(&underfs::S3_CA_CERT),
                access_key: conf.get(&underfs::S3_ACCESS_KEY_ID),
                secret_key: conf.get(&underfs::S3_SECRET_KEY).map(Secret::new),
                session_token: conf.get(&underfs::S3_SESSION_TOKEN).map(Secret::new),
                profile: conf.get(&underfs::S3_PROFILE),
                role_arn: conf.get(&underfs::S3_ROLE_ARN),
                anonymous: conf.get(&underfs::S3_ANONYMOUS),
                check_directory: true,
            },
            service: service(conf, uri).into_iter().collect(),
            ..Self::default()
        }
    }
}

/// The settings of the service behind OpenDAL that serves the scheme, by OpenDAL's names.
fn service(conf: &Conf, uri: &UfsUri) -> Vec<(String, Secret)> {
    let mut settings = Vec::new();
    let mut set = |name: &str, value: Option<String>| {
        settings.extend(value.map(|value| (name.to_owned(), Secret::new(value))));
    };
    match uri.scheme() {
        "gs" | "gcs" => {
            let path = conf.get(&underfs::GCS_CREDENTIAL_PATH);
            set("credential_path", path.map(|path| path.to_string_lossy().into_owned()));
            set("endpoint", conf.get(&underfs::GCS_ENDPOINT));
            if conf.get(&underfs::GCS_ANONYMOUS) {
                set("skip_signature", Some("true".into()));
            }
        }
        "abfs" | "abfss" => {
            set("endpoint", conf.get(&underfs::ABFS_ENDPOINT));
            set("account_name", conf.get(&underfs::ABFS_ACCOUNT_NAME));
            set("account_key", conf.get(&underfs::ABFS_ACCOUNT_KEY));
            set("sas_token", conf.get(&underfs::ABFS_SAS_TOKEN));
            set("client_id", conf.get(&underfs::ABFS_CLIENT_ID));
            set("client_secret", conf.get(&underfs::ABFS_CLIENT_SECRET));
            set("tenant_id", conf.get(&underfs::ABFS_TENANT_ID));
        }
        "oss" => {
            set("endpoint", conf.get(&underfs::OSS_ENDPOINT));
            set("access_key_id", conf.get(&underfs::OSS_ACCESS_KEY_ID));
            set("access_key_secret", conf.get(&underfs::OSS_ACCESS_KEY_SECRET));
        }
        "hdfs" => {
            let required = conf.is_set(&underfs::HDFS_CONFIGURATION);
            let name = if required { "configuration_required" } else { "configuration" };
            set(name, Some(conf.get(&underfs::HDFS_CONFIGURATION)));
        }
        "webhdfs" => {
            set("user_name", conf.get(&underfs::WEBHDFS_USER));
            set("delegation", conf.get(&underfs::WEBHDFS_DELEGATION));
            if conf.get(&underfs::WEBHDFS_TLS) {
                set("endpoint", Some(format!("https://{}", uri.authority())));
            }
        }
        _ => {}
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::conf::{Environment, Source};

    fn options(uri: &str, settings: &[(&str, &str)]) -> UfsOptions {
        let mut builder = Conf::builder().environment(Environment::of([], 0));
        for (key, value) in settings {
            builder = builder.set(key, value, Source::CommandLine("-o".into()));
        }
        UfsOptions::from_conf(&builder.load().unwrap(), &UfsUri::parse(uri).unwrap())
    }

    #[test]
    fn keys_reach_the_options() {
        let given = [
            ("alluxio.underfs.s3.endpoint", "http://h:1"),
            ("alluxio.underfs.s3.disable.dns.buckets", "true"),
            ("aws.accessKeyId", "id"),
            ("aws.secretKey", "hidden"),
            ("alluxio.user.ufs.deadline", "3s"),
            ("alluxio.user.ufs.retries", "7"),
        ];
        let options = options("s3://b", &given);
        assert_eq!(options.s3.endpoint.as_deref(), Some("http://h:1"));
        assert_eq!(options.s3.path_style, Some(true));
        assert_eq!(options.s3.access_key.as_deref(), Some("id"));
        assert_eq!(options.s3.secret_key.as_ref().map(Secret::reveal), Some("hidden"));
        assert_eq!(
            (options.deadline, options.give_up, options.retries),
            (Duration::from_secs(3), Duration::from_secs(3), 7)
        );
        assert!(options.service.is_empty());
        assert!(!format!("{options:?}").contains("hidden"));
    }

    #[test]
    fn each_service_gets_only_its_own_settings() {
        let given = [
            ("fs.azure.account.key.acme.dfs.core.windows.net", "k"),
            ("fs.oss.endpoint", "o"),
            ("alluxio.underfs.webhdfs.tls.enabled", "true"),
            ("fs.gcs.credential.path", "/c.json"),
        ];
        let names = |uri: &str| options(uri, &given).service.into_keys().collect::<Vec<_>>();
        assert_eq!(names("abfs://c@acme.dfs.core.windows.net"), ["account_key"]);
        assert_eq!(names("oss://b"), ["endpoint"]);
        assert_eq!(names("gs://b"), ["credential_path"]);
        assert_eq!(names("hdfs://h:8020"), ["configuration"]);
        let web = options("webhdfs://h:9870/x", &given);
        assert_eq!(web.service["endpoint"].reveal(), "https://h:9870");
    }
}
