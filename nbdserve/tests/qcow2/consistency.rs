//! A checker of what qemu-img calls an error: who refers to what, against the refcounts. It stands in
//! for qemu-img where that would take too long; a test holds it against qemu-img.

use std::collections::HashMap;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// What is wrong with an image; nothing when it is clean, or merely has leaks.
pub(crate) fn errors(image: &[u8]) -> Vec<String> {
    let walk = Walk::new(image);
    walk.judge()
}

struct Walk<'a> {
    image: &'a [u8],
    bits: u32,
    extended: bool,
    errors: Vec<String>,
    /// How often each cluster is referred to.
    used: HashMap<u64, u64>,
    /// Entries of the active tables with the clusters they refer to.
    active: Vec<(u64, u64)>,
}

fn be(image: &[u8], at: u64, len: u64) -> u64 {
    (at..at + len).fold(0, |value, at| {
        value << 8 | u64::from(image.get(at as usize).copied().unwrap_or(0))
    })
}

impl<'a> Walk<'a> {
    fn new(image: &'a [u8]) -> Self {
        let version = be(image, 4, 4);
        let mut walk = Self {
            image,
            bits: be(image, 20, 4) as u32,
            extended: version >= 3 && be(image, 72, 8) & 16 != 0,
            errors: Vec::new(),
            used: HashMap::new(),
            active: Vec::new(),
        };
        walk.uses(0, 1);
        let (table, clusters) = (be(image, 48, 8), be(image, 56, 4));
        walk.uses(table, clusters << walk.bits);
        for index in 0..clusters << walk.bits >> 3 {
            let block = be(image, table + index * 8, 8);
            if block != 0 {
                walk.uses(block, 1);
            }
        }
        walk.l1(be(image, 40, 8), be(image, 36, 4), true);
        walk.snapshots(be(image, 64, 8), be(image, 60, 4));
        walk
    }

    fn uses(&mut self, at: u64, len: u64) {
        if at >= self.image.len() as u64 {
            self.errors.push(format!("{at} is behind the end"));
            return;
        }
        for cluster in at >> self.bits..=(at + len - 1) >> self.bits {
            *self.used.entry(cluster).or_default() += 1;
        }
    }

    fn l1(&mut self, at: u64, entries: u64, active: bool) {
        if entries == 0 {
            return;
        }
        self.uses(at, entries * 8);
        for index in 0..entries {
            let entry = be(self.image, at + index * 8, 8);
            let table = entry & OFFSET;
            if table == 0 {
                continue;
            }
            self.uses(table, 1);
            if active {
                self.active.push((entry, table >> self.bits));
            }
            self.l2(table, active);
        }
    }

    fn l2(&mut self, table: u64, active: bool) {
        let len = if self.extended { 16 } else { 8 };
        for index in 0..(1 << self.bits) / len {
            let entry = be(self.image, table + index * len, 8);
            if entry & COMPRESSED != 0 {
                let x = 70 - self.bits;
                let at = entry & ((1 << x) - 1);
                let sectors = ((entry & !(COMPRESSED | COPIED)) >> x) + 1;
                self.uses(at, sectors * 512 - (at & 511));
                continue;
            }
            if entry & OFFSET != 0 {
                self.uses(entry & OFFSET, 1);
                if active {
                    self.active.push((entry, (entry & OFFSET) >> self.bits));
                }
            }
            let map = be(self.image, table + index * 16 + 8, 8);
            if self.extended && map >> 32 & map != 0 {
                self.errors
                    .push(format!("bitmap {map:#x} contradicts itself"));
            }
        }
    }

    fn snapshots(&mut self, at: u64, count: u64) {
        let mut at = at;
        let start = at;
        for _ in 0..count {
            let image = self.image;
            let (l1, entries) = (be(image, at, 8), be(image, at + 8, 4));
            self.l1(l1, entries, false);
            let names = be(image, at + 12, 2) + be(image, at + 14, 2);
            at = (at + 40 + be(image, at + 36, 4) + names).next_multiple_of(8);
        }
        if at > start {
            self.uses(start, at - start);
        }
    }

    fn refcount(&self, cluster: u64) -> u64 {
        let order = match be(self.image, 4, 4) {
            2 => 4,
            _ => be(self.image, 96, 4),
        };
        let per_block = (8 << self.bits) >> order;
        let entry = be(self.image, 48, 8) + cluster / per_block * 8;
        let block = be(self.image, entry, 8);
        let (index, width) = (cluster % per_block, 1_u64 << order);
        if block == 0 || cluster / per_block >= be(self.image, 56, 4) << self.bits >> 3 {
            return 0;
        }
        if width >= 8 {
            return be(self.image, block + index * width / 8, width / 8);
        }
        let byte = be(self.image, block + index * width / 8, 1);
        byte >> (index * width % 8) & ((1 << width) - 1)
    }

    fn judge(mut self) -> Vec<String> {
        for (cluster, uses) in &self.used {
            let count = self.refcount(*cluster);
            if count < *uses {
                self.errors
                    .push(format!("cluster {cluster}: refcount {count}, used {uses}"));
            }
        }
        for (entry, cluster) in &self.active {
            let count = self.refcount(*cluster);
            if (count == 1) != (entry & COPIED != 0) {
                self.errors
                    .push(format!("entry {entry:#x}, whose refcount is {count}"));
            }
        }
        self.errors
    }
}
