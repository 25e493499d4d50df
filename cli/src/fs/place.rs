//! From what the user wrote to an under storage and a path in it.

use client::cluster::Namespace;
use common::conf::{Conf, keys};
use common::{Attr, Error, ErrorKind, UfsPath, UfsUri};
use std::path::Path;
use std::sync::Arc;
use ufs::{UfsOptions, UnderStorage};

/// How URIs of the cluster's namespace begin.
pub const NAMESPACE: &str = "alluxio://";

/// A file or directory on its under storage, or in the namespace of a cluster.
pub struct Place {
    /// The storage.
    pub storage: Arc<dyn UnderStorage>,
    /// The path in it.
    pub path: UfsPath,
    /// What the user wrote, without `/` at the end; the names of entries are shown below it.
    pub shown: String,
}

impl Place {
    /// Finds the storage of a path or URI; nothing is asked of it yet, except that the cluster's etcd is asked where the
    /// place lies in the namespace. A path of this host is followed through its symbolic links, as a shell would.
    pub async fn parse(text: &str, conf: &Conf) -> anyhow::Result<Self> {
        let shown = text.trim_end_matches('/').to_owned();
        if let Some(rest) = text.strip_prefix(NAMESPACE) {
            let (cluster, path) = rest.split_once('/').unwrap_or((rest, ""));
            let cluster = match cluster {
                "" => conf.get(&keys::cluster::CLUSTER_NAME),
                name => name.to_owned(),
            };
            let shown = if rest.trim_end_matches('/').is_empty() { NAMESPACE.to_owned() } else { shown };
            let storage = Namespace::connect(conf, &cluster, &UfsPath::root()).await?;
            return Ok(Place { storage, path: UfsPath::parse(path)?, shown });
        }
        let (root, path) = if let Some(local) = text.strip_prefix("file://") {
            local_parts(Path::new(local))?
        } else if text.contains("://") {
            let uri = UfsUri::parse(text)?;
            (UfsUri::parse(&format!("{}://{}", uri.scheme(), uri.authority()))?, UfsPath::parse(uri.path())?)
        } else {
            local_parts(Path::new(text))?
        };
        let storage = ufs::open(&root, &UfsOptions::from_conf(conf, &root))?;
        Ok(Place { storage, path, shown })
    }

    /// The attributes.
    pub async fn attr(&self) -> Result<Attr, Error> {
        self.storage.stat(&self.path).await
    }

    /// The attributes of something that must be a regular file.
    pub async fn file(&self) -> anyhow::Result<Attr> {
        let attr = self.attr().await?;
        if attr.is_dir() {
            return Err(
                Error::new(ErrorKind::IsADirectory, format!("{} is a directory; name a file", self.shown)).into()
            );
        }
        anyhow::ensure!(attr.is_file(), "{} is no regular file; name a file", self.shown);
        Ok(attr)
    }
}

/// The directory that holds a local path, as the root, and the name in it.
fn local_parts(path: &Path) -> anyhow::Result<(UfsUri, UfsPath)> {
    use std::os::unix::ffi::OsStrExt;
    let real = std::fs::canonicalize(path).map_err(|error| Error::io(path.display(), error))?;
    let (root, name) = match (real.parent(), real.file_name()) {
        (Some(parent), Some(name)) => (parent, UfsPath::parse(name.as_bytes())?),
        _ => (real.as_path(), UfsPath::root()),
    };
    let root = root.to_str().ok_or_else(|| anyhow::anyhow!("{}: the directory's name is not UTF-8", path.display()))?;
    Ok((UfsUri::parse(root)?, name))
}
