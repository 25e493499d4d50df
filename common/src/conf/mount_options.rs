//! The `-o` options of a mount: which there are, what each stands for, and which do not go together.
//!
//! Everything an option can do is in one table, [`SPECS`]; parsing, the refusals and the documentation follow from it.
//! What fstab adds for its own use (`_netdev`, `x-systemd.…`) is ignored; what would be dangerous to ignore is refused.

use super::{ConfError, Decl, HIDDEN, Source, keys, nearest};
use crate::redact;

/// A flag of mount(2) that is passed on to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are those of mount(8)")]
pub enum KernelFlag {
    Dev,
    NoDev,
    Suid,
    NoSuid,
    Exec,
    NoExec,
    Atime,
    NoAtime,
    Sync,
    Async,
    DirSync,
}

/// Mount options, read and checked one by one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Users other than the mounting one may use the mount.
    pub allow_other: bool,
    /// Root may use the mount of a plain user.
    pub allow_root: bool,
    /// The mount is read-only.
    pub read_only: bool,
    /// The kernel checks permissions.
    pub default_permissions: bool,
    /// Flags for the kernel, without repetition.
    pub kernel_flags: Vec<KernelFlag>,
    /// Settings of the configuration; pass them to [`super::Builder::mount_options`].
    pub settings: Vec<(String, String, Source)>,
    /// What was accepted and ignored, a line each.
    pub notes: Vec<String>,
}

/// What an option does.
enum Effect {
    AllowOther,
    AllowRoot,
    ReadOnly,
    ReadWrite,
    DefaultPermissions,
    Kernel(KernelFlag),
    /// Sets a key to a fixed value.
    Fixed(&'static Decl, &'static str),
    /// Sets a key to the option's value.
    Value(&'static Decl),
    /// The same, where a plain number means seconds, as in every FUSE file system.
    Seconds(&'static Decl),
    /// Accepted for compatibility; `true`: it has a value, which must be a number.
    Ignored(&'static str, bool),
    /// Something for mount(8), not for us.
    Fstab,
    /// Refused, with the reason and the fix.
    Refused(&'static str),
}

struct Spec {
    name: &'static str,
    /// Options of one group contradict each other; empty for none.
    group: &'static str,
    effect: Effect,
}

const fn spec(name: &'static str, group: &'static str, effect: Effect) -> Spec {
    Spec { name, group, effect }
}

static SPECS: &[Spec] = &[
    spec("local_data_cache", "", Effect::Value(&keys::user::CLIENT_CACHE_DIRS.decl)),
    spec("local_data_cache_size", "", Effect::Value(&keys::user::CLIENT_CACHE_SIZE.decl)),
    spec("local_metadata_cache_size", "", Effect::Value(&keys::user::METADATA_CACHE_MAX_SIZE.decl)),
    spec("local_metadata_cache_expire", "", Effect::Value(&keys::user::METADATA_CACHE_EXPIRATION_TIME.decl)),
    spec("auto_cache", "kernel cache", Effect::Fixed(&keys::fuse::KERNEL_CACHE.decl, "AUTO")),
    spec("kernel_cache", "kernel cache", Effect::Fixed(&keys::fuse::KERNEL_CACHE.decl, "KEEP")),
    spec("direct_io", "kernel cache", Effect::Fixed(&keys::fuse::KERNEL_CACHE.decl, "DIRECT")),
    spec("passthrough", "", Effect::Value(&keys::fuse::PASSTHROUGH.decl)),
    spec("attr_timeout", "", Effect::Seconds(&keys::fuse::ATTR_TIMEOUT.decl)),
    spec("entry_timeout", "", Effect::Seconds(&keys::fuse::ENTRY_TIMEOUT.decl)),
    spec("negative_timeout", "", Effect::Seconds(&keys::user::METADATA_NEGATIVE_TTL.decl)),
    spec("max_background", "", Effect::Value(&keys::fuse::MAX_BACKGROUND.decl)),
    spec("max_read", "", Effect::Value(&keys::fuse::MAX_REQUEST_SIZE.decl)),
    spec("max_threads", "", Effect::Value(&keys::fuse::THREADS.decl)),
    spec("debug", "", Effect::Fixed(&keys::fuse::LOG_LEVEL.decl, "DEBUG")),
    spec("writeback", "", Effect::Fixed(&keys::user::WRITEBACK.decl, "true")),
    spec("allow_other", "users", Effect::AllowOther),
    spec("allow_root", "users", Effect::AllowRoot),
    spec("default_permissions", "", Effect::DefaultPermissions),
    spec("ro", "write", Effect::ReadOnly),
    spec("rw", "write", Effect::ReadWrite),
    spec("dev", "dev", Effect::Kernel(KernelFlag::Dev)),
    spec("nodev", "dev", Effect::Kernel(KernelFlag::NoDev)),
    spec("suid", "suid", Effect::Kernel(KernelFlag::Suid)),
    spec("nosuid", "suid", Effect::Kernel(KernelFlag::NoSuid)),
    spec("exec", "exec", Effect::Kernel(KernelFlag::Exec)),
    spec("noexec", "exec", Effect::Kernel(KernelFlag::NoExec)),
    spec("atime", "atime", Effect::Kernel(KernelFlag::Atime)),
    spec("noatime", "atime", Effect::Kernel(KernelFlag::NoAtime)),
    spec("sync", "sync", Effect::Kernel(KernelFlag::Sync)),
    spec("async", "sync", Effect::Kernel(KernelFlag::Async)),
    spec("dirsync", "", Effect::Kernel(KernelFlag::DirSync)),
    spec("relatime", "atime", Effect::Ignored("is how the kernel treats access times anyway", false)),
    spec("max_idle_threads", "", Effect::Ignored("has no meaning here: the number of threads is fixed", true)),
    spec("big_writes", "", Effect::Ignored("is always on", false)),
    spec("async_read", "", Effect::Ignored("is always on", false)),
    spec("_netdev", "", Effect::Fstab),
    spec("auto", "", Effect::Fstab),
    spec("noauto", "", Effect::Fstab),
    spec("nofail", "", Effect::Fstab),
    spec("user", "", Effect::Fstab),
    spec("users", "", Effect::Fstab),
    spec("nouser", "", Effect::Fstab),
    spec("owner", "", Effect::Fstab),
    spec("group", "", Effect::Fstab),
    spec("defaults", "", Effect::Fstab),
    spec("fsname", "", Effect::Refused("the name is always alluxio-fuse; remove the option")),
    spec("subtype", "", Effect::Refused("the type is always fuse.alluxio-fuse; remove the option")),
    spec("nonempty", "", Effect::Refused("a mount point must be empty; choose another directory or empty it")),
    spec("auto_unmount", "", Effect::Refused("a dead mount is cleaned up by the next one; remove the option")),
];

impl MountOptions {
    /// Reads the arguments of all `-o` of a command line, each a list separated by commas. A comma inside a value is
    /// written `\,`, a backslash before one `\\`. Of a repeated option the last value counts.
    ///
    /// # Errors
    /// The first option that is unknown, contradicts another, lacks its value or has one that does not fit.
    pub fn parse<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<Self, ConfError> {
        let mut options = MountOptions::default();
        let mut seen: Vec<&'static Spec> = Vec::new();
        for item in arguments.into_iter().flat_map(split) {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value)),
                None => (item.trim(), None),
            };
            if name.is_empty() {
                if value.is_some() {
                    return Err(refuse(&item, "has no name before the ="));
                }
                continue;
            }
            match SPECS.iter().find(|spec| spec.name == name) {
                Some(spec) => {
                    let rival = seen
                        .iter()
                        .find(|other| !spec.group.is_empty() && other.group == spec.group && other.name != name);
                    if let Some(rival) = rival {
                        return Err(refuse(name, &format!("contradicts {}; keep one of them", rival.name)));
                    }
                    seen.push(spec);
                    options.apply(spec, value)?;
                }
                None if name.starts_with("x-") || name == "comment" => {}
                None => options.apply_key(name, value)?,
            }
        }
        Ok(options)
    }

    fn apply(&mut self, spec: &'static Spec, value: Option<&str>) -> Result<(), ConfError> {
        let name = spec.name;
        match (&spec.effect, value) {
            (Effect::Fstab, _) => {}
            (Effect::Refused(reason), _) => return Err(refuse(name, reason)),
            (Effect::Value(decl), Some(value)) => self.setting(name, decl, value)?,
            (Effect::Seconds(decl), Some(value)) => {
                let plain = value.parse::<f64>().is_ok();
                self.setting(name, decl, &if plain { format!("{value}s") } else { value.to_owned() })?;
            }
            (Effect::Ignored(reason, true), Some(value)) => {
                if value.parse::<u64>().is_err() {
                    return Err(refuse(
                        &format!("{name}={value}"),
                        "is no whole number of 0 or more; write for example 10",
                    ));
                }
                self.notes.push(format!("mount option {name} {reason}"));
            }
            (Effect::Value(_) | Effect::Seconds(_) | Effect::Ignored(_, true), None) => {
                return Err(refuse(name, &format!("needs a value; write {name}=VALUE")));
            }
            (_, Some(_)) => return Err(refuse(name, "takes no value; write just the name")),
            (Effect::Ignored(reason, false), None) => self.notes.push(format!("mount option {name} {reason}")),
            (Effect::Fixed(decl, value), None) => self.setting(name, decl, value)?,
            (Effect::AllowOther, None) => self.allow_other = true,
            (Effect::AllowRoot, None) => self.allow_root = true,
            (Effect::ReadOnly, None) => self.read_only = true,
            (Effect::ReadWrite, None) => self.read_only = false,
            (Effect::DefaultPermissions, None) => self.default_permissions = true,
            (Effect::Kernel(flag), None) => {
                if !self.kernel_flags.contains(flag) {
                    self.kernel_flags.push(*flag);
                }
            }
        }
        Ok(())
    }

    /// An option that is the name of a key.
    fn apply_key(&mut self, name: &str, value: Option<&str>) -> Result<(), ConfError> {
        let decl = keys::find(name);
        if decl.is_none() && !name.starts_with("alluxio.") {
            let known = SPECS.iter().map(|spec| spec.name).chain(keys::names());
            return Err(match nearest(name, known) {
                Some(near) => refuse(name, &format!("is unknown; did you mean {near}?")),
                None => refuse(name, "is unknown; docs/CONFIGURATION.md lists the mount options"),
            });
        }
        let Some(value) = value else {
            return Err(refuse(name, &format!("needs a value; write {name}=VALUE")));
        };
        match decl {
            Some(decl) => self.setting(name, decl, value),
            // The configuration warns of it, with the nearest known key.
            None => {
                self.settings.push((name.to_owned(), value.to_owned(), Source::CommandLine(format!("-o {name}"))));
                Ok(())
            }
        }
    }

    fn setting(&mut self, option: &str, decl: &'static Decl, value: &str) -> Result<(), ConfError> {
        // What refers to other keys can only be checked when all are known.
        if !value.contains("${") {
            let hidden = decl.secret || redact::is_secret_name(option);
            decl.check(value)
                .map_err(|reason| refuse(&format!("{option}={}", if hidden { HIDDEN } else { value }), &reason))?;
        }
        self.settings.push((decl.name.to_owned(), value.to_owned(), Source::CommandLine(format!("-o {option}"))));
        Ok(())
    }
}

fn refuse(option: &str, reason: &str) -> ConfError {
    ConfError::MountOption { option: option.to_owned(), reason: reason.to_owned() }
}

/// Splits at commas that no backslash precedes.
fn split(argument: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = argument.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ',' => items.push(String::new()),
            _ => {
                let c = if c == '\\' { chars.next_if(|next| matches!(next, ',' | '\\')).unwrap_or(c) } else { c };
                // Invariant: there is always a last item.
                if let Some(item) = items.last_mut() {
                    item.push(c);
                }
            }
        }
    }
    items
}

/// The options and their meanings, for the documentation.
pub(super) fn table() -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut fstab = Vec::new();
    for spec in SPECS {
        let name = spec.name;
        let (option, meaning) = match &spec.effect {
            Effect::Fstab => {
                fstab.push(name);
                continue;
            }
            Effect::Value(decl) => (format!("{name}=VALUE"), format!("sets `{}`", decl.name)),
            Effect::Seconds(decl) => (format!("{name}=SECONDS"), format!("sets `{}`; a unit may be given", decl.name)),
            Effect::Fixed(decl, value) => (name.into(), format!("sets `{}={value}`", decl.name)),
            Effect::AllowOther => (name.into(), "users other than the mounting one may use the mount".into()),
            Effect::AllowRoot => (name.into(), "root may use the mount of a plain user".into()),
            Effect::ReadOnly => (name.into(), "the mount is read-only".into()),
            Effect::ReadWrite => (name.into(), "the mount is writable as far as the storage allows".into()),
            Effect::DefaultPermissions => (name.into(), "the kernel checks permissions".into()),
            Effect::Kernel(_) => (name.into(), "as in mount(8)".into()),
            Effect::Ignored(reason, value) => {
                (format!("{name}{}", if *value { "=N" } else { "" }), format!("accepted and ignored: it {reason}"))
            }
            Effect::Refused(reason) => (name.into(), format!("refused: {reason}")),
        };
        let rivals: Vec<String> = SPECS
            .iter()
            .filter(|other| !spec.group.is_empty() && other.group == spec.group && other.name != name)
            .map(|other| format!("`{}`", other.name))
            .collect();
        let rivals =
            if rivals.is_empty() { String::new() } else { format!("; not together with {}", rivals.join(", ")) };
        rows.push((option, format!("{meaning}{rivals}")));
    }
    rows.push((fstab.join(", ") + ", comment=…, x-…", "ignored: they are for mount(8) and systemd".into()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::Conf;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn error(argument: &str) -> String {
        MountOptions::parse([argument]).unwrap_err().to_string()
    }

    #[test]
    fn options_become_flags_and_settings() {
        let options = MountOptions::parse([
            "allow_other,ro,noatime,noatime,local_data_cache=/a\\,b,local_data_cache_size=1GB",
            "attr_timeout=1.5,entry_timeout=2min,kernel_cache,passthrough=off,max_idle_threads=10",
            "alluxio.user.prefetch.window=8MiB,s3a.accessKeyId=k,aws.secretKey=s,,alluxio.unknown.thing=1",
        ])
        .unwrap();
        assert!(options.allow_other && options.read_only && !options.allow_root && !options.default_permissions);
        assert_eq!(options.kernel_flags, [KernelFlag::NoAtime]);
        assert_eq!(options.notes.len(), 1);
        let conf = Conf::builder().mount_options(&options).load().unwrap();
        // The comma was escaped for the option list; the key is a list of its own.
        assert_eq!(conf.get(&keys::user::CLIENT_CACHE_DIRS).len(), 2);
        assert_eq!(conf.get(&keys::user::CLIENT_CACHE_SIZE).bytes(), 1 << 30);
        assert_eq!(conf.get(&keys::fuse::ATTR_TIMEOUT).as_millis(), 1500);
        assert_eq!(conf.get(&keys::fuse::ENTRY_TIMEOUT).as_secs(), 120);
        assert_eq!(conf.get(&keys::fuse::KERNEL_CACHE), keys::fuse::KernelCache::Keep);
        assert_eq!(conf.get(&keys::fuse::PASSTHROUGH), keys::fuse::Passthrough::Off);
        assert_eq!(conf.get(&keys::user::PREFETCH_WINDOW).bytes(), 8 << 20);
        assert_eq!(conf.get(&keys::underfs::S3_SECRET_KEY).as_deref(), Some("s"));
        assert_eq!(conf.source_of(&keys::fuse::ATTR_TIMEOUT), Source::CommandLine("-o attr_timeout".into()));
        assert!(conf.warnings().iter().any(|line| line.contains("alluxio.unknown.thing")));
    }

    #[test]
    fn what_fstab_adds_is_ignored() {
        let options = MountOptions::parse([
            "_netdev,noauto,nofail,user,users,nouser,x-systemd.automount,x-systemd.mount-timeout=10,defaults,auto",
        ]);
        assert_eq!(options.unwrap(), MountOptions::default());
    }

    #[test]
    fn mistakes_are_one_precise_line() {
        for (argument, parts) in [
            ("kernel_cahce", vec!["kernel_cahce", "did you mean kernel_cache"]),
            ("s3a.secretkey=tellme", vec!["did you mean s3a.secretKey"]),
            ("banana", vec!["banana", "unknown"]),
            ("kernel_cache,direct_io", vec!["direct_io", "contradicts kernel_cache"]),
            ("allow_root,allow_other", vec!["allow_other", "contradicts allow_root"]),
            ("rw,ro", vec!["ro", "contradicts rw"]),
            ("exec,noexec", vec!["contradicts exec"]),
            ("max_background=0", vec!["max_background=0", "use 1 to 65535"]),
            ("attr_timeout=-1", vec!["attr_timeout=-1"]),
            ("attr_timeout", vec!["needs a value"]),
            ("ro=1", vec!["takes no value"]),
            ("max_idle_threads=many", vec!["max_idle_threads=many", "whole number"]),
            ("passthrough=on", vec!["passthrough=on", "AUTO, OFF"]),
            ("fsname=a", vec!["alluxio-fuse"]),
            ("alluxio.user.prefetch.window", vec!["needs a value"]),
            ("local_data_cache_size=5QB", vec!["local_data_cache_size=5QB", "'QB'"]),
            ("=x", vec!["no name"]),
        ] {
            let message = error(argument);
            assert!(!message.contains('\n') && !message.contains("tellme"), "{message}");
            parts.iter().for_each(|part| assert!(message.contains(part), "{argument}: {message}"));
        }
    }

    #[test]
    fn names_are_unique_and_fixed_values_valid() {
        let names: HashSet<_> = SPECS.iter().map(|spec| spec.name).collect();
        assert_eq!(names.len(), SPECS.len());
        for spec in SPECS {
            if let Effect::Fixed(decl, value) = &spec.effect {
                decl.check(value).unwrap();
            }
        }
    }

    proptest! {
        #[test]
        fn escaped_items_come_back(items in prop::collection::vec("[a-z,\\\\=]{0,8}", 1..5)) {
            let escaped: Vec<String> = items.iter().map(|item| item.replace('\\', "\\\\").replace(',', "\\,")).collect();
            prop_assert_eq!(split(&escaped.join(",")), items);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = MountOptions::parse([text.as_str()]);
        }
    }
}
