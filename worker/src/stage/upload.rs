//! How a staged file gets into the storage: in one piece, or in parts of which some are sent while it is still written and some
//! are copied by the storage from the object that is there.
//!
//! Invariants:
//! - a part that is sent counts only while nobody wrote into its range after its bytes were read;
//! - bytes that are given up here are never sent: a range that has such is an error, not zeros;
//! - an object is made only of parts that follow each other from the first byte to the last;
//! - parts of a file that grows follow a fixed rule of sizes, so that 10,000 of them reach the largest object;
//! - one part in memory for each that is under way, reserved in the budget; larger ones are sent from the stage file.

use super::{
    Stage,
    file::{Base, Staged, read_zeros},
    ranges::RangeSet,
};
use bytes::Bytes;
use common::{Error, ErrorKind, Result, Version, metrics::metrics};
use futures::{StreamExt, stream};
use std::{
    ops::Range,
    sync::{Arc, atomic::Ordering},
};
use ufs::{Body, Condition, Limits, Part};

/// The name of the metadata by which a finished upload is recognised.
pub(crate) const MARK: &str = "alluxio-upload";
/// Parts up to this size are sent from memory.
const IN_MEMORY: u64 = 16 << 20;
/// Bytes of a part that is copied by the storage.
const COPY: u64 = 256 << 20;
/// Parts of one size, before they double.
const SAME_SIZE: u64 = 1000;
/// Parts sent in vain after which a file is no more sent while it is written.
const PATIENCE: u32 = 8;

/// A part of an upload.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    pub(crate) range: Range<u64>,
    /// Copied from the base.
    copy: bool,
    pub(crate) done: Option<Part>,
    /// Counts the changes in its range.
    epoch: u64,
}

/// An upload in parts that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    pub(crate) id: String,
    pub(crate) mark: String,
    pub(crate) parts: Vec<Segment>,
    /// It was planned for this state of the file and none other; `None`: its parts follow the rule for files that grow.
    pub(crate) planned_for: Option<u64>,
}

impl Upload {
    /// An upload with these parts; those that have an etag are sent.
    pub(crate) fn resumed(id: String, mark: String, parts: Vec<super::journal::SentPart>) -> Self {
        let segment = |(number, start, length, etag): super::journal::SentPart| Segment {
            number,
            range: start..start + length,
            copy: false,
            done: (!etag.is_empty()).then_some(Part { number, etag }),
            epoch: 0,
        };
        Self { id, mark, parts: parts.into_iter().map(segment).collect(), planned_for: None }
    }

    /// Notes a change in `range`; returns how many parts were sent in vain.
    pub(crate) fn touch(&mut self, range: Range<u64>) -> u32 {
        let mut vain = 0;
        for part in &mut self.parts {
            if part.range.start < range.end && range.start < part.range.end {
                part.epoch += 1;
                vain += u32::from(part.done.take().is_some());
            }
        }
        vain
    }

    /// The ranges that are sent.
    pub(crate) fn sent(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.parts.iter().filter(|part| part.done.is_some() && !part.copy).map(|part| part.range.clone())
    }

    fn end(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.range.end)
    }

    /// What is sent, if that makes a file of `size` bytes.
    fn whole(&self, size: u64) -> Option<Vec<Part>> {
        let mut at = 0;
        let mut parts = Vec::with_capacity(self.parts.len());
        for (index, segment) in self.parts.iter().enumerate() {
            let follows = segment.range.start == at && segment.number as usize == index + 1;
            parts.push(segment.done.clone().filter(|_| follows)?);
            at = segment.range.end;
        }
        (at == size).then_some(parts)
    }
}

/// The size of part `index` (from 0) of a file whose size is not known yet.
fn growing(part: u64, limits: &Limits, index: u64) -> u64 {
    (part.max(limits.part_min) << (index / SAME_SIZE).min(20)).min(limits.part_max)
}

/// What of a file of `size` is copied from its base (then the flag is true), and what is sent.
fn plan(size: u64, base_valid: u64, dirty: &RangeSet, limits: &Limits, part: u64) -> Vec<(Range<u64>, bool)> {
    let part = part.max(limits.part_min).max((size / 4000).next_multiple_of(1 << 20)).min(limits.part_max);
    // How far nothing is new from an offset on.
    let clean = |at: u64| {
        if at >= base_valid { at } else { dirty.next(at).unwrap_or(u64::MAX).min(base_valid) }
    };
    let copied = part;
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let run = clean(at) - at;
        let end = if run >= copied || (run > 0 && at + run == size && !parts.is_empty()) {
            let end = at + run.min(COPY.max(part)).min(limits.part_max);
            parts.push((at..end, true));
            end
        } else {
            let end = (at + part).min(size);
            // Ends early where a long run that can be copied begins.
            let mut cut = at + limits.part_min;
            let end = loop {
                if cut >= end {
                    break end;
                }
                if clean(cut) - cut >= copied {
                    break cut;
                }
                match dirty.next(cut) {
                    Some(next) if next < end => cut = dirty.end_of_run(next).max(next + 1),
                    _ => break end,
                }
            };
            parts.push((at..end, false));
            end
        };
        at = end;
    }
    parts
}

impl Staged {
    /// Sends parts that are complete while the file is still being written.
    pub(crate) fn advance(self: &Arc<Self>) {
        let Ok(stage) = self.stage() else { return };
        let limits = stage.objects().limits();
        let mut state = self.state.lock();
        if state.base_valid > 0 || state.publishing || state.removed || state.touched > PATIENCE {
            return;
        }
        loop {
            let (index, start) = match &state.upload {
                Some(upload) if upload.planned_for.is_some() => return,
                Some(upload) => (upload.parts.len() as u64, upload.end()),
                None => (0, 0),
            };
            let length = growing(stage.options.part, &limits, index);
            let begun = state.upload.is_some();
            // The first is sent only when the file is too large for one piece.
            let enough = if begun { start + length } else { stage.options.put_max + 1 };
            if state.running >= stage.options.parallel || index >= u64::from(limits.parts) {
                return;
            }
            if !state.staged.covers(start..(start + length).max(enough)) {
                return;
            }
            state.running += 1;
            let file = self.clone();
            if !begun {
                state.publishing = true;
                stage.handle.clone().spawn(async move { file.begin_early().await });
                return;
            }
            let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
            let part = Segment { number, range: start..start + length, copy: false, done: None, epoch: 0 };
            if let Some(upload) = &mut state.upload {
                upload.parts.push(part.clone());
                let id = upload.id.clone();
                stage.handle.clone().spawn(async move { file.send_early(id, part).await });
            }
        }
    }

    async fn begin_early(self: Arc<Self>) {
        let begun = match self.stage() {
            Ok(stage) => self.begin(&stage, None).await,
            Err(error) => Err(error),
        };
        {
            let mut state = self.state.lock();
            match begun {
                Ok(upload) => state.upload = Some(upload),
                Err(_) if state.removed => {}
                // Whoever closes the file tries again, and is told.
                Err(error) => {
                    tracing::info!("{}: not sent while it is written: {error}", state.path);
                    state.touched = PATIENCE + 1;
                }
            }
            state.publishing = false;
            state.running -= 1;
        }
        self.sent_early();
    }

    /// After a part that was sent while the file was written: whoever waits looks, and what nobody needs goes.
    fn sent_early(self: &Arc<Self>) {
        self.progress.notify_waiters();
        let Ok(stage) = self.stage() else { return };
        self.advance();
        self.abandon(&stage);
        stage.let_go(self);
    }

    /// Aborts the upload of a file that is removed, once no part of it is under way.
    pub(crate) fn abandon(&self, stage: &Arc<Stage>) {
        let (path, upload) = {
            let mut state = self.state.lock();
            if !state.removed || state.running > 0 {
                return;
            }
            (state.path.clone(), state.upload.take())
        };
        if let (Some(upload), Ok(key)) = (upload, stage.objects().key(&path)) {
            stage.give_up(key, upload.id);
        }
    }

    async fn send_early(self: Arc<Self>, upload: String, part: Segment) {
        let sent = match self.stage() {
            Ok(stage) => {
                let path = self.path();
                async { self.send(&stage, &stage.objects().key(&path)?, &upload, &part, None).await }.await
            }
            Err(error) => Err(error),
        };
        {
            let mut state = self.state.lock();
            state.running -= 1;
            if let Err(error) = &sent {
                tracing::info!("{}: part {} is sent again at the end: {error}", state.path, part.number);
            }
            if let (Ok(sent), Some(current)) = (sent, &mut state.upload)
                && current.id == upload
                && let Some(current) = current.parts.iter_mut().find(|one| one.number == part.number)
                && current.epoch == part.epoch
                && current.range == part.range
            {
                current.done = Some(sent);
            }
        }
        self.sent_early();
    }

    async fn begin(&self, stage: &Stage, planned_for: Option<u64>) -> Result<Upload> {
        let (path, look, mark) = {
            let state = self.state.lock();
            (state.path.clone(), state.look.clone(), state.mark.clone())
        };
        let mark = format!("{mark}-{:016x}", rand_bits());
        let mut metadata = look.metadata(stage.objects().limits().metadata_max.saturating_sub(128));
        metadata.insert(MARK.to_owned(), mark.clone());
        let id = stage.objects().begin(&stage.objects().key(&path)?, &metadata).await?;
        Ok(Upload { id, mark, parts: Vec::new(), planned_for })
    }

    async fn send(
        &self,
        stage: &Arc<Stage>,
        key: &str,
        upload: &str,
        part: &Segment,
        base: Option<&Base>,
    ) -> Result<Part> {
        let _place = stage.parts.acquire().await;
        if part.copy {
            let base = base.ok_or_else(|| Error::new(ErrorKind::Io, "a copy without its source"))?;
            let source = stage.objects().key(&base.path)?;
            let range = part.range.clone();
            return stage.objects().part_copy(key, upload, part.number, (&source, &base.version), range).await;
        }
        let length = part.range.end - part.range.start;
        let reserved = if length <= IN_MEMORY { stage.budget.reserve(length as usize).await.ok() } else { None };
        let (body, brought) = match reserved {
            Some(_) => (Body::Bytes(self.assemble(part.range.clone()).await?), Vec::new()),
            None => {
                let brought = self.have(stage, part.range.clone()).await?;
                (Body::File { file: self.file()?, offset: part.range.start, length }, brought)
            }
        };
        let sent = stage.objects().part(key, upload, part.number, &body).await;
        if !brought.is_empty() {
            self.forget(stage, brought);
        }
        let sent = sent?;
        metrics().ufs_written_bytes.inc_by(length);
        self.stepped(stage);
        Ok(sent)
    }

    /// Something was sent.
    fn stepped(&self, stage: &Stage) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        stage.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// What of a range only the object has. Fails when bytes of it are given up here: they are in a part that is sent, which
    /// then must count.
    fn wanting(&self, range: &Range<u64>) -> Result<(Vec<Range<u64>>, Option<Base>)> {
        let state = self.state.lock();
        if state.gone_within(range) {
            let why =
                format!("bytes {} to {} are in the upload only, and cannot be sent again", range.start, range.end);
            return Err(Error::new(ErrorKind::Io, format!("{}: {why}", state.path)));
        }
        let end = range.end.min(state.base_valid).max(range.start);
        Ok((state.staged.gaps(range.start..end), state.base.clone()))
    }

    /// The bytes of a range in memory, with what only the object has.
    async fn assemble(&self, range: Range<u64>) -> Result<Bytes> {
        let (gaps, base) = self.wanting(&range)?;
        let file = self.file()?;
        let (start, length) = (range.start, (range.end - range.start) as usize);
        let read = tokio::task::spawn_blocking(move || read_zeros(&file, start, length)).await;
        let read = read.map_err(std::io::Error::other).flatten();
        let mut bytes = read.map_err(|error| Error::io(format!("{}: stage file", self.path()), error))?;
        for gap in gaps {
            let Some(base) = &base else { break };
            let fetched = self.fetch(base, gap.clone()).await?;
            bytes[(gap.start - start) as usize..(gap.end - start) as usize].copy_from_slice(&fetched);
        }
        Ok(bytes.into())
    }

    /// Has a range in the stage file, fetching what only the object has, whether there is room or not: without it nothing
    /// would ever become free. Returns what was fetched, to be given up again when it is sent.
    async fn have(&self, stage: &Arc<Stage>, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let (gaps, base) = self.wanting(&range)?;
        let mut brought = Vec::new();
        let Some(base) = base else { return Ok(brought) };
        for gap in gaps {
            let mut at = gap.start;
            while at < gap.end {
                let end = gap.end.min(at + (8 << 20));
                let fetched = self.fetch(&base, at..end).await?;
                let mut taken = stage.space.take_anyway(end - at);
                brought.extend(self.keep_alone(&mut taken, &base, at, &fetched)?);
                at = end;
            }
        }
        Ok(brought)
    }

    /// Puts the file into the storage as it is. The caller holds the gate alone and no part is under way.
    pub(crate) async fn upload(self: &Arc<Self>, stage: &Arc<Stage>) -> Result<(Version, Option<Bytes>)> {
        let limits = stage.objects().limits();
        let (path, size, look, changed, base, base_valid, dirty, mut upload, has_gone) = {
            let state = self.state.lock();
            (
                state.path.clone(),
                state.size,
                state.look.clone(),
                state.changed,
                state.base.clone(),
                state.base_valid,
                state.dirty.clone(),
                state.upload.clone(),
                !state.gone.is_empty(),
            )
        };
        let key = stage.objects().key(&path)?;
        stage.overtaken(&key)?;
        self.file()?.set_len(size).map_err(|error| Error::io(format!("{path}: stage file"), error))?;
        if size <= stage.options.put_max && !has_gone {
            if let Some(upload) = upload {
                self.state.lock().upload = None;
                stage.give_up(key.clone(), upload.id);
            }
            let _reserved = stage.budget.reserve(size as usize).await?;
            let bytes = self.assemble(0..size).await?;
            let mut metadata = look.metadata(limits.metadata_max.saturating_sub(128));
            let mark = self.state.lock().mark.clone();
            metadata.insert(MARK.to_owned(), format!("{mark}-{:016x}", rand_bits()));
            let body = Body::Bytes(bytes.clone());
            let stored = stage.objects().put(&key, &body, &metadata, &Condition::Any).await?;
            metrics().ufs_written_bytes.inc_by(size);
            self.stepped(stage);
            return Ok((stored.version, Some(bytes)));
        }
        // An upload that was planned for another state is of no use any more.
        if let Some(planned) = upload.as_ref().and_then(|upload| upload.planned_for)
            && planned != changed
            && let Some(old) = upload.take()
        {
            self.state.lock().upload = None;
            stage.give_up(key.clone(), old.id);
        }
        let mut upload = match upload {
            Some(upload) => upload,
            None => {
                let planned_for = (base_valid > 0).then_some(changed);
                self.begin(stage, planned_for).await?
            }
        };
        if upload.planned_for.is_none() {
            upload.parts.retain(|part| part.range.end <= size);
            let mut at = upload.end();
            while at < size {
                let index = upload.parts.len() as u64;
                let end = size.min(at + growing(stage.options.part, &limits, index));
                let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
                upload.parts.push(Segment { number, range: at..end, copy: false, done: None, epoch: 0 });
                at = end;
            }
        } else if upload.parts.is_empty() {
            let parts = plan(size, base_valid, &dirty, &limits, stage.options.part);
            let segment = |(index, (range, copy)): (usize, (Range<u64>, bool))| {
                let number = u32::try_from(index + 1).unwrap_or(u32::MAX);
                Segment { number, range, copy, done: None, epoch: 0 }
            };
            upload.parts = parts.into_iter().enumerate().map(segment).collect();
        }
        let done = self.finish(stage, &key, &mut upload, base.as_ref(), size).await;
        let mut state = self.state.lock();
        match done {
            Ok(version) => {
                state.upload = None;
                Ok((version, None))
            }
            Err(error) if error.kind() == ErrorKind::NotFound && !has_gone => {
                // The upload itself is gone: the next attempt begins a new one, since all bytes are still here.
                state.upload = None;
                Err(Error::new(ErrorKind::Io, format!("{error}; it is made again from the start")))
            }
            Err(error) => {
                // Kept, so that the next attempt sends only what is missing.
                state.upload = Some(upload);
                let kind = if error.kind() == ErrorKind::NotFound { ErrorKind::Io } else { error.kind() };
                Err(Error::new(kind, error.message().to_owned()))
            }
        }
    }

    async fn finish(
        self: &Arc<Self>,
        stage: &Arc<Stage>,
        key: &str,
        upload: &mut Upload,
        base: Option<&Base>,
        size: u64,
    ) -> Result<Version> {
        let id = upload.id.clone();
        let missing: Vec<Segment> = upload.parts.iter().filter(|part| part.done.is_none()).cloned().collect();
        let (file, id_of) = (self.clone(), id.as_str());
        let sending = missing.into_iter().map(|part| {
            let file = file.clone();
            async move { (part.number, file.send(stage, key, id_of, &part, base).await) }
        });
        let mut sending = stream::iter(sending).buffer_unordered(stage.options.parallel);
        let mut failed = None;
        while let Some((number, sent)) = sending.next().await {
            match sent {
                Ok(sent) => {
                    if let Some(part) = upload.parts.iter_mut().find(|part| part.number == number) {
                        part.done = Some(sent);
                    }
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        drop(sending);
        let done = match failed {
            Some(error) => Err(error),
            None => {
                let parts = upload.whole(size).ok_or_else(|| {
                    let why = format!("its parts do not make {size} bytes; it stays in the stage");
                    Error::new(ErrorKind::Corrupt, format!("{key}: {why}"))
                })?;
                stage.objects().complete(key, &id, &parts, (MARK, &upload.mark)).await
            }
        };
        done.map(|stored| stored.version)
    }
}

/// Bits that nobody else has.
pub(crate) fn rand_bits() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits =
        Limits { part_min: 5 << 20, part_max: 5 << 30, parts: 10_000, object_max: 5 << 40, metadata_max: 2048 };

    #[test]
    fn ten_thousand_growing_parts_reach_the_largest_object() {
        let mut size = 0;
        let mut count = 0;
        while size < LIMITS.object_max {
            size += growing(8 << 20, &LIMITS, count);
            count += 1;
        }
        assert!(count <= u64::from(LIMITS.parts), "{count}");
        assert_eq!(growing(8 << 20, &LIMITS, 0), 8 << 20);
    }

    proptest! {
        #[test]
        fn plans_cover_the_file_and_copy_only_what_is_old(
            size in 1u64..(5 << 40), valid in 0u64..=100,
            writes in proptest::collection::vec((0u64..=1000, 1u64..(40 << 20)), 0..20),
        ) {
            let base_valid = size / 100 * valid;
            let mut dirty = RangeSet::default();
            for (at, length) in writes {
                let start = size / 1000 * at;
                dirty.insert(start.min(size)..(start + length).min(size));
            }
            let parts = plan(size, base_valid, &dirty, &LIMITS, 8 << 20);
            prop_assert!(parts.len() <= LIMITS.parts as usize, "{} parts", parts.len());
            let mut at = 0;
            for (index, (range, copy)) in parts.iter().enumerate() {
                prop_assert_eq!(range.start, at);
                at = range.end;
                let length = range.end - range.start;
                prop_assert!(length <= LIMITS.part_max);
                prop_assert!(length >= LIMITS.part_min || index + 1 == parts.len(), "{:?}", parts);
                if *copy {
                    prop_assert!(range.end <= base_valid);
                    prop_assert_eq!(dirty.missing(range.clone()), length);
                }
            }
            prop_assert_eq!(at, size);
        }

        #[test]
        fn an_append_sends_little(tail in 1u64..(4 << 20)) {
            let base = 1 << 30;
            let mut dirty = RangeSet::default();
            dirty.insert(base..base + tail);
            let sent: u64 = plan(base + tail, base, &dirty, &LIMITS, 8 << 20)
                .iter().filter(|(_, copy)| !copy).map(|(range, _)| range.end - range.start).sum();
            prop_assert_eq!(sent, tail);
        }
    }
}
