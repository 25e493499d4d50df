//! The quick way through a page of a listing: one pass, without a deserializer.
//!
//! Invariant: it reads a document exactly as the thorough way does, or not at all: whatever it does not expect (comments,
//! CDATA, prefixed names, a missing end) makes it give up, and the thorough way has the say.

use super::{Object, Page, Prefix};
use quick_xml::escape::unescape;
use std::borrow::Cow;

enum Tag<'a> {
    Open(&'a str),
    /// An element with nothing but text in it.
    Leaf(&'a str, &'a str),
    Close(&'a str),
}

struct Scan<'a> {
    text: &'a str,
    at: usize,
}

/// The page, keys as they are in the document; none when the document is not of the usual form.
pub(super) fn page(text: &str) -> Option<Page> {
    // Ends of lines are made one character by a thorough reader.
    if text.contains('\r') {
        return None;
    }
    let mut scan = Scan { text, at: 0 };
    match scan.tag()? {
        Tag::Open("ListBucketResult") => {}
        _ => return None,
    }
    let mut page = Page::default();
    loop {
        match scan.tag()? {
            Tag::Leaf("IsTruncated", text) => page.truncated = truth(text)?,
            Tag::Leaf("NextContinuationToken", text) => page.next = Some(plain(text)?.into_owned()),
            Tag::Leaf("EncodingType", text) => page.encoding = Some(plain(text)?.into_owned()),
            Tag::Leaf("Contents" | "CommonPrefixes", _) => return None,
            Tag::Leaf(..) => {}
            Tag::Open("Contents") => page.objects.push(scan.object()?),
            Tag::Open("CommonPrefixes") => page.prefixes.push(scan.prefix()?),
            Tag::Open(name) => scan.skip(name)?,
            Tag::Close("ListBucketResult") => break,
            Tag::Close(_) => return None,
        }
    }
    scan.text[scan.at..].trim().is_empty().then_some(page)
}

fn truth(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn plain(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('&') { unescape(text).ok() } else { Some(Cow::Borrowed(text)) }
}

impl<'a> Scan<'a> {
    fn object(&mut self) -> Option<Object> {
        let (mut key, mut modified, mut etag, mut size) = (None, String::new(), String::new(), 0);
        loop {
            match self.tag()? {
                Tag::Leaf("Key", _) if key.is_some() => return None,
                Tag::Leaf("Key", text) => key = Some(plain(text)?.into_owned()),
                Tag::Leaf("LastModified", text) => modified = plain(text)?.into_owned(),
                Tag::Leaf("ETag", text) => etag = plain(text)?.into_owned(),
                Tag::Leaf("Size", text) => size = text.parse().ok()?,
                Tag::Leaf(..) => {}
                Tag::Close("Contents") => return Some(Object { key: key?, modified, etag, size }),
                Tag::Open(name) => self.skip(name)?,
                Tag::Close(_) => return None,
            }
        }
    }

    fn prefix(&mut self) -> Option<Prefix> {
        let mut prefix = None;
        loop {
            match self.tag()? {
                Tag::Leaf("Prefix", text) => prefix = Some(plain(text)?.into_owned()),
                Tag::Leaf(..) => {}
                Tag::Close("CommonPrefixes") => return Some(Prefix { prefix: prefix? }),
                Tag::Open(_) | Tag::Close(_) => return None,
            }
        }
    }

    /// Goes on behind the end of an element that was opened; what is in it does not matter.
    fn skip(&mut self, name: &str) -> Option<()> {
        let mut open = vec![name];
        while let Some(inner) = open.last() {
            match self.tag()? {
                Tag::Open(name) => open.push(name),
                Tag::Close(name) if name == *inner => drop(open.pop()),
                Tag::Close(_) => return None,
                Tag::Leaf(..) => {}
            }
        }
        Some(())
    }

    fn tag(&mut self) -> Option<Tag<'a>> {
        let text = self.text;
        loop {
            let rest = &text[self.at..];
            let start = rest.find('<')?;
            if !rest[..start].trim().is_empty() {
                return None;
            }
            let begin = self.at + start + 1;
            let end = begin + text[begin..].find('>')?;
            let inside = &text[begin..end];
            self.at = end + 1;
            if inside.starts_with('?') {
                continue;
            }
            if let Some(name) = inside.strip_prefix('/') {
                return Some(Tag::Close(name));
            }
            let (inside, empty) = inside.strip_suffix('/').map_or((inside, false), |inside| (inside, true));
            let name = match inside.split_once([' ', '\n', '\t']) {
                // A quoted `>` would end the tag too early.
                Some((name, attributes)) if attributes.matches('"').count() % 2 == 0 && !attributes.contains('\'') => {
                    name
                }
                Some(_) => return None,
                None => inside,
            };
            if name.is_empty() || name.contains(['!', ':']) {
                return None;
            }
            if empty {
                return Some(Tag::Leaf(name, ""));
            }
            let after = &text[self.at..];
            let next = after.find('<')?;
            let closes = after[next + 1..].strip_prefix('/').and_then(|rest| rest.strip_prefix(name));
            if closes.is_some_and(|rest| rest.starts_with('>')) {
                let at = self.at;
                self.at += next + name.len() + 3;
                return Some(Tag::Leaf(name, &text[at..at + next]));
            }
            return Some(Tag::Open(name));
        }
    }
}
