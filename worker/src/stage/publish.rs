//! Brings staged files into the storage, when they are closed or synced and, after a failure, in the background.

use super::{
    Stage,
    file::{Base, Staged},
    journal::{FileRecord, Record},
    turns::Claim,
};
use common::{Error, ErrorKind, Result, Timestamp, UfsPath};
use futures::{StreamExt, stream};
use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};
use tokio::sync::OwnedRwLockWriteGuard;

/// Files that are published at the same time when all are.
const TOGETHER: usize = 16;

/// Names the time since the machine was started; empty when it has no name.
pub(super) fn boot() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.map(|text| text.trim().to_owned()).unwrap_or_default()
    })
}

/// A file that nobody writes and of which nothing is sent, until this is dropped.
pub(crate) struct Alone {
    file: Arc<Staged>,
    _gate: OwnedRwLockWriteGuard<()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.file.state.lock().publishing = false;
    }
}

impl Staged {
    /// What the journal says of the file.
    fn record(&self, synced: bool) -> Record {
        let state = self.state.lock();
        let mut dirty = state.dirty.clone();
        for gone in state.gone.iter() {
            dirty.remove(gone);
        }
        let upload = state.upload.as_ref().filter(|upload| upload.planned_for.is_none()).map(|upload| {
            // Those that are not sent too: parts follow each other without gaps.
            let parts = upload.parts.iter().map(|part| {
                let etag = part.done.as_ref().map_or_else(String::new, |done| done.etag.clone());
                (part.number, part.range.start, part.range.end - part.range.start, etag)
            });
            (upload.id.clone(), upload.mark.clone(), parts.collect())
        });
        Record::File(Box::new(FileRecord {
            path: state.path.as_bytes().to_vec(),
            size: state.size,
            base: state
                .base
                .as_ref()
                .map(|base| (base.version.as_str().to_owned(), state.base_valid, base.path.as_bytes().to_vec())),
            dirty: dirty.iter().map(|range| (range.start, range.end)).collect(),
            upload,
            mark: state.mark.clone(),
            look: state.look.clone(),
            changed: (state.mtime.sec, state.mtime.nsec),
            synced,
            boot: boot().to_owned(),
        }))
    }

    /// Writes the file into the journal; `durable`: its bytes too, so that both outlive the loss of power.
    pub(crate) async fn note(self: &Arc<Self>, stage: &Arc<Stage>, durable: bool) -> Result<()> {
        let record = self.record(durable);
        if durable {
            let (file, directory) = (self.file()?, stage.directory.clone());
            let sync = move || {
                file.sync_data()?;
                std::fs::File::open(directory)?.sync_all()
            };
            let synced = tokio::task::spawn_blocking(sync).await.map_err(std::io::Error::other).flatten();
            synced.map_err(|error| Error::io(format!("{}: stage file", self.path()), error))?;
        }
        stage.append(self.id, record, durable).await?;
        let mut state = self.state.lock();
        state.journalled = true;
        state.durable |= durable;
        Ok(())
    }

    /// Forgets it in the journal, before the stage file goes.
    pub(crate) async fn unnote(&self, stage: &Arc<Stage>) -> Result<()> {
        let (journalled, durable) = {
            let state = self.state.lock();
            (state.journalled, state.durable)
        };
        if journalled {
            stage.append(self.id, Record::Done, durable).await?;
            let mut state = self.state.lock();
            (state.journalled, state.durable) = (false, false);
        }
        Ok(())
    }

    /// Puts the file into the storage if it changed. `sync`: a failure leaves it where it outlives the loss of power.
    pub(crate) async fn publish(self: &Arc<Self>, sync: bool) -> Result<()> {
        if !self.state.lock().is_dirty() {
            return Ok(());
        }
        let (stage, file) = (self.stage()?, self.clone());
        let all = async move {
            let stage = file.stage()?;
            let _turn = loop {
                let path = file.path();
                let turn = stage.turns.take(vec![Claim::name(&path)]).await;
                // Renamed while it waited?
                if file.path() == path {
                    break turn;
                }
            };
            file.publish_in_turn(&stage, sync).await
        };
        stage.whole(all).await
    }

    /// The same, and does not wait for ever: an upload that makes no progress goes on without who waits.
    pub(crate) async fn publish_told(self: &Arc<Self>, sync: bool) -> Result<()> {
        let patience = self.stage()?.options.patience;
        let work = self.publish(sync);
        tokio::pin!(work);
        loop {
            let steps = self.steps.load(Ordering::Relaxed);
            match tokio::time::timeout(patience, &mut work).await {
                Ok(done) => return done,
                Err(_) if self.steps.load(Ordering::Relaxed) != steps => {}
                Err(_) => {
                    let why = format!("the upload made no progress for {patience:?}; it goes on in the background");
                    return Err(Error::new(ErrorKind::TimedOut, format!("{}: {why}", self.path())));
                }
            }
        }
    }

    /// The same for who has the turn of its name, in a task that nobody gives up.
    pub(crate) async fn publish_in_turn(self: &Arc<Self>, stage: &Arc<Stage>, sync: bool) -> Result<()> {
        let _alone = self.alone().await;
        self.publish_alone(stage, sync).await
    }

    /// Holds the file as it is: nobody writes, and nothing of it is sent.
    pub(crate) async fn alone(self: &Arc<Self>) -> Alone {
        // No part begins from now on.
        self.state.lock().publishing = true;
        let alone = Alone { file: self.clone(), _gate: self.gate.clone().write_owned().await };
        loop {
            self.quiet().await;
            let mut state = self.state.lock();
            // The beginning of an upload that ended meanwhile may have begun parts.
            if state.running == 0 {
                state.publishing = true;
                break;
            }
        }
        alone
    }

    /// The same for who holds it alone.
    pub(crate) async fn publish_alone(self: &Arc<Self>, stage: &Arc<Stage>, sync: bool) -> Result<()> {
        let (changed, path) = {
            let state = self.state.lock();
            if !state.is_dirty() {
                return Ok(());
            }
            (state.changed, state.path.clone())
        };
        self.note(stage, false).await?;
        let uploaded = match self.upload(stage).await {
            Err(error) if error.kind() == ErrorKind::Stale && self.rebase().await.unwrap_or(false) => {
                self.upload(stage).await
            }
            uploaded => uploaded,
        };
        let (version, bytes) = match uploaded {
            Ok(done) => done,
            Err(error) => {
                {
                    let mut state = self.state.lock();
                    state.failure = Some((error.clone(), Timestamp::now()));
                    state.failures += 1;
                }
                tracing::warn!("{path}: not uploaded, kept in the stage: {error}");
                // With what was sent so far, for whoever goes on; nobody can do that after a loss of power with bytes that
                // were not synced.
                let _ = sync;
                if let Err(error) = self.note(stage, true).await {
                    tracing::error!("{path}: not in the journal: {error}");
                }
                self.retry_later(stage);
                return Err(error);
            }
        };
        let (look, size) = {
            let mut state = self.state.lock();
            let base = Base { path: path.clone(), version: version.clone() };
            state.base = Some(base);
            state.base_valid = state.size;
            state.dirty.clear();
            state.gone.clear();
            state.published = changed;
            state.failure = None;
            state.failures = 0;
            state.touched = 0;
            (state.look.clone(), state.size)
        };
        // In the journal before this file leaves it.
        let noted = stage.attributes.set(&path, Some(&version), &look).await;
        if let Err(error) = self.unnote(stage).await {
            // Kept here until the journal takes it, or the next mount uploads the same bytes again.
            tracing::warn!("{path}: {error}");
        }
        stage.found_again(&path).await;
        stage.caches.stored(&path);
        if let Some(bytes) = bytes
            && size > 0
        {
            stage.caches.seed(&path, Arc::new(self.attr()), bytes);
        }
        stage.changed.notify_waiters();
        noted
    }

    /// Tries again in the background, unless somebody does already.
    pub(crate) fn retry_later(self: &Arc<Self>, stage: &Arc<Stage>) {
        let failures = {
            let mut state = self.state.lock();
            if std::mem::replace(&mut state.retrying, true) {
                return;
            }
            state.failures
        };
        let (weak, longest, first) = (Arc::downgrade(self), stage.options.retry_longest, stage.options.retry_first);
        let mut pause = if failures == 0 { Duration::ZERO } else { first };
        stage.handle.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).clamp(first, longest);
                let Some(file) = weak.upgrade() else { return };
                let Ok(stage) = file.stage() else { return };
                if stage.ended.load(Ordering::Relaxed) {
                    return;
                }
                let done = file.publish(false).await.is_ok();
                if done || !file.state.lock().is_dirty() {
                    file.state.lock().retrying = false;
                    stage.let_go(&file);
                    return;
                }
            }
        });
    }
}

impl Stage {
    /// Drops a file that nobody has open and that is in the storage, or whose name is gone.
    pub(crate) fn let_go(self: &Arc<Self>, staged: &Arc<Staged>) {
        let mut files = self.files.lock();
        let state = staged.state.lock();
        if state.opens > 0 || state.is_dirty() || state.running > 0 {
            return;
        }
        if state.journalled {
            // The journal could not be told before.
            let (stage, staged) = (self.clone(), staged.clone());
            self.handle.spawn(async move {
                match staged.unnote(&stage).await {
                    Ok(()) => stage.let_go(&staged),
                    Err(error) => tracing::warn!("{}: kept in the stage: {error}", staged.path()),
                }
            });
            return;
        }
        if files.get(&state.path).is_some_and(|known| Arc::ptr_eq(known, staged)) {
            files.remove(&state.path);
        }
        drop(state);
        drop(files);
        staged.discard(self);
    }

    /// Puts everything below `directory` into the storage that was closed and is not there.
    pub(crate) async fn sync_below(self: &Arc<Self>, directory: &UfsPath) -> Result<()> {
        let files: Vec<Arc<Staged>> = {
            let files = self.files.lock();
            files.iter().filter(|(path, _)| path.is_within(directory)).map(|(_, staged)| staged.clone()).collect()
        };
        let published = files.into_iter().map(|staged| async move {
            // What is still being written is not complete, and is synced by its own handle.
            let closed = {
                let state = staged.state.lock();
                state.opens == 0 || state.failure.is_some() || self.options.writeback
            };
            let done = if closed { staged.publish(true).await } else { Ok(()) };
            self.let_go(&staged);
            done
        });
        let published: Vec<Result<()>> = stream::iter(published).buffer_unordered(TOGETHER).collect().await;
        self.attributes.write_all(Some(directory)).await?;
        published.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }
}
