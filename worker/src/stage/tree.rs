//! Renames of directories: every key below is copied by the storage, many at a time, and then the old ones are removed.
//!
//! The journal says how far it came. A process that ended before everything was copied leaves a rename that is taken back:
//! copies whose originals are still there are removed. One that ended later leaves a rename that is finished: originals
//! whose copies are there are removed. So no object is ever without both names, none is removed that was not copied, and none
//! that somebody stored since: what is removed has the bytes of its twin, or is no newer than the originals were.

use super::{
    Stage,
    attributes::NAME,
    journal::{MoveRecord, Record},
    upload::MARK,
};
use common::{Error, ErrorKind, Result, Timestamp, UfsPath, Version};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};
use ufs::{Found, ListedKey, ObjectWrites};

/// Copies under way at the same time.
const PARALLEL: usize = 32;
/// Keys of a page.
const PAGE: u32 = 1000;

type Keys = Vec<ListedKey>;

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

fn pair(at: Timestamp) -> (i64, u32) {
    (at.sec, at.nsec)
}

/// Whether two objects have the same bytes, as far as the storage can tell: by their versions, which depend on how an object
/// was stored too, or by the mark of the upload that both come from.
async fn same_bytes(objects: &dyn ObjectWrites, one: &ListedKey, other: &ListedKey) -> Result<bool> {
    if one.size != other.size || one.version == other.version {
        return Ok(one.size == other.size);
    }
    let (one, other) = tokio::try_join!(objects.find(&one.key), objects.find(&other.key))?;
    let (Some(one), Some(other)) = (one, other) else { return Ok(false) };
    let mark = one.metadata.get(MARK);
    Ok(mark.is_some() && mark == other.metadata.get(MARK))
}

/// Removes what is below `prefix` and has a twin below `twins`: the same rest of the key and the same bytes. `until`: but not
/// what was stored later than that; what was not has its copy there, be it one that cannot be compared.
async fn remove_twins(objects: &dyn ObjectWrites, prefix: &str, twins: &str, until: Option<(i64, u32)>) -> Result<()> {
    // Both listings are in the same order; what is known of the twins reaches as far as `past`.
    let mut known: BTreeMap<String, ListedKey> = BTreeMap::new();
    let mut token = None;
    let mut ended = false;
    let mut own_token = None;
    let mut left = 0;
    let rest = |key: &str, of: &str| key.strip_prefix(of).map(str::to_owned);
    loop {
        let page = objects.keys(prefix, own_token.as_deref(), PAGE).await?;
        let last = page.keys.last().and_then(|listed| rest(&listed.key, prefix));
        while !ended && last.as_ref().is_some_and(|last| known.last_key_value().is_none_or(|(known, _)| known < last)) {
            let twin = objects.keys(twins, token.as_deref(), PAGE).await?;
            known.extend(twin.keys.into_iter().filter_map(|twin| Some((rest(&twin.key, twins)?, twin))));
            token = twin.next;
            ended = token.is_none();
        }
        let known_now = &known;
        let checks = page.keys.into_iter().map(|own| async move {
            let Some(twin) = rest(&own.key, prefix).and_then(|rest| known_now.get(&rest)) else {
                return Ok((own.key, false));
            };
            // Attributes of the copies are changed where the copies are.
            let attributes = own.key.ends_with(NAME) && until.is_some();
            let multipart = own.version.as_str().contains('-') && own.size == twin.size;
            let gone = match until {
                Some(until) if pair(own.modified) > until => false,
                Some(_) if attributes || multipart => true,
                _ => same_bytes(objects, &own, twin).await?,
            };
            Ok::<_, Error>((own.key, gone))
        });
        let checked: Vec<(String, bool)> = stream::iter(checks).buffer_unordered(PARALLEL).try_collect().await?;
        let (gone, kept): (Vec<_>, Vec<_>) = checked.into_iter().partition(|(_, gone)| *gone);
        left += kept.len();
        let gone: Vec<String> = gone.into_iter().map(|(key, _)| key).collect();
        objects.delete_all(&gone).await?;
        if let Some(last) = last {
            known = known.split_off(&last);
        }
        own_token = page.next;
        if own_token.is_none() {
            if left > 0 {
                tracing::warn!("{prefix}: {left} objects stay that are no copies of what is below {twins}");
            }
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
        for ListedKey { key, size, .. } in page.keys {
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
        // What is written below it goes into the storage first, by its old name, and stays as it is until it has the new one.
        let below: Vec<_> = {
            let files = self.files.lock();
            files.iter().filter(|(path, _)| path.is_within(from)).map(|(_, staged)| staged.clone()).collect()
        };
        let mut alone = Vec::with_capacity(below.len());
        for staged in &below {
            alone.push(staged.alone().await);
            staged.publish_alone(self, false).await?;
        }
        self.attributes.settle(from).await?;
        let objects = self.objects();
        let (from_prefix, to_prefix) = (objects.prefix(from)?, objects.prefix(to)?);
        self.longest_fits(&from_prefix, &to_prefix).await?;
        for record in self.unfinished(&from_prefix, &to_prefix) {
            self.forget_move(record)?;
        }
        let parent = from.parent().unwrap_or_else(UfsPath::root);
        self.keep_directory(&parent).await?;
        let id = self.fresh_id();
        let mut record = MoveRecord::new(&from_prefix, &to_prefix, true);
        self.append(id, Record::Move(record.clone()), true).await?;
        let copied = Mutex::new((None, Vec::new()));
        let done = pages(objects, &from_prefix, |keys| {
            let (from_prefix, to_prefix, copied) = (&from_prefix, &to_prefix, &copied);
            async move {
                let copies = keys.into_iter().map(|listed| async move {
                    let rest = listed.key.strip_prefix(from_prefix.as_str()).unwrap_or_default();
                    let target = format!("{to_prefix}{rest}");
                    match objects.copy(&listed.key, &listed.version, listed.size, &target).await {
                        Ok(stored) => {
                            let mut copied = copied.lock();
                            copied.0 = copied.0.max(Some(pair(listed.modified)));
                            if stored.version != listed.version {
                                let versions = (listed.version.as_str().to_owned(), stored.version.as_str().to_owned());
                                copied.1.push((rest.to_owned(), versions.0, versions.1));
                            }
                            Ok(())
                        }
                        // Removed by another client in the meantime.
                        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
                        Err(error) => Err(error),
                    }
                });
                stream::iter(copies).buffer_unordered(PARALLEL).try_collect().await
            }
        })
        .await;
        let look = match done {
            Ok(()) => self.attributes.look(from, None).await,
            Err(error) => Err(error),
        };
        let look = match look {
            Ok(look) => look.unwrap_or_default(),
            Err(error) => {
                if let Err(why) = self.finish_move(id, &record).await {
                    tracing::warn!("{to}: copies of {from} are left behind until the next mount: {why}");
                    self.moves.lock().push((id, record));
                }
                return Err(error);
            }
        };
        self.attributes.set(to, None, &look).await?;
        record.copied = true;
        (record.newest, record.versions) = copied.into_inner();
        self.append(id, Record::Move(record.clone()), true).await?;
        self.attributes.forget_tree(&from_prefix);
        self.attributes.forget_tree(&to_prefix);
        let versions: HashMap<&str, &str> =
            record.versions.iter().map(|(rest, _, new)| (rest.as_str(), new.as_str())).collect();
        for staged in below {
            let mut files = self.files.lock();
            let mut state = staged.state.lock();
            let rest = state.path.as_bytes().get(from.as_bytes().len()..).unwrap_or_default();
            let Ok(path) = UfsPath::parse([to.as_bytes(), rest].concat()) else { continue };
            files.remove(&state.path);
            if let Some(base) = &mut state.base {
                base.path = path.clone();
                let key = objects.key(&path).unwrap_or_default();
                if let Some(version) = key.strip_prefix(&to_prefix).and_then(|rest| versions.get(rest)) {
                    base.version = Version::new(*version);
                }
            }
            state.path = path.clone();
            drop(state);
            files.insert(path, staged);
        }
        drop(alone);
        self.unmark(&from_prefix);
        if let Err(error) = self.finish_move(id, &record).await {
            self.moves.lock().push((id, record));
            return Err(error);
        }
        self.attributes.change(from, None).await
    }

    /// Renames that were not finished and have to do with one of two trees.
    fn unfinished(&self, from: &str, to: &str) -> Vec<u64> {
        let moves = self.moves.lock();
        let touches = |own: &str| [from, to].iter().any(|prefix| own.starts_with(prefix) || prefix.starts_with(own));
        let concerned = moves.iter().filter(|(_, record)| touches(&record.from) || touches(&record.to));
        concerned.map(|(id, _)| *id).collect()
    }

    fn forget_move(&self, id: u64) -> Result<()> {
        self.journal.append(id, Record::Done, false)?;
        self.moves.lock().retain(|(other, _)| *other != id);
        Ok(())
    }

    /// Fails when a key below would be too long by its new name, before anything is copied.
    async fn longest_fits(&self, from: &str, to: &str) -> Result<()> {
        const LONGEST: usize = 1024;
        if to.len() <= from.len() {
            return Ok(());
        }
        pages(self.objects(), from, |keys| {
            let long = keys.iter().any(|listed| listed.key.len() - from.len() + to.len() > LONGEST);
            let why = format!("{to}: a key below it would have more than {LONGEST} bytes");
            std::future::ready(if long { Err(Error::new(ErrorKind::NameTooLong, why)) } else { Ok(()) })
        })
        .await
    }

    /// Finishes a rename, or takes it back when not everything was copied. Removes nothing that was stored since.
    pub(super) async fn finish_move(&self, id: u64, record: &MoveRecord) -> Result<()> {
        let objects = self.objects();
        let MoveRecord { directory, copied, from, to, version, newest, versions } = record;
        match (*directory, *copied) {
            (true, true) => {
                self.attributes.follow(to, versions).await?;
                // A rename of nothing has no newest, and removes nothing.
                if newest.is_some() {
                    remove_twins(objects, from, to, *newest).await?;
                }
            }
            (true, false) => remove_twins(objects, to, from, None).await?,
            (false, true) => {
                let (copy, original) = tokio::try_join!(objects.find(to), objects.find(from))?;
                let same = |found: &Found| {
                    let version = version.as_ref();
                    version.is_some_and(|(known, at)| found.version.as_str() == known && pair(found.modified) == *at)
                };
                match (copy, original) {
                    (Some(_), Some(found)) if same(&found) => objects.delete_version(from, &found.version).await?,
                    (_, Some(_)) => tracing::warn!("{from}: stays, since it or {to} was changed since the rename"),
                    (_, None) => {}
                }
            }
            // The copy may be there or what was there before; the original is.
            (false, false) => {}
        }
        self.append(id, Record::Done, false).await
    }
}
