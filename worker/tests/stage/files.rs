//! The bytes of files: sequential, at random, large and small.

use crate::{BUCKET, Mount, object, options, path, pattern, server};
use bytes::Bytes;
use common::ErrorKind;
use s3server::Operation;
use worker::StageOptions;

const MIB: usize = 1 << 20;

#[test]
fn a_file_is_there_whole_when_it_is_closed_and_not_before() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let handle = mount.create("a").unwrap();
    mount.run(handle.write(0, Bytes::from_static(b"hello"))).unwrap();
    assert_eq!(object(&server, "a"), None);
    assert_eq!(mount.attr("a").unwrap().size, 5, "seen here at once");
    assert_eq!(mount.read("a").unwrap(), b"hello");
    assert!(mount.list("").unwrap().contains_key("a"));
    assert_eq!(mount.stage.pending().len(), 1);
    mount.run(handle.flush()).unwrap();
    assert_eq!(object(&server, "a").unwrap(), b"hello");
    mount.run(handle.flush()).unwrap();
    assert_eq!(server.count(Operation::PutObject), 1, "nothing new, nothing uploaded");
    mount.run(handle.append(Bytes::from_static(b" world"))).unwrap();
    mount.run(handle.sync(false)).unwrap();
    assert_eq!(object(&server, "a").unwrap(), b"hello world");
    drop(handle);
    assert_eq!(mount.read("a").unwrap(), b"hello world");
    assert_eq!((mount.stage.used(), mount.stage.pending().len()), (0, 0));
    mount.write("empty", b"").unwrap();
    assert_eq!(object(&server, "empty").unwrap(), b"");
}

#[test]
fn large_files_go_in_parts_while_they_are_written() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    let bytes = pattern(1, 33 * MIB + 5);
    let handle = mount.create("big").unwrap();
    for (index, piece) in bytes.chunks(MIB).enumerate() {
        mount.run(handle.write((index * MIB) as u64, Bytes::copy_from_slice(piece))).unwrap();
    }
    crate::until("parts are sent early", || server.count(Operation::UploadPart) >= 5);
    assert_eq!(object(&server, "big"), None);
    // What was sent is written over.
    mount.run(handle.write(3, Bytes::from_static(b"again"))).unwrap();
    mount.run(handle.flush()).unwrap();
    let mut wanted = bytes;
    wanted[3..8].copy_from_slice(b"again");
    assert!(object(&server, "big").unwrap() == wanted);
    assert_eq!(server.open_uploads(), 0);
    drop(handle);
    assert!(mount.read("big").unwrap() == wanted);
    // An append copies what is there.
    let before = server.bytes_received();
    let handle = mount.open("big", libc::O_WRONLY | libc::O_APPEND).unwrap();
    mount.run(handle.append(Bytes::from_static(b"tail"))).unwrap();
    mount.run(handle.flush()).unwrap();
    wanted.extend(b"tail");
    assert!(object(&server, "big").unwrap() == wanted);
    assert!(server.bytes_received() - before < MIB as u64, "only what is new was sent");
    // A few bytes in the middle send one part.
    let before = server.bytes_received();
    mount.run(handle.write(20 << 20, Bytes::from_static(b"middle"))).unwrap();
    mount.run(handle.sync(true)).unwrap();
    wanted[20 << 20..(20 << 20) + 6].copy_from_slice(b"middle");
    assert!(object(&server, "big").unwrap() == wanted);
    assert!(server.bytes_received() - before < 12 * MIB as u64);
    assert!(mount.run(handle.read(19 << 20, 2 * MIB)).unwrap() == wanted[19 << 20..21 << 20]);
}

#[test]
fn truncated_and_extended_files_have_zeros_where_nothing_was_written() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    let mount = Mount::new(&server, directory.path());
    server.put(BUCKET, "root/f", pattern(0, 8 * MIB)).unwrap();
    let handle = mount.open("f", libc::O_RDWR).unwrap();
    let mut model = pattern(0, 8 * MIB);
    mount.run(async {
        handle.truncate(3 * MIB as u64).await.unwrap();
        model.truncate(3 * MIB);
        handle.truncate(5 * MIB as u64).await.unwrap();
        model.resize(5 * MIB, 0);
        handle.write(7 * MIB as u64, Bytes::from_static(b"x")).await.unwrap();
        model.resize(7 * MIB, 0);
        model.push(b'x');
        handle.allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 100, 50).await.unwrap();
        model[100..150].fill(0);
        assert!(handle.read(0, 9 * MIB).await.unwrap() == model);
        handle.flush().await.unwrap();
    });
    assert!(object(&server, "f").unwrap() == model);
    assert_eq!(mount.run(handle.seek(0, true)).unwrap(), model.len() as u64);
    assert_eq!(mount.run(handle.seek(1 << 40, false)).unwrap_err().kind(), ErrorKind::Os(libc::ENXIO));
    let two = mount.open("f", libc::O_RDWR | libc::O_TRUNC).unwrap();
    assert_eq!(handle.attr().size, 0, "handles share the file");
    mount.run(two.write(0, Bytes::from_static(b"new"))).unwrap();
    assert_eq!(mount.run(handle.read(0, 10)).unwrap(), "new");
    drop((two, handle));
    crate::until("what was not flushed is uploaded all the same", || object(&server, "f").unwrap() == b"new");
}

#[test]
fn a_full_stage_makes_room_or_says_so() {
    let (server, directory) = (server(), tempfile::tempdir().unwrap());
    server.put(BUCKET, "root/readable", "r").unwrap();
    let small = StageOptions { capacity: 16 << 20, ..options(directory.path()) };
    let mount = Mount::with(&server, small);
    // A stream is larger than the stage: what is sent is given up.
    let bytes = pattern(7, 60 * MIB);
    let handle = mount.create("stream").unwrap();
    for (index, piece) in bytes.chunks(MIB).enumerate() {
        let mut written = mount.run(handle.write((index * MIB) as u64, Bytes::copy_from_slice(piece)));
        for _ in 0..100 {
            if written.is_ok() {
                break;
            }
            written = mount.run(handle.write((index * MIB) as u64, Bytes::copy_from_slice(piece)));
        }
        written.unwrap();
        assert!(mount.stage.used() <= 16 << 20);
    }
    let back = mount.run(handle.write(0, Bytes::from_static(b"x"))).unwrap_err();
    assert_eq!(back.kind(), ErrorKind::NoSpace, "{back}");
    mount.run(handle.flush()).unwrap();
    assert!(object(&server, "stream").unwrap() == bytes);
    drop(handle);
    // Nothing of a file that is not closed and not in order can be given up.
    let handle = mount.create("full").unwrap();
    mount.run(handle.write(MIB as u64, Bytes::from(pattern(1, 15 * MIB)))).unwrap();
    let full = mount.run(handle.write(16 * MIB as u64, Bytes::from(pattern(1, 2 * MIB)))).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace, "{full}");
    assert!(full.message().contains("alluxio.user.stage.size"), "{full}");
    assert_eq!(mount.read("readable").unwrap(), b"r", "readers are not concerned");
    mount.run(handle.flush()).unwrap();
    assert_eq!(object(&server, "full").unwrap().len(), 16 * MIB);
    mount.run(handle.write(16 * MIB as u64, Bytes::from(pattern(1, 2 * MIB)))).unwrap();
    assert!(!mount.exists("other"));
    mount.run(mount.changes().remove_file(&path("full"))).unwrap();
    drop(handle);
    assert_eq!(mount.stage.used(), 0);
}
