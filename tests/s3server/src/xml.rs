//! Writing and reading the little XML that S3 speaks.
//!
//! Reading is a parser of its own since keys may begin and end with spaces, which general parsers like to trim. It knows elements, text, CDATA,
//! character and predefined entities; it skips attributes, comments, declarations, and takes names without their prefix.

use std::fmt::Write as _;

/// Builds a document.
pub(crate) struct Writer(String);

impl Writer {
    /// A document with its declaration.
    pub(crate) fn document() -> Self {
        Writer("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned())
    }

    /// Opens an element.
    pub(crate) fn open(&mut self, name: &str) {
        self.0.push('<');
        self.0.push_str(name);
        self.0.push('>');
    }

    /// Opens the root element of an answer, with the name space of S3.
    pub(crate) fn open_root(&mut self, name: &str) {
        let _ = write!(self.0, "<{name} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    }

    /// Closes an element.
    pub(crate) fn close(&mut self, name: &str) {
        self.0.push_str("</");
        self.0.push_str(name);
        self.0.push('>');
    }

    /// An element with text.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.open(name);
        for character in value.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                control if u32::from(control) < 0x20 => {
                    let _ = write!(self.0, "&#x{:X};", u32::from(control));
                }
                other => self.0.push(other),
            }
        }
        self.close(name);
    }

    /// An element with a number.
    pub(crate) fn number(&mut self, name: &str, value: u64) {
        let _ = write!(self.0, "<{name}>{value}</{name}>");
    }

    /// The text of the document.
    pub(crate) fn finish(self) -> String {
        self.0
    }
}

/// An element that was read.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Element {
    /// Name without prefix.
    pub(crate) name: String,
    /// The text directly inside, entities resolved.
    pub(crate) text: String,
    /// The elements directly inside.
    pub(crate) children: Vec<Element>,
}

impl Element {
    /// The text of the first child with this name.
    pub(crate) fn child_text(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|child| child.name == name).map(|child| child.text.as_str())
    }
}

/// Deeper nesting than this is refused; S3 needs three.
const DEPTH: usize = 16;

/// Reads a document; `None` when it is not well formed.
pub(crate) fn parse(text: &str) -> Option<Element> {
    let mut open: Vec<Element> = vec![Element::default()];
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        unescape(&rest[..start], &mut open.last_mut()?.text)?;
        rest = &rest[start..];
        if let Some(after) = rest.strip_prefix("<!--") {
            rest = &after[after.find("-->")? + 3..];
        } else if let Some(after) = rest.strip_prefix("<![CDATA[") {
            let end = after.find("]]>")?;
            open.last_mut()?.text.push_str(&after[..end]);
            rest = &after[end + 3..];
        } else {
            let end = rest.find('>')?;
            let tag = &rest[1..end];
            rest = &rest[end + 1..];
            if tag.starts_with('?') || tag.starts_with('!') {
                continue;
            } else if let Some(name) = tag.strip_prefix('/') {
                let done = open.pop()?;
                if open.is_empty() || done.name != local(name.trim_end()) {
                    return None;
                }
                open.last_mut()?.children.push(done);
            } else {
                let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
                let name = local(tag.split_ascii_whitespace().next()?);
                let element = Element { name: name.to_owned(), ..Element::default() };
                if empty {
                    open.last_mut()?.children.push(element);
                } else if open.len() < DEPTH {
                    open.push(element);
                } else {
                    return None;
                }
            }
        }
    }
    let outside = open.pop()?;
    let [root] = <[Element; 1]>::try_from(outside.children).ok()?;
    (open.is_empty() && rest.trim().is_empty()).then_some(root)
}

fn local(name: &str) -> &str {
    name.rsplit(':').next().unwrap_or(name)
}

fn unescape(text: &str, out: &mut String) -> Option<()> {
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let end = at + rest[at..].find(';')?;
        let entity = &rest[at + 1..end];
        out.push(match entity {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let digits = entity.strip_prefix('#')?;
                let number = match digits.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => digits.parse().ok()?,
                };
                char::from_u32(number)?
            }
        });
        rest = &rest[end + 1..];
    }
    out.push_str(rest);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let key = " a&b<c>\"d\"\r\n\u{1}ü ";
        let mut xml = Writer::document();
        xml.open_root("Delete");
        xml.open("Object");
        xml.text("Key", key);
        xml.close("Object");
        xml.number("Quiet", 1);
        xml.close("Delete");
        let root = parse(&xml.finish()).expect("well formed");
        assert_eq!(root.name, "Delete");
        assert_eq!(root.children[0].child_text("Key"), Some(key));
        assert_eq!(root.child_text("Quiet"), Some("1"));
    }

    #[test]
    fn reads_prefixes_comments_cdata_and_empty_elements() {
        let root = parse("<?xml version='1.0'?><!-- x --><s:A q=\"1\"><B/><C ><![CDATA[<&]]></C></s:A>\n")
            .expect("well formed");
        assert_eq!(root.name, "A");
        assert_eq!(root.child_text("B"), Some(""));
        assert_eq!(root.child_text("C"), Some("<&"));
    }

    #[test]
    fn refuses_what_is_not_well_formed() {
        let deep = "<a>".repeat(100);
        for wrong in [
            "",
            "text",
            "<a>",
            "<a></b>",
            "</a>",
            "<a>&nope;</a>",
            "<a/><b/>",
            "<a>&#xD800;</a>",
            deep.as_str(),
            "<",
            "<>",
            "<a></a>x",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
