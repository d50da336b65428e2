//! XTS (IEEE 1619, NIST SP 800-38E) on sectors of whole blocks, many at a time.

use super::aes::{Aes, BLOCK, Block};
use super::iv::Iv;
use super::{Direction, Sectors};

/// Blocks that are given to the cipher at once: it works on several in parallel, and each call costs
/// something.
const BATCH: usize = 256;
/// Sectors whose first tweaks are made at once.
const SECTORS: usize = 64;
/// Bytes of a batch.
const PIECE: usize = BATCH * BLOCK;

pub(super) struct Xts {
    data: Aes,
    tweak: Aes,
}

impl Xts {
    /// `None` for a key that is not twice one of AES.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        let (data, tweak) = key.split_at(key.len() / 2);
        if data.len() != tweak.len() {
            return None;
        }
        Some(Self {
            data: Aes::new(data)?,
            tweak: Aes::new(tweak)?,
        })
    }

    pub(super) fn run(&self, buf: &mut [u8], sectors: Sectors, iv: &Iv, direction: Direction) {
        let mut number = sectors.number;
        let group = sectors.len.saturating_mul(SECTORS);
        for group in buf.chunks_mut(group) {
            let count = group.len().checked_div(sectors.len).unwrap_or(0);
            let mut first = [Block::default(); SECTORS];
            // At most so many, by the length of the group.
            let first = first.split_at_mut(count.min(SECTORS)).0;
            iv.fill(number, sectors.step, first);
            self.tweak.encrypt(first);
            self.group(group, first, sectors.len / BLOCK, direction);
            let passed = sectors.step.wrapping_mul(u64::try_from(count).unwrap_or(0));
            number = number.wrapping_add(passed);
        }
    }

    /// Works on sectors of so many blocks, of which the first tweaks are given.
    fn group(&self, buf: &mut [u8], first: &[Block], per_sector: usize, direction: Direction) {
        let mut first = first.iter();
        let mut left = 0_usize;
        let mut tweak = 0_u128;
        let mut tweaks = [0_u8; PIECE];
        for piece in buf.chunks_mut(PIECE) {
            for slot in tweaks.chunks_exact_mut(BLOCK).take(piece.len() / BLOCK) {
                if left == 0 {
                    tweak = first.next().map_or(0, |block| u128::from_le_bytes(block.0));
                    left = per_sector;
                }
                slot.copy_from_slice(&tweak.to_le_bytes());
                tweak = double(tweak);
                left = left.saturating_sub(1);
            }
            xor(piece, &tweaks);
            let blocks = Block::slice_as_chunks_mut(piece).0;
            match direction {
                Direction::Decrypt => self.data.decrypt(blocks),
                Direction::Encrypt => self.data.encrypt(blocks),
            }
            xor(piece, &tweaks);
        }
    }
}

/// Adds `tweaks` to as many bytes.
fn xor(bytes: &mut [u8], tweaks: &[u8]) {
    for (byte, tweak) in bytes.iter_mut().zip(tweaks) {
        *byte ^= tweak;
    }
}

/// Times the primitive element of GF(2^128), modulo x^128 + x^7 + x^2 + x + 1.
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ (0x87 & 0_u128.wrapping_sub(tweak >> 127))
}
