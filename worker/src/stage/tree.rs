//! Renames of directories: every key below is copied by the storage, many at a time, and then the old ones are removed.
//!
//! The journal says how far it came. A process that ended before everything was copied leaves a rename that is taken back:
//! copies whose originals are still there are removed. One that ended later leaves a rename that is finished: originals
//! whose copies are there are removed. So no object is ever without both names, and none is removed that was not copied.

use super::{
    Stage,
    attributes::NAME,
    journal::{MoveRecord, Record},
};
use common::{Error, ErrorKind, Result, UfsPath, Version};
use futures::{StreamExt, TryStreamExt, stream};
use std::{collections::BTreeMap, sync::Arc};
use ufs::ObjectWrites;

/// Copies under way at the same time.
const PARALLEL: usize = 32;
/// Keys of a page.
const PAGE: u32 = 1000;

type Keys = Vec<(String, u64, Version)>;

/// Calls `each` for the keys below a prefix, page by page.
async fn pages<F>(objects: &dyn ObjectWrites, prefix: &str, mut each: impl FnMut(Keys) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut token = None;
    loop {
        let page = objects.keys(prefix, token.as_deref(), PAGE).await?;
        each(page.keys).await?;
        token = page.next;
        if token.is_none() {
            return Ok(());
        }
    }
}

/// Removes the keys below `prefix` that have a twin below `twins`: one of the same rest of the key and the same size.
async fn remove_twins(objects: &dyn ObjectWrites, prefix: &str, twins: &str) -> Result<()> {
    // Both listings are in the same order; what is known of the twins reaches as far as `past`.
    let mut known: BTreeMap<String, u64> = BTreeMap::new();
    let mut token = None;
    let mut ended = false;
    let mut own_token = None;
    loop {
        let page = objects.keys(prefix, own_token.as_deref(), PAGE).await?;
        let rest = |key: &str, of: &str| key.strip_prefix(of).map(str::to_owned);
        let last = page.keys.last().and_then(|(key, ..)| rest(key, prefix));
        while !ended && last.as_ref().is_some_and(|last| known.last_key_value().is_none_or(|(known, _)| known < last)) {
            let twin = objects.keys(twins, token.as_deref(), PAGE).await?;
            known.extend(twin.keys.into_iter().filter_map(|(key, size, _)| Some((rest(&key, twins)?, size))));
            token = twin.next;
            ended = token.is_none();
        }
        let has_twin = |(key, size, _): &(String, u64, Version)| {
            rest(key, prefix).is_some_and(|rest| known.get(&rest) == Some(size))
        };
        let gone: Vec<String> = page.keys.into_iter().filter(has_twin).map(|(key, ..)| key).collect();
        objects.delete_all(&gone).await?;
        if let Some(last) = last {
            known = known.split_off(&last);
        }
        own_token = page.next;
        if own_token.is_none() {
            return Ok(());
        }
    }
}

impl Stage {
    /// The keys of an empty directory: its mark, and its attribute object. Fails when it is not empty, or not there.
    pub(super) async fn own_keys(&self, path: &UfsPath) -> Result<Vec<String>> {
        let full = || Error::new(ErrorKind::NotEmpty, format!("{path}: the directory is not empty"));
        if self.files.lock().keys().any(|file| file != path && file.is_within(path)) {
            // Open files that are in the storage are among its keys.
            let pending = self.pending();
            if pending.iter().any(|pending| pending.path.is_within(path)) {
                return Err(full());
            }
        }
        let prefix = self.objects().prefix(path)?;
        let page = self.objects().keys(&prefix, None, 3).await?;
        let attributes = format!("{prefix}{NAME}");
        let mut own = Vec::new();
        for (key, size, _) in page.keys {
            if (key == prefix && size == 0) || key == attributes {
                own.push(key);
            } else {
                return Err(full());
            }
        }
        Ok(own)
    }

    /// Renames a directory. The caller has the turns of both trees.
    pub(super) async fn rename_directory(self: &Arc<Self>, from: &UfsPath, to: &UfsPath, replaces: bool) -> Result<()> {
        if replaces {
            self.own_keys(to).await?;
        }
        // What is written below it goes into the storage first, by its old name.
        let below: Vec<_> = {
            let files = self.files.lock();
            files.iter().filter(|(path, _)| path.is_within(from)).map(|(_, staged)| staged.clone()).collect()
        };
        for staged in &below {
            staged.publish_in_turn(self, false).await?;
        }
        self.attributes.settle(from).await?;
        let objects = self.objects();
        let (from_prefix, to_prefix) = (objects.prefix(from)?, objects.prefix(to)?);
        self.longest_fits(&from_prefix, &to_prefix).await?;
        let parent = from.parent().unwrap_or_else(UfsPath::root);
        self.keep_directory(&parent).await?;
        let id = self.fresh_id();
        let mut record =
            MoveRecord { from: from_prefix.clone(), to: to_prefix.clone(), directory: true, copied: false };
        self.journal.append(id, Record::Move(record.clone()), true)?;
        let copied = pages(objects, &from_prefix, |keys| {
            let (from_prefix, to_prefix) = (&from_prefix, &to_prefix);
            async move {
                let copies = keys.into_iter().map(|(key, size, version)| async move {
                    let rest = key.strip_prefix(from_prefix.as_str()).unwrap_or_default();
                    match objects.copy(&key, &version, size, &format!("{to_prefix}{rest}")).await {
                        // Removed by another client in the meantime.
                        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                        done => done.map(drop),
                    }
                });
                stream::iter(copies).buffer_unordered(PARALLEL).try_collect().await
            }
        })
        .await;
        let look = self.attributes.look(from, None).await?.unwrap_or_default();
        if let Err(error) = copied {
            self.finish_move(id, &record).await?;
            return Err(error);
        }
        self.attributes.set(to, None, &look).await?;
        record.copied = true;
        self.journal.append(id, Record::Move(record.clone()), true)?;
        self.attributes.forget_tree(&from_prefix);
        self.attributes.forget_tree(&to_prefix);
        for staged in below {
            let mut files = self.files.lock();
            let mut state = staged.state.lock();
            let rest = state.path.as_bytes().get(from.as_bytes().len()..).unwrap_or_default();
            let Ok(path) = UfsPath::parse([to.as_bytes(), rest].concat()) else { continue };
            files.remove(&state.path);
            if let Some(base) = &mut state.base {
                base.path = path.clone();
            }
            state.path = path.clone();
            drop(state);
            files.insert(path, staged);
        }
        self.unmark(&from_prefix);
        self.finish_move(id, &record).await?;
        self.attributes.change(from, None).await
    }

    /// Fails when a key below would be too long by its new name, before anything is copied.
    async fn longest_fits(&self, from: &str, to: &str) -> Result<()> {
        const LONGEST: usize = 1024;
        if to.len() <= from.len() {
            return Ok(());
        }
        pages(self.objects(), from, |keys| {
            let long = keys.iter().any(|(key, ..)| key.len() - from.len() + to.len() > LONGEST);
            let why = format!("{to}: a key below it would have more than {LONGEST} bytes");
            std::future::ready(if long { Err(Error::new(ErrorKind::NameTooLong, why)) } else { Ok(()) })
        })
        .await
    }

    /// Finishes a rename, or takes it back when not everything was copied.
    pub(super) async fn finish_move(&self, id: u64, record: &MoveRecord) -> Result<()> {
        let objects = self.objects();
        match record {
            MoveRecord { directory: true, copied: true, from, to } => remove_twins(objects, from, to).await?,
            MoveRecord { directory: true, copied: false, from, to } => remove_twins(objects, to, from).await?,
            MoveRecord { directory: false, copied: true, from, to } => {
                if objects.find(to).await?.is_some() {
                    objects.delete(from).await?;
                }
            }
            // The copy may be there or what was there before; the original is.
            MoveRecord { directory: false, copied: false, .. } => {}
        }
        self.journal.append(id, Record::Done, false)
    }
}
