//! Publishing to and unpublishing from targets.
//!
//! Invariants: one operation at a time for a target, and a second is ABORTED at once; an operation outlives the call that
//! began it, so that it is never half done because a deadline passed; a target in the table has a record on disk, or is
//! about to.

use super::{
    records::{Records, TargetRecord},
    sessions::{Sessions, Settled, Slot, flags},
    sys::{self, blocking},
};
use crate::{keys::Settings, volume::Publication};
use common::mountinfo::{Device, Mount};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tonic::Status;

/// How long a bind mount may take; finding a sub-directory asks the file system.
const BINDING: Duration = Duration::from_secs(20);
/// How long it may take to unmount a target.
const UNMOUNTING: Duration = Duration::from_secs(15);

/// The targets of this node.
#[derive(Debug)]
pub struct Targets {
    table: Mutex<HashMap<PathBuf, TargetRecord>>,
    busy: Arc<Mutex<HashSet<PathBuf>>>,
    records: Records,
}

/// The right to change a target, until it is dropped.
#[derive(Debug)]
pub struct Claim {
    busy: Arc<Mutex<HashSet<PathBuf>>>,
    target: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.busy.lock().remove(&self.target);
    }
}

impl Targets {
    /// None yet.
    pub fn new(records: Records) -> Self {
        Self { table: Mutex::default(), busy: Arc::default(), records }
    }

    /// Claims a target.
    ///
    /// # Errors
    /// ABORTED: another operation has it.
    pub fn claim(&self, target: &Path) -> Result<Claim, Status> {
        if !self.busy.lock().insert(target.to_owned()) {
            return Err(Status::aborted(format!(
                "another call for {} is still under way; repeat this one later",
                target.display()
            )));
        }
        Ok(Claim { busy: self.busy.clone(), target: target.to_owned() })
    }

    /// The record of a target.
    pub fn get(&self, target: &Path) -> Option<TargetRecord> {
        self.table.lock().get(target).cloned()
    }

    /// All records.
    pub fn all(&self) -> Vec<TargetRecord> {
        self.table.lock().values().cloned().collect()
    }

    /// The targets of a session.
    pub fn of(&self, key: &str) -> Vec<TargetRecord> {
        self.table.lock().values().filter(|record| record.publication.volume.key() == key).cloned().collect()
    }

    /// Adds a record that was on disk already.
    pub fn remember(&self, record: TargetRecord) {
        self.table.lock().insert(record.target.clone(), record);
    }

    /// Publishes. Repeating it is as good as doing it once.
    ///
    /// # Errors
    /// ALREADY_EXISTS: the target has another volume, or the same one in another way; FAILED_PRECONDITION: the volume may be
    /// at one place only; and whatever stops the session.
    pub async fn publish(
        &self,
        sessions: &Sessions,
        volume_id: &str,
        target: &Path,
        publication: Publication,
        secrets: &Settings,
    ) -> Result<(), Status> {
        let known = self.get(target);
        let publication = match &known {
            Some(record) => same(record, volume_id, publication)?,
            None => publication,
        };
        self.alone(volume_id, target, &publication)?;
        let record = TargetRecord {
            volume_id: volume_id.to_owned(),
            target: target.to_owned(),
            publication,
            boot: self.records.boot().to_owned(),
        };
        // From here on the session has a user, so that nobody closes it.
        self.table.lock().insert(target.to_owned(), record.clone());
        let done = self.mount(sessions, &record, secrets).await;
        if done.is_err() && known.is_none() {
            self.undo(&record).await;
        }
        done
    }

    async fn mount(&self, sessions: &Sessions, record: &TargetRecord, secrets: &Settings) -> Result<(), Status> {
        let volume = &record.publication.volume;
        let (slot, device) = sessions.ensure(volume, secrets).await?;
        let (records, written) = (self.records.clone(), record.clone());
        blocking("writing a record", BINDING, move || {
            records
                .write_target(&written)
                .map_err(|error| Status::internal(format!("the record of {}: {error}", written.target.display())))
        })
        .await?;
        bind(&slot, device, record, false).await
    }

    /// Takes back what a failed publish began.
    async fn undo(&self, record: &TargetRecord) {
        let (records, target) = (self.records.clone(), record.target.clone());
        let undone = blocking("undoing a publish", UNMOUNTING, move || {
            sys::unmount(&target, 0)?;
            // It may have been there before, with something in it.
            let _ = sys::remove_target(&target);
            records.remove_target(&target).map_err(|error| Status::internal(error.to_string()))
        });
        match undone.await {
            Ok(()) => {
                self.table.lock().remove(&record.target);
            }
            // It stays known, and is unpublished by kubelet.
            Err(status) => tracing::warn!("{}: {}", record.target.display(), status.message()),
        }
    }

    /// A volume for one pod is at one target only.
    fn alone(&self, volume_id: &str, target: &Path, publication: &Publication) -> Result<(), Status> {
        let table = self.table.lock();
        let other = table.values().find(|record| {
            record.volume_id == volume_id
                && record.target != target
                && (publication.exclusive || record.publication.exclusive)
        });
        match other {
            None => Ok(()),
            Some(other) => Err(Status::failed_precondition(format!(
                "the volume may be used by one pod only (ReadWriteOncePod) and is published at {}",
                other.target.display()
            ))),
        }
    }

    /// Unpublishes. Works without a record, on dead mounts, and on several on top of each other.
    ///
    /// # Errors
    /// UNAVAILABLE: what was written is not in the storage within `limit`; it goes on, and the call is repeated. Something that
    /// is not ours is mounted there or lies there, or the kernel refuses.
    pub async fn unpublish(
        &self,
        sessions: &Sessions,
        volume_id: &str,
        target: &Path,
        limit: Duration,
    ) -> Result<(), Status> {
        if let Some(record) = self.get(target) {
            if record.volume_id != volume_id {
                // That volume is not there, which is what is wanted; the one that is belongs to somebody else.
                tracing::warn!(
                    "{} has volume {}, not {volume_id}; it is left alone",
                    target.display(),
                    record.volume_id
                );
                return Ok(());
            }
            self.settle(sessions, &record, limit).await?;
        }
        let (records, place) = (self.records.clone(), target.to_owned());
        blocking("unmounting", UNMOUNTING, move || {
            sys::unmount(&place, 0)?;
            sys::remove_target(&place)?;
            records
                .remove_target(&place)
                .map_err(|error| Status::internal(format!("the record of {}: {error}", place.display())))
        })
        .await?;
        self.table.lock().remove(target);
        Ok(())
    }

    /// Waits for the uploads of a session whose last target goes. The others that it has keep it alive, and it is closed only
    /// when everything is in the storage; so this is for whoever waits for the end of the pod to see its files.
    async fn settle(&self, sessions: &Sessions, record: &TargetRecord, limit: Duration) -> Result<(), Status> {
        let volume = &record.publication.volume;
        let key = volume.key();
        let Some(slot) = sessions.get(&key) else { return Ok(()) };
        if volume.readers || self.of(&key).len() > 1 {
            return Ok(());
        }
        let wait = |why: String| {
            Err(Status::unavailable(format!(
                "{}: {why}; what was written is kept on this node and goes on being uploaded, and the call is repeated by kubelet: \
                 look at the storage and its credentials, or remove the files below {} to give them up",
                volume.shown(),
                slot.source.display()
            )))
        };
        match sessions.settle(&key, limit).await {
            Settled::All => Ok(()),
            Settled::Pending(why) => wait(why),
            Settled::Unserved(why) if slot.can_start().await => wait(why),
            // Nobody can go on with it before a pod brings the credentials again, or nobody answers. The session stays.
            Settled::Unserved(why) | Settled::Unknown(why) => {
                tracing::warn!("{}: unmounted, and its session is kept: {why}", record.target.display());
                Ok(())
            }
        }
    }

    /// Forgets a target whose mount is gone for good.
    pub fn forget(&self, target: &Path) {
        if let Err(error) = self.records.remove_target(target) {
            tracing::warn!("the record of {}: {error}", target.display());
        }
        self.table.lock().remove(target);
    }
}

/// Binds a session to a target. When the right mount is there already nothing is done. With `over` the new mount comes on top
/// of one dead mount at most, so that containers which see the target's mounts see the new one too.
pub async fn bind(slot: &Arc<Slot>, device: Device, record: &TargetRecord, over: bool) -> Result<(), Status> {
    let (source, record, flags) = (slot.source.clone(), record.clone(), flags(&slot.volume));
    blocking("binding", BINDING, move || {
        let target = &record.target;
        let stack = sys::mounts_at(target)?;
        if is_there(&stack, device, &record.publication) {
            return Ok(());
        }
        if let Some(other) = stack.last().filter(|top| !top.is_ours()) {
            return Err(Status::failed_precondition(format!(
                "{}: {} ({}) is mounted there already; unmount it",
                target.display(),
                other.source,
                other.fs_type
            )));
        }
        sys::unmount(target, usize::from(over))?;
        if stack.is_empty() || !over {
            sys::make_target(target)?;
        }
        sys::bind(&source, device, &record.publication.directory, target, record.publication.read_only, flags)
    })
    .await
}

/// Whether a session's mount, and none else, is seen at a target as its record wants it.
pub fn is_bound(mounts: &[Mount], device: Device, record: &TargetRecord) -> bool {
    let stack: Vec<Mount> = mounts.iter().filter(|mount| mount.point == record.target).cloned().collect();
    is_there(&stack, device, &record.publication)
}

/// Whether the topmost mount is the one that is wanted.
fn is_there(stack: &[Mount], device: Device, publication: &Publication) -> bool {
    stack.last().is_some_and(|top| {
        top.device == device
            && top.is_ours()
            && top.read_only >= publication.read_only
            && top.root == Path::new("/").join(&publication.directory)
    })
}

/// What a repeated publish means: the same as before, or a contradiction.
fn same(record: &TargetRecord, volume_id: &str, wanted: Publication) -> Result<Publication, Status> {
    let had = &record.publication;
    if record.volume_id != volume_id {
        return Err(Status::already_exists(format!(
            "{} has volume {} already; unpublish it first",
            record.target.display(),
            record.volume_id
        )));
    }
    if *had == wanted {
        return Ok(wanted);
    }
    let mut renewed = wanted.clone();
    renewed.volume.identity.clone_from(&had.volume.identity);
    if *had == renewed {
        // New credentials reach a session only when it is started anew, for new pods.
        tracing::info!("{}: the credentials have changed; they are used from the next pod on", record.target.display());
        return Ok(renewed);
    }
    Err(Status::already_exists(format!(
        "{} has the volume already, with other attributes, options or access; unpublish it first",
        record.target.display()
    )))
}
