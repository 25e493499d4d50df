//! Identities of stored files and the names that they have on disk.

use common::{FileId, Version};

/// Folder of the store in a configured directory.
pub(super) const FOLDER: &str = "alluxio-pages";

/// A stored file: a file id, and a hash of all that makes its bytes and their layout differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub id: FileId,
    pub hash: u64,
}

impl Key {
    pub fn new(id: FileId, version: &Version, size: u64, page_size: u32) -> Self {
        let mut text = Vec::with_capacity(version.as_str().len() + 12);
        text.extend_from_slice(&size.to_le_bytes());
        text.extend_from_slice(&page_size.to_le_bytes());
        text.extend_from_slice(version.as_str().as_bytes());
        let digest = FileId::of(&text);
        Self { id, hash: u64::from_le_bytes(digest.0[..8].try_into().unwrap_or_default()) }
    }

    /// The path below `pages/`.
    pub fn path(&self) -> String {
        let hex = self.id.hex();
        format!("{}/{hex}-{:016x}", &hex[..2], self.hash)
    }

    /// The key that a file of this name (without the folder) has.
    pub fn from_name(name: &str) -> Option<Self> {
        let (id, hash) = name.split_once('-')?;
        if hash.len() != 16 {
            return None;
        }
        Some(Self { id: FileId::from_hex(id)?, hash: u64::from_str_radix(hash, 16).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_keys_and_versions_differ() {
        let id = FileId::of(b"s3://b/x");
        let key = Key::new(id, &Version::new("etag"), 5, 4096);
        let path = key.path();
        let (folder, name) = path.split_once('/').unwrap();
        assert!(name.starts_with(folder));
        assert_eq!(Key::from_name(name), Some(key));
        for other in [
            Key::new(id, &Version::new("etag2"), 5, 4096),
            Key::new(id, &Version::new("etag"), 6, 4096),
            Key::new(id, &Version::new("etag"), 5, 8192),
        ] {
            assert_ne!(other, key);
        }
        for wrong in ["", "abc", "zz-0123456789abcdef", "journal"] {
            assert_eq!(Key::from_name(wrong), None);
        }
    }
}
