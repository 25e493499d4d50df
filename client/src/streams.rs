//! Recognises how one handle is read, and says which pages to have fetched before they are asked for.
//!
//! A handle has up to eight streams, since several threads (or several places in one file) may read through it. A
//! request belongs to a stream when it continues it, in either direction, or lies a little ahead: the kernel sends its
//! readahead in pieces that overtake each other.
//!
//! Invariants:
//! - pure state: no clock, no I/O, no lock; what to fetch is returned, and the caller reports what was not taken;
//! - nothing beyond the end of the file is ever asked for, and a stream asks for each page once;
//! - reads in no order ask for nothing, apart from files of at most four pages, which are fetched whole.

/// Streams per handle.
const STREAMS: usize = 8;
/// How far ahead of a stream a request may lie and still belong to it, in bytes.
const REORDER: u64 = 1 << 20;
/// Requests of a stream that are remembered as lying ahead.
const AHEAD: usize = 8;
/// The largest extent, in bytes.
const EXTENT: u64 = 4 << 20;
/// Requests without a stream, in a row, after which a handle counts as read at random.
const RANDOM: u32 = 4;
/// Pages that a first read at the start of a file has fetched, its own included; and files of so many are fetched whole.
const MODEST: u64 = 4;
/// Requests to other places of the file after which a stream no longer counts as active.
const PARKED: u64 = 64;
/// Steps of a strided reader that are fetched ahead at most.
const STEPS: u64 = 16;

/// What the streams may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a page.
    pub page_size: u64,
    /// The most that one stream may be ahead, in bytes.
    pub window: u64,
    /// Extents that a window is divided into.
    pub extents: u64,
}

/// Pages to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The first page.
    pub first: u64,
    /// How many.
    pub count: u64,
    stream: Option<u32>,
    backward: bool,
}

#[derive(Debug, Clone)]
struct Stream {
    id: u32,
    /// What was read without a gap: from here …
    start: u64,
    /// … to here.
    front: u64,
    /// Requests ahead of `front`: offset and end.
    ahead: Vec<(u64, u64)>,
    last_offset: u64,
    /// Requests in a row that lay behind the one before.
    ascending: u32,
    forward: u32,
    backward: u32,
    window: u64,
    /// The front at which the window grows next (forward), or the start (backward).
    grow_at: u64,
    /// Pages below this one have been asked for, in front.
    issued: u64,
    /// Pages from this one on have been asked for, behind.
    issued_back: u64,
    recognised: bool,
    used: u64,
}

/// The streams of a handle.
#[derive(Debug)]
pub struct Streams {
    size: u64,
    list: Vec<Stream>,
    tick: u64,
    next_id: u32,
    /// Requests in a row that continued nothing.
    random: u32,
    whole_asked: bool,
    last: Option<(u64, i128)>,
    repeats: u32,
    steps_asked: u64,
}

enum Match {
    Forward,
    Inside,
    Ahead,
    Backward,
}

impl Streams {
    /// Of a file of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            list: Vec::new(),
            tick: 0,
            next_id: 0,
            random: 0,
            whole_asked: false,
            last: None,
            repeats: 0,
            steps_asked: 0,
        }
    }

    /// Streams that prefetch, without those that the last reads of this handle had nothing to do with.
    pub fn active(&self) -> usize {
        self.list.iter().filter(|stream| stream.recognised && self.tick - stream.used < PARKED).count()
    }

    /// Records a read of `len` bytes at `offset`, and says what to fetch now, nearest first.
    pub fn observe(&mut self, offset: u64, len: u64, limits: &Limits) -> Vec<Ask> {
        let end = offset.saturating_add(len).min(self.size);
        if offset >= end || limits.window < limits.page_size || limits.page_size == 0 {
            return Vec::new();
        }
        let first_of_all = self.tick == 0;
        self.tick += 1;
        let mut asks = Vec::new();
        let pages = self.size.div_ceil(limits.page_size);
        // A small file, at its first byte or when it is read a second time anywhere.
        if pages <= MODEST && !self.whole_asked && (offset == 0 || !first_of_all) {
            self.whole_asked = true;
            if pages > 1 {
                asks.push(Ask { first: 0, count: pages, stream: None, backward: false });
            }
        }
        let needed = if self.random >= RANDOM { 3 } else { 1 };
        match self.find(offset, end) {
            Some((index, how)) => {
                let random = self.random;
                let size = self.size;
                let tick = self.tick;
                let stream = &mut self.list[index];
                stream.used = tick;
                stream.add(offset, end, how);
                if !stream.recognised && (stream.forward >= needed || stream.backward > needed) {
                    stream.recognise(limits, random >= RANDOM);
                }
                if stream.recognised {
                    self.random = 0;
                    self.repeats = 0;
                    self.last = None;
                    if !self.whole_asked {
                        stream.plan(size, limits, &mut asks);
                    }
                    return asks;
                }
            }
            None => {
                self.random = self.random.saturating_add(u32::from(!first_of_all));
                let mut stream = Stream::new(self.next_id, offset, end, limits, self.tick);
                self.next_id = self.next_id.wrapping_add(1);
                if offset == 0 && first_of_all && !self.whole_asked {
                    // Most files that are read from their first byte are read on.
                    let until = MODEST.min(limits.window / limits.page_size + 1).min(pages);
                    if until > stream.issued {
                        // Its own page included: all of it comes with one request.
                        asks.push(Ask { first: 0, count: until, stream: Some(stream.id), backward: false });
                        stream.issued = until;
                    }
                }
                if self.list.len() >= STREAMS
                    && let Some(oldest) = (0..self.list.len()).min_by_key(|at| self.list[*at].used)
                {
                    self.list.swap_remove(oldest);
                }
                self.list.push(stream);
            }
        }
        self.stride(offset, end - offset, limits, &mut asks);
        asks
    }

    /// Of `ask` only the first `accepted` pages are being fetched: the rest will be asked for again.
    pub fn refused(&mut self, ask: &Ask, accepted: u64) {
        match ask.stream {
            Some(id) => {
                if let Some(stream) = self.list.iter_mut().find(|stream| stream.id == id) {
                    if ask.backward {
                        stream.issued_back = stream.issued_back.max(ask.first + ask.count);
                    } else {
                        stream.issued = stream.issued.min(ask.first + accepted);
                    }
                }
            }
            None => {
                self.steps_asked = 0;
                self.whole_asked &= accepted > 0;
            }
        }
    }

    fn find(&self, offset: u64, end: u64) -> Option<(usize, Match)> {
        let mut best: Option<(u64, usize, Match)> = None;
        for (index, stream) in self.list.iter().enumerate() {
            let (distance, how) = if offset <= stream.front && end > stream.front && offset >= stream.start {
                (0, Match::Forward)
            } else if offset < stream.start && end >= stream.start {
                (1, Match::Backward)
            } else if end <= stream.front && offset >= stream.start && offset + REORDER >= stream.front {
                (2, Match::Inside)
            } else if offset > stream.front && offset - stream.front <= REORDER {
                (2 + offset - stream.front, Match::Ahead)
            } else {
                continue;
            };
            if best.as_ref().is_none_or(|(least, ..)| distance < *least) {
                best = Some((distance, index, how));
            }
        }
        best.map(|(_, index, how)| (index, how))
    }

    /// Reads at equal distances: the next ones are fetched.
    fn stride(&mut self, offset: u64, len: u64, limits: &Limits, asks: &mut Vec<Ask>) {
        let Some((before, delta)) = self.last else {
            self.last = Some((offset, 0));
            return;
        };
        let now = i128::from(offset) - i128::from(before);
        self.last = Some((offset, now));
        if now != delta || now.unsigned_abs() <= u128::from(limits.page_size) {
            self.repeats = 0;
            self.steps_asked = 0;
            return;
        }
        self.repeats = (self.repeats + 1).min(32);
        self.steps_asked = self.steps_asked.saturating_sub(1);
        if self.repeats < 2 {
            return;
        }
        self.random = self.random.saturating_sub(1);
        let pages_each = len.div_ceil(limits.page_size) + 1;
        let affordable = limits.window / limits.page_size / pages_each;
        let steps = (1u64 << self.repeats.min(5)).min(STEPS).min(affordable);
        for step in self.steps_asked + 1..=steps {
            let at = i128::from(offset) + now * i128::from(step);
            let Ok(at) = u64::try_from(at) else { break };
            if at >= self.size {
                break;
            }
            let end = at.saturating_add(len).min(self.size);
            let first = at / limits.page_size;
            let count = end.div_ceil(limits.page_size) - first;
            asks.push(Ask { first, count, stream: None, backward: false });
            self.steps_asked = step;
        }
    }
}

impl Stream {
    fn new(id: u32, offset: u64, end: u64, limits: &Limits, used: u64) -> Self {
        Self {
            id,
            start: offset,
            front: end,
            ahead: Vec::new(),
            last_offset: offset,
            ascending: 0,
            forward: 0,
            backward: 0,
            window: 0,
            grow_at: end,
            issued: end.div_ceil(limits.page_size),
            issued_back: offset / limits.page_size,
            recognised: false,
            used,
        }
    }

    fn add(&mut self, offset: u64, end: u64, how: Match) {
        self.ascending = if offset > self.last_offset { self.ascending + 1 } else { 0 };
        self.last_offset = offset;
        match how {
            Match::Inside => {}
            Match::Forward => {
                self.front = end;
                self.forward += 1;
                self.backward = 0;
                self.absorb();
            }
            Match::Backward => {
                self.start = offset;
                self.backward += 1;
                // Overtaking at the very start looks like this too, so forward progress is not forgotten.
                if self.backward >= 2 {
                    self.forward = 0;
                }
            }
            Match::Ahead => {
                if self.ahead.len() >= AHEAD {
                    if self.ascending as usize >= AHEAD {
                        // A reader that leaves out small pieces, in order.
                        self.front = self.ahead.iter().map(|(_, end)| *end).fold(end, u64::max);
                        self.ahead.clear();
                        self.forward += 1;
                        self.backward = 0;
                        return;
                    }
                    self.ahead.remove(0);
                }
                self.ahead.push((offset, end));
            }
        }
    }

    /// Moves the front over requests that had overtaken it.
    fn absorb(&mut self) {
        while let Some(at) = self.ahead.iter().position(|(offset, _)| *offset <= self.front) {
            let (_, end) = self.ahead.swap_remove(at);
            if end > self.front {
                self.front = end;
                self.forward += 1;
            }
        }
    }

    fn is_backward(&self) -> bool {
        self.backward >= 2
    }

    fn recognise(&mut self, limits: &Limits, doubtful: bool) {
        self.recognised = true;
        let pages = if doubtful { 2 } else { limits.extents.max(2) };
        self.window = (pages * limits.page_size).min(limits.window);
        self.grow_at =
            if self.is_backward() { self.start.saturating_sub(self.window / 4) } else { self.front + self.window / 4 };
    }

    /// Asks for what the window lacks, in extents.
    fn plan(&mut self, size: u64, limits: &Limits, asks: &mut Vec<Ask>) {
        let page = limits.page_size;
        let due = if self.is_backward() { self.start <= self.grow_at } else { self.front >= self.grow_at };
        if due {
            self.window *= 2;
        }
        // The limit may have sunk since: more streams share the memory now.
        self.window = self.window.clamp(page, limits.window);
        if due {
            self.grow_at = if self.is_backward() {
                self.start.saturating_sub(self.window / 4)
            } else {
                self.front + self.window / 4
            };
        }
        let extent = (self.window / limits.extents.max(1)).clamp(page, EXTENT.max(page)) / page;
        if self.is_backward() {
            let target = self.start.saturating_sub(self.window) / page;
            let mut until = self.issued_back.min(self.start / page);
            while until > target && (until - target >= extent || target == 0) {
                let count = extent.min(until - target);
                until -= count;
                asks.push(Ask { first: until, count, stream: Some(self.id), backward: true });
                self.issued_back = until;
            }
            return;
        }
        let target = (self.front + self.window).min(size);
        let at_end = target == size;
        // Only whole pages before the end: the page that holds the window's edge comes with the next extent.
        let target = if at_end { size.div_ceil(page) } else { target / page };
        let mut from = self.issued.max(self.front / page);
        while from < target && (target - from >= extent || at_end) {
            let count = extent.min(target - from);
            asks.push(Ask { first: from, count, stream: Some(self.id), backward: false });
            from += count;
            self.issued = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const MIB: u64 = 1 << 20;
    const LIMITS: Limits = Limits { page_size: MIB, window: 64 * MIB, extents: 16 };

    fn pages(asks: &[Ask]) -> Vec<u64> {
        asks.iter().flat_map(|ask| ask.first..ask.first + ask.count).collect()
    }

    #[test]
    fn the_second_request_in_order_has_sixteen_extents_fetched() {
        let mut streams = Streams::new(1 << 30);
        let modest = streams.observe(0, 128 << 10, &LIMITS);
        assert_eq!(pages(&modest), [0, 1, 2, 3]);
        let asks = streams.observe(128 << 10, 128 << 10, &LIMITS);
        assert_eq!(pages(&asks), (4..16).collect::<Vec<_>>());
        assert!(asks.len() + 3 >= 15);
        assert_eq!(streams.active(), 1);
        let mut furthest = 0;
        for step in 2..1024u64 {
            for ask in streams.observe(step * (128 << 10), 128 << 10, &LIMITS) {
                furthest = furthest.max(ask.first + ask.count);
                assert!(ask.count <= 4);
            }
        }
        let front = 128;
        assert!(furthest >= front + 56 && furthest <= front + 64, "{furthest}");
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let mut streams = Streams::new(1 << 30);
        let piece = 128 << 10;
        let mut asked = Vec::new();
        for group in 0..64u64 {
            for at in [1u64, 0, 3, 2] {
                asked.extend(pages(&streams.observe((group * 4 + at) * piece, piece, &LIMITS)));
            }
        }
        assert_eq!(streams.active(), 1);
        assert_eq!(streams.list.len(), 1);
        let mut sorted = asked.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), asked.len(), "each page once");
        assert!(asked.iter().max().unwrap() > &60);
    }

    #[test]
    fn eight_readers_of_one_handle_are_eight_streams() {
        let mut streams = Streams::new(8 << 30);
        for step in 0..8u64 {
            for reader in 0..8u64 {
                streams.observe((reader << 30) + step * MIB, MIB, &LIMITS);
            }
        }
        assert_eq!(streams.active(), 8);
    }

    #[test]
    fn a_stream_that_is_not_continued_counts_no_more() {
        let mut streams = Streams::new(8 << 30);
        for reader in 0..3u64 {
            for step in 0..4u64 {
                streams.observe((reader << 30) + step * MIB, MIB, &LIMITS);
            }
        }
        assert_eq!(streams.active(), 3);
        for step in 4..100u64 {
            streams.observe(step * MIB, MIB, &LIMITS);
        }
        assert_eq!(streams.active(), 1);
        streams.observe((1 << 30) + 4 * MIB, MIB, &LIMITS);
        assert_eq!(streams.active(), 2);
    }

    #[test]
    fn reading_backward_is_followed_backward() {
        let mut streams = Streams::new(1 << 30);
        let mut asked = Vec::new();
        for step in 0..32u64 {
            asked.extend(pages(&streams.observe((500 - step) * MIB, MIB, &LIMITS)));
        }
        assert!(asked.iter().all(|page| *page < 500));
        assert!(asked.iter().min().unwrap() + 16 < 500 - 32, "{asked:?}");
    }

    #[test]
    fn equal_distances_are_followed() {
        let mut streams = Streams::new(1 << 30);
        let mut asked = Vec::new();
        for step in 0..20u64 {
            asked.extend(pages(&streams.observe(step * 10 * MIB + 5, 4096, &LIMITS)));
        }
        assert!(!asked.is_empty());
        assert!(asked.iter().all(|page| page % 10 == 0 || *page < 4), "{asked:?}");
        assert!(asked.iter().max().unwrap() >= &250);
    }

    #[test]
    fn pieces_left_out_in_order_are_still_a_stream() {
        let mut streams = Streams::new(1 << 30);
        let mut asked = Vec::new();
        for step in 1..200u64 {
            asked.extend(pages(&streams.observe(step * (64 << 10), 4096, &LIMITS)));
        }
        assert_eq!(streams.active(), 1);
        assert!(asked.iter().max().unwrap() > &12);
    }

    #[test]
    fn a_small_file_is_fetched_whole_and_once() {
        let mut streams = Streams::new(3 * MIB + 5);
        assert_eq!(pages(&streams.observe(0, 4096, &LIMITS)), [0, 1, 2, 3]);
        for step in 1..100u64 {
            assert!(streams.observe(step * 4096, 4096, &LIMITS).is_empty());
        }
        let mut streams = Streams::new(3 * MIB + 5);
        assert!(streams.observe(2 * MIB, 4096, &LIMITS).is_empty());
        assert_eq!(pages(&streams.observe(17, 4096, &LIMITS)), [0, 1, 2, 3]);
        assert!(Streams::new(100).observe(0, 100, &LIMITS).is_empty(), "one page is the reader's own");
    }

    #[test]
    fn what_was_refused_is_asked_for_again() {
        let mut streams = Streams::new(1 << 30);
        streams.observe(0, MIB, &LIMITS);
        let asks = streams.observe(MIB, MIB, &LIMITS);
        let first = asks[0];
        for ask in &asks {
            streams.refused(ask, 0);
        }
        let again = streams.observe(2 * MIB, MIB, &LIMITS);
        assert_eq!(again[0].first, first.first);
    }

    #[test]
    fn without_a_window_nothing_is_asked_for() {
        let mut streams = Streams::new(1 << 30);
        let limits = Limits { window: 0, ..LIMITS };
        assert!((0..100u64).all(|step| streams.observe(step * MIB, MIB, &limits).is_empty()));
    }

    proptest! {
        #[test]
        fn nothing_beyond_the_end_and_each_stream_a_page_once(
            size in 1u64..(300 * MIB),
            reads in proptest::collection::vec((0u64..(310 * MIB), 1u64..(2 * MIB), 0u8..6), 1..200),
            window in prop_oneof![Just(0u64), Just(MIB), Just(7 * MIB), Just(64 * MIB)],
        ) {
            let limits = Limits { window, ..LIMITS };
            let mut streams = Streams::new(size);
            let total = size.div_ceil(MIB);
            let mut at = 0;
            let mut seen: HashMap<(u32, bool, u64), u32> = HashMap::new();
            for (offset, len, kind) in reads {
                // Mostly onward, sometimes elsewhere.
                let offset = if kind == 0 { offset } else { at };
                let asks = streams.observe(offset, len, &limits);
                at = offset.saturating_add(len);
                let sum: u64 = asks.iter().map(|ask| ask.count).sum();
                prop_assert!(sum * MIB <= window + 2 * MODEST * MIB, "{} pages", sum);
                for ask in asks {
                    prop_assert!(ask.count > 0 && ask.first + ask.count <= total);
                    if let Some(id) = ask.stream {
                        for page in ask.first..ask.first + ask.count {
                            let times = seen.entry((id, ask.backward, page)).or_default();
                            *times += 1;
                            prop_assert_eq!(*times, 1);
                        }
                    }
                }
                prop_assert!(streams.list.len() <= STREAMS);
            }
        }

        #[test]
        fn reads_at_random_ask_for_nothing(seed in any::<u64>(), len in 512u64..65536) {
            let size = 1u64 << 40;
            let mut streams = Streams::new(size);
            let mut state = seed | 1;
            for _ in 0..200 {
                // An LCG: far apart in a terabyte, and never twice the same distance in a row.
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let offset = 1 + (state >> 16) % (size - 1);
                prop_assert!(streams.observe(offset, len, &LIMITS).is_empty());
            }
        }

        #[test]
        fn reads_in_order_are_covered_ahead(len in 4096u64..(2 * MIB), size in (80 * MIB)..(400 * MIB)) {
            let mut streams = Streams::new(size);
            let mut covered = std::collections::HashSet::new();
            let mut offset = 0;
            let mut step = 0;
            while offset < size {
                if step >= 2 {
                    let last = (offset + len).min(size) - 1;
                    for page in offset / MIB..=last / MIB {
                        prop_assert!(covered.contains(&page) || page * MIB < 2 * len, "page {} at {}", page, offset);
                    }
                }
                covered.extend(pages(&streams.observe(offset, len, &LIMITS)));
                offset += len;
                step += 1;
            }
        }
    }
}
