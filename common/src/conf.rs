//! The configuration: every key is declared once, values come from one chain of sources, and reading one cannot fail.
//!
//! Sources, each overriding the ones before: the defaults, `alluxio-site.properties`, `ALLUXIO_JAVA_OPTS`, the variable of
//! the process's role (such as `ALLUXIO_FUSE_JAVA_OPTS`), the command line. A value may refer to others: `${alluxio.home}`
//! to a key, `${env.NAME}` to an environment variable, and `$${` stands for a plain `${`. Blanks around a value are dropped.
//!
//! Invariants:
//! - a key is known here only if it is in [`keys::all`], and everything said about it comes from its declaration;
//! - a [`Conf`] exists only if all its values are valid, so [`Conf::get`] returns a typed value and no error;
//! - the value of a secret key is never in an error, a warning or a `Debug` text.
//!
//! ```
//! use common::conf::{keys, Conf, Source};
//! let conf = Conf::builder()
//!     .set("alluxio.user.client.cache.size", "4GiB", Source::CommandLine("-o".into()))
//!     .load()?;
//! assert_eq!(conf.get(&keys::user::CLIENT_CACHE_SIZE).bytes(), 4 << 30);
//! # Ok::<(), common::conf::ConfError>(())
//! ```

mod builder;
mod check;
pub mod docs;
mod error;
mod interpolate;
pub mod java_opts;
mod key;
pub mod keys;
mod machine;
pub mod mount_options;
mod nearest;
pub mod properties;
mod value;

pub use builder::{Builder, Role};
pub use docs::docs;
pub use error::ConfError;
pub use key::{Decl, DefaultValue, Key, Scope};
pub use machine::Environment;
pub use mount_options::{KernelFlag, MountOptions};
pub use nearest::nearest;
pub use value::{ConfValue, Expiry, Kind, LogFilter, Ratio, Size};

pub(crate) use key::keys;
pub(crate) use value::conf_choice;

use key::Parsed;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

/// What is shown in place of a secret value.
pub const HIDDEN: &str = "******";

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The declared default.
    Default,
    /// A line of a properties file.
    SiteProperties {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Environment(String),
    /// A command-line option, as the user knows it.
    CommandLine(String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Default => out.write_str("default"),
            Source::SiteProperties { path, line } => write!(out, "{} line {line}", path.display()),
            Source::Environment(variable) => write!(out, "environment variable {variable}"),
            Source::CommandLine(option) => write!(out, "command line {option}"),
        }
    }
}

/// The value of one key with where it came from.
#[derive(Clone)]
struct Entry {
    /// The interpolated text; `None` when the key has no value.
    text: Option<String>,
    parsed: Parsed,
    source: Source,
}

struct Inner {
    entries: HashMap<&'static str, Entry>,
    /// Keys that nobody declared, with their uninterpolated values.
    unknown: BTreeMap<String, (String, Source)>,
    warnings: Vec<String>,
    notes: Vec<String>,
    builder: Builder,
}

/// A complete, valid configuration. Cloning costs one reference count.
#[derive(Clone)]
pub struct Conf(Arc<Inner>);

impl Conf {
    /// Begins a configuration that has only defaults so far.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The defaults, with this process's environment for those that are computed.
    pub fn defaults() -> Conf {
        // Invariant: a test loads the defaults in several environments, and they depend on nothing else.
        Conf::builder().load().expect("the declared defaults are valid")
    }

    /// A builder that begins with everything this configuration was built from; what is set there overrides it.
    pub fn to_builder(&self) -> Builder {
        self.0.builder.clone()
    }

    /// The value of a key.
    pub fn get<T: ConfValue>(&self, key: &Key<T>) -> T {
        // Invariant: `load` made an entry of the key's own type for every declared key.
        let entry = self.0.entries.get(key.name()).expect("every declared key has an entry");
        entry.parsed.downcast_ref::<T>().cloned().expect("an entry has the type of its key")
    }

    /// Where the value of a key was set.
    pub fn source_of<T: ConfValue>(&self, key: &Key<T>) -> Source {
        self.0.entries.get(key.name()).map_or(Source::Default, |entry| entry.source.clone())
    }

    /// Whether somebody set the key, rather than leaving it to its default.
    pub fn is_set<T: ConfValue>(&self, key: &Key<T>) -> bool {
        self.source_of(key) != Source::Default
    }

    /// The value of any key as text, by name or alias, and its source. Secret values are hidden; a key without value gives
    /// `None` for the value. The outer `None` means that the key is neither declared nor set.
    pub fn show(&self, name: &str) -> Option<(Option<String>, Source)> {
        if let Some(decl) = keys::find(name) {
            let entry = self.0.entries.get(decl.name)?;
            return Some((entry.text.as_ref().map(|text| shown(decl, text)), entry.source.clone()));
        }
        let (value, source) = self.0.unknown.get(name)?;
        let value = if crate::redact::is_secret_name(name) { HIDDEN.to_owned() } else { value.clone() };
        Some((Some(value), source.clone()))
    }

    /// What the user should know, a line each: unknown keys with the nearest known one, keys without effect, duplicates.
    pub fn warnings(&self) -> &[String] {
        &self.0.warnings
    }

    /// What was accepted and ignored on purpose, a line each, such as flags for a Java machine.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// Writes the warnings and notes to the log.
    pub fn log_remarks(&self) {
        self.warnings().iter().for_each(|line| tracing::warn!("{line}"));
        self.notes().iter().for_each(|line| tracing::info!("{line}"));
    }
}

impl std::fmt::Debug for Conf {
    /// The keys that were set, secrets hidden.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = keys::all()
            .filter(|decl| self.0.entries.get(decl.name).is_some_and(|entry| entry.source != Source::Default));
        out.debug_map().entries(set.map(|decl| (decl.name, self.show(decl.name).and_then(|(value, _)| value)))).finish()
    }
}

/// A value as it may be shown: stars for a secret.
fn shown(decl: &Decl, text: &str) -> String {
    if decl.secret && !text.is_empty() { HIDDEN.to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests;
