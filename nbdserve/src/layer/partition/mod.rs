//! Partitions: GPT, MBR with logical partitions, hybrids of both.

mod gpt;
pub(super) mod guid;
mod mbr;
mod read;
mod table;

pub(crate) use mbr::is_fat;
pub use read::read_table;
pub use table::{Partition, Problem, Scheme, Table};

use super::{Args, Confidence, LayerType, Param, Sample, Verdict, window::Window};
use crate::{ByteRange, Cx, Error, Kind, Result, Volume};

const NAME: &str = "partition";

/// `--layer partition:2` or `--layer partition:2,sector=4096`.
pub static PARTITION: LayerType = LayerType {
    name: NAME,
    summary: "one partition of a disk (GPT, MBR)",
    params: &[
        Param {
            name: "number",
            summary: "its number, as Linux counts",
        },
        Param {
            name: "sector",
            summary: "bytes of a sector: 512 or 4096 (default: GPT both, MBR 512)",
        },
    ],
    probe,
    open,
};

/// GPT by its checksum, damaged GPT by the MBR that protects it, MBR by plausible entries.
fn probe(sample: &Sample<'_>) -> Verdict {
    let yes = |confidence, evidence: String| Verdict::Yes {
        confidence,
        evidence,
    };
    if sample.head.len() < 512 || mbr::is_file_system(sample.head) {
        return Verdict::No;
    }
    let record = mbr::BootRecord::parse(sample.head);
    if record.is_none_or(|record| record.is_protective()) {
        for (sector, at) in [(512, 512), (4096, 4096)] {
            let block = sample.head.get(at..).unwrap_or_default();
            if gpt::Header::parse(block, 1, sector).is_ok() {
                let evidence = format!("GPT header with a right checksum at {at}");
                return yes(Confidence::CHECKED, evidence);
            }
        }
    }
    let Some(record) = record else {
        return Verdict::No;
    };
    if record.is_protective() {
        let evidence = "protective MBR, without a right GPT header behind it";
        return yes(Confidence::TABLE, evidence.to_owned());
    }
    let plausible = record
        .used()
        .filter(|entry| u64::from(entry.first).saturating_mul(512) < sample.size)
        .count();
    if plausible == 0 {
        return Verdict::No;
    }
    let evidence = format!("MBR signature 55 aa at 510 and {plausible} entries that make sense");
    yes(Confidence::TABLE, evidence)
}

fn open(below: &Volume, args: &Args, _cx: &Cx) -> Result<Volume> {
    let (table, number) = read(below, args)?;
    open_partition(below, &table, number)
}

/// Where the partition that `args` mean lies in `below`.
pub(crate) fn range(below: &Volume, args: &Args) -> Result<ByteRange> {
    let (table, number) = read(below, args)?;
    table.partition(number).map(Partition::range)
}

/// The table of `below` and the number of the partition that is wanted.
fn read(below: &Volume, args: &Args) -> Result<(Table, u32)> {
    let Some(number) = args.get("number") else {
        let what = "which partition is not said";
        return Err(Error::new(Kind::OutOfRange, what).hint("--layer partition:2"));
    };
    let number = number.parse().map_err(|_| {
        let what = format!("\"{number}\" is not the number of a partition");
        Error::new(Kind::OutOfRange, what)
    })?;
    let sector = match args.get("sector").map(String::as_str) {
        None => None,
        Some("512") => Some(512),
        Some("4096") => Some(4096),
        Some(other) => {
            let what = format!("sectors of \"{other}\" bytes; 512 and 4096 are possible");
            return Err(Error::new(Kind::Unsupported, what));
        }
    };
    Ok((read_table(below, sector)?, number))
}

/// Opens a partition of a table that was read from `below`. The volume is called `partition:N`.
///
/// # Errors
/// As [`Table::partition`].
pub fn open_partition(below: &Volume, table: &Table, number: u32) -> Result<Volume> {
    let partition = table.partition(number)?;
    Window::volume(format!("{NAME}:{number}"), below, partition.range())
}
