//! Objects that exist only as a rule: their keys are numbered, their bytes follow from key and position. A million of them cost nothing.

use std::time::{Duration, UNIX_EPOCH};

use super::{Content, Description, Object};

/// A family of objects with keys `<prefix>0000000`, `<prefix>0000001`, …, or, spread over directories,
/// `<prefix>d00000/f0000000`, …; numbers have seven digits (directories five), more when `count` needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synthetic {
    prefix: String,
    count: u64,
    size: u64,
    per_directory: Option<u64>,
    digits: usize,
    directory_digits: usize,
}

impl Synthetic {
    /// `count` objects of `size` bytes with keys that begin with `prefix`, for instance `dir/f`.
    pub fn new(prefix: impl Into<String>, count: u64, size: u64) -> Self {
        let digits = count.saturating_sub(1).to_string().len().max(7);
        Synthetic { prefix: prefix.into(), count, size, per_directory: None, digits, directory_digits: 5 }
    }

    /// Spreads the objects over directories of `files` each (at least one).
    pub fn per_directory(mut self, files: u64) -> Self {
        let files = files.max(1);
        self.directory_digits = (self.count.saturating_sub(1) / files).to_string().len().max(5);
        self.per_directory = Some(files);
        self
    }

    /// The number of objects.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The key of the object with this number, which must be less than the count. Keys ascend with their numbers.
    pub fn key(&self, number: u64) -> String {
        let (prefix, digits, directory_digits) = (&self.prefix, self.digits, self.directory_digits);
        match self.per_directory {
            None => format!("{prefix}{number:0digits$}"),
            Some(files) => format!("{prefix}d{:0directory_digits$}/f{number:0digits$}", number / files),
        }
    }

    /// The least number whose key is not before `key` (with `after`: is behind `key`); the count if there is none.
    pub(crate) fn seek(&self, key: &str, after: bool) -> u64 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let before = match self.key(middle).as_str().cmp(key) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => after,
                std::cmp::Ordering::Greater => false,
            };
            if before { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The object with this key, if it belongs to the family.
    pub(crate) fn find(&self, key: &str) -> Option<Object> {
        if !key.starts_with(&self.prefix) {
            return None;
        }
        let number = self.seek(key, false);
        (number < self.count && self.key(number) == key).then(|| self.object(key))
    }

    /// The object of a key that belongs to the family.
    pub(crate) fn object(&self, key: &str) -> Object {
        let seed = seed(key);
        Object {
            size: self.size,
            description: Description {
                etag: format!("{seed:016x}{:016x}", word(seed, self.size)),
                modified: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
                headers: Vec::new(),
            },
            content: Content::Synthetic(seed),
        }
    }
}

/// Fills `buffer` with the bytes that the synthetic object `key` has from `offset`.
pub fn synthetic_fill(key: &str, offset: u64, buffer: &mut [u8]) {
    fill(seed(key), offset, buffer);
}

/// The bytes that the synthetic object `key` has from `offset`.
pub fn synthetic_bytes(key: &str, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    synthetic_fill(key, offset, &mut buffer);
    buffer
}

/// FNV-1a of the key.
fn seed(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The word at a position: the finalizer of SplitMix64 over a counter.
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The bytes of the object with this seed from `offset`.
pub(crate) fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let mut index = offset / 8;
    let mut rest = buffer;
    if skip > 0 {
        let bytes = word(seed, index).to_le_bytes();
        let length = rest.len().min(8 - skip);
        let (head, tail) = rest.split_at_mut(length);
        head.copy_from_slice(&bytes[skip..skip + length]);
        rest = tail;
        index += 1;
    }
    for chunk in rest.chunks_mut(8) {
        let bytes = word(seed, index).to_le_bytes();
        chunk.copy_from_slice(&bytes[..chunk.len()]);
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_do_not_depend_on_where_a_read_begins() {
        let all = synthetic_bytes("k", 0, 100);
        for offset in 0..40 {
            for length in 0..30 {
                assert_eq!(synthetic_bytes("k", offset as u64, length), all[offset..offset + length]);
            }
        }
        assert_ne!(synthetic_bytes("l", 0, 100), all);
    }

    #[test]
    fn keys_ascend_and_are_found() {
        for family in [Synthetic::new("d/f", 1000, 5), Synthetic::new("d/", 1000, 5).per_directory(7)] {
            let keys: Vec<String> = (0..1000).map(|number| family.key(number)).collect();
            assert!(keys.is_sorted());
            for (number, key) in keys.iter().enumerate() {
                assert_eq!(family.seek(key, false), number as u64);
                assert_eq!(family.seek(key, true), number as u64 + 1);
                assert!(family.find(key).is_some());
            }
            assert_eq!((family.seek("", false), family.seek("e", false)), (0, 1000));
            assert!(family.find("d/f1000").is_none() && family.find("d/f").is_none() && family.find("z").is_none());
        }
    }
}
