//! Lists a directory of a bucket: pages of ListObjectsV2 shaped into entries, the next page fetched while the caller uses
//! the current one.
//!
//! Memory is two pages, and as many held objects as one key has letters: an object `a` is held back until it is clear
//! whether `a/` follows, because then it is shown by another name ([`crate::object::names`]).

use super::{
    client::{Request, S3Client},
    read::version_of,
    xml::{Object, Page, parse_time},
};
use crate::{
    object::names::{Role, is_plain, names_of},
    retry::Attempts,
};
use async_trait::async_trait;
use common::{
    Attr, Error, ErrorKind, FileKind, Result, Timestamp,
    metrics::UfsOp,
    worker::{DirEntry, Listing},
};
use std::{collections::HashSet, sync::Arc};
use tokio::task::JoinHandle;

/// The most bytes of a page: 1,000 keys of 1,024 bytes, each byte encoded as three, and what is around them.
const PAGE: usize = 8 << 20;

/// Which keys to list, and how they are shown.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Prefix of the directory, empty or with a `/` at the end.
    pub base: String,
    /// What the segments begin with, in a directory of long segments; else empty.
    pub begin: String,
    /// The names that show `begin`.
    pub lead: Vec<String>,
    /// For errors.
    pub what: String,
}

/// A directory of a bucket being listed.
pub struct S3Listing {
    client: Arc<S3Client>,
    scope: Arc<Scope>,
    shaper: Shaper,
    pending: Option<JoinHandle<Result<Page>>>,
    /// A batch that was read already, to see whether there is one.
    first: Option<Vec<DirEntry>>,
    failed: Option<Error>,
}

impl S3Listing {
    /// Starts to list; fails when the first page cannot be had. The flag tells whether anything is there, be it only
    /// the mark of an empty directory.
    pub async fn start(client: Arc<S3Client>, scope: Scope, directory: Arc<Attr>) -> Result<(Self, bool)> {
        let scope = Arc::new(scope);
        let first = page(&client, &scope, None).await?;
        let found = !first.objects.is_empty() || !first.prefixes.is_empty();
        let shaper = Shaper::new(scope.clone(), directory);
        let mut listing = Self { client, scope, shaper, pending: None, first: None, failed: None };
        let batch = listing.take(first)?;
        let found = found || listing.pending.is_some();
        listing.first = (!batch.is_empty()).then_some(batch);
        Ok((listing, found))
    }

    /// Shapes a page and starts to fetch the one after it.
    fn take(&mut self, page: Page) -> Result<Vec<DirEntry>> {
        let next = match (page.truncated, &page.next) {
            (false, _) => None,
            (true, Some(token)) if !token.is_empty() => Some(token.clone()),
            (true, _) => {
                let why = "the service says that more entries follow, and not how to get them";
                return Err(Error::new(ErrorKind::Corrupt, format!("{}: {why}", self.scope.what)));
            }
        };
        let last = next.is_none();
        if let Some(token) = next {
            let (client, scope) = (self.client.clone(), self.scope.clone());
            self.pending = Some(tokio::spawn(async move { self::page(&client, &scope, Some(&token)).await }));
        }
        self.shaper.page(page, last)
    }

    async fn advance(&mut self) -> Result<Option<Vec<DirEntry>>> {
        if let Some(batch) = self.first.take() {
            return Ok(Some(batch));
        }
        while let Some(pending) = &mut self.pending {
            let page = pending.await.unwrap_or_else(|gone| {
                Err(Error::with_source(ErrorKind::Cancelled, format!("{}: given up", self.scope.what), gone))
            });
            self.pending = None;
            let batch = self.take(page?)?;
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Listing for S3Listing {
    async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.advance().await;
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }
}

impl Drop for S3Listing {
    fn drop(&mut self) {
        if let Some(pending) = &self.pending {
            pending.abort();
        }
    }
}

async fn page(client: &S3Client, scope: &Scope, token: Option<&str>) -> Result<Page> {
    let prefix = format!("{}{}", scope.base, scope.begin);
    let mut query = Vec::with_capacity(5);
    if let Some(token) = token {
        query.push(("continuation-token", token));
    }
    query.extend([("delimiter", "/"), ("encoding-type", "url"), ("list-type", "2"), ("prefix", prefix.as_str())]);
    fetch(client, UfsOp::List, &scope.what, &query, Attempts::new(&client.options, 0)).await
}

/// Fetches and reads a page; `query` is sorted by name.
pub async fn fetch(
    client: &S3Client,
    op: UfsOp,
    what: &str,
    query: &[(&str, &str)],
    mut attempts: Attempts,
) -> Result<Page> {
    let request = Request { query, ..Default::default() };
    loop {
        let answer = client.call(op, what, &request, &mut attempts).await?;
        let read = answer.text(what, PAGE).await.and_then(|text| {
            Page::parse(&text).map_err(|why| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("{what}: the answer is no listing of S3 ({why}); check the endpoint"),
                )
            })
        });
        match read {
            // Cut off, or an error in the guise of an answer: the same again may help.
            Err(error) => attempts.again(error).await?,
            page => return page,
        }
    }
}

/// Makes entries out of pages.
struct Shaper {
    scope: Arc<Scope>,
    directory: Arc<Attr>,
    /// Objects of which the key of each is the beginning of the next one's.
    held: Vec<Object>,
    last_prefix: String,
    /// The directories of long segments that were shown and may come again: beginnings of the last key.
    longs: HashSet<String>,
}

enum Item {
    Object(Object),
    Prefix(String),
}

impl Item {
    fn key(&self) -> &str {
        match self {
            Item::Object(object) => &object.key,
            Item::Prefix(prefix) => prefix,
        }
    }
}

impl Shaper {
    fn new(scope: Arc<Scope>, directory: Arc<Attr>) -> Self {
        Self { scope, directory, held: Vec::new(), last_prefix: String::new(), longs: HashSet::new() }
    }

    fn page(&mut self, page: Page, last: bool) -> Result<Vec<DirEntry>> {
        let mut batch = Vec::with_capacity(page.objects.len() + page.prefixes.len() + self.held.len());
        let mut objects = page.objects.into_iter().map(Item::Object).peekable();
        let mut prefixes = page.prefixes.into_iter().map(|prefix| Item::Prefix(prefix.prefix)).peekable();
        loop {
            let object_first = match (objects.peek(), prefixes.peek()) {
                (Some(object), Some(prefix)) => object.key() <= prefix.key(),
                (Some(_), None) => true,
                (None, _) => false,
            };
            let Some(item) = (if object_first { objects.next() } else { prefixes.next() }) else { break };
            self.item(item, &mut batch)?;
        }
        while last && let Some(object) = self.held.pop() {
            self.object(&object, Role::Plain, &mut batch);
        }
        Ok(batch)
    }

    fn item(&mut self, item: Item, batch: &mut Vec<DirEntry>) -> Result<()> {
        let base = &self.scope.base;
        let Some(rest) = item.key().strip_prefix(base.as_str()) else {
            let why = "the service lists keys that were not asked for";
            return Err(Error::new(ErrorKind::Corrupt, format!("{}: {why}: {:?}", self.scope.what, item.key())));
        };
        if rest.trim_end_matches('/').contains('/') && matches!(item, Item::Object(_)) {
            let why = "the service ignores the delimiter";
            return Err(Error::new(ErrorKind::Corrupt, format!("{}: {why}: {:?}", self.scope.what, item.key())));
        }
        while let Some(held) = self.held.last() {
            let after = item.key().strip_prefix(held.key.as_str());
            let role = match after {
                Some("/") => Role::FileBesideDirectory,
                // Still before the place where the directory would be.
                Some(after) if after.as_bytes().first().is_some_and(|byte| *byte < b'/') => break,
                _ => Role::Plain,
            };
            if let Some(object) = self.held.pop() {
                self.object(&object, role, batch);
            }
        }
        self.longs.retain(|begin| item.key().starts_with(begin.as_str()));
        match item {
            Item::Object(object) if object.key == self.scope.base => {
                if object.size > 0 {
                    self.object(&object, Role::FileBesideDirectory, batch);
                }
            }
            Item::Object(object) => self.held.push(object),
            Item::Prefix(prefix) if prefix == self.last_prefix => {}
            Item::Prefix(prefix) => {
                let segment = &prefix[self.scope.base.len()..];
                let segment = segment.strip_suffix('/').unwrap_or(segment).to_owned();
                self.last_prefix = prefix;
                let attr = self.directory.clone();
                self.entry(&segment, Role::Plain, FileKind::Directory, attr, batch);
            }
        }
        Ok(())
    }

    fn object(&mut self, object: &Object, role: Role, batch: &mut Vec<DirEntry>) {
        let modified = parse_time(&object.modified).unwrap_or(Timestamp { sec: 0, nsec: 0 });
        let version = version_of(Some(&object.etag), object.size, modified);
        let attr = Arc::new(Attr::of_object(FileKind::File, object.size, modified, version));
        let segment = object.key[self.scope.base.len()..].to_owned();
        self.entry(&segment, role, FileKind::File, attr, batch);
    }

    fn entry(&mut self, segment: &str, role: Role, kind: FileKind, attr: Arc<Attr>, batch: &mut Vec<DirEntry>) {
        let lead = &self.scope.lead;
        if lead.is_empty() && role == Role::Plain && is_plain(segment) {
            batch.push(DirEntry { name: segment.as_bytes().into(), kind, attr: Some(attr) });
            return;
        }
        let names = names_of(segment, role);
        let Some((name, after)) = names.strip_prefix(lead.as_slice()).and_then(<[String]>::split_first) else {
            return;
        };
        if after.is_empty() {
            batch.push(DirEntry { name: name.as_bytes().into(), kind, attr: Some(attr) });
        } else if self.longs.insert(format!("{}{}", self.scope.base, begin_of(segment, &names[..=lead.len()]))) {
            let attr = Some(self.directory.clone());
            batch.push(DirEntry { name: name.as_bytes().into(), kind: FileKind::Directory, attr });
        }
    }
}

/// How much of `segment` the names in `shown` stand for.
fn begin_of<'a>(segment: &'a str, shown: &[String]) -> &'a str {
    // The beginnings of a segment are few hundred; the one whose names begin so is found from the longest.
    let shown: String = shown.iter().map(|name| name.trim_end_matches("%{+}")).collect();
    let mut end = segment.len().min(shown.len());
    while end > 0
        && !(segment.is_char_boundary(end)
            && names_of(&segment[..end], Role::Plain)
                .iter()
                .map(|name| name.trim_end_matches("%{+}"))
                .collect::<String>()
                == shown)
    {
        end -= 1;
    }
    &segment[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::names::{Place, path_of, place_of};
    use common::{UfsPath, Version};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    /// What a service would answer, in pages of `size`.
    fn pages(keys: &BTreeSet<String>, base: &str, begin: &str, size: usize) -> Vec<Page> {
        let mut items: BTreeMap<String, bool> = BTreeMap::new();
        let prefix = format!("{base}{begin}");
        for key in keys.iter().filter(|key| key.starts_with(&prefix)) {
            match key[prefix.len()..].find('/') {
                Some(at) => items.insert(key[..prefix.len() + at + 1].to_owned(), true),
                None => items.insert(key.clone(), false),
            };
        }
        let items: Vec<_> = items.into_iter().collect();
        let mut pages: Vec<Page> = items
            .chunks(size)
            .map(|chunk| {
                let mut page = Page::default();
                for (key, is_prefix) in chunk {
                    if *is_prefix {
                        page.prefixes.push(super::super::xml::Prefix { prefix: key.clone() });
                    } else {
                        let object =
                            Object { key: key.clone(), modified: String::new(), etag: "\"e\"".into(), size: 1 };
                        page.objects.push(object);
                    }
                }
                page
            })
            .collect();
        if pages.is_empty() {
            pages.push(Page::default());
        }
        pages
    }

    fn entries(keys: &BTreeSet<String>, at: &UfsPath, size: usize) -> Vec<DirEntry> {
        let (base, begin, lead) = match place_of(at).unwrap() {
            Place::Plain(_) if at.is_root() => (String::new(), String::new(), vec![]),
            Place::Plain(key) => (format!("{key}/"), String::new(), vec![]),
            Place::Long { prefix, pieces, begin } => (prefix, begin, pieces),
            Place::File(_) => panic!("a file was shown as a directory"),
        };
        let directory = Attr::of_object(FileKind::Directory, 0, Timestamp::default(), Version::none());
        let scope = Scope { base: base.clone(), begin: begin.clone(), lead, what: "list".into() };
        let mut shaper = Shaper::new(Arc::new(scope), Arc::new(directory));
        let all = pages(keys, &base, &begin, size);
        let count = all.len();
        let mut entries = Vec::new();
        for (index, page) in all.into_iter().enumerate() {
            entries.extend(shaper.page(page, index + 1 == count).unwrap());
            assert!(shaper.held.len() < 1100);
        }
        entries
    }

    /// Every file below the root, by walking.
    fn walk(keys: &BTreeSet<String>, size: usize) -> BTreeSet<Vec<u8>> {
        let mut files = BTreeSet::new();
        let mut open = vec![UfsPath::root()];
        while let Some(directory) = open.pop() {
            let mut names = BTreeSet::new();
            for entry in entries(keys, &directory, size) {
                let path = directory.join(&entry.name).unwrap();
                assert!(names.insert(entry.name.clone()), "{path} came twice");
                if entry.kind == FileKind::Directory {
                    open.push(path);
                } else {
                    assert!(files.insert(path.as_bytes().to_vec()), "{path} came twice");
                }
            }
        }
        files
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            6 => "[ab.%-]{0,3}",
            1 => Just("%{file}".to_owned()),
            1 => Just("\u{0}".to_owned()),
            1 => (248usize..256, prop_oneof![Just(""), Just("\u{0}"), Just("b"), Just("\u{e4}"), Just("bbbbbbbbbbbbb")])
                .prop_map(|(count, end)| format!("{}{end}", "a".repeat(count))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..Default::default() })]
        #[test]
        fn a_walk_finds_every_key_by_its_path_once(
            keys in proptest::collection::btree_set(proptest::collection::vec(segment(), 1..4).prop_map(|s| s.join("/")), 1..25),
            size in 1usize..8,
        ) {
            let keys: BTreeSet<String> = keys.into_iter().filter(|key| !key.is_empty()).collect();
            let expected: BTreeSet<Vec<u8>> = keys
                .iter()
                .map(|key| {
                    let directory = format!("{key}/");
                    let beside = keys.iter().any(|other| other.starts_with(&directory));
                    path_of(key, beside).unwrap().as_bytes().to_vec()
                })
                .collect();
            prop_assert_eq!(walk(&keys, size), expected);
        }
    }
}
