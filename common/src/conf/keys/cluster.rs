//! Keys of a cluster: etcd, the ring, the mount table. A mount with its embedded worker needs none of them.

use crate::conf::key::Decl;
use crate::conf::{Scope, Size, conf_choice, keys};
use std::path::PathBuf;

conf_choice! {
    /// How many virtual nodes a worker has in the ring.
    RingProvider {
        /// The same number for each.
        Default = "DEFAULT",
        /// In proportion to capacity.
        Capacity = "CAPACITY",
    }
}

keys! { Scope::All;
    /// The name of the cluster.
    CLUSTER_NAME: String = Decl::named("alluxio.cluster.name").default("DefaultAlluxioCluster");

    /// Whether files are written through workers: by a worker, for whoever reaches its ports (see alluxio.network.tls.enabled);
    /// by a mount of the namespace, which then asks the owner for every name.
    CLUSTER_WRITES: bool = Decl::named("alluxio.cluster.writes.enabled").default("false");

    /// The addresses of etcd.
    ETCD_ENDPOINTS: Vec<String> = Decl::named("alluxio.etcd.endpoints").default("");

    /// The user of etcd.
    ETCD_USERNAME: Option<String> = Decl::named("alluxio.etcd.username");

    /// The password of that user.
    ETCD_PASSWORD: Option<String> = Decl::named("alluxio.etcd.password").secret();

    /// Whether etcd is reached by TLS.
    ETCD_TLS_ENABLED: bool = Decl::named("alluxio.etcd.tls.enabled").default("false");

    /// The certificates (PEM) that are trusted for etcd.
    ETCD_TLS_CA_CERT: Option<PathBuf> = Decl::named("alluxio.etcd.tls.ca.cert");

    /// The certificate shown to etcd.
    ETCD_TLS_CLIENT_CERT: Option<PathBuf> = Decl::named("alluxio.etcd.tls.client.cert");

    /// The file with the key of that certificate.
    ETCD_TLS_CLIENT_KEY: Option<PathBuf> = Decl::named("alluxio.etcd.tls.client.key");

    /// Whether clients and workers speak TLS with each other, for metadata and for data over TCP.
    TLS_ENABLED: bool = Decl::named("alluxio.network.tls.enabled").default("false");

    /// The certificate (PEM, with those between it and its authority) that a worker shows, and a client that is asked for one.
    TLS_CERT: Option<PathBuf> = Decl::named("alluxio.network.tls.cert");

    /// The file with the key (PEM) of that certificate.
    TLS_KEY: Option<PathBuf> = Decl::named("alluxio.network.tls.key");

    /// The authorities (PEM) whose certificates clients and workers trust.
    TLS_CA_CERT: Option<PathBuf> = Decl::named("alluxio.network.tls.ca.cert");

    /// Whether a worker refuses clients that show no certificate of these authorities.
    TLS_VERIFY_CLIENTS: bool = Decl::named("alluxio.network.tls.verify.clients").default("true");

    /// The name that the certificates of workers have. Empty: the host under which each worker registered.
    TLS_SERVER_NAME: Option<String> = Decl::named("alluxio.network.tls.server.name");

    /// The mount table: ETCD, or the path of a file.
    MOUNT_TABLE_SOURCE: String = Decl::named("alluxio.mount.table.source").default("ETCD").reserved();

    /// Whether only live workers are in the ring (true) or all registered ones.
    DYNAMIC_RING_ENABLED: bool =
        Decl::named("alluxio.user.dynamic.consistent.hash.ring.enabled").default("true");

    /// The number of virtual nodes of each worker in the ring.
    RING_VIRTUAL_NODES: u64 =
        Decl::named("alluxio.user.worker.selection.policy.consistent.hash.virtual.node.count.per.worker")
            .default("2000").range(1, 100_000).unit("nodes");

    /// Whether workers have equally many virtual nodes, or as many as their capacity deserves.
    RING_PROVIDER: RingProvider =
        Decl::named("alluxio.user.worker.selection.policy.consistent.hash.provider.impl").default("DEFAULT");

    /// The address that this client counts as its own. Empty: that of this host.
    USER_HOSTNAME: Option<String> = Decl::named("alluxio.user.hostname").reserved();

    /// Whether the under storage is read directly when no worker answers.
    UFS_FALLBACK_ENABLED: bool = Decl::named("alluxio.dora.client.ufs.fallback.enabled").default("true");

    /// On how many workers a file is kept.
    REPLICATION_MIN: u64 = Decl::named("alluxio.user.file.replication.min").default("1").range(1, 100).unit("workers");

    /// Whether files above the size of a segment are divided into such, which are placed separately. All clients of a
    /// cluster must be set alike, and such files are not passed through from a worker's disk.
    SEGMENT_ENABLED: bool = Decl::named("alluxio.user.file.segment.enabled").default("false");

    /// The size of such a segment.
    SEGMENT_SIZE: Size = Decl::named("alluxio.user.file.segment.size").default("1GiB").range(1 << 20, 1 << 40);

    /// Whether a worker on the same host is read through its files.
    SHORT_CIRCUIT_ENABLED: bool = Decl::named("alluxio.user.short.circuit.enabled").default("true");

    /// The users (by number) whose domain sockets clients trust to be a worker's, beside root and the client's own user.
    DOMAIN_SOCKET_OWNERS: Vec<u64> =
        Decl::named("alluxio.user.domain.socket.trusted.uids").default("").range(0, u32::MAX as u64);
}
