//! The types a configuration value can have, and how each is read from text.
//!
//! Every type says what it is called ([`Kind`]), how it parses, and which magnitudes a declared range applies to.
//! Errors are half sentences that follow the key and the value, and end with what to write instead.

use std::path::PathBuf;
use std::time::Duration;

/// What a value is, for the documentation and for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number, not negative.
    Integer,
    /// A share between 0 and 1.
    Ratio,
    /// A number of bytes.
    Size,
    /// A length of time.
    Duration,
    /// A length of time, or -1 for "never".
    Expiry,
    /// Any text.
    Text,
    /// One of a fixed set of words.
    Choice(&'static [&'static str]),
    /// A path in the local file system.
    Path,
    /// Several values separated by commas.
    List(&'static Kind),
}

impl Kind {
    /// The name used in the documentation.
    pub fn name(&self) -> String {
        match self {
            Kind::Bool => "boolean".into(),
            Kind::Integer => "integer".into(),
            Kind::Ratio => "ratio".into(),
            Kind::Size => "size".into(),
            Kind::Duration => "duration".into(),
            Kind::Expiry => "duration or -1".into(),
            Kind::Text => "string".into(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Path => "path".into(),
            Kind::List(item) => format!("list of {}", item.name()),
        }
    }

    /// A magnitude (bytes, milliseconds or a count) in the notation of this kind.
    pub fn render(&self, magnitude: u64) -> String {
        match self {
            Kind::Size => Size(magnitude).to_string(),
            Kind::Duration | Kind::Expiry => render_millis(magnitude),
            Kind::List(item) => item.render(magnitude),
            _ => magnitude.to_string(),
        }
    }
}

/// A type that configuration keys can have.
pub trait ConfValue: Clone + Send + Sync + 'static {
    /// What values of this type are called.
    const KIND: Kind;
    /// Whether a key of this type may have no value at all.
    const OPTIONAL: bool = false;

    /// Reads a value; the text comes trimmed.
    ///
    /// # Errors
    /// A half sentence that says what is wrong and what to write instead.
    fn parse(text: &str) -> Result<Self, String>;

    /// Calls `visit` with every magnitude (bytes, milliseconds, count) that a declared range restricts.
    fn magnitudes(&self, _visit: &mut dyn FnMut(u64)) {}
}

impl ConfValue for bool {
    const KIND: Kind = Kind::Bool;

    fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err("is no boolean; write true or false".into()),
        }
    }
}

impl ConfValue for u64 {
    const KIND: Kind = Kind::Integer;

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "is no whole number of 0 or more; write for example 64".into())
    }

    fn magnitudes(&self, visit: &mut dyn FnMut(u64)) {
        visit(*self);
    }
}

impl ConfValue for String {
    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl ConfValue for PathBuf {
    const KIND: Kind = Kind::Path;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("is empty; write a path".into()),
            _ if text.contains('\0') => Err("contains a NUL byte, which no path can".into()),
            _ => Ok(PathBuf::from(text)),
        }
    }
}

impl<T: ConfValue> ConfValue for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::parse(text).map(Some) }
    }

    fn magnitudes(&self, visit: &mut dyn FnMut(u64)) {
        if let Some(value) = self {
            value.magnitudes(visit);
        }
    }
}

impl<T: ConfValue> ConfValue for Vec<T> {
    const KIND: Kind = Kind::List(&T::KIND);

    fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(T::parse).collect()
    }

    fn magnitudes(&self, visit: &mut dyn FnMut(u64)) {
        self.iter().for_each(|item| item.magnitudes(visit));
    }
}

/// A number of bytes. Units are binary whichever way they are spelled: `1MB`, `1MiB`, `1Mi` and `1m` are 1,048,576 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

impl Size {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 6] = ["PiB", "TiB", "GiB", "MiB", "KiB", "B"];
        for (place, unit) in UNITS.iter().enumerate().take(5) {
            let shift = 10 * (5 - place);
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(out, "{}{unit}", self.0 >> shift);
            }
        }
        write!(out, "{}B", self.0)
    }
}

impl ConfValue for Size {
    const KIND: Kind = Kind::Size;

    fn parse(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "write for example 512MiB, 4GiB or a number of bytes";
        let (number, unit) = split_number(text).ok_or_else(|| format!("is no size; {EXAMPLE}"))?;
        let shift = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            "p" | "pb" | "pi" | "pib" => 50,
            _ => return Err(format!("has the unknown size unit '{unit}'; {EXAMPLE}")),
        };
        scale(number, 1 << shift).map(Size).ok_or_else(|| format!("is no size of at most 16383PiB; {EXAMPLE}"))
    }

    fn magnitudes(&self, visit: &mut dyn FnMut(u64)) {
        visit(self.0);
    }
}

impl ConfValue for Duration {
    const KIND: Kind = Kind::Duration;

    fn parse(text: &str) -> Result<Self, String> {
        const EXAMPLE: &str = "write for example 250ms, 15s, 1min, 2h, 7d or a number of milliseconds";
        let (number, unit) = split_number(text).ok_or_else(|| format!("is no duration; {EXAMPLE}"))?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "" | "ms" | "msec" | "millisecond" | "milliseconds" => 1,
            "s" | "sec" | "secs" | "second" | "seconds" => 1000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60 * 1000,
            "h" | "hr" | "hour" | "hours" => 60 * 60 * 1000,
            "d" | "day" | "days" => 24 * 60 * 60 * 1000,
            _ => return Err(format!("has the unknown time unit '{unit}'; {EXAMPLE}")),
        };
        scale(number, factor).map(Duration::from_millis).ok_or_else(|| format!("is no duration that fits; {EXAMPLE}"))
    }

    fn magnitudes(&self, visit: &mut dyn FnMut(u64)) {
        visit(u64::try_from(self.as_millis()).unwrap_or(u64::MAX));
    }
}

/// How long something stays valid: for a time, or for ever (written -1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// It never grows too old.
    Never,
    /// It is too old after this time; zero means at once.
    After(Duration),
}

impl Expiry {
    /// The time, or `None` for never.
    pub fn after(self) -> Option<Duration> {
        match self {
            Expiry::Never => None,
            Expiry::After(time) => Some(time),
        }
    }
}

impl ConfValue for Expiry {
    const KIND: Kind = Kind::Expiry;

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "-1" => Ok(Expiry::Never),
            _ => Duration::parse(text).map(Expiry::After).map_err(|reason| format!("{reason}, or -1 for never")),
        }
    }

    fn magnitudes(&self, visit: &mut dyn FnMut(u64)) {
        if let Expiry::After(time) = self {
            time.magnitudes(visit);
        }
    }
}

/// A share between 0 and 1, written `0.95` or `95%`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(pub f64);

impl ConfValue for Ratio {
    const KIND: Kind = Kind::Ratio;

    fn parse(text: &str) -> Result<Self, String> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|share| share / 100.0),
            None => text.parse::<f64>(),
        };
        match parsed {
            Ok(share) if (0.0..=1.0).contains(&share) => Ok(Ratio(share)),
            _ => Err("is no share between 0 and 1; write for example 0.95 or 95%".into()),
        }
    }
}

/// Which log lines are written: a level, or `target=level` directives separated by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(pub String);

impl ConfValue for LogFilter {
    const KIND: Kind = Kind::Text;

    fn parse(text: &str) -> Result<Self, String> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let known = |level: &str| LEVELS.contains(&level.trim().to_ascii_lowercase().as_str());
        let good = text.split(',').all(|part| match part.split_once('=') {
            Some((target, level)) => !target.trim().is_empty() && known(level),
            None => known(part),
        });
        if good && tracing_subscriber::EnvFilter::try_new(text).is_ok() {
            Ok(LogFilter(text.to_owned()))
        } else {
            Err("is no log level; write OFF, ERROR, WARN, INFO, DEBUG or TRACE, or for example info,ufs=debug".into())
        }
    }
}

/// Declares an enum whose variants are words of the configuration (read without regard to case, `-` as `_`).
macro_rules! conf_choice {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $word:literal $(| $other:literal)*),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$variant_meta])* $variant),+ }

        impl $crate::conf::ConfValue for $name {
            const KIND: $crate::conf::Kind = $crate::conf::Kind::Choice(&[$($word),+]);

            fn parse(text: &str) -> Result<Self, String> {
                match text.to_ascii_uppercase().replace('-', "_").as_str() {
                    $($word $(| $other)* => Ok($name::$variant),)+
                    _ => Err(format!("is not known here; write one of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(match self { $($name::$variant => $word),+ })
            }
        }
    };
}
pub(crate) use conf_choice;

/// Splits `512MB` into its number and its unit; `None` when it does not begin with a plain decimal number.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let dots = number.len() - digits;
    (digits > 0 && dots <= 1).then(|| (number, unit.trim()))
}

/// Multiplies a decimal number by a factor, rounding down; `None` when it does not fit 64 bits.
fn scale(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = &fraction[..fraction.len().min(15)];
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let part = part * u128::from(factor) / 10u128.pow(u32::try_from(fraction.len()).ok()?);
    u64::try_from(whole.checked_mul(u128::from(factor))?.checked_add(part)?).ok()
}

/// Milliseconds in the largest unit that expresses them exactly.
fn render_millis(millis: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")];
    match UNITS.iter().find(|(factor, _)| millis != 0 && millis.is_multiple_of(*factor)) {
        Some((factor, unit)) => format!("{}{unit}", millis / factor),
        None => format!("{millis}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_binary_in_every_spelling() {
        for (text, bytes) in [
            ("1024", 1024),
            ("512MB", 512 << 20),
            ("512MiB", 512 << 20),
            ("4Gi", 4 << 30),
            ("1GB", 1 << 30),
            ("1.5k", 1536),
            ("2 tb", 2 << 40),
            ("0", 0),
            (".5m", 1 << 19),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "MB", "-1", "12QB", "1.2.3k", "16384P", "1e3", "99999999999999999999999999999999999999999"] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
        assert!(Size::parse("12QB").unwrap_err().contains("'QB'"));
    }

    #[test]
    fn durations_are_milliseconds_without_a_unit() {
        for (text, millis) in [
            ("100ms", 100),
            ("15s", 15_000),
            ("1min", 60_000),
            ("7d", 604_800_000),
            ("250", 250),
            ("0.5s", 500),
            ("2h", 7_200_000),
        ] {
            assert_eq!(Duration::parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1", "3 fortnights"] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
        assert_eq!(Expiry::parse("-1"), Ok(Expiry::Never));
        assert!(Expiry::parse("-2").is_err());
    }

    #[test]
    fn ratios_lists_and_filters() {
        assert_eq!(Ratio::parse("95%"), Ok(Ratio(0.95)));
        assert!(Ratio::parse("1.1").is_err() && Ratio::parse("NaN").is_err() && Ratio::parse("-0.1").is_err());
        assert_eq!(Vec::<Size>::parse("1k, 2k,"), Ok(vec![Size(1024), Size(2048)]));
        assert_eq!(Vec::<String>::parse(""), Ok(vec![]));
        assert_eq!(Option::<u64>::parse(""), Ok(None));
        assert!(LogFilter::parse("INFO").is_ok() && LogFilter::parse("warn,ufs=debug").is_ok());
        assert!(
            LogFilter::parse("loud").is_err() && LogFilter::parse("ufs=loud").is_err() && LogFilter::parse("").is_err()
        );
    }

    proptest! {
        #[test]
        fn a_rendered_size_reads_back(bytes in any::<u64>(), shift in 0u32..60) {
            let size = Size(bytes >> shift);
            prop_assert_eq!(Size::parse(&size.to_string()), Ok(size));
        }

        #[test]
        fn a_rendered_duration_reads_back(millis in any::<u64>(), factor in prop::sample::select(vec![1u64, 1000, 60_000, 86_400_000])) {
            let millis = millis / factor * factor;
            prop_assert_eq!(Duration::parse(&render_millis(millis)), Ok(Duration::from_millis(millis)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,24}") {
            let _ = Size::parse(&text);
            let _ = Duration::parse(&text);
            let _ = Ratio::parse(&text);
            let _ = LogFilter::parse(&text);
        }
    }
}
