//! What is fetched or waits to be, and what goes together in one request.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use super::store::mask;
use crate::{ByteRange, Error};

/// A range that is being fetched or waits to be. No byte is in two of them.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) id: u64,
    range: ByteRange,
    /// One past the last page that has arrived.
    pub(super) at: u64,
    pub(super) started: bool,
    /// A reader waits for it.
    pub(super) urgent: bool,
    /// The first of those that are asked for with it in one request.
    set: Option<u64>,
    pub(super) failed: Arc<OnceLock<Error>>,
}

/// All of them, in the order in which they were asked for. Places in that order are valid until one is
/// removed.
#[derive(Debug, Default)]
pub(super) struct Flights {
    all: Vec<Flight>,
    next_id: u64,
}

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn add(&mut self, range: ByteRange, urgent: bool) {
        let id = self.next_id;
        self.next_id += 1;
        self.all.push(Flight {
            id,
            range,
            at: range.start(),
            started: false,
            urgent,
            set: None,
            failed: Arc::default(),
        });
    }

    /// As [`Self::add`], or lengthens the one that waits for what lies before.
    pub(super) fn add_merged(&mut self, range: ByteRange, urgent: bool, longest: u64) {
        let neighbour = self.all.iter_mut().find(|flight| {
            let merged = flight.range.len().saturating_add(range.len());
            let waits = !flight.started && flight.set.is_none();
            waits && flight.range.end() == range.start() && merged <= longest
        });
        if let Some(flight) = neighbour {
            flight.range = ByteRange::between(flight.range.start(), range.end());
            flight.urgent |= urgent;
        } else {
            self.add(range, urgent);
        }
    }

    /// Adds flights that are asked for with one request.
    pub(super) fn add_set(&mut self, ranges: &[ByteRange], urgent: bool) {
        let set = (ranges.len() > 1).then_some(self.next_id);
        let before = self.all.len();
        for range in ranges {
            self.add(*range, urgent);
        }
        for flight in self.all.iter_mut().skip(before) {
            flight.set = set;
        }
    }

    /// Where the first one is that waits, for a reader or not.
    pub(super) fn waiting(&self, urgent: bool) -> Option<usize> {
        let wanted = |flight: &Flight| !flight.started && flight.urgent == urgent;
        self.all.iter().position(wanted)
    }

    /// Whether a reader waits for the one at `at`.
    pub(super) fn is_urgent(&self, at: usize) -> bool {
        self.all[at].urgent
    }

    /// Where the flights are that are asked for together with the one at `at`.
    pub(super) fn set_of(&self, at: usize) -> Vec<usize> {
        let Some(set) = self.all[at].set else {
            return vec![at];
        };
        let all = self.all.iter().enumerate();
        let all = all.filter(|(_, flight)| flight.set == Some(set) && !flight.started);
        all.map(|(at, _)| at).collect()
    }

    /// Those at the places of `set` are asked for each by itself.
    pub(super) fn part(&mut self, set: &[usize]) {
        for at in set {
            self.all[*at].set = None;
        }
    }

    /// The ranges of those at the places of `set`.
    pub(super) fn ranges(&self, set: &[usize]) -> Vec<ByteRange> {
        set.iter().map(|at| self.all[*at].range).collect()
    }

    /// The one at `at` is under way: which it is, and its range.
    pub(super) fn start(&mut self, at: usize) -> (u64, ByteRange) {
        let flight = &mut self.all[at];
        flight.started = true;
        (flight.id, flight.range)
    }

    /// The ranges of those that are under way.
    pub(super) fn started(&self) -> impl Iterator<Item = ByteRange> {
        let started = self.all.iter().filter(|flight| flight.started);
        started.map(|flight| flight.range)
    }

    /// Requests that are under way, or with those that wait.
    pub(super) fn requests(&self, started: bool) -> usize {
        let flights = self.all.iter();
        let flights = flights.filter(|flight| flight.started || !started);
        let first: BTreeSet<u64> = flights
            .map(|flight| flight.set.unwrap_or(flight.id))
            .collect();
        first.len()
    }

    /// The pages of the chunk `index` that are still to come.
    pub(super) fn coming(&self, index: u64) -> u64 {
        let rest = |flight: &Flight| ByteRange::between(flight.at, flight.range.end());
        let masks = self.all.iter().map(|flight| mask(index, rest(flight)));
        masks.fold(0, |all, one| all | one)
    }

    /// The one that brings the page at `page`.
    pub(super) fn bringing(&mut self, page: u64) -> Option<&mut Flight> {
        self.all
            .iter_mut()
            .find(|flight| flight.at <= page && page < flight.range.end())
    }

    /// All pages before `to` of the flight `id` have arrived: those that are new.
    pub(super) fn advance(&mut self, id: u64, to: u64) -> Option<ByteRange> {
        let flight = self.all.iter_mut().find(|flight| flight.id == id)?;
        let new = ByteRange::between(flight.at, to);
        if new.is_empty() {
            return None;
        }
        flight.at = to;
        Some(new)
    }

    /// Takes out the flight `id`.
    pub(super) fn remove(&mut self, id: u64) -> Option<Flight> {
        let at = self.all.iter().position(|flight| flight.id == id)?;
        Some(self.all.remove(at))
    }

    /// What has not arrived of the flights `ids`, which are of one set, waits again, each by itself.
    pub(super) fn release(&mut self, ids: &BTreeSet<u64>) {
        let all = self.all.iter_mut();
        for flight in all.filter(|flight| ids.contains(&flight.id)) {
            flight.range = ByteRange::between(flight.at, flight.range.end());
            flight.started = false;
            flight.set = None;
        }
    }
}
