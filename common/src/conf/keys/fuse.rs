//! Keys of the FUSE daemon.

use crate::conf::key::Decl;
use crate::conf::machine::Environment;
use crate::conf::{LogFilter, Scope, Size, conf_choice, keys};
use std::path::PathBuf;
use std::time::Duration;

conf_choice! {
    /// Whether reads of files that are wholly local are left to the kernel.
    Passthrough {
        /// When kernel and privilege allow it.
        Auto = "AUTO",
        /// Never.
        Off = "OFF",
    }
}

conf_choice! {
    /// What the kernel does with the data of a file between opens.
    KernelCache {
        /// Keeps it while the version of the file is unchanged.
        Auto = "AUTO" | "AUTO_CACHE",
        /// Keeps it always; for data that does not change.
        Keep = "KEEP" | "KERNEL_CACHE",
        /// Keeps nothing: each read reaches the daemon.
        Direct = "DIRECT" | "DIRECT_IO",
    }
}

conf_choice! {
    /// How log lines look.
    LogFormat {
        /// One line of text.
        Text = "TEXT",
        /// One JSON object a line.
        Json = "JSON",
    }
}

keys! { Scope::Fuse;
    /// Where to mount when the command line does not say.
    MOUNT_POINT: PathBuf = Decl::named("alluxio.fuse.mount.point").default("/mnt/alluxio-fuse");

    /// The Alluxio path that a cluster's mount shows.
    MOUNT_ALLUXIO_PATH: String = Decl::named("alluxio.fuse.mount.alluxio.path").default("/");

    /// How long the kernel may use attributes without asking again (`-o attr_timeout`, there in seconds).
    ATTR_TIMEOUT: Duration = Decl::named("alluxio.fuse.attr.timeout").default("10s").range(0, 31_536_000_000);

    /// How long the kernel may use names without asking again (`-o entry_timeout`, there in seconds).
    ENTRY_TIMEOUT: Duration = Decl::named("alluxio.fuse.entry.timeout").default("10s").range(0, 31_536_000_000);

    /// What the kernel keeps of a file's data between opens: AUTO while its version is unchanged, KEEP always, DIRECT
    /// nothing (`-o auto_cache`, `kernel_cache`, `direct_io`).
    KERNEL_CACHE: KernelCache = Decl::named("alluxio.fuse.kernel.cache").default("AUTO");

    /// How many readahead and other background requests the kernel may have under way.
    MAX_BACKGROUND: u64 = Decl::named("alluxio.fuse.max.background").default("128").range(1, 65535).unit("requests");

    /// How many threads take requests from the kernel. 0: one for each processor, 2 at least, 8 at most.
    THREADS: u64 = Decl::named("alluxio.fuse.threads").default("0").range(0, 256).unit("threads");

    /// While requests follow each other fast, how long a thread that has answered one looks for the next before it sleeps,
    /// which saves waking it. An idle mount does not look. 0: never; nor is it done where there is one processor.
    REQUEST_LOOK_US: u64 = Decl::named("alluxio.fuse.request.look.us").default("60").range(0, 1000).unit("µs");

    /// The kernel's readahead window of the mount, in KiB; it is raised where the privilege allows. 0: left alone.
    READAHEAD_KB: u64 = Decl::named("alluxio.fuse.readahead.kb").default("4096").range(0, 131_072).unit("KiB");

    /// Whether files that are wholly local are read by the kernel without the daemon: AUTO where kernel and privilege
    /// allow it, or OFF.
    PASSTHROUGH: Passthrough = Decl::named("alluxio.fuse.passthrough").default("AUTO");

    /// The port of `/metrics`, on `alluxio.fuse.web.bind.host`. 0: off. A port that is taken is a warning.
    WEB_PORT: u64 = Decl::named("alluxio.fuse.web.port").default("49999").range(0, 65535).unit("port");

    /// The address that `/metrics` listens on.
    WEB_BIND_HOST: String = Decl::named("alluxio.fuse.web.bind.host").default("127.0.0.1");

    /// What is logged: OFF, ERROR, WARN, INFO, DEBUG or TRACE, or directives such as `info,ufs=debug`.
    LOG_LEVEL: LogFilter = Decl::named("alluxio.fuse.log.level").default("INFO");

    /// The log file. Empty: standard error while in the foreground, else `<state dir>/log/<mount>.log`.
    LOG_FILE: Option<PathBuf> = Decl::named("alluxio.fuse.log.file");

    /// How log lines look: TEXT or JSON.
    LOG_FORMAT: LogFormat = Decl::named("alluxio.fuse.log.format").default("TEXT");

    /// Where running mounts are recorded.
    STATE_DIR: PathBuf = Decl::named("alluxio.fuse.state.dir")
        .computed(Environment::state_dir, "`/run/alluxio-fuse` for root, else `$XDG_RUNTIME_DIR/alluxio-fuse`, else `/tmp/alluxio-fuse-<uid>/state`");

    /// How many files may be open at once through a mount; one more answers ENFILE.
    MAX_OPEN_HANDLES: u64 = Decl::named("alluxio.fuse.max.open.handles").default("100000").range(16, 10_000_000).unit("handles");

    /// How many inodes the daemon remembers on behalf of the kernel before it asks the kernel to forget some.
    MAX_INODES: u64 = Decl::named("alluxio.fuse.max.inodes").default("4000000").range(1024, 1_000_000_000).unit("inodes").reserved();

    /// The largest request that the kernel is offered, in bytes.
    MAX_REQUEST_SIZE: Size = Decl::named("alluxio.fuse.max.request.size").default("1MiB").range(4096, 1 << 20);

    /// Whether `ls -l <dir>/.alluxiocli.metadatacache.{dropAll,drop,size}` act on the metadata cache.
    SPECIAL_COMMAND_ENABLED: bool = Decl::named("alluxio.fuse.special.command.enabled").default("false").reserved();

    /// How long the start waits for the mount to answer before it gives up.
    MOUNT_TIMEOUT: Duration = Decl::named("alluxio.fuse.mount.timeout").default("12s").range(1000, 600_000);
}
