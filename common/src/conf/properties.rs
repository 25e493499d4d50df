//! The syntax of Java properties files, as `alluxio-site.properties` uses it.
//!
//! Comments begin with `#` or `!`; a line that ends in an odd number of backslashes goes on in the next one, whose leading
//! blanks are dropped; a key ends at the first `=`, `:` or blank that no backslash precedes; `\t \n \r \f \uXXXX` are
//! escapes and any other escaped character stands for itself. The text is UTF-8.

use super::error::ConfError;
use std::io::Read;
use std::path::Path;

/// A properties file larger than this is refused: it cannot be meant.
const MAX_FILE: u64 = 4 << 20;

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// The key, unescaped.
    pub key: String,
    /// The value, unescaped; trailing blanks are kept.
    pub value: String,
    /// The line it begins on, from 1.
    pub line: usize,
}

/// Reads a file.
///
/// # Errors
/// The file cannot be read, is no UTF-8, is larger than 4 MiB, or has a malformed `\u` escape.
pub fn read(path: &Path) -> Result<Vec<Property>, ConfError> {
    let unreadable = |reason: String| ConfError::File { path: path.to_owned(), reason };
    let file = std::fs::File::open(path).map_err(|error| unreadable(format!("cannot be opened: {error}")))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable("is larger than 4 MiB; it is no properties file".into()));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        unreadable(format!("line {line} is not UTF-8; save the file as UTF-8"))
    })?;
    parse(&text).map_err(|(line, reason)| unreadable(format!("line {line} {reason}")))
}

/// Reads the text of a properties file.
///
/// # Errors
/// The line and what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Property>, (usize, String)> {
    let mut properties = Vec::new();
    let mut lines = Lines { text, number: 0 };
    while let Some((number, line)) = lines.logical() {
        let (key, value) = split(&line);
        let malformed = |()| (number, "has a malformed \\u escape; write \\u and four hexadecimal digits".to_owned());
        properties.push(Property {
            key: unescape(key).map_err(malformed)?,
            value: unescape(value).map_err(malformed)?,
            line: number,
        });
    }
    Ok(properties)
}

/// Writes one assignment so that [`parse`] reads the same key and value back.
pub fn format(key: &str, value: &str) -> String {
    format!("{}={}", escape(key, true), escape(value, false))
}

/// Natural lines (ended by `\n`, `\r` or `\r\n`) joined to logical ones.
struct Lines<'a> {
    text: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn natural(&mut self) -> Option<&'a str> {
        if self.text.is_empty() {
            return None;
        }
        self.number += 1;
        let end = self.text.find(['\n', '\r']).unwrap_or(self.text.len());
        let (line, rest) = self.text.split_at(end);
        self.text = rest.strip_prefix("\r\n").or_else(|| rest.get(1..)).unwrap_or("");
        Some(line)
    }

    fn logical(&mut self) -> Option<(usize, String)> {
        loop {
            let first = self.natural()?.trim_start_matches(is_blank);
            let number = self.number;
            if first.is_empty() || first.starts_with(['#', '!']) {
                continue;
            }
            let mut line = first.to_owned();
            while line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 {
                line.pop();
                match self.natural() {
                    Some(next) => line.push_str(next.trim_start_matches(is_blank)),
                    None => break,
                }
            }
            return Some((number, line));
        }
    }
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0c')
}

/// Splits a logical line at its separator; both parts are still escaped.
fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line
        .find(|c: char| {
            let ends = !escaped && (is_blank(c) || c == '=' || c == ':');
            escaped = !escaped && c == '\\';
            ends
        })
        .unwrap_or(line.len());
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start_matches(is_blank);
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, rest.trim_start_matches(is_blank))
}

fn unescape(text: &str) -> Result<String, ()> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    let mut units: Vec<u16> = Vec::new();
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let plain = match c {
            '\\' => match chars.next() {
                Some('u') => {
                    let digits: String = chars.by_ref().take(4).collect();
                    if digits.len() != 4 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                        return Err(());
                    }
                    // Two escapes can make one character, so they are gathered before they are decoded.
                    units.push(u16::from_str_radix(&digits, 16).map_err(|_| ())?);
                    continue;
                }
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\x0c',
                Some(other) => other,
                None => break,
            },
            other => other,
        };
        flush(&mut units, &mut out)?;
        out.push(plain);
    }
    flush(&mut units, &mut out)?;
    Ok(out)
}

fn flush(units: &mut Vec<u16>, out: &mut String) -> Result<(), ()> {
    if !units.is_empty() {
        out.push_str(&String::from_utf16(units).map_err(|_| ())?);
        units.clear();
    }
    Ok(())
}

fn escape(text: &str, key: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for (place, c) in text.chars().enumerate() {
        match c {
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\x0c' => out.push_str("\\f"),
            '\\' => out.push_str("\\\\"),
            ' ' if key || place == 0 => out.push_str("\\ "),
            '=' | ':' | '#' | '!' if key || place == 0 => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap().into_iter().map(|property| (property.key, property.value)).collect()
    }

    fn one(text: &str) -> (String, String) {
        let mut all = pairs(text);
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn separators_comments_and_continuations() {
        for text in ["a=b", "a:b", "a b", " a = b", "a\t:\tb", "a \\\n   b", "a=\\\r\n  b", "# no\n! no\n\na=b\n"] {
            assert_eq!(one(text), ("a".into(), "b".into()), "{text:?}");
        }
        assert_eq!(one("a"), ("a".into(), "".into()));
        assert_eq!(one("a==b"), ("a".into(), "=b".into()));
        assert_eq!(one("a\\=b=c"), ("a=b".into(), "c".into()));
        assert_eq!(one("a=b\\\\"), ("a".into(), "b\\".into()));
        assert_eq!(one("a=b\\"), ("a".into(), "b".into()));
        assert_eq!(one("a=#b"), ("a".into(), "#b".into()));
        assert_eq!(one("a=x\\\n#y"), ("a".into(), "x#y".into()));
        assert_eq!(one("a=\\u00e9\\ud83d\\ude00\\q"), ("a".into(), "é😀q".into()));
    }

    #[test]
    fn lines_are_counted_where_an_assignment_begins() {
        let all = parse("# c\r\na=1\\\n2\n\nb=3\rc=4").unwrap();
        let lines: Vec<_> = all.iter().map(|property| (property.key.as_str(), property.line)).collect();
        assert_eq!(lines, [("a", 2), ("b", 5), ("c", 6)]);
    }

    #[test]
    fn malformed_escapes_name_their_line() {
        for text in ["a=1\nb=\\u12", "a=1\nb=\\uzzzz", "a=1\nb=\\ud83d", "a=1\nb=\\u+123"] {
            assert_eq!(parse(text).unwrap_err().0, 2, "{text}");
        }
    }

    #[test]
    fn unreadable_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        assert!(read(&missing).unwrap_err().to_string().contains("none"));
        let latin = dir.path().join("latin");
        std::fs::write(&latin, b"a=1\nb=\xe9\n").unwrap();
        assert!(read(&latin).unwrap_err().to_string().contains("line 2 is not UTF-8"));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(entries in prop::collection::vec(("[ -~é\\t\\n\\r\\x0c\\\\=:#!😀]{1,12}", "[ -~é\\t\\n\\r\\x0c\\\\=:#!😀]{0,12}"), 0..8)) {
            let text: Vec<String> = entries.iter().map(|(key, value)| format(key, value)).collect();
            prop_assert_eq!(pairs(&text.join("\n")), entries);
        }

        #[test]
        fn no_text_panics(text in "[ a-c\\\\=:#!u0-9\\n\\r\\t]{0,60}") {
            let _ = parse(&text);
        }
    }
}
