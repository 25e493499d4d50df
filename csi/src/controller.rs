//! The controller service: volumes are directories below the path of their StorageClass, in a directory or in S3.
//!
//! It keeps nothing itself: what exists, how large it is and whose it is stands in the storage ([`volumes`]), so that it can be
//! restarted and run twice. The id of a volume is the root and the volume's key, `s3://bucket/volumes#pvc-1`.

pub mod directory;
pub mod prefix;
pub mod shelf;
pub mod volumes;

use crate::{
    command::ControllerArgs,
    identity::Driver,
    keys::{self, Place, Settings},
    proto::{
        CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
        ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
        ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
        ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
        ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
        CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse,
        GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
        ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
        ValidateVolumeCapabilitiesResponse, Volume, VolumeCapability,
        controller_server::{Controller as ControllerService, ControllerServer},
        controller_service_capability::{Rpc, Type, rpc},
        identity_server::IdentityServer,
        list_volumes_response::Entry,
        validate_volume_capabilities_response::Confirmed,
    },
    server, volume,
};
use parking_lot::Mutex;
use shelf::Shelf;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tonic::{Request, Response, Status, transport::Server};
use volumes::Record;

/// What a call may take; more is DEADLINE_EXCEEDED, and the call is repeated.
const CALL: Duration = Duration::from_secs(100);
/// How often the trash is looked through.
const PURGE: Duration = Duration::from_secs(600);
/// The most volumes in one answer of a listing.
const PAGE: usize = 1000;
/// The longest id, as the specification has it.
const ID_MAX: usize = 128;

/// Serves identity and controller until a signal ends it.
///
/// # Errors
/// One line.
pub async fn serve(options: ControllerArgs) -> Result<(), String> {
    let mut roots = BTreeSet::new();
    for root in options.volume_root.iter().filter(|root| !root.trim().is_empty()) {
        roots.insert(
            volume::ufs_uri(root.trim()).map_err(|status| format!("--volume-root: {}", status.message()))?.to_string(),
        );
    }
    let driver = Driver::new(&options.service.driver_name, Arc::new(AtomicBool::new(true)));
    let retention = options.trash_retention;
    let plugin = Plugin { roots: Arc::new(Mutex::new(roots)), retention };
    let router = Server::builder()
        .add_service(IdentityServer::new(driver).max_decoding_message_size(server::MESSAGE_MAX))
        .add_service(ControllerServer::new(plugin.clone()).max_decoding_message_size(server::MESSAGE_MAX));
    tokio::select! {
        done = server::serve(&options.service.endpoint, router) => done,
        () = purge(plugin) => Ok(()),
    }
}

/// Empties the trash of all roots that are known, as it comes of age.
async fn purge(plugin: Plugin) {
    loop {
        let roots: Vec<String> = plugin.roots.lock().iter().cloned().collect();
        for root in roots {
            let purged = async { volumes::purge_trash(&*shelf_of(&root, &Settings::new())?, plugin.retention).await };
            if let Err(status) = purged.await {
                tracing::warn!("the trash of {root}: {}", status.message());
            }
        }
        tokio::time::sleep(PURGE).await;
    }
}

/// Serves it all by gRPC.
#[derive(Debug, Clone)]
struct Plugin {
    /// The roots that were named at the start or by a call since then.
    roots: Arc<Mutex<BTreeSet<String>>>,
    retention: Duration,
}

fn shelf_of(root: &str, secrets: &Settings) -> Result<Arc<dyn Shelf>, Status> {
    shelf::open(&volume::ufs_uri(root)?, secrets)
}

async fn bounded<T>(work: impl Future<Output = Result<T, Status>>) -> Result<Response<T>, Status> {
    match tokio::time::timeout(CALL, work).await {
        Ok(done) => done.map(Response::new),
        Err(_) => {
            Err(Status::deadline_exceeded(format!("the call did not end within {} s; repeat it", CALL.as_secs())))
        }
    }
}

/// The root and the key in an id of ours.
fn parts(id: &str) -> Option<(&str, &str)> {
    let (root, key) = id.rsplit_once('#')?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (root.contains("://") && !key.is_empty() && key.len() <= 63 && key.bytes().all(plain)).then_some((root, key))
}

/// The size that is asked for, and the most that will do (0: any).
fn capacity(range: Option<&CapacityRange>) -> Result<(i64, i64), Status> {
    let (required, limit) = range.map_or((0, 0), |range| (range.required_bytes, range.limit_bytes));
    if required < 0 || limit < 0 {
        return Err(Status::invalid_argument("capacity_range has a negative number of bytes"));
    }
    if limit > 0 && required > limit {
        return Err(Status::out_of_range(format!("capacity_range asks for {required} bytes and allows {limit}")));
    }
    Ok((required, limit))
}

fn check_capabilities(capabilities: &[VolumeCapability]) -> Result<(), Status> {
    if capabilities.is_empty() {
        return Err(Status::invalid_argument("volume_capabilities is missing"));
    }
    capabilities.iter().try_for_each(|one| volume::capability(Some(one)).map(drop))
}

/// The root that a class names.
fn root_of(parameters: &Settings) -> Result<String, Status> {
    match parameters.get(keys::UFS) {
        Some(ufs) => Ok(volume::ufs_uri(ufs)?.to_string()),
        None => Err(Status::invalid_argument(
            "the storage class names no place for its volumes: set its parameter ufs, such as s3://bucket/volumes",
        )),
    }
}

/// The directory of a volume, by the class's pattern.
fn directory(parameters: &Settings, key: &str) -> Result<String, Status> {
    let Some(pattern) = parameters.get(keys::PATH_PATTERN) else { return Ok(key.to_owned()) };
    let mut path = String::new();
    let mut rest = pattern.as_str();
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| Status::invalid_argument(format!("pathPattern {pattern:?} has ${{ without }}")))?;
        let source = match name {
            ".PVC.namespace" => keys::PVC_NAMESPACE,
            ".PVC.name" => keys::PVC_NAME,
            ".PV.name" => keys::PV_NAME,
            _ => {
                return Err(Status::invalid_argument(format!(
                    "pathPattern has ${{{name}}}; known are ${{.PVC.namespace}}, ${{.PVC.name}} and ${{.PV.name}}"
                )));
            }
        };
        let value = parameters.get(source).ok_or_else(|| {
            Status::invalid_argument(format!(
                "pathPattern needs {source}: start external-provisioner with --extra-create-metadata"
            ))
        })?;
        if value.contains('/') {
            return Err(Status::invalid_argument(format!("{source} {value:?} has a / in it")));
        }
        path.push_str(before);
        path.push_str(value);
        rest = after;
    }
    path.push_str(rest);
    let path = volume::path_of(keys::PATH_PATTERN, &path)?;
    if path.is_empty() || path.split('/').next() == Some(".alluxio-volumes") {
        return Err(Status::invalid_argument(format!("pathPattern {pattern:?} names no directory for a volume")));
    }
    Ok(path)
}

/// What the node is told of a volume: where it is, and what its class says of the mount.
fn context(root: &str, record: &Record) -> HashMap<String, String> {
    let mut context: HashMap<String, String> = record
        .parameters
        .iter()
        .filter(|(key, _)| keys::KEYS.iter().any(|spec| spec.name == key.as_str() && spec.attribute))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    context.insert(keys::UFS.into(), root.to_owned());
    context.insert(keys::SUB_PATH.into(), record.directory.clone());
    context
}

fn described(root: &str, record: &Record) -> Volume {
    Volume {
        capacity_bytes: record.capacity,
        volume_id: format!("{root}#{}", volumes::key_of(&record.name)),
        volume_context: context(root, record),
        content_source: None,
        accessible_topology: Vec::new(),
    }
}

impl Plugin {
    async fn create(&self, request: CreateVolumeRequest) -> Result<CreateVolumeResponse, Status> {
        if request.name.is_empty() {
            return Err(Status::invalid_argument("name is missing"));
        }
        if request.name.len() > 1024 || request.name.chars().any(char::is_control) {
            return Err(Status::invalid_argument("name has control characters, or more than 1024 bytes"));
        }
        check_capabilities(&request.volume_capabilities)?;
        let (required, limit) = capacity(request.capacity_range.as_ref())?;
        if request.volume_content_source.is_some() {
            return Err(Status::invalid_argument("volumes are not made from snapshots or other volumes here"));
        }
        if !request.mutable_parameters.is_empty() {
            return Err(Status::invalid_argument("mutable_parameters are not offered"));
        }
        let parameters = keys::canonical(Place::Parameter, &request.parameters)?;
        volume::in_pod(&parameters)?;
        let secrets = keys::secrets(&request.secrets)?;
        let root = root_of(&parameters)?;
        let key = volumes::key_of(&request.name);
        if root.len() + 1 + key.len() > ID_MAX {
            return Err(Status::invalid_argument(format!(
                "the volume's id, {root}#{key}, would have more than {ID_MAX} bytes; shorten the class's ufs"
            )));
        }
        let directory = directory(&parameters, &key)?;
        // What the class says of mounts is checked here, where its author sees it.
        let record = Record {
            name: request.name,
            capacity: required,
            directory,
            owner: [keys::PVC_NAMESPACE, keys::PVC_NAME]
                .iter()
                .filter_map(|name| parameters.get(*name).cloned())
                .collect::<Vec<_>>()
                .join("/"),
            parameters: parameters.into_iter().filter(|(key, _)| key != keys::UFS).collect::<BTreeMap<_, _>>(),
        };
        for one in &request.volume_capabilities {
            volume::publication(&context(&root, &record), &secrets, volume::capability(Some(one))?, false)?;
        }
        let shelf = shelf_of(&root, &secrets)?;
        let record = volumes::create(&*shelf, record, limit).await?;
        self.roots.lock().insert(root.clone());
        Ok(CreateVolumeResponse { volume: Some(described(&root, &record)) })
    }

    /// The volume with this id, its shelf and key.
    async fn find(
        &self,
        id: &str,
        secrets: &HashMap<String, String>,
    ) -> Result<(Arc<dyn Shelf>, String, String, Record), Status> {
        let none = || Status::not_found(format!("there is no volume {id} of this driver's making"));
        if id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        let (root, key) = parts(id).ok_or_else(none)?;
        let shelf = shelf_of(root, &keys::secrets(secrets)?)?;
        let record = volumes::get(&*shelf, key).await?.ok_or_else(none)?;
        Ok((shelf, root.to_owned(), key.to_owned(), record))
    }

    async fn list(&self, request: ListVolumesRequest) -> Result<ListVolumesResponse, Status> {
        let most = match usize::try_from(request.max_entries) {
            Ok(0) => PAGE,
            Ok(most) => most.min(PAGE),
            Err(_) => return Err(Status::invalid_argument("max_entries is negative")),
        };
        let (mut from, mut after) = (String::new(), String::new());
        if !request.starting_token.is_empty() {
            let (root, key) = parts(&request.starting_token).ok_or_else(|| {
                Status::aborted("starting_token is none of this driver's; begin the listing anew, without one")
            })?;
            (from, after) = (root.to_owned(), key.to_owned());
        }
        let roots: Vec<String> = self.roots.lock().range(from.clone()..).cloned().collect();
        let mut entries = Vec::new();
        for root in roots {
            let shelf = shelf_of(&root, &Settings::new())?;
            let begin = if root == from { after.as_str() } else { "" };
            // One more than wanted tells whether there are more.
            for key in volumes::keys(&*shelf, begin, most - entries.len() + 1).await? {
                if entries.len() == most {
                    let last: Option<&Entry> = entries.last();
                    let token = last.and_then(|last| last.volume.as_ref()).map(|last| last.volume_id.clone());
                    return Ok(ListVolumesResponse { next_token: token.unwrap_or_default(), entries });
                }
                // It may have been deleted since.
                if let Some(record) = volumes::get(&*shelf, &key).await? {
                    entries.push(Entry { volume: Some(described(&root, &record)), status: None });
                }
            }
        }
        Ok(ListVolumesResponse { entries, next_token: String::new() })
    }

    async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Status> {
        if request.volume_id.is_empty() {
            return Err(Status::invalid_argument("volume_id is missing"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(Status::invalid_argument("volume_capabilities is missing"));
        }
        let _found = self.find(&request.volume_id, &request.secrets).await?;
        if let Err(status) = check_capabilities(&request.volume_capabilities) {
            return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message: status.message().to_owned() });
        }
        let confirmed = Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }

    async fn measure(&self, request: GetCapacityRequest) -> Result<GetCapacityResponse, Status> {
        if !request.volume_capabilities.is_empty() {
            check_capabilities(&request.volume_capabilities)?;
        }
        let parameters = keys::canonical(Place::Parameter, &request.parameters)?;
        let root = match parameters.get(keys::UFS) {
            Some(_) => root_of(&parameters)?,
            None => match self.roots.lock().first() {
                Some(root) => root.clone(),
                None => return Err(Status::failed_precondition("no root of volumes is known; set --volume-root")),
            },
        };
        let free = shelf_of(&root, &Settings::new())?.free().await?;
        Ok(GetCapacityResponse {
            // An object store has no end.
            available_capacity: free.unwrap_or(i64::MAX),
            maximum_volume_size: None,
            minimum_volume_size: None,
        })
    }
}

/// Answers what is not offered. Spelt out as `async_trait` would, which does not look into macros.
macro_rules! refuse {
    ($($name:ident, $request:ty, $response:ty, $why:literal;)+) => {
        $(fn $name<'life0, 'async_trait>(
            &'life0 self,
            _: Request<$request>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'async_trait>>
        where
            'life0: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(std::future::ready(Err(Status::unimplemented($why))))
        })+
    };
}

#[tonic::async_trait]
impl ControllerService for Plugin {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        bounded(self.create(request.into_inner())).await
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        bounded(async {
            match self.find(&request.volume_id, &request.secrets).await {
                Ok((shelf, _, key, _)) => volumes::delete(&*shelf, &key, !self.retention.is_zero()).await?,
                // Gone already, or never made by this driver and left alone.
                Err(status) if status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(status),
            }
            Ok(DeleteVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        bounded(self.validate(request.into_inner())).await
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        bounded(self.list(request.into_inner())).await
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        bounded(self.measure(request.into_inner())).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        bounded(async {
            if request.volume_id.is_empty() {
                return Err(Status::invalid_argument("volume_id is missing"));
            }
            if request.capacity_range.is_none() {
                return Err(Status::invalid_argument("capacity_range is missing"));
            }
            let (required, limit) = capacity(request.capacity_range.as_ref())?;
            let (shelf, _, key, _) = self.find(&request.volume_id, &request.secrets).await?;
            let capacity_bytes = volumes::expand(&*shelf, &key, required, limit).await?;
            Ok(ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: false })
        })
        .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let types = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::ListVolumes,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
        ];
        let capabilities = types
            .into_iter()
            .map(|r#type| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: r#type as i32 })) })
            .collect();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    refuse! {
        controller_publish_volume, ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, "volumes need not be attached to a node";
        controller_unpublish_volume, ControllerUnpublishVolumeRequest, ControllerUnpublishVolumeResponse, "volumes are not attached to nodes";
        create_snapshot, CreateSnapshotRequest, CreateSnapshotResponse, "there are no snapshots";
        delete_snapshot, DeleteSnapshotRequest, DeleteSnapshotResponse, "there are no snapshots";
        list_snapshots, ListSnapshotsRequest, ListSnapshotsResponse, "there are no snapshots";
        get_snapshot, GetSnapshotRequest, GetSnapshotResponse, "there are no snapshots";
        controller_get_volume, ControllerGetVolumeRequest, ControllerGetVolumeResponse, "ask ListVolumes";
        controller_modify_volume, ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, "nothing of a volume can be modified but its size";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn patterns_name_directories() {
        let with = |pattern: &str| {
            let names = [(keys::PATH_PATTERN, pattern), (keys::PVC_NAME, "data"), (keys::PVC_NAMESPACE, "team")];
            directory(&settings(&names), "pvc-1")
        };
        assert_eq!(with("${.PVC.namespace}/${.PVC.name}").unwrap(), "team/data");
        assert_eq!(with("/a/x-${.PVC.name}/").unwrap(), "a/x-data");
        assert_eq!(directory(&Settings::new(), "pvc-1").unwrap(), "pvc-1");
        for bad in ["${.PV.name}", "${.PVC.labels.x}", "../${.PVC.name}", "/", "${.PVC.name", ".alluxio-volumes/x"] {
            assert_eq!(with(bad).unwrap_err().code(), tonic::Code::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn ids_are_taken_apart() {
        assert_eq!(parts("s3://b/v#pvc-1"), Some(("s3://b/v", "pvc-1")));
        for other in ["", "vol-1", "s3://b/v#", "s3://b#../x", "nfs#a#b c"] {
            assert_eq!(parts(other), None, "{other}");
        }
    }
}
