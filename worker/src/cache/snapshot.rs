//! The entries of one directory as a listing gave them.
//!
//! Invariant: its entries never change; what a change of one name leads to is another snapshot.

use crate::clock::Moment;
use common::worker::DirEntry;
use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Answers that show that a directory is in use, and not one of its files looked at now and then.
const IN_USE: u32 = 2;

/// The entries of a directory as a listing gave them.
#[derive(Debug)]
pub struct Snapshot {
    batches: Vec<Arc<[DirEntry]>>,
    /// Whether the batches follow each other in order of names, so that the batch of a name is found by bisection.
    ordered: bool,
    /// Whether these are all entries.
    pub(super) complete: bool,
    /// When the listing began.
    pub(super) at: Moment,
    /// How many entries there are.
    pub(super) len: usize,
    /// Lookups that were answered from here, up to [`IN_USE`].
    uses: AtomicU32,
}

impl Snapshot {
    /// What a listing that began at `at` gave, in batches that are each sorted by name.
    pub(super) fn new(batches: Vec<Arc<[DirEntry]>>, complete: bool, at: Moment) -> Self {
        let len = batches.iter().map(|batch| batch.len()).sum();
        let ends = |batch: &Arc<[DirEntry]>| batch.last().map(|entry| entry.name.clone());
        let ordered = batches.windows(2).all(|pair| match (ends(&pair[0]), pair[1].first()) {
            (Some(last), Some(first)) => last < first.name,
            _ => false,
        });
        Self { batches, ordered, complete, at, len, uses: AtomicU32::new(0) }
    }

    /// Counts a lookup that it answered.
    pub(super) fn note_use(&self) {
        // Looked at first, so that a directory that all threads use is not written by all of them.
        if self.uses.load(Ordering::Relaxed) < IN_USE {
            self.uses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether lookups are answered from it, and one request would make it anew.
    pub(super) fn is_worth_refreshing(&self) -> bool {
        self.complete && self.batches.len() <= 1 && self.uses.load(Ordering::Relaxed) >= IN_USE
    }

    /// The batches, each sorted by name.
    pub fn batches(&self) -> &[Arc<[DirEntry]>] {
        &self.batches
    }

    /// The same with another entry of this name, or without it.
    pub(super) fn with(&self, name: &[u8], entry: Option<&DirEntry>) -> Self {
        let mut batches = self.batches.clone();
        // Where it is, or where it belongs.
        let holds = |batch: &Arc<[DirEntry]>| batch.binary_search_by(|entry| (*entry.name).cmp(name)).is_ok();
        let at = match batches.iter().position(holds) {
            Some(at) => at,
            None if self.ordered => batches
                .partition_point(|batch| batch.last().is_some_and(|last| *last.name < *name))
                .min(batches.len().saturating_sub(1)),
            None => 0,
        };
        let mut batch: Vec<DirEntry> = batches.get(at).map(|batch| batch.to_vec()).unwrap_or_default();
        match (batch.binary_search_by(|entry| (*entry.name).cmp(name)), entry) {
            (Ok(at), Some(entry)) => batch[at] = entry.clone(),
            (Ok(at), None) => drop(batch.remove(at)),
            (Err(at), Some(entry)) => batch.insert(at, entry.clone()),
            (Err(_), None) => {}
        }
        match (at < batches.len(), batch.is_empty()) {
            (true, true) => drop(batches.remove(at)),
            (true, false) => batches[at] = batch.into(),
            (false, true) => {}
            (false, false) => batches.push(batch.into()),
        }
        let len = batches.iter().map(|batch| batch.len()).sum();
        let uses = AtomicU32::new(self.uses.load(Ordering::Relaxed));
        Self { batches, ordered: self.ordered, complete: self.complete, at: self.at, len, uses }
    }

    /// The entry of this name.
    pub fn get(&self, name: &[u8]) -> Option<&DirEntry> {
        let within = |batch: &'_ Arc<[DirEntry]>| batch.binary_search_by(|entry| (*entry.name).cmp(name)).ok();
        if self.ordered {
            let at = self.batches.partition_point(|batch| batch.last().is_some_and(|last| *last.name < *name));
            let batch = self.batches.get(at)?;
            within(batch).map(|at| &batch[at])
        } else {
            self.batches.iter().find_map(|batch| within(batch).map(|at| &batch[at]))
        }
    }
}
