//! What a partition table says, whatever its scheme.

use std::fmt;

use serde::{Serialize, Serializer};

use super::guid;
use crate::{ByteRange, Error, Kind};

/// The sort of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// GUID partition table (UEFI 2.10, chapter 5).
    Gpt,
    /// The table in the master boot record, with logical partitions.
    Mbr,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gpt => "GPT",
            Self::Mbr => "MBR",
        })
    }
}

/// A partition table. Texts come from the image: escape them before they are printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Its sort.
    pub scheme: Scheme,
    /// Bytes of the sectors it counts in: 512 or 4096.
    pub sector: u32,
    /// The disk's GUID, or the MBR's 32-bit identifier as eight digits.
    pub disk_id: Option<String>,
    /// What is unusual but does no harm.
    pub notes: Vec<String>,
    /// Why part of the table could not be read; partitions may be missing.
    pub damage: Option<String>,
    /// The partitions, by number.
    pub partitions: Vec<Partition>,
}

/// A partition. Texts come from the image: escape them before they are printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// As Linux counts: GPT entries from 1, MBR primary ones 1 to 4, logical ones from 5.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// The type's GUID in lower case, or the MBR's type byte as `0x83`.
    pub type_id: String,
    /// What people call the type.
    pub type_name: Option<&'static str>,
    /// The name that the table gives.
    pub label: Option<String>,
    /// PARTUUID, as Linux makes it.
    pub uuid: Option<String>,
    /// The attribute bits of GPT; for MBR bit 0 says bootable.
    pub attributes: u64,
    /// Why it cannot be opened.
    pub problem: Option<Problem>,
}

/// What is wrong with an entry. Displayed after "partition N".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The last sector is before the first.
    EndBeforeStart {
        /// First sector.
        first: u64,
        /// Last sector.
        last: u64,
    },
    /// The last sector is beyond what 64 bits of bytes can reach.
    BeyondAnyDisk {
        /// Last sector.
        last: u64,
    },
    /// It ends after the image.
    BeyondImage {
        /// End of the partition, in bytes.
        end: u64,
        /// Bytes of the image.
        size: u64,
    },
    /// It shares bytes with another.
    Overlaps {
        /// The other's number.
        other: u32,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndBeforeStart { first, last } => {
                write!(f, "starts at sector {first}, after its end at {last}")
            }
            Self::BeyondAnyDisk { last } => {
                write!(f, "ends at sector {last}, beyond any disk")
            }
            Self::BeyondImage { end, size } => {
                write!(f, "ends at byte {end}, the image at {size}")
            }
            Self::Overlaps { other } => write!(f, "overlaps partition {other}"),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Partition {
    /// Where it lies. Not beyond `u64`; within the image unless there is a problem.
    #[must_use]
    pub fn range(&self) -> ByteRange {
        ByteRange::between(self.start, self.start.saturating_add(self.size))
    }

    /// The architecture whose root file system it is said to hold, by Rust's name for it.
    #[must_use]
    pub fn root_architecture(&self) -> Option<&'static str> {
        guid::root_architecture(&self.type_id)
    }

    /// Whether it only holds other partitions, as an MBR's extended partition does.
    #[must_use]
    pub fn is_container(&self) -> bool {
        matches!(self.type_id.as_str(), "0x05" | "0x0f" | "0x85")
    }
}

impl Table {
    /// The partition with this number, fit to be opened.
    ///
    /// # Errors
    /// `OutOfRange` when there is none, `Corrupt` when its entry contradicts the image or the
    /// others, or when the table is damaged where it could be.
    pub fn partition(&self, number: u32) -> crate::Result<&Partition> {
        let found = self.partitions.iter().find(|entry| entry.number == number);
        let Some(found) = found else {
            let scheme = self.scheme;
            let missing = format!("the {scheme} has no partition {number}");
            return Err(match &self.damage {
                Some(damage) => Error::new(Kind::Corrupt, format!("{missing}: {damage}")),
                None => Error::new(Kind::OutOfRange, missing).hint(self.numbers()),
            });
        };
        let Some(problem) = found.problem else {
            return Ok(found);
        };
        let error = Error::new(Kind::Corrupt, format!("partition {number} {problem}"));
        Err(match problem {
            Problem::Overlaps { .. } => {
                let (start, size) = (found.start, found.size);
                error.hint(format!(
                    "--layer offset:{start},size={size} takes the bytes as they are"
                ))
            }
            Problem::BeyondImage { .. } => error.hint("the image may be cut off"),
            Problem::EndBeforeStart { .. } | Problem::BeyondAnyDisk { .. } => error,
        })
    }

    /// The first thing that is wrong with the table: damage, or a partition with a problem.
    #[must_use]
    pub fn first_problem(&self) -> Option<String> {
        let entry = self.partitions.iter().find_map(|entry| {
            let problem = entry.problem.as_ref()?;
            Some(format!("partition {} {problem}", entry.number))
        });
        self.damage.clone().or(entry)
    }

    /// A hint with the numbers that there are.
    fn numbers(&self) -> String {
        let numbers: Vec<_> = self
            .partitions
            .iter()
            .take(32)
            .map(|entry| entry.number.to_string())
            .collect();
        match numbers.len() {
            0 => "the table is empty".to_owned(),
            _ => format!("it has {}", numbers.join(", ")),
        }
    }

    /// Finds entries that leave the image of `size` bytes or overlap, and gives them a problem.
    pub(super) fn find_problems(&mut self, size: u64) {
        for entry in &mut self.partitions {
            let end = entry.range().end();
            if end > size && entry.problem.is_none() {
                entry.problem = Some(Problem::BeyondImage { end, size });
            }
        }
        // By position: a partition overlaps one before it when it starts before the farthest end.
        let mut order: Vec<usize> = (0..self.partitions.len()).collect();
        order.retain(|&at| {
            let entry = self.partitions.get(at);
            entry.is_some_and(|entry| entry.size > 0 && !entry.is_container())
        });
        order.sort_by_key(|&at| self.partitions.get(at).map(|entry| entry.start));
        let mut farthest: Option<(usize, u64)> = None;
        for at in order {
            let Some(entry) = self.partitions.get(at) else {
                continue;
            };
            let (start, end) = (entry.start, entry.range().end());
            if let Some((before, before_end)) = farthest
                && start < before_end
            {
                self.overlap(before, at);
                self.overlap(at, before);
            }
            if farthest.is_none_or(|(_, before_end)| end > before_end) {
                farthest = Some((at, end));
            }
        }
    }

    fn overlap(&mut self, at: usize, other: usize) {
        let Some(number) = self.partitions.get(other).map(|entry| entry.number) else {
            return;
        };
        if let Some(entry) = self.partitions.get_mut(at)
            && entry.problem.is_none()
        {
            entry.problem = Some(Problem::Overlaps { other: number });
        }
    }
}
