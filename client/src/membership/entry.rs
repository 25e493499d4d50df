//! What etcd holds of a worker: the JSON that Alluxio's own clients read and write.

use crate::ring::WorkerIdentity;
use common::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// Where a worker is reached.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct WorkerNetAddress {
    /// Host name or address.
    pub host: String,
    /// The container's own host name, if any.
    pub container_host: String,
    /// gRPC.
    pub rpc_port: u16,
    /// Data.
    pub data_port: u16,
    /// gRPC by TLS.
    pub secure_rpc_port: u16,
    /// Kept for older clients; equal to the data port.
    pub netty_data_port: u16,
    /// Metrics and health.
    pub web_port: u16,
    /// The domain socket on the worker's host; empty: none.
    pub domain_socket_path: String,
    /// REST.
    pub http_server_port: u16,
}

/// A worker: who it is and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerEntry {
    /// Who.
    pub identity: WorkerIdentity,
    /// Where.
    pub address: WorkerNetAddress,
}

#[derive(Serialize, Deserialize)]
struct Json {
    #[serde(rename = "Identity")]
    identity: JsonIdentity,
    #[serde(rename = "WorkerNetAddress")]
    address: WorkerNetAddress,
}

#[derive(Serialize, Deserialize)]
struct JsonIdentity {
    version: i32,
    identifier: String,
}

impl WorkerEntry {
    /// The value to store.
    pub fn to_json(&self) -> String {
        let json = Json {
            identity: JsonIdentity { version: self.identity.version, identifier: self.identity.hex() },
            address: self.address.clone(),
        };
        // Invariant: a struct of numbers and strings always has a JSON form.
        serde_json::to_string(&json).unwrap_or_default()
    }

    /// From a stored value.
    ///
    /// # Errors
    /// `Corrupt`, saying what is wrong with the value.
    pub fn from_json(value: &[u8]) -> Result<Self> {
        let json: Json = serde_json::from_slice(value)
            .map_err(|error| Error::with_source(ErrorKind::Corrupt, format!("not a worker: {error}"), error))?;
        let identity = WorkerIdentity::parse(&json.identity.identifier).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!("not a worker: identifier {:?} has not 32 hexadecimal digits", json.identity.identifier),
            )
        })?;
        Ok(Self { identity: WorkerIdentity { version: json.identity.version, ..identity }, address: json.address })
    }

    /// `host:port` of its gRPC, as `info nodes` prints it.
    pub fn shown(&self) -> String {
        format!("{}:{}", self.address.host, self.address.rpc_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_the_one_that_clients_parse() {
        let entry = WorkerEntry {
            identity: WorkerIdentity::parse("b785d1f098863821a4eb6bee226c35b7").unwrap(),
            address: WorkerNetAddress {
                host: "h".into(),
                rpc_port: 29999,
                data_port: 29997,
                netty_data_port: 29997,
                web_port: 30000,
                domain_socket_path: "/opt/domain".into(),
                http_server_port: 28080,
                ..Default::default()
            },
        };
        assert_eq!(
            entry.to_json(),
            r#"{"Identity":{"version":1,"identifier":"b785d1f098863821a4eb6bee226c35b7"},"WorkerNetAddress":{"Host":"h","ContainerHost":"","RpcPort":29999,"DataPort":29997,"SecureRpcPort":0,"NettyDataPort":29997,"WebPort":30000,"DomainSocketPath":"/opt/domain","HttpServerPort":28080}}"#
        );
        assert_eq!(WorkerEntry::from_json(entry.to_json().as_bytes()).unwrap(), entry);
    }

    #[test]
    fn what_is_no_worker_is_an_error() {
        for value in ["", "{}", "[1]", r#"{"Identity":{"version":1,"identifier":"xyz"},"WorkerNetAddress":{}}"#] {
            assert_eq!(WorkerEntry::from_json(value.as_bytes()).unwrap_err().kind(), ErrorKind::Corrupt, "{value}");
        }
    }
}
