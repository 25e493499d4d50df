//! The processes of a cluster, each ended when its handle is dropped.

#[allow(dead_code)]
#[path = "../../client/tests/cluster/etcd_server.rs"]
mod etcd_server;

use client::{
    etcd::{Etcd, EtcdOptions},
    membership::{Membership, WorkerEntry},
    ring::WorkerIdentity,
};
use etcd_server::EtcdServer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::{
    ffi::OsStr,
    fs::File,
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tests::{daemon, machine, mount::Mounting, s3::Store};

/// A cluster: etcd, an S3 server with one bucket, and workers.
pub struct Cluster {
    pub etcd: EtcdServer,
    pub workers: Vec<Worker>,
    home: TempDir,
    options: Vec<String>,
}

impl Cluster {
    /// An etcd and `count` workers; `None`, with a note, where that cannot be.
    pub fn start(count: usize) -> Option<Self> {
        Self::start_with(count, Vec::new())
    }

    /// The same with these options for workers and the command line.
    pub fn start_with(count: usize, options: Vec<String>) -> Option<Self> {
        if !machine::mounts_work() {
            return None;
        }
        let etcd = EtcdServer::start()?;
        let home = tempfile::tempdir().unwrap();
        let mut cluster = Self { etcd, workers: Vec::new(), home, options };
        for _ in 0..count {
            cluster.add_worker();
        }
        cluster.wait_for_live(count);
        Some(cluster)
    }

    /// Starts a further worker.
    pub fn add_worker(&mut self) -> usize {
        let number = self.workers.len();
        let worker = Worker::start(
            &self.home.path().join(format!("worker{number}")),
            &self.etcd.endpoint(),
            &self.options,
            None,
        );
        self.workers.push(worker);
        number
    }

    /// Starts a further worker in a network of its own, from which etcd is reached at `etcd`.
    pub fn add_worker_in(&mut self, network: &Network, etcd: &str) -> usize {
        let number = self.workers.len();
        let worker =
            Worker::start(&self.home.path().join(format!("worker{number}")), etcd, &self.options, Some(network));
        self.workers.push(worker);
        number
    }

    /// Waits until exactly so many workers are live.
    pub fn wait_for_live(&self, count: usize) {
        machine::wait_for(&format!("{count} live workers"), || (self.live().len() == count).then_some(()));
    }

    /// The identities of the live workers, as etcd has them.
    pub fn live(&self) -> Vec<WorkerIdentity> {
        runtime().block_on(self.entries()).into_iter().map(|entry| entry.identity).collect()
    }

    /// The live workers, as etcd has them.
    pub async fn entries(&self) -> Vec<WorkerEntry> {
        let options = EtcdOptions {
            endpoints: vec![self.etcd.endpoint()],
            user: None,
            tls: None,
            deadline: Duration::from_secs(20),
        };
        let Ok(etcd) = Etcd::connect(&options).await else { return Vec::new() };
        let Ok(view) = Membership::new(etcd, "c").unwrap().view().await else { return Vec::new() };
        view.workers.into_values().filter(|state| state.live).map(|state| state.entry).collect()
    }

    /// Runs `alluxio` with this cluster's configuration.
    pub fn alluxio<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Output {
        let mut command = alluxio(&self.home.path().join("cli"), &self.etcd.endpoint());
        command.args(self.options.iter().flat_map(|option| ["-D", option]));
        command.args(words).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Mounts a bucket of `store` at `path` of the namespace.
    pub fn mount_add(&self, path: &str, store: &Store) {
        self.mount_add_with(path, store, store.options());
    }

    /// The same with these options instead of those that lead straight to the store.
    pub fn mount_add_with(&self, path: &str, store: &Store, options: Vec<String>) {
        let mut words =
            vec!["mount".to_owned(), "add".into(), "--path".into(), path.into(), "--ufs-uri".into(), store.uri("")];
        for option in options {
            words.push("--option".into());
            words.push(option);
        }
        let output = self.alluxio(words);
        assert!(output.status.success(), "mount add: {output:?}");
        self.wait_until_served(store.uri("").trim_end_matches('/'));
    }

    /// Mounts a directory of this host at `path` of the namespace.
    pub fn mount_add_directory(&self, path: &str, directory: &Path) {
        let uri = format!("file://{}", directory.display());
        let output = self.alluxio(["mount", "add", "--path", path, "--ufs-uri", &uri]);
        assert!(output.status.success(), "mount add: {output:?}");
        self.wait_until_served(&uri);
    }

    fn wait_until_served(&self, uri: &str) {
        // A worker that has not heard of the mount yet lets its clients read the storage, which is right but not tested here.
        let served = format!("{uri} is served");
        for worker in &self.workers {
            machine::wait_for("the workers to serve the mount", || worker.log().contains(&served).then_some(()));
        }
    }

    /// How the namespace is mounted through FUSE.
    pub fn mounting(&self) -> Mounting {
        Mounting::of("alluxio://c/").option(format!("alluxio.etcd.endpoints={}", self.etcd.endpoint()))
    }
}

/// A worker process.
pub struct Worker {
    child: Child,
    home: PathBuf,
    etcd: String,
    options: Vec<String>,
    network: Option<(String, Ipv4Addr)>,
}

impl Worker {
    fn start(home: &Path, etcd: &str, options: &[String], network: Option<&Network>) -> Self {
        let network = network.map(|network| (network.name.clone(), network.inside()));
        let child = spawn(home, etcd, options, network.as_ref());
        Self { child, home: home.to_owned(), etcd: etcd.to_owned(), options: options.to_vec(), network }
    }

    /// Ends it in good order, if it runs, and starts it again with the same identity and cache.
    pub fn start_again(&mut self) {
        self.signal(Signal::SIGTERM);
        daemon::end(&mut self.child, Duration::from_secs(30));
        self.kill();
        self.child = spawn(&self.home, &self.etcd, &self.options, self.network.as_ref());
    }

    /// Where it lives.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    /// Its identity.
    pub fn identity(&self) -> WorkerIdentity {
        let text = std::fs::read_to_string(self.home.join("identity")).unwrap();
        WorkerIdentity::parse(text.trim()).unwrap_or_else(|| panic!("{text:?} is no identity"))
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        self.kill();
        if std::thread::panicking() {
            eprintln!("the log of the worker in {}:\n{}", self.home.display(), self.log());
        }
    }
}

fn spawn(home: &Path, etcd: &str, options: &[String], network: Option<&(String, Ipv4Addr)>) -> Child {
    std::fs::create_dir_all(home.join("domain")).unwrap();
    let mut command = alluxio(home, etcd);
    let mut address = Ipv4Addr::LOCALHOST;
    if let Some((name, inside)) = network {
        address = *inside;
        // `ip` becomes the program itself, so the child is the worker.
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", name]).arg(command.get_program()).args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?)))).current_dir(home);
        command = inside;
    }
    for option in [
        format!("alluxio.worker.identity.uuid.file.path={}", home.join("identity").display()),
        format!("alluxio.worker.page.store.dirs={}", home.join("pages").display()),
        "alluxio.worker.page.store.sizes=1GB".into(),
        format!("alluxio.worker.hostname={address}"),
        "alluxio.worker.rpc.port=0".into(),
        "alluxio.worker.data.port=0".into(),
        "alluxio.worker.web.port=0".into(),
        "alluxio.worker.failure.detection.timeout=3s".into(),
        format!("alluxio.worker.data.server.domain.socket.address={}", home.join("domain").display()),
        "alluxio.worker.data.server.domain.socket.as.uuid=true".into(),
    ] {
        command.arg("-D").arg(option);
    }
    command.args(options.iter().flat_map(|option| ["-D", option]));
    let log = File::options().create(true).append(true).open(home.join("log")).unwrap();
    command.args(["process", "start", "worker"]);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The command line, in surroundings of its own below `home`.
pub fn alluxio(home: &Path, etcd: &str) -> Command {
    std::fs::create_dir_all(home).unwrap();
    let program = daemon::program().with_file_name("alluxio");
    assert!(program.exists(), "{} is missing: cargo build -p cli", program.display());
    let mut command = daemon::command_of(&program, home);
    command.arg("-D").arg(format!("alluxio.etcd.endpoints={etcd}")).args(["-D", "alluxio.cluster.name=c"]);
    command
}

/// A network namespace that is joined to this one by a pair of interfaces; gone when dropped. Needs root and iproute2.
pub struct Network {
    name: String,
    subnet: u8,
}

impl Network {
    /// Makes one.
    pub fn new() -> Self {
        // Different for tests that run at the same time on one machine.
        let subnet = (std::process::id() % 250) as u8;
        let network = Self { name: format!("alx{}", std::process::id()), subnet };
        let (name, outer) = (network.name.clone(), network.interface());
        let (outside, inside) = (format!("{}/24", network.outside()), format!("{}/24", network.inside()));
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        ip(&["address", "add", &outside, "dev", &outer]);
        ip(&["link", "set", &outer, "up"]);
        for words in [
            &["address", "add", &inside, "dev", "eth0"][..],
            &["link", "set", "eth0", "up"],
            &["link", "set", "lo", "up"],
        ] {
            ip(&[&["-n", &name][..], words].concat());
        }
        network
    }

    /// The address of this side.
    pub fn outside(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, 1)
    }

    /// The address of the other side.
    pub fn inside(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, 2)
    }

    /// Cuts it off, or joins it again.
    pub fn cut(&self, off: bool) {
        ip(&["link", "set", &self.interface(), if off { "down" } else { "up" }]);
    }

    /// Lets the other side reach a port of this host's own loopback; returns the address for that.
    pub fn forward(&self, port: u16) -> String {
        let listener = TcpListener::bind((self.outside(), 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(other) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                for (mut from, mut to) in [(stream.try_clone().unwrap(), other.try_clone().unwrap()), (other, stream)] {
                    thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
            }
        });
        address
    }

    fn interface(&self) -> String {
        format!("{}o", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The interface goes with the namespace, once the worker in it has ended.
        let _ = Command::new("ip").args(["link", "delete", &self.interface()]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
}

/// A small runtime for questions to etcd.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
