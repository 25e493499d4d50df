//! The namespace of a cluster: which under storage is mounted at which name.
//!
//! Rules (reference: alluxio-interfaces.md, "Mount table"): a mount point is a direct child of `/`; neither mount points
//! nor under storages nest, in either direction. The table is one value in etcd, so that a change is judged against all
//! of it and either happens whole or not at all.

use crate::etcd::Etcd;
use common::{
    Error, ErrorKind, Result, UfsPath, UfsUri,
    conf::{Conf, HIDDEN, Source, keys},
    redact,
};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};
use ufs::{Secret, UfsOptions};

/// One mount: its under storage, and options that go before the global ones.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountEntry {
    /// The under storage's URI.
    pub ufs: String,
    /// Options; may hold secrets, so [`fmt::Debug`] and [`fmt::Display`] leave their values out.
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

impl fmt::Debug for MountEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for MountEntry {
    /// `<ufs> properties={k=v, …}` with secrets hidden.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |key: &str, value: &str| {
            if redact::is_secret_name(key) { HIDDEN.to_owned() } else { redact::uri(value).into_owned() }
        };
        let properties: Vec<String> =
            self.properties.iter().map(|(key, value)| format!("{key}={}", shown(key, value))).collect();
        write!(f, "{} properties={{{}}}", redact::uri(&self.ufs), properties.join(", "))
    }
}

/// All mounts by mount point (`/name`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MountTable {
    /// The mounts.
    pub mounts: BTreeMap<String, MountEntry>,
}

impl MountTable {
    /// Adds a mount if the rules allow it.
    ///
    /// # Errors
    /// `InvalidArgument` or `AlreadyExists`, naming the rule and the mount that stands against it.
    pub fn add(&mut self, path: &str, entry: MountEntry) -> Result<()> {
        let path = mount_point(path)?;
        let uri = UfsUri::parse(&entry.ufs)?;
        if let Some(present) = self.mounts.get(&path) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!(
                    "{path} is taken: {} is mounted there; remove it first or choose another name",
                    redact::uri(&present.ufs)
                ),
            ));
        }
        for (other, present) in &self.mounts {
            let Ok(theirs) = UfsUri::parse(&present.ufs) else { continue };
            if let Some(how) = nesting(&uri, &theirs) {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!("{uri} {how} {theirs}, which is mounted at {other}; under storages must not nest"),
                ));
            }
        }
        self.mounts.insert(path, MountEntry { ufs: uri.text(), ..entry });
        Ok(())
    }

    /// Removes a mount (`NotFound` when there is none).
    pub fn remove(&mut self, path: &str) -> Result<MountEntry> {
        let path = mount_point(path)?;
        self.mounts.remove(&path).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("nothing is mounted at {path}; alluxio mount list shows what is"))
        })
    }

    /// Where something lies: `text` is a path of the namespace (`/name/rest`, `alluxio:///name/rest`) or a URI that lies
    /// in a mounted under storage.
    ///
    /// # Errors
    /// `NotFound` when no mount has it, `InvalidArgument` for the namespace itself.
    pub fn locate(&self, text: &str) -> Result<Located> {
        let nowhere = |what: &str| {
            Error::new(ErrorKind::NotFound, format!("{text}: {what}; alluxio mount list shows what is mounted"))
        };
        let below = |point: &str, entry: &MountEntry, path: UfsPath| -> Result<Located> {
            Ok(Located { point: point.to_owned(), uri: UfsUri::parse(&entry.ufs)?, entry: entry.clone(), path })
        };
        let inside = text.strip_prefix("alluxio://").map(|rest| rest.split_once('/').map_or("", |(_, path)| path));
        if inside.is_none() && text.contains("://") {
            let wanted = UfsUri::parse(text)?.text();
            for (point, entry) in &self.mounts {
                let root = UfsUri::parse(&entry.ufs)?.text();
                if let Some(rest) = wanted.strip_prefix(root.trim_end_matches('/'))
                    && (rest.is_empty() || rest.starts_with('/'))
                {
                    return below(point, entry, UfsPath::parse(rest)?);
                }
            }
            return Err(nowhere("it lies in no mounted under storage"));
        }
        let path = UfsPath::parse(inside.unwrap_or(text))?;
        let mut names = path.names();
        let Some(first) = names.next() else {
            return Err(Error::new(ErrorKind::InvalidArgument, "/ is the namespace itself; name a path in a mount"));
        };
        let point = format!("/{}", String::from_utf8_lossy(first));
        let entry = self.mounts.get(&point).ok_or_else(|| nowhere(&format!("nothing is mounted at {point}")))?;
        below(&point, entry, UfsPath::parse(names.collect::<Vec<_>>().join(&b'/'))?)
    }

    /// The full UFS path of a path in the namespace (`/name/rest`), or of a URI of an under storage as it is.
    pub fn resolve(&self, text: &str) -> Result<String> {
        if text.contains("://") && !text.starts_with("alluxio://") {
            return Ok(UfsUri::parse(text)?.text());
        }
        let Located { uri, path, .. } = self.locate(text)?;
        Ok(String::from_utf8_lossy(&uri.full_path(&path)).into_owned())
    }
}

/// A place in a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The mount point (`/name`).
    pub point: String,
    /// The mount.
    pub entry: MountEntry,
    /// Its under storage.
    pub uri: UfsUri,
    /// The path below it.
    pub path: UfsPath,
}

/// The options of a mount's storage, for whoever opens it: the mount's own over those of the configuration. A name that is
/// no key of the configuration and has no dot is a setting of the service behind OpenDAL.
///
/// # Errors
/// `InvalidArgument`, naming the mount and the option.
pub fn storage_options(conf: &Conf, uri: &UfsUri, entry: &MountEntry) -> Result<UfsOptions> {
    let mut builder = conf.to_builder();
    let mut service = Vec::new();
    for (name, value) in &entry.properties {
        if keys::find(name).is_some() || name.contains('.') {
            builder = builder.set(name, value, Source::CommandLine(format!("mount option {name}")));
        } else {
            service.push((name.clone(), Secret::new(value.as_str())));
        }
    }
    let conf = builder.load().map_err(|error| {
        Error::new(ErrorKind::InvalidArgument, format!("options of the mount of {}: {error}", redact::uri(&entry.ufs)))
    })?;
    let mut options = UfsOptions::from_conf(&conf, uri);
    options.service.extend(service);
    Ok(options)
}

fn mount_point(path: &str) -> Result<String> {
    let wrong = |why: &str| {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{path:?}: {why}; a mount point is one name below /, for example /data"),
        ))
    };
    if !path.starts_with('/') {
        return wrong("it does not begin with /");
    }
    let parsed = UfsPath::parse(path)?;
    match parsed.names().count() {
        0 => wrong("/ itself is no mount point"),
        1 => Ok(format!("/{}", String::from_utf8_lossy(parsed.as_bytes()))),
        _ => wrong("mount points do not nest"),
    }
}

fn nesting(new: &UfsUri, present: &UfsUri) -> Option<&'static str> {
    if (new.scheme(), new.authority()) != (present.scheme(), present.authority()) {
        return None;
    }
    let within = |inner: &str, outer: &str| {
        outer.is_empty() || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
    };
    if new.path() == present.path() {
        Some("is the same as")
    } else if within(new.path(), present.path()) {
        Some("lies inside")
    } else if within(present.path(), new.path()) {
        Some("contains")
    } else {
        None
    }
}

/// The table of one cluster in etcd.
#[derive(Debug, Clone)]
pub struct MountTableStore {
    etcd: Etcd,
    key: String,
}

impl MountTableStore {
    /// That of the cluster with this name.
    pub fn new(etcd: Etcd, cluster: &str) -> Self {
        Self { etcd, key: format!("/MountTable/{cluster}") }
    }

    /// The table of now; empty when none was ever written.
    pub async fn read(&self) -> Result<MountTable> {
        Ok(self.read_with_revision().await?.0)
    }

    /// Changes the table as a whole: `change` is applied to the latest one, again if somebody was faster.
    pub async fn change<T>(&self, mut change: impl FnMut(&mut MountTable) -> Result<T>) -> Result<T> {
        for _ in 0..20 {
            let (mut table, revision) = self.read_with_revision().await?;
            let outcome = change(&mut table)?;
            let value = serde_json::to_vec(&table)
                .map_err(|error| Error::with_source(ErrorKind::Io, "the mount table has no JSON form", error))?;
            let write = Txn::new()
                .when([Compare::mod_revision(self.key.as_str(), CompareOp::Equal, revision)])
                .and_then([TxnOp::put(self.key.as_str(), value, None)]);
            if self.etcd.call("write the mount table", async |client| client.txn(write).await).await?.succeeded() {
                return Ok(outcome);
            }
        }
        Err(Error::new(ErrorKind::Busy, "the mount table is being changed by others over and over; try again"))
    }

    async fn read_with_revision(&self) -> Result<(MountTable, i64)> {
        let answer =
            self.etcd.call("read the mount table", async |client| client.get(self.key.as_str(), None).await).await?;
        let Some(pair) = answer.kvs().first() else { return Ok((MountTable::default(), 0)) };
        let table = serde_json::from_slice(pair.value()).map_err(|error| {
            Error::with_source(
                ErrorKind::Corrupt,
                format!("the mount table at {} in etcd is no table: {error}", self.key),
                error,
            )
        })?;
        Ok((table, pair.mod_revision()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ufs: &str) -> MountEntry {
        MountEntry { ufs: ufs.into(), properties: BTreeMap::new() }
    }

    #[test]
    fn mounts_that_break_a_rule_are_refused_by_name() {
        let mut table = MountTable::default();
        table.add("/s3", entry("s3://b/p")).unwrap();
        table.add("/other/", entry("s3://b/pq/")).unwrap();
        for (path, ufs, says) in [
            ("/", "s3://c", "/ itself"),
            ("s3x", "s3://c", "begin with /"),
            ("/a/b", "s3://c", "do not nest"),
            ("/s3", "s3://c", "is taken"),
            ("/x", "s3://b/p", "is the same as s3://b/p, which is mounted at /s3"),
            ("/x", "s3://b/p/q", "lies inside"),
            ("/x", "s3://b", "contains"),
            ("/x", "nothing", "neither a URI"),
        ] {
            let message = table.add(path, entry(ufs)).unwrap_err().to_string();
            assert!(message.contains(says), "{path} {ufs}: {message}");
        }
        assert_eq!(table.mounts.len(), 2);
        assert_eq!(table.remove("/none").unwrap_err().kind(), ErrorKind::NotFound);
        table.remove("/s3").unwrap();
        table.add("/again", entry("s3://b/p")).unwrap();
    }

    #[test]
    fn paths_of_the_namespace_lead_to_the_under_storage() {
        let mut table = MountTable::default();
        table.add("/s3", entry("s3://b/p")).unwrap();
        assert_eq!(table.resolve("/s3/x/y").unwrap(), "s3://b/p/x/y");
        assert_eq!(table.resolve("/s3").unwrap(), "s3://b/p");
        assert_eq!(table.resolve("s3://c/z").unwrap(), "s3://c/z");
        assert!(table.resolve("/none/x").is_err());
        assert!(table.resolve("/").is_err());
    }

    #[test]
    fn options_without_a_dot_are_settings_of_the_service() {
        let mut entry = entry("webhdfs://h:9870/x");
        entry.properties.insert("user_name".into(), "me".into());
        entry.properties.insert("alluxio.user.ufs.retries".into(), "7".into());
        let conf = Conf::builder().environment(common::conf::Environment::of([], 0)).load().unwrap();
        let options = storage_options(&conf, &UfsUri::parse(&entry.ufs).unwrap(), &entry).unwrap();
        assert_eq!((options.service["user_name"].reveal(), options.retries), ("me", 7));
        entry.properties.insert("alluxio.user.ufs.retries".into(), "many".into());
        let message = storage_options(&conf, &UfsUri::parse(&entry.ufs).unwrap(), &entry).unwrap_err().to_string();
        assert!(message.contains("webhdfs://h:9870/x") && message.contains("alluxio.user.ufs.retries"), "{message}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut entry = entry("s3://b");
        entry.properties.insert("s3a.secretKey".into(), "hush".into());
        entry.properties.insert("alluxio.underfs.s3.region".into(), "eu".into());
        let shown = format!("{entry} {entry:?}");
        assert!(!shown.contains("hush"), "{shown}");
        assert!(shown.contains("alluxio.underfs.s3.region=eu"), "{shown}");
    }
}
