//! Gathers settings from all sources, merges them by rank, interpolates, and checks every value once.

use super::interpolate::{Names, interpolate};
use super::key::{Decl, DefaultValue};
use super::{
    Conf, ConfError, Entry, Environment, Inner, MountOptions, Source, check, java_opts, keys, nearest, properties,
    shown,
};
use crate::redact;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// The name of the site's properties file.
pub const SITE_PROPERTIES: &str = "alluxio-site.properties";

/// Which process is being configured: decides which `ALLUXIO_…_JAVA_OPTS` variable is read beside the common one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The coordinator, which older deployments call the master.
    Coordinator,
    /// A worker.
    Worker,
    /// The FUSE daemon.
    Fuse,
    /// The command line and everything else.
    Client,
}

impl Role {
    fn variables(self) -> &'static [&'static str] {
        match self {
            Role::Coordinator => &["ALLUXIO_MASTER_JAVA_OPTS", "ALLUXIO_COORDINATOR_JAVA_OPTS"],
            Role::Worker => &["ALLUXIO_WORKER_JAVA_OPTS"],
            Role::Fuse => &["ALLUXIO_FUSE_JAVA_OPTS"],
            Role::Client => &["ALLUXIO_USER_JAVA_OPTS"],
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A properties file; `bool`: whether it must exist.
    File(std::path::PathBuf, bool),
    JavaOpts(String, String),
    Set(String, String, Source),
}

/// Collects sources; nothing is read or checked before [`Builder::load`].
#[derive(Clone, Debug, Default)]
pub struct Builder {
    environment: Option<Environment>,
    steps: Vec<Step>,
}

/// A setting as it was found: canonical key, value, source.
struct Setting {
    key: String,
    value: String,
    source: Source,
}

impl Builder {
    /// Uses this environment instead of the process's own.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Adds the standard sources of a process: the site's properties file in `$ALLUXIO_CONF_DIR` or `$ALLUXIO_HOME/conf`
    /// if there is one, `ALLUXIO_JAVA_OPTS`, and the variable of its role. Call [`Builder::environment`] before this.
    #[must_use]
    pub fn process(mut self, role: Role) -> Self {
        let environment = self.environment.get_or_insert_with(Environment::of_process).clone();
        let file = Path::new(&environment.conf_dir()).join(SITE_PROPERTIES);
        self.steps.push(Step::File(file, false));
        for variable in std::iter::once(&"ALLUXIO_JAVA_OPTS").chain(role.variables()) {
            if let Some(text) = environment.var(variable) {
                self = self.java_opts(variable, text);
            }
        }
        self
    }

    /// Adds a properties file, which must exist.
    #[must_use]
    pub fn site_properties(mut self, path: impl AsRef<Path>) -> Self {
        self.steps.push(Step::File(path.as_ref().to_owned(), true));
        self
    }

    /// Adds the `-Dkey=value` settings that an environment variable named `variable` holds.
    #[must_use]
    pub fn java_opts(mut self, variable: &str, text: &str) -> Self {
        self.steps.push(Step::JavaOpts(variable.to_owned(), text.to_owned()));
        self
    }

    /// Sets one key, by name or alias. Among settings of one rank of source the last one wins.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str, source: Source) -> Self {
        self.steps.push(Step::Set(key.to_owned(), value.to_owned(), source));
        self
    }

    /// Adds the settings that mount options stand for.
    #[must_use]
    pub fn mount_options(mut self, options: &MountOptions) -> Self {
        for (key, value, source) in &options.settings {
            self = self.set(key, value, source.clone());
        }
        self
    }

    /// Reads all sources and checks every value.
    ///
    /// # Errors
    /// The first thing that is wrong, with its place and the fix.
    pub fn load(self) -> Result<Conf, ConfError> {
        let environment = self.environment.clone().unwrap_or_else(Environment::of_process);
        let mut warnings = Vec::new();
        let mut notes = Vec::new();
        let mut settings = Vec::new();
        for step in &self.steps {
            collect(step, &mut settings, &mut warnings, &mut notes)?;
        }
        settings.sort_by_key(|setting| rank(&setting.source));
        let mut known: HashMap<&'static str, Setting> = HashMap::new();
        let mut unknown = BTreeMap::new();
        for setting in settings {
            match keys::find(&setting.key) {
                Some(decl) => drop(known.insert(decl.name, setting)),
                None => drop(unknown.insert(setting.key, (setting.value, setting.source))),
            }
        }
        warnings.extend(unknown.iter().filter_map(|(key, (_, source))| unknown_key(key, source)));
        let texts = Texts { known: &known, unknown: &unknown, environment: &environment };
        let mut entries = HashMap::with_capacity(keys::all().count());
        for decl in keys::all() {
            let entry = texts.entry(decl)?;
            if decl.reserved && entry.source != Source::Default {
                warnings
                    .push(format!("{} ({}) is accepted but has no effect in this version", decl.name, entry.source));
            }
            entries.insert(decl.name, entry);
        }
        let conf = Conf(Arc::new(Inner { entries, unknown, warnings, notes, builder: self }));
        check::check(&conf)?;
        Ok(conf)
    }
}

/// Which sources override which.
fn rank(source: &Source) -> u8 {
    match source {
        Source::Default => 0,
        Source::SiteProperties { .. } => 1,
        Source::Environment(variable) if variable == "ALLUXIO_JAVA_OPTS" => 2,
        Source::Environment(_) => 3,
        Source::CommandLine(_) => 4,
    }
}

fn collect(
    step: &Step,
    settings: &mut Vec<Setting>,
    warnings: &mut Vec<String>,
    notes: &mut Vec<String>,
) -> Result<(), ConfError> {
    match step {
        Step::File(path, required) => {
            if !required && !path.exists() {
                return Ok(());
            }
            let mut lines: HashMap<String, usize> = HashMap::new();
            for property in properties::read(path)? {
                if let Some(before) = lines.insert(property.key.clone(), property.line) {
                    warnings.push(format!(
                        "{} sets {} on line {before} and again on line {}; the last one counts",
                        path.display(),
                        property.key,
                        property.line
                    ));
                }
                let source = Source::SiteProperties { path: path.clone(), line: property.line };
                settings.push(Setting { key: property.key, value: property.value, source });
            }
        }
        Step::JavaOpts(variable, text) => {
            let opts =
                java_opts::parse(text).map_err(|reason| ConfError::Variable { variable: variable.clone(), reason })?;
            for (key, value) in opts.settings {
                settings.push(Setting { key, value, source: Source::Environment(variable.clone()) });
            }
            if !opts.ignored.is_empty() {
                let flags = redact::text(&opts.ignored.join(" "));
                notes.push(format!("{variable}: ignored flags for a Java machine, there is none: {flags}"));
            }
        }
        Step::Set(key, value, source) => {
            settings.push(Setting { key: key.clone(), value: value.clone(), source: source.clone() });
        }
    }
    Ok(())
}

/// The warning for a key that is not declared, or `None` when it is somebody else's business.
fn unknown_key(key: &str, source: &Source) -> Option<String> {
    let near = nearest(key, keys::names());
    match near {
        Some(near) => Some(format!("{key} ({source}) is no known key and was ignored; did you mean {near}?")),
        None if key.starts_with("alluxio.") => {
            Some(format!("{key} ({source}) is no known key and was ignored; `alluxio conf docs` lists all keys"))
        }
        None => None,
    }
}

/// The uninterpolated texts of all names.
struct Texts<'a> {
    known: &'a HashMap<&'static str, Setting>,
    unknown: &'a BTreeMap<String, (String, Source)>,
    environment: &'a Environment,
}

impl Texts<'_> {
    fn default(&self, decl: &Decl) -> Option<String> {
        match decl.default {
            DefaultValue::None => None,
            DefaultValue::Text(text) => Some(text.to_owned()),
            DefaultValue::Computed(compute, _) => Some(compute(self.environment)),
        }
    }

    fn entry(&self, decl: &'static Decl) -> Result<Entry, ConfError> {
        let (raw, source) = match self.known.get(decl.name) {
            Some(setting) => (Some(setting.value.clone()), setting.source.clone()),
            None => (self.default(decl), Source::Default),
        };
        let invalid = |reason: String| ConfError::Value {
            key: decl.name.to_owned(),
            value: raw.as_deref().map_or_else(String::new, |text| shown(decl, text)),
            origin: source.clone(),
            reason,
        };
        let text = match &raw {
            Some(raw) => Some(interpolate(decl.name, raw.trim(), self).map_err(invalid)?),
            None => None,
        };
        let parsed = decl.parse(text.as_deref().unwrap_or("")).map_err(|reason| match &text {
            // The user wrote a reference but the value is at fault: show what it became.
            Some(text) if raw.as_deref().map(str::trim) != Some(text) && !decl.secret => {
                invalid(format!("becomes '{text}', which {reason}"))
            }
            _ => invalid(reason),
        })?;
        Ok(Entry { text: text.filter(|text| !(decl.optional && text.is_empty())), parsed, source })
    }
}

impl Names for Texts<'_> {
    fn text(&self, name: &str) -> Option<String> {
        match keys::find(name) {
            Some(decl) => match self.known.get(decl.name) {
                Some(setting) => Some(setting.value.clone()),
                None => Some(self.default(decl).unwrap_or_default()),
            },
            None => self.unknown.get(name).map(|(value, _)| value.clone()),
        }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.environment.var(name).map(str::to_owned)
    }
}
