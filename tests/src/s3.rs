//! An S3 server with one bucket, and mounts of it.

use std::path::Path;

use s3server::{Credentials, Fault, FaultId, Operation, Options, Server, Synthetic};

use crate::mount::Mounting;

/// The bucket.
pub const BUCKET: &str = "data";
const ACCESS_KEY: &str = "AKIATESTTESTTEST";
const SECRET_KEY: &str = "correct/horse+battery";

/// A server with a bucket called [`BUCKET`], which only signed requests may use.
pub struct Store {
    server: Server,
}

impl Store {
    /// An empty one.
    pub fn start() -> Self {
        let credentials = vec![Credentials::new(ACCESS_KEY, SECRET_KEY)];
        let options = Options { credentials, log_size: 0, ..Options::with_buckets([BUCKET]) };
        Store { server: Server::start(options).expect("an S3 server") }
    }

    /// One that holds every file below a directory, which must stay as it is.
    pub fn of_dir(path: &Path) -> Self {
        let store = Self::start();
        let adopted = store.server.adopt(BUCKET, path).expect("adopt a directory");
        assert_eq!(adopted.skipped, 0, "some files cannot be objects");
        store
    }

    /// The server itself.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A mount of the objects below a prefix, with the right credentials.
    pub fn mount(&self, prefix: &str) -> Mounting {
        Mounting::of(self.uri(prefix)).options(self.options())
    }

    /// The URI of a prefix.
    pub fn uri(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// The options that lead a mount here.
    pub fn options(&self) -> Vec<String> {
        vec![
            format!("alluxio.underfs.s3.endpoint={}", self.server.url()),
            "alluxio.underfs.s3.region=us-east-1".into(),
            format!("s3a.accessKeyId={ACCESS_KEY}"),
            format!("s3a.secretKey={SECRET_KEY}"),
        ]
    }

    /// Puts an object.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        self.server.put(BUCKET, key, bytes.into()).expect("put an object");
    }

    /// Removes an object.
    pub fn delete(&self, key: &str) {
        assert!(self.server.delete(BUCKET, key).expect("delete an object"), "{key} was not there");
    }

    /// Adds objects that cost nothing; their bytes are [`crate::content`] of their keys.
    pub fn synthetic(&self, prefix: &str, count: u64, size: u64) -> Synthetic {
        let family = Synthetic::new(prefix, count, size);
        self.server.synthetic(BUCKET, family.clone()).expect("add objects");
        family
    }

    /// Adds a rule to misbehave.
    pub fn fault(&self, fault: Fault) -> FaultId {
        self.server.fault(fault)
    }

    /// How many objects or parts of objects were asked for since the last reset.
    pub fn gets(&self) -> u64 {
        self.server.count(Operation::GetObject)
    }

    /// Bytes of bodies sent since the last reset, listings included.
    pub fn body_bytes(&self) -> u64 {
        self.server.bytes_sent()
    }

    /// Sets all counters to zero.
    pub fn reset_counters(&self) {
        self.server.reset_counters();
    }
}
