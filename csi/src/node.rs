//! The node service: volumes become mounts at the targets that kubelet names.
//!
//! A call is checked, claims its target, and runs as a task of its own; the call waits for it for a bounded time. See
//! [`targets`] for publishing, [`sessions`] for the file systems behind the targets, [`keeper`] for their recovery,
//! [`records`] for what survives a restart.

mod backing;
pub mod keeper;
pub mod records;
pub mod sessions;
pub mod sys;
pub mod targets;

use crate::{
    command::NodeArgs,
    identity::Driver,
    keys,
    proto::{
        NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
        NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
        NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
        NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
        NodeUnstageVolumeResponse, VolumeCondition, VolumeUsage,
        identity_server::IdentityServer,
        node_server::{Node as NodeService, NodeServer},
        node_service_capability::{Rpc, Type, rpc},
        volume_usage::Unit,
    },
    server, volume,
};
use records::Records;
use sessions::Sessions;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use targets::Targets;
use tonic::{Request, Response, Status, transport::Server};

/// What calls may take that start nothing.
const CALL: Duration = Duration::from_secs(40);
/// How long a call for figures waits for the first look at a mount.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// The state of the node service.
#[derive(Debug)]
pub struct Node {
    options: NodeArgs,
    sessions: Sessions,
    targets: Targets,
    ready: Arc<AtomicBool>,
}

/// Serves identity and node until a signal ends it. Mounts stay.
///
/// # Errors
/// One line.
pub async fn serve(options: NodeArgs) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("the node service mounts file systems and must run as root".into());
    }
    let places = &options.places;
    let (records, _lock) = Records::open(&places.state_dir)?;
    let mount_dir = std::fs::create_dir_all(&places.mount_dir)
        .and_then(|()| places.mount_dir.canonicalize())
        .map_err(|error| format!("the directory for mounts {}: {error}", places.mount_dir.display()))?;
    let ready = Arc::new(AtomicBool::new(false));
    let sessions =
        Sessions::new(records.clone(), &mount_dir, &places.mounter_socket, options.max_sessions, options.start_timeout);
    let driver = Driver::new(&options.service.driver_name, ready.clone());
    let node = Arc::new(Node { targets: Targets::new(records.clone()), sessions, options, ready });
    let endpoint = node.options.service.endpoint.clone();
    let router = Server::builder()
        .add_service(IdentityServer::new(driver).max_decoding_message_size(server::MESSAGE_MAX))
        .add_service(NodeServer::new(Plugin(node.clone())).max_decoding_message_size(server::MESSAGE_MAX));
    let starting = async {
        keeper::rebuild(&node, &records).await?;
        node.ready.store(true, Ordering::Relaxed);
        keeper::keep(node.clone()).await;
        Ok(())
    };
    tokio::select! {
        done = server::serve(&endpoint, router) => done,
        failed = starting => failed,
    }
}

/// Serves [`Node`] by gRPC.
#[derive(Debug, Clone)]
struct Plugin(Arc<Node>);

impl Plugin {
    fn ready(&self) -> Result<&Arc<Node>, Status> {
        if self.0.ready.load(Ordering::Relaxed) {
            return Ok(&self.0);
        }
        Err(Status::unavailable("the node service is starting; repeat the call"))
    }

    /// Runs `work` to its end, whatever becomes of the call, and waits for it for at most `limit`.
    async fn run(
        limit: Duration,
        work: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) -> Result<(), Status> {
        match tokio::time::timeout(limit, tokio::spawn(work)).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(Status::internal("a defect of the driver; see its log")),
            Err(_) => Err(Status::deadline_exceeded(format!(
                "the call did not end within {} s and goes on; repeat it",
                limit.as_secs()
            ))),
        }
    }
}

/// Tells the log of a failure, without what the request holds.
fn told(call: &str, target: &str, result: Result<(), Status>) -> Result<(), Status> {
    if let Err(status) = &result {
        tracing::warn!("{call} {target}: {:?}: {}", status.code(), status.message());
    }
    result
}

#[tonic::async_trait]
impl NodeService for Plugin {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let node = self.ready()?.clone();
        let request = request.into_inner();
        volume::check_id(&request.volume_id)?;
        let target = sys::resolve_target(&request.target_path, &node.options.kubelet_dir)?;
        let capability = volume::capability(request.volume_capability.as_ref())?;
        let secrets = keys::secrets(&request.secrets)?;
        let publication = volume::publication(&request.volume_context, &secrets, capability, request.readonly)?;
        if request.volume_context.get(keys::EPHEMERAL).is_some_and(|text| text == "true")
            && publication.volume.source.starts_with("file:")
        {
            return Err(Status::invalid_argument(
                "an inline volume may not name a directory of the mounter (ufs: file://…); use a PersistentVolume",
            ));
        }
        let claim = node.targets.claim(&target)?;
        let limit = node.options.start_timeout + CALL;
        let done = Self::run(limit, async move {
            let _claim = claim;
            node.targets.publish(&node.sessions, &request.volume_id, &target, publication, &secrets).await
        });
        told("publish", &request.target_path, done.await)?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let node = self.ready()?.clone();
        let request = request.into_inner();
        volume::check_id(&request.volume_id)?;
        let target = sys::resolve_target(&request.target_path, &node.options.kubelet_dir)?;
        let claim = node.targets.claim(&target)?;
        let limit = node.options.upload_timeout + CALL;
        let done = Self::run(limit, async move {
            let _claim = claim;
            node.targets.unpublish(&node.sessions, &request.volume_id, &target, node.options.upload_timeout).await
        });
        told("unpublish", &request.target_path, done.await)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let node = self.ready()?;
        let request = request.into_inner();
        volume::check_id(&request.volume_id)?;
        if request.volume_path.is_empty() {
            return Err(Status::invalid_argument("volume_path is missing"));
        }
        let not_found =
            || Status::not_found(format!("volume {} is not published at {}", request.volume_id, request.volume_path));
        let target = sys::resolve_target(&request.volume_path, std::path::Path::new("")).map_err(|_| not_found())?;
        let record =
            node.targets.get(&target).filter(|record| record.volume_id == request.volume_id).ok_or_else(not_found)?;
        let slot = node.sessions.get(&record.publication.volume.key()).ok_or_else(not_found)?;
        // A session that has just come up was not looked at yet.
        let begin = tokio::time::Instant::now();
        while slot.seen.lock().space.is_none() && slot.seen.lock().trouble.is_none() && begin.elapsed() < FIRST_LOOK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let seen = slot.seen.lock().clone();
        let mounted = sys::mounts_at(&target)?.last().is_some_and(common::mountinfo::Mount::is_ours);
        let trouble = seen.trouble.or_else(|| (!mounted).then(|| "the target is not mounted any more".into()));
        let usage = seen.space.map(|space| {
            vec![
                VolumeUsage {
                    available: space.available,
                    total: space.total,
                    used: space.used,
                    unit: Unit::Bytes as i32,
                },
                VolumeUsage {
                    available: space.files_free,
                    total: space.files,
                    used: space.files.saturating_sub(space.files_free),
                    unit: Unit::Inodes as i32,
                },
            ]
        });
        let condition = VolumeCondition {
            abnormal: trouble.is_some(),
            message: trouble.unwrap_or_else(|| "the volume is mounted and answers".into()),
        };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: usage.unwrap_or_default(),
            volume_condition: Some(condition),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let types = [
            rpc::Type::GetVolumeStats,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::VolumeMountGroup,
        ];
        let capabilities = types
            .into_iter()
            .map(|r#type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: r#type as i32 })) })
            .collect();
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.0.options.node_id.clone(),
            max_volumes_per_node: self.0.options.max_volumes,
            accessible_topology: None,
        }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are not staged; publish them"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("volumes are not staged; unpublish them"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("nothing on a node changes when a volume grows; the controller does it all"))
    }
}
