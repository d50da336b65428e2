//! Makes .xz files that lie: parts of a real file are replaced and all CRCs made right again.

/// CRC32 as in the .xz format, bit by bit.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

fn put_vli(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn get_vli(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// A Stream Footer for an Index of `index_size` bytes.
fn footer(index_size: usize, check: u8) -> Vec<u8> {
    let mut body = (index_size as u32 / 4 - 1).to_le_bytes().to_vec();
    body.extend([0, check]);
    let mut bytes = crc32(&body).to_le_bytes().to_vec();
    bytes.extend(body);
    bytes.extend(b"YZ");
    bytes
}

/// An Index that says it has `count` records and holds `records`.
pub(crate) fn index(count: u64, records: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0];
    put_vli(&mut bytes, count);
    for (unpadded, uncompressed) in records {
        put_vli(&mut bytes, *unpadded);
        put_vli(&mut bytes, *uncompressed);
    }
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let crc = crc32(&bytes);
    bytes.extend(crc.to_le_bytes());
    bytes
}

fn index_start(file: &[u8]) -> usize {
    let stored = file[file.len() - 8..file.len() - 4].try_into().unwrap();
    file.len() - 12 - (u32::from_le_bytes(stored) as usize + 1) * 4
}

/// The records of a file of one stream: unpadded and uncompressed sizes.
pub(crate) fn records(file: &[u8]) -> Vec<(u64, u64)> {
    let mut rest = &file[index_start(file) + 1..];
    let count = get_vli(&mut rest);
    (0..count)
        .map(|_| (get_vli(&mut rest), get_vli(&mut rest)))
        .collect()
}

/// Where the blocks of a file of one stream begin, and where the last one ends.
pub(crate) fn block_offsets(file: &[u8]) -> Vec<usize> {
    let mut offsets = vec![12];
    for (unpadded, _) in records(file) {
        let last = *offsets.last().unwrap();
        offsets.push(last + (unpadded as usize).next_multiple_of(4));
    }
    offsets
}

/// The file with another index.
pub(crate) fn with_index(file: &[u8], index: &[u8]) -> Vec<u8> {
    let mut forged = file[..index_start(file)].to_vec();
    forged.extend(index);
    forged.extend(footer(index.len(), file[7]));
    forged
}

/// The file with another Check ID in its header and footer.
pub(crate) fn with_check(file: &[u8], check: u8) -> Vec<u8> {
    let start = index_start(file);
    let mut forged = file.to_vec();
    forged[7] = check;
    let crc = crc32(&forged[6..8]);
    forged[8..12].copy_from_slice(&crc.to_le_bytes());
    let end = forged.len() - 12;
    forged[end..].copy_from_slice(&footer(end - start, check));
    forged
}

/// The file with the header of the block at `at` changed.
pub(crate) fn with_header(file: &[u8], at: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut forged = file.to_vec();
    let size = (usize::from(forged[at]) + 1) * 4;
    let header = &mut forged[at..at + size];
    change(&mut header[..size - 4]);
    let crc = crc32(&header[..size - 4]);
    header[size - 4..].copy_from_slice(&crc.to_le_bytes());
    forged
}
