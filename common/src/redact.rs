//! Hides secrets in what is shown or logged: passwords in URIs, and values whose key is declared secret or looks it.
//!
//! Hiding too much is a nuisance, hiding too little a leak: what merely looks like a secret is hidden.

use crate::conf::{HIDDEN, keys};
use std::borrow::Cow;

/// Whether values under this name must not be shown: a key declared secret, or a name that speaks of secrets.
pub fn is_secret_name(name: &str) -> bool {
    if let Some(decl) = keys::find(name) {
        return decl.secret;
    }
    const SIGNS: [&str; 13] = [
        "secret",
        "password",
        "passwd",
        "passphrase",
        "token",
        "accesskey",
        "accountkey",
        "apikey",
        "privatekey",
        "credential",
        "signature",
        "xamzsecurity",
        "authorization",
    ];
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    SIGNS.iter().any(|sign| plain.contains(sign)) || matches!(plain.as_str(), "sig" | "pwd" | "pass")
}

/// A URI without the password in its authority and without secret query parameters. The user name stays.
pub fn uri(uri: &str) -> Cow<'_, str> {
    let Some(scheme) = uri.find("://") else { return Cow::Borrowed(uri) };
    let start = scheme + 3;
    let end = uri[start..].find(['/', '?', '#']).map_or(uri.len(), |at| start + at);
    let mut out = String::from(&uri[..start]);
    match uri[start..end].rsplit_once('@') {
        Some((login, host)) => {
            match login.split_once(':') {
                Some((user, _)) => out.extend([user, ":", HIDDEN]),
                None => out.push_str(login),
            }
            out.extend(["@", host]);
        }
        None => out.push_str(&uri[start..end]),
    }
    let (path, query) = uri[end..].split_once('?').map_or((&uri[end..], None), |(path, query)| (path, Some(query)));
    out.push_str(path);
    if let Some(query) = query {
        for (place, parameter) in query.split('&').enumerate() {
            out.push(if place == 0 { '?' } else { '&' });
            out.push_str(&assignment(parameter));
        }
    }
    Cow::Owned(out)
}

/// Free text such as a command line or a list of options: every `key=value` with a secret key and every URI in it is
/// treated. Words end at blanks and commas.
pub fn text(text: &str) -> String {
    let ends = |c: char| c.is_whitespace() || c == ',';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let end = word_end(rest, ends);
        out.push_str(&assignment(&rest[..end]));
        let next = rest[end..].find(|c| !ends(c)).map_or(rest.len(), |at| end + at);
        out.push_str(&rest[end..next]);
        rest = &rest[next..];
    }
    out
}

/// Where the first word ends: at a separator outside quotes and without a backslash before it.
fn word_end(text: &str, ends: impl Fn(char) -> bool) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => quote = Some(c),
            _ if quote.is_none() && ends(c) => return at,
            _ => {}
        }
    }
    text.len()
}

/// One word: `key=value` (with `-D` or `--` before it) or a URI.
fn assignment(word: &str) -> Cow<'_, str> {
    let Some((key, value)) = word.split_once('=') else { return uri(word) };
    if key.contains("://") {
        return uri(word);
    }
    let name = key.trim_start_matches(['"', '\'', '-']);
    let name = if key.starts_with("-D") || key.trim_start_matches(['"', '\'']).starts_with("-D") {
        name.strip_prefix('D').unwrap_or(name)
    } else {
        name
    };
    if is_secret_name(name) && !value.is_empty() {
        return Cow::Owned(format!("{key}={HIDDEN}"));
    }
    // The value may be an assignment itself, as in `-o key=value`.
    match assignment(value) {
        Cow::Borrowed(_) => Cow::Borrowed(word),
        Cow::Owned(value) => Cow::Owned(format!("{key}={value}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        for name in [
            "s3a.secretKey",
            "aws.accessKeyId",
            "fs.azure.account.key.a.dfs",
            "my.Pass-Word",
            "sig",
            "X-Amz-Security-Token",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in ["alluxio.underfs.s3.region", "design", "bypass", "fs.gcs.credential.path"] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn uris() {
        for (given, expected) in [
            ("http://u:p@h/x?a=1", "http://u:******@h/x?a=1"),
            ("http://u:p@q@h", "http://u:******@h"),
            ("http://u@h/a:b@c", "http://u@h/a:b@c"),
            ("https://h/x?sig=abc&b=2&X-Amz-Signature=z", "https://h/x?sig=******&b=2&X-Amz-Signature=******"),
            ("/plain/path", "/plain/path"),
            ("s3://bucket/a b", "s3://bucket/a b"),
        ] {
            assert_eq!(uri(given), expected);
        }
    }

    #[test]
    fn texts() {
        assert_eq!(
            text("-Ds3a.secretKey=x -Xmx1g --password=\"a b\" ro,aws.accessKeyId=k\\,l,attr_timeout=1 http://u:p@h/"),
            "-Ds3a.secretKey=****** -Xmx1g --password=****** ro,aws.accessKeyId=******,attr_timeout=1 http://u:******@h/"
        );
        assert_eq!(text("endpoint=http://u:p@h '-Dmy.secret=a b'"), "endpoint=http://u:******@h '-Dmy.secret=******");
    }

    proptest! {
        #[test]
        fn a_secret_never_shows(before in "[a-z ,=]{0,10}", secret in "[A-Z]{12,20}", after in "[ ,][a-z ,=]{0,10}") {
            let given = format!("{before} s3a.secretKey={secret}{after}");
            prop_assert!(!text(&given).contains(&secret));
        }

        #[test]
        fn no_text_panics(given in "\\PC{0,60}") {
            let _ = text(&given);
            let _ = uri(&given);
        }
    }
}
