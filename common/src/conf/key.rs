//! How a key is declared: once, as a `static`, with everything that loading, help and documentation need.

use super::machine::Environment;
use super::value::{ConfValue, Kind};
use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

/// A parsed value whose type only its key knows.
pub(crate) type Parsed = Arc<dyn Any + Send + Sync>;

/// Reads a value; gives it with the magnitudes that a range applies to.
type Parser = fn(&str) -> Result<(Parsed, Vec<u64>), String>;

/// Which part of the system reads a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Every process.
    All,
    /// The FUSE daemon.
    Fuse,
    /// Whatever reads data: the FUSE daemon and the command line.
    Client,
    /// Workers.
    Worker,
    /// The connection to an under storage; a mount's own options override it.
    UnderStorage,
}

impl Scope {
    /// The word used in the documentation.
    pub fn name(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Fuse => "fuse",
            Scope::Client => "client",
            Scope::Worker => "worker",
            Scope::UnderStorage => "under storage",
        }
    }
}

/// What a key is worth when nobody sets it.
#[derive(Clone, Copy, Debug)]
pub enum DefaultValue {
    /// No value.
    None,
    /// Fixed text; may refer to other keys as `${key}`.
    Text(&'static str),
    /// Found out on this machine, with the sentence that documents it.
    Computed(fn(&Environment) -> String, &'static str),
}

/// Everything that is known about a key, whatever its type.
#[derive(Debug)]
pub struct Decl {
    /// The canonical name.
    pub name: &'static str,
    /// Other names under which it may be set; one that ends in `*` stands for every name with that beginning.
    pub aliases: &'static [&'static str],
    /// The kind of value.
    pub kind: Kind,
    /// Whether it may be without a value.
    pub optional: bool,
    /// The default.
    pub default: DefaultValue,
    /// The least and greatest magnitude (bytes, milliseconds, count), both allowed.
    pub range: Option<(u64, u64)>,
    /// What an integer counts, such as "entries"; empty for other kinds.
    pub unit: &'static str,
    /// Who reads it.
    pub scope: Scope,
    /// Whether its value must never be shown.
    pub secret: bool,
    /// Whether it is accepted for compatibility but changes nothing in this version.
    pub reserved: bool,
    /// What it does.
    pub doc: &'static str,
    parse: Parser,
}

impl Decl {
    /// Begins a declaration; [`Key::new`] completes it.
    pub(crate) const fn named(name: &'static str) -> Self {
        Decl {
            name,
            aliases: &[],
            kind: Kind::Text,
            optional: false,
            default: DefaultValue::None,
            range: None,
            unit: "",
            scope: Scope::All,
            secret: false,
            reserved: false,
            doc: "",
            parse: parse_erased::<String>,
        }
    }

    pub(crate) const fn default(mut self, text: &'static str) -> Self {
        self.default = DefaultValue::Text(text);
        self
    }

    pub(crate) const fn computed(mut self, compute: fn(&Environment) -> String, sentence: &'static str) -> Self {
        self.default = DefaultValue::Computed(compute, sentence);
        self
    }

    pub(crate) const fn range(mut self, least: u64, greatest: u64) -> Self {
        self.range = Some((least, greatest));
        self
    }

    pub(crate) const fn unit(mut self, unit: &'static str) -> Self {
        self.unit = unit;
        self
    }

    pub(crate) const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    pub(crate) const fn reserved(mut self) -> Self {
        self.reserved = true;
        self
    }

    pub(crate) const fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    /// Reads and checks a value of this key.
    ///
    /// # Errors
    /// A half sentence that follows the key and the value: what is wrong and what to write instead.
    pub fn check(&self, text: &str) -> Result<(), String> {
        self.parse(text).map(|_| ())
    }

    pub(crate) fn parse(&self, text: &str) -> Result<Parsed, String> {
        let (parsed, magnitudes) = (self.parse)(text.trim())?;
        if let Some((least, greatest)) = self.range
            && magnitudes.iter().any(|magnitude| !(least..=greatest).contains(magnitude))
        {
            return Err(format!("is out of range; {}", self.range_rule().unwrap_or_default()));
        }
        Ok(parsed)
    }

    /// The range in words, such as `use 4KiB to 64MiB`.
    pub(crate) fn range_rule(&self) -> Option<String> {
        let (least, greatest) = self.range?;
        Some(match greatest {
            u64::MAX => format!("use {} or more", self.kind.render(least)),
            _ => format!("use {} to {}", self.kind.render(least), self.kind.render(greatest)),
        })
    }
}

/// A declared key whose values are of type `T`.
#[derive(Debug)]
pub struct Key<T> {
    /// The declaration.
    pub decl: Decl,
    value: PhantomData<fn() -> T>,
}

impl<T: ConfValue> Key<T> {
    pub(crate) const fn new(mut decl: Decl, scope: Scope, doc: &'static str) -> Self {
        decl.kind = T::KIND;
        decl.optional = T::OPTIONAL;
        decl.parse = parse_erased::<T>;
        decl.scope = scope;
        decl.doc = doc;
        Key { decl, value: PhantomData }
    }

    /// The canonical name.
    pub const fn name(&self) -> &'static str {
        self.decl.name
    }
}

fn parse_erased<T: ConfValue>(text: &str) -> Result<(Parsed, Vec<u64>), String> {
    let value = T::parse(text)?;
    let mut magnitudes = Vec::new();
    value.magnitudes(&mut |magnitude| magnitudes.push(magnitude));
    Ok((Arc::new(value), magnitudes))
}

/// Declares the keys of one scope. A key's doc comment is its documentation everywhere: rustdoc, `alluxio conf docs`.
macro_rules! keys {
    ($scope:expr; $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $decl:expr;)+) => {
        $(
            $(#[doc = $doc])+
            pub static $name: $crate::conf::Key<$type> =
                $crate::conf::Key::new($decl, $scope, concat!($($doc),+));
        )+
        /// The keys declared in this module, in the order of declaration.
        pub static LIST: &[&$crate::conf::Decl] = &[$(&$name.decl),+];
    };
}
pub(crate) use keys;
