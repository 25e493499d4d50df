//! Bad input of each field, with the exact code.

use crate::harness::{Kubelet, alone, capability, map};
use csi::proto::{
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability,
    volume_capability::{AccessMode, AccessType, BlockVolume, access_mode::Mode},
};
use tonic::Code;

#[test]
fn every_field_is_checked_before_anything_is_done() {
    if !alone() {
        return;
    }
    let kubelet = Kubelet::start(&[]);
    let good = kubelet.request("pod", &[("ufs", "s3://bucket")]);
    let attributes = |pairs: &[(&str, &str)]| NodePublishVolumeRequest { volume_context: map(pairs), ..good.clone() };
    let with = |change: &dyn Fn(&mut NodePublishVolumeRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let block = VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter as i32 }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    };
    let bad = Code::InvalidArgument;
    for (request, code, says) in [
        (with(&|request| request.volume_id.clear()), bad, "volume_id is missing"),
        (with(&|request| request.volume_id = "x".repeat(2000)), bad, "volume_id"),
        (with(&|request| request.target_path.clear()), bad, "target_path is missing"),
        (with(&|request| request.target_path = "a/b".into()), bad, "absolute"),
        (with(&|request| request.target_path = "/tmp/../etc/x".into()), bad, ".."),
        (with(&|request| request.volume_capability = None), bad, "volume_capability is missing"),
        (with(&|request| request.volume_capability = Some(block.clone())), bad, "volumeMode: Filesystem"),
        (with(&|request| request.volume_capability = Some(capability(Mode::Unknown))), bad, "access_mode"),
        (with(&|request| drop(request.secrets.insert("passwrod".into(), "x".into()))), bad, "secret"),
        (with(&|request| drop(request.secrets.insert("s3a.accessKeyId".into(), "x".into()))), bad, "s3a.secretKey"),
        (attributes(&[("ufs", "s3://b"), ("mountOption", "ro")]), bad, "did you mean mountOptions?"),
        (attributes(&[("ufs", "s3://b"), ("subPath", "../x")]), bad, "subPath"),
        (attributes(&[("ufs", "s3://b"), ("mountOptions", "allow_other")]), bad, "set by the driver"),
        (attributes(&[("ufs", "s3://b"), ("mountOptions", "fd=5")]), bad, "fd"),
        (attributes(&[("ufs", "s3://b"), ("alluxioPath", "/x")]), bad, "keep one of them"),
        (attributes(&[("ufs", "nonsense")]), bad, "s3://bucket/prefix"),
        (attributes(&[("ufs", "s3://b"), ("mountInPod", "true")]), Code::Unimplemented, "mountInPod"),
        (attributes(&[("ufs", "file:///no/such/directory")]), Code::FailedPrecondition, "/no/such/directory"),
        (attributes(&[]), Code::FailedPrecondition, "etcd"),
    ] {
        let error = kubelet.publish(request.clone()).unwrap_err();
        assert_eq!(error.code(), code, "{says}: {error}");
        assert!(error.message().contains(says), "{says}: {}", error.message());
    }
    let unpublish = |volume_id: &str, target_path: &str| {
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.into(), target_path: target_path.into() };
        kubelet.call(async |mut client| client.node_unpublish_volume(request).await.map(drop))
    };
    assert_eq!(unpublish("", "/x").unwrap_err().code(), bad);
    assert_eq!(unpublish("v", "").unwrap_err().code(), bad);
    // What was never there is gone.
    unpublish("v", kubelet.target("never").to_str().unwrap()).unwrap();
    unpublish("v", "/no/such/parent/target").unwrap();
    // Files that are not ours stay.
    let own = kubelet.target("own");
    std::fs::create_dir(&own).unwrap();
    std::fs::write(own.join("file"), "").unwrap();
    assert_eq!(unpublish("v", own.to_str().unwrap()).unwrap_err().code(), Code::FailedPrecondition);
    std::fs::remove_dir_all(own).unwrap();

    let stats = |volume_id: &str, volume_path: &str| {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id.into(),
            volume_path: volume_path.into(),
            ..Default::default()
        };
        kubelet.call(async |mut client| client.node_get_volume_stats(request).await.unwrap_err().code())
    };
    assert_eq!(stats("", "/x"), bad);
    assert_eq!(stats("v", ""), bad);
    assert_eq!(stats("v", "/x"), Code::NotFound);
    let stage = NodeStageVolumeRequest::default();
    let code = kubelet.call(async |mut client| client.node_stage_volume(stage).await.unwrap_err().code());
    assert_eq!(code, Code::Unimplemented);
    // A message beyond all measure.
    let huge = NodePublishVolumeRequest { volume_id: "x".repeat(2 << 20), ..good.clone() };
    assert_eq!(kubelet.publish(huge).unwrap_err().code(), Code::OutOfRange);
    kubelet.nothing_left();
}

#[test]
fn targets_stay_within_kubelet_when_that_is_wanted_and_sessions_within_their_number() {
    if !alone() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    std::fs::set_permissions(data.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let kubelet = Kubelet::start(&["--kubelet-dir", "/var/lib/kubelet-that-is-elsewhere", "--max-sessions", "1"]);
    let ufs = format!("file://{}", data.path().display());
    let refused = kubelet.publish(kubelet.request("pod", &[("ufs", &ufs)])).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("kubelet's directory"), "{refused}");
}
