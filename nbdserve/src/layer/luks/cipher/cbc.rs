//! CBC, each sector by itself. Within a sector a block cannot be encrypted before the one in front of
//! it, so many sectors are encrypted side by side; decrypting has no such chain.

use super::aes::{Aes, BLOCK, Block, load};
use super::iv::Iv;
use super::{Direction, Sectors};

/// Sectors that are worked on side by side, and blocks that are given to the cipher at once.
const BATCH: usize = 64;

pub(super) struct Cbc(Aes);

impl Cbc {
    /// `None` for a key that is none of AES.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        Aes::new(key).map(Self)
    }

    pub(super) fn run(&self, buf: &mut [u8], sectors: Sectors, iv: &Iv, direction: Direction) {
        let mut number = sectors.number;
        let group = sectors.len.saturating_mul(BATCH);
        for group in buf.chunks_mut(group) {
            let count = group.len().checked_div(sectors.len).unwrap_or(0);
            let mut chain = [Block::default(); BATCH];
            // At most a batch, by the length of the group.
            let chain = chain.split_at_mut(count.min(BATCH)).0;
            iv.fill(number, sectors.step, chain);
            match direction {
                Direction::Decrypt => {
                    for (sector, iv) in group.chunks_exact_mut(sectors.len).zip(chain.iter()) {
                        self.decrypt(sector, u128::from_le_bytes(iv.0));
                    }
                }
                Direction::Encrypt => self.encrypt(group, sectors.len, chain),
            }
            let passed = sectors.step.wrapping_mul(u64::try_from(count).unwrap_or(0));
            number = number.wrapping_add(passed);
        }
    }

    fn decrypt(&self, sector: &mut [u8], iv: u128) {
        let mut before = iv;
        let mut blocks = [Block::default(); BATCH];
        for piece in sector.chunks_mut(BATCH.saturating_mul(BLOCK)) {
            let blocks = blocks.split_at_mut((piece.len() / BLOCK).min(BATCH)).0;
            for (block, bytes) in blocks.iter_mut().zip(piece.chunks_exact(BLOCK)) {
                *block = load(bytes).to_le_bytes().into();
            }
            self.0.decrypt(blocks);
            for (block, bytes) in blocks.iter().zip(piece.chunks_exact_mut(BLOCK)) {
                let cipher = load(bytes);
                let plain = u128::from_le_bytes(block.0) ^ before;
                bytes.copy_from_slice(&plain.to_le_bytes());
                before = cipher;
            }
        }
    }

    /// `chain` has what is mixed into the next block of each sector.
    fn encrypt(&self, group: &mut [u8], len: usize, chain: &mut [Block]) {
        for at in (0..len).step_by(BLOCK) {
            let end = at.saturating_add(BLOCK);
            for (block, sector) in chain.iter_mut().zip(group.chunks_exact(len)) {
                let plain = sector.get(at..end).map_or(0, load);
                *block = (u128::from_le_bytes(block.0) ^ plain).to_le_bytes().into();
            }
            self.0.encrypt(chain);
            for (block, sector) in chain.iter().zip(group.chunks_exact_mut(len)) {
                if let Some(bytes) = sector.get_mut(at..end) {
                    bytes.copy_from_slice(&block.0);
                }
            }
        }
    }
}
