//! How a worker process is set up, and what in the configuration says so.

use client::{etcd::EtcdOptions, mount_table::MountTable};
use common::{
    Error, ErrorKind, Result,
    conf::{
        Conf,
        keys::{cluster, user, worker as keys},
    },
    tls::TlsOptions,
};
use std::{path::PathBuf, time::Duration};
use store::{DirOptions, StoreOptions};

/// Where the mount table comes from and where the worker registers.
#[derive(Debug, Clone)]
pub enum Cluster {
    /// In etcd.
    Etcd {
        /// How it is reached.
        options: EtcdOptions,
        /// The cluster's name.
        name: String,
        /// How long it is tried at the start.
        wait: Duration,
    },
    /// Nowhere: these mounts, and nobody is told. For tests.
    Alone(MountTable),
}

/// How a worker process is set up.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The address that others are told; none: the one of this host that leads to etcd.
    pub hostname: Option<String>,
    /// The address that is listened at; `0.0.0.0`: every one of this host.
    pub bind: String,
    /// TLS with clients, for metadata and for data over TCP.
    pub tls: Option<TlsOptions>,
    /// The port of metadata and control; 0: any that is free.
    pub rpc_port: u16,
    /// The port of data; 0: any that is free.
    pub data_port: u16,
    /// The port of `/metrics` and `/health`; 0: any that is free.
    pub web_port: u16,
    /// The domain socket, or the directory that it is in.
    pub domain: Option<PathBuf>,
    /// Whether `domain` is a directory in which the socket is named after the identity.
    pub domain_as_uuid: bool,
    /// Users who may connect to it, beside root and this process's own.
    pub domain_uids: Vec<u32>,
    /// The file with the identity.
    pub identity_file: PathBuf,
    /// The page store.
    pub store: StoreOptions,
    /// Memory for pages under way, in bytes.
    pub memory: usize,
    /// The cluster.
    pub cluster: Cluster,
    /// After what silence the worker counts as gone.
    pub failure_timeout: Duration,
    /// Whether a known identity may come back at another address.
    pub may_move: bool,
    /// Limits of the data server.
    pub limits: Limits,
    /// Whether it takes changes.
    pub writes: bool,
    /// What storages and the metadata cache are configured by.
    pub conf: Conf,
}

/// Limits of the data server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections, over TCP and the domain socket together.
    pub connections: usize,
    /// Connections for metadata.
    pub rpc_connections: usize,
    /// Files that one client may have open for writing.
    pub writing: usize,
    /// Open handles of one connection.
    pub handles: usize,
    /// Bytes of pages in memory on their way to one connection.
    pub bytes: usize,
    /// How long the peer may take no bytes, or be in the middle of a frame.
    pub patience: Duration,
    /// How long a connection may say nothing.
    pub idle: Duration,
    /// How long requests under way are waited for at the end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            rpc_connections: 16_384,
            writing: 16_384,
            handles: 4096,
            bytes: 8 << 20,
            patience: Duration::from_secs(30),
            idle: Duration::from_secs(900),
            drain: Duration::from_secs(10),
        }
    }
}

impl ServerOptions {
    /// What `conf` says; etcd is tried for `wait` at the start.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the key and the fix.
    pub fn from_conf(conf: &Conf, wait: Duration) -> Result<Self> {
        let wrong = |why: String| Err(Error::new(ErrorKind::InvalidArgument, why));
        if conf.get(&keys::MEMBERSHIP_MANAGER_TYPE) != keys::Membership::Etcd {
            return wrong("alluxio.worker.membership.manager.type: only ETCD works in this version".into());
        }
        let source = conf.get(&cluster::MOUNT_TABLE_SOURCE);
        if !source.eq_ignore_ascii_case("ETCD") {
            return wrong(format!("alluxio.mount.table.source={source}: only ETCD works in this version"));
        }
        let port = |key| u16::try_from(conf.get(key)).unwrap_or(0);
        Ok(Self {
            hostname: conf.get(&keys::HOSTNAME),
            bind: conf.get(&keys::BIND_HOST),
            tls: TlsOptions::from_conf(conf)?,
            rpc_port: port(&keys::RPC_PORT),
            data_port: port(&keys::DATA_PORT),
            web_port: port(&keys::WEB_PORT),
            domain: conf.get(&keys::DOMAIN_SOCKET_ADDRESS),
            domain_as_uuid: conf.get(&keys::DOMAIN_SOCKET_AS_UUID),
            domain_uids: conf
                .get(&keys::DOMAIN_SOCKET_UIDS)
                .into_iter()
                .filter_map(|uid| uid.try_into().ok())
                .collect(),
            identity_file: conf.get(&keys::IDENTITY_FILE),
            store: StoreOptions {
                dirs: dirs(conf)?,
                page_size: u32::try_from(conf.get(&keys::PAGE_STORE_PAGE_SIZE).bytes()).unwrap_or(1 << 20),
                high_watermark: conf.get(&user::CLIENT_CACHE_WATERMARK_HIGH).0,
                low_watermark: conf.get(&user::CLIENT_CACHE_WATERMARK_LOW).0,
                // With a domain socket files are lent to clients.
                punch: conf.get(&keys::DOMAIN_SOCKET_ADDRESS).is_none(),
                ..StoreOptions::default()
            },
            memory: usize::try_from(conf.get(&user::MEMORY_LIMIT).bytes()).unwrap_or(usize::MAX),
            cluster: Cluster::Etcd {
                options: EtcdOptions::from_conf(conf)?,
                name: conf.get(&cluster::CLUSTER_NAME),
                wait,
            },
            failure_timeout: conf.get(&keys::FAILURE_DETECTION_TIMEOUT),
            may_move: conf.get(&keys::K8S_DEPLOYMENT),
            writes: conf.get(&cluster::CLUSTER_WRITES),
            limits: Limits::default(),
            conf: conf.clone(),
        })
    }
}

/// The directories of the page store: one size for each, or one for all.
fn dirs(conf: &Conf) -> Result<Vec<DirOptions>> {
    let (paths, sizes) = (conf.get(&keys::PAGE_STORE_DIRS), conf.get(&keys::PAGE_STORE_SIZES));
    if paths.is_empty() || (sizes.len() != 1 && sizes.len() != paths.len()) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "alluxio.worker.page.store.dirs names {} directories and alluxio.worker.page.store.sizes {} sizes; name one size for each directory, or one for all",
                paths.len(),
                sizes.len()
            ),
        ));
    }
    let capacity = |at: usize| sizes.get(at).or(sizes.first()).map_or(0, |size| size.bytes());
    Ok(paths.into_iter().enumerate().map(|(at, path)| DirOptions { path, capacity: capacity(at) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::conf::{Environment, Source};

    fn options(settings: &[(&str, &str)]) -> Result<ServerOptions> {
        let mut builder = Conf::builder().environment(Environment::of([], 0)).set(
            "alluxio.etcd.endpoints",
            "http://e:2379",
            Source::CommandLine("-D".into()),
        );
        for (key, value) in settings {
            builder = builder.set(key, value, Source::CommandLine("-D".into()));
        }
        ServerOptions::from_conf(&builder.load().unwrap(), Duration::ZERO)
    }

    #[test]
    fn each_directory_has_its_capacity() {
        let found = options(&[
            ("alluxio.worker.page.store.dirs", "/a,/b"),
            ("alluxio.worker.page.store.sizes", "1GiB,2GiB"),
            ("alluxio.worker.rpc.port", "0"),
        ])
        .unwrap();
        let capacities: Vec<u64> = found.store.dirs.iter().map(|dir| dir.capacity).collect();
        assert_eq!((capacities, found.rpc_port, found.data_port), (vec![1 << 30, 2 << 30], 0, 29997));
        let found = options(&[("alluxio.worker.page.store.dirs", "/a,/b,/c")]).unwrap();
        assert!(found.store.dirs.iter().all(|dir| dir.capacity == 512 << 20));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let sizes = [("alluxio.worker.page.store.dirs", "/a"), ("alluxio.worker.page.store.sizes", "1GiB,2GiB")];
        for (settings, says) in [
            (&sizes[..], "alluxio.worker.page.store.sizes 2 sizes"),
            (&[("alluxio.worker.membership.manager.type", "STATIC")], "membership.manager.type"),
            (&[("alluxio.mount.table.source", "/etc/mounts")], "mount.table.source=/etc/mounts"),
            (&[("alluxio.etcd.endpoints", "")], "alluxio.etcd.endpoints is not set"),
        ] {
            let message = options(settings).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        }
    }
}
