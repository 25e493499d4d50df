//! Changes that somebody else made: what the daemon forgets at once, and what the kernel is told to forget.
//!
//! The kernel is told by a thread of its own ([`Notices::next`]), never by one that answers requests: while it takes such
//! a notice it may wait for a request that we are to answer. Pages are never invalidated: an open file is one version, and
//! the next open compares versions; only attributes and names are.
//!
//! Invariants: noting a change waits for nobody; the queue is bounded: beyond that the attributes of all inodes are
//! forgotten instead, in one pass however much is noted until it begins; the name of a directory is only forgotten when it
//! may be gone, since with a name the kernel drops what is mounted below it.

use super::{Fs, inode::Inode};
use common::{FileKind, UfsPath};
use parking_lot::{Condvar, Mutex};
use std::{collections::VecDeque, sync::Arc, time::Instant};

/// Notices that may wait to be sent.
const WAITING: usize = 64 << 10;

/// What the kernel has to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The attributes of a node.
    Attributes(u64),
    /// The attributes of every node ([`Fs::all_nodes`]).
    Everything,
    /// What a name in a directory stands for.
    Name {
        /// The directory's node.
        parent: u64,
        /// The name.
        name: Box<[u8]>,
    },
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Notice>,
    /// Somebody takes notices; without, none are kept.
    attended: bool,
    closed: bool,
    /// Everything is to be forgotten, which no notice needs to be added to.
    everything: bool,
}

/// Notices on their way to the kernel.
#[derive(Default)]
pub struct Notices {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Notices {
    /// From now on notices are kept for [`next`](Self::next).
    pub fn attend(&self) {
        self.queue.lock().attended = true;
    }

    /// The next notice, waited for; none once it is closed.
    pub fn next(&self) -> Option<Notice> {
        let mut queue = self.queue.lock();
        loop {
            if queue.closed {
                return None;
            }
            if std::mem::take(&mut queue.everything) {
                return Some(Notice::Everything);
            }
            if let Some(notice) = queue.waiting.pop_front() {
                return Some(notice);
            }
            self.arrived.wait(&mut queue);
        }
    }

    /// Ends [`next`](Self::next).
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.waiting.clear();
        self.arrived.notify_all();
    }

    fn add(&self, notices: impl IntoIterator<Item = Notice>) {
        let mut queue = self.queue.lock();
        if !queue.attended || queue.closed || queue.everything {
            return;
        }
        for notice in notices {
            if queue.waiting.len() >= WAITING {
                queue.forget_everything();
                break;
            }
            // What is told twice in a row is told once.
            if queue.waiting.back() != Some(&notice) {
                queue.waiting.push_back(notice);
            }
        }
        self.arrived.notify_one();
    }

    /// Everything is to be forgotten.
    fn add_everything(&self) {
        let mut queue = self.queue.lock();
        if queue.attended && !queue.closed {
            queue.forget_everything();
            self.arrived.notify_one();
        }
    }

    /// Whether a pass over everything is still to begin.
    fn everything_waits(&self) -> bool {
        self.queue.lock().everything
    }
}

impl Queue {
    fn forget_everything(&mut self) {
        self.everything = true;
        self.waiting = VecDeque::new();
    }
}

impl Fs {
    /// What the kernel has to be told; [`Notices::attend`] before anything is.
    pub fn notices(&self) -> &Arc<Notices> {
        &self.notices
    }

    /// Somebody else changed these files (`below`: and perhaps everything below them). What the worker has cached of them
    /// must be forgotten before.
    pub fn changed_elsewhere(&self, paths: &[UfsPath], below: bool) {
        for path in paths {
            if path.is_root() && below {
                self.everything_changed();
                return;
            }
        }
        if self.notices.everything_waits() {
            // The kernel will be told anyhow; only what is listed here must not be kept any longer.
            self.relist_everything();
            return;
        }
        for path in paths {
            self.notices.add(self.notices_of(path, below));
        }
        if below {
            let changed = self.inodes.all(|inode| {
                let at = inode.path();
                paths.iter().any(|path| at.is_within(path))
            });
            for inode in &changed {
                unlist(inode);
            }
            self.notices.add(changed.iter().map(|inode| Notice::Attributes(inode.id)));
        }
    }

    /// The nodes that the kernel may hold, a part at a time.
    pub fn all_nodes(&self) -> impl Iterator<Item = Vec<u64>> {
        self.inodes.ids_by_part()
    }

    fn notices_of(&self, path: &UfsPath, below: bool) -> Vec<Notice> {
        let mut notices = Vec::with_capacity(3);
        let inode = self.inodes.find_path(path);
        if let Some(inode) = &inode {
            unlist(inode);
            notices.push(Notice::Attributes(inode.id));
        }
        if let (Some(parent), Some(name)) = (path.parent(), path.name())
            && let Some(parent) = self.inodes.find_path(&parent)
        {
            unlist(&parent);
            notices.push(Notice::Attributes(parent.id));
            if below || inode.is_none_or(|inode| inode.kind != FileKind::Directory) {
                notices.push(Notice::Name { parent: parent.id, name: name.into() });
            }
        }
        notices
    }

    /// Anything may have changed: all attributes are forgotten, and the names age.
    fn everything_changed(&self) {
        self.relist_everything();
        self.notices.add_everything();
    }

    fn relist_everything(&self) {
        *self.relisted.lock() = Some(Instant::now());
    }
}

/// The kernel may not keep the entries that it has of this directory over the next open.
fn unlist(inode: &Inode) {
    if inode.kind == FileKind::Directory {
        let mut state = inode.state.lock();
        state.cached = None;
        state.listed = None;
        state.changed = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attended() -> Notices {
        let notices = Notices::default();
        notices.attend();
        notices
    }

    #[test]
    fn what_is_told_twice_in_a_row_is_told_once() {
        let notices = attended();
        notices.add([Notice::Attributes(7), Notice::Attributes(7), Notice::Attributes(8)]);
        assert_eq!(notices.next(), Some(Notice::Attributes(7)));
        assert_eq!(notices.next(), Some(Notice::Attributes(8)));
        notices.close();
        assert_eq!(notices.next(), None);
    }

    #[test]
    fn more_than_there_is_room_for_is_one_pass_over_everything() {
        let notices = attended();
        for round in 0..3 {
            notices.add((0..WAITING as u64 + 5).map(|id| Notice::Attributes(2 * id + round)));
            assert!(notices.everything_waits());
        }
        notices.add_everything();
        assert_eq!(notices.next(), Some(Notice::Everything));
        // What is noted once the pass has begun may have come too late for it.
        notices.add([Notice::Attributes(9)]);
        assert_eq!(notices.next(), Some(Notice::Attributes(9)));
        assert!(notices.queue.lock().waiting.is_empty() && !notices.everything_waits());
    }
}
