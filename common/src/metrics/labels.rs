//! Metrics that exist once for each value of a label. The values are enums, so that the right one is found by an index.

use crate::ErrorKind;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};
use std::marker::PhantomData;
use std::sync::Arc;

/// A label with a fixed set of values.
pub trait Label: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// The name of the label.
    const NAME: &'static str;
    /// The values, in the order of [`Label::index`].
    const VALUES: &'static [&'static str];

    /// The place of this value among all.
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$meta:meta])* $name:ident, $label:literal { $($(#[$variant_meta:meta])* $variant:ident = $value:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl Label for $name {
            const NAME: &'static str = $label;
            const VALUES: &'static [&'static str] = &[$($value),+];

            fn index(self) -> usize {
                self as usize
            }
        }

        impl $name {
            /// The word that `/metrics` shows.
            pub fn name(self) -> &'static str {
                Self::VALUES[self.index()]
            }
        }
    )+};
}

labels! {
    /// The operations that the kernel asks of a FUSE file system.
    #[allow(missing_docs, reason = "the names are those of the protocol")]
    FuseOp, "method" {
        Lookup = "lookup", Forget = "forget", GetAttr = "getattr", SetAttr = "setattr", ReadLink = "readlink",
        MkNod = "mknod", MkDir = "mkdir", Unlink = "unlink", RmDir = "rmdir", Symlink = "symlink", Rename = "rename",
        Link = "link", Open = "open", Read = "read", Write = "write", StatFs = "statfs", Release = "release",
        Fsync = "fsync", SetXattr = "setxattr", GetXattr = "getxattr", ListXattr = "listxattr",
        RemoveXattr = "removexattr", Flush = "flush", OpenDir = "opendir", ReadDir = "readdir",
        ReadDirPlus = "readdirplus", ReleaseDir = "releasedir", FsyncDir = "fsyncdir", Access = "access",
        Create = "create", Fallocate = "fallocate", Seek = "lseek", Ioctl = "ioctl", Other = "other",
    }

    /// The requests that an under storage is sent.
    UfsOp, "op" {
        /// The check of a root.
        Probe = "probe",
        /// Attributes of one path.
        Stat = "stat",
        /// Attributes and first bytes.
        StatAndRead = "stat_and_read",
        /// A page of a listing.
        List = "list",
        /// A range of a file.
        Read = "read",
        /// The target of a link.
        ReadLink = "read_link",
        /// An object written in one piece.
        Put = "put",
        /// A part of an object.
        Upload = "upload",
        /// The beginning, the end or the giving up of an upload in parts.
        Multipart = "multipart",
        /// A copy made by the service.
        Copy = "copy",
        /// Objects removed.
        Delete = "delete",
    }

    /// Why a request failed, as far as one looks at dashboards for it.
    Failure, "kind" {
        /// No such thing.
        NotFound = "not_found",
        /// Refused by the storage.
        Denied = "denied",
        /// The version is gone.
        Stale = "stale",
        /// A deadline passed.
        TimedOut = "timed_out",
        /// Unreachable or overloaded.
        Unavailable = "unavailable",
        /// Wrong bytes.
        Corrupt = "corrupt",
        /// Given up since nobody waits.
        Cancelled = "cancelled",
        /// Anything else.
        Other = "other",
    }

    /// How a directory of the cache does.
    Health, "state" {
        /// It works.
        Normal = "normal",
        /// Some operations fail.
        Unstable = "unstable",
        /// It is bypassed.
        Down = "down",
    }

    /// Which file the kernel reads in place of the daemon.
    PassthroughBacking, "backing" {
        /// The file of the under storage itself.
        Source = "source",
        /// The file in the page store.
        Cache = "cache",
    }
}

impl From<ErrorKind> for Failure {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Failure::NotFound,
            ErrorKind::PermissionDenied | ErrorKind::NotPermitted => Failure::Denied,
            ErrorKind::Stale => Failure::Stale,
            ErrorKind::TimedOut => Failure::TimedOut,
            ErrorKind::Unavailable => Failure::Unavailable,
            ErrorKind::Corrupt => Failure::Corrupt,
            ErrorKind::Cancelled => Failure::Cancelled,
            _ => Failure::Other,
        }
    }
}

/// One metric for each value of a label. Clones share their values.
#[derive(Debug)]
pub struct ByLabel<L, M> {
    metrics: Arc<[M]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label, M> ByLabel<L, M> {
    /// The metric for one value.
    pub fn of(&self, label: L) -> &M {
        &self.metrics[label.index()]
    }
}

impl<L: Label, M: Default> Default for ByLabel<L, M> {
    fn default() -> Self {
        ByLabel { metrics: L::VALUES.iter().map(|_| M::default()).collect(), label: PhantomData }
    }
}

impl<L, M> Clone for ByLabel<L, M> {
    fn clone(&self) -> Self {
        ByLabel { metrics: Arc::clone(&self.metrics), label: PhantomData }
    }
}

impl<L, M: TypedMetric> TypedMetric for ByLabel<L, M> {
    const TYPE: MetricType = M::TYPE;
}

impl<L: Label, M: EncodeMetric + TypedMetric> EncodeMetric for ByLabel<L, M> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        for (value, metric) in L::VALUES.iter().zip(self.metrics.iter()) {
            metric.encode(encoder.encode_family(&[(L::NAME, *value)])?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}
