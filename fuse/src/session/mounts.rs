//! The mounts of this machine that matter to a session.

use super::{Result, SessionError};
use std::path::Path;

pub use common::mountinfo::{Device, Mount, is_within};

/// All mounts, in the order in which they were made.
pub fn list() -> Result<Vec<Mount>> {
    common::mountinfo::list().map_err(|error| SessionError::system("/proc/self/mountinfo", error))
}

/// The mount that is seen at `point` (an absolute path without links): the last one made there.
pub fn at(point: &Path) -> Result<Option<Mount>> {
    Ok(list()?.into_iter().rev().find(|mount| mount.point == point))
}

/// Whether the mount with this device and type of ours still is at `point`, on top or below others.
pub fn holds(point: &Path, device: Device) -> Result<bool> {
    Ok(list()?.iter().any(|mount| mount.is_ours() && mount.device == device && mount.point == point))
}

/// How a source is shown in the list of mounts: without what would end an option or a line.
pub fn source_label(source: &str) -> String {
    let mut label = String::with_capacity(source.len());
    for c in source.chars() {
        match c {
            ',' | '\\' => label.push_str(&format!("%{:02X}", c as u32)),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| label.push_str(&format!("%{byte:02X}")));
            }
            c => label.push(c),
        }
    }
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_root_mount() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(at(Path::new("/proc/no such place")).unwrap(), None);
    }

    #[test]
    fn a_label_cannot_add_a_mount_option() {
        assert_eq!(source_label("file:///a,allow_other\\x\n"), "file:///a%2Callow_other%5Cx%0A");
        assert_eq!(source_label("s3://ü b"), "s3://ü b");
    }
}
