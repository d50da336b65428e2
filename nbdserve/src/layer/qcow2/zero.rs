//! Zeroing and trimming: clusters and subclusters that are no longer stored.

use super::entry::{COPIED, ZERO};
use super::grid::{to_u64, to_usize};
use super::plan::{Old, bitmap};
use super::tables::Tables;
use super::write::{Content, WriteSide};
use crate::{ByteRange, Done, Result, ZeroOpts};

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
        // Version 2 knows only clusters that are not stored.
        let old_format = self.version < 3 && (self.shows_below || !opts.may_trim);
        if self.shape.raw || old_format {
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
        if self.shape.raw || self.version < 3 && self.shows_below {
            return Ok(());
        }
        self.clear(tables, None, self.whole(range), true)
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
                let old = Old::of(&self.lookup(tables, part.start())?, units);
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
            let nothing =
                |guest| -> Result<bool> { Ok(tables.table(self.shape.l1_index(guest))?.is_none()) };
            let last = group.end().saturating_sub(1);
            if !self.shows_below && nothing(group.start())? && nothing(last)? {
                continue;
            }
            {
                let _epoch = self.enter();
                let _alone = self.alone(group);
                for part in self.clusters(group) {
                    self.clear_part(tables, content, part, drop)?;
                }
            }
            self.relieve(tables)?;
        }
        Ok(())
    }

    fn clear_part(
        &self,
        tables: &Tables,
        content: Option<Content<'_>>,
        part: ByteRange,
        drop: bool,
    ) -> Result<()> {
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
            return Ok(());
        }
        let dropped =
            stored == 0 && (old.packed || old.host.is_some_and(|host| drop || !host.copied));
        let shown = covered & !old.zeroed;
        let is_zero = old.stored & covered == 0 && (shown == 0 || !self.shows_below);
        if is_zero && !dropped {
            return Ok(());
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
        Ok(())
    }

    /// All that the guest sees of the cluster of `part`.
    fn seen(&self, part: ByteRange) -> ByteRange {
        let start = self.start_of(part);
        let end = start.saturating_add(self.grid.size());
        ByteRange::between(start, end.min(self.size))
    }
}
