//! What a volume is, read from its attributes and capability, with every word checked.
//!
//! Invariants: what [`Volume::key`] says is all that two volumes must share to be served by one session; read-only and the
//! sub-directory are no part of it, since the bind mount does them; a checked volume cannot name a way out of its root.

use crate::{
    keys::{self, Place, Settings},
    proto::{VolumeCapability, volume_capability::AccessType, volume_capability::access_mode::Mode},
};
use common::{
    UfsPath, UfsUri,
    conf::{self, KernelFlag, MountOptions, java_opts},
    handover::Session,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use tonic::Status;

/// The longest volume id that is taken, in bytes; the specification allows 128 and Kubernetes more.
const ID_MAX: usize = 1024;

/// The scheme under which the mounter serves the namespace of a cluster.
const CLUSTER_SCHEME: &str = "alluxio";

/// What a session must be given, without secrets: what records hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What is served: the URI of an under storage or of a cluster's namespace.
    pub source: String,
    /// Options of the mount, sorted.
    pub options: Vec<String>,
    /// Settings of the configuration.
    pub properties: BTreeMap<String, String>,
    /// The group of the files.
    pub group: Option<u32>,
    /// A digest of the secrets: who this is, without saying so.
    pub identity: String,
    /// The flags of mount(2) beyond the usual ones.
    pub noexec: bool,
    /// See [`Volume::noexec`].
    pub noatime: bool,
    /// Whether its access mode is one for readers, so that nothing may write through the session at all.
    #[serde(default)]
    pub readers: bool,
}

/// A volume at a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// What is served.
    pub volume: Volume,
    /// The directory below what is served, without `/` at either end.
    pub directory: String,
    /// Whether the target is read-only.
    pub read_only: bool,
    /// Whether no other target on this node may have the volume.
    pub exclusive: bool,
}

/// Properties that a volume may not set, since they are the mounter's own places.
const PLACES: [&str; 4] =
    ["alluxio.user.client.cache.dirs", "alluxio.fuse.web.port", "alluxio.fuse.web.bind.host", "alluxio.conf.dir"];

impl Volume {
    /// Names the session that can serve this volume.
    pub fn key(&self) -> String {
        // A map and lists of text always serialize.
        let text = serde_json::to_vec(self).unwrap_or_default();
        hex::encode(&Sha256::digest(&text)[..12])
    }

    /// The order for a mounter.
    pub fn session(&self, secrets: &Settings, limit_seconds: u64) -> Session {
        Session {
            key: self.key(),
            source: self.source.clone(),
            options: self.options.clone(),
            properties: self.properties.clone(),
            secrets: secrets.clone(),
            group: self.group,
            read_only: self.readers,
            limit_seconds,
            takeover: false,
        }
    }

    /// What it is, for people.
    pub fn shown(&self) -> String {
        common::redact::uri(&self.source).into_owned()
    }
}

fn invalid(line: impl Into<String>) -> Status {
    Status::invalid_argument(line)
}

/// Checks a volume id.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn check_id(id: &str) -> Result<(), Status> {
    if id.is_empty() {
        return Err(invalid("volume_id is missing"));
    }
    if id.len() > ID_MAX || id.chars().any(char::is_control) {
        return Err(invalid(format!("volume_id has control characters, or more than {ID_MAX} bytes")));
    }
    Ok(())
}

/// Checks a capability and returns its mode, mount flags and group.
///
/// # Errors
/// INVALID_ARGUMENT for what is missing or makes no sense, block devices among it.
pub fn capability(capability: Option<&VolumeCapability>) -> Result<(Mode, Vec<String>, Option<u32>), Status> {
    let capability = capability.ok_or_else(|| invalid("volume_capability is missing"))?;
    let mode = capability.access_mode.as_ref().ok_or_else(|| invalid("volume_capability.access_mode is missing"))?;
    let mode = Mode::try_from(mode.mode)
        .ok()
        .filter(|mode| *mode != Mode::Unknown)
        .ok_or_else(|| invalid(format!("volume_capability.access_mode {} is unknown", mode.mode)))?;
    let mount = match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        Some(AccessType::Block(_)) => {
            return Err(invalid("block volumes are not offered; set volumeMode: Filesystem"));
        }
        None => return Err(invalid("volume_capability has neither mount nor block")),
    };
    let group = match mount.volume_mount_group.trim() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| invalid(format!("volume_mount_group {text:?} is no group number; set fsGroup to one")))?,
        ),
    };
    let fs_type = mount.fs_type.as_str();
    if !matches!(fs_type, "" | "fuse" | "alluxio" | "fuse.alluxio-fuse" | "ext4") {
        return Err(invalid(format!("fs_type {fs_type:?} is not offered; leave fsType empty")));
    }
    Ok((mode, mount.mount_flags.clone(), group))
}

/// Whether a mode lets nobody write.
pub fn is_reader(mode: Mode) -> bool {
    matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
}

/// Reads a volume from what NodePublishVolume was given.
///
/// # Errors
/// INVALID_ARGUMENT for a word that cannot be used, UNIMPLEMENTED for what is not offered yet.
pub fn publication(
    attributes: &HashMap<String, String>,
    secrets: &Settings,
    capability: (Mode, Vec<String>, Option<u32>),
    readonly: bool,
) -> Result<Publication, Status> {
    let (mode, flags, group) = capability;
    let settings = keys::canonical(Place::Attribute, attributes)?;
    in_pod(&settings)?;
    let (source, mut directory) = source(&settings)?;
    if let Some(path) = settings.get(keys::SUB_PATH) {
        let below = path_of(keys::SUB_PATH, path)?;
        directory = [directory, below].iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("/");
    }
    let mut texts = flags;
    texts.extend(settings.get(keys::MOUNT_OPTIONS).cloned());
    let options = Options::parse(&texts)?;
    let mut properties = properties(&settings)?;
    if let Some(name) = settings.get(keys::CLUSTER_NAME) {
        properties.insert("alluxio.cluster.name".into(), name.clone());
    }
    let identity = if secrets.is_empty() { String::new() } else { digest(secrets) };
    let volume = Volume {
        source,
        options: options.words,
        properties,
        group,
        identity,
        noexec: options.noexec,
        noatime: options.noatime,
        readers: is_reader(mode),
    };
    Ok(Publication {
        volume,
        directory,
        read_only: readonly || is_reader(mode) || options.read_only,
        exclusive: mode == Mode::SingleNodeSingleWriter,
    })
}

fn digest(secrets: &Settings) -> String {
    // A map of text always serializes.
    hex::encode(&Sha256::digest(serde_json::to_vec(secrets).unwrap_or_default())[..16])
}

/// Refuses pod mode, for as long as it is not there.
///
/// # Errors
/// UNIMPLEMENTED for `mountInPod: "true"`, INVALID_ARGUMENT for what is no boolean.
pub fn in_pod(settings: &Settings) -> Result<(), Status> {
    let Some(text) = settings.get(keys::MOUNT_IN_POD) else { return Ok(()) };
    match <bool as conf::ConfValue>::parse(text) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Status::unimplemented(
            "mountInPod: \"true\" is not offered by this version; remove it, and the daemon of the node serves the volume",
        )),
        Err(why) => Err(invalid(format!("{} {text:?} {why}", keys::MOUNT_IN_POD))),
    }
}

/// What is served, and the directory in it.
fn source(settings: &Settings) -> Result<(String, String), Status> {
    match (settings.get(keys::UFS), settings.get(keys::ALLUXIO_PATH)) {
        (Some(_), Some(_)) => Err(invalid("the volume has both ufs and alluxioPath; keep one of them")),
        (Some(ufs), None) => {
            if settings.contains_key(keys::CLUSTER_NAME) {
                return Err(invalid("the volume has both ufs and alluxioClusterName: ufs needs no cluster; keep one"));
            }
            Ok((ufs_uri(ufs)?.to_string(), String::new()))
        }
        (None, path) => {
            let directory = path_of(keys::ALLUXIO_PATH, path.map_or("/", String::as_str))?;
            // An empty authority means the cluster that the mounter's configuration names.
            let cluster = settings.get(keys::CLUSTER_NAME).map_or("", String::as_str);
            if !cluster.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
                return Err(invalid(format!("alluxioClusterName {cluster:?} is no name of a cluster")));
            }
            Ok((format!("{CLUSTER_SCHEME}://{cluster}"), directory))
        }
    }
}

/// The URI of an under storage, without credentials in it.
///
/// # Errors
/// INVALID_ARGUMENT.
pub fn ufs_uri(text: &str) -> Result<UfsUri, Status> {
    let uri =
        UfsUri::parse(text).map_err(|error| invalid(format!("ufs: {}", common::redact::text(error.message()))))?;
    if uri.authority().contains('@') && uri.authority().split('@').next().is_some_and(|login| login.contains(':')) {
        return Err(invalid("ufs has a password in it; put credentials into the Secret of the volume"));
    }
    if uri.scheme() == CLUSTER_SCHEME {
        return Err(invalid("ufs names a cluster; use alluxioPath and alluxioClusterName"));
    }
    path_of(keys::UFS, uri.path())?;
    Ok(uri)
}

/// A path without ways out, without `/` at either end.
///
/// # Errors
/// INVALID_ARGUMENT for `.`, `..`, control characters and overlong names.
pub fn path_of(key: &str, text: &str) -> Result<String, Status> {
    if text.contains(['\0', '\n', '\r']) {
        return Err(invalid(format!("{key} has control characters")));
    }
    let path = UfsPath::parse(text)
        .map_err(|error| invalid(format!("{key} {text:?}: {}; write a path without . and ..", error.message())))?;
    // It was UTF-8 before and names are only left out whole.
    Ok(String::from_utf8_lossy(path.as_bytes()).into_owned())
}

/// Properties from `javaOptions`.
fn properties(settings: &Settings) -> Result<BTreeMap<String, String>, Status> {
    let Some(text) = settings.get(keys::JAVA_OPTIONS) else { return Ok(BTreeMap::new()) };
    let wrong = |why: String| invalid(format!("{} {why}", keys::JAVA_OPTIONS));
    let options = java_opts::parse(text).map_err(|why| wrong(common::redact::text(&why)))?;
    let mut properties = BTreeMap::new();
    for (key, value) in options.settings {
        check_setting(keys::JAVA_OPTIONS, &key)?;
        properties.insert(conf::keys::find(&key).map_or(key, |decl| decl.name.to_owned()), value);
    }
    let mut builder = conf::Conf::builder();
    for (key, value) in &properties {
        builder = builder.set(key, value, conf::Source::CommandLine(keys::JAVA_OPTIONS.into()));
    }
    builder.load().map_err(|error| invalid(error.to_string()))?;
    Ok(properties)
}

/// Refuses a setting that would leak a secret or touch the mounter's own places.
fn check_setting(place: &str, key: &str) -> Result<(), Status> {
    let name = conf::keys::find(key).map_or(key, |decl| decl.name);
    if common::redact::is_secret_name(name) {
        return Err(invalid(format!(
            "{place} has {name}: credentials belong into the Secret that nodePublishSecretRef names"
        )));
    }
    let is_path = |kind: &conf::Kind| matches!(kind, conf::Kind::Path | conf::Kind::List(conf::Kind::Path));
    if conf::keys::find(key).is_some_and(|decl| is_path(&decl.kind)) {
        return Err(invalid(format!("{place} has {name}, which names a file of the mounter: configure it there")));
    }
    if PLACES.contains(&name) {
        return Err(invalid(format!("{place} has {name}: the driver sets that itself; remove it")));
    }
    Ok(())
}

/// Mount options that were checked.
#[derive(Debug, Default)]
struct Options {
    words: Vec<String>,
    read_only: bool,
    noexec: bool,
    noatime: bool,
}

impl Options {
    fn parse(texts: &[String]) -> Result<Self, Status> {
        let parsed = MountOptions::parse(texts.iter().map(String::as_str))
            .map_err(|error| invalid(common::redact::text(&error.to_string())))?;
        if parsed.allow_other || parsed.allow_root || parsed.default_permissions {
            return Err(invalid(
                "allow_other, allow_root and default_permissions are set by the driver; remove them from the mount options",
            ));
        }
        let mut options = Options { read_only: parsed.read_only, ..Options::default() };
        for flag in &parsed.kernel_flags {
            match flag {
                KernelFlag::NoExec => options.noexec = true,
                KernelFlag::NoAtime => options.noatime = true,
                KernelFlag::NoDev | KernelFlag::NoSuid | KernelFlag::Exec | KernelFlag::Atime | KernelFlag::Async => {}
                KernelFlag::Dev | KernelFlag::Suid | KernelFlag::Sync | KernelFlag::DirSync => {
                    return Err(invalid("dev, suid, sync and dirsync are not offered for volumes; remove them"));
                }
            }
        }
        let mut settings = BTreeMap::new();
        for (key, value, _) in &parsed.settings {
            check_setting(keys::MOUNT_OPTIONS, key)?;
            let name = conf::keys::find(key).map_or(key.as_str(), |decl| decl.name);
            settings.insert(name.to_owned(), value.clone());
        }
        // Checked here, so that a bad value is told by the call that brought it.
        conf::Conf::builder().mount_options(&parsed).load().map_err(|error| invalid(error.to_string()))?;
        options.words = settings
            .into_iter()
            .map(|(key, value)| format!("{key}={}", value.replace('\\', "\\\\").replace(',', "\\,")))
            .collect();
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::volume_capability::{AccessMode, MountVolume};

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)], flags: &[&str]) -> Result<Publication, Status> {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        publication(&map(pairs), &Settings::new(), (Mode::MultiNodeMultiWriter, flags, None), false)
    }

    #[test]
    fn volumes_that_differ_in_directory_and_readonly_share_a_session() {
        let one = read(&[("ufs", "s3://b/p/"), ("subPath", "x/y")], &[]).unwrap();
        let two = read(&[("ufs", "s3://b//p")], &["ro"]).unwrap();
        assert_eq!(one.volume.key(), two.volume.key());
        assert_eq!((one.directory.as_str(), one.read_only), ("x/y", false));
        assert_eq!((two.directory.as_str(), two.read_only), ("", true));
        let other = read(&[("ufs", "s3://b/p"), ("mountOptions", "attr_timeout=5")], &[]).unwrap();
        assert_ne!(one.volume.key(), other.volume.key());
        let order = read(&[("ufs", "s3://b/p"), ("mountOptions", "kernel_cache,attr_timeout=5")], &[]).unwrap();
        let reverse = read(&[("ufs", "s3://b/p")], &["attr_timeout=5", "kernel_cache"]).unwrap();
        assert_eq!(order.volume.key(), reverse.volume.key());
    }

    #[test]
    fn a_cluster_is_the_default_and_is_entered_at_a_path() {
        let volume = read(&[("alluxioPath", "/s3/a"), ("subPath", "b"), ("alluxioClusterName", "c1")], &[]).unwrap();
        assert_eq!((volume.volume.source.as_str(), volume.directory.as_str()), ("alluxio://c1", "s3/a/b"));
        assert_eq!(read(&[], &[]).unwrap().volume.source, "alluxio://");
    }

    #[test]
    fn what_leads_out_or_does_not_belong_is_refused() {
        for (pairs, flags, says) in [
            (&[("ufs", "s3://b/../c")][..], &[][..], "without . and .."),
            (&[("ufs", "s3://b"), ("subPath", "a/../..")], &[], "subPath"),
            (&[("ufs", "s3://b"), ("alluxioPath", "/a")], &[], "both ufs and alluxioPath"),
            (&[("ufs", "s3://u:pw@b")], &[], "Secret"),
            (&[("ufs", "bucket")], &[], "s3://bucket/prefix"),
            (&[("ufs", "s3://b"), ("mountOptions", "allow_other")], &[], "set by the driver"),
            (&[("ufs", "s3://b")], &["fd=3"], "fd"),
            (&[("ufs", "s3://b")], &["suid"], "not offered"),
            (&[("ufs", "s3://b")], &["s3a.secretKey=hush"], "Secret"),
            (&[("ufs", "s3://b"), ("javaOptions", "-Ds3a.secretKey=hush")], &[], "Secret"),
            (&[("ufs", "s3://b")], &["local_data_cache=/etc"], "of the mounter"),
            (&[("ufs", "s3://b"), ("javaOptions", "-Dalluxio.fuse.attr.timeout=soon")], &[], "attr.timeout"),
            (&[("alluxioClusterName", "a/b")], &[], "no name of a cluster"),
            (&[("ufs", "s3://b"), ("mountInPod", "maybe")], &[], "mountInPod"),
        ] {
            let error = read(pairs, flags).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{pairs:?} {flags:?}: {error}");
            assert!(error.message().contains(says), "{pairs:?} {flags:?}: {}", error.message());
            assert!(!error.message().contains("hush"), "{}", error.message());
        }
        let error = read(&[("mountInPod", "true")], &[]).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Unimplemented);
    }

    #[test]
    fn capabilities_are_checked_field_by_field() {
        let mount = |group: &str, fs_type: &str| {
            Some(AccessType::Mount(MountVolume {
                fs_type: fs_type.into(),
                mount_flags: vec![],
                volume_mount_group: group.into(),
            }))
        };
        let of = |access_type, mode: i32| VolumeCapability { access_type, access_mode: Some(AccessMode { mode }) };
        let good = of(mount("1000", ""), Mode::SingleNodeWriter as i32);
        assert_eq!(capability(Some(&good)).unwrap(), (Mode::SingleNodeWriter, vec![], Some(1000)));
        for bad in [
            of(mount("staff", ""), 1),
            of(mount("", "xfs"), 1),
            of(mount("", ""), 0),
            of(mount("", ""), 99),
            of(None, 1),
            of(Some(AccessType::Block(Default::default())), 1),
            VolumeCapability { access_type: mount("", ""), access_mode: None },
        ] {
            assert_eq!(capability(Some(&bad)).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
        assert_eq!(capability(None).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
