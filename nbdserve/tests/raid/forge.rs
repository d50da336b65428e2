//! Members of arrays by hand.

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const SPARE: u16 = 0xffff;
pub(crate) const FAULTY: u16 = 0xfffe;

/// What a member says.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// `0.90`, `1.0`, `1.1`, `1.2`.
    pub(crate) version: &'static str,
    pub(crate) level: i32,
    pub(crate) layout: u32,
    /// Sectors.
    pub(crate) chunk: u32,
    pub(crate) places: u32,
    pub(crate) number: u32,
    pub(crate) roles: Vec<u16>,
    pub(crate) events: u64,
    pub(crate) features: u32,
    /// Sectors that a mirror uses.
    pub(crate) size: u64,
    /// Bytes of data.
    pub(crate) data: Vec<u8>,
}

/// Where the data of versions 1.1 and 1.2 begins.
const DATA: usize = 16384;

impl Member {
    /// One of an array of `count`, all in sync.
    pub(crate) fn new(
        version: &'static str,
        level: i32,
        number: u32,
        count: u16,
        data: Vec<u8>,
    ) -> Self {
        Self {
            version,
            level,
            layout: 0,
            chunk: 8,
            places: u32::from(count),
            number,
            roles: (0..count).collect(),
            events: 10,
            features: if level == 0 { 4096 } else { 0 },
            size: data.len() as u64 / 512,
            data,
        }
    }

    /// Where its superblock is.
    pub(crate) fn superblock_at(&self) -> usize {
        match self.version {
            "1.1" => 0,
            "1.2" => 4096,
            // 64 KiB from the end, rounded down; or 8 KiB.
            "0.90" => self.data.len().next_multiple_of(65536),
            _ => self.data.len().next_multiple_of(4096),
        }
    }

    /// Where its data is.
    pub(crate) fn data_at(&self) -> usize {
        match self.version {
            "1.1" | "1.2" => DATA,
            _ => 0,
        }
    }

    /// The whole device.
    pub(crate) fn image(&self) -> Vec<u8> {
        let at = self.superblock_at();
        let len = match self.version {
            "0.90" => at + 65536,
            "1.0" => at + 8192,
            _ => DATA + self.data.len(),
        };
        let mut image = vec![0; len];
        image[self.data_at()..][..self.data.len()].copy_from_slice(&self.data);
        let superblock = match self.version {
            "0.90" => self.old(),
            _ => self.new_style(at),
        };
        image[at..at + superblock.len()].copy_from_slice(&superblock);
        image
    }

    fn new_style(&self, at: usize) -> Vec<u8> {
        let mut bytes = vec![0; 256 + 2 * self.roles.len()];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &0xa92b_4efc_u32.to_le_bytes());
        put(4, &1_u32.to_le_bytes());
        put(8, &self.features.to_le_bytes());
        put(16, b"0123456789abcdef");
        put(32, b"box:forged");
        put(72, &self.level.to_le_bytes());
        put(76, &self.layout.to_le_bytes());
        put(80, &self.size.to_le_bytes());
        put(88, &self.chunk.to_le_bytes());
        put(92, &self.places.to_le_bytes());
        put(128, &(self.data_at() as u64 / 512).to_le_bytes());
        put(136, &(self.data.len() as u64 / 512).to_le_bytes());
        put(144, &(at as u64 / 512).to_le_bytes());
        put(160, &self.number.to_le_bytes());
        put(200, &self.events.to_le_bytes());
        put(208, &u64::MAX.to_le_bytes());
        put(220, &u32::try_from(self.roles.len()).unwrap().to_le_bytes());
        for (index, role) in self.roles.iter().enumerate() {
            put(256 + 2 * index, &role.to_le_bytes());
        }
        mend_new(&mut bytes);
        bytes
    }

    fn old(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let mut put = |word: usize, value: u32| {
            bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_le_bytes());
        };
        for (word, value) in [
            (0, 0xa92b_4efc),
            (2, 90),
            (5, 0x3030_3131),
            (7, self.level.cast_unsigned()),
            (8, u32::try_from(self.size / 2).unwrap()),
            (9, self.places),
            (10, self.places),
            (11, 3),
            (33, 1),
            (39, u32::try_from(self.events).unwrap()),
            (64, self.layout),
            (65, self.chunk * 512),
            (992, self.number),
        ] {
            put(word, value);
        }
        for (number, role) in self.roles.iter().enumerate() {
            let first = 128 + 32 * number;
            let (place, state) = match *role {
                SPARE => (number, 0),
                FAULTY => (number, 1),
                place => (usize::from(place), 6),
            };
            put(first, u32::try_from(number).unwrap());
            put(first + 3, u32::try_from(place).unwrap());
            put(first + 4, state);
        }
        mend_old(&mut bytes);
        bytes
    }
}

fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0_u64;
    for chunk in bytes.chunks(4) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        sum += u64::from(u32::from_le_bytes(word));
    }
    ((sum & 0xffff_ffff) + (sum >> 32)) as u32
}

/// Makes the checksum of a superblock of version 1 right.
pub(crate) fn mend_new(bytes: &mut [u8]) {
    let roles = u32::from_le_bytes(bytes[220..224].try_into().unwrap()) as usize;
    bytes[216..220].fill(0);
    let end = bytes.len().min(roles.saturating_mul(2).saturating_add(256));
    let sum = sum(&bytes[..end]);
    bytes[216..220].copy_from_slice(&sum.to_le_bytes());
}

/// Makes the checksum of a superblock 0.90 right.
pub(crate) fn mend_old(bytes: &mut [u8]) {
    bytes[152..156].fill(0);
    let sum = sum(&bytes[..4096]);
    bytes[152..156].copy_from_slice(&sum.to_le_bytes());
}

/// A disk with an MBR and these partitions of the type `kind`, from 32 KiB on.
pub(crate) fn disk(partitions: &[Vec<u8>], kind: u8) -> Vec<u8> {
    let mut disk = vec![0; 32768];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (index, partition) in partitions.iter().enumerate() {
        let entry = 446 + 16 * index;
        disk[entry + 4] = kind;
        let first = u32::try_from(disk.len() / 512).unwrap();
        let sectors = u32::try_from(partition.len() / 512).unwrap();
        disk[entry + 8..entry + 12].copy_from_slice(&first.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&sectors.to_le_bytes());
        disk.extend(partition);
    }
    disk
}
