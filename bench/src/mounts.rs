//! The candidates' mounts. Each is unmounted and its process ended when dropped, whatever happened.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Variables that would make a candidate sign, take a proxy, or read somebody's settings.
const FOREIGN: &[&str] = &["AWS_", "ALLUXIO_", "RCLONE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "RUST_LOG"];

/// Where things are: scratch space, our binary, logs.
#[derive(Clone)]
pub struct Places {
    /// Everything that a run writes.
    pub scratch: PathBuf,
    /// `alluxio-fuse`, a release build.
    pub ours: PathBuf,
}

/// A mount that is being measured.
pub struct Mount {
    child: Child,
    point: PathBuf,
    cache: PathBuf,
}

impl Mount {
    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The process that serves it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn start(mut command: Command, point: PathBuf, cache: PathBuf, log: &Path) -> Result<Self> {
        crate::cleanup::pause_if_stopped();
        let program = command.get_program().to_string_lossy().into_owned();
        let file = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_uppercase();
            if FOREIGN.iter().any(|foreign| upper.starts_with(foreign)) {
                command.env_remove(name);
            }
        }
        crate::cleanup::die_with_parent(&mut command);
        let child = command.spawn().with_context(|| format!("start {program}"))?;
        let mut mount = Self { child, point, cache };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !mounted(&mount.point) {
            if let Some(status) = mount.child.try_wait()? {
                bail!("{program} ended with {status} before its mount answered: {}", last_line(log));
            }
            if Instant::now() > deadline {
                bail!("{program}: no mount at {} after 30 s: {}", mount.point.display(), last_line(log));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        fs::metadata(&mount.point).with_context(|| format!("{program}: the mount does not answer"))?;
        Ok(mount)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH);
        let deadline = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("bench: the daemon of {} outlives its mount and is killed", self.point.display());
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_dir_all(&self.cache);
    }
}

fn mounted(point: &Path) -> bool {
    let Ok(table) = fs::read_to_string("/proc/self/mounts") else { return false };
    table.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == point))
}

fn last_line(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed nothing").to_owned()
}

impl Places {
    fn point(&self, name: &str) -> Result<PathBuf> {
        let point = self.scratch.join(format!("mnt-{name}"));
        fs::create_dir_all(&point)?;
        Ok(point)
    }

    fn cache(&self, name: &str) -> Result<PathBuf> {
        let cache = self.scratch.join(format!("cache-{name}"));
        if cache.exists() {
            fs::remove_dir_all(&cache)?;
        }
        fs::create_dir(&cache)?;
        Ok(cache)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("{name}.log"))
    }

    /// Our mount of `uri`, with an empty cache.
    pub fn ours(&self, name: &str, uri: &str, options: &[&str]) -> Result<Mount> {
        let (point, cache) = (self.point(name)?, self.cache(name)?);
        let mut all = format!(
            "local_data_cache={},local_data_cache_size=4GB,alluxio.fuse.web.port=0,alluxio.fuse.state.dir={}",
            cache.display(),
            self.scratch.join(format!("run-{name}")).display()
        );
        for option in options {
            all.push(',');
            all.push_str(option);
        }
        let mut command = Command::new(&self.ours);
        command.args(["mount", "-f", "-o", &all, uri]).arg(&point);
        Mount::start(command, point, cache, &self.log(name))
    }

    /// Our mount of a bucket of the benchmark's server.
    pub fn ours_s3(&self, name: &str, endpoint: &str, bucket: &str) -> Result<Mount> {
        let endpoint = format!("alluxio.underfs.s3.endpoint={endpoint}");
        let options =
            [endpoint.as_str(), "alluxio.underfs.s3.anonymous=true", "alluxio.underfs.s3.disable.dns.buckets=true"];
        self.ours(name, &format!("s3://{bucket}"), &options)
    }

    /// rclone's mount of a bucket, with its full cache mode. The times that the server gives spare it a HEAD for each
    /// file, which it would otherwise send.
    pub fn rclone(&self, name: &str, endpoint: &str, bucket: &str) -> Result<Mount> {
        let (point, cache) = (self.point(name)?, self.cache(name)?);
        let mut command = Command::new("rclone");
        command
            .args(["mount", &format!(":s3:{bucket}")])
            .arg(&point)
            .args(["--s3-provider", "Other", "--s3-endpoint", endpoint, "--s3-force-path-style"])
            .args(["--vfs-cache-mode", "full", "--read-only", "--config", "/dev/null"])
            .arg("--cache-dir")
            .arg(&cache);
        Mount::start(command, point, cache, &self.log(name))
    }

    /// s3fs's mount of a bucket, with its disk cache.
    pub fn s3fs(&self, name: &str, endpoint: &str, bucket: &str) -> Result<Mount> {
        let (point, cache) = (self.point(name)?, self.cache(name)?);
        let mut command = Command::new("s3fs");
        command.arg(bucket).arg(&point).args(["-f", "-o"]).arg(format!(
            "url={endpoint},use_path_request_style,public_bucket=1,ro,use_cache={},parallel_count=16",
            cache.display()
        ));
        Mount::start(command, point, cache, &self.log(name))
    }
}
