//! The hash ring: which workers own a path, in which order they are asked.
//!
//! Alluxio's clients compute the same ring on their own, so the order is fixed to the bit (reference:
//! alluxio-interfaces.md, "Ring"): virtual node `i` of a worker stands at `murmur3(identifier || version || i)`, a key's
//! attempts 1, 2, … stand at `murmur3(key || attempt)`, hashes are compared as signed numbers, each attempt takes the
//! first virtual node at or after it, and distinct workers are collected in the order in which they are met. When two
//! virtual nodes fall on one hash the worker with the greater identity has it.
//!
//! The map is a sorted array of hashes with an index on their leading bits, not a tree: a ring of 1,000 workers with
//! 2,000 virtual nodes each takes 12 MiB and a lookup touches a few cache lines.

mod murmur3;

use murmur3::murmur3_x86_32;
use std::{fmt, sync::Arc};

/// Attempts after which a lookup is content with the workers it has found.
const MAX_ATTEMPTS: i32 = 100;

/// Who a worker is, independent of its address. Ordered as the ring inserts them: by identifier, then version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerIdentity {
    /// 16 bytes, a UUID.
    pub identifier: [u8; 16],
    /// Version of the identity's format; 1 today.
    pub version: i32,
}

impl WorkerIdentity {
    /// The identity with these 32 hexadecimal digits (hyphens are skipped), of version 1.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.strip_prefix("worker-").unwrap_or(text).chars().filter(|c| *c != '-').collect();
        if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let identifier = u128::from_str_radix(&digits, 16).ok()?;
        Some(Self { identifier: identifier.to_be_bytes(), version: 1 })
    }

    /// The identifier as 32 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.identifier))
    }
}

impl fmt::Display for WorkerIdentity {
    /// `worker-` and the identifier in the form of a UUID.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = self.hex();
        write!(f, "worker-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for WorkerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A worker on the ring and how many virtual nodes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted {
    /// The worker.
    pub identity: WorkerIdentity,
    /// Its virtual nodes.
    pub virtual_nodes: u32,
}

/// An immutable ring; a change of membership builds a new one.
pub struct Ring {
    workers: Arc<[WorkerIdentity]>,
    /// Hashes in ascending order, mapped to unsigned so that the order of the signed numbers is kept.
    hashes: Vec<u32>,
    /// The worker (index) that has the hash at the same place.
    owners: Vec<u16>,
    /// For each value of the leading bits, the place of the first hash that is not below it.
    index: Vec<u32>,
    shift: u32,
}

/// More workers than this cannot stand on one ring.
pub const MAX_WORKERS: usize = u16::MAX as usize;

impl Ring {
    /// A ring on which each worker has the same number of virtual nodes (Alluxio's DEFAULT).
    pub fn uniform(workers: &[WorkerIdentity], virtual_nodes: u32) -> Self {
        Self::build(workers.iter().map(|identity| Weighted { identity: *identity, virtual_nodes }).collect())
    }

    /// A ring on which virtual nodes follow capacities (Alluxio's CAPACITY): `virtual_nodes` for each worker on
    /// average, shared out in proportion, at least one for each worker that has any capacity. Capacities of 0 throughout mean equal ones.
    pub fn by_capacity(workers: &[(WorkerIdentity, u64)], virtual_nodes: u32) -> Self {
        let total: u128 = workers.iter().map(|(_, capacity)| u128::from(*capacity)).sum();
        if total == 0 {
            let workers: Vec<_> = workers.iter().map(|(identity, _)| *identity).collect();
            return Self::uniform(&workers, virtual_nodes);
        }
        let nodes = u128::from(virtual_nodes) * workers.len() as u128;
        let share = |capacity: u64| {
            let share = (nodes * u128::from(capacity) + total / 2) / total;
            u32::try_from(share).unwrap_or(u32::MAX).max(u32::from(capacity > 0))
        };
        Self::build(
            workers
                .iter()
                .map(|(identity, capacity)| Weighted { identity: *identity, virtual_nodes: share(*capacity) })
                .collect(),
        )
    }

    /// A ring of exactly these. A worker named twice counts once, with the virtual nodes it was first named with;
    /// beyond [`MAX_WORKERS`] the rest is left out.
    pub fn build(mut workers: Vec<Weighted>) -> Self {
        workers.sort_by_key(|worker| worker.identity);
        workers.dedup_by_key(|worker| worker.identity);
        workers.truncate(MAX_WORKERS);
        let total: usize = workers.iter().map(|worker| worker.virtual_nodes as usize).sum();
        // Hash above, order of insertion below: one sort gives the map, and the last of equal hashes is the winner.
        let mut nodes: Vec<u64> = Vec::with_capacity(total);
        for (at, worker) in workers.iter().enumerate() {
            let mut bytes = [0; 24];
            bytes[..16].copy_from_slice(&worker.identity.identifier);
            bytes[16..20].copy_from_slice(&worker.identity.version.to_le_bytes());
            for node in 0..worker.virtual_nodes {
                bytes[20..].copy_from_slice(&node.to_le_bytes());
                nodes.push(u64::from(ordered(murmur3_x86_32(&bytes))) << 32 | at as u64);
            }
        }
        nodes.sort_unstable();
        let mut hashes: Vec<u32> = Vec::with_capacity(nodes.len());
        let mut owners: Vec<u16> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let (hash, owner) = ((node >> 32) as u32, node as u16);
            if hashes.last() == Some(&hash) {
                if let Some(last) = owners.last_mut() {
                    *last = owner;
                }
            } else {
                hashes.push(hash);
                owners.push(owner);
            }
        }
        // About four hashes for each value of the leading bits.
        let bits = (hashes.len() / 4).max(1).ilog2().clamp(1, 20);
        let shift = 32 - bits;
        let mut index = Vec::with_capacity((1 << bits) + 1);
        let mut place = 0;
        for leading in 0..1u64 << bits {
            let start = leading << shift;
            while hashes.get(place).is_some_and(|hash| u64::from(*hash) < start) {
                place += 1;
            }
            index.push(place as u32);
        }
        Self { workers: workers.iter().map(|worker| worker.identity).collect(), hashes, owners, index, shift }
    }

    /// The workers on it, in order of identity.
    pub fn workers(&self) -> &[WorkerIdentity] {
        &self.workers
    }

    /// Whether nobody is on it.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Up to `count` distinct workers for `key` (a full UFS path), in the order in which they are to be asked.
    pub fn lookup(&self, key: &[u8], count: usize) -> Vec<WorkerIdentity> {
        let wanted = count.min(self.workers.len());
        let mut found: Vec<u16> = Vec::with_capacity(wanted);
        if self.is_empty() {
            return Vec::new();
        }
        let mut hasher = murmur3::Prefix::new(key);
        for attempt in 1..=MAX_ATTEMPTS {
            if found.len() == wanted {
                break;
            }
            let owner = self.owner_of(ordered(hasher.hash_with(attempt.to_le_bytes())));
            if !found.contains(&owner) {
                found.push(owner);
            }
        }
        found.into_iter().map(|owner| self.workers[usize::from(owner)]).collect()
    }

    /// Bytes that it holds.
    pub fn memory(&self) -> usize {
        self.hashes.capacity() * 4
            + self.owners.capacity() * 2
            + self.index.capacity() * 4
            + self.workers.len() * size_of::<WorkerIdentity>()
    }

    /// The owner of the first virtual node at or after `hash`, around the end.
    fn owner_of(&self, hash: u32) -> u16 {
        let mut place = self.index[(hash >> self.shift) as usize] as usize;
        while self.hashes.get(place).is_some_and(|at| *at < hash) {
            place += 1;
        }
        self.owners[if place == self.hashes.len() { 0 } else { place }]
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ring({} workers, {} virtual nodes)", self.workers.len(), self.hashes.len())
    }
}

/// A signed hash as an unsigned number of the same order.
fn ordered(hash: i32) -> u32 {
    hash as u32 ^ 0x8000_0000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn identity(number: u64) -> WorkerIdentity {
        let mut identifier = [0; 16];
        identifier[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        identifier[8..].copy_from_slice(&number.to_be_bytes());
        WorkerIdentity { identifier, version: 1 }
    }

    /// The ring as the reference words it: an ordered map.
    struct Model(BTreeMap<i32, WorkerIdentity>);

    impl Model {
        fn new(workers: &[WorkerIdentity], nodes: i32) -> Self {
            let mut workers = workers.to_vec();
            workers.sort();
            let mut map = BTreeMap::new();
            for worker in workers {
                for node in 0..nodes {
                    let mut bytes = worker.identifier.to_vec();
                    bytes.extend(worker.version.to_le_bytes());
                    bytes.extend(node.to_le_bytes());
                    map.insert(murmur3_x86_32(&bytes), worker);
                }
            }
            Self(map)
        }

        fn lookup(&self, key: &[u8], count: usize) -> Vec<WorkerIdentity> {
            let mut found = Vec::new();
            for attempt in 1..=100i32 {
                if found.len() == count {
                    break;
                }
                let hash = murmur3_x86_32(&[key, &attempt.to_le_bytes()].concat());
                let entry = self.0.range(hash..).next().or_else(|| self.0.iter().next());
                if let Some((_, worker)) = entry
                    && !found.contains(worker)
                {
                    found.push(*worker);
                }
            }
            found
        }
    }

    #[test]
    fn hashes_are_those_of_the_reference() {
        let worker = WorkerIdentity::parse("b785d1f098863821a4eb6bee226c35b7").unwrap();
        let hash = |node: i32| {
            let mut bytes = worker.identifier.to_vec();
            bytes.extend(worker.version.to_le_bytes());
            bytes.extend(node.to_le_bytes());
            murmur3_x86_32(&bytes)
        };
        let hashes: Vec<i32> = (0..5).map(hash).collect();
        assert_eq!(hashes, [-650059480, 347339085, 408849612, 1573984571, 50999564]);
        let mut key = murmur3::Prefix::new(b"s3://bucket/path");
        assert_eq!(key.hash_with(1i32.to_le_bytes()), -1044549748);
        assert_eq!(key.hash_with(2i32.to_le_bytes()), -1394211619);
    }

    #[test]
    fn identities_print_and_parse() {
        let worker = WorkerIdentity::parse("b785d1f098863821a4eb6bee226c35b7").unwrap();
        assert_eq!(worker.to_string(), "worker-b785d1f0-9886-3821-a4eb-6bee226c35b7");
        assert_eq!(WorkerIdentity::parse(&worker.to_string()), Some(worker));
        for text in ["", "b785", "g785d1f098863821a4eb6bee226c35b7", "+785d1f098863821a4eb6bee226c35b7"] {
            assert_eq!(WorkerIdentity::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_an_ordered_map(
            workers in proptest::collection::btree_set(any::<u64>(), 0..9),
            nodes in 1u32..40,
            keys in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20),
            count in 0usize..6,
        ) {
            let workers: Vec<_> = workers.into_iter().map(identity).collect();
            let ring = Ring::uniform(&workers, nodes);
            let model = Model::new(&workers, nodes as i32);
            for key in keys {
                prop_assert_eq!(ring.lookup(&key, count), model.lookup(&key, count.min(workers.len())));
            }
        }
    }

    #[test]
    fn a_further_worker_moves_only_its_share() {
        let workers: Vec<_> = (0..21).map(identity).collect();
        for count in [1, 3, 10, 20] {
            let before = Ring::uniform(&workers[..count], 2000);
            let after = Ring::uniform(&workers[..=count], 2000);
            let keys = 100_000;
            let moved = (0..keys)
                .filter(|key| {
                    let key = format!("s3://bucket/dir/{key}");
                    before.lookup(key.as_bytes(), 1) != after.lookup(key.as_bytes(), 1)
                })
                .count();
            let most = 1.1 * f64::from(keys) / (count + 1) as f64;
            assert!((moved as f64) <= most, "{count} workers: {moved} of {keys} moved, at most {most} may");
        }
    }

    #[test]
    fn the_load_is_even_and_follows_capacity() {
        let workers: Vec<_> = (0..100).map(identity).collect();
        let ring = Ring::uniform(&workers, 2000);
        let keys = 400_000u32;
        let mut held = BTreeMap::new();
        for key in 0..keys {
            *held.entry(ring.lookup(format!("s3://b/{key}").as_bytes(), 1)[0]).or_insert(0u32) += 1;
        }
        let worst = f64::from(*held.values().max().unwrap()) * 100.0 / f64::from(keys);
        assert!(worst <= 1.15, "the worst worker holds {worst} of the mean");

        let sized: Vec<_> = workers[..4].iter().zip([1u64, 2, 3, 4]).map(|(w, c)| (*w, c << 30)).collect();
        let ring = Ring::by_capacity(&sized, 20_000);
        let mut held = BTreeMap::new();
        for key in 0..keys {
            *held.entry(ring.lookup(format!("s3://b/{key}").as_bytes(), 1)[0]).or_insert(0u32) += 1;
        }
        for (worker, capacity) in &sized {
            let due = f64::from(keys) * (capacity >> 30) as f64 / 10.0;
            let ratio = f64::from(held[worker]) / due;
            assert!((0.95..=1.05).contains(&ratio), "{worker} holds {ratio} of its share");
        }
    }

    #[test]
    fn nobody_on_the_ring_is_no_answer() {
        assert!(Ring::uniform(&[], 2000).lookup(b"key", 3).is_empty());
        assert!(Ring::uniform(&[identity(1)], 0).lookup(b"key", 3).is_empty());
    }

    #[test]
    fn a_large_ring_is_small() {
        let workers: Vec<_> = (0..1000).map(identity).collect();
        let ring = Ring::uniform(&workers, 2000);
        assert!(ring.memory() <= 40 << 20, "{} bytes", ring.memory());
        assert_eq!(ring.lookup(b"s3://bucket/path", 3).len(), 3);
    }
}
