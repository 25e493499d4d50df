//! Who may change which names now: changes of one name, or of a directory and what is below it, take turns.
//!
//! Invariants: two that overlap never run at the same time; a holder gives its turn back when it is dropped.

use common::UfsPath;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

/// A name, or a directory with all that is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    path: UfsPath,
    below: bool,
}

impl Claim {
    /// One name.
    pub(crate) fn name(path: &UfsPath) -> Self {
        Self { path: path.clone(), below: false }
    }

    /// A name and everything below it.
    pub(crate) fn tree(path: &UfsPath) -> Self {
        Self { path: path.clone(), below: true }
    }

    fn overlaps(&self, other: &Claim) -> bool {
        self.path == other.path
            || (self.below && other.path.is_within(&self.path))
            || (other.below && self.path.is_within(&other.path))
    }
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    held: Vec<(u64, Vec<Claim>)>,
}

/// The turns.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    table: Mutex<Table>,
    changed: Notify,
}

impl Turns {
    /// Waits until nobody holds what overlaps `claims`, and holds them.
    pub(crate) async fn take(self: &Arc<Self>, claims: Vec<Claim>) -> Turn {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut table = self.table.lock();
                let mut held = table.held.iter().flat_map(|(_, held)| held);
                if !held.any(|held| claims.iter().any(|claim| claim.overlaps(held))) {
                    table.next += 1;
                    let id = table.next;
                    table.held.push((id, claims));
                    return Turn { turns: self.clone(), id };
                }
            }
            changed.await;
        }
    }
}

/// A turn that is held.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    id: u64,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.table.lock().held.retain(|(id, _)| *id != self.id);
        self.turns.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn what_overlaps_waits() {
        let turns = Arc::new(Turns::default());
        let path = |text: &str| UfsPath::parse(text).unwrap();
        let tree = turns.take(vec![Claim::tree(&path("a"))]).await;
        for overlapping in [Claim::name(&path("a")), Claim::name(&path("a/b/c")), Claim::tree(&UfsPath::root())] {
            assert!(turns.take(vec![overlapping]).now_or_never().is_none());
        }
        let other = turns.take(vec![Claim::name(&path("ab")), Claim::tree(&path("b"))]).await;
        let mut waiting = std::pin::pin!(turns.take(vec![Claim::name(&path("a/b"))]));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(tree);
        waiting.await;
        drop(other);
        assert!(turns.table.lock().held.is_empty());
    }
}
