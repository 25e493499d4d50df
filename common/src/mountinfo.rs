//! The kernel's list of mounts. Reading it touches no mount, so a dead or stuck one cannot hold anybody up.

use std::{
    ffi::OsString,
    fmt, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The type that mount(8) shows for our mounts.
pub const FS_TYPE: &str = "fuse.alluxio-fuse";

/// The device number of a mount. For FUSE the minor number is also the number of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    /// Major number; 0 for FUSE.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device number.
    pub device: Device,
    /// Which directory of the file system is seen: `/`, or below it for the bind mount of a sub-directory.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Whether this mount (not the file system as a whole) is read-only.
    pub read_only: bool,
    /// File system type, as in `fuse.alluxio-fuse`.
    pub fs_type: String,
    /// What is mounted, as the file system says.
    pub source: String,
}

impl Mount {
    /// Whether it is a mount of ours.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether it is a FUSE mount of anybody.
    pub fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type == "fuseblk" || self.fs_type.starts_with("fuse.")
    }
}

/// All mounts of this thread's namespace, in the order in which they were made.
///
/// # Errors
/// There is no /proc.
pub fn list() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    // id parent major:minor root point options [tags...] - type source super-options
    let mut fields = line.split(|byte| *byte == b' ');
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let device = std::str::from_utf8(fields.nth(2)?).ok()?.parse().ok()?;
    let root = path(fields.next()?);
    let point = path(fields.next()?);
    let read_only = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"ro");
    fields.find(|field| *field == b"-")?;
    let fs_type = String::from_utf8(unescape(fields.next()?)).ok()?;
    let source = String::from_utf8_lossy(&unescape(fields.next().unwrap_or_default())).into_owned();
    Some(Mount { device, root, point, read_only, fs_type, source })
}

/// The kernel writes blank, tab, newline, backslash and `#` as a backslash and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let octal = text.get(at + 1..at + 4).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match (text[at], octal) {
            (b'\\', Some(digits)) => {
                let value = digits.iter().fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                at += 4;
            }
            (byte, _) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    bytes
}

/// Whether `path` is `ancestor` or lies below it; both absolute and without links.
pub fn is_within(path: &Path, ancestor: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(ancestor.as_os_str().as_bytes()) && path.starts_with(ancestor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line =
            br"36 35 0:57 /sub /mnt/a\040b\134c ro,nosuid shared:1 master:2 - fuse.alluxio-fuse s3://b/p rw,user_id=0";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.device, Device { major: 0, minor: 57 });
        assert_eq!(mount.point, Path::new("/mnt/a b\\c"));
        assert_eq!(mount.root, Path::new("/sub"));
        assert_eq!(mount.source, "s3://b/p");
        assert!(mount.is_ours() && mount.is_fuse() && mount.read_only);
        let plain = parse_line(b"21 1 8:1 / / rw - ext4 /dev/sda1 ro").unwrap();
        assert!(!plain.is_fuse() && !plain.read_only);
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"21 1 8 / / rw"), None);
    }

    #[test]
    fn a_name_that_only_begins_alike_is_not_within() {
        assert!(is_within(Path::new("/a/b"), Path::new("/a")));
        assert!(is_within(Path::new("/a"), Path::new("/a")));
        assert!(is_within(Path::new("/a"), Path::new("/")));
        assert!(!is_within(Path::new("/ab"), Path::new("/a")));
    }
}
