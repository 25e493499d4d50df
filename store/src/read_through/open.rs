//! The pages of one open version of one file: which are in memory, which are asked for, which are on disk.

use super::{Key, ReadThrough, check_page, fill, recent::Kept, seed::Head};
use crate::{Stored, StoredFile};
use async_trait::async_trait;
use common::{
    Attr, Error, ErrorKind, FileId, Result, UfsPath, Version,
    page::{PageLoad, PageWriter},
    worker::{FileLease, PagedFile, StoredPage},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};
use tokio::sync::Notify;

/// Files of more pages are not completed on open.
const COMPLETE_PAGES: u64 = 64;

/// Requests of at most so many bytes are made in one.
const WHOLE_BYTES: u64 = 4 << 20;

/// What the table has for a page.
enum Entry {
    /// Somebody waits for memory to fetch it; the others wait for the notice.
    Reserving(Arc<Notify>),
    /// It is being fetched or has arrived. Alive as long as somebody needs it: the fetch, the store's queue, the recent
    /// pages, a reader.
    Load { load: Weak<PageLoad>, used: Arc<AtomicBool> },
}

/// See the module. Shared by all opens of the version.
pub(super) struct Pages {
    pub reads: Arc<ReadThrough>,
    pub key: Key,
    pub path: UfsPath,
    /// As the storage names it, maybe not at all.
    pub version: Version,
    pub stored: Option<Arc<StoredFile>>,
    table: Mutex<HashMap<u64, Entry>>,
    /// The first bytes of the file, which came with a lookup, until the first page is fetched or others need the memory.
    pub head: Mutex<Option<Head>>,
    stale: OnceLock<Error>,
    /// Told whenever a queued page was stored or given up.
    settled: Notify,
    me: Weak<Pages>,
}

impl Pages {
    pub fn new(
        reads: &Arc<ReadThrough>,
        key: Key,
        path: UfsPath,
        version: Version,
        stored: Option<Arc<StoredFile>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            reads: reads.clone(),
            key,
            path,
            version,
            stored,
            table: Mutex::default(),
            head: Mutex::default(),
            stale: OnceLock::new(),
            settled: Notify::new(),
            me: me.clone(),
        })
    }

    pub fn page_size(&self) -> u64 {
        u64::from(self.reads.page_size)
    }

    pub fn count(&self) -> u64 {
        self.key.size.div_ceil(self.page_size())
    }

    pub fn page_len(&self, page: u64) -> usize {
        (self.key.size - page * self.page_size()).min(self.page_size()) as usize
    }

    pub fn is_present(&self, page: u64) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.is_present(page))
    }

    /// The live load of a page: under way or complete, not failed.
    fn find(table: &HashMap<u64, Entry>, page: u64) -> Option<Arc<PageLoad>> {
        let Some(Entry::Load { load, used }) = table.get(&page) else { return None };
        let load = load.upgrade().filter(|load| !matches!(load.end(), Some(Err(_))))?;
        if !used.load(Relaxed) {
            used.store(true, Relaxed);
        }
        Some(load)
    }

    pub fn page_now(&self, page: u64) -> Option<Arc<PageLoad>> {
        Self::find(&self.table.lock(), page)
    }

    fn check_stale(&self) -> Result<()> {
        self.stale.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Enters a load. The table holds no load alive, so dead entries are swept out when they pile up.
    fn enter(table: &mut HashMap<u64, Entry>, page: u64, load: &Arc<PageLoad>, used: bool) {
        if table.len() >= 64 && table.len() == table.capacity() {
            table.retain(|_, entry| match entry {
                Entry::Reserving(_) => true,
                Entry::Load { load, .. } => load.strong_count() > 0,
            });
        }
        table.insert(page, Entry::Load { load: Arc::downgrade(load), used: Arc::new(AtomicBool::new(used)) });
    }

    /// Takes a load out of the table, if it is the one there.
    pub fn leave(&self, page: u64, load: &Arc<PageLoad>) {
        let mut table = self.table.lock();
        if let Some(Entry::Load { load: known, .. }) = table.get(&page)
            && known.as_ptr() == Arc::as_ptr(load)
        {
            table.remove(&page);
        }
    }

    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>> {
        check_page(page, self.count())?;
        loop {
            let (notice, mine) = {
                let mut table = self.table.lock();
                if let Some(load) = Self::find(&table, page) {
                    return Ok(Some(load));
                }
                // A page leaves the table only after it is present, so looking in this order misses none.
                if self.is_present(page) {
                    return Ok(None);
                }
                self.check_stale()?;
                match table.get(&page) {
                    Some(Entry::Reserving(notice)) => (notice.clone(), false),
                    _ => {
                        let notice = Arc::new(Notify::new());
                        table.insert(page, Entry::Reserving(notice.clone()));
                        (notice, true)
                    }
                }
            };
            if !mine {
                let told = notice.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                // The notice may have come before we listened: then the entry is another by now.
                let same =
                    matches!(self.table.lock().get(&page), Some(Entry::Reserving(now)) if Arc::ptr_eq(now, &notice));
                if same {
                    told.await;
                }
                continue;
            }
            let turn = Turn { pages: self, page, notice: &notice };
            let (load, mut writer) = self.reserve(self.page_len(page)).await?;
            self.begin(page, &mut writer);
            Self::enter(&mut self.table.lock(), page, &load, true);
            drop(turn);
            self.start(page, vec![(load.clone(), writer)], None);
            return Ok(Some(load));
        }
    }

    /// Memory for a page that somebody waits for.
    async fn reserve(&self, len: usize) -> Result<(Arc<PageLoad>, PageWriter)> {
        let reads = &self.reads;
        let purpose = common::budget::Purpose::Demand;
        if let Some(found) = reads.pool.try_load(len, purpose) {
            return Ok(found);
        }
        if reads.recent.make_room(len, false)
            && let Some(found) = reads.pool.try_load(len, purpose)
        {
            return Ok(found);
        }
        reads.heads.clear();
        let _waiting = reads.recent.wait_for_memory();
        reads.pool.demand_load(len).await
    }

    /// Puts into the first page what came with the lookup; only the rest is fetched then.
    fn begin(&self, page: u64, writer: &mut PageWriter) {
        if page == 0
            && let Some(head) = self.head.lock().take()
        {
            writer.append(head.bytes());
        }
    }

    fn start(
        &self,
        first: u64,
        pages: Vec<(Arc<PageLoad>, PageWriter)>,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
    ) {
        let Some(me) = self.me.upgrade() else { return };
        self.reads.watch_idle();
        self.reads.handle.spawn(fill::fill(me, first, pages, permit));
    }

    pub fn prefetch(&self, first: u64, count: u64) -> u64 {
        let last = first.saturating_add(count).min(self.count());
        if first >= last || self.stale.get().is_some() {
            return 0;
        }
        let reads = &self.reads;
        // The reader waits rather than that pages go by the disk: they would be fetched again, and a file that is never
        // complete is never passed through.
        let behind = match (&reads.store, &self.stored) {
            (Some(store), Some(stored)) => store.is_behind(stored),
            _ => false,
        };
        let most = (reads.options.max_request_bytes / self.page_size()).max(1);
        // Small requests are not divided: each costs a round trip and wakes several threads.
        let whole = (WHOLE_BYTES / self.page_size()).clamp(1, most);
        let extent = (count / 16).clamp(whole, most);
        let mut page = first;
        while page < last {
            let mut pages = Vec::new();
            let mut permit = None;
            {
                let mut table = self.table.lock();
                while page < last && self.covered(&table, page) {
                    page += 1;
                }
                let start = page;
                while !behind && page < last && page - start < extent && !self.covered(&table, page) {
                    if permit.is_none() {
                        permit = reads.prefetches.clone().try_acquire_owned().ok();
                        if permit.is_none() {
                            break;
                        }
                    }
                    let Some((load, mut writer)) = self.try_reserve(self.page_len(page)) else { break };
                    self.begin(page, &mut writer);
                    Self::enter(&mut table, page, &load, false);
                    pages.push((load, writer));
                    page += 1;
                }
            }
            let taken = pages.len() as u64;
            if taken > 0 {
                self.start(page - taken, pages, permit);
            } else if page < last {
                break;
            }
        }
        page - first
    }

    /// Whether a page needs no fetch.
    fn covered(&self, table: &HashMap<u64, Entry>, page: u64) -> bool {
        match table.get(&page) {
            Some(Entry::Reserving(_)) => true,
            Some(Entry::Load { load, .. })
                if load.upgrade().is_some_and(|load| !matches!(load.end(), Some(Err(_)))) =>
            {
                true
            }
            _ => self.is_present(page),
        }
    }

    fn try_reserve(&self, len: usize) -> Option<(Arc<PageLoad>, PageWriter)> {
        let reads = &self.reads;
        let purpose = common::budget::Purpose::Prefetch;
        reads
            .pool
            .try_load(len, purpose)
            .or_else(|| reads.recent.make_room(len, true).then(|| reads.pool.try_load(len, purpose)).flatten())
    }

    /// Whether a page is best written by the fetch itself, before the load ends: small files, on a disk that works.
    pub fn writes_inline(&self) -> bool {
        self.count() == 1 && self.stored.as_ref().is_some_and(|stored| stored.takes_writes())
    }

    /// Brings a complete page to the store, or keeps it in memory for a while.
    pub fn settle(&self, page: u64, load: Arc<PageLoad>) {
        if self.is_present(page) {
            self.leave(page, &load);
            self.settled.notify_waiters();
            return;
        }
        let (Some(store), Some(stored)) = (&self.reads.store, &self.stored) else {
            return self.keep(page, load, false);
        };
        let (weak, held) = (self.me.clone(), Arc::downgrade(&load));
        let done = Box::new(move |present: bool| {
            let (Some(pages), Some(load)) = (weak.upgrade(), held.upgrade()) else { return };
            // What nobody has read yet stays, so that its reader need not read the disk.
            pages.keep(page, load, present);
            pages.settled.notify_waiters();
        });
        if let Err((load, _)) = store.submit(stored, page, load, done) {
            self.keep(page, load, false);
        }
    }

    /// Keeps a page in memory, unless it is `stored` and was used: then it leaves.
    fn keep(&self, page: u64, load: Arc<PageLoad>, stored: bool) {
        let used = {
            let mut table = self.table.lock();
            match table.get(&page) {
                Some(Entry::Load { load: known, used }) if known.as_ptr() == Arc::as_ptr(&load) => {
                    if stored && used.load(Relaxed) {
                        table.remove(&page);
                        return;
                    }
                    used.clone()
                }
                _ => return,
            }
        };
        self.reads.recent.keep(Kept { load, used, stored });
    }

    /// The storage no longer has this version.
    pub fn went_stale(&self, error: &Error) {
        if self.stale.set(error.clone()).is_ok() {
            self.reads.forget(self);
            if let Some(call) = self.reads.on_stale.get() {
                call(&self.path);
            }
        }
    }

    async fn complete(&self) -> Result<()> {
        let unsupported = |why: &str| Error::new(ErrorKind::Unsupported, format!("{}: {why}", self.path));
        let Some(stored) = &self.stored else { return Err(unsupported("there is no page store")) };
        if self.count() == 0 || self.count() > COMPLETE_PAGES {
            return Err(unsupported("a file of no or many pages is not completed"));
        }
        if stored.is_complete() {
            return Ok(());
        }
        if self.count() > 1 {
            self.prefetch(0, self.count());
        }
        for page in 0..self.count() {
            let Some(load) = self.demand(page).await? else { continue };
            load.wait_end().await?;
            loop {
                let told = self.settled.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if stored.is_present(page) {
                    break;
                }
                match stored.write_page(page, load.filled()) {
                    Stored::Written | Stored::Present => {
                        self.leave(page, &load);
                        break;
                    }
                    Stored::Bypassed => return Err(unsupported("the page store takes no page now")),
                    // Somebody else writes it just now. Looked at again at the latest after a while: who writes need
                    // not be one who tells.
                    Stored::Busy => {
                        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), told).await;
                    }
                }
            }
        }
        if stored.is_complete() { Ok(()) } else { Err(unsupported("pages were evicted again at once")) }
    }

    /// Gives a load its place in the table, unless there is one or the page is present. For seeding.
    pub fn enter_if_absent(&self, page: u64, load: &Arc<PageLoad>) -> bool {
        let mut table = self.table.lock();
        if self.covered(&table, page) {
            return false;
        }
        Self::enter(&mut table, page, load, false);
        true
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.reads.forget(self);
    }
}

/// The right to fetch a page, while memory is waited for. However it ends, the others look again.
struct Turn<'a> {
    pages: &'a Pages,
    page: u64,
    notice: &'a Arc<Notify>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        {
            let mut table = self.pages.table.lock();
            if matches!(table.get(&self.page), Some(Entry::Reserving(notice)) if Arc::ptr_eq(notice, self.notice)) {
                table.remove(&self.page);
            }
        }
        self.notice.notify_waiters();
    }
}

/// One open of the pages, with the attributes of its time.
pub(super) struct OpenPages {
    pages: Arc<Pages>,
    attr: Arc<Attr>,
}

impl OpenPages {
    pub fn new(pages: Arc<Pages>, attr: Arc<Attr>) -> Self {
        Self { pages, attr }
    }
}

impl Drop for OpenPages {
    fn drop(&mut self) {
        self.pages.reads.closed(&self.pages, &self.attr);
    }
}

#[async_trait]
impl PagedFile for OpenPages {
    fn file_id(&self) -> FileId {
        self.pages.key.id
    }

    fn attr(&self) -> &Arc<Attr> {
        &self.attr
    }

    fn page_size(&self) -> u32 {
        self.pages.reads.page_size
    }

    fn read_present(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.pages.stored.as_ref().map_or(Ok(0), |stored| stored.read(offset, buffer))
    }

    fn is_present(&self, page: u64) -> bool {
        self.pages.is_present(page)
    }

    fn page_now(&self, page: u64) -> Option<Arc<PageLoad>> {
        self.pages.page_now(page)
    }

    async fn demand(&self, page: u64) -> Result<Option<Arc<PageLoad>>> {
        self.pages.demand(page).await
    }

    fn prefetch(&self, first: u64, count: u64) -> u64 {
        self.pages.prefetch(first, count)
    }

    fn export(&self) -> Option<FileLease> {
        self.pages.stored.as_ref()?.export()
    }

    fn stored_page(&self, page: u64) -> Option<StoredPage> {
        self.pages.stored.as_ref()?.page_to_send(page)
    }

    async fn complete(&self) -> Result<()> {
        self.pages.complete().await
    }
}
