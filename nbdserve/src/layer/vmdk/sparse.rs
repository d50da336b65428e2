//! A sparse extent: a directory of tables of grains.

use super::header::{self, ENTRY, FOOTER, HEADER, Header, MARKER, SECTOR};
use crate::bytes::le32;
use crate::layer::cut::{Farthest, cut_off, noted, piece_end};
use crate::layer::pages::{PageCache, Pages};
use crate::{Error, Kind, Result, Volume};

/// What a table says about a grain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grain {
    /// It is not here: in the parent, or nowhere.
    Absent,
    /// Zeroes.
    Zero,
    /// It begins here.
    At(u64),
}

/// A sparse extent.
#[derive(Debug)]
pub(super) struct Sparse {
    pub(super) header: Header,
    /// Directory and tables; they lie in the same file as the grains.
    pub(super) pages: Pages,
    directory: u64,
}

impl Sparse {
    /// The sparse extent in `file`, whose tables are kept in `cache`.
    ///
    /// # Errors
    /// What its header says, or the file.
    pub(super) fn open(file: &Volume, cache: &PageCache) -> Result<Self> {
        let len = usize::try_from(HEADER.min(file.size())).unwrap_or(0);
        let mut header = header::header(&file.read_vec(0, len)?)?;
        if header.directory.is_none() {
            let at = file.size().saturating_sub(FOOTER);
            let len = usize::try_from(FOOTER.min(file.size())).unwrap_or(0);
            let footer = header::footer(&file.read_vec(at, len)?)?;
            let own = (
                header.capacity,
                header.grain,
                header.gtes,
                header.compressed,
            );
            let other = (
                footer.capacity,
                footer.grain,
                footer.gtes,
                footer.compressed,
            );
            if own != other {
                let what = "the footer is that of another file: it differs from the header";
                return Err(Error::new(Kind::Corrupt, what));
            }
            header = Header {
                descriptor: header.descriptor,
                ..footer
            };
        }
        let len = header.tables().saturating_mul(ENTRY);
        let inside =
            |at: &u64| *at >= HEADER && at.checked_add(len).is_some_and(|end| end <= file.size());
        let first = header.directory.filter(inside);
        let second = header.second.filter(inside);
        if let (None, Some(at)) = (first, second) {
            tracing::warn!("vmdk: the grain directory is damaged, its copy at {at} is used");
        }
        let Some(directory) = first.or(second) else {
            let (at, size) = (header.directory.unwrap_or(0), file.size());
            let what =
                format!("a grain directory of {len} bytes at {at}, the file has {size} bytes");
            return Err(cut_off(what));
        };
        header.second = second;
        Ok(Self {
            header,
            pages: cache.pages(file),
            directory,
        })
    }

    pub(super) fn file(&self) -> &Volume {
        self.pages.volume()
    }

    /// The grain that holds the byte `offset` of the extent and those behind it, up to about `until`:
    /// what they are, and how many are of the same sort, and in a row if they are here.
    pub(super) fn grains(&self, offset: u64, until: u64) -> Result<(Grain, u64)> {
        let header = &self.header;
        let reach = header.table_reach();
        // Neither is zero.
        let table = offset.checked_div(reach).unwrap_or(0);
        let index = offset
            .saturating_sub(table.saturating_mul(reach))
            .checked_div(header.grain)
            .unwrap_or(0);
        let Some(at) = self.table(table)? else {
            return Ok((Grain::Absent, self.absent(table, index, until)?));
        };
        let entry = at.saturating_add(index.saturating_mul(ENTRY));
        let wanted = until.saturating_sub(offset).div_ceil(header.grain);
        let left = header.gtes.saturating_sub(index);
        let count = wanted.saturating_add(1).min(left).max(1);
        let most = usize::try_from(count.saturating_mul(ENTRY)).unwrap_or(usize::MAX);
        self.pages
            .with(entry, 4, most, |entries| self.alike(entries))
    }

    /// Where the grain table of this number lies; `None` when there is none. The second one when the
    /// first cannot be.
    fn table(&self, number: u64) -> Result<Option<u64>> {
        let len = self.header.gtes.saturating_mul(ENTRY);
        let size = self.file().size();
        let mut bad = None;
        for directory in [Some(self.directory), self.header.second] {
            let Some(directory) = directory else {
                continue;
            };
            let at = directory.saturating_add(number.saturating_mul(ENTRY));
            let sectors = u32::from_le_bytes(self.pages.array(at)?);
            if sectors == 0 && bad.is_none() {
                return Ok(None);
            }
            let at = u64::from(sectors).saturating_mul(SECTOR);
            if at >= HEADER && at.saturating_add(len) <= size {
                return Ok(Some(at));
            }
            bad = bad.or(Some(at));
        }
        let at = bad.unwrap_or(0);
        let what = format!("grain table {number} at {at} is not within the {size} bytes");
        Err(cut_off(what))
    }

    /// What is to be said when the file ends before what its tables point at.
    pub(super) fn note(&self) -> Option<String> {
        noted(self.farthest(), "grain", self.file().size())
    }

    /// Which grain ends last in the file.
    fn farthest(&self) -> Result<Farthest> {
        let Header {
            grain,
            capacity,
            gtes,
            compressed,
            ..
        } = self.header;
        let mut farthest = Farthest::new();
        let mut next = 0_u64;
        while next < self.header.tables() {
            let number = next;
            let Some(at) = self.table(number)? else {
                let grains = self.absent(number, 0, capacity)?;
                // Of whole tables, so at least one.
                let tables = grains.checked_div(gtes).unwrap_or(1).max(1);
                next = number.saturating_add(tables);
                if !farthest.spend(tables.saturating_mul(ENTRY)) {
                    break;
                }
                continue;
            };
            next = number.saturating_add(1);
            if !farthest.spend(ENTRY) {
                break;
            }
            let first = number.saturating_mul(gtes);
            let grains = capacity.div_ceil(grain).saturating_sub(first).min(gtes);
            farthest.look(&self.pages, at, (first, grains), |number, entry| {
                let Grain::At(at) = self.grain(u32::from_le_bytes(entry)) else {
                    return None;
                };
                Some(match compressed {
                    true => at.saturating_add(MARKER),
                    false => piece_end(at, number, grain, capacity),
                })
            })?;
        }
        if let (true, Some((number, end))) = (compressed, farthest.last())
            && end <= self.file().size()
        {
            // How long it is only its marker says.
            let len = usize::try_from(MARKER).unwrap_or(0);
            let marker = self.file().read_vec(end.saturating_sub(MARKER), len)?;
            let size = header::marker(&marker).map_or(0, |(_, size)| size);
            farthest.add(number, end.saturating_add(size));
        }
        Ok(farthest)
    }

    /// How many grains there are no tables for, from the grain `index` of the table `first` on.
    fn absent(&self, first: u64, index: u64, until: u64) -> Result<u64> {
        let reach = self.header.table_reach();
        let most = until.div_ceil(reach).min(self.header.tables());
        let tables = most.saturating_sub(first).max(1);
        let at = self.directory.saturating_add(first.saturating_mul(ENTRY));
        let len = usize::try_from(tables.saturating_mul(ENTRY)).unwrap_or(usize::MAX);
        let zeroes = |entries: &[u8]| {
            let entries = entries.chunks_exact(4);
            entries.take_while(|entry| *entry == [0; 4]).count()
        };
        let count = u64::try_from(self.pages.with(at, 4, len, zeroes)?).unwrap_or(1);
        let grains = count.max(1).saturating_mul(self.header.gtes);
        Ok(grains.saturating_sub(index))
    }

    fn grain(&self, entry: u32) -> Grain {
        match entry {
            0 => Grain::Absent,
            1 if self.header.has_zero_grains => Grain::Zero,
            sectors => Grain::At(u64::from(sectors).saturating_mul(SECTOR)),
        }
    }

    /// The first of `entries`, and how many are like it. Compressed grains are never alike.
    fn alike(&self, entries: &[u8]) -> (Grain, u64) {
        let mut grains = (0..entries.len())
            .step_by(4)
            .map_while(|at| le32(entries, at))
            .map(|entry| self.grain(entry));
        let first = grains.next().unwrap_or(Grain::Absent);
        let mut count = 1_u64;
        for next in grains {
            let is_next = match first {
                Grain::At(_) if self.header.compressed => false,
                Grain::At(at) => {
                    let before = count.saturating_mul(self.header.grain);
                    next == Grain::At(at.saturating_add(before))
                }
                other => next == other,
            };
            if !is_next {
                break;
            }
            count = count.saturating_add(1);
        }
        (first, count)
    }

    /// How many bytes of the file belong to the compressed grain at `at` (and what fills its last
    /// sector), if the one behind it in the table says so: most often they lie in a row.
    pub(super) fn distance(&self, offset: u64, at: u64) -> Option<u64> {
        let next = offset.checked_add(self.header.grain)?;
        if next >= self.header.capacity {
            return None;
        }
        match self.grains(next, next.saturating_add(1)) {
            Ok((Grain::At(then), _)) => then.checked_sub(at).filter(|len| *len > 0),
            _ => None,
        }
    }
}
