//! Changes by gRPC, over a directory of this host.

use crate::{
    options,
    peer::{LIMIT, within},
};
use common::{
    ErrorKind,
    rpc::{self, worker as proto},
};
use proto::{alter_request::Change, changes_client::ChangesClient, use_request::Use};
use std::{fs, io::Read, net::TcpStream, path::Path};
use tonic::{Status, Streaming, transport::Channel};
use worker::server::Server;

struct Client {
    server: Server,
    changes: ChangesClient<Channel>,
    held: Option<Streaming<proto::Held>>,
    session: Vec<u8>,
    storage: String,
}

impl Client {
    async fn start(dir: &Path, writes: bool) -> Self {
        let source = dir.join("source");
        fs::create_dir(&source).unwrap();
        let storage = format!("file://{}", source.display());
        let mut options = options(dir, &[("/data", &storage)]);
        options.writes = writes;
        let server = Server::start(options).await.unwrap();
        let address = format!("http://127.0.0.1:{}", server.entry().address.rpc_port);
        let mut changes = ChangesClient::connect(address).await.unwrap();
        let mut held = changes.hold(proto::HoldRequest { name: "a test".into() }).await.unwrap().into_inner();
        let session = within("a session", held.message()).await.unwrap().unwrap().session;
        Self { server, changes, held: Some(held), session, storage }
    }

    async fn create(&mut self, name: &str) -> Result<u64, Status> {
        let caller = Some(proto::Caller { uid: 1234, gid: 5678 });
        let request = proto::OpenRequest {
            session: self.session.clone(),
            storage: self.storage.clone(),
            path: name.into(),
            flags: libc::O_RDWR,
            create: Some(proto::Create { mode: 0o640, caller, unnamed: false }),
        };
        Ok(self.changes.open(request).await?.into_inner().handle)
    }

    async fn write(&mut self, handle: u64, data: &'static [u8], checksum: u32) -> Result<u64, Status> {
        let (session, data) = (self.session.clone(), data.into());
        let request = proto::WriteRequest { session, handle, offset: 0, append: false, data, checksum };
        let reply = self.changes.write(request).await?.into_inner();
        Ok(reply.state.unwrap().attr.unwrap().size)
    }

    async fn alter(&mut self, path: &str, change: Change) -> Result<proto::AlterReply, Status> {
        let request = proto::AlterRequest { storage: self.storage.clone(), path: path.into(), change: Some(change) };
        Ok(self.changes.alter(request).await?.into_inner())
    }
}

fn kind(status: &Status) -> ErrorKind {
    rpc::error_of(status).kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_open_as_long_as_its_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::start(dir.path(), true).await;
    let file = client.create("f").await.unwrap();
    let sum = crc32c::crc32c(b"hello");
    assert_eq!(client.write(file, b"hello", sum).await.unwrap(), 5);
    let changed = client.write(file, b"jello", sum).await.unwrap_err();
    assert_eq!(kind(&changed), ErrorKind::Corrupt);
    assert!(!rpc::may_be_done(&changed), "and nothing of it is there");
    assert_eq!(fs::read(dir.path().join("source/f")).unwrap(), b"hello");
    let unknown = client.write(file + 1, b"hello", sum).await.unwrap_err();
    assert_eq!(kind(&unknown), ErrorKind::BadHandle);

    // Another session cannot use the file, and its end is none of this one.
    let mut other = client.changes.hold(proto::HoldRequest::default()).await.unwrap().into_inner();
    let own = std::mem::replace(&mut client.session, other.message().await.unwrap().unwrap().session);
    assert_eq!(kind(&client.write(file, b"hello", sum).await.unwrap_err()), ErrorKind::BadHandle);
    client.session = own;
    drop(other);
    assert_eq!(client.write(file, b"hello", sum).await.unwrap(), 5);

    // When its client goes away, so does the session.
    drop(client.held.take());
    within("the end of the session", async {
        loop {
            match client.write(file, b"hello", sum).await {
                Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                Err(status) => return assert_eq!(kind(&status), ErrorKind::BadHandle),
            }
        }
    })
    .await;
    within("the worker's end", client.server.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_changed_for_their_callers_and_errors_keep_their_names() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::start(dir.path(), true).await;
    let caller = Some(proto::Caller { uid: 1234, gid: 5678 });
    let make = || proto::Make { kind: libc::S_IFDIR, mode: 0o750, caller, ..Default::default() };
    let made = client.alter("d", Change::Make(make())).await.unwrap().attr.unwrap();
    assert_eq!((made.uid, made.gid, made.mode), (1234, 5678, 0o750));
    assert_eq!(fs::metadata(dir.path().join("source/d")).unwrap().uid(), 1234);
    let again = client.alter("d", Change::Make(make())).await.unwrap_err();
    assert_eq!((kind(&again), rpc::may_be_done(&again)), (ErrorKind::AlreadyExists, true));
    client.create("d/f").await.unwrap();
    let nothing = || proto::Nothing {};
    assert_eq!(kind(&client.alter("d", Change::RemoveDirectory(nothing())).await.unwrap_err()), ErrorKind::NotEmpty);
    let rename = proto::Rename { to: "d/g".into(), mode: libc::RENAME_NOREPLACE };
    client.alter("d/f", Change::Rename(rename)).await.unwrap();
    let strange = proto::Rename { to: "d/h".into(), mode: 77 };
    assert_eq!(kind(&client.alter("d/g", Change::Rename(strange)).await.unwrap_err()), ErrorKind::InvalidArgument);
    assert_eq!(kind(&client.alter("../d", Change::Sync(nothing())).await.unwrap_err()), ErrorKind::InvalidArgument);
    client.storage = "file:///nowhere".into();
    let elsewhere = client.alter("d", Change::Sync(nothing())).await.unwrap_err();
    assert_eq!((kind(&elsewhere), rpc::may_be_done(&elsewhere)), (ErrorKind::Unavailable, false));
    within("the worker's end", client.server.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_takes_no_writes_unless_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::start(dir.path(), false).await;
    let refused = client.create("f").await.unwrap_err();
    assert_eq!((kind(&refused), rpc::may_be_done(&refused)), (ErrorKind::ReadOnly, false));
    assert!(refused.message().contains("alluxio.cluster.writes.enabled"), "{refused}");
    let handle = Use::Truncate(0);
    let request = proto::UseRequest { session: client.session.clone(), handle: 0, r#use: Some(handle) };
    assert_eq!(kind(&client.changes.r#use(request).await.unwrap_err()), ErrorKind::BadHandle);
    assert!(!dir.path().join("source/f").exists());
    within("the worker's end", client.server.stop()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_for_metadata_are_limited() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), &[]);
    options.limits.rpc_connections = 3;
    let server = Server::start(options).await.unwrap();
    let port = server.entry().address.rpc_port;
    let closed = tokio::task::spawn_blocking(move || {
        let mut all: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        // The server speaks first on those that it takes.
        let ended = |stream: &mut TcpStream| {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
        };
        all.iter_mut().filter_map(|stream| ended(stream).then_some(())).count()
    });
    assert_eq!(within("the connections", closed).await.unwrap(), 2);
    within("the worker's end", server.stop()).await;
}
