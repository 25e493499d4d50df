//! The CSI driver: claims in pod specs become mounts in pods.
//!
//! [`identity`], [`controller`] and [`node`] are the three services, [`server`] runs them on a domain socket, [`keys`] is
//! the one list of what a volume may say, [`volume`] reads and checks it, and [`command`] is the command line. The file
//! systems themselves are served by a mounter (`alluxio-fuse serve`), which gets connections handed over
//! (`common::handover`) and needs no privilege.

pub mod command;
pub mod controller;
pub mod identity;
pub mod keys;
pub mod node;
pub mod server;
pub mod volume;

/// What is generated from `csi/proto/csi.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod proto {
    tonic::include_proto!("csi.v1");
}
