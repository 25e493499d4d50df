//! Volumes that are made on demand, on S3, and then published.

use crate::{
    harness::{Kubelet, Process, alone, capability, map, read},
    publishing::on,
};
use csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest,
    NodePublishVolumeRequest, ValidateVolumeCapabilitiesRequest, controller_client::ControllerClient,
    volume_capability::access_mode::Mode,
};
use std::process::{Command, Stdio};
use tests::{Store, wait_for};
use tonic::{Code, transport::Endpoint};

fn start(kubelet: &Kubelet, store: &Store, name: &str) -> (Process, String) {
    let socket = kubelet.home.path().join("csi").join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_alluxio-csi"));
    let properties: Vec<String> = store
        .options()
        .iter()
        .filter(|option| option.starts_with("alluxio."))
        .map(|option| format!("-D{option}"))
        .collect();
    command.env_clear().env("ALLUXIO_JAVA_OPTS", properties.join(" ")).env("ALLUXIO_CONF_DIR", kubelet.home.path());
    command.arg("controller").arg("--endpoint").arg(&socket).stdin(Stdio::null()).stderr(Stdio::null());
    let process = Process::start(command);
    wait_for("the controller", || socket.exists().then_some(()));
    (process, format!("unix://{}", socket.display()))
}

#[test]
fn a_volume_on_s3_is_made_once_published_grown_and_deleted() {
    if !alone() {
        return;
    }
    let store = Store::start();
    let kubelet = Kubelet::start(&[]);
    let (attributes, secrets) = on(&store, "volumes");
    let controllers = [start(&kubelet, &store, "c1.sock"), start(&kubelet, &store, "c2.sock")];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connect = |at: usize| {
        let endpoint = Endpoint::from_shared(controllers[at].1.clone()).unwrap();
        async move { ControllerClient::new(endpoint.connect().await.unwrap()) }
    };
    let mut parameters = attributes;
    parameters.extend(map(&[
        ("pathPattern", "${.PVC.namespace}/${.PVC.name}"),
        ("csi.storage.k8s.io/pvc/name", "data"),
        ("csi.storage.k8s.io/pvc/namespace", "team"),
    ]));
    let wanted = CreateVolumeRequest {
        name: "pvc-1".into(),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 30, limit_bytes: 0 }),
        volume_capabilities: vec![capability(Mode::MultiNodeMultiWriter)],
        parameters,
        secrets: secrets.clone(),
        ..Default::default()
    };
    let volume = runtime.block_on(async {
        let (mut one, mut two) = (connect(0).await, connect(1).await);
        let made = one.create_volume(wanted.clone()).await.unwrap().into_inner().volume.unwrap();
        let again = two.create_volume(wanted.clone()).await.unwrap().into_inner().volume.unwrap();
        assert_eq!(made, again, "two controllers, one volume");
        let other = CreateVolumeRequest {
            capacity_range: Some(CapacityRange { required_bytes: 2 << 30, limit_bytes: 0 }),
            ..wanted.clone()
        };
        assert_eq!(two.create_volume(other).await.unwrap_err().code(), Code::AlreadyExists);
        let other = CreateVolumeRequest { name: "pvc-2".into(), ..wanted.clone() };
        let refused = two.create_volume(other).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "the same directory: {refused}");
        let mut bad = wanted.clone();
        bad.parameters.insert("pathPatern".into(), "x".into());
        let refused = one.create_volume(bad).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("pathPattern"), "{refused}");
        made
    });
    assert_eq!(volume.volume_context["subPath"], "team/data");
    assert!(!format!("{volume:?}").contains(secrets.values().max_by_key(|value| value.len()).unwrap()));

    store.put("volumes/team/data/file", "bytes");
    let publish = NodePublishVolumeRequest {
        volume_context: volume.volume_context.clone(),
        secrets: secrets.clone(),
        ..kubelet.request("pod", &[])
    };
    kubelet.publish(publish).unwrap();
    assert_eq!(read(&kubelet.target("pod").join("file")).unwrap(), b"bytes");
    kubelet.unpublish("pod").unwrap();

    runtime.block_on(async {
        let (mut one, mut two) = (connect(0).await, connect(1).await);
        let grow = ControllerExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            capacity_range: Some(CapacityRange { required_bytes: 5 << 30, limit_bytes: 0 }),
            secrets: secrets.clone(),
            ..Default::default()
        };
        assert_eq!(one.controller_expand_volume(grow).await.unwrap().into_inner().capacity_bytes, 5 << 30);
        let validate = |volume_id: &str| ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.into(),
            volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
            secrets: secrets.clone(),
            ..Default::default()
        };
        let answer = two.validate_volume_capabilities(validate(&volume.volume_id)).await.unwrap().into_inner();
        assert!(answer.confirmed.is_some());
        for unknown in ["s3://data/volumes#pvc-none", "somebody-elses"] {
            let error = two.validate_volume_capabilities(validate(unknown)).await.unwrap_err();
            assert_eq!(error.code(), Code::NotFound, "{unknown}");
        }
        let list = ListVolumesRequest { max_entries: 1, starting_token: "nonsense".into() };
        assert_eq!(one.list_volumes(list).await.unwrap_err().code(), Code::Aborted);
        for controller in [&mut one, &mut two] {
            let request = DeleteVolumeRequest { volume_id: volume.volume_id.clone(), secrets: secrets.clone() };
            controller.delete_volume(request).await.unwrap();
        }
        let foreign = DeleteVolumeRequest { volume_id: "somebody-elses".into(), secrets: secrets.clone() };
        one.delete_volume(foreign).await.unwrap();
        // The directory is free again, and its data in the trash.
        one.create_volume(wanted.clone()).await.unwrap();
    });
    let publish = NodePublishVolumeRequest {
        volume_context: map(&[("ufs", &store.uri("volumes/.alluxio-volumes/trash"))])
            .into_iter()
            .chain(volume.volume_context.into_iter().filter(|(key, _)| key == "mountOptions"))
            .collect(),
        secrets,
        ..kubelet.request("trash", &[])
    };
    kubelet.publish(publish).unwrap();
    let trash = kubelet.target("trash");
    let kept = crate::harness::bounded(move || {
        let entry = std::fs::read_dir(trash).unwrap().next().expect("a deleted volume").unwrap();
        std::fs::read(entry.path().join("file")).unwrap()
    });
    assert_eq!(kept, b"bytes");
    kubelet.unpublish("trash").unwrap();
    kubelet.nothing_left();
}
