//! The documentation of the configuration, generated from the declarations.

use super::key::{Decl, DefaultValue};
use super::{keys, mount_options};
use std::fmt::Write;

/// docs/CONFIGURATION.md.
pub fn docs() -> String {
    let mut out = String::from(INTRODUCTION);
    out.push_str("\n## Mount options\n\n");
    out.push_str("What `alluxio-fuse mount -o` takes, beside any key below as `key=value`. A comma inside a value is written `\\,`.\n\n");
    out.push_str("| option | meaning |\n|---|---|\n");
    for (option, meaning) in mount_options::table() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| `{}` | {} |", cell(&option), cell(&meaning));
    }
    for (heading, list) in keys::PARTS {
        let _ = writeln!(out, "\n## {heading}\n");
        list.iter().for_each(|decl| describe(decl, &mut out));
    }
    out
}

const INTRODUCTION: &str = "\
# Configuration

This file is generated: `alluxio conf docs > docs/CONFIGURATION.md`. The source is the list of keys in `common/src/conf/keys/`.

Values come from these places, each overriding the ones before:

1. the defaults below;
2. `alluxio-site.properties` (Java properties syntax, UTF-8) in `$ALLUXIO_CONF_DIR`, else `$ALLUXIO_HOME/conf`, else `/etc/alluxio`, if it exists;
3. `-Dkey=value` in the environment variable `ALLUXIO_JAVA_OPTS`;
4. the same in the variable of the process: `ALLUXIO_FUSE_JAVA_OPTS`, `ALLUXIO_WORKER_JAVA_OPTS`, `ALLUXIO_MASTER_JAVA_OPTS` and `ALLUXIO_COORDINATOR_JAVA_OPTS`, `ALLUXIO_USER_JAVA_OPTS` (command line);
5. command-line options, such as `-o key=value` of a mount.

Flags for a Java machine (`-Xmx4g`, `-XX:…`) in those variables are ignored with one line in the log. An unknown key that begins with `alluxio.` is a warning that names the nearest known one.
A value may contain `${other.key}` or `${env.NAME}`; `$${` stands for a plain `${`. Blanks around a value are dropped. `alluxio conf get --source` shows every value and where it was set.

- Sizes: `1024`, `512MB`, `512MiB`, `4Gi`, `1.5g`. Units are binary however they are spelled: 1 MB is 1,048,576 bytes.
- Durations: `250` (milliseconds), `100ms`, `15s`, `1min`, `2h`, `7d`.
- Ratios: `0.95` or `95%`.
- Lists: separated by commas.
- Booleans: `true` or `false`.
";

fn describe(decl: &Decl, out: &mut String) {
    let mut facts = vec![decl.kind.name()];
    if !decl.unit.is_empty() {
        facts[0] = format!("{} ({})", facts[0], decl.unit);
    }
    facts.push(match decl.default {
        DefaultValue::None | DefaultValue::Text("") => "default: none".to_owned(),
        DefaultValue::Text(text) => format!("default: `{text}`"),
        DefaultValue::Computed(_, sentence) => format!("default: {sentence}"),
    });
    if let Some((least, greatest)) = decl.range {
        facts.push(format!("range: {} to {}", decl.kind.render(least), decl.kind.render(greatest)));
    }
    if !decl.aliases.is_empty() {
        let aliases: Vec<String> = decl.aliases.iter().map(|alias| format!("`{alias}`")).collect();
        facts.push(format!("also: {}", aliases.join(", ")));
    }
    facts.push(format!("scope: {}", decl.scope.name()));
    if decl.secret {
        facts.push("secret, never shown".to_owned());
    }
    if decl.reserved {
        facts.push("accepted, without effect in this version".to_owned());
    }
    let doc: Vec<&str> = decl.doc.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let _ = writeln!(out, "- **`{}`** ({})  \n  {}", decl.name, facts.join("; "), doc.join(" "));
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
#[test]
fn temporary_print() {
    std::fs::write("/tmp/object-conf.md", docs()).unwrap();
}
