//! Bytes with a volatile cache above them, for crashes: [`crate::layer::cow::Medium`] in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Rng;
use crate::ByteRange;
use crate::layer::cow::Medium;

/// What is written whole or not at all.
pub const SECTOR: u64 = 512;

type Sector = [u8; SECTOR as usize];
type Sectors = BTreeMap<u64, Sector>;

/// A medium that remembers in which order it was written and synced. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Platter(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    sectors: Sectors,
    len: u64,
    events: Vec<Event>,
    fails: bool,
}

/// Something that happened to a [`Platter`].
#[derive(Clone, Debug)]
pub enum Event {
    /// A sector has new bytes, or is a hole.
    Sector(u64, Option<Box<Sector>>),
    /// All before is durable.
    Sync,
}

impl Platter {
    /// One with these bytes.
    #[must_use]
    pub fn with(bytes: &[u8]) -> Self {
        let platter = Self::default();
        let mut state = platter.state();
        for (at, sector) in (0..).zip(bytes.chunks(SECTOR as usize)) {
            if sector.iter().any(|byte| *byte != 0) {
                state.store(sector, at * SECTOR);
            }
        }
        state.len = bytes.len() as u64;
        state.events.clear();
        drop(state);
        platter
    }

    /// How much has happened to it.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state().events.len()
    }

    /// All that has happened to it.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self.state().len as usize];
        // In memory.
        let _ = self.read_at(&mut out, 0);
        out
    }

    /// Cuts it off after `len` bytes.
    pub fn truncate(&self, len: u64) {
        let mut state = self.state();
        state.len = len;
        let kept = state.sectors.split_off(&len.div_ceil(SECTOR));
        drop(kept);
    }

    /// Lets every write and sync fail, or not any more.
    pub fn fail(&self, fails: bool) {
        self.state().fails = fails;
    }

    /// What a power failure after `events` may leave: all up to the last sync, and of each sector
    /// that was written since then any version.
    #[must_use]
    pub fn after_crash(events: &[Event], rng: &mut Rng) -> Self {
        let synced = events
            .iter()
            .rposition(|event| matches!(event, Event::Sync))
            .map_or(0, |at| at + 1);
        let mut state = State::default();
        for event in &events[..synced] {
            state.apply(event);
        }
        let mut versions: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
        for event in &events[synced..] {
            if let Event::Sector(at, _) = event {
                versions.entry(*at).or_default().push(event);
            }
        }
        for (_, versions) in versions {
            let kept = rng.below(versions.len() as u64 + 1) as usize;
            if let Some(version) = kept.checked_sub(1) {
                state.apply(versions[version]);
            }
        }
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, event: &Event) {
        match event {
            Event::Sector(at, Some(bytes)) => {
                self.sectors.insert(*at, **bytes);
                self.len = self.len.max((at + 1) * SECTOR);
            }
            Event::Sector(at, None) => {
                self.sectors.remove(at);
            }
            Event::Sync => {}
        }
    }

    fn store(&mut self, bytes: &[u8], offset: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = (at % SECTOR) as usize;
            let len = (SECTOR as usize - start).min(bytes.len() - done);
            let mut sector = self.sectors.get(&(at / SECTOR)).copied();
            let sector = sector.get_or_insert([0; SECTOR as usize]);
            sector[start..start + len].copy_from_slice(&bytes[done..done + len]);
            self.sectors.insert(at / SECTOR, *sector);
            self.events
                .push(Event::Sector(at / SECTOR, Some(Box::new(*sector))));
            done += len;
        }
        self.len = self.len.max(offset + bytes.len() as u64);
    }
}

impl Medium for Platter {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state();
        let len = state.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let start = (at % SECTOR) as usize;
            let part = (SECTOR as usize - start).min(len - done);
            let to = &mut buf[done..done + part];
            match state.sectors.get(&(at / SECTOR)) {
                Some(sector) => to.copy_from_slice(&sector[start..start + part]),
                None => to.fill(0),
            }
            done += part;
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.fails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.store(buf, offset);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.fails {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.events.push(Event::Sync);
        Ok(())
    }

    fn punch(&self, range: ByteRange) {
        let mut state = self.state();
        let whole = range.start().div_ceil(SECTOR)..range.end() / SECTOR;
        let inside: Vec<_> = state.sectors.range(whole).map(|(at, _)| *at).collect();
        for at in inside {
            state.sectors.remove(&at);
            state.events.push(Event::Sector(at, None));
        }
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        let state = self.state();
        let next = state.sectors.range(offset / SECTOR..).next();
        Ok(next.map(|(at, _)| (at * SECTOR).max(offset)))
    }
}
