//! Physical volumes by hand.

/// Where the metadata area is, and how long.
pub(crate) const AREA: usize = 4096;
pub(crate) const AREA_LEN: usize = 28 * 1024;
/// Where extents begin.
pub(crate) const DATA: usize = 64 * 512;
/// Bytes of an extent.
pub(crate) const EXTENT: usize = 16 * 512;

/// LVM2's checksum, bit by bit.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf_u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        crc
    })
}

/// An identifier that differs by `number`.
pub(crate) fn id(number: usize) -> String {
    format!("a{number:031}")
}

/// The same, as the text has it.
pub(crate) fn dashed(number: usize) -> String {
    let id = id(number);
    let cuts = [0, 6, 10, 14, 18, 22, 26, 32];
    let groups: Vec<&str> = cuts.windows(2).map(|cut| &id[cut[0]..cut[1]]).collect();
    groups.join("-")
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Makes the checksums of the label, of the area's header and of the text right.
pub(crate) fn mend(image: &mut [u8]) {
    let Some(label) = image.get_mut(512..1024) else {
        return;
    };
    let sum = crc(&label[20..]);
    put(label, 16, &sum.to_le_bytes());
    let Some(area) = image.get_mut(AREA..AREA + AREA_LEN) else {
        return;
    };
    let number = |at: usize| {
        usize::try_from(u64::from_le_bytes(area[at..at + 8].try_into().unwrap())).unwrap_or(0)
    };
    let (offset, size) = (number(40), number(48));
    if offset < AREA_LEN && size < AREA_LEN {
        let text: Vec<u8> = area[offset..]
            .iter()
            .chain(&area[512..])
            .take(size)
            .copied()
            .collect();
        let sum = crc(&text);
        put(area, 56, &sum.to_le_bytes());
    }
    let sum = crc(&area[4..512]);
    put(area, 0, &sum.to_le_bytes());
}

/// A physical volume of so many extents, with `text` at `offset` of its metadata area; it goes on behind
/// the header where the area ends.
pub(crate) fn physical_at(number: usize, extents: usize, text: &str, offset: usize) -> Vec<u8> {
    let mut image = vec![0; DATA + extents * EXTENT];
    put(&mut image, 512, b"LABELONE");
    put(&mut image, 520, &1_u64.to_le_bytes());
    put(&mut image, 532, &32_u32.to_le_bytes());
    put(&mut image, 536, b"LVM2 001");
    put(&mut image, 544, id(number).as_bytes());
    let size = image.len() as u64;
    for (index, word) in [size, DATA as u64, 0, 0, 0, AREA as u64, AREA_LEN as u64]
        .iter()
        .enumerate()
    {
        put(&mut image, 576 + 8 * index, &word.to_le_bytes());
    }
    put(&mut image, AREA + 4, b" LVM2 x[5A%r0N*>");
    put(&mut image, AREA + 20, &1_u32.to_le_bytes());
    put(&mut image, AREA + 24, &(AREA as u64).to_le_bytes());
    put(&mut image, AREA + 32, &(AREA_LEN as u64).to_le_bytes());
    if !text.is_empty() {
        let text = [text.as_bytes(), &[0]].concat();
        put(&mut image, AREA + 40, &(offset as u64).to_le_bytes());
        put(&mut image, AREA + 48, &(text.len() as u64).to_le_bytes());
        for (index, byte) in text.iter().enumerate() {
            let mut at = offset + index;
            if at >= AREA_LEN {
                at = at - AREA_LEN + 512;
            }
            image[AREA + at] = *byte;
        }
    }
    mend(&mut image);
    image
}

pub(crate) fn physical(number: usize, extents: usize, text: &str) -> Vec<u8> {
    physical_at(number, extents, text, 512)
}

/// A stripe: the number of a physical volume and an extent of it.
pub(crate) type Stripe = (usize, usize);

/// The text of a segment.
pub(crate) fn segment(
    number: usize,
    start: usize,
    count: usize,
    stripes: &[Stripe],
    size: usize,
) -> String {
    let list: Vec<String> = stripes
        .iter()
        .map(|(pv, extent)| format!("\"pv{pv}\", {extent}"))
        .collect();
    format!(
        "segment{number} {{\nstart_extent = {start}\nextent_count = {count}\n\ntype = \"striped\"\n\
         stripe_count = {}\nstripe_size = {size}\n\nstripes = [\n{}\n]\n}}\n",
        stripes.len(),
        list.join(",\n")
    )
}

/// The text of a logical volume.
pub(crate) fn logical(name: &str, number: usize, segments: &[String]) -> String {
    format!(
        "{name} {{\nid = \"{}\"\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\n\
         creation_time = 1700000000\t# a comment\nsegment_count = {}\n\n{}}}\n",
        dashed(number),
        segments.len(),
        segments.concat()
    )
}

/// The text of a group with physical volumes of so many extents each.
pub(crate) fn group(name: &str, seqno: usize, pvs: &[(usize, usize)], logical: &str) -> String {
    let mut physical = String::new();
    for (number, extents) in pvs {
        physical += &format!(
            "pv{number} {{\nid = \"{}\"\ndevice = \"/dev/sda{number}\"\n\nstatus = [\"ALLOCATABLE\"]\n\
             flags = []\ndev_size = 2048\npe_start = {}\npe_count = {extents}\n}}\n",
            dashed(*number),
            DATA / 512
        );
    }
    format!(
        "{name} {{\nid = \"{}\"\nseqno = {seqno}\nformat = \"lvm2\"\nstatus = [\"RESIZEABLE\", \"READ\", \
         \"WRITE\"]\nflags = []\nextent_size = {}\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0\n\n\
         physical_volumes {{\n{physical}}}\n\nlogical_volumes {{\n{logical}}}\n}}\n\
         # Generated by LVM2\n\ncontents = \"Text Format Volume Group\"\nversion = 1\n\n\
         description = \"a \\\"test\\\"\"\ncreation_host = \"here\"\ncreation_time = 1700000000\n",
        dashed(900 + name.len()),
        EXTENT / 512
    )
}

/// A disk with an MBR and these partitions, from 32 KiB on.
pub(crate) fn disk(partitions: &[Vec<u8>]) -> Vec<u8> {
    let mut disk = vec![0; 32768];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (index, partition) in partitions.iter().enumerate() {
        let entry = 446 + 16 * index;
        disk[entry + 4] = 0x8e;
        let first = u32::try_from(disk.len() / 512).unwrap();
        let sectors = u32::try_from(partition.len() / 512).unwrap();
        put(&mut disk, entry + 8, &first.to_le_bytes());
        put(&mut disk, entry + 12, &sectors.to_le_bytes());
        disk.extend(partition);
    }
    disk
}
