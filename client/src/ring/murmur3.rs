//! MurmurHash3, the 32-bit variant for x86, seed 0 (Austin Appleby, public domain), as a signed number.
//!
//! Written here, and not taken from a crate, for [`Prefix`]: a key is hashed with attempt after attempt appended, and
//! its own bytes need to be mixed only once.

const C1: u32 = 0xcc9e_2d51;
const C2: u32 = 0x1b87_3593;

/// The hash of `bytes`.
pub fn murmur3_x86_32(bytes: &[u8]) -> i32 {
    let mut chunks = bytes.chunks_exact(4);
    let mut hash = 0;
    for chunk in &mut chunks {
        hash = mix(hash, word(chunk));
    }
    finish(hash, chunks.remainder(), bytes.len())
}

/// A key whose whole words are mixed already.
pub struct Prefix<'k> {
    hash: u32,
    rest: &'k [u8],
    length: usize,
}

impl<'k> Prefix<'k> {
    /// Mixes `key`.
    pub fn new(key: &'k [u8]) -> Self {
        let mut chunks = key.chunks_exact(4);
        let mut hash = 0;
        for chunk in &mut chunks {
            hash = mix(hash, word(chunk));
        }
        Self { hash, rest: chunks.remainder(), length: key.len() }
    }

    /// The hash of the key with `suffix` after it.
    pub fn hash_with(&mut self, suffix: [u8; 4]) -> i32 {
        let mut tail = [0; 8];
        let rest = self.rest.len();
        tail[..rest].copy_from_slice(self.rest);
        tail[rest..rest + 4].copy_from_slice(&suffix);
        let hash = mix(self.hash, word(&tail[..4]));
        finish(hash, &tail[4..rest + 4], self.length + 4)
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn scramble(word: u32) -> u32 {
    word.wrapping_mul(C1).rotate_left(15).wrapping_mul(C2)
}

fn mix(hash: u32, word: u32) -> u32 {
    (hash ^ scramble(word)).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

fn finish(mut hash: u32, rest: &[u8], length: usize) -> i32 {
    if !rest.is_empty() {
        hash ^= scramble(word(rest));
    }
    hash ^= length as u32;
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 16;
    hash as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        // Test values published with the algorithm.
        assert_eq!(murmur3_x86_32(b""), 0);
        assert_eq!(murmur3_x86_32(b"test") as u32, 0xba6b_d213);
        assert_eq!(murmur3_x86_32(b"Hello, world!") as u32, 0xc036_3e43);
        assert_eq!(murmur3_x86_32(b"The quick brown fox jumps over the lazy dog") as u32, 0x2e4f_f723);
    }

    #[test]
    fn a_prefix_hashes_like_the_whole() {
        for length in 0..17 {
            let key: Vec<u8> = (0..length).collect();
            let whole = [&key[..], &[9, 8, 7, 6]].concat();
            assert_eq!(Prefix::new(&key).hash_with([9, 8, 7, 6]), murmur3_x86_32(&whole), "{length}");
        }
    }
}
