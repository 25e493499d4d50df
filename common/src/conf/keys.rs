//! Every key of the system. A module for each part that the keys belong to; [`all`] is the one list.

pub mod cluster;
pub mod fuse;
pub mod general;
pub mod underfs;
pub mod user;
pub mod worker;

use super::Decl;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The parts with their headings in the documentation.
pub static PARTS: &[(&str, &[&Decl])] = &[
    ("General", general::LIST),
    ("Reading and caching", user::LIST),
    ("FUSE daemon", fuse::LIST),
    ("Under storage", underfs::LIST),
    ("Workers", worker::LIST),
    ("Cluster", cluster::LIST),
];

/// All declared keys.
pub fn all() -> impl Iterator<Item = &'static Decl> {
    PARTS.iter().flat_map(|(_, list)| list.iter().copied())
}

/// All names and aliases, without those that stand for several names.
pub fn names() -> impl Iterator<Item = &'static str> {
    all()
        .flat_map(|decl| std::iter::once(decl.name).chain(decl.aliases.iter().copied()))
        .filter(|name| !name.ends_with('*'))
}

/// The declaration of a key, by its name or an alias.
pub fn find(name: &str) -> Option<&'static Decl> {
    static INDEX: OnceLock<HashMap<&'static str, &'static Decl>> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        all()
            .flat_map(|decl| {
                std::iter::once(decl.name).chain(decl.aliases.iter().copied()).map(move |name| (name, decl))
            })
            .collect()
    });
    index.get(name).copied().or_else(|| {
        let begins = |alias: &&'static str| {
            alias.strip_suffix('*').is_some_and(|start| name.starts_with(start) && name.len() > start.len())
        };
        all().find(|decl| decl.aliases.iter().any(begins))
    })
}
