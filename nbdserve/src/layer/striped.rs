//! Bytes that lie in turns on several parts of a volume, in one copy or in several: what the layers
//! `lvm` and `raid` have in common.

use crate::{
    ByteRange, Device, Done, Error, ExtentFlags, Extents, Geometry, Kind, Result, Volume,
    VolumeWriter, WriteFeatures, Writer, ZeroOpts,
};

/// Rows of stripes whose extents are looked up at once.
const ROWS: u64 = 4096;

/// A run of the volume, in turns of `chunk` bytes on each of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    /// Where it lies in the volume. Not empty.
    pub(crate) range: ByteRange,
    /// Bytes of a turn. Not zero; a row of turns need not end where the zone does.
    pub(crate) chunk: u64,
    /// Where each column begins below. At least one.
    pub(crate) columns: Vec<u64>,
}

impl Zone {
    /// `range` as it is, from `at` below on.
    pub(crate) fn linear(range: ByteRange, at: u64) -> Self {
        Self {
            range,
            chunk: range.len().max(1),
            columns: vec![at],
        }
    }

    fn width(&self) -> u64 {
        u64::try_from(self.columns.len()).unwrap_or(u64::MAX)
    }

    /// Which column has the byte `offset` of the zone, and which byte of the column that is.
    fn place(&self, offset: u64) -> (usize, u64) {
        let turn = offset.checked_div(self.chunk).unwrap_or(0);
        let within = offset.checked_rem(self.chunk).unwrap_or(0);
        let row = turn.checked_div(self.width()).unwrap_or(0);
        let column = turn.checked_rem(self.width()).unwrap_or(0);
        // Below the length of the zone.
        let at = row.saturating_mul(self.chunk).saturating_add(within);
        (usize::try_from(column).unwrap_or(0), at)
    }

    /// Where the byte `offset` of the zone lies below, and how many follow it there.
    fn find(&self, offset: u64) -> (u64, u64) {
        let (column, at) = self.place(offset);
        let within = offset.checked_rem(self.chunk).unwrap_or(0);
        let begin = self.columns.get(column).copied().unwrap_or(0);
        (begin.saturating_add(at), self.chunk.saturating_sub(within))
    }

    /// How many bytes of the column at `index` lie before the byte `offset` of the zone.
    fn before(&self, index: usize, offset: u64) -> u64 {
        let (column, at) = self.place(offset);
        let row_start = at.saturating_sub(at.checked_rem(self.chunk).unwrap_or(0));
        match index.cmp(&column) {
            std::cmp::Ordering::Less => row_start.saturating_add(self.chunk),
            std::cmp::Ordering::Equal => at,
            std::cmp::Ordering::Greater => row_start,
        }
    }

    /// What the part `from..to` of the zone is of each column, below: one range each.
    fn spans(&self, from: u64, to: u64) -> impl Iterator<Item = ByteRange> {
        self.columns.iter().enumerate().map(move |(index, begin)| {
            let below = |offset| begin.saturating_add(self.before(index, offset));
            ByteRange::between(below(from), below(to))
        })
    }
}

/// Where each byte of a volume lies below: zones without gaps, from zero on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Map {
    zones: Vec<Zone>,
}

impl Map {
    /// Adds a zone behind the others.
    pub(crate) fn push(&mut self, zone: Zone) {
        debug_assert_eq!(zone.range.start(), self.size());
        // A run that goes on below is one run.
        if let (Some(last), [at]) = (self.zones.last_mut(), zone.columns.as_slice())
            && let [before] = last.columns.as_slice()
            && before.checked_add(last.range.len()) == Some(*at)
        {
            let range = ByteRange::between(last.range.start(), zone.range.end());
            *last = Zone::linear(range, *before);
            return;
        }
        self.zones.push(zone);
    }

    pub(crate) fn size(&self) -> u64 {
        self.zones.last().map_or(0, |zone| zone.range.end())
    }

    /// Leaves out what is behind the first `size` bytes.
    pub(crate) fn truncate(&mut self, size: u64) {
        self.zones.retain(|zone| zone.range.start() < size);
        if let Some(last) = self.zones.last_mut() {
            last.range = last.range.intersect(ByteRange::between(0, size));
        }
    }

    /// The bytes below that the volume is, when they are one run.
    pub(crate) fn plain(&self) -> Option<ByteRange> {
        match self.zones.as_slice() {
            [zone] => match zone.columns.as_slice() {
                [at] => ByteRange::new(*at, zone.range.len()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The zones that hold `range`, each with the part of it that they hold.
    fn zones_of(&self, range: ByteRange) -> impl Iterator<Item = (&Zone, ByteRange)> {
        let first = self
            .zones
            .partition_point(|zone| zone.range.end() <= range.start());
        let zones = self.zones.get(first..).unwrap_or_default().iter();
        zones
            .take_while(move |zone| zone.range.start() < range.end())
            .map(move |zone| (zone, zone.range.intersect(range)))
    }

    /// The runs that hold `range`: which part of it, and where that begins below.
    fn runs(&self, range: ByteRange) -> impl Iterator<Item = (ByteRange, u64)> {
        self.zones_of(range).flat_map(|(zone, part)| {
            let mut at = part.start();
            std::iter::from_fn(move || {
                if at >= part.end() {
                    return None;
                }
                let (below, len) = zone.find(at.saturating_sub(zone.range.start()));
                let end = at.saturating_add(len).min(part.end());
                let run = ByteRange::between(at, end);
                at = end;
                Some((run, below))
            })
        })
    }

    /// What `range` is of each column of each zone, below: long ranges, not in order.
    fn spans(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        self.zones_of(range).flat_map(|(zone, part)| {
            let start = zone.range.start();
            zone.spans(
                part.start().saturating_sub(start),
                part.end().saturating_sub(start),
            )
        })
    }
}

/// What is done with writes.
#[derive(Debug)]
pub(crate) enum Writes {
    /// They go through. There is one copy.
    Pass,
    /// They go to every copy, under the eyes of somebody.
    Kept(Box<dyn Keeper>),
    /// There are none; why, where that needs words.
    Refused(Option<String>),
}

/// Whoever sees to it that copies which differ after a crash are not taken for the same.
pub(crate) trait Keeper: std::fmt::Debug + Send + Sync {
    /// Calls `write`, which changes all copies, alone.
    ///
    /// # Errors
    /// What `write` says, or that it cannot be noted that the copies differ; it is not called then.
    fn write(&self, write: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// Nothing is written any more.
    ///
    /// # Errors
    /// When it cannot be noted that the copies are the same.
    fn close(&self) -> Result<()>;
}

/// The volume that one or more maps of `below` make; each map is a copy of the same bytes.
#[derive(Debug)]
pub(crate) struct Striped {
    name: String,
    below: Volume,
    copies: Vec<Map>,
    writes: Writes,
    geometry: Geometry,
}

impl Striped {
    /// A volume called `name`; the copies have the same size, the first is read.
    ///
    /// # Errors
    /// `Corrupt` when a copy leaves the volume below, or there is none.
    pub(crate) fn volume(
        name: String,
        below: &Volume,
        copies: Vec<Map>,
        writes: Writes,
    ) -> Result<Volume> {
        let size = copies.first().map_or(0, Map::size);
        for map in &copies {
            let whole = ByteRange::between(0, size);
            let end = map.spans(whole).map(ByteRange::end).max().unwrap_or(0);
            if map.size() != size || end > below.size() {
                let have = below.size();
                let what = format!("its last byte is at {end}, of {have} below");
                return Err(Error::new(Kind::Corrupt, what));
            }
        }
        let geometry = Geometry {
            size,
            // Runs begin anywhere. The volume below serves what is not aligned.
            min_block: 1,
            ..below.geometry()
        };
        Ok(Volume::new(Self {
            name,
            below: below.clone(),
            copies,
            writes,
            geometry,
        }))
    }

    fn read_copy(&self, map: &Map, buf: &mut [u8], range: ByteRange) -> Result<()> {
        let mut rest = buf;
        for (part, below) in map.runs(range) {
            let len = usize::try_from(part.len()).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            self.below.read_at(now, below)?;
            rest = later;
        }
        Ok(())
    }

    /// Calls `write` for the runs of `range` in every copy, with the part of `range`.
    fn each(
        &self,
        range: ByteRange,
        mut write: impl FnMut(&VolumeWriter<'_>, ByteRange, ByteRange) -> Result<()>,
    ) -> Result<()> {
        let writer = self.below.need_writer()?;
        let mut all = || {
            for map in &self.copies {
                for (part, below) in map.runs(range) {
                    let end = below.saturating_add(part.len());
                    write(&writer, part, ByteRange::between(below, end))?;
                }
            }
            Ok(())
        };
        match &self.writes {
            Writes::Kept(keeper) => keeper.write(&mut all),
            Writes::Pass | Writes::Refused(_) => all(),
        }
    }
}

impl Device for Striped {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// From the first copy; from another where that one is damaged.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        let mut first = None;
        for (number, map) in self.copies.iter().enumerate() {
            match self.read_copy(map, buf, range) {
                Ok(()) => return Ok(()),
                Err(error) if matches!(error.kind(), Kind::Io | Kind::Corrupt) => {
                    if self.copies.len() > 1 {
                        tracing::warn!("{}: copy {number}: {error}", self.name);
                    }
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        // There is at least one copy, unless the volume is empty and nothing is read.
        first.map_or(Ok(()), Err)
    }

    fn extents(&self, range: ByteRange, out: &mut Extents) -> Result<()> {
        let Some(map) = self.copies.first() else {
            return Ok(());
        };
        for (zone, part) in map.zones_of(range) {
            if out.is_full() {
                break;
            }
            match zone.columns.as_slice() {
                [at] => {
                    let skip = part.start().saturating_sub(zone.range.start());
                    let start = at.saturating_add(skip);
                    let below = ByteRange::between(start, start.saturating_add(part.len()));
                    self.below.extents_placed(below, part.start(), out)?;
                }
                _ => zone_extents(&self.below, zone, part, out)?,
            }
        }
        Ok(())
    }

    fn will_need_parts(&self, ranges: &[ByteRange]) {
        if let Some(map) = self.copies.first() {
            let spans = ranges.iter().flat_map(|range| map.spans(*range));
            self.below.will_need_parts(&spans.collect::<Vec<_>>());
        }
    }

    fn writer(&self) -> Option<&dyn Writer> {
        match self.writes {
            Writes::Refused(_) => None,
            Writes::Pass | Writes::Kept(_) => {
                self.below.writer()?;
                Some(self)
            }
        }
    }

    fn read_only_because(&self) -> Option<String> {
        match &self.writes {
            Writes::Refused(why) => why.clone(),
            Writes::Pass | Writes::Kept(_) => None,
        }
    }

    fn stored(&self, range: ByteRange) -> Option<u64> {
        let spans = self.copies.first()?.spans(range);
        let stored = spans.map(|span| self.below.stored(span).unwrap_or(span.len()));
        Some(stored.fold(0, u64::saturating_add))
    }

    fn close(&self) -> Result<()> {
        let kept = match &self.writes {
            Writes::Kept(keeper) => keeper.close(),
            Writes::Pass | Writes::Refused(_) => Ok(()),
        };
        kept.and(self.below.close())
    }
}

/// Extents of the part `part` of a zone of several columns: those of each column are looked up in
/// long runs, and told in turns.
fn zone_extents(below: &Volume, zone: &Zone, part: ByteRange, out: &mut Extents) -> Result<()> {
    let start = zone.range.start();
    let row = zone.chunk.saturating_mul(zone.width());
    let mut at = part.start();
    while at < part.end() && !out.is_full() {
        let until = at.saturating_add(row.saturating_mul(ROWS)).min(part.end());
        let (from, to) = (at.saturating_sub(start), until.saturating_sub(start));
        // What is known of each column, and how far that was told.
        let mut known = Vec::new();
        for span in zone.spans(from, to) {
            let found = match span.is_empty() {
                true => Vec::new(),
                false => below.extents(span)?.runs().to_vec(),
            };
            known.push((found, 0_usize));
        }
        while at < until && !out.is_full() {
            let (column, _) = zone.place(at.saturating_sub(start));
            let (first, len) = zone.find(at.saturating_sub(start));
            let end = at.saturating_add(len).min(until);
            let last = first.saturating_add(end.saturating_sub(at));
            if let Some((runs, told)) = known.get_mut(column) {
                while let Some(run) = runs.get(*told)
                    && run.range.start() < last
                {
                    let stop = run.range.end().min(last);
                    out.push_until(at.saturating_add(stop.saturating_sub(first)), run.flags);
                    if run.range.end() > last {
                        break;
                    }
                    *told = told.saturating_add(1);
                }
            }
            // Where a column has very many runs they end early.
            if !out.is_full() && out.next_offset() < end {
                out.push_until(end, ExtentFlags::DATA);
            }
            at = end;
        }
    }
    Ok(())
}

impl Writer for Striped {
    fn features(&self) -> WriteFeatures {
        self.below
            .writer()
            .map_or_else(WriteFeatures::default, |writer| writer.features())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<()> {
        let range = ByteRange::of(buf, offset);
        self.each(range, |writer, part, below| {
            let index = |at: u64| usize::try_from(at.saturating_sub(offset)).unwrap_or(usize::MAX);
            // Parts lie within the range.
            let piece = buf.get(index(part.start())..index(part.end()));
            writer.write_at(piece.unwrap_or_default(), below.start(), fua)
        })
    }

    fn flush(&self) -> Result<()> {
        self.below.need_writer()?.flush()
    }

    fn zero(&self, range: ByteRange, mut opts: ZeroOpts) -> Result<Done> {
        let mut done = Done::Yes;
        self.each(range, |writer, _, below| {
            if done == Done::Yes {
                done = writer.zero(below, opts)?;
                // Once a part is zeroed the others are, however long that takes.
                opts.fast_only = false;
            }
            Ok(())
        })?;
        Ok(done)
    }

    fn trim(&self, range: ByteRange, fua: bool) -> Result<()> {
        self.each(range, |writer, _, below| writer.trim(below, fua))
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::as_conversions)]
mod tests {
    use super::*;

    #[test]
    fn spans_hold_what_the_runs_hold() {
        let zone = Zone {
            range: ByteRange::between(0, 1000),
            chunk: 7,
            columns: vec![10_000, 20_000, 30_000],
        };
        let mut map = Map::default();
        map.push(zone);
        for (from, to) in [(0, 1000), (0, 1), (6, 8), (13, 14), (20, 43), (500, 999)] {
            let range = ByteRange::between(from, to);
            let mut runs: Vec<u64> = Vec::new();
            for (part, below) in map.runs(range) {
                runs.extend(below..below + part.len());
            }
            assert_eq!(runs.len() as u64, range.len());
            runs.sort_unstable();
            let spans = map.spans(range).flat_map(|span| span.start()..span.end());
            assert_eq!(runs, spans.collect::<Vec<_>>(), "{range}");
        }
    }

    #[test]
    fn runs_that_go_on_below_are_one() {
        let mut map = Map::default();
        map.push(Zone::linear(ByteRange::between(0, 10), 100));
        map.push(Zone::linear(ByteRange::between(10, 30), 110));
        assert_eq!(map.plain(), ByteRange::new(100, 30));
        map.push(Zone::linear(ByteRange::between(30, 31), 0));
        assert_eq!(map.plain(), None);
        assert_eq!(map.size(), 31);
    }
}
