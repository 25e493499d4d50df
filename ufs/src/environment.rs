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
