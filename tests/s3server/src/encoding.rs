//! Percent-encoding as S3 uses it in signatures, listings and headers.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986.
const STRICT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// The same, with '/' left alone: paths and keys.
const PATH: &AsciiSet = &STRICT.remove(b'/');

/// Encodes a query name or value.
pub(crate) fn encode(text: &str) -> String {
    utf8_percent_encode(text, STRICT).to_string()
}

/// Encodes a key, '/' stays.
pub(crate) fn encode_path(text: &str) -> String {
    utf8_percent_encode(text, PATH).to_string()
}

/// Decodes a path or header value; `None` unless the result is UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

/// Decodes a query string into pairs in their order; '+' is a space. `None` unless all of it is UTF-8.
pub(crate) fn decode_query(query: &str) -> Option<Vec<(String, String)>> {
    let part = |text: &str| if text.contains('+') { decode(&text.replace('+', " ")) } else { decode(text) };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((part(name)?, part(value)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_and_decodes() {
        assert_eq!(encode_path("a b/ü+~"), "a%20b/%C3%BC%2B~");
        assert_eq!(encode("a/b"), "a%2Fb");
        assert_eq!(decode("a%2Fb+c").as_deref(), Some("a/b+c"));
        assert_eq!(decode("%ff"), None);
        let pairs = decode_query("list-type=2&prefix=a+b%2B&delete&=").expect("UTF-8");
        let expected = [("list-type", "2"), ("prefix", "a b+"), ("delete", ""), ("", "")];
        assert_eq!(pairs, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
