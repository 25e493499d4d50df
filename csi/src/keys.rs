//! The one list of what a volume may say: attributes of a PersistentVolume or an inline volume, parameters of a
//! StorageClass, keys of a Secret.
//!
//! Invariant: a key is understood only if it stands here (or is one of Kubernetes' own); any other is INVALID_ARGUMENT and
//! names the nearest known one, so that a misspelt key never silently means the default.

use common::conf::{keys, nearest};
use std::collections::{BTreeMap, HashMap};
use tonic::Status;

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `volumeAttributes` of a PersistentVolume or of an inline volume.
    Attribute,
    /// `parameters` of a StorageClass.
    Parameter,
}

impl Place {
    fn word(self) -> &'static str {
        match self {
            Place::Attribute => "volume attribute",
            Place::Parameter => "storage class parameter",
        }
    }
}

/// A key.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// The same by another name, as found in the wild.
    pub alias: &'static str,
    /// Whether a StorageClass may have it.
    pub parameter: bool,
    /// Whether a volume may have it.
    pub attribute: bool,
    /// What it is, in half a sentence.
    pub doc: &'static str,
}

const fn spec(name: &'static str, alias: &'static str, attribute: bool, parameter: bool, doc: &'static str) -> Spec {
    Spec { name, alias, parameter, attribute, doc }
}

/// A path in the namespace of the cluster.
pub const ALLUXIO_PATH: &str = "alluxioPath";
/// The under storage of a volume without a cluster.
pub const UFS: &str = "ufs";
/// A directory below what is mounted.
pub const SUB_PATH: &str = "subPath";
/// Options of the mount.
pub const MOUNT_OPTIONS: &str = "mountOptions";
/// Properties as -Dkey=value.
pub const JAVA_OPTIONS: &str = "javaOptions";
/// Whether the mount gets a pod of its own.
pub const MOUNT_IN_POD: &str = "mountInPod";
/// Which cluster.
pub const CLUSTER_NAME: &str = "alluxioClusterName";
/// The Kubernetes namespace of the cluster.
pub const CLUSTER_NAMESPACE: &str = "alluxioClusterNamespace";
/// How the directories of a class's volumes are named.
pub const PATH_PATTERN: &str = "pathPattern";

/// All keys.
pub static KEYS: &[Spec] = &[
    spec(ALLUXIO_PATH, "alluxio_path", true, true, "a path in the namespace of the cluster; / when absent"),
    spec(UFS, "", true, true, "an under storage such as s3://bucket/prefix, mounted without a cluster"),
    spec(SUB_PATH, "", true, false, "the directory below the path or under storage that the pod sees"),
    spec(
        MOUNT_OPTIONS,
        "mount_options",
        true,
        true,
        "options of the mount, separated by commas, as of alluxio-fuse -o",
    ),
    spec(JAVA_OPTIONS, "java_options", true, true, "properties as -Dkey=value, separated by blanks"),
    spec(
        MOUNT_IN_POD,
        "mount_in_pod",
        true,
        true,
        "true: a pod of its own for the mount; false: the daemon of the node",
    ),
    spec(CLUSTER_NAME, "", true, true, "alluxio.cluster.name of the cluster"),
    spec(CLUSTER_NAMESPACE, "", true, true, "the Kubernetes namespace of the cluster"),
    spec(PATH_PATTERN, "", false, true, "the directory of a volume, such as ${.PVC.namespace}/${.PVC.name}"),
];

/// Keys that Kubernetes and its sidecars add.
const KUBERNETES: [&str; 2] = ["csi.storage.k8s.io/", "storage.kubernetes.io/"];

/// What an inline volume is marked with.
pub const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";
/// Names of the claim and the volume, which external-provisioner adds with --extra-create-metadata.
pub const PVC_NAME: &str = "csi.storage.k8s.io/pvc/name";
/// See [`PVC_NAME`].
pub const PVC_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
/// See [`PVC_NAME`].
pub const PV_NAME: &str = "csi.storage.k8s.io/pv/name";

/// Settings by canonical name; those of Kubernetes keep theirs.
pub type Settings = BTreeMap<String, String>;

/// Checks the keys of `given`, and names them canonically. Empty values count as absent.
///
/// # Errors
/// INVALID_ARGUMENT for a key that is unknown here or given twice.
pub fn canonical(place: Place, given: &HashMap<String, String>) -> Result<Settings, Status> {
    let allowed = |spec: &&Spec| match place {
        Place::Attribute => spec.attribute,
        Place::Parameter => spec.parameter,
    };
    let mut settings = Settings::new();
    for (key, value) in given {
        if KUBERNETES.iter().any(|prefix| key.starts_with(prefix)) {
            settings.insert(key.clone(), value.clone());
            continue;
        }
        let found = KEYS.iter().filter(allowed).find(|spec| spec.name == key || (!key.is_empty() && spec.alias == key));
        let Some(spec) = found else {
            let known = KEYS.iter().filter(allowed).map(|spec| spec.name);
            let hint = match nearest(key, known.clone()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
            };
            return Err(Status::invalid_argument(format!("unknown {} {key:?}; {hint}", place.word())));
        };
        if value.trim().is_empty() {
            continue;
        }
        if settings.insert(spec.name.to_owned(), value.trim().to_owned()).is_some() {
            return Err(Status::invalid_argument(format!(
                "{} is given as {} too; keep one of them",
                spec.name, spec.alias
            )));
        }
    }
    Ok(settings)
}

/// Names that Secrets use for what has another name in the configuration.
const SECRET_ALIASES: [(&str, &str); 6] = [
    ("AWS_ACCESS_KEY_ID", "s3a.accessKeyId"),
    ("AWS_SECRET_ACCESS_KEY", "s3a.secretKey"),
    ("AWS_SESSION_TOKEN", "s3a.sessionToken"),
    ("accessKeyId", "s3a.accessKeyId"),
    ("secretKey", "s3a.secretKey"),
    ("sessionToken", "s3a.sessionToken"),
];

/// Which keys must come together: with the first, the second is needed.
const PAIRS: [(&str, &str); 5] = [
    ("s3a.accessKeyId", "s3a.secretKey"),
    ("s3a.secretKey", "s3a.accessKeyId"),
    ("s3a.sessionToken", "s3a.accessKeyId"),
    ("fs.oss.accessKeyId", "fs.oss.accessKeySecret"),
    ("fs.oss.accessKeySecret", "fs.oss.accessKeyId"),
];

/// Checks the keys of a Secret, and names them as the configuration does. No value is ever in an error.
///
/// # Errors
/// INVALID_ARGUMENT for a key that is no credential, is given twice, or lacks the one that belongs to it.
pub fn secrets(given: &HashMap<String, String>) -> Result<Settings, Status> {
    let mut secrets = Settings::new();
    for (key, value) in given {
        let alias = SECRET_ALIASES.iter().find(|(alias, _)| alias == key).map(|(_, name)| *name);
        let decl = keys::find(alias.unwrap_or(key)).filter(|decl| is_credential(decl));
        let Some(decl) = decl else {
            let known = || {
                let aliases = SECRET_ALIASES.iter().map(|(alias, _)| *alias);
                keys::all().filter(|decl| is_credential(decl)).map(|decl| decl.name).chain(aliases)
            };
            let hint = match nearest(key, known()) {
                Some(near) => format!("did you mean {near}?"),
                None => "a Secret holds credentials such as s3a.accessKeyId and s3a.secretKey".into(),
            };
            return Err(Status::invalid_argument(format!("unknown key {key:?} in the secret; {hint}")));
        };
        if value.trim().is_empty() {
            return Err(Status::invalid_argument(format!("{key} in the secret is empty; give its value")));
        }
        // What is quoted in a properties file with a line end means the value without it.
        if secrets.insert(decl.name.to_owned(), value.trim().to_owned()).is_some() {
            return Err(Status::invalid_argument(format!("the secret has {} twice, by two names", decl.name)));
        }
    }
    for (one, other) in PAIRS {
        if secrets.contains_key(one) && !secrets.contains_key(other) {
            return Err(Status::invalid_argument(format!("the secret has {one} but not {other}; add it")));
        }
    }
    Ok(secrets)
}

/// Whether a key of the configuration says who we are at a storage.
fn is_credential(decl: &common::conf::Decl) -> bool {
    decl.scope == common::conf::Scope::UnderStorage && (decl.secret || decl.name == "fs.azure.account.oauth2.client.id")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn old_names_mean_the_same() {
        let given = map(&[("alluxio_path", "/a"), ("java_options", "-Dx=y"), (EPHEMERAL, "true"), ("ufs", " ")]);
        let settings = canonical(Place::Attribute, &given).unwrap();
        assert_eq!(settings[ALLUXIO_PATH], "/a");
        assert_eq!(settings[EPHEMERAL], "true");
        assert!(!settings.contains_key(UFS));
    }

    #[test]
    fn a_misspelt_key_names_the_nearest() {
        let error = canonical(Place::Attribute, &map(&[("alluxioPaht", "/a")])).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        assert!(error.message().contains("did you mean alluxioPath?"), "{}", error.message());
        let error = canonical(Place::Attribute, &map(&[("pathPattern", "x")])).unwrap_err();
        assert!(error.message().contains("volume attribute"), "{}", error.message());
        assert!(canonical(Place::Parameter, &map(&[("pathPattern", "x")])).is_ok());
        let both = map(&[("alluxio_path", "/a"), ("alluxioPath", "/b")]);
        assert!(canonical(Place::Attribute, &both).is_err());
    }

    #[test]
    fn secrets_are_whole_known_and_never_quoted() {
        let good = secrets(&map(&[("AWS_ACCESS_KEY_ID", "id"), ("s3a.secretKey", "hush\n")])).unwrap();
        assert_eq!(good["s3a.secretKey"], "hush");
        for bad in [
            map(&[("s3a.accessKeyId", "hush")]),
            map(&[("s3a.acessKeyId", "hush")]),
            map(&[("alluxio.cluster.name", "hush")]),
            map(&[("s3a.accessKeyId", "hush"), ("AWS_ACCESS_KEY_ID", "hush"), ("s3a.secretKey", "hush")]),
        ] {
            let error = secrets(&bad).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(!error.message().contains("hush"), "{}", error.message());
        }
    }
}
