//! The `-Dkey=value` strings of `ALLUXIO_JAVA_OPTS` and its relatives.
//!
//! Words are separated by blanks; single or double quotes keep blanks together, anywhere in a word; a backslash before a
//! quote, a backslash or a blank makes it plain. What the Java machine alone understood (`-Xmx4g`, `-XX:+UseG1GC`,
//! `-javaagent:…`) is reported as ignored rather than refused, so that existing environments keep working.

/// What such a string says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JavaOpts {
    /// The assignments, in order.
    pub settings: Vec<(String, String)>,
    /// The flags for a Java machine, which mean nothing here.
    pub ignored: Vec<String>,
}

/// Reads such a string.
///
/// # Errors
/// A half sentence: an open quote, or a word that is neither `-Dkey=value` nor a flag.
pub fn parse(text: &str) -> Result<JavaOpts, String> {
    let mut opts = JavaOpts::default();
    for word in words(text)? {
        if let Some(setting) = word.strip_prefix("-D") {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            if key.is_empty() {
                return Err(format!("has '{word}' without a key; write -Dkey=value"));
            }
            opts.settings.push((key.to_owned(), value.to_owned()));
        } else if word.len() > 1 && word.starts_with('-') {
            opts.ignored.push(word);
        } else {
            return Err(format!("has the word '{word}'; write -Dkey=value and quote values with blanks"));
        }
    }
    Ok(opts)
}

fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let plain = chars.next_if(|next| matches!(next, '"' | '\'' | '\\') || next.is_whitespace());
                word.get_or_insert_default().push(plain.unwrap_or('\\'));
            }
            _ if quote == Some(c) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            _ if c.is_whitespace() && quote.is_none() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    match quote {
        Some(open) => Err(format!("has an opening {open} without a closing one")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn settings_and_flags_are_told_apart() {
        let opts = parse("-Da=b  -Xmx4g\t-Dc=\"d e\" '-Df=g h' -XX:+UseG1GC -Di= -Dj=k=l -Dm=n\\ o -Dp=C:\\x").unwrap();
        let settings: Vec<_> = opts.settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            settings,
            [("a", "b"), ("c", "d e"), ("f", "g h"), ("i", ""), ("j", "k=l"), ("m", "n o"), ("p", "C:\\x")]
        );
        assert_eq!(opts.ignored, ["-Xmx4g", "-XX:+UseG1GC"]);
        assert_eq!(parse("  ").unwrap(), JavaOpts::default());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parse("-Da='b").unwrap_err().contains("opening '"));
        assert!(parse("-Da=b c").unwrap_err().contains("'c'"));
        assert!(parse("-D=b").unwrap_err().contains("without a key"));
        assert!(parse("-").is_err());
    }

    proptest! {
        #[test]
        fn quoted_values_read_back(value in "[a-z \\t'=$\\-]{0,20}") {
            let opts = parse(&format!("-Dk=\"{value}\" -Dx=y")).unwrap();
            prop_assert_eq!(opts.settings, vec![("k".to_owned(), value), ("x".to_owned(), "y".to_owned())]);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
