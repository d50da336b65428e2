//! From a range of the guest's disk to where its bytes are.

use super::entry::{Compressed, State};
use super::tables::Tables;
use crate::layer::scan::narrow;
use crate::{ByteRange, Result};

/// What some bytes of the guest's disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// As in the backing file; zeroes where there is none, or where it has ended.
    Unallocated,
    /// Zeroes; `allocated`: there is a place for other bytes.
    Zero { allocated: bool },
    /// In the file of clusters, the first of them at this place.
    Data(u64),
    /// A part of the compressed cluster of this number, counted from the start of the disk.
    Compressed(u64, Compressed),
}

/// Bytes that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Not empty.
    pub(super) range: ByteRange,
    /// What they are.
    pub(super) what: What,
}

impl Run {
    /// Makes `next`, which begins where this run ends, a part of it, if it is more of the same.
    fn join(&mut self, next: &Self) -> bool {
        let same = match (self.what, next.what) {
            (What::Data(at), What::Data(then)) => at.checked_add(self.range.len()) == Some(then),
            (What::Compressed(one, _), What::Compressed(other, _)) => one == other,
            (one, other) => one == other,
        };
        if same {
            self.range = ByteRange::between(self.range.start(), next.range.end());
        }
        same
    }
}

impl Tables {
    /// The runs that `range` is made of, in order and as long as can be. `range` is within the disk.
    pub(super) fn runs(&self, range: ByteRange) -> Runs<'_> {
        Runs {
            tables: self,
            at: range.start(),
            end: range.end(),
            next: None,
        }
    }

    /// What the bytes from `at` on are, up to `end` at most. What follows may be more of the same.
    ///
    /// # Errors
    /// `Corrupt`, what the file says.
    fn run(&self, at: u64, end: u64) -> Result<Run> {
        let shape = self.shape();
        let l1_index = shape.l1_index(at);
        let span = 1_u64 << shape.l1_span_bits();
        let Some(table) = self.table(l1_index)? else {
            let last = shape.l1_index(end.saturating_sub(1));
            let until = self.none_until(l1_index, last.saturating_add(1));
            // An entry of COPIED alone is none either.
            let until = u64::try_from(until.max(l1_index.saturating_add(1))).unwrap_or(u64::MAX);
            let until = until.saturating_mul(span).min(end);
            return Ok(self.unallocated(ByteRange::between(at, until)));
        };
        let (skip, first) = shape.slice_of(shape.l2_index(at));
        self.with_slice(table.at.saturating_add(skip), |entries| {
            let mut at = at;
            let mut run: Option<Run> = None;
            for index in first..entries.count() {
                let Some((entry, bitmap)) = entries.get(index) else {
                    break;
                };
                let cluster = self.cluster(entry, bitmap, at);
                let cluster = match (cluster, run) {
                    (Ok(cluster), _) => cluster,
                    // What lies before a bad entry can be had.
                    (Err(_), Some(_)) => break,
                    (Err(error), None) => return Err(error),
                };
                let start = at.saturating_sub(shape.within(at));
                let stop = start.saturating_add(shape.cluster_size()).min(end);
                while at < stop {
                    let within = shape.within(at);
                    let (state, until) = cluster.state(within, shape);
                    let until = start.saturating_add(until).min(end);
                    let next = self.placed(state, ByteRange::between(at, until), start);
                    match &mut run {
                        None => run = Some(next),
                        Some(run) => {
                            if !run.join(&next) {
                                return Ok(*run);
                            }
                        }
                    }
                    at = until;
                }
                if at >= end {
                    break;
                }
            }
            // A slice has an entry for `at`.
            Ok(run.unwrap_or_else(|| self.unallocated(ByteRange::between(at, end))))
        })
    }

    fn unallocated(&self, range: ByteRange) -> Run {
        let what = match self.shape().raw {
            true => What::Data(range.start()),
            false => What::Unallocated,
        };
        Run { range, what }
    }

    /// `range` is in the state `state`, of a cluster that begins at `start`.
    fn placed(&self, state: State, range: ByteRange, start: u64) -> Run {
        let within = range.start().saturating_sub(start);
        let what = match state {
            State::Unallocated => return self.unallocated(range),
            State::Zero { allocated } => What::Zero { allocated },
            State::Data(host) => What::Data(host.saturating_add(within)),
            State::Compressed(data) => What::Compressed(start >> self.shape().cluster_bits, data),
        };
        Run { range, what }
    }

    /// The compressed cluster of this number, if it (still) is one.
    ///
    /// # Errors
    /// As [`Self::runs`].
    pub(super) fn compressed(&self, number: u64) -> Result<Option<Compressed>> {
        let at = number
            .checked_mul(self.shape().cluster_size())
            .filter(|at| *at < self.size());
        let Some(at) = at else {
            return Ok(None);
        };
        match self.run(at, at.saturating_add(1))?.what {
            What::Compressed(_, data) => Ok(Some(data)),
            _ => Ok(None),
        }
    }

    /// How many bytes of `range` are stored in the file of clusters, of those that the tables in
    /// memory tell of; and how many bytes are not told of.
    pub(super) fn stored(&self, range: ByteRange) -> (u64, u64) {
        let shape = self.shape();
        let span = 1_u64 << shape.l1_span_bits();
        let slice_bits = shape
            .slice_bits()
            .saturating_sub(shape.entry_bits())
            .saturating_add(shape.cluster_bits);
        let (mut stored, mut unknown) = (0_u64, 0_u64);
        let mut at = range.start();
        while at < range.end() {
            let index = shape.l1_index(at);
            let Ok(Some(table)) = self.table(index) else {
                let last = shape.l1_index(range.end().saturating_sub(1));
                let next = self.none_until(index, last.saturating_add(1));
                let next = u64::try_from(next.max(index.saturating_add(1))).unwrap_or(u64::MAX);
                at = next.saturating_mul(span).min(range.end());
                continue;
            };
            let (skip, _) = shape.slice_of(shape.l2_index(at));
            let next = (at >> slice_bits).saturating_add(1);
            let next = next.saturating_mul(1 << slice_bits).min(range.end());
            if self.is_here(table.at.saturating_add(skip)) {
                for run in self.runs(ByteRange::between(at, next)).flatten() {
                    let len = match run.what {
                        What::Data(_) => run.range.len(),
                        What::Compressed(..) => run.range.len() >> 1,
                        What::Unallocated | What::Zero { .. } => 0,
                    };
                    stored = stored.saturating_add(len);
                }
            } else {
                unknown = unknown.saturating_add(next.saturating_sub(at));
            }
            at = next;
        }
        (stored, unknown)
    }

    /// The first compressed cluster among those of the first L2 table there is, if there is one.
    ///
    /// # Errors
    /// As [`Self::runs`].
    pub(super) fn any_compressed(&self) -> Result<bool> {
        let shape = self.shape();
        let entries = narrow(shape.l1_entries(self.size()));
        let first = self.none_until(0, entries);
        let Some(table) = self.table(first).ok().flatten() else {
            return Ok(false);
        };
        self.with_slice(table.at, |entries| {
            Ok((0..entries.count())
                .filter_map(|index| entries.get(index))
                .any(|(entry, _)| entry & super::entry::COMPRESSED != 0))
        })
    }
}

/// Runs in order; see [`Tables::runs`]. Ends after an error.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    tables: &'a Tables,
    at: u64,
    end: u64,
    /// Looked up, and found to be something else than the one before.
    next: Option<Run>,
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Result<Run>> {
        let mut run = match self.next.take() {
            Some(run) => run,
            None if self.at >= self.end => return None,
            None => match self.tables.run(self.at, self.end) {
                Ok(run) => run,
                Err(error) => {
                    self.at = self.end;
                    return Some(Err(error));
                }
            },
        };
        self.at = run.range.end();
        // A compressed cluster is never more than one.
        while self.at < self.end {
            match self.tables.run(self.at, self.end) {
                Ok(next) if run.join(&next) => self.at = run.range.end(),
                Ok(next) => {
                    self.next = Some(next);
                    break;
                }
                // It is met again, by who asks for more.
                Err(_) => break,
            }
        }
        Some(Ok(run))
    }
}
