//! XTS (IEEE 1619, NIST SP 800-38E) on sectors of whole blocks, many at a time.
//!
//! The work is handed to the cipher as a closure: the `aes` crate compiles that for the instructions
//! which it has found, so that what is done between its blocks uses them as well.

use aes::cipher::consts::U16;
use aes::cipher::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
    BlockSizeUser, ParBlocks,
};

use super::aes::{Aes, BLOCK, Block};
use super::iv::Iv;
use super::{Direction, Sectors};

/// Tweaks that are made at once, each from the one that many blocks before it. The shortest sector
/// has a multiple of it.
const LANES: usize = 8;
/// Blocks between which and their tweaks nothing leaves the fastest cache. A multiple of [`LANES`],
/// and of the blocks that the widest instructions work on at once.
const BATCH: usize = 64;
/// Sectors whose first tweaks are made at once.
const SECTORS: usize = 64;

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
            let job = Job {
                blocks: Block::slice_as_chunks_mut(group).0,
                first,
                per_sector: sectors.len / BLOCK,
            };
            match direction {
                Direction::Decrypt => self.data.decrypt_with(job),
                Direction::Encrypt => self.data.encrypt_with(job),
            }
            let passed = sectors.step.wrapping_mul(u64::try_from(count).unwrap_or(0));
            number = number.wrapping_add(passed);
        }
    }
}

/// Blocks of sectors, of which the first tweaks are given.
struct Job<'a> {
    blocks: &'a mut [Block],
    first: &'a [Block],
    per_sector: usize,
}

impl Job<'_> {
    #[inline(always)]
    fn run(self, cipher: &impl Cipher) {
        let mut tweaks = Row {
            first: self.first.iter(),
            per_sector: self.per_sector,
            left: 0,
            next: Tweaks::default(),
        };
        // Of a known length: that makes one row of instructions of all its loops.
        let (batches, rest) = self.blocks.as_chunks_mut::<BATCH>();
        for batch in batches {
            tweaks.apply(batch, cipher);
        }
        tweaks.apply(rest, cipher);
    }
}

/// The tweaks of all blocks, in order.
struct Row<'a> {
    first: std::slice::Iter<'a, Block>,
    per_sector: usize,
    /// Blocks of this sector that are still to come.
    left: usize,
    next: Tweaks,
}

impl Row<'_> {
    /// Does the next blocks, of which there are at most [`BATCH`].
    #[inline(always)]
    fn apply(&mut self, blocks: &mut [Block], cipher: &impl Cipher) {
        let mut tweaks = [Block::default(); BATCH];
        let used = blocks.len().div_ceil(LANES);
        for lanes in tweaks.as_chunks_mut().0.iter_mut().take(used) {
            if self.left == 0 {
                let first = self.first.next();
                self.next = first.map(Tweaks::from_first).unwrap_or_default();
                self.left = self.per_sector;
            }
            self.next.put(lanes);
            self.next.advance();
            self.left = self.left.saturating_sub(LANES);
        }
        xor(blocks, &tweaks);
        cipher.run(blocks);
        xor(blocks, &tweaks);
    }
}

impl BlockSizeUser for Job<'_> {
    type BlockSize = U16;
}

impl BlockCipherDecClosure for Job<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(&Decrypting(backend));
    }
}

impl BlockCipherEncClosure for Job<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.run(&Encrypting(backend));
    }
}

/// Runs the bare cipher on blocks. Not a closure: those cannot be told to be part of the caller.
trait Cipher {
    fn run(&self, blocks: &mut [Block]);
}

struct Decrypting<'a, B>(&'a B);

impl<B: BlockCipherDecBackend<BlockSize = U16>> Cipher for Decrypting<'_, B> {
    #[inline(always)]
    fn run(&self, blocks: &mut [Block]) {
        let (parallel, rest) = ParBlocks::<B>::slice_as_chunks_mut(blocks);
        for blocks in parallel {
            self.0.decrypt_par_blocks_inplace(blocks);
        }
        for block in rest {
            self.0.decrypt_block_inplace(block);
        }
    }
}

struct Encrypting<'a, B>(&'a B);

impl<B: BlockCipherEncBackend<BlockSize = U16>> Cipher for Encrypting<'_, B> {
    #[inline(always)]
    fn run(&self, blocks: &mut [Block]) {
        let (parallel, rest) = ParBlocks::<B>::slice_as_chunks_mut(blocks);
        for blocks in parallel {
            self.0.encrypt_par_blocks_inplace(blocks);
        }
        for block in rest {
            self.0.encrypt_block_inplace(block);
        }
    }
}

/// Adds tweaks to as many blocks.
#[inline(always)]
fn xor(blocks: &mut [Block], tweaks: &[Block]) {
    for (block, tweak) in blocks.iter_mut().zip(tweaks) {
        let sum = u128::from_ne_bytes(block.0) ^ u128::from_ne_bytes(tweak.0);
        block.0 = sum.to_ne_bytes();
    }
}

/// The tweaks of so many blocks in a row, in halves: as vectors want them.
#[derive(Clone, Copy, Default)]
struct Tweaks {
    low: [u64; LANES],
    high: [u64; LANES],
}

impl Tweaks {
    /// Those from the first block of a sector on.
    #[inline(always)]
    fn from_first(first: &Block) -> Self {
        let mut tweaks = Self::default();
        let mut tweak = u128::from_le_bytes(first.0);
        for (low, high) in tweaks.low.iter_mut().zip(&mut tweaks.high) {
            // The halves of the number.
            [*low, *high] = halves(tweak);
            tweak = double(tweak);
        }
        tweaks
    }

    /// Writes them down.
    #[inline(always)]
    fn put(&self, blocks: &mut [Block; LANES]) {
        let halves = self.low.iter().zip(&self.high);
        for (block, (low, high)) in blocks.iter_mut().zip(halves) {
            block.0 = (u128::from(*low) | (u128::from(*high) << 64)).to_le_bytes();
        }
    }

    /// Goes on to the next so many: times x^8, modulo x^128 + x^7 + x^2 + x + 1.
    #[inline(always)]
    fn advance(&mut self) {
        for (low, high) in self.low.iter_mut().zip(&mut self.high) {
            let carry = *high >> 56;
            *high = (*high << 8) | (*low >> 56);
            *low = (*low << 8) ^ carry ^ (carry << 1) ^ (carry << 2) ^ (carry << 7);
        }
    }
}

/// The lower and the higher 64 bits.
#[inline(always)]
fn halves(number: u128) -> [u64; 2] {
    let bytes = number.to_le_bytes();
    let half = |half: &[u8]| half.try_into().map_or(0, u64::from_le_bytes);
    let (low, high) = bytes.split_at(8);
    [half(low), half(high)]
}

/// Times the primitive element of GF(2^128), modulo x^128 + x^7 + x^2 + x + 1.
#[inline(always)]
fn double(tweak: u128) -> u128 {
    (tweak << 1) ^ (0x87 & 0_u128.wrapping_sub(tweak >> 127))
}
