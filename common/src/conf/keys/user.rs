//! Keys of whatever reads: the local cache, prefetch, metadata, and how long an under storage may take.

use crate::conf::key::Decl;
use crate::conf::machine::Environment;
use crate::conf::{Expiry, Ratio, Scope, Size, conf_choice, keys};
use std::path::PathBuf;
use std::time::Duration;

conf_choice! {
    /// Where the pages of a cache are kept.
    CacheStore {
        /// Files in the cache directories.
        Local = "LOCAL" | "FILE",
        /// Files in the cache directories, which are expected to be on tmpfs.
        Mem = "MEM",
    }
}

keys! { Scope::Client;
    /// The most memory that buffers for reading and prefetch may take together, in one process. It is never exceeded:
    /// prefetch gives way first, then requests wait.
    MEMORY_LIMIT: Size = Decl::named("alluxio.user.memory.limit")
        .computed(Environment::memory_limit, "a quarter of the memory of the cgroup or the machine, 64 MiB at least, 2 GiB at most")
        .range(16 << 20, 1 << 40);

    /// The capacity of the local page cache, divided evenly among its directories unless
    /// `alluxio.user.client.cache.sizes` says otherwise. 0 turns the cache off.
    CLIENT_CACHE_SIZE: Size = Decl::named("alluxio.user.client.cache.size").default("512MiB").range(0, 1 << 50);

    /// The capacity of each directory of `alluxio.user.client.cache.dirs`, in the same order. Empty: the even share.
    CLIENT_CACHE_SIZES: Vec<Size> = Decl::named("alluxio.user.client.cache.sizes").default("").range(1 << 20, 1 << 50);

    /// The directories of the local page cache; several spread the load over several disks. None may lie inside the
    /// mount point. A directory that fails is bypassed.
    CLIENT_CACHE_DIRS: Vec<PathBuf> = Decl::named("alluxio.user.client.cache.dirs")
        .aliases(&["alluxio.user.client.cache.dir"])
        .computed(Environment::cache_dir, "`/var/cache/alluxio-fuse` for root, else `$XDG_CACHE_HOME/alluxio-fuse`, else `~/.cache/alluxio-fuse`");

    /// The unit in which data is fetched, checked and kept.
    CLIENT_CACHE_PAGE_SIZE: Size = Decl::named("alluxio.user.client.cache.page.size").default("1MiB").range(64 << 10, 64 << 20);

    /// Where pages are kept: LOCAL on disk, MEM on a tmpfs.
    CLIENT_CACHE_STORE_TYPE: CacheStore = Decl::named("alluxio.user.client.cache.store.type").default("LOCAL").reserved();

    /// The share of the capacity at which eviction begins.
    CLIENT_CACHE_WATERMARK_HIGH: Ratio = Decl::named("alluxio.user.client.cache.watermark.high.ratio").default("0.95");

    /// The share of the capacity at which eviction stops.
    CLIENT_CACHE_WATERMARK_LOW: Ratio = Decl::named("alluxio.user.client.cache.watermark.low.ratio").default("0.9");

    /// When a file is closed of which this share is cached, the rest of it is fetched in the background, so that its next
    /// reader finds it on the local disk as a whole; only where there is room, and with memory that nobody else wants. 1: never.
    CLIENT_CACHE_COMPLETE_RATIO: Ratio = Decl::named("alluxio.user.client.cache.complete.ratio").default("0.75");

    /// Whether pages are written to the cache after the reader was answered rather than before.
    CLIENT_CACHE_ASYNC_WRITE: bool = Decl::named("alluxio.user.client.cache.async.write.enabled").default("true").reserved();

    /// Whether a mount of an object store takes writes, where the service is S3 or speaks its language. Other
    /// services take none either way. When it is off, what writers keep beside the objects (mode, owner, times, links) is
    /// not asked for either; a mount with `-o ro` takes no writes and shows that.
    OBJECT_WRITES: bool = Decl::named("alluxio.user.object.writes.enabled").default("true");

    /// The directory in which files of object stores are staged while they are written, and until they are uploaded. It is
    /// best on a disk that outlives the machine's restart: what could not be uploaded waits there for the next mount.
    STAGE_DIR: PathBuf = Decl::named("alluxio.user.stage.dir")
        .computed(Environment::stage_dir, "`/var/lib/alluxio-fuse/stage` for root, else the default of `alluxio.user.client.cache.dirs` with `-stage` at its end");

    /// The most that staged files may take on disk. When it is reached writers wait for
    /// `alluxio.user.ufs.deadline`, and then get ENOSPC; readers are not concerned.
    STAGE_SIZE: Size = Decl::named("alluxio.user.stage.size").default("10GiB").range(64 << 20, 1 << 50);

    /// Whether close answers before a file of an object store is uploaded. What was closed outlives the process and the
    /// loss of power, and is uploaded by the next mount at the latest; others see it only then.
    WRITEBACK: bool = Decl::named("alluxio.user.writeback.enabled").default("false");

    /// Whether data that is likely to be read next is fetched ahead of the reader.
    PREFETCH_ENABLED: bool = Decl::named("alluxio.user.prefetch.enabled").default("true");

    /// How far a sequential stream is fetched ahead of its reader, at most. It takes memory from
    /// `alluxio.user.memory.limit`.
    PREFETCH_WINDOW: Size = Decl::named("alluxio.user.prefetch.window").default("64MiB").range(0, 4 << 30);

    /// Whether opening small files of a directory one after the other fetches the ones that follow.
    PREFETCH_SIBLINGS_ENABLED: bool = Decl::named("alluxio.user.prefetch.siblings.enabled").default("true");

    /// The largest file that is fetched because its siblings were read.
    PREFETCH_SIBLINGS_MAX_FILE_SIZE: Size =
        Decl::named("alluxio.user.prefetch.siblings.max.file.size").default("1MiB").range(1, 1 << 30);

    /// How many siblings are fetched at the same time.
    PREFETCH_SIBLINGS_CONCURRENCY: u64 =
        Decl::named("alluxio.user.prefetch.siblings.concurrency").default("64").range(1, 1024).unit("files");

    /// How long one call to an under storage may take, retries included, before it fails with EIO.
    UFS_DEADLINE: Duration = Decl::named("alluxio.user.ufs.deadline").default("30s").range(100, 3_600_000);

    /// How long connecting to an under storage may take.
    UFS_CONNECT_TIMEOUT: Duration = Decl::named("alluxio.user.ufs.connect.timeout").default("5s").range(10, 600_000);

    /// How often a failed request to an under storage is sent again, while its deadline lasts.
    UFS_RETRIES: u64 = Decl::named("alluxio.user.ufs.retries").default("4").range(0, 100).unit("times");

    /// How many requests to one under storage are under way at the same time, at most.
    UFS_CONCURRENCY: u64 = Decl::named("alluxio.user.ufs.concurrency").default("64").range(1, 4096).unit("requests");

    /// How many files and directories have their attributes kept in memory. 0 turns this off. (Alluxio's default is 0;
    /// here it is on, since each entry takes only some hundred bytes.)
    METADATA_CACHE_MAX_SIZE: u64 =
        Decl::named("alluxio.user.metadata.cache.max.size").default("100000").range(0, 1_000_000_000).unit("entries");

    /// How long attributes are kept in memory whether or not they are used; -1: as long as there is room.
    METADATA_CACHE_EXPIRATION_TIME: Expiry = Decl::named("alluxio.user.metadata.cache.expiration.time").default("-1");

    /// How old attributes may be before the under storage is asked again: within this time a change made by others may
    /// stay unseen. 0: asked each time; -1: never asked again, for data that does not change.
    METADATA_SYNC_INTERVAL: Expiry =
        Decl::named("alluxio.user.metadata.sync.interval").aliases(&["alluxio.user.file.metadata.sync.interval"]).default("10s");

    /// How long it is remembered that a name does not exist. 0: not at all.
    METADATA_NEGATIVE_TTL: Duration = Decl::named("alluxio.user.metadata.negative.ttl").default("1s").range(0, 86_400_000);
}
