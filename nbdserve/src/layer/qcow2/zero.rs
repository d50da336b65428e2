//! Zeroing and trimming: clusters and subclusters that are no longer stored.

use super::entry::{COPIED, Host, ZERO};
use super::grid::{to_u64, to_usize};
use super::plan::{Old, bitmap};
use super::side::WriteSide;
use super::tables::Tables;
use super::write::Content;
use crate::{ByteRange, Done, Result, VolumeWriter, ZeroOpts};

/// Zeroes that are written are written in such pieces.
const PIECE: u64 = 256 << 10;

impl WriteSide {
    /// Makes `range` zero.
    ///
    /// # Errors
    /// Any failure; what cannot be done without writing zeroes is declined when `fast_only` says so.
    pub(super) fn zero(
        &self,
        tables: &Tables,
        content: Content<'_>,
        range: ByteRange,
        opts: ZeroOpts,
    ) -> Result<Done> {
        if self.shape.raw {
            return self.zero_raw(tables, range, opts);
        }
        // Version 2 knows only clusters that are not stored.
        if self.version < 3 && (self.shows_below || !opts.may_trim) {
            return Ok(Done::Declined);
        }
        let whole = self.whole(range);
        if opts.fast_only && whole != range {
            return Ok(Done::Declined);
        }
        let head = ByteRange::between(range.start(), whole.start());
        let tail = ByteRange::between(whole.end(), range.end());
        for edge in [head, tail] {
            self.zero_edge(tables, content, edge)?;
        }
        self.clear(tables, Some(content), whole, opts.may_trim)?;
        Ok(Done::Yes)
    }

    /// Gives back what is stored of `range`, as far as that is possible; it reads as zeroes then.
    ///
    /// # Errors
    /// Any failure.
    pub(super) fn trim(&self, tables: &Tables, range: ByteRange) -> Result<()> {
        if self.shape.raw {
            return match self.is_plain() {
                true => self.each_raw(tables, range, |data, part| data.trim(part, false)),
                false => Ok(()),
            };
        }
        if self.version < 3 && self.shows_below {
            return Ok(());
        }
        self.clear(tables, None, self.whole(range), true)
    }

    /// Whether zeroes of a raw data file are what the guest reads.
    fn is_plain(&self) -> bool {
        self.cipher.is_none() && !self.shows_below
    }

    /// A raw data file is the disk: it is made zero, and the tables stay as they are.
    fn zero_raw(&self, tables: &Tables, range: ByteRange, mut opts: ZeroOpts) -> Result<Done> {
        if !self.is_plain() {
            return Ok(Done::Declined);
        }
        let mut done = Done::Yes;
        self.each_raw(tables, range, |data, part| {
            if done == Done::Yes {
                done = data.zero(part, opts)?;
                // Once a part is zeroed the others are, however long that takes.
                opts.fast_only = false;
            }
            Ok(())
        })?;
        Ok(done)
    }

    /// Calls `work` for what may be stored of `range` in a raw data file.
    fn each_raw(
        &self,
        tables: &Tables,
        range: ByteRange,
        mut work: impl FnMut(&VolumeWriter<'_>, ByteRange) -> Result<()>,
    ) -> Result<()> {
        let data = self.data.need_writer()?;
        for group in self.groups(range) {
            if self.has_no_table(tables, group)? {
                continue;
            }
            // No cluster is being written anew from what it held.
            let _shared = self.shared(group);
            // Behind its end it reads as zeroes.
            let end = group.end().min(self.data.size());
            if group.start() < end {
                work(&data, ByteRange::between(group.start(), end))?;
            }
        }
        Ok(())
    }

    /// Whether nothing is stored of `group` for certain.
    fn has_no_table(&self, tables: &Tables, group: ByteRange) -> Result<bool> {
        let nothing =
            |guest| -> Result<bool> { Ok(tables.table(self.shape.l1_index(guest))?.is_none()) };
        let last = group.end().saturating_sub(1);
        Ok(!self.shows_below && nothing(group.start())? && nothing(last)?)
    }

    /// The whole subclusters in `range`; the last one of the disk may be a short one. Empty, at the
    /// end of `range`, when there are none.
    fn whole(&self, range: ByteRange) -> ByteRange {
        let unit = self.shape.subcluster_size();
        let start = range.start().checked_next_multiple_of(unit);
        let start = start.unwrap_or(u64::MAX).min(range.end());
        let end = if range.end() == self.size {
            range.end()
        } else {
            range.end() & !unit.saturating_sub(1)
        };
        if start < end {
            ByteRange::between(start, end)
        } else {
            ByteRange::between(range.end(), range.end())
        }
    }

    /// Writes zeroes, where there are none.
    fn zero_edge(&self, tables: &Tables, content: Content<'_>, edge: ByteRange) -> Result<()> {
        for group in self.groups(edge) {
            for part in self.clusters(group) {
                let units = self.units(part);
                let epoch = self.enter();
                let old = Old::of(&self.lookup(tables, part.start())?, units);
                drop(epoch);
                let touched = units.touched(part);
                let shown = if self.shows_below { !old.zeroed } else { 0 };
                if touched & (old.stored | shown) == 0 {
                    continue;
                }
                let zeroes = vec![0; to_usize(part.len().min(PIECE))];
                let mut at = part.start();
                while at < part.end() {
                    let len = part.end().saturating_sub(at).min(to_u64(zeroes.len()));
                    let piece = zeroes.get(..to_usize(len)).unwrap_or(&[]);
                    self.write(tables, content, piece, at)?;
                    at = at.saturating_add(len);
                }
            }
        }
        Ok(())
    }

    /// Lets `range`, whole subclusters, read as zeroes; `drop`: their place may be given up. What
    /// takes writing is written with the help of `content`, or left as it is without.
    fn clear(
        &self,
        tables: &Tables,
        content: Option<Content<'_>>,
        range: ByteRange,
        drop: bool,
    ) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        self.begin(tables)?;
        for group in self.groups(range) {
            if self.has_no_table(tables, group)? {
                continue;
            }
            {
                let _epoch = self.enter();
                let _alone = self.alone(group);
                let mut holes: Vec<ByteRange> = Vec::new();
                for part in self.clusters(group) {
                    let hole = self.clear_part(tables, content, part, drop)?;
                    match (holes.last_mut(), hole) {
                        (Some(last), Some(hole)) if last.end() == hole.start() => {
                            *last = ByteRange::between(last.start(), hole.end());
                        }
                        (_, hole) => holes.extend(hole),
                    }
                }
                self.punch(&holes);
            }
            self.relieve(tables)?;
        }
        Ok(())
    }

    /// Makes holes in the data file, while nobody else writes there: a cluster that is written again
    /// has the same place in it, so this cannot wait for the flush as it does elsewhere. Before the
    /// flush a crash leaves tables that refer to the hole, which reads as what was asked for.
    fn punch(&self, holes: &[ByteRange]) {
        for hole in holes {
            let end = hole.end().min(self.data.size());
            if hole.start() >= end {
                continue;
            }
            let range = ByteRange::between(hole.start(), end);
            let done = self.data.need_writer();
            if let Err(error) = done.and_then(|data| data.trim(range, false)) {
                // The space is not lost to the image.
                tracing::warn!("cannot make a hole: {error}");
            }
        }
    }

    /// [`Self::clear`] for a part of a cluster. What may become a hole of the data file.
    fn clear_part(
        &self,
        tables: &Tables,
        content: Option<Content<'_>>,
        part: ByteRange,
        drop: bool,
    ) -> Result<Option<ByteRange>> {
        let units = self.units(part);
        let cluster = self.lookup(tables, part.start())?;
        let old = Old::of(&cluster, units);
        let covered = units.covered(part);
        let stored = old.stored & !covered;
        if old.packed && stored & units.covered(self.seen(part)) != 0 {
            // It cannot be split without being unpacked.
            if let Some(content) = content {
                let zeroes = vec![0; to_usize(part.len())];
                self.write_alone(tables, content, &zeroes, part)?;
            }
            return Ok(None);
        }
        // In a data file everything has its place.
        let own = |host: Host| self.shape.external && host.at == self.start_of(part);
        let hole = (drop && old.host.is_some_and(own)).then_some(part);
        let dropped =
            stored == 0 && (old.packed || old.host.is_some_and(|host| drop || !host.copied));
        let shown = covered & !old.zeroed;
        let is_zero = old.stored & covered == 0 && (shown == 0 || !self.shows_below);
        if is_zero && !dropped {
            return Ok(None);
        }
        let zeroed = old.zeroed | covered;
        let host = old.host.filter(|_| !dropped).map(|host| {
            let copied = if host.copied { COPIED } else { 0 };
            host.at | copied
        });
        let (entry, bitmap) = if self.shape.extended {
            (host.unwrap_or(0), bitmap(stored, zeroed))
        } else {
            // Without a place and a backing file it is as if it had never been written.
            let plain = host.is_none() && !self.shows_below;
            (host.unwrap_or(0) | if plain { 0 } else { ZERO }, 0)
        };
        let mut changes = self.changes();
        changes.set_entry(tables, part.start(), entry, bitmap)?;
        if dropped {
            self.release_old(&mut changes, &cluster, drop);
        }
        Ok(hole)
    }

    /// All that the guest sees of the cluster of `part`.
    fn seen(&self, part: ByteRange) -> ByteRange {
        let start = self.start_of(part);
        let end = start.saturating_add(self.grid.size());
        ByteRange::between(start, end.min(self.size))
    }
}
