//! Where the inode tables are, as the group descriptors that have passed by say.

use std::collections::BTreeMap;

use super::layout::{Layout, Table};

/// Tables that are kept: a file system of 16 TiB has twice as many.
const MOST: usize = 1 << 16;
/// Tables that a block is compared with. They do not overlap unless the image lies.
const MOST_OVERLAPS: usize = 4;
/// Tables that are taken for one where they lie behind each other: with `flex_bg`, 16 do.
const MOST_IN_A_ROW: usize = 16;

/// By their first blocks.
#[derive(Debug, Default)]
pub(super) struct Tables {
    known: BTreeMap<u64, Table>,
}

impl Tables {
    /// Takes note of the tables that a block of descriptors states.
    pub(super) fn learn(&mut self, layout: &Layout, first_group: u64, block: &[u8]) {
        for table in layout.tables(first_group, block) {
            if self.known.len() >= MOST {
                return;
            }
            self.known.insert(table.start, table);
        }
    }

    /// The group whose inode table has `block`, and the block's number in it.
    pub(super) fn at(&self, layout: &Layout, block: u64) -> Option<(u64, u64)> {
        let len = layout.table_blocks();
        let before = self.known.range(..=block).rev().take(MOST_OVERLAPS);
        let mut found = before.map(|(start, table)| (table.group, block.saturating_sub(*start)));
        found.find(|(_, number)| *number < len)
    }

    /// One past the last block that is in use of the table that `block` is in and of those that
    /// follow it without a gap; `None` where no inode was ever in use.
    pub(super) fn used_until(&self, layout: &Layout, block: u64) -> Option<u64> {
        let (_, number) = self.at(layout, block)?;
        let mut start = block.checked_sub(number)?;
        let mut used = None;
        for _ in 0..MOST_IN_A_ROW {
            let Some(table) = self.known.get(&start) else {
                break;
            };
            let end = start.saturating_add(table.used);
            used = (table.used > 0).then_some(end).or(used);
            start = start.saturating_add(layout.table_blocks());
            if end < start {
                break;
            }
        }
        used.filter(|end| block < *end)
    }
}
