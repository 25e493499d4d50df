//! Replaces `${name}` in values: by another key's value, by `${env.NAME}` from the environment; `$${` is a plain `${`.

/// Gives the uninterpolated text of a name, or `None` if the name means nothing.
pub(crate) trait Names {
    /// The text that `name` stands for, which may itself refer to other names.
    fn text(&self, name: &str) -> Option<String>;
    /// The value of an environment variable, which is taken as it is.
    fn variable(&self, name: &str) -> Option<String>;
}

/// Values longer than this are refused: a few keys that each name another twice would otherwise grow without bound.
const MAX_VALUE: usize = 1 << 20;

/// Interpolates the value of `name`.
///
/// # Errors
/// A half sentence: an unknown name, an open `${`, a cycle (written out), or a value of more than 1 MiB.
pub(crate) fn interpolate(name: &str, text: &str, names: &impl Names) -> Result<String, String> {
    expand(text, names, &mut vec![name.to_owned()])
}

fn expand(text: &str, names: &impl Names, path: &mut Vec<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if at > 0 && rest.as_bytes()[at - 1] == b'$' {
            out.push_str(&rest[..at - 1]);
            out.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let Some(end) = rest[at..].find('}') else {
            return Err("has ${ without a closing }; close it, or write $${ for a plain ${".into());
        };
        let name = rest[at + 2..at + end].trim();
        rest = &rest[at + end + 1..];
        out.push_str(&resolve(name, names, path)?);
        if out.len() > MAX_VALUE {
            return Err("grows beyond 1 MiB when its ${...} are replaced; refer to fewer keys".into());
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn resolve(name: &str, names: &impl Names, path: &mut Vec<String>) -> Result<String, String> {
    let variable = name.strip_prefix("env.").or_else(|| name.strip_prefix("ENV."));
    if let Some(variable) = variable {
        return names.variable(variable).ok_or_else(|| {
            format!("refers to the environment variable {variable}, which is not set; set it or remove the reference")
        });
    }
    if path.iter().any(|seen| seen == name) {
        path.push(name.to_owned());
        return Err(format!("refers to itself: {}; break the cycle", path.join(" -> ")));
    }
    let Some(text) = names.text(name) else {
        return Err(format!(
            "refers to ${{{name}}}, which is no known or set key; correct it, or write $${{ for a plain ${{"
        ));
    };
    path.push(name.to_owned());
    let value = expand(text.trim(), names, path)?;
    path.pop();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    struct Map(HashMap<&'static str, &'static str>);

    impl Names for Map {
        fn text(&self, name: &str) -> Option<String> {
            self.0.get(name).map(|text| (*text).to_owned())
        }

        fn variable(&self, name: &str) -> Option<String> {
            (name == "HOME").then(|| "/root ${a}".to_owned())
        }
    }

    fn run(text: &str) -> Result<String, String> {
        let map = Map(HashMap::from([
            ("a", "1"),
            ("b", "${a}${a}"),
            ("c", "${d}"),
            ("d", "x${c}"),
            ("self", "${self}"),
            ("l1", "${l0}${l0}${l0}${l0}${l0}${l0}${l0}${l0}"),
            ("l0", "0123456789012345678901234567890123456789012345678901234567890123"),
            ("l2", "${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}${l1}"),
            ("l3", "${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}${l2}"),
            ("l4", "${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}${l3}"),
        ]));
        interpolate("key", text, &map)
    }

    #[test]
    fn references_are_replaced() {
        assert_eq!(run("x${b}y${ a }").unwrap(), "x11y1");
        assert_eq!(run("$${a} $a } {").unwrap(), "${a} $a } {");
        assert_eq!(run("${env.HOME}").unwrap(), "/root ${a}");
    }

    #[test]
    fn cycles_unknown_names_and_open_braces_are_errors() {
        assert!(run("${c}").unwrap_err().contains("key -> c -> d -> c"));
        assert!(run("${self}").unwrap_err().contains("self -> self"));
        assert!(run("${key}").unwrap_err().contains("key -> key"));
        assert!(run("${nothing}").unwrap_err().contains("${nothing}"));
        assert!(run("${ENV.NOTHING}").unwrap_err().contains("NOTHING"));
        assert!(run("${a").unwrap_err().contains("closing"));
        assert!(run("${l4}").unwrap_err().contains("1 MiB"));
    }
}
