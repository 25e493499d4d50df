//! The process environment as a value, so that what depends on it can be given another one.

use std::{collections::HashMap, fmt, path::PathBuf};

/// Environment variables and the home directory.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process, as it is now. Variables that are no UTF-8 are left out.
    pub fn of_process() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { variables: variables.collect(), home: std::env::home_dir() }
    }

    /// An environment with these variables only; the home directory is `HOME`, if it is among them.
    pub fn of<N: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (N, V)>) -> Self {
        let variables: HashMap<String, String> =
            variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let home = variables.get("HOME").map(PathBuf::from);
        Self { variables, home }
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A setting of a profile in the shared configuration file of AWS (`profile`, else `AWS_PROFILE`, else `default`).
    pub fn profile_setting(&self, profile: Option<&str>, name: &str) -> Option<String> {
        let path = match self.get("AWS_CONFIG_FILE") {
            Some(path) => PathBuf::from(path),
            None => self.home()?.join(".aws/config"),
        };
        let profile = profile.or_else(|| self.get("AWS_PROFILE")).unwrap_or("default");
        setting(&std::fs::read_to_string(path).ok()?, profile, name)
    }

    /// All variables.
    pub fn variables(&self) -> &HashMap<String, String> {
        &self.variables
    }

    /// The home directory.
    pub fn home(&self) -> Option<&PathBuf> {
        self.home.as_ref()
    }
}

impl fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// The value of `name` in the section of `profile`.
fn setting(text: &str, profile: &str, name: &str) -> Option<String> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let section = section.trim();
            inside = section.strip_prefix("profile ").map_or(section, str::trim) == profile;
        } else if inside
            && let Some((key, value)) = line.split_once('=')
            && key.trim() == name
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_in_their_profile() {
        let text = "[default]\nregion = us-west-1\n# x\n[profile work]\noutput=json\nregion=eu-west-3\n";
        assert_eq!(setting(text, "default", "region").as_deref(), Some("us-west-1"));
        assert_eq!(setting(text, "work", "region").as_deref(), Some("eu-west-3"));
        assert_eq!(setting(text, "other", "region"), None);
    }

    #[test]
    fn values_are_not_shown() {
        let environment = Environment::of([("AWS_SECRET_ACCESS_KEY", "hush")]);
        assert!(!format!("{environment:?}").contains("hush"));
        assert_eq!(environment.get("AWS_SECRET_ACCESS_KEY"), Some("hush"));
    }
}
