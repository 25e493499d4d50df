//! How keys of an object store are shown as paths, and paths turned back into keys, without asking the store.
//!
//! A key is cut at each `/`; what lies between is a segment. Most segments are names as they are. The others follow this
//! rule, which gives every key exactly one path and takes every such path back to its key:
//!
//! | key | path | why |
//! |---|---|---|
//! | `a//b` | `a/%{}/b` | an empty segment is no name |
//! | `a/./b`, `a/../b` | `a/%{2e}/b`, `a/%{2e}./b` | `.` and `..` mean something else |
//! | `a<NUL>b` | `a%{00}b` | NUL ends a name |
//! | `100%{x}` | `100%{25}{x}` | it looks like this rule |
//! | `a` beside `a/b` | `a%{file}` beside the directory `a` | one name, two things |
//! | `a/` with bytes in it | `a/%{file}` | it is the file with the empty name in `a` |
//! | a segment that needs more than 255 bytes | `<251 bytes at most>%{+}/<the rest>` | names have 255 bytes at most |
//!
//! An empty object `a/` marks the directory `a`, and shows as nothing but that. A path that is not what the rule makes of
//! its key names nothing (`NotFound`): there are no second names for one key.

use common::{UfsPath, path::NAME_MAX};

/// Ends a name whose segment goes on in the directory of that name.
const MORE: &str = "%{+}";
/// Ends the name of an object beside a directory of its name.
const FILE: &str = "%{file}";

/// What a segment is: the last one of an object's key, or one that others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A directory, or an object beside which there is no directory of its name.
    Plain,
    /// An object beside a directory of its name.
    FileBesideDirectory,
}

/// The place that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The object with this key, or the directory with this key and a `/` as prefix.
    Plain(String),
    /// The object with this key, and only if it is shown so (see [`Role::FileBesideDirectory`]).
    File(String),
    /// The directory of the long segments that begin with `pieces` below `prefix`.
    Long {
        /// Key prefix of the directory, empty or with a `/` at the end.
        prefix: String,
        /// What the segments begin with, as names.
        pieces: Vec<String>,
        /// What the segments begin with, as it is in the keys.
        begin: String,
    },
}

/// Whether the segment is its own name.
pub fn is_plain(segment: &str) -> bool {
    !segment.is_empty()
        && segment.len() <= NAME_MAX
        && segment != "."
        && segment != ".."
        && !segment.as_bytes().contains(&0)
        && !segment.contains("%{")
}

/// The names that show a segment: one, or several when it is long, each but the last a directory.
pub fn names_of(segment: &str, role: Role) -> Vec<String> {
    if role == Role::Plain && is_plain(segment) {
        return vec![segment.to_owned()];
    }
    let mut tokens: Vec<String> = Vec::new();
    let mut buffer = [0; 4];
    let mut rest = segment.chars().peekable();
    let dots = segment == "." || segment == "..";
    let mut first = true;
    while let Some(letter) = rest.next() {
        tokens.push(match letter {
            '\0' => "%{00}".to_owned(),
            '%' if rest.peek() == Some(&'{') => "%{25}".to_owned(),
            '.' if dots && first => "%{2e}".to_owned(),
            other => other.encode_utf8(&mut buffer).to_owned(),
        });
        first = false;
    }
    match role {
        Role::FileBesideDirectory => tokens.push(FILE.to_owned()),
        Role::Plain if segment.is_empty() => tokens.push("%{}".to_owned()),
        Role::Plain => {}
    }
    if tokens.iter().map(String::len).sum::<usize>() <= NAME_MAX {
        return vec![tokens.concat()];
    }
    let mut names = Vec::new();
    let mut name = String::new();
    let mut left: usize = tokens.iter().map(String::len).sum();
    for token in &tokens {
        // What is left fits into one name of its own: it is the last one.
        if name.is_empty() || name.len() + left <= NAME_MAX || name.len() + token.len() <= NAME_MAX - MORE.len() {
            name.push_str(token);
        } else {
            name.push_str(MORE);
            names.push(std::mem::replace(&mut name, token.clone()));
        }
        left -= token.len();
    }
    names.push(name);
    names
}

/// Undoes the escapes of a name (or of the names of a long segment, put together): the segment and its role.
fn segment_of(shown: &str) -> Option<(String, Role)> {
    let (body, role) = match shown.strip_suffix(FILE) {
        Some(body) => (body, Role::FileBesideDirectory),
        None => (shown, Role::Plain),
    };
    if body == "%{}" {
        return (role == Role::Plain).then(|| (String::new(), role));
    }
    let mut segment = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find("%{") {
        segment.push_str(&rest[..at]);
        let (code, after) = rest[at + 2..].split_once('}')?;
        segment.push(match code {
            "00" => '\0',
            "25" => '%',
            "2e" => '.',
            _ => return None,
        });
        rest = after;
    }
    segment.push_str(rest);
    Some((segment, role))
}

/// The path that shows `key` below the root of the storage. `beside` tells that there is a directory of its name too.
pub fn path_of(key: &str, beside: bool) -> Option<UfsPath> {
    let mut path = UfsPath::root();
    let (directories, last) = match key.rsplit_once('/') {
        Some((directories, last)) => (Some(directories), last),
        None => (None, key),
    };
    for segment in directories.into_iter().flat_map(|directories| directories.split('/')) {
        for name in names_of(segment, Role::Plain) {
            path = path.join(name).ok()?;
        }
    }
    let role = if beside || last.is_empty() { Role::FileBesideDirectory } else { Role::Plain };
    for name in names_of(last, role) {
        path = path.join(name).ok()?;
    }
    Some(path)
}

/// The place that `path` names; none when no key is shown so. The root is the plain place with the empty key.
pub fn place_of(path: &UfsPath) -> Option<Place> {
    let text = std::str::from_utf8(path.as_bytes()).ok()?;
    if !text.contains("%{") {
        return Some(Place::Plain(text.to_owned()));
    }
    let mut key = String::with_capacity(text.len());
    let mut pieces: Vec<&str> = Vec::new();
    let mut names = text.split('/').peekable();
    while let Some(name) = names.next() {
        let last = names.peek().is_none();
        pieces.push(name);
        if name.ends_with(MORE) {
            if last {
                return long_place(key, &pieces);
            }
            continue;
        }
        let whole: String = joined(&pieces);
        let (segment, role) = segment_of(&whole)?;
        if (role == Role::FileBesideDirectory && !last) || names_of(&segment, role) != pieces {
            return None;
        }
        key.push_str(&segment);
        if role == Role::FileBesideDirectory {
            return Some(Place::File(key));
        }
        if !last {
            key.push('/');
        } else if segment.is_empty() {
            // A directory with an empty name: its prefix is this key and the slash, as for any other.
            return Some(Place::Plain(key));
        }
        pieces.clear();
    }
    Some(Place::Plain(key))
}

fn joined(pieces: &[&str]) -> String {
    pieces.iter().map(|piece| piece.strip_suffix(MORE).unwrap_or(piece)).collect()
}

fn long_place(prefix: String, pieces: &[&str]) -> Option<Place> {
    let (begin, role) = segment_of(&joined(pieces))?;
    let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    // No piece is shorter than what fits, so a directory of this name can exist.
    let fits = |piece: &String| piece.len() + 12 > NAME_MAX && piece.len() <= NAME_MAX;
    (role == Role::Plain && pieces.iter().all(fits)).then_some(Place::Long { prefix, pieces, begin })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn shown(key: &str, beside: bool) -> String {
        String::from_utf8(path_of(key, beside).unwrap().as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_table_is_true() {
        for (key, beside, path) in [
            ("a/b", false, "a/b"),
            ("a//b", false, "a/%{}/b"),
            ("/x", false, "%{}/x"),
            ("a/./b", false, "a/%{2e}/b"),
            ("a/../b", false, "a/%{2e}./b"),
            ("...", false, "..."),
            ("a\0b", false, "a%{00}b"),
            ("100%{x}", false, "100%{25}{x}"),
            ("100%", false, "100%"),
            ("a", true, "a%{file}"),
            ("a/", false, "a/%{file}"),
            ("a%{file}", false, "a%{25}{file}"),
        ] {
            assert_eq!(shown(key, beside), path);
            let place = place_of(&UfsPath::parse(path).unwrap()).unwrap();
            let expected =
                if beside || key.ends_with('/') { Place::File(key.into()) } else { Place::Plain(key.into()) };
            assert_eq!(place, expected);
        }
    }

    #[test]
    fn long_names_are_cut_at_whole_letters() {
        let key = format!("d/{}", "\u{e4}".repeat(300));
        let path = path_of(&key, false).unwrap();
        let names: Vec<_> = path.names().collect();
        assert_eq!(names.len(), 4);
        assert!(names.iter().all(|name| name.len() <= NAME_MAX && std::str::from_utf8(name).is_ok()));
        assert_eq!(place_of(&path), Some(Place::Plain(key)));
        let parent = path.parent().unwrap();
        assert!(matches!(place_of(&parent), Some(Place::Long { prefix, pieces, begin })
            if prefix == "d/" && pieces.len() == 2 && begin.len() == 500));
    }

    #[test]
    fn what_the_rule_never_makes_names_nothing() {
        for path in ["a%{41}", "%{x}", "a%{file}/b", "%{00", "%{}%{file}", "a%{25}b", "%{2e}a", "x%{+}", "x%{+}/y"] {
            assert_eq!(place_of(&UfsPath::parse(path).unwrap()), None, "{path}");
        }
        assert_eq!(place_of(&UfsPath::parse([0xff]).unwrap()), None);
    }

    fn segment() -> impl Strategy<Value = String> {
        prop_oneof![
            4 => "[a-c%{}.+/\u{0}-]{0,6}".prop_map(|text| text.replace('/', "")),
            1 => Just(String::new()),
            1 => Just("%{file}".to_owned()),
            1 => Just("%{+}".to_owned()),
            1 => (240usize..520, prop_oneof![Just("x"), Just("\u{e4}"), Just("%{"), Just("\0")])
                .prop_map(|(count, unit)| unit.repeat(count / unit.len())),
        ]
    }

    fn key() -> impl Strategy<Value = String> {
        proptest::collection::vec(segment(), 1..5)
            .prop_map(|segments| segments.join("/"))
            .prop_filter("empty", |key| !key.is_empty())
    }

    proptest! {
        #[test]
        fn every_path_leads_back_to_its_key(key in key(), beside: bool) {
            let path = path_of(&key, beside).expect("every key has a path");
            let expected = if beside || key.ends_with('/') { Place::File(key) } else { Place::Plain(key) };
            prop_assert_eq!(place_of(&path), Some(expected));
        }

        #[test]
        fn no_two_keys_share_a_path(keys in proptest::collection::btree_set(key(), 2..12)) {
            let keys: BTreeSet<String> = keys;
            let mut paths = BTreeMap::new();
            for key in &keys {
                let directory = format!("{key}/");
                let beside = keys.iter().any(|other| other.starts_with(&directory));
                let path = path_of(key, beside).unwrap();
                prop_assert!(paths.insert(path.as_bytes().to_vec(), key).is_none());
            }
            // And no object is shown where another one has a directory on its way.
            for path in paths.keys() {
                let path = UfsPath::parse(path).unwrap();
                let mut above = path.parent();
                while let Some(directory) = above {
                    prop_assert!(!paths.contains_key(directory.as_bytes()), "{:?} is a file and a directory", directory);
                    above = directory.parent();
                }
            }
        }

        #[test]
        fn a_path_that_names_a_place_is_the_path_of_that_place(names in proptest::collection::vec(segment(), 1..4)) {
            let Ok(path) = UfsPath::parse(names.join("/")) else { return Ok(()) };
            match place_of(&path) {
                Some(Place::File(key)) => prop_assert_eq!(path_of(&key, true), Some(path)),
                Some(Place::Plain(key)) if !key.is_empty() && !key.ends_with('/') => prop_assert_eq!(path_of(&key, false), Some(path)),
                _ => {}
            }
        }
    }
}
