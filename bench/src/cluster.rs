//! A cluster that is measured: etcd, workers over the benchmark's S3 server, and the client library in this process.
//!
//! Every process is ended, and every cache removed, when its handle is dropped.

use crate::{cleanup, server::Server};
use anyhow::{Context as _, Result, bail, ensure};
use client::{Client, ClientOptions, Opened, cluster::Namespace};
use common::{
    Attr, UfsPath,
    budget::MemoryBudget,
    conf::{Conf, Environment, Source},
    page::PagePool,
    worker::Freshness,
};
use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use store::{ReadOptions, ReadThrough};
use ufs::UnderStorage;
use worker::{EmbeddedWorker, WorkerOptions};

/// The cluster's name: that of a configuration which says nothing of it.
const CLUSTER: &str = "DefaultAlluxioCluster";
/// How long a process may take to be there.
const START: Duration = Duration::from_secs(60);

/// A cluster with one worker, and each bucket of the server mounted under its name.
pub struct Cluster {
    etcd: Child,
    worker: Child,
    endpoint: String,
    home: PathBuf,
}

impl Cluster {
    /// Starts it below `scratch`. With `short_circuit` the worker has a domain socket.
    pub fn start(scratch: &Path, server: &Server, buckets: &[&str], short_circuit: bool) -> Result<Self> {
        ensure!(crate::machine::has("etcd"), "etcd is not installed: apt-get install etcd-server");
        let home = scratch.join("cluster");
        fs::create_dir_all(home.join("etcd"))?;
        let (port, peer) = (free_port()?, free_port()?);
        let (endpoint, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(home.join("etcd"))
            .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync", "--log-level", "error"]);
        let etcd = spawn(command, &home.join("etcd.log"))?;
        // From here on the handle ends what was started.
        let none = Command::new("true").spawn()?;
        let mut cluster = Self { etcd, worker: none, endpoint, home };
        wait("etcd", || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        for bucket in buckets {
            cluster.mount(server, bucket)?;
        }
        let mut command = cluster.alluxio()?;
        let mut options = vec![
            format!("alluxio.worker.identity.uuid.file.path={}", cluster.home.join("identity").display()),
            format!("alluxio.worker.page.store.dirs={}", cluster.home.join("pages").display()),
            "alluxio.worker.page.store.sizes=5GB".to_owned(),
            "alluxio.worker.hostname=127.0.0.1".to_owned(),
        ];
        options.extend(["rpc", "data", "web"].map(|port| format!("alluxio.worker.{port}.port=0")));
        if short_circuit {
            let socket = cluster.home.join("domain");
            options.push(format!("alluxio.worker.data.server.domain.socket.address={}", socket.display()));
        }
        for option in options {
            command.args(["-D", &option]);
        }
        command.args(["--log-level", "warn", "process", "start", "worker"]);
        let log = cluster.home.join("worker.log");
        cluster.worker = spawn(command, &log)?;
        wait("the worker", || fs::read_to_string(&log).is_ok_and(|text| text.contains(" serves at ")))?;
        Ok(cluster)
    }

    fn alluxio(&self) -> Result<Command> {
        let program = std::env::current_exe()?.with_file_name("alluxio");
        ensure!(program.is_file(), "{} is missing: build it with `cargo build --release -p cli`", program.display());
        let mut command = Command::new(program);
        command.env_clear().env("ALLUXIO_CONF_DIR", &self.home);
        command.args(["-D", &format!("alluxio.etcd.endpoints={}", self.endpoint)]);
        Ok(command)
    }

    fn mount(&self, server: &Server, bucket: &str) -> Result<()> {
        let mut command = self.alluxio()?;
        command.args(["mount", "add", "--path", &format!("/{bucket}"), "--ufs-uri", &format!("s3://{bucket}")]);
        command.args(["--option", &format!("alluxio.underfs.s3.endpoint={}", server.endpoint())]);
        for option in ["alluxio.underfs.s3.anonymous=true", "alluxio.underfs.s3.disable.dns.buckets=true"] {
            command.args(["--option", option]);
        }
        let output = command.output().context("alluxio mount add")?;
        ensure!(output.status.success(), "mount add: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The worker's process.
    pub fn worker(&self) -> u32 {
        self.worker.id()
    }

    /// Options of a mount of the namespace.
    pub fn mount_options(&self, short_circuit: bool) -> Vec<String> {
        vec![
            format!("alluxio.etcd.endpoints={}", self.endpoint),
            format!("alluxio.user.short.circuit.enabled={short_circuit}"),
        ]
    }

    /// The client library, without a page cache and without short circuit.
    pub fn library(&self) -> Result<Library> {
        Library::connect(&self.endpoint)
    }

    /// Clients that each have connections of their own to the worker.
    pub fn clients(&self, count: usize) -> Result<Clients> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let conf = conf(&self.endpoint)?;
        let connect = async {
            let mut all = Vec::with_capacity(count);
            for _ in 0..count {
                all.push(Namespace::connect(&conf, CLUSTER, &UfsPath::root()).await?);
            }
            Ok::<_, common::Error>(all)
        };
        let all = runtime.block_on(connect)?;
        Ok(Clients { runtime, all })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in [&mut self.worker, &mut self.etcd] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    let file = File::create(log)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    cleanup::die_with_parent(&mut command);
    command.spawn().with_context(|| format!("start {:?}", command.get_program()))
}

fn wait(what: &str, mut there: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + START;
    while !there() {
        if Instant::now() > deadline {
            bail!("{what} is not there after {START:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn conf(endpoint: &str) -> Result<Conf> {
    let mut conf = Conf::builder().environment(Environment::of([], 0));
    for (key, value) in [("alluxio.etcd.endpoints", endpoint), ("alluxio.user.short.circuit.enabled", "false")] {
        conf = conf.set(key, value, Source::CommandLine("bench".into()));
    }
    Ok(conf.load()?)
}

/// The client library as a daemon uses it, with its cache off, on a runtime with as many threads as the daemon has here.
pub struct Library {
    runtime: tokio::runtime::Runtime,
    namespace: Arc<Namespace>,
    client: Arc<Client>,
}

impl Library {
    fn connect(endpoint: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let conf = conf(endpoint)?;
        let root = UfsPath::root();
        let namespace = runtime.block_on(Namespace::connect(&conf, CLUSTER, &root))?;
        let (handle, budget) = (runtime.handle().clone(), MemoryBudget::new(512 << 20));
        let pool = PagePool::new(budget.clone());
        let pages = ReadThrough::new(namespace.clone(), None, pool, ReadOptions::default(), handle.clone());
        let options = WorkerOptions::default();
        let worker = EmbeddedWorker::over(namespace.clone(), &pages, budget.clone(), options, handle.clone());
        let client = Client::new(worker, budget, ClientOptions::default(), handle);
        Ok(Self { runtime, namespace, client })
    }

    /// Reads files from start to end in blocks of 1 MiB, all at the same time, each by a task of its own; MB.
    pub fn sequential(&self, paths: &[String]) -> Result<f64> {
        self.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for path in paths {
                tasks.spawn(sequential(self.client.clone(), UfsPath::parse(path)?));
            }
            let mut total = 0;
            while let Some(done) = tasks.join_next().await {
                total += done??;
            }
            Ok(total as f64 / 1e6)
        })
    }

    /// Microseconds of a read of 4 KiB at a random place, one after the other.
    pub fn random(&self, path: &str, count: u32, seed: u64) -> Result<f64> {
        use rand::{Rng, SeedableRng};
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let path = UfsPath::parse(path)?;
        let namespace = self.namespace.clone();
        // By a task, as in a daemon: the thread that waits for a runtime from outside is woken by another one each time.
        let task = self.runtime.spawn(async move {
            let attr: Attr = namespace.stat(&path).await?;
            let mut bytes = Vec::with_capacity(4096);
            let start = Instant::now();
            for _ in 0..count {
                let at = random.random_range(0..attr.size / 4096) * 4096;
                bytes.clear();
                namespace.read(&path, &attr.version, at, 4096, &mut bytes).await?;
                ensure!(bytes.len() == 4096, "{} bytes at {at}", bytes.len());
                ensure!(at % (1 << 20) != 0 || bytes[..8] == at.to_le_bytes(), "wrong bytes at {at}");
            }
            Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(count))
        });
        self.runtime.block_on(task)?
    }
}

async fn sequential(client: Arc<Client>, path: UfsPath) -> Result<u64> {
    let reader = match client.open(&path, Freshness::Cached).await? {
        Opened::Paged(reader) => reader,
        other => bail!("{path}: {other:?} is not read through the cluster"),
    };
    let size = reader.attr().size;
    let mut at = 0;
    while at < size {
        let data = reader.read_at(at, 1 << 20).await?;
        ensure!(data.len() >= 8 && data[..8] == at.to_le_bytes(), "{path}: wrong bytes at {at}");
        at += data.len() as u64;
    }
    Ok(at)
}

/// Clients without a cache that read at the same time.
pub struct Clients {
    runtime: tokio::runtime::Runtime,
    all: Vec<Arc<Namespace>>,
}

impl Clients {
    /// Each reads one of the files from start to end, the first client the first file, and so on in turn.
    pub fn stream(&self, files: &[String]) -> Result<()> {
        self.runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for (client, file) in self.all.iter().zip(files.iter().cycle()) {
                let (client, path) = (client.clone(), UfsPath::parse(file)?);
                tasks.spawn(async move {
                    let attr = client.stat(&path).await?;
                    let mut sink = Counted(0);
                    // A part of it, where a whole file by each would take minutes.
                    let length = attr.size.min(128 << 20);
                    client.read(&path, &attr.version, 0, length, &mut sink).await?;
                    ensure!(sink.0 == length, "{path}: {} bytes of {length}", sink.0);
                    Ok::<(), anyhow::Error>(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(())
        })
    }
}

/// Counts bytes, and throws them away.
struct Counted(u64);

impl ufs::ReadSink for Counted {
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.0 += bytes.len() as u64;
        true
    }
}
