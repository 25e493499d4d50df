//! Keys of workers that are processes of their own. The worker inside `alluxio-fuse` uses the keys of the local cache.

use crate::conf::key::Decl;
use crate::conf::{Scope, Size, conf_choice, keys};
use std::path::PathBuf;
use std::time::Duration;

use super::user::CacheStore;

conf_choice! {
    /// How workers are found.
    Membership {
        /// Through etcd.
        Etcd = "ETCD",
        /// By a fixed list.
        Static = "STATIC",
    }
}

keys! { Scope::Worker;
    /// The address under which others reach the worker. Empty: that of this host.
    HOSTNAME: Option<String> = Decl::named("alluxio.worker.hostname");

    /// The address that the worker listens at: `0.0.0.0` for every one of this host. Without TLS whoever reaches it can
    /// read what the worker serves.
    BIND_HOST: String = Decl::named("alluxio.worker.bind.host").default("0.0.0.0");

    /// The port of metadata and control.
    RPC_PORT: u64 = Decl::named("alluxio.worker.rpc.port").default("29999").range(0, 65535).unit("port");

    /// The port of data.
    DATA_PORT: u64 = Decl::named("alluxio.worker.data.port").default("29997").range(0, 65535).unit("port");

    /// The port of the web page and `/metrics`.
    WEB_PORT: u64 = Decl::named("alluxio.worker.web.port").default("30000").range(0, 65535).unit("port");

    /// The port of the REST interface.
    HTTP_SERVER_PORT: u64 =
        Decl::named("alluxio.worker.http.server.port").default("28080").range(0, 65535).unit("port").reserved();

    /// Where a worker keeps pages: LOCAL on disk, MEM on a tmpfs.
    PAGE_STORE_TYPE: CacheStore = Decl::named("alluxio.worker.page.store.type").default("LOCAL");

    /// The directories of a worker's page store.
    PAGE_STORE_DIRS: Vec<PathBuf> = Decl::named("alluxio.worker.page.store.dirs").default("/tmp/alluxio_cache");

    /// The capacity of each directory of a worker's page store.
    PAGE_STORE_SIZES: Vec<Size> =
        Decl::named("alluxio.worker.page.store.sizes").default("512MiB").range(1 << 20, 1 << 50);

    /// The unit in which a worker fetches and keeps data.
    PAGE_STORE_PAGE_SIZE: Size =
        Decl::named("alluxio.worker.page.store.page.size").default("1MiB").range(64 << 10, 64 << 20);

    /// The file that holds the identity of a worker across restarts.
    IDENTITY_FILE: PathBuf =
        Decl::named("alluxio.worker.identity.uuid.file.path").default("${alluxio.conf.dir}/worker_identity");

    /// How workers are found: through etcd or by a fixed list.
    MEMBERSHIP_MANAGER_TYPE: Membership = Decl::named("alluxio.worker.membership.manager.type").default("ETCD");

    /// After what silence a worker counts as gone.
    FAILURE_DETECTION_TIMEOUT: Duration =
        Decl::named("alluxio.worker.failure.detection.timeout").default("15s").range(1000, 3_600_000);

    /// The domain socket through which clients on the same host are served. Empty: none.
    DOMAIN_SOCKET_ADDRESS: Option<PathBuf> = Decl::named("alluxio.worker.data.server.domain.socket.address");

    /// Whether that address is a directory in which the socket is named after the worker's identity.
    DOMAIN_SOCKET_AS_UUID: bool =
        Decl::named("alluxio.worker.data.server.domain.socket.as.uuid").default("false");

    /// The users (by number) whose processes may use the domain socket, beside root and the worker's own user.
    DOMAIN_SOCKET_UIDS: Vec<u64> =
        Decl::named("alluxio.worker.data.server.domain.socket.allowed.uids").default("").range(0, u32::MAX as u64);

    /// Whether a known worker may come back at another address, as pods on Kubernetes do.
    K8S_DEPLOYMENT: bool = Decl::named("alluxio.k8s.env.deployment").default("false");
}
