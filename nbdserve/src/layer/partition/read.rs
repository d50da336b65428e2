//! Reading a partition table from a volume: which sectors, in which order, and what to make of
//! contradictions.

use std::collections::HashSet;

use super::gpt::{self, Header};
use super::mbr::{self, BootRecord};
use super::table::{Partition, Scheme, Table};
use crate::{Access, ByteRange, Error, Kind, Result, Volume};

/// Sector sizes that are looked for, in this order.
const SECTORS: [u32; 2] = [512, 4096];
/// Most extended boot records that are followed. Linux follows as many as it has minor numbers.
const MAX_LOGICAL: usize = 256;
/// Length of a boot record, whatever the sector size.
const RECORD: usize = 512;

/// Reads the partition table of `below`, with sectors of `sector` bytes (512 or 4096); when that
/// is `None` GPT is looked for with both, and an MBR counts in 512.
///
/// The end of the image is read only when the primary GPT is damaged, or where any byte is as
/// cheap as any other.
///
/// # Errors
/// `NotThisFormat` when there is no table, `Corrupt` when none of the copies can be used, `Limit`
/// when it is too large, or what `below` says. Single bad entries are no error here; see
/// [`Table::partition`].
pub fn read_table(below: &Volume, sector: Option<u32>) -> Result<Table> {
    let size = below.size();
    if size < 512 {
        let what = format!("{size} bytes are too few for a partition table");
        return Err(Error::new(Kind::NotThisFormat, what));
    }
    let first = below.read_vec(0, RECORD)?;
    let file_system = mbr::is_file_system(&first);
    let record = BootRecord::parse(&first).filter(|_| !file_system);
    let sectors = match &sector {
        Some(sector) => std::slice::from_ref(sector),
        None => SECTORS.as_slice(),
    };
    let mut table = match record {
        Some(record) if !record.is_protective() => read_mbr(below, &record, sector.unwrap_or(512))?,
        // Without an MBR a GPT is taken for one when its signature is where it belongs.
        None if file_system || !has_signature(below, sectors)? => {
            let what = "there is no partition table in the first sectors";
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        _ => read_gpt(below, sectors, record.as_ref())?,
    };
    table.find_problems(size);
    Ok(table)
}

fn has_signature(below: &Volume, sectors: &[u32]) -> Result<bool> {
    for &sector in sectors {
        let Some(range) = ByteRange::new(u64::from(sector), 512) else {
            continue;
        };
        if range.end() <= below.size()
            && below
                .read_vec(range.start(), 512)?
                .starts_with(gpt::SIGNATURE)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_gpt(below: &Volume, sectors: &[u32], record: Option<&BootRecord>) -> Result<Table> {
    let mut notes = Vec::new();
    match record {
        None => notes.push("there is no protective MBR".to_owned()),
        Some(record) => {
            let others = record.used().filter(|entry| !entry.is_protective()).count();
            if others > 0 {
                notes.push(format!(
                    "hybrid: the MBR has {others} entries of its own, which are ignored"
                ));
            }
        }
    }
    let (header, partitions) = match read_copy(below, sectors, |_| Some(1))? {
        Ok(primary) => {
            notes.extend(look_at_backup(below, &primary.0));
            primary
        }
        Err(damage) => {
            let last = |sector: u32| last_lba(below, sector);
            match read_copy(below, sectors, last)? {
                Ok(backup) => {
                    let note = format!(
                        "the primary table is damaged ({damage}), the backup in sector {} is used",
                        backup.0.my_lba
                    );
                    tracing::warn!("{}: {note}", below.name());
                    notes.push(note);
                    backup
                }
                Err(second) => {
                    let what = format!("neither GPT can be used: {damage}; {second}");
                    return Err(Error::new(Kind::Corrupt, what)
                        .hint("--fuse shows the whole disk as it is, for who repairs it"));
                }
            }
        }
    };
    Ok(Table {
        scheme: Scheme::Gpt,
        sector: header.sector,
        disk_id: Some(header.disk_guid.to_string()),
        notes,
        damage: None,
        partitions,
    })
}

type Copy = (Header, Vec<Partition>);

/// Reads one of the two copies, with the first sector size with which it is right. The inner error
/// is for a copy that is damaged or missing, the outer one for all other failures.
fn read_copy(
    below: &Volume,
    sectors: &[u32],
    lba: impl Fn(u32) -> Option<u64>,
) -> Result<Result<Copy>> {
    let mut damage: Option<Error> = None;
    for &sector in sectors {
        let Some(lba) = lba(sector) else {
            continue;
        };
        match read_header(below, lba, sector) {
            Ok(copy) => return Ok(Ok(copy)),
            // A header that is there says more than one that is not.
            Err(error) if error.kind() == Kind::Corrupt => damage = Some(error),
            Err(error) if error.kind() == Kind::NotThisFormat => {
                damage.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Err(damage.unwrap_or_else(|| {
        Error::new(Kind::NotThisFormat, "the image has no room for it")
    })))
}

fn read_header(below: &Volume, lba: u64, sector: u32) -> Result<Copy> {
    let short = |what: &str| {
        let size = below.size();
        let what = format!("{what} beyond the image's {size} bytes");
        Error::new(Kind::Corrupt, what)
    };
    let block = lba
        .checked_mul(u64::from(sector))
        .and_then(|start| ByteRange::new(start, u64::from(sector)))
        .ok_or_else(|| short("its header lies"))?;
    let header = Header::parse(&read_range(below, block, "its header lies")?, lba, sector)?;
    let entries = header
        .entries_range()
        .ok_or_else(|| short("the partition entries lie"))?;
    let entries = read_range(below, entries, "the partition entries lie")?;
    let partitions = header.parse_entries(&entries)?;
    Ok((header, partitions))
}

/// Reads a range whose length is bounded and whose position comes from the image.
fn read_range(below: &Volume, range: ByteRange, what: &str) -> Result<Vec<u8>> {
    if range.end() > below.size() {
        let size = below.size();
        let what = format!("{what} at {range}, the image has {size}");
        return Err(Error::new(Kind::Corrupt, what));
    }
    // At most 1 MiB, the limit of Header::parse.
    below.read_vec(range.start(), usize::try_from(range.len()).unwrap_or(0))
}

/// The last whole sector, if there is one behind the primary table.
fn last_lba(below: &Volume, sector: u32) -> Option<u64> {
    let last = below
        .size()
        .checked_div(u64::from(sector))?
        .checked_sub(1)?;
    (last > 1).then_some(last)
}

/// What is unusual about the backup of a good primary table.
fn look_at_backup(below: &Volume, primary: &Header) -> Option<String> {
    let backup = primary.alternate_lba;
    let last = last_lba(below, primary.sector)?;
    if backup > last {
        let missing = backup.saturating_sub(last);
        return Some(format!(
            "the image ends {missing} sectors before the backup table in sector {backup}: it was \
             cut off, or its disk was larger"
        ));
    }
    // Looking costs nothing here; elsewhere it may cost the decoding of the whole image.
    if below.geometry().access == Access::Random
        && let Err(error) = read_header(below, backup, primary.sector)
    {
        return Some(format!("the backup table is damaged ({error})"));
    }
    (backup < last).then(|| {
        let more = last.saturating_sub(backup);
        format!("the image goes on for {more} sectors after the backup table: it has grown")
    })
}

fn read_mbr(below: &Volume, record: &BootRecord, sector: u32) -> Result<Table> {
    let mut table = Table {
        scheme: Scheme::Mbr,
        sector,
        disk_id: (record.disk_id != 0).then(|| format!("{:08x}", record.disk_id)),
        notes: Vec::new(),
        damage: None,
        partitions: Vec::new(),
    };
    for (number, entry) in (1..).zip(&record.entries) {
        if entry.is_used() {
            table.add(number, u64::from(entry.first), entry);
        }
    }
    let mut logical = Logical {
        below,
        visited: HashSet::new(),
        number: 5,
    };
    for entry in record.used().filter(|entry| entry.is_extended()) {
        if let Some(damage) = logical.walk(&mut table, u64::from(entry.first))? {
            table.damage = Some(damage);
            break;
        }
    }
    Ok(table)
}

impl Table {
    /// Adds the partition of an MBR's entry that starts at sector `first` of the disk.
    fn add(&mut self, number: u32, first: u64, entry: &mbr::Entry) {
        let sector = u64::from(self.sector);
        let id = self.disk_id.as_ref();
        self.partitions.push(Partition {
            number,
            // Two 32-bit numbers of sectors at most: far from the end of u64.
            start: first.saturating_mul(sector),
            size: u64::from(entry.sectors).saturating_mul(sector),
            type_id: format!("{:#04x}", entry.kind),
            type_name: mbr::type_name(entry.kind),
            label: None,
            uuid: id.map(|id| format!("{id}-{number:02x}")),
            attributes: u64::from(entry.bootable),
            problem: None,
        });
    }
}

/// The walk along the chains of extended boot records.
struct Logical<'a> {
    below: &'a Volume,
    visited: HashSet<u64>,
    /// Of the next logical partition.
    number: u32,
}

impl Logical<'_> {
    /// Adds the logical partitions of the extended one that starts at sector `extended`. Returns
    /// what is wrong when the chain cannot be followed to its end.
    fn walk(&mut self, table: &mut Table, extended: u64) -> Result<Option<String>> {
        let sector = u64::from(table.sector);
        let mut at = extended;
        loop {
            if !self.visited.insert(at) {
                return Ok(Some(format!(
                    "the chain of logical partitions comes back to sector {at}"
                )));
            }
            if self.visited.len() > MAX_LOGICAL {
                return Ok(Some(format!(
                    "the chain of logical partitions has more than {MAX_LOGICAL} members"
                )));
            }
            let start = at.saturating_mul(sector);
            if start.saturating_add(512) > self.below.size() {
                let size = self.below.size();
                return Ok(Some(format!(
                    "the chain of logical partitions goes on at sector {at}, beyond the image's \
                     {size} bytes"
                )));
            }
            let Some(record) = BootRecord::parse(&self.below.read_vec(start, RECORD)?) else {
                return Ok(Some(format!(
                    "the chain of logical partitions goes on at sector {at}, which is no boot \
                     record"
                )));
            };
            // Positions count from this record, the next record's from the first.
            for entry in record.used().filter(|entry| !entry.is_extended()) {
                table.add(
                    self.number,
                    at.saturating_add(u64::from(entry.first)),
                    entry,
                );
                self.number = self.number.saturating_add(1);
            }
            match record.used().find(|entry| entry.is_extended()) {
                Some(next) => at = extended.saturating_add(u64::from(next.first)),
                None => return Ok(None),
            }
        }
    }
}
