//! Open files against a real file system, removed ones too.

use super::*;
use std::{fs::File, io::Read, os::unix::fs::PermissionsExt};

fn removed() -> File {
    let file = tempfile::tempfile().unwrap();
    write_all(&file, 0, b"hello", false).unwrap();
    file
}

#[test]
fn a_removed_file_is_changed_through_its_descriptor() {
    let file = removed();
    let time = SetTime::At(Timestamp { sec: -7, nsec: 123_456_789 });
    let change = SetAttr { mode: Some(0o4711), size: Some(3), mtime: Some(time), ..SetAttr::default() };
    let attr = set_attr(&file, &change).unwrap();
    assert_eq!((attr.mode, attr.size, attr.nlink), (0o4711, 3, 0));
    assert_eq!(attr.mtime, Timestamp { sec: -7, nsec: 123_456_789 });
    drop_privileges(&file).unwrap();
    assert_eq!(attr_of(&file).unwrap().mode, 0o711);
    let attr = set_attr(&file, &SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() }).unwrap();
    assert!(attr.mtime.sec > 1_500_000_000);
}

#[test]
fn the_group_bit_without_execution_is_no_privilege() {
    let file = removed();
    file.set_permissions(PermissionsExt::from_mode(0o2640)).unwrap();
    drop_privileges(&file).unwrap();
    assert_eq!(attr_of(&file).unwrap().mode, 0o2640);
}

#[test]
fn a_file_open_for_reading_can_be_truncated() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("f"), "hello").unwrap();
    let mut file = File::open(directory.path().join("f")).unwrap();
    set_attr(&file, &SetAttr { size: Some(2), ..SetAttr::default() }).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "he");
}

#[test]
fn appending_goes_to_the_end_wherever_that_is() {
    let file = removed();
    write_all(&file, 0, b" world", true).unwrap();
    write_all(&file, 1, b"E", false).unwrap();
    let mut text = [0; 20];
    let read = nix::sys::uio::pread(&file, &mut text, 0).unwrap();
    assert_eq!(&text[..read], b"hEllo world");
}

#[test]
fn holes_are_punched_and_found() {
    let file = removed();
    set_attr(&file, &SetAttr { size: Some(1 << 20), ..SetAttr::default() }).unwrap();
    allocate(&file, 0, 512 << 10, 4096).unwrap();
    match allocate(&file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 0, 4096) {
        Ok(()) => assert!(seek(&file, 0, false).unwrap() > 0),
        Err(errno) => assert_eq!(errno, Errno::EOPNOTSUPP),
    }
    assert_eq!(seek(&file, 1 << 21, true), Err(Errno::ENXIO));
}

#[test]
fn copies_are_made_by_the_kernel() {
    let (from, to) = (removed(), removed());
    assert_eq!(copy(&from, 1, &to, 5, 100).unwrap(), 4);
    let mut text = [0; 20];
    let read = nix::sys::uio::pread(&to, &mut text, 0).unwrap();
    assert_eq!(&text[..read], b"helloello");
}

#[test]
fn extended_attributes_of_any_size() {
    let file = removed();
    let value = vec![7; 3000];
    match set_xattr(&file, b"user.large", &value, SetXattr::Create) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSPC) => return,
        done => done.unwrap(),
    }
    assert_eq!(set_xattr(&file, b"user.large", b"x", SetXattr::Create), Err(Errno::EEXIST));
    assert_eq!(set_xattr(&file, b"user.none", b"x", SetXattr::Replace), Err(Errno::ENODATA));
    assert_eq!(xattr(&file, b"user.large").unwrap(), value);
    assert!(xattrs(&file).unwrap().contains(&b"user.large".to_vec()));
    remove_xattr(&file, b"user.large").unwrap();
    assert_eq!(xattr(&file, b"user.large"), Err(Errno::ENODATA));
}
