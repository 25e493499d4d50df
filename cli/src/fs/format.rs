//! How attributes are shown.

use common::{Attr, FileKind, Timestamp};

/// The kind and permissions as `ls -l` writes them, such as `-rwxr-x---`.
pub fn mode(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let special = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    let mut out = String::from(kind);
    for (place, (bit, with, without)) in special.into_iter().enumerate() {
        let bits = attr.mode >> (6 - 3 * place) & 7;
        out.push(if bits & 4 != 0 { 'r' } else { '-' });
        out.push(if bits & 2 != 0 { 'w' } else { '-' });
        out.push(match (attr.mode & bit != 0, bits & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}

/// The word for a kind: DIR for directories, FILE for everything else.
pub fn kind(attr: &Attr) -> &'static str {
    if attr.is_dir() { "DIR" } else { "FILE" }
}

/// The local time as Alluxio writes it: `02-25-2024 21:22:15:742`.
pub fn time(time: Timestamp) -> String {
    let Some(tm) = local(time) else { return format!("@{}", time.sec) };
    let (month, day, year) = (tm.tm_mon + 1, tm.tm_mday, i64::from(tm.tm_year) + 1900);
    let (hour, minute, second, milli) = (tm.tm_hour, tm.tm_min, tm.tm_sec, time.nsec / 1_000_000);
    format!("{month:02}-{day:02}-{year:04} {hour:02}:{minute:02}:{second:02}:{milli:03}")
}

/// The calendar's view of a time in the local zone; `None` beyond what the calendar can express.
fn local(time: Timestamp) -> Option<libc::tm> {
    let seconds = libc::time_t::from(time.sec);
    // SAFETY: all-zero bytes are a valid `tm` (integers and a pointer that may be null).
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right type; localtime_r writes only to `tm`.
    let done = unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
    (!done.is_null()).then_some(tm)
}

/// A name as text on one line: control characters and what is not UTF-8 appear as `\xNN`.
pub fn name(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
    }
    out
}

/// A number of bytes for people: `75.72KB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::Version;

    fn attr(kind: FileKind, mode: u32) -> Attr {
        Attr { mode, ..Attr::of_object(kind, 0, Timestamp::default(), Version::none()) }
    }

    #[test]
    fn modes() {
        assert_eq!(mode(&attr(FileKind::File, 0o700)), "-rwx------");
        assert_eq!(mode(&attr(FileKind::Directory, 0o1755)), "drwxr-xr-t");
        assert_eq!(mode(&attr(FileKind::Symlink, 0o6644)), "lrwSr-Sr--");
        assert_eq!(mode(&attr(FileKind::Fifo, 0o000)), "p---------");
    }

    #[test]
    fn names_stay_on_one_line() {
        assert_eq!(name("ä b".as_bytes()), "ä b");
        assert_eq!(name(b"a\nb\xffc"), "a\\x0ab\\xffc");
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!([human(0), human(1023), human(77537), human(u64::MAX)], ["0B", "1023B", "75.72KB", "16.00EB"]);
    }

    #[test]
    fn times_have_the_form_of_alluxio() {
        let text = time(Timestamp { sec: 1_708_896_135, nsec: 742_999_999 });
        let digits: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(digits, "00-00-0000 00:00:00:000");
        assert!(text.ends_with(":15:742"), "{text}");
        assert_eq!(time(Timestamp { sec: i64::MAX, nsec: 0 }), format!("@{}", i64::MAX));
    }
}
