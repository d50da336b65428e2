//! Changes bzip2 files bit by bit.
//!
//! A block may have more selectors than it needs. They are written in unary, so that nearly any
//! row of bits can be put there: also the magics of blocks and of streams' ends.

/// The 48 bits that a block begins with.
pub(crate) const BLOCK: &str = "001100010100000101011001001001100101001101011001";
/// The 48 bits behind the last block.
pub(crate) const END: &str = "000101110111001001000101001110000101000010010000";

/// The bits of `bytes` as `0` and `1`.
pub(crate) fn bits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:08b}")).collect()
}

/// The bytes of `bits`, with zero bits up to a whole one.
pub(crate) fn bytes(bits: &str) -> Vec<u8> {
    let mut bits = bits.to_owned();
    while !bits.len().is_multiple_of(8) {
        bits.push('0');
    }
    let byte = |at: usize| u8::from_str_radix(&bits[at..at + 8], 2).unwrap();
    (0..bits.len()).step_by(8).map(byte).collect()
}

fn number(bits: &str) -> usize {
    usize::from_str_radix(bits, 2).unwrap()
}

/// The parts of a file of one stream.
pub(crate) struct Parts {
    /// The stream header.
    pub(crate) header: String,
    /// Each block, from its magic on.
    pub(crate) blocks: Vec<String>,
    /// The end of the stream, without the bits up to a whole byte.
    pub(crate) end: String,
}

impl Parts {
    /// Of a file without magics in its blocks.
    pub(crate) fn of(file: &[u8]) -> Self {
        let bits = bits(file);
        let header = bits[..32].to_owned();
        let mut starts = Vec::new();
        let mut at = 32;
        while let Some(found) = bits[at..].find(BLOCK) {
            starts.push(at + found);
            at += found + 48;
        }
        let end = bits[at..].find(END).unwrap() + at;
        let mut bounds = starts.clone();
        bounds.push(end);
        let blocks = bounds
            .windows(2)
            .map(|pair| bits[pair[0]..pair[1]].to_owned());
        Self {
            header,
            blocks: blocks.collect(),
            end: bits[end..end + 80].to_owned(),
        }
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        bytes(&format!(
            "{}{}{}",
            self.header,
            self.blocks.concat(),
            self.end
        ))
    }

    /// The bit at which a block begins.
    pub(crate) fn start(&self, number: usize) -> usize {
        32 + self.blocks[..number].concat().len()
    }

    /// Puts `inserted` behind the selectors of a block; it must be a row of whole unary numbers
    /// below the block's number of tables. Where in the file it begins.
    pub(crate) fn insert(&mut self, number_of_block: usize, inserted: impl Fn(usize) -> String) {
        let start = self.start(number_of_block);
        let block = &mut self.blocks[number_of_block];
        // Magic, check, randomised, origin.
        let mut at = 48 + 32 + 1 + 24;
        let ranges = block[at..at + 16].matches('1').count();
        at += 16 + 16 * ranges;
        assert_eq!(number(&block[at..at + 3]), 6, "tables");
        at += 3;
        let count_at = at;
        let count = number(&block[at..at + 15]);
        at += 15;
        for _ in 0..count {
            at += block[at..].find('0').unwrap() + 1;
        }
        let mut inserted = inserted(start + at);
        if inserted.ends_with('1') {
            inserted.push('0');
        }
        let more = inserted.matches('0').count();
        assert!(!inserted.contains("111111") && count + more <= 18002);
        block.insert_str(at, &inserted);
        block.replace_range(count_at..count_at + 15, &format!("{:015b}", count + more));
    }
}
