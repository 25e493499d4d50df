//! A set of byte offsets, as ranges that neither touch nor overlap.

use std::{collections::BTreeMap, ops::Range};

/// The set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Ends by their starts.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range, and returns how many offsets of it were not there before.
    pub(crate) fn insert(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut had = 0;
        // The one that begins at or before it may touch it; those that begin within it, or at its end, do.
        if let Some((&before, &until)) = self.ranges.range(..=start).next_back()
            && until >= start
        {
            start = before;
        }
        while let Some((&next, &until)) = self.ranges.range(start..=end).next() {
            had += until.min(range.end).saturating_sub(next.max(range.start));
            end = end.max(until);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
        range.end - range.start - had
    }

    /// Takes a range out, and returns how many offsets of it were there.
    pub(crate) fn remove(&mut self, range: Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let first = match self.ranges.range(..=range.start).next_back() {
            Some((&start, &end)) if end > range.start => start,
            _ => range.start,
        };
        let hit: Vec<(u64, u64)> = self.ranges.range(first..range.end).map(|(start, end)| (*start, *end)).collect();
        let mut gone = 0;
        for (start, end) in hit {
            self.ranges.remove(&start);
            gone += end.min(range.end) - start.max(range.start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
            }
        }
        gone
    }

    /// The parts of `range` that are not in the set, in order.
    pub(crate) fn gaps(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (start, end) in self.within(range.clone()) {
            if start > at {
                gaps.push(at..start);
            }
            at = end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// How many offsets of `range` are not in the set.
    pub(crate) fn missing(&self, range: Range<u64>) -> u64 {
        let had: u64 = self.within(range.clone()).map(|(start, end)| end - start).sum();
        range.end.saturating_sub(range.start) - had
    }

    /// Whether all of `range` is in the set.
    pub(crate) fn covers(&self, range: Range<u64>) -> bool {
        range.is_empty() || self.ranges.range(..=range.start).next_back().is_some_and(|(_, end)| *end >= range.end)
    }

    /// The first offset from `at` on that is not in the set.
    pub(crate) fn end_of_run(&self, at: u64) -> u64 {
        match self.ranges.range(..=at).next_back() {
            Some((_, &end)) if end > at => end,
            _ => at,
        }
    }

    /// The first offset from `at` on that is in the set.
    pub(crate) fn next(&self, at: u64) -> Option<u64> {
        if self.end_of_run(at) > at {
            return Some(at);
        }
        self.ranges.range(at..).next().map(|(start, _)| *start)
    }

    /// The ranges, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// How many offsets there are.
    pub(crate) fn total(&self) -> u64 {
        self.iter().map(|range| range.end - range.start).sum()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Takes everything out.
    pub(crate) fn clear(&mut self) {
        self.ranges.clear();
    }

    fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = match self.ranges.range(..=range.start).next_back() {
            Some((&start, &end)) if end > range.start => start,
            _ => range.start,
        };
        self.ranges
            .range(first..range.end.max(first))
            .map(move |(start, end)| ((*start).max(range.start), (*end).min(range.end)))
            .filter(|(start, end)| start < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_what_a_set_of_numbers_is(
            steps in proptest::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 0..60),
            start in 0u64..60, length in 0u64..20,
        ) {
            let mut ranges = RangeSet::default();
            let mut model = BTreeSet::new();
            for (add, start, length) in steps {
                let range = start..start + length;
                let before = model.len();
                if add {
                    let new = ranges.insert(range.clone());
                    model.extend(range);
                    prop_assert_eq!(new as usize, model.len() - before);
                } else {
                    let gone = ranges.remove(range.clone());
                    model.retain(|offset| !range.contains(offset));
                    prop_assert_eq!(gone as usize, before - model.len());
                }
                let flat: BTreeSet<u64> = ranges.iter().flatten().collect();
                prop_assert_eq!(&flat, &model);
                let all: Vec<_> = ranges.iter().collect();
                prop_assert!(all.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", all);
                prop_assert_eq!(ranges.total() as usize, model.len());
            }
            let range = start..start + length;
            let gaps: Vec<u64> = ranges.gaps(range.clone()).into_iter().flatten().collect();
            let wanted: Vec<u64> = range.clone().filter(|offset| !model.contains(offset)).collect();
            prop_assert_eq!(ranges.covers(range.clone()), wanted.is_empty());
            prop_assert_eq!(ranges.missing(range.clone()) as usize, wanted.len());
            prop_assert_eq!(gaps, wanted);
            prop_assert_eq!(ranges.next(start), model.range(start..).next().copied());
            prop_assert_eq!(ranges.end_of_run(start), (start..).find(|offset| !model.contains(offset)).unwrap());
        }
    }
}
