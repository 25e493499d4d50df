//! The parts of docs/SEMANTICS.md that can be checked.

/// What the document says that can be checked.
#[derive(Debug, Default)]
pub struct Document {
    /// The shell script that makes the directory of the examples.
    pub directory: String,
    /// Keys and texts of the bucket of the examples.
    pub bucket: Vec<(String, String)>,
    /// The examples.
    pub examples: Vec<Example>,
    /// The tables that have a name, each with the first two cells of its rows.
    tables: Vec<(String, Vec<(String, String)>)>,
}

/// A console block.
#[derive(Debug)]
pub struct Example {
    /// Its name.
    pub name: String,
    /// What is mounted: `directory` or `bucket`.
    pub source: String,
    /// With which options.
    pub options: Vec<String>,
    /// What is done.
    pub steps: Vec<Step>,
    /// Where it begins, counted from 1.
    pub line: usize,
}

/// One thing that is done.
#[derive(Debug)]
pub enum Step {
    /// A command, and the lines that it prints.
    Run {
        /// The command.
        command: String,
        /// The lines.
        expected: Vec<String>,
    },
    /// Something that the test does.
    Act(String),
}

impl Document {
    /// Takes a document apart. Fails when a block cannot be checked, saying which.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut document = Document::default();
        let mut marker: Option<(&str, &str)> = None;
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let number = number + 1;
            if let Some(inner) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
                if let Some((sort, _)) = marker {
                    return Err(format!("line {number}: nothing stands below the {sort} before"));
                }
                marker = inner.split_once(": ");
                continue;
            }
            if let Some(language) = line.strip_prefix("```") {
                let mut block = Vec::new();
                loop {
                    match lines.next() {
                        Some((_, "```")) => break,
                        Some((_, line)) => block.push(line),
                        None => return Err(format!("line {number}: the block does not end")),
                    }
                }
                let place = |why: String| format!("line {number}: {why}");
                document.block(marker.take(), language, &block, number).map_err(place)?;
            } else if line.starts_with('|') && matches!(marker, Some(("table", _))) {
                let mut rows: Vec<_> = cells(line).into_iter().collect();
                while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with('|')) {
                    rows.extend(cells(line));
                }
                let name = marker.take().map_or("", |(_, name)| name);
                document.tables.push((name.to_owned(), rows));
            } else if let (Some((sort, _)), false) = (marker, line.is_empty()) {
                return Err(format!("line {number}: a block must follow the {sort}"));
            }
        }
        Ok(document)
    }

    fn block(
        &mut self,
        marker: Option<(&str, &str)>,
        language: &str,
        block: &[&str],
        line: usize,
    ) -> Result<(), String> {
        match (marker, language) {
            (Some(("source", "directory")), "sh") => self.directory = block.join("\n"),
            (Some(("source", "bucket")), "text") => {
                for line in block {
                    let (key, text) = line.split_once(" =").ok_or("a line is not of the form `key = text`")?;
                    let text = text.strip_prefix(' ').map_or(String::new(), |text| format!("{text}\n"));
                    self.bucket.push((key.to_owned(), text));
                }
            }
            (Some(("test", head)), "console") => self.examples.push(example(head, block, line)?),
            (None, "console") => return Err("an example without a marker is never run".into()),
            (Some((sort, name)), _) => return Err(format!("no {language} block can be the {sort} {name}")),
            (None, _) => {}
        }
        Ok(())
    }

    /// The first two cells of the rows of a table that are code, and nothing but that.
    pub fn table(&self, name: &str) -> Vec<(String, String)> {
        let found = self.tables.iter().find(|(known, _)| known == name);
        found.unwrap_or_else(|| panic!("there is no table {name} in the document")).1.clone()
    }
}

fn example(head: &str, block: &[&str], line: usize) -> Result<Example, String> {
    let parts = head.strip_suffix(')').and_then(|head| head.split_once(" ("));
    let (name, given) = parts.ok_or("a marker says what is mounted: (directory) or (bucket; option; …)")?;
    let mut given = given.split("; ").map(str::to_owned);
    let source = given.next().filter(|source| source == "directory" || source == "bucket");
    let mut steps = Vec::new();
    for line in block {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step::Run { command: command.to_owned(), expected: Vec::new() });
        } else if let Some(action) = line.strip_prefix("# ") {
            steps.push(Step::Act(action.to_owned()));
        } else if let Some(Step::Run { expected, .. }) = steps.last_mut() {
            expected.push((*line).to_owned());
        } else {
            return Err(format!("{line:?} is printed by no command"));
        }
    }
    if !steps.iter().any(|step| matches!(step, Step::Run { .. })) {
        return Err("an example without a command".into());
    }
    Ok(Example {
        name: name.to_owned(),
        source: source.ok_or("an example needs a directory or a bucket")?,
        options: given.collect(),
        steps,
        line,
    })
}

/// The first two cells of a row when both are code.
fn cells(row: &str) -> Option<(String, String)> {
    let mut cells = row.strip_prefix('|')?.split('|').map(|cell| {
        let code = cell.trim().strip_prefix('`')?.strip_suffix('`')?;
        (!code.contains('`')).then(|| code.to_owned())
    });
    Some((cells.next()??, cells.next()??))
}

/// Whether what was printed is what was expected, where `...` stands for any text within a line.
pub fn alike(expected: &[String], printed: &[String]) -> bool {
    expected.len() == printed.len() && expected.iter().zip(printed).all(|(expected, printed)| fits(expected, printed))
}

fn fits(pattern: &str, line: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once("...") else { return pattern == line };
    let Some(mut line) = line.strip_prefix(begin) else { return false };
    let mut parts: Vec<&str> = rest.split("...").collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = line.find(part) else { return false };
        line = &line[at + part.len()..];
    }
    line.ends_with(end)
}

#[test]
fn dots_stand_for_any_text_and_nothing_else_does() {
    for (pattern, line, fit) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a ... c", "a b c", true),
        ("a ... c", "a b d", false),
        ("...", "", true),
        ("rm: ...: Read-only ...", "rm: cannot: Read-only file system", true),
        ("rm: ...: Read-only", "rm: Read-only", false),
    ] {
        assert_eq!(fits(pattern, line), fit, "{pattern:?} {line:?}");
    }
    assert!(!alike(&["a".into()], &[]));
}

#[test]
fn what_cannot_be_checked_is_a_mistake() {
    for text in [
        "```console\n$ true\n```",
        "<!-- test: x -->\n```console\n$ true\n```",
        "<!-- test: x (tape) -->\n```console\n$ true\n```",
        "<!-- test: x (bucket) -->\n```console\nhello\n```",
        "<!-- test: x (bucket) -->\n```console\n# pause\n```",
        "<!-- test: x (bucket) -->\nprose\n```console\n$ true\n```",
        "<!-- test: x (bucket) -->\n```sh\ntrue\n```",
        "<!-- source: bucket -->\n```text\nfile\n```",
        "```sh\ntrue",
    ] {
        assert!(Document::parse(text).is_err(), "{text}");
    }
    let text = "<!-- test: x (bucket; a=1; b) -->\n```console\n# pause\n$ echo a\na\n```\n";
    let document = Document::parse(text).unwrap();
    let example = &document.examples[0];
    assert_eq!((example.name.as_str(), example.source.as_str(), example.line), ("x", "bucket", 2));
    assert_eq!(example.options, ["a=1", "b"]);
    assert!(matches!(&example.steps[1], Step::Run { command, expected } if command == "echo a" && *expected == ["a"]));
}
