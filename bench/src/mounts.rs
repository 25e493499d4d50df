//! The candidates' mounts. Each is unmounted and its process ended when dropped, whatever happened.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

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
    cache: Option<PathBuf>,
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

    fn start(mut command: Command, point: PathBuf, cache: Option<PathBuf>, log: &Path) -> Result<Self> {
        let log = fs::File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).env_remove("AWS_CA_BUNDLE");
        let child = command.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        let mut mount = Self { child, point, cache };
        let deadline = Instant::now() + Duration::from_secs(30);
        while !mounted(&mount.point) {
            if let Some(status) = mount.child.try_wait()? {
                bail!("{:?} ended with {status} before its mount answered", command.get_program());
            }
            if Instant::now() > deadline {
                bail!("{:?}: no mount at {} after 30 s", command.get_program(), mount.point.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        fs::metadata(&mount.point).context("the mount does not answer")?;
        Ok(mount)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(cache) = &self.cache {
            let _ = fs::remove_dir_all(cache);
        }
    }
}

fn mounted(point: &Path) -> bool {
    let Ok(table) = fs::read_to_string("/proc/self/mounts") else { return false };
    table.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == point))
}

impl Places {
    fn point(&self, name: &str) -> Result<PathBuf> {
        let point = self.scratch.join(format!("mnt-{name}"));
        fs::create_dir_all(&point)?;
        Ok(point)
    }

    fn cache(&self, name: &str) -> Result<PathBuf> {
        let cache = self.scratch.join(format!("cache-{name}"));
        let _ = fs::remove_dir_all(&cache);
        fs::create_dir_all(&cache)?;
        Ok(cache)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("{name}.log"))
    }

    /// The command that mounts ours in the foreground.
    pub fn ours_command(&self, name: &str, uri: &str, cache: &Path, options: &[String]) -> Result<(Command, PathBuf)> {
        let point = self.point(name)?;
        let mut command = Command::new(&self.ours);
        command.env("ALLUXIO_FUSE_RUNTIME_DIR", self.scratch.join(format!("run-{name}")));
        command.args(["mount", "-f", "-o"]);
        let mut all = vec![
            format!("local_data_cache={}", cache.display()),
            "local_data_cache_size=8GB".to_owned(),
            "alluxio.fuse.web.port=0".to_owned(),
        ];
        all.extend_from_slice(options);
        command.arg(all.join(",")).arg(uri).arg(&point);
        Ok((command, point))
    }

    /// Our mount of `uri`, with an empty cache.
    pub fn ours(&self, name: &str, uri: &str, options: &[String]) -> Result<Mount> {
        let cache = self.cache(name)?;
        let (command, point) = self.ours_command(name, uri, &cache, options)?;
        Mount::start(command, point, Some(cache), &self.log(name))
    }

    /// Our mount of a bucket of the benchmark's server.
    pub fn ours_s3(&self, name: &str, endpoint: &str, bucket: &str) -> Result<Mount> {
        let options = vec![
            format!("alluxio.underfs.s3.endpoint={endpoint}"),
            "alluxio.underfs.s3.anonymous=true".to_owned(),
            "alluxio.underfs.s3.disable.dns.buckets=true".to_owned(),
        ];
        self.ours(name, &format!("s3://{bucket}"), &options)
    }

    /// rclone's mount of a bucket, with its full cache mode.
    pub fn rclone(&self, name: &str, endpoint: &str, bucket: &str) -> Result<Mount> {
        let (point, cache) = (self.point(name)?, self.cache(name)?);
        let mut command = Command::new("rclone");
        command
            .args(["mount", &format!(":s3:{bucket}")])
            .arg(&point)
            .args(["--s3-provider", "Other", "--s3-endpoint", endpoint, "--s3-force-path-style"])
            .args(["--vfs-cache-mode", "full", "--read-only", "--config", "/dev/null", "--cache-dir"])
            .arg(&cache);
        Mount::start(command, point, Some(cache), &self.log(name))
    }

    /// s3fs's mount of a bucket, with its disk cache.
    pub fn s3fs(&self, name: &str, endpoint: &str, bucket: &str) -> Result<Mount> {
        let (point, cache) = (self.point(name)?, self.cache(name)?);
        let mut command = Command::new("s3fs");
        command.arg(bucket).arg(&point).args(["-f", "-o"]).arg(format!(
            "url={endpoint},use_path_request_style,public_bucket=1,ro,use_cache={},parallel_count=16",
            cache.display()
        ));
        Mount::start(command, point, Some(cache), &self.log(name))
    }
}
