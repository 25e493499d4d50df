//! Paths and identities below an under storage.
//!
//! A [`UfsPath`] is what comes after the root of a mount: names joined by `/`, never empty names, never `.` or `..`, no
//! leading or trailing `/`; the root itself is the empty path. Names are bytes, as in Linux. A [`UfsUri`] is the root.
//! Together they make the full UFS path, from which the [`FileId`] follows that names a file in caches and on the ring.

use crate::{
    error::{Error, ErrorKind, Result},
    redact,
};
use sha2::{Digest, Sha256};
use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt, path::Path, sync::Arc};

/// The longest name that Linux takes, in bytes.
pub const NAME_MAX: usize = 255;

/// A path relative to the root of an under storage. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UfsPath(Arc<[u8]>);

impl UfsPath {
    /// The root of the under storage.
    pub fn root() -> Self {
        static ROOT: std::sync::OnceLock<UfsPath> = std::sync::OnceLock::new();
        ROOT.get_or_init(|| UfsPath(Arc::from(&b""[..]))).clone()
    }

    /// Parses `text`: `/` at both ends and doubled `/` are dropped; `.` and `..` are refused (`InvalidArgument`), names
    /// over 255 bytes too (`NameTooLong`).
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self> {
        let text = text.as_ref();
        let mut bytes = Vec::with_capacity(text.len());
        for name in text.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            check_name(name)?;
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(name);
        }
        Ok(Self(bytes.into()))
    }

    /// The entry `name` of this directory. Fails when `name` is empty, `.`, `..`, too long, or contains `/` or NUL.
    pub fn join(&self, name: impl AsRef<[u8]>) -> Result<Self> {
        let name = name.as_ref();
        check_name(name)?;
        if self.0.is_empty() {
            return Ok(Self(name.into()));
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Ok(Self(bytes.into()))
    }

    /// The directory that holds it; none for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Some(Self(self.0[..at].into())),
            None => Some(Self::root()),
        }
    }

    /// The last name; none for the root.
    pub fn name(&self) -> Option<&[u8]> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Some(&self.0[at + 1..]),
            None => Some(&self.0),
        }
    }

    /// The names from the root down.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `self` is `ancestor` or below it.
    pub fn is_within(&self, ancestor: &UfsPath) -> bool {
        ancestor.is_root()
            || (self.0.starts_with(&ancestor.0)
                && (self.0.len() == ancestor.0.len() || self.0[ancestor.0.len()] == b'/'))
    }

    /// The bytes, without a leading `/`.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a path of the operating system (relative; empty for the root).
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::new(ErrorKind::NameTooLong, format!("name of {} bytes: {NAME_MAX} at most", name.len())));
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{:?} is no name of a file", String::from_utf8_lossy(name)),
        ));
    }
    Ok(())
}

impl fmt::Display for UfsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for UfsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// The root of an under storage: `scheme://authority/path`, the path without a trailing `/`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct UfsUri {
    scheme: String,
    authority: String,
    path: String,
}

impl UfsUri {
    /// Parses a URI, or a plain absolute path, which means `file://`. Relative paths are resolved by the caller.
    /// Errors (`InvalidArgument`) name the text and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(ErrorKind::InvalidArgument, format!("{}: {why}", redact::uri(text)));
        if let Some(path) = text.strip_prefix('/') {
            return Ok(Self { scheme: "file".into(), authority: String::new(), path: clean(path) });
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(wrong("neither a URI such as s3://bucket/prefix nor an absolute path"));
        };
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
            return Err(wrong("the part before :// is no scheme"));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "file" {
            if !authority.is_empty() && authority != "localhost" {
                return Err(wrong("a file URI has three slashes, as in file:///data"));
            }
            return Ok(Self { scheme, authority: String::new(), path: clean(path) });
        }
        if authority.is_empty() {
            return Err(wrong("the bucket or host after :// is missing"));
        }
        Ok(Self { scheme, authority: authority.to_owned(), path: clean(path) })
    }

    /// Scheme in lower case, `file` for plain paths.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Bucket, container or host.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// All of it, with a password if there is one: what names it to other processes. For people there is `Display`.
    pub fn text(&self) -> String {
        let separator = if self.scheme != "file" && self.path.is_empty() { "" } else { "/" };
        format!("{}://{}{separator}{}", self.scheme, self.authority, self.path)
    }

    /// Path below the authority, without `/` at either end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The full UFS path of `path`: what the ring hashes and what [`FileId`] is made from.
    pub fn full_path(&self, path: &UfsPath) -> Vec<u8> {
        let mut full = self.text().into_bytes();
        if !path.is_root() {
            if full.last() != Some(&b'/') {
                full.push(b'/');
            }
            full.extend_from_slice(path.as_bytes());
        }
        full
    }

    /// The identity of the file at `path`.
    pub fn file_id(&self, path: &UfsPath) -> FileId {
        FileId::of(&self.full_path(path))
    }
}

fn clean(path: &str) -> String {
    path.split('/').filter(|name| !name.is_empty()).collect::<Vec<_>>().join("/")
}

impl fmt::Display for UfsUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact::uri(&self.text()))
    }
}

impl fmt::Debug for UfsUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Names a file everywhere in the project: SHA-256 of its full UFS path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub [u8; 32]);

impl FileId {
    /// The identity of a full UFS path.
    pub fn of(full_path: &[u8]) -> Self {
        Self(Sha256::digest(full_path).into())
    }

    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex()[..12])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normal() {
        let path = UfsPath::parse("/a//b/").unwrap();
        assert_eq!(path.as_bytes(), b"a/b");
        assert_eq!(path.name(), Some(&b"b"[..]));
        assert_eq!(path.parent().unwrap().as_bytes(), b"a");
        assert!(path.parent().unwrap().parent().unwrap().is_root());
        assert!(UfsPath::root().parent().is_none());
        assert!(path.is_within(&UfsPath::parse("a").unwrap()));
        assert!(!UfsPath::parse("ab").unwrap().is_within(&UfsPath::parse("a").unwrap()));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        assert_eq!(UfsPath::parse("a/../b").unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(UfsPath::root().join("a/b").unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(UfsPath::root().join([b'x'; 256]).unwrap_err().kind(), ErrorKind::NameTooLong);
        assert!(UfsPath::root().join([b'x'; 255]).is_ok());
    }

    #[test]
    fn uris_print_as_they_were_meant() {
        for (text, shown) in [
            ("/data/x/", "file:///data/x"),
            ("file:///data", "file:///data"),
            ("s3://bucket", "s3://bucket"),
            ("S3://bucket/a//b/", "s3://bucket/a/b"),
        ] {
            let uri = UfsUri::parse(text).unwrap();
            assert_eq!((uri.to_string(), uri.text()), (shown.to_owned(), shown.to_owned()));
        }
        for text in ["data", "s3://", "://x", "file://host/x", "s3:/x"] {
            assert!(UfsUri::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_is_part_of_the_name_and_never_shown() {
        let uri = UfsUri::parse("webhdfs://me:hidden@host/p").unwrap();
        assert_eq!(uri.text(), "webhdfs://me:hidden@host/p");
        let wrong = UfsUri::parse("file://me:hidden@host/p").unwrap_err().to_string();
        for shown in [uri.to_string(), format!("{uri:?}"), wrong] {
            assert!(shown.contains("me:") && !shown.contains("hidden"), "{shown}");
        }
        let other = UfsUri::parse("webhdfs://me:other@host/p").unwrap();
        assert_ne!(uri.file_id(&UfsPath::root()), other.file_id(&UfsPath::root()));
    }

    #[test]
    fn the_full_path_is_the_uri_and_the_path() {
        let uri = UfsUri::parse("s3://b/p").unwrap();
        assert_eq!(uri.full_path(&UfsPath::parse("x/y").unwrap()), b"s3://b/p/x/y");
        assert_eq!(uri.full_path(&UfsPath::root()), b"s3://b/p");
        let root = UfsUri::parse("/").unwrap();
        assert_eq!(root.full_path(&UfsPath::parse("etc").unwrap()), b"file:///etc");
    }
}
