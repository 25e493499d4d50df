//! HDFS: the files that configure Hadoop clients, and where the name nodes are.
//!
//! The client is hdfs-native through OpenDAL. It was tried against ports that are closed and against bad configurations;
//! it was never run against a real HDFS.
//!
//! The files are those of `alluxio.underfs.hdfs.configuration`, over what hdfs-native itself finds in `$HADOOP_CONF_DIR`
//! or `$HADOOP_HOME/etc/hadoop`. The user is `$HADOOP_USER_NAME`, else that of this process: OpenDAL passes no other on.

use crate::options::UfsOptions;
use common::{Error, ErrorKind, Result, UfsUri};
use opendal::{Operator, services::HdfsNative};
use serde::Deserialize;
use std::{collections::HashMap, path::Path};

/// The setting that names the files, separated by `:` or `,`; those that do not exist are left out.
pub const FILES: &str = "configuration";
/// The same, and each of them must exist.
pub const REQUIRED_FILES: &str = "configuration_required";

/// The most bytes of such a file.
const LONGEST: u64 = 4 << 20;
/// Where name nodes listen when nobody says otherwise.
const PORT: u16 = 8020;

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    property: Vec<Property>,
}

#[derive(Deserialize)]
struct Property {
    name: String,
    #[serde(default)]
    value: String,
}

/// The operator for `uri`. Nothing is sent yet.
pub fn operator(uri: &UfsUri, options: &UfsOptions) -> Result<Operator> {
    let mut settings = HashMap::new();
    for (name, required) in [(FILES, false), (REQUIRED_FILES, true)] {
        let files = options.service.get(name).map_or("", |files| files.reveal());
        for file in files.split([':', ',']).map(str::trim).filter(|file| !file.is_empty()) {
            settings.extend(read(Path::new(file), required)?);
        }
    }
    let nodes = name_nodes(uri, &settings)?;
    let mut default = |name: &str, value: u128| {
        settings.entry(name.to_owned()).or_insert_with(|| value.to_string());
    };
    // Left alone it goes on for minutes, and has no bound on our side that it would know of.
    default("dfs.client.failover.max.attempts", u128::from(options.retries.min(15)));
    default("dfs.client.failover.sleep.base.millis", 50);
    default("dfs.client.failover.sleep.max.millis", 2000);
    default("dfs.client.socket-timeout", options.deadline.as_millis().max(1));
    let service = HdfsNative::default().root(&format!("/{}", uri.path())).name_node(&nodes).options(settings);
    Operator::new(service).map_err(|error| {
        Error::new(ErrorKind::InvalidArgument, format!("{uri}: the settings are wrong: {}", error.message()))
    })
}

/// The properties in one file.
fn read(path: &Path, required: bool) -> Result<Vec<(String, String)>> {
    let wrong = |why: String| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("{}: {why}; see alluxio.underfs.hdfs.configuration", path.display()),
        )
    };
    match std::fs::metadata(path) {
        Ok(found) if found.len() > LONGEST => return Err(wrong(format!("it is longer than {LONGEST} bytes"))),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => return Ok(Vec::new()),
        Err(error) => return Err(wrong(format!("it cannot be read ({error})"))),
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("it cannot be read ({error})")))?;
    let parsed: Configuration = quick_xml::de::from_str(&text)
        .map_err(|error| wrong(format!("this is no configuration of Hadoop in XML ({error})")))?;
    let trimmed = |property: Property| (property.name.trim().to_owned(), property.value.trim().to_owned());
    Ok(parsed.property.into_iter().map(trimmed).collect())
}

/// The name nodes as OpenDAL takes them: those of the authority when it is the logical name of several, else itself.
fn name_nodes(uri: &UfsUri, settings: &HashMap<String, String>) -> Result<String> {
    let default = settings.get("fs.defaultFS").and_then(|default| default.strip_prefix("hdfs://"));
    let authority = match uri.authority() {
        "" => default.map(|default| default.trim_end_matches('/')).filter(|default| !default.is_empty()).ok_or_else(
            || Error::new(ErrorKind::InvalidArgument, format!("{uri}: name the name node, as in hdfs://host:8020/")),
        )?,
        authority => authority,
    };
    let Some(ids) = settings.get(&format!("dfs.ha.namenodes.{authority}")) else {
        let port = if authority.contains(':') { String::new() } else { format!(":{PORT}") };
        return Ok(format!("hdfs://{authority}{port}"));
    };
    let addresses: Result<Vec<&str>> = ids
        .split(',')
        .map(|id| {
            let name = format!("dfs.namenode.rpc-address.{authority}.{}", id.trim());
            settings.get(&name).map(String::as_str).ok_or_else(|| {
                Error::new(ErrorKind::InvalidArgument, format!("{uri}: the configuration of HDFS lacks {name}"))
            })
        })
        .collect();
    Ok(format!("hdfs://{}", addresses?.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(uri: &str, settings: &[(&str, &str)]) -> Result<String> {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        name_nodes(&UfsUri::parse(uri).unwrap(), &settings)
    }

    #[test]
    fn name_nodes_are_found() {
        assert_eq!(nodes("hdfs://h:9000/x", &[]).unwrap(), "hdfs://h:9000");
        assert_eq!(nodes("hdfs://h/x", &[]).unwrap(), "hdfs://h:8020");
        let both = [
            ("dfs.ha.namenodes.prod", "a, b"),
            ("dfs.namenode.rpc-address.prod.a", "one:8020"),
            ("dfs.namenode.rpc-address.prod.b", "two:8020"),
        ];
        assert_eq!(nodes("hdfs://prod/x", &both).unwrap(), "hdfs://one:8020,two:8020");
        let error = nodes("hdfs://prod/x", &both[..2]).unwrap_err();
        assert!(error.message().contains("dfs.namenode.rpc-address.prod.b"), "{error}");
    }

    #[test]
    fn configurations_are_read_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("core-site.xml");
        assert!(read(&file, false).unwrap().is_empty());
        assert!(read(&file, true).unwrap_err().message().contains("core-site.xml"));
        let text = "<?xml version=\"1.0\"?>\n<!-- x -->\n<configuration>\n<property><name> a </name><value>1</value>\
                    <final>true</final></property>\n<property><name>b</name><value/></property></configuration>";
        std::fs::write(&file, text).unwrap();
        assert_eq!(read(&file, true).unwrap(), [("a".into(), "1".into()), ("b".into(), String::new())]);
        std::fs::write(&file, "<configuration><property>").unwrap();
        let error = read(&file, false).unwrap_err();
        assert!(error.message().contains("XML") && !error.message().contains('\n'), "{error}");
    }
}
