//! Keys of the connections to under storages: where they are and who we are there.

use crate::conf::key::Decl;
use crate::conf::{Scope, keys};
use std::path::PathBuf;

keys! { Scope::UnderStorage;
    /// The access key of S3. Without it the usual places are looked at: the AWS environment variables, the profile files,
    /// web identity, instance metadata.
    S3_ACCESS_KEY_ID: Option<String> =
        Decl::named("s3a.accessKeyId").aliases(&["aws.accessKeyId", "fs.s3a.access.key"]).secret();

    /// The secret key of S3.
    S3_SECRET_KEY: Option<String> =
        Decl::named("s3a.secretKey").aliases(&["aws.secretKey", "fs.s3a.secret.key"]).secret();

    /// The session token that belongs to temporary S3 keys.
    S3_SESSION_TOKEN: Option<String> =
        Decl::named("s3a.sessionToken").aliases(&["aws.sessionToken", "fs.s3a.session.token"]).secret();

    /// The profile of `~/.aws/config` and `~/.aws/credentials` to use.
    S3_PROFILE: Option<String> = Decl::named("alluxio.underfs.s3.profile");

    /// The role to assume, as an ARN, with the credentials found.
    S3_ROLE_ARN: Option<String> = Decl::named("alluxio.underfs.s3.role.arn");

    /// Whether requests to S3 are sent without a signature, for public buckets.
    S3_ANONYMOUS: bool = Decl::named("alluxio.underfs.s3.anonymous").default("false");

    /// The endpoint of S3, such as `http://localhost:9000`. Empty: that of Amazon in the region.
    S3_ENDPOINT: Option<String> = Decl::named("alluxio.underfs.s3.endpoint").aliases(&["fs.s3a.endpoint"]);

    /// The region of the bucket. Empty: from the AWS environment or profile, else found out, else us-east-1.
    S3_REGION: Option<String> =
        Decl::named("alluxio.underfs.s3.region").aliases(&["alluxio.underfs.s3.endpoint.region", "fs.s3a.endpoint.region"]);

    /// Whether the bucket is put in the path of a URL (path style) rather than in the host name. Most servers other than
    /// Amazon's need true. Empty: true when an endpoint is set or the bucket's name contains a dot.
    S3_DISABLE_DNS_BUCKETS: Option<bool> =
        Decl::named("alluxio.underfs.s3.disable.dns.buckets").aliases(&["fs.s3a.path.style.access"]);

    /// Whether TLS is used when the endpoint names no scheme.
    S3_SECURE_HTTP_ENABLED: bool = Decl::named("alluxio.underfs.s3.secure.http.enabled").default("true");

    /// A file with certificates (PEM) that are trusted for S3 beside those of the system.
    S3_CA_CERT: Option<PathBuf> = Decl::named("alluxio.underfs.s3.ca.cert");

    /// How many connections to S3 are kept, at most; `alluxio.user.ufs.concurrency` bounds them here.
    S3_CONNECTIONS_MAX: u64 =
        Decl::named("alluxio.underfs.s3.connections.max").default("1024").range(1, 65535).unit("connections").reserved();

    /// What marks an object as a directory.
    S3_DIRECTORY_SUFFIX: String = Decl::named("alluxio.underfs.s3.directory.suffix").default("/").reserved();

    /// Whether large files are uploaded in parts.
    S3_MULTIPART_UPLOAD_ENABLED: bool =
        Decl::named("alluxio.underfs.s3.multipart.upload.enabled").default("true").reserved();

    /// The service account of Google Cloud Storage: a file in JSON.
    GCS_CREDENTIAL_PATH: Option<PathBuf> = Decl::named("fs.gcs.credential.path")
        .aliases(&["alluxio.underfs.gcs.credential.path", "google.cloud.auth.service.account.json.keyfile"]);

    /// The endpoint of Google Cloud Storage. Empty: Google's own.
    GCS_ENDPOINT: Option<String> = Decl::named("alluxio.underfs.gcs.endpoint");

    /// Whether requests to Google Cloud Storage are sent without credentials, for public buckets.
    GCS_ANONYMOUS: bool = Decl::named("alluxio.underfs.gcs.anonymous").default("false");

    /// The endpoint of Azure Data Lake Storage. Empty: `https://<account>.dfs.core.windows.net` of the account in the URI.
    ABFS_ENDPOINT: Option<String> = Decl::named("alluxio.underfs.abfs.endpoint");

    /// The name of the Azure storage account, when the URI does not contain it.
    ABFS_ACCOUNT_NAME: Option<String> = Decl::named("alluxio.underfs.abfs.account.name");

    /// The key of the Azure storage account.
    ABFS_ACCOUNT_KEY: Option<String> =
        Decl::named("alluxio.underfs.abfs.account.key").aliases(&["fs.azure.account.key.*"]).secret();

    /// A shared access signature for Azure, instead of a key.
    ABFS_SAS_TOKEN: Option<String> =
        Decl::named("alluxio.underfs.abfs.sas.token").aliases(&["fs.azure.sas.fixed.token"]).secret();

    /// The client of an Azure service principal, instead of a key.
    ABFS_CLIENT_ID: Option<String> =
        Decl::named("fs.azure.account.oauth2.client.id").aliases(&["alluxio.underfs.abfs.client.id"]);

    /// The secret of that client.
    ABFS_CLIENT_SECRET: Option<String> =
        Decl::named("fs.azure.account.oauth2.client.secret").aliases(&["alluxio.underfs.abfs.client.secret"]).secret();

    /// The tenant of that client.
    ABFS_TENANT_ID: Option<String> = Decl::named("alluxio.underfs.abfs.tenant.id").aliases(&["fs.azure.account.oauth2.msi.tenant"]);

    /// The access key of Aliyun OSS.
    OSS_ACCESS_KEY_ID: Option<String> =
        Decl::named("fs.oss.accessKeyId").aliases(&["alluxio.underfs.oss.accessKeyId"]).secret();

    /// The secret key of Aliyun OSS.
    OSS_ACCESS_KEY_SECRET: Option<String> =
        Decl::named("fs.oss.accessKeySecret").aliases(&["alluxio.underfs.oss.accessKeySecret"]).secret();

    /// The endpoint of Aliyun OSS, such as `oss-cn-hangzhou.aliyuncs.com`.
    OSS_ENDPOINT: Option<String> = Decl::named("fs.oss.endpoint").aliases(&["alluxio.underfs.oss.endpoint"]);

    /// The files that configure HDFS, separated by colons or commas, over those in `$HADOOP_CONF_DIR`. Those of the default
    /// may be missing.
    HDFS_CONFIGURATION: String = Decl::named("alluxio.underfs.hdfs.configuration")
        .default("${alluxio.conf.dir}/core-site.xml:${alluxio.conf.dir}/hdfs-site.xml");

    /// The user name under which HDFS is used. Here it is `$HADOOP_USER_NAME`, else that of this process.
    HDFS_USER: Option<String> = Decl::named("alluxio.underfs.hdfs.user").reserved();

    /// The user name under which WebHDFS is used. Empty: none is sent.
    WEBHDFS_USER: Option<String> = Decl::named("alluxio.underfs.webhdfs.user");

    /// The delegation token for WebHDFS, instead of a user name.
    WEBHDFS_DELEGATION: Option<String> = Decl::named("alluxio.underfs.webhdfs.delegation").secret();

    /// Whether WebHDFS is reached by https.
    WEBHDFS_TLS: bool = Decl::named("alluxio.underfs.webhdfs.tls.enabled").default("false");
}
