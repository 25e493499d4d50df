//! A node for one test: plugin, mounter, and the calls that kubelet makes.

use csi::proto::{
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeUnpublishVolumeRequest,
    VolumeCapability,
    identity_client::IdentityClient,
    node_client::NodeClient,
    volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode},
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};
use tests::{machine::wait_for, mounts_work};
use tokio::runtime::Runtime;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How long a call or a read may take at the very most; only failures take it.
const LIMIT: Duration = Duration::from_secs(90);

/// Puts this thread into a mount namespace of its own; false, with a word why, where mounting does not work.
pub fn alone() -> bool {
    if !mounts_work() {
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("a mount namespace");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("a private tree");
    true
}

/// A child that dies with the thread that started it, and is reaped.
pub struct Process(Option<Child>);

impl Process {
    pub fn start(mut command: Command) -> Self {
        // SAFETY: prctl is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let shown = format!("{command:?}");
        Process(Some(command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"))))
    }

    /// No process at all.
    pub fn none() -> Self {
        Process(None)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.as_ref().expect("it lives").id() as i32)
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(mut self) -> std::process::ExitStatus {
        let mut child = self.0.take().expect("it lives");
        wait_for("the end of a process", || child.try_wait().expect("a child"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node.
pub struct Kubelet {
    pub home: tempfile::TempDir,
    pub plugin: Process,
    pub mounter: Process,
    pub arguments: Vec<String>,
    runtime: Runtime,
}

impl Kubelet {
    /// With both programs up. `arguments` are further ones of the plugin.
    pub fn start(arguments: &[&str]) -> Self {
        let home = tempfile::Builder::new().prefix("alluxio-csi-test-").tempdir().expect("a directory");
        for part in ["csi", "mounter", "pods", "kube"] {
            std::fs::create_dir(home.path().join(part)).expect("a directory");
        }
        // The mounter is an ordinary user: its directory is its own, and it must get there.
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("rights");
        };
        open(home.path(), 0o755);
        std::os::unix::fs::chown(home.path().join("mounter"), Some(65534), Some(65534)).expect("root");
        open(&home.path().join("mounter"), 0o700);
        let arguments: Vec<String> = ["--check-interval", "100ms", "--idle-timeout", "1s"]
            .iter()
            .chain(arguments)
            .map(|word| (*word).to_owned())
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mounter = start_mounter(home.path());
        let plugin = start_plugin(home.path(), &arguments);
        let kubelet = Kubelet { home, plugin, mounter, arguments, runtime };
        kubelet.wait();
        kubelet
    }

    /// Waits until the plugin answers that it is ready.
    pub fn wait(&self) {
        wait_for("the plugin", || {
            let probe = async {
                let channel = self.channel().await.ok()?;
                let answer = IdentityClient::new(channel).probe(csi::proto::ProbeRequest {}).await.ok()?;
                answer.into_inner().ready?.then_some(())
            };
            self.runtime.block_on(probe)
        });
        wait_for("the mounter", || self.home.path().join("mounter/m.sock").exists().then_some(()));
    }

    pub fn restart_plugin(&mut self) {
        self.plugin.kill();
        self.plugin = start_plugin(self.home.path(), &self.arguments);
        self.wait();
    }

    pub fn restart_mounter(&mut self) {
        self.mounter.kill();
        self.mounter = start_mounter(self.home.path());
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let socket = format!("unix://{}", self.home.path().join("csi/csi.sock").display());
        Endpoint::from_shared(socket)?.timeout(LIMIT).connect().await
    }

    /// Runs calls of the node service.
    pub fn call<T>(&self, work: impl AsyncFnOnce(NodeClient<Channel>) -> T) -> T {
        self.runtime.block_on(async {
            let channel = self.channel().await.expect("the plugin's socket");
            work(NodeClient::new(channel)).await
        })
    }

    /// The target for a pod of this name.
    pub fn target(&self, pod: &str) -> PathBuf {
        self.home.path().join("pods").join(pod)
    }

    /// A request to publish `attributes` for a pod.
    pub fn request(&self, pod: &str, attributes: &[(&str, &str)]) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: "volume-1".into(),
            target_path: self.target(pod).to_str().expect("UTF-8").into(),
            volume_capability: Some(capability(Mode::MultiNodeMultiWriter)),
            volume_context: map(attributes),
            ..Default::default()
        }
    }

    pub fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Status> {
        self.call(async |mut client| client.node_publish_volume(request).await.map(drop))
    }

    pub fn unpublish(&self, pod: &str) -> Result<(), Status> {
        let target_path = self.target(pod).to_str().expect("UTF-8").to_owned();
        let request = NodeUnpublishVolumeRequest { volume_id: "volume-1".into(), target_path };
        self.call(async |mut client| client.node_unpublish_volume(request).await.map(drop))
    }

    pub fn stats(&self, pod: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: "volume-1".into(),
            volume_path: self.target(pod).to_str().expect("UTF-8").to_owned(),
            ..Default::default()
        };
        self.call(async |mut client| client.node_get_volume_stats(request).await.map(tonic::Response::into_inner))
    }

    /// What the doctor says, and whether all is well.
    pub fn doctor(&self) -> (bool, String) {
        let home = self.home.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_alluxio-csi"));
        command.env_clear().arg("doctor").arg("--state-dir").arg(home.join("kube/state"));
        command.arg("--mount-dir").arg(home.join("kube/mounts"));
        command.arg("--mounter-socket").arg(home.join("mounter/m.sock"));
        let output = command.output().expect("the doctor");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The processes that serve sessions.
    pub fn daemons(&self) -> Vec<i32> {
        let mounter = self.mounter.pid();
        let children = std::fs::read_to_string(format!("/proc/{mounter}/task/{mounter}/children")).unwrap_or_default();
        let mut all: Vec<i32> = children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        // They are children of whichever thread started them.
        for task in std::fs::read_dir(format!("/proc/{mounter}/task")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn signal_daemons(&self, signal: Signal) {
        for pid in self.daemons() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Checks that nothing is left: no mount, record, session or process.
    #[track_caller]
    pub fn nothing_left(&self) {
        wait_for("the end of all sessions", || {
            let mounts = self.mounts();
            (mounts.is_empty() && self.daemons().is_empty() && self.records() == 0).then_some(())
        });
        let targets = std::fs::read_dir(self.home.path().join("pods")).expect("a directory").count();
        assert_eq!(targets, 0, "targets are left");
        let places = self.home.path().join("kube/mounts");
        assert_eq!(std::fs::read_dir(places).expect("a directory").count(), 0, "source directories are left");
    }

    pub fn records(&self) -> usize {
        ["sessions", "targets"]
            .iter()
            .map(|part| std::fs::read_dir(self.home.path().join("kube/state").join(part)).expect("records").count())
            .sum()
    }

    /// What is staged for sessions.
    pub fn staged(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home.path().join("mounter/stage")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// The mounts below this node's directory.
    pub fn mounts(&self) -> Vec<common::mountinfo::Mount> {
        let mut mounts = common::mountinfo::list().expect("/proc");
        mounts.retain(|mount| mount.is_ours() && mount.point.starts_with(self.home.path()));
        mounts
    }
}

pub fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn capability(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode as i32 }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn log(home: &Path, name: &str) -> Stdio {
    let file = File::options().create(true).append(true).open(home.join(name)).expect("a log");
    file.into()
}

fn start_plugin(home: &Path, arguments: &[String]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alluxio-csi"));
    command.env_clear().arg("node").args(["--node-id", "node-1", "--endpoint"]);
    command.arg(format!("unix://{}", home.join("csi/csi.sock").display()));
    command.arg("--state-dir").arg(home.join("kube/state")).arg("--mount-dir").arg(home.join("kube/mounts"));
    command.arg("--mounter-socket").arg(home.join("mounter/m.sock")).args(arguments);
    command.stdin(Stdio::null()).stdout(log(home, "plugin.log")).stderr(log(home, "plugin.log"));
    Process::start(command)
}

/// The mounter as user 65534 without any capability, as in Kubernetes.
pub fn start_mounter(home: &Path) -> Process {
    let own = home.join("mounter");
    // The build may lie where that user cannot go: it is seen at a place of its own.
    let program = home.join("alluxio-fuse");
    if !program.exists() {
        File::create(&program).expect("a file");
        let built = tests::daemon::program();
        mount(Some(built), &program, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a bind mount");
    }
    let mut command = tests::daemon::command_of(&program, &own);
    command.args(["serve", "--fd-socket"]).arg(own.join("m.sock")).uid(65534).gid(65534);
    let options = format!(
        "-Dalluxio.user.client.cache.dirs={} -Dalluxio.user.stage.dir={}",
        own.join("cache").display(),
        own.join("stage").display()
    );
    command.env("ALLUXIO_FUSE_JAVA_OPTS", options);
    command.stdout(log(home, "mounter.log")).stderr(log(home, "mounter.log"));
    // SAFETY: prctl is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    Process::start(command)
}

/// Runs what may hang on a mount; a call that does not end fails the test.
#[track_caller]
pub fn bounded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, answer) = mpsc::channel();
    // Started by this thread, it is in its mount namespace.
    std::thread::spawn(move || drop(sender.send(work())));
    answer.recv_timeout(LIMIT).expect("a call on a mount hangs")
}

#[track_caller]
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let path = path.to_owned();
    bounded(move || std::fs::read(path))
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["plugin.log", "mounter.log"] {
                eprintln!("--- {name}\n{}", std::fs::read_to_string(self.home.path().join(name)).unwrap_or_default());
            }
        }
        self.plugin.kill();
        // Its sessions end with it, and with them every call that hangs.
        self.mounter.kill();
        let program = [self.home.path().join("alluxio-fuse")];
        for point in self.mounts().iter().rev().map(|mount| &mount.point).chain(&program) {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
