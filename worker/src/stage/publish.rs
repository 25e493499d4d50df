//! Brings staged files into the storage, when they are closed or synced and, after a failure, in the background.

use super::{
    Stage,
    file::{Base, Staged},
    journal::{FileRecord, Record},
    turns::Claim,
};
use common::{Error, ErrorKind, Result, Timestamp, UfsPath};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

impl Staged {
    /// What the journal says of the file.
    fn record(&self) -> Record {
        let state = self.state.lock();
        let mut dirty = state.dirty.clone();
        for gone in state.gone.iter() {
            dirty.remove(gone);
        }
        let upload = state.upload.as_ref().filter(|upload| upload.planned_for.is_none()).map(|upload| {
            let parts = upload.parts.iter().filter_map(|part| {
                let done = part.done.as_ref()?;
                Some((part.number, part.range.start, part.range.end - part.range.start, done.etag.clone()))
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
        }))
    }

    /// Writes the file into the journal; `durable`: its bytes too, so that both outlive the loss of power.
    pub(crate) async fn note(self: &Arc<Self>, stage: &Arc<Stage>, durable: bool) -> Result<()> {
        let record = self.record();
        if durable {
            let file = self.file()?;
            let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
            let synced = synced.map_err(std::io::Error::other).flatten();
            synced.map_err(|error| Error::io(format!("{}: stage file", self.path()), error))?;
        }
        let (journal, id) = (stage.journal.clone(), self.id);
        if durable {
            tokio::task::spawn_blocking(move || journal.append(id, record, true))
                .await
                .map_err(|gone| Error::io("journal", std::io::Error::other(gone)))??;
        } else {
            journal.append(id, record, false)?;
        }
        self.state.lock().journalled = true;
        Ok(())
    }

    /// Forgets it in the journal.
    pub(crate) fn unnote(&self, stage: &Stage) {
        let journalled = std::mem::take(&mut self.state.lock().journalled);
        if journalled && let Err(error) = stage.journal.append(self.id, Record::Done, false) {
            // The next mount uploads the same bytes again.
            tracing::warn!("{error}");
        }
    }

    /// Puts the file into the storage if it changed. `sync`: a failure leaves it where it outlives the loss of power.
    pub(crate) async fn publish(self: &Arc<Self>, sync: bool) -> Result<()> {
        if !self.state.lock().is_dirty() {
            return Ok(());
        }
        let stage = self.stage()?;
        let _turn = loop {
            let path = self.path();
            let turn = stage.turns.take(vec![Claim::name(&path)]).await;
            // Renamed while it waited?
            if self.path() == path {
                break turn;
            }
        };
        self.publish_in_turn(&stage, sync).await
    }

    /// The same for who has the turn of its name.
    pub(crate) async fn publish_in_turn(self: &Arc<Self>, stage: &Arc<Stage>, sync: bool) -> Result<()> {
        self.state.lock().publishing = true;
        let _alone = self.gate.write().await;
        self.quiet().await;
        let result = self.publish_alone(stage, sync).await;
        self.state.lock().publishing = false;
        result
    }

    async fn publish_alone(self: &Arc<Self>, stage: &Arc<Stage>, sync: bool) -> Result<()> {
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
                // With what was sent so far, for whoever goes on.
                if let Err(error) = self.note(stage, sync).await {
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
        self.unnote(stage);
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
        let mut result = Ok(());
        for staged in files {
            // What is still being written is not complete, and is synced by its own handle.
            let closed = {
                let state = staged.state.lock();
                state.opens == 0 || state.failure.is_some() || self.options.writeback
            };
            if closed && let Err(error) = staged.publish(true).await {
                result = Err(error);
            }
            self.let_go(&staged);
        }
        self.attributes.write_all(Some(directory)).await?;
        result
    }
}
