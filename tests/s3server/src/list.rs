//! Listing: one page at the cost of a page, whatever lies under the common prefixes it skips.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderValue, header};

use crate::body::{Body, Response};
use crate::bucket::Index;
use crate::dates::iso;
use crate::encoding::encode_path;
use crate::error::{Code, S3Error};
use crate::request::Target;
use crate::storage::Object;
use crate::xml::Writer;

/// Walks the keys of map and synthetic families in one order.
struct Cursor<'a> {
    index: &'a Index,
    map: Peekable<Range<'a, Arc<str>, Option<Arc<Object>>>>,
    /// For each family the next number and its key, `None` at the end.
    families: Vec<(u64, Option<String>)>,
}

/// The key a cursor stands on.
enum Found<'a> {
    Stored(&'a str, &'a Object),
    Family(usize),
}

impl<'a> Cursor<'a> {
    fn new(index: &'a Index, from: Bound<&str>) -> Self {
        let mut cursor = Cursor { index, map: range(&index.objects, from), families: Vec::new() };
        cursor.seek(from);
        cursor
    }

    fn seek(&mut self, from: Bound<&str>) {
        self.map = range(&self.index.objects, from);
        self.families = self
            .index
            .synthetic
            .iter()
            .map(|family| {
                let number = match from {
                    Bound::Included(key) => family.seek(key, false),
                    Bound::Excluded(key) => family.seek(key, true),
                    Bound::Unbounded => 0,
                };
                (number, (number < family.count()).then(|| family.key(number)))
            })
            .collect();
    }

    /// Moves all families that stand on `key` one further.
    fn advance_families(&mut self, key: &str) {
        for (family, (number, next)) in self.index.synthetic.iter().zip(&mut self.families) {
            if next.as_deref() == Some(key) {
                *number += 1;
                *next = (*number < family.count()).then(|| family.key(*number));
            }
        }
    }

    /// The least key at or behind the position, hidden ones skipped.
    fn peek(&mut self) -> Option<Found<'a>> {
        loop {
            let family = (0..self.families.len())
                .filter(|&at| self.families[at].1.is_some())
                .min_by(|&a, &b| self.families[a].1.cmp(&self.families[b].1));
            let Some(&(stored, entry)) = self.map.peek() else {
                return family.map(Found::Family);
            };
            if let Some(at) = family
                && self.families[at].1.as_deref().is_some_and(|key| key < &**stored)
            {
                return Some(Found::Family(at));
            }
            match entry {
                Some(object) => return Some(Found::Stored(stored, object)),
                None => {
                    self.map.next();
                    self.advance_families(stored);
                }
            }
        }
    }

    fn key<'b>(&'b self, found: &'b Found<'a>) -> &'b str {
        match found {
            Found::Stored(key, _) => key,
            Found::Family(at) => self.families[*at].1.as_deref().unwrap_or_default(),
        }
    }

    /// Steps over what [`Cursor::peek`] found and describes it.
    fn take(&mut self, found: Found<'a>) -> Item {
        match found {
            Found::Stored(key, object) => {
                self.map.next();
                self.advance_families(key);
                Item::Object {
                    key: key.to_owned(),
                    size: object.size(),
                    etag: object.etag().to_owned(),
                    modified: object.modified(),
                }
            }
            Found::Family(at) => {
                let key = self.families[at].1.clone().unwrap_or_default();
                self.advance_families(&key);
                let object = self.index.synthetic[at].object(&key);
                Item::Object {
                    size: object.size,
                    etag: object.description.etag,
                    modified: object.description.modified,
                    key,
                }
            }
        }
    }
}

fn range<'a>(
    objects: &'a BTreeMap<Arc<str>, Option<Arc<Object>>>,
    from: Bound<&str>,
) -> Peekable<Range<'a, Arc<str>, Option<Arc<Object>>>> {
    objects.range::<str, _>((from, Bound::Unbounded)).peekable()
}

/// Whether no object is there.
pub(crate) fn is_empty(index: &Index) -> bool {
    Cursor::new(index, Bound::Unbounded).peek().is_none()
}

/// All keys in their order.
pub(crate) fn keys(index: &Index) -> Vec<String> {
    let mut cursor = Cursor::new(index, Bound::Unbounded);
    let mut keys = Vec::new();
    while let Some(found) = cursor.peek() {
        if let Item::Object { key, .. } = cursor.take(found) {
            keys.push(key);
        }
    }
    keys
}

/// An entry of a page.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Object { key: String, size: u64, etag: String, modified: SystemTime },
    Prefix(String),
}

impl Item {
    /// The key or the common prefix.
    pub(crate) fn name(&self) -> &str {
        match self {
            Item::Object { key, .. } => key,
            Item::Prefix(prefix) => prefix,
        }
    }
}

/// A page.
#[derive(Debug, PartialEq)]
pub(crate) struct Page {
    pub(crate) items: Vec<Item>,
    pub(crate) truncated: bool,
}

/// The least string greater than all that begin with `prefix`; `None` when there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        // The order of UTF-8 is that of the code points; surrogates are not among them.
        let next = if last == '\u{d7ff}' { Some('\u{e000}') } else { char::from_u32(u32::from(last) + 1) };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

/// Lists up to `limit` names behind `after`; a name that is a common prefix skips all keys under it.
pub(crate) fn page(index: &Index, prefix: &str, delimiter: &str, after: Option<&str>, limit: usize) -> Page {
    let mut page = Page { items: Vec::new(), truncated: false };
    if limit == 0 {
        return page;
    }
    let skipped = after.filter(|after| {
        !delimiter.is_empty()
            && after
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.find(delimiter).is_some_and(|at| at + delimiter.len() == rest.len()))
    });
    let behind = skipped.map(successor);
    let from = match (&behind, after) {
        (Some(None), _) => return page,
        (Some(Some(next)), _) => Bound::Included(next.as_str()),
        (None, Some(after)) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let mut cursor = Cursor::new(index, from);
    while let Some(found) = cursor.peek() {
        let key = cursor.key(&found);
        let Some(rest) = key.strip_prefix(prefix) else { break };
        if page.items.len() == limit {
            page.truncated = true;
            break;
        }
        let cut = if delimiter.is_empty() { None } else { rest.find(delimiter) };
        match cut {
            None => {
                let item = cursor.take(found);
                page.items.push(item);
            }
            Some(at) => {
                let common = key[..prefix.len() + at + delimiter.len()].to_owned();
                let next = successor(&common);
                page.items.push(Item::Prefix(common));
                match next {
                    Some(next) => cursor.seek(Bound::Included(&next)),
                    None => break,
                }
            }
        }
    }
    page
}

/// Answers ListObjects and ListObjectsV2.
pub(crate) fn list(
    index: impl std::ops::Deref<Target = Index>,
    target: &Target,
    page_limit: usize,
    v2: bool,
) -> Result<Response, S3Error> {
    let prefix = target.query("prefix").unwrap_or_default();
    let delimiter = target.query("delimiter").unwrap_or_default();
    let asked = match target.query("max-keys") {
        None | Some("") => 1000,
        Some(text) => text.parse::<u32>().map_err(|_| invalid("max-keys", text))? as usize,
    };
    let url = match target.query("encoding-type") {
        None | Some("") => false,
        Some("url") => true,
        Some(other) => return Err(invalid("encoding-type", other)),
    };
    let token = target.query("continuation-token").filter(|_| v2);
    let resumed = match token {
        None => None,
        Some(token) => Some(decode_token(token).ok_or_else(|| invalid("continuation-token", token))?),
    };
    let start_after = target.query(if v2 { "start-after" } else { "marker" }).filter(|text| !text.is_empty());
    let page = page(&index, prefix, delimiter, resumed.as_deref().or(start_after), asked.min(page_limit));
    drop(index);

    let encoded = |text: &str| if url { encode_path(text) } else { text.to_owned() };
    let mut xml = Writer::document();
    xml.open_root("ListBucketResult");
    xml.text("Name", &target.bucket);
    xml.text("Prefix", &encoded(prefix));
    if !delimiter.is_empty() {
        xml.text("Delimiter", &encoded(delimiter));
    }
    xml.number("MaxKeys", asked as u64);
    if url {
        xml.text("EncodingType", "url");
    }
    xml.text("IsTruncated", if page.truncated { "true" } else { "false" });
    let last = page.items.last().filter(|_| page.truncated).map(Item::name);
    if v2 {
        xml.number("KeyCount", page.items.len() as u64);
        if let Some(token) = token {
            xml.text("ContinuationToken", token);
        }
        if let Some(start_after) = start_after {
            xml.text("StartAfter", &encoded(start_after));
        }
        if let Some(last) = last {
            xml.text("NextContinuationToken", &encode_token(last));
        }
    } else {
        xml.text("Marker", &encoded(start_after.unwrap_or_default()));
        if let Some(last) = last.filter(|_| !delimiter.is_empty()) {
            xml.text("NextMarker", &encoded(last));
        }
    }
    let owner = !v2 || target.query("fetch-owner") == Some("true");
    for item in &page.items {
        match item {
            Item::Object { key, size, etag, modified } => {
                xml.open("Contents");
                xml.text("Key", &encoded(key));
                xml.text("LastModified", &iso(*modified));
                xml.text("ETag", &format!("\"{etag}\""));
                xml.number("Size", *size);
                xml.text("StorageClass", "STANDARD");
                if owner {
                    owner_element(&mut xml, "Owner");
                }
                xml.close("Contents");
            }
            Item::Prefix(prefix) => {
                xml.open("CommonPrefixes");
                xml.text("Prefix", &encoded(prefix));
                xml.close("CommonPrefixes");
            }
        }
    }
    xml.close("ListBucketResult");
    Ok(answer(xml))
}

/// An owner, the same everywhere.
pub(crate) fn owner_element(xml: &mut Writer, name: &str) {
    xml.open(name);
    xml.text("ID", "s3server");
    xml.text("DisplayName", "s3server");
    xml.close(name);
}

/// A document as an answer.
pub(crate) fn answer(xml: Writer) -> Response {
    let mut response = Response::new(Body::from(xml.finish()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

/// The error for a query parameter that makes no sense.
pub(crate) fn invalid(name: &str, value: &str) -> S3Error {
    S3Error::new(Code::InvalidArgument, format!("{name} has a value that is not valid"))
        .element("ArgumentName", name)
        .element("ArgumentValue", value)
}

fn encode_token(last: &str) -> String {
    URL_SAFE_NO_PAD.encode(last)
}

fn decode_token(token: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::storage::synthetic::Synthetic;

    const KEYS: [&str; 14] = [
        "a",
        "a/",
        "a//b",
        "a/b",
        "a/b/c",
        "a/b/d",
        "a0",
        "b/x/y",
        "b\u{10ffff}/z",
        "c/\u{10ffff}",
        "c/d/1",
        "d/f9",
        "\u{d7ff}/1",
        "\u{e000}",
    ];

    fn index() -> (Index, BTreeSet<String>) {
        let family = Synthetic::new("d/", 30, 1).per_directory(7);
        let mut keys: BTreeSet<String> = (0..30).map(|number| family.key(number)).collect();
        let mut index = Index::default();
        let bucket = Synthetic::new("x", 1, 1);
        for key in KEYS {
            index.objects.insert(Arc::from(key), Some(Arc::new(bucket.object(key))));
            keys.insert(key.to_owned());
        }
        // One synthetic object is deleted, one replaced.
        index.objects.insert(Arc::from(family.key(3)), None);
        keys.remove(&family.key(3));
        index.objects.insert(Arc::from(family.key(4)), Some(Arc::new(bucket.object("other"))));
        index.synthetic.push(family);
        (index, keys)
    }

    /// What a listing must hold, by looking at every key.
    fn expected(keys: &BTreeSet<String>, prefix: &str, delimiter: &str) -> Vec<String> {
        let names: BTreeSet<String> = keys
            .iter()
            .filter_map(|key| {
                let rest = key.strip_prefix(prefix)?;
                let cut = if delimiter.is_empty() { None } else { rest.find(delimiter) };
                Some(cut.map_or(key.clone(), |at| key[..prefix.len() + at + delimiter.len()].to_owned()))
            })
            .collect();
        names.into_iter().collect()
    }

    #[test]
    fn pages_of_any_size_add_up_to_the_listing() {
        let (index, all) = index();
        assert_eq!(keys(&index), all.iter().cloned().collect::<Vec<_>>());
        for prefix in ["", "a", "a/", "a/b", "a//", "d/", "d/d0000", "c/", "\u{d7ff}", "none", "z"] {
            for delimiter in ["", "/", "b", "/f", "\u{10ffff}"] {
                let whole = expected(&all, prefix, delimiter);
                for limit in [1, 2, 3, 7, 1000] {
                    let mut names = Vec::new();
                    let mut after = None;
                    loop {
                        let page = page(&index, prefix, delimiter, after.as_deref(), limit);
                        assert!(page.items.len() <= limit);
                        names.extend(page.items.iter().map(|item| item.name().to_owned()));
                        if !page.truncated {
                            break;
                        }
                        assert_eq!(page.items.len(), limit);
                        after = names.last().cloned();
                    }
                    assert_eq!(names, whole, "prefix {prefix:?} delimiter {delimiter:?} limit {limit}");
                }
            }
        }
    }

    #[test]
    fn starts_behind_a_key_that_need_not_exist() {
        let (index, all) = index();
        for after in ["", "a", "a/bb", "d/d00001", "zzz"] {
            let names: Vec<String> =
                page(&index, "", "", Some(after), 1000).items.iter().map(|item| item.name().to_owned()).collect();
            assert_eq!(names, all.iter().filter(|key| key.as_str() > after).cloned().collect::<Vec<_>>(), "{after}");
        }
    }

    #[test]
    fn successors() {
        assert_eq!(successor("a/").as_deref(), Some("a0"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(successor("\u{10ffff}"), None);
    }
}
