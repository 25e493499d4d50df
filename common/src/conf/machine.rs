//! What the defaults need to know of the machine: its environment variables, its memory, and where caches belong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The variables and identity that defaults and interpolation see; taken from the process, or made up by a test.
#[derive(Clone, Debug)]
pub struct Environment {
    variables: HashMap<String, String>,
    uid: u32,
    root: PathBuf,
}

impl Environment {
    /// The environment of this process. Variables that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Environment { variables, uid: nix::unistd::geteuid().as_raw(), root: PathBuf::from("/") }
    }

    /// An environment with just these variables, for the user `uid`.
    pub fn of<const N: usize>(variables: [(&str, &str); N], uid: u32) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Environment { variables, uid, root: PathBuf::from("/") }
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The directory for what must not be lost: `/var/lib/alluxio-fuse/stage` for root, else beside that for caches.
    pub(crate) fn stage_dir(&self) -> String {
        if self.uid == 0 {
            return "/var/lib/alluxio-fuse/stage".into();
        }
        format!("{}-stage", self.cache_dir())
    }

    /// The directory for caches that may be lost: `/var/cache/alluxio-fuse` for root, else below the XDG cache directory.
    pub(crate) fn cache_dir(&self) -> String {
        if self.uid == 0 {
            return "/var/cache/alluxio-fuse".into();
        }
        match (self.absolute("XDG_CACHE_HOME"), self.absolute("HOME")) {
            (Some(cache), _) => format!("{cache}/alluxio-fuse"),
            (None, Some(home)) => format!("{home}/.cache/alluxio-fuse"),
            (None, None) => format!("/tmp/alluxio-fuse-{}/cache", self.uid),
        }
    }

    /// The directory for state that lives as long as the mounts: `/run/alluxio-fuse` for root, else below XDG_RUNTIME_DIR.
    pub(crate) fn state_dir(&self) -> String {
        match (self.uid, self.absolute("XDG_RUNTIME_DIR")) {
            (0, _) => "/run/alluxio-fuse".into(),
            (_, Some(runtime)) => format!("{runtime}/alluxio-fuse"),
            (uid, None) => format!("/tmp/alluxio-fuse-{uid}/state"),
        }
    }

    /// `$ALLUXIO_CONF_DIR`, else `conf` below the home; empty when neither is set.
    pub(crate) fn conf_dir(&self) -> String {
        match (self.var("ALLUXIO_CONF_DIR"), self.var("ALLUXIO_HOME")) {
            (Some(dir), _) => dir.to_owned(),
            (None, Some(home)) => format!("{}/conf", home.trim_end_matches('/')),
            (None, None) => "/etc/alluxio".into(),
        }
    }

    pub(crate) fn home_dir(&self) -> String {
        self.var("ALLUXIO_HOME").unwrap_or("/opt/alluxio").to_owned()
    }

    /// A quarter of the memory that this process may use, at most 2 GiB and at least 64 MiB.
    pub(crate) fn memory_limit(&self) -> String {
        let memory = available_memory(&self.root).unwrap_or(4 << 30);
        super::Size((memory / 4).clamp(64 << 20, 2 << 30)).to_string()
    }

    fn absolute(&self, name: &str) -> Option<&str> {
        self.var(name).filter(|path| path.starts_with('/')).map(|path| path.trim_end_matches('/'))
    }
}

/// Memory in bytes: the least of the machine's and of the limits of our cgroup and those above it, v1 or v2.
/// `root` is where /proc and /sys are found.
fn available_memory(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path.trim_start_matches('/'))).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let mut limits: Vec<u64> = machine.into_iter().collect();
    // In a container with its own cgroup namespace the path is "/", and the limit is in the files at the top.
    for line in read("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (base, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|name| name == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let mut group = path.trim_end_matches('/');
        loop {
            if let Some(limit) = read(&format!("{base}{group}/{file}")).and_then(|text| text.trim().parse().ok()) {
                limits.push(limit);
            }
            match group.rfind('/') {
                Some(parent) => group = &group[..parent],
                None => break,
            }
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn memory_is_the_least_of_machine_and_cgroups() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(available_memory(root), None);
        write(root, "proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n");
        assert_eq!(available_memory(root), Some(16 << 20));
        write(root, "proc/self/cgroup", "0::/a/b\n");
        write(root, "sys/fs/cgroup/a/b/memory.max", "max\n");
        write(root, "sys/fs/cgroup/a/memory.max", "8388608\n");
        assert_eq!(available_memory(root), Some(8 << 20));
        write(root, "proc/self/cgroup", "4:cpu,memory:/x\n0::/\n");
        write(root, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "4194304\n");
        assert_eq!(available_memory(root), Some(4 << 20));
    }

    #[test]
    fn the_memory_limit_is_a_quarter_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let mut environment = Environment::of([], 0);
        environment.root = dir.path().to_owned();
        for (kib, expected) in [(1u64 << 20, "256MiB"), (64 << 20, "2GiB"), (1024, "64MiB")] {
            write(dir.path(), "proc/meminfo", &format!("MemTotal: {kib} kB\n"));
            assert_eq!(environment.memory_limit(), expected);
        }
    }

    #[test]
    fn directories_follow_the_user() {
        assert_eq!(Environment::of([("HOME", "/root")], 0).cache_dir(), "/var/cache/alluxio-fuse");
        assert_eq!(Environment::of([("HOME", "/home/a/")], 7).cache_dir(), "/home/a/.cache/alluxio-fuse");
        assert_eq!(Environment::of([("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")], 7).cache_dir(), "/c/alluxio-fuse");
        assert_eq!(Environment::of([("XDG_CACHE_HOME", "relative")], 7).cache_dir(), "/tmp/alluxio-fuse-7/cache");
        assert_eq!(Environment::of([], 7).state_dir(), "/tmp/alluxio-fuse-7/state");
        assert_eq!(Environment::of([("XDG_RUNTIME_DIR", "/run/user/7")], 7).state_dir(), "/run/user/7/alluxio-fuse");
        assert_eq!(Environment::of([("ALLUXIO_HOME", "/opt/a/")], 0).conf_dir(), "/opt/a/conf");
    }
}
