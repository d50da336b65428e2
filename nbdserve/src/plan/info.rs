//! What `--info` shows, as data and as text.

use std::fmt;

use serde::Serialize;

use super::{Content, FsInfo, Resolved, VolumeInfo};
use crate::error::{escape, quote_if_needed};
use crate::layer::partition::{PARTITION, Partition, Scheme};
use crate::size::format_size;
use crate::{Access, Index, Keeping};

/// All that was found out about an image. Texts come from the image as they are; `Display`
/// escapes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The image as the user wrote it.
    pub source: String,
    /// The source and the layers on it, outermost first.
    pub layers: Vec<LayerInfo>,
    /// The partition table, if there is one.
    pub table: Option<TableInfo>,
    /// Its partitions.
    pub partitions: Vec<PartitionInfo>,
    /// The volumes of LVM2 and MD on them.
    pub volumes: Vec<VolumeInfo>,
    /// What is unusual about these.
    pub volume_notes: Vec<String>,
    /// What the last layer holds.
    pub content: Content,
}

/// One volume on the way to the content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerInfo {
    /// `file`, `xz`, `partition:2`.
    pub name: String,
    /// Bytes of its volume.
    pub size: u64,
    /// What it costs to read far from the bytes read before, the layers below included.
    pub access: AccessInfo,
    /// What the layer itself adds to that; `None` for one that decodes nothing.
    pub cost: Option<CostInfo>,
    /// Why it was taken; `None` for the source.
    pub evidence: Option<String>,
    /// What is unusual about it.
    pub notes: Vec<String>,
}

/// [`Cost`], for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CostInfo {
    /// What is decoded for a byte.
    pub access: AccessInfo,
    /// How it is known where the byte lies: `in_image`, or `found` or `checkpoints`, by a pass when
    /// the image was opened.
    pub index: Index,
    /// Where that stays if the image does not say it: `memory`, or `disk` for the next time.
    pub index_kept: Keeping,
    /// Where what was decoded stays: `memory`, `temp_file` until the end, `disk` for the next time.
    pub kept: Keeping,
}

/// [`Access`], for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessInfo {
    /// Any byte costs about the same.
    Random,
    /// At most the decoding of one block of this many bytes.
    Block(u64),
    /// The decoding of everything before it.
    FirstPass,
}

/// A partition table without its partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableInfo {
    /// Its sort.
    pub scheme: Scheme,
    /// Bytes of the sectors it counts in.
    pub sector: u32,
    /// The disk's identifier.
    pub disk_id: Option<String>,
    /// What is unusual but does no harm.
    pub notes: Vec<String>,
    /// Why part of it could not be read.
    pub damage: Option<String>,
}

/// A partition and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionInfo {
    /// What the table says.
    #[serde(flatten)]
    pub partition: Partition,
    /// What is in it; `None` for nothing we know, or when looking costs too much.
    pub content: Option<FsInfo>,
    /// Whether it is the one that was chosen.
    pub chosen: bool,
}

impl Info {
    /// What is known of an image that was resolved.
    #[must_use]
    pub fn new(resolved: &Resolved) -> Self {
        let mut layers = Vec::new();
        for (index, volume) in resolved.chain.iter().enumerate() {
            // The source is first and has no step.
            let step = index.checked_sub(1).and_then(|at| resolved.steps.get(at));
            layers.push(LayerInfo {
                name: volume.name().to_owned(),
                size: volume.size(),
                access: access(volume.geometry().access),
                cost: volume.cost().map(|cost| CostInfo {
                    access: access(cost.access),
                    index: cost.index,
                    index_kept: cost.index_kept,
                    kept: cost.kept,
                }),
                evidence: step.map(|step| step.evidence.clone()),
                notes: step
                    .map_or(&resolved.source_notes, |step| &step.notes)
                    .iter()
                    .cloned()
                    .chain(volume.notes())
                    .collect(),
            });
        }
        let table = resolved.table.as_ref();
        let entries = table.map_or(&[][..], |table| &table.partitions);
        let partitions = entries.iter().enumerate().map(|(index, partition)| {
            let content = resolved.partitions.get(index).cloned().flatten();
            PartitionInfo {
                chosen: resolved.plan.partition == Some(partition.number),
                partition: partition.clone(),
                content,
            }
        });
        Self {
            source: resolved.plan.source.clone(),
            layers,
            table: table.map(|table| TableInfo {
                scheme: table.scheme,
                sector: table.sector,
                disk_id: table.disk_id.clone(),
                notes: table.notes.clone(),
                damage: table.damage.clone(),
            }),
            partitions: partitions.collect(),
            volumes: resolved.volumes.clone(),
            volume_notes: resolved.volume_notes.clone(),
            content: resolved.content.clone(),
        }
    }
}

fn access(access: Access) -> AccessInfo {
    match access {
        Access::Random => AccessInfo::Random,
        Access::Block(bytes) => AccessInfo::Block(bytes),
        Access::FirstPass => AccessInfo::FirstPass,
    }
}

impl fmt::Display for AccessInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random access"),
            Self::Block(bytes) => write!(f, "blocks of {}", format_size(*bytes)),
            Self::FirstPass => f.write_str("one pass"),
        }
    }
}

impl fmt::Display for CostInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = match self.index {
            Index::InImage => "index in the image",
            Index::Found => "index made at opening",
            Index::Checkpoints => "checkpoints made at opening",
        };
        // In words what took longest to find: the index, or what was decoded.
        let has_index = matches!(self.access, AccessInfo::Block(_)) && self.index != Index::InImage;
        let kept = match if has_index {
            self.index_kept
        } else {
            self.kept
        } {
            Keeping::Memory => "kept in memory",
            Keeping::TempFile => "kept in a temp file",
            Keeping::Disk => "kept in the cache",
        };
        match self.access {
            // All of it was decoded when it was opened, or that takes no time.
            AccessInfo::Random => write!(f, "{}, {kept}", self.access),
            AccessInfo::Block(_) => write!(f, "{}, {index}, {kept}", self.access),
            AccessInfo::FirstPass => write!(f, "{} from the front, {kept}", self.access),
        }
    }
}

impl LayerInfo {
    /// What it costs to read somewhere, in words.
    fn cost(&self) -> String {
        self.cost
            .map_or_else(|| self.access.to_string(), |cost| cost.to_string())
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", escape(&self.source))?;
        let rows = self.layers.iter().map(|layer| {
            vec![
                layer.name.clone(),
                format_size(layer.size),
                layer.cost(),
                layer.evidence.clone().unwrap_or_default(),
            ]
        });
        write_rows(f, &rows.collect::<Vec<_>>())?;
        for layer in &self.layers {
            // The table's own are below.
            if self.table.is_none() || !layer.name.starts_with(PARTITION.name) {
                write_notes(f, layer.notes.iter())?;
            }
        }
        if let Some(table) = &self.table {
            let id = table.disk_id.as_deref().unwrap_or("none");
            let sector = table.sector;
            writeln!(f, "{}, disk {id}, sectors of {sector} bytes", table.scheme)?;
            let mut rows = vec![
                ["", "start", "size", "type", "name", "content", "uuid"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            rows.extend(self.partitions.iter().map(partition_row));
            write_rows(f, &rows)?;
            write_notes(f, table.notes.iter().chain(&table.damage))?;
            for entry in &self.partitions {
                if let Some(problem) = &entry.partition.problem {
                    let number = entry.partition.number;
                    writeln!(f, "  damaged: partition {number} {problem}")?;
                }
                if let Some(FsInfo {
                    name,
                    problem: Some(problem),
                    ..
                }) = &entry.content
                {
                    let number = entry.partition.number;
                    writeln!(
                        f,
                        "  cut off: partition {number}: the {name} in it {problem}"
                    )?;
                }
            }
        }
        if !self.volumes.is_empty() {
            writeln!(f, "volumes")?;
            let mut rows = vec![
                ["", "size", "layout", "content", "uuid", "where"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            rows.extend(self.volumes.iter().map(volume_row));
            write_rows(f, &rows)?;
        }
        write_notes(f, self.volume_notes.iter())?;
        for volume in &self.volumes {
            if let Some(problem) = &volume.problem {
                writeln!(
                    f,
                    "  not opened: {}: {}",
                    quote_if_needed(&volume.name),
                    escape(problem)
                )?;
            }
        }
        write!(f, "content: {}", self.content)?;
        if let Content::FileSystem(info) | Content::Other(info) = &self.content {
            if let Some(uuid) = &info.uuid {
                write!(f, ", UUID {}", escape(uuid))?;
            }
            write!(f, " ({})", escape(&info.evidence))?;
            if let (Some(problem), true) = (&info.problem, self.table.is_none()) {
                write!(f, "\n  cut off: it {problem}")?;
            }
        }
        writeln!(f)
    }
}

fn partition_row(entry: &PartitionInfo) -> Vec<String> {
    let partition = &entry.partition;
    let kind = partition.type_name.unwrap_or(&partition.type_id);
    let mark = if entry.chosen { "*" } else { "" };
    vec![
        format!("{}{mark}", partition.number),
        partition.start.to_string(),
        format_size(partition.size),
        kind.to_owned(),
        named(partition.label.as_deref()),
        entry
            .content
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        partition.uuid.clone().unwrap_or_default(),
    ]
}

/// A name in a column.
fn named(name: Option<&str>) -> String {
    name.map(quote_if_needed).unwrap_or_default()
}

fn volume_row(volume: &VolumeInfo) -> Vec<String> {
    let mark = if volume.chosen { "*" } else { "" };
    let content = volume.content.as_ref();
    vec![
        format!("{}{mark}", quote_if_needed(&volume.name)),
        volume.size.map(format_size).unwrap_or_default(),
        quote_if_needed(&volume.layout),
        content.map(ToString::to_string).unwrap_or_default(),
        volume.uuid.clone(),
        volume.members.clone(),
    ]
}

fn write_notes<'a>(
    f: &mut fmt::Formatter<'_>,
    notes: impl Iterator<Item = &'a String>,
) -> fmt::Result {
    for note in notes {
        writeln!(f, "  note: {}", escape(note))?;
    }
    Ok(())
}

/// Columns two blanks apart, each as wide as its widest cell.
fn write_rows(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| escape(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("  {cell:<width$}"));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
