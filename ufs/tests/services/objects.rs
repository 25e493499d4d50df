//! What the imitated services store, and what they have in common: versions, conditions, ranges and pages.

use crate::http::{Answer, Request};
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex},
};

/// Entries of a page of a listing.
pub const PAGE: usize = 10;
/// When everything was modified, as HTTP writes it and as seconds.
pub const MODIFIED: (&str, i64) = ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000);
/// The same as JSON and XML have it.
pub const MODIFIED_ISO: &str = "2023-11-14T22:13:20.000Z";

/// A stored object.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// Without quotes.
    pub etag: String,
}

/// The objects of a bucket.
#[derive(Clone, Default)]
pub struct Objects(Arc<Mutex<(u64, BTreeMap<String, Object>)>>);

/// A page of a listing.
pub struct Page {
    pub objects: Vec<(String, Object)>,
    pub prefixes: Vec<String>,
    /// Where the next one begins, if there is one.
    pub next: Option<String>,
}

impl Objects {
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        let mut inner = self.0.lock().unwrap();
        inner.0 += 1;
        let object = Object { bytes: bytes.into(), etag: format!("0xE{}=", inner.0) };
        inner.1.insert(key.to_owned(), object);
    }

    pub fn delete(&self, key: &str) {
        self.0.lock().unwrap().1.remove(key);
    }

    pub fn get(&self, key: &str) -> Option<Object> {
        self.0.lock().unwrap().1.get(key).cloned()
    }

    pub fn any(&self, prefix: &str) -> bool {
        self.0.lock().unwrap().1.keys().any(|key| key.starts_with(prefix))
    }

    /// What is directly below `prefix` (all of it without a delimiter), after the name `token`.
    pub fn page(&self, prefix: &str, delimiter: bool, token: &str) -> Page {
        let inner = self.0.lock().unwrap();
        let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), next: None };
        let mut last = String::new();
        for (key, object) in inner.1.range::<str, _>((Bound::Included(prefix), Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            let name = match rest.split_once('/') {
                Some((directory, _)) if delimiter => format!("{prefix}{directory}/"),
                _ => key.clone(),
            };
            if name.as_str() <= token || name == last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == PAGE {
                page.next = Some(last);
                break;
            }
            if name.ends_with('/') && name != *key {
                page.prefixes.push(name.clone());
            } else {
                page.objects.push((key.clone(), object.clone()));
            }
            last = name;
        }
        page
    }
}

impl Object {
    /// The answer to GET or HEAD, `quote` around the etag; `None` when If-Match is not met.
    pub fn answer(&self, request: &Request, quote: &str) -> Option<Answer> {
        let etag = format!("{quote}{}{quote}", self.etag);
        if request.header("if-match").is_some_and(|wanted| wanted != etag) {
            return None;
        }
        let size = self.bytes.len();
        let answer = match request.range(size) {
            Some((first, _)) if first >= size => Answer::new(416, ""),
            Some((first, last)) => {
                let last = last.min(size - 1);
                Answer::new(206, &self.bytes[first..=last])
                    .with("content-range", format!("bytes {first}-{last}/{size}"))
            }
            None => Answer::new(200, self.bytes.clone()),
        };
        Some(answer.with("etag", etag).with("last-modified", MODIFIED.0))
    }
}
