//! Images that lie: built from the rules of the formats, with the checksums made to fit the lie.

/// CRC-32 as xz and GPT use it (ISO-HDLC).
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// The pieces of an xz file (The .xz File Format, version 1.2.1).
pub(crate) mod xz {
    use super::crc32;

    /// Stream flags: CRC64, as `xz` writes by default.
    const FLAGS: [u8; 2] = [0, 4];

    /// One record of the index: unpadded size, uncompressed size.
    pub(crate) type Record = (u64, u64);

    fn vli(mut value: u64, out: &mut Vec<u8>) {
        while value >= 0x80 {
            out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        out.push(u8::try_from(value).unwrap());
    }

    fn take_vli(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }

    fn pad4(out: &mut Vec<u8>) {
        out.resize(out.len().next_multiple_of(4), 0);
    }

    pub(crate) fn stream_header() -> Vec<u8> {
        let mut out = b"\xfd7zXZ\0".to_vec();
        out.extend(FLAGS);
        out.extend(crc32(&FLAGS).to_le_bytes());
        out
    }

    /// A block header that states both sizes, for LZMA2 with an 8 MiB dictionary.
    pub(crate) fn block_header(compressed: u64, uncompressed: u64) -> Vec<u8> {
        let mut out = vec![0, 0xc0];
        vli(compressed, &mut out);
        vli(uncompressed, &mut out);
        out.extend([0x21, 1, 0x16]);
        pad4(&mut out);
        out[0] = u8::try_from(out.len() / 4).unwrap();
        out.extend(crc32(&out).to_le_bytes());
        out
    }

    /// An index with `count` stated records, of which `records` are there.
    pub(crate) fn index(count: u64, records: &[Record]) -> Vec<u8> {
        let mut out = vec![0];
        vli(count, &mut out);
        for (unpadded, uncompressed) in records {
            vli(*unpadded, &mut out);
            vli(*uncompressed, &mut out);
        }
        pad4(&mut out);
        out.extend(crc32(&out).to_le_bytes());
        out
    }

    pub(crate) fn footer(index_len: usize) -> Vec<u8> {
        let mut body = u32::try_from(index_len / 4 - 1)
            .unwrap()
            .to_le_bytes()
            .to_vec();
        body.extend(FLAGS);
        let mut out = crc32(&body).to_le_bytes().to_vec();
        out.extend(body);
        out.extend(b"YZ");
        out
    }

    /// A file of one stream: `blocks` as they are, then an index and a footer that fit each other.
    pub(crate) fn stream(blocks: &[u8], count: u64, records: &[Record]) -> Vec<u8> {
        let index = index(count, records);
        let mut out = stream_header();
        out.extend(blocks);
        out.extend(&index);
        out.extend(footer(index.len()));
        out
    }

    /// A file of 100 bytes or so whose block says that it holds `size` bytes.
    pub(crate) fn claims(size: u64) -> Vec<u8> {
        let mut block = block_header(16, size);
        let header = u64::try_from(block.len()).unwrap();
        // An LZMA2 chunk of 8 uncompressed bytes, the end marker, padding and a check.
        block.extend([1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        block.extend([0; 8]);
        stream(&block, 1, &[(header + 16 + 8, size)])
    }

    /// The records of the index of a file of one stream without padding.
    pub(crate) fn records(file: &[u8]) -> Vec<Record> {
        let (start, end) = index_range(file);
        let mut bytes = &file[start + 1..end];
        let count = take_vli(&mut bytes);
        (0..count)
            .map(|_| (take_vli(&mut bytes), take_vli(&mut bytes)))
            .collect()
    }

    fn index_range(file: &[u8]) -> (usize, usize) {
        let footer = file.len() - 12;
        let backward = u32::from_le_bytes(file[footer + 4..footer + 8].try_into().unwrap());
        let length = (usize::try_from(backward).unwrap() + 1) * 4;
        (footer - length, footer)
    }

    /// The file with another index; all checksums fit.
    pub(crate) fn with_records(file: &[u8], records: &[Record]) -> Vec<u8> {
        let (start, _) = index_range(file);
        let count = u64::try_from(records.len()).unwrap();
        stream(&file[12..start], count, records)
    }

    /// Where block `number` (from 0) lies in the file: offset and length without padding.
    pub(crate) fn block(file: &[u8], number: usize) -> (usize, usize) {
        let records = records(file);
        let before: u64 = records[..number]
            .iter()
            .map(|(unpadded, _)| unpadded.next_multiple_of(4))
            .sum();
        (
            12 + usize::try_from(before).unwrap(),
            usize::try_from(records[number].0).unwrap(),
        )
    }
}

/// DOS partition tables.
pub(crate) mod mbr {
    /// An entry: type, first sector, number of sectors. Relative as the table has it.
    pub(crate) type Entry = (u8, u32, u32);

    /// Writes a table with `entries` to sector `lba` of `disk`.
    pub(crate) fn table(disk: &mut [u8], lba: u32, entries: &[Entry]) {
        let at = usize::try_from(lba).unwrap() * 512;
        let sector = &mut disk[at..at + 512];
        sector.fill(0);
        for (slot, (kind, start, count)) in entries.iter().enumerate() {
            let entry = &mut sector[446 + slot * 16..][..16];
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&count.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
    }

    /// A disk whose extended partition at sector 2048 has a chain that comes back to its start.
    pub(crate) fn looping() -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        table(&mut disk, 0, &[(5, 2048, 6000)]);
        table(&mut disk, 2048, &[(0x83, 8, 100), (5, 1000, 1000)]);
        table(&mut disk, 3048, &[(0x83, 8, 100), (5, 0, 1000)]);
        disk
    }

    /// A disk with two logical partitions that share sectors.
    pub(crate) fn overlapping() -> Vec<u8> {
        let mut disk = vec![0; 4 << 20];
        table(&mut disk, 0, &[(5, 2048, 6000)]);
        table(&mut disk, 2048, &[(0x83, 8, 2000), (5, 1000, 1000)]);
        table(&mut disk, 3048, &[(0x83, 8, 900)]);
        disk
    }

    /// A disk whose second partition begins behind its end.
    pub(crate) fn outside() -> Vec<u8> {
        let mut disk = vec![0; 1 << 20];
        table(&mut disk, 0, &[(0x83, 64, 1000), (0x83, 1 << 20, 2048)]);
        disk
    }
}

/// GUID partition tables.
pub(crate) mod gpt {
    /// Flips a byte of the entries that the primary header covers, so that its CRC is wrong.
    pub(crate) fn break_primary(disk: &mut [u8]) {
        disk[2 * 512 + 56] ^= 0xff;
    }

    /// Flips a byte of the backup header (the last sector).
    pub(crate) fn break_backup(disk: &mut [u8]) {
        let at = disk.len() - 512 + 48;
        disk[at] ^= 0xff;
    }
}
