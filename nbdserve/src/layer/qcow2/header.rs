//! Pure parser of the header of a qcow2 image (QEMU's `docs/interop/qcow2.txt`, versions 2 and 3):
//! bytes in, values that hold the format's rules out. All numbers are big-endian.

use super::entry::Shape;
use super::extension::Extensions;
use crate::bytes::{array, has, slice};
use crate::layer::cut::cut_off;
use crate::{ByteRange, Error, Kind, Result};

/// `QFI\xfb`.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header of version 2.
const LENGTH_2: u32 = 72;
/// Least bytes of the header of version 3.
const LENGTH_3: u32 = 104;
/// Shortest and longest cluster, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Clusters of images with subclusters are at least this long.
const EXTENDED_BITS: u32 = 14;
/// Longest name of a backing file.
const LONGEST_NAME: u32 = 1023;
/// An image has at most this many bytes.
const LARGEST: u64 = u64::MAX >> 1;
/// Clusters are within this many bytes of the file: offsets have 56 bits.
pub(super) const FARTHEST: u64 = 1 << 56;

/// Incompatible features: who does not know one must not touch the image.
pub(super) mod incompatible {
    /// Reference counts may be wrong.
    pub(in super::super) const DIRTY: u64 = 1 << 0;
    /// Something in the image is wrong.
    pub(in super::super) const CORRUPT: u64 = 1 << 1;
    /// Guest clusters are in another file.
    pub(in super::super) const DATA_FILE: u64 = 1 << 2;
    /// Compressed clusters are not deflated.
    pub(in super::super) const COMPRESSION: u64 = 1 << 3;
    /// L2 entries have a bitmap of subclusters.
    pub(in super::super) const EXTENDED_L2: u64 = 1 << 4;
    /// All of them.
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Features that a writer who does not know them clears.
pub(super) mod autoclear {
    /// Bitmaps are as the image.
    pub(in super::super) const BITMAPS: u64 = 1 << 0;
    /// The data file by itself is the image.
    pub(in super::super) const RAW_DATA: u64 = 1 << 1;
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate.
    Zlib,
    /// A zstd frame.
    Zstd,
}

impl Compression {
    /// As in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// How guest data is encrypted (`crypt_method`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encryption {
    /// It is not.
    None,
    /// 1: AES-CBC with a passphrase as the key.
    Aes,
    /// 2: LUKS, with its header in the image.
    Luks,
}

/// The header, with what follows it in the first cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// 2 or 3.
    pub(super) version: u32,
    /// Where the name of the backing file lies in the file.
    pub(super) backing_file: Option<ByteRange>,
    /// Bytes of a cluster, as a power of two.
    pub(super) cluster_bits: u32,
    /// Bytes of the guest's disk.
    pub(super) size: u64,
    /// Whether and how the guest's data is encrypted.
    pub(super) encryption: Encryption,
    /// Entries of the L1 table; as many as the size needs, or more.
    pub(super) l1_size: u32,
    /// Where it lies: a multiple of the cluster size.
    pub(super) l1_table_offset: u64,
    /// Where the refcount table lies: a multiple of the cluster size.
    pub(super) refcount_table_offset: u64,
    /// Its length.
    pub(super) refcount_table_clusters: u32,
    /// How many snapshots there are.
    pub(super) nb_snapshots: u32,
    /// Where their table lies: a multiple of the cluster size where there are any.
    pub(super) snapshots_offset: u64,
    /// [`incompatible`], known ones only.
    pub(super) incompatible_features: u64,
    /// Compatible features: bit 0, lazy refcounts.
    pub(super) compatible_features: u64,
    /// [`autoclear`], and others that are not known.
    pub(super) autoclear_features: u64,
    /// Bits of a refcount, as a power of two: at most 6.
    pub(super) refcount_order: u32,
    /// Bytes of the header.
    pub(super) header_length: u32,
    /// For all compressed clusters.
    pub(super) compression: Compression,
    /// What follows the header.
    pub(super) extensions: Extensions,
}

pub(super) fn corrupt(what: String) -> Error {
    Error::new(Kind::Corrupt, what)
}

fn unsupported(what: String) -> Error {
    Error::new(Kind::Unsupported, what)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_be_bytes)
}

impl Header {
    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether an incompatible feature is set.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.incompatible_features & feature != 0
    }

    /// What the entries of its tables look like.
    pub(super) fn shape(&self) -> Shape {
        let external = self.has(incompatible::DATA_FILE);
        Shape {
            cluster_bits: self.cluster_bits,
            extended: self.has(incompatible::EXTENDED_L2),
            external,
            raw: external && self.autoclear_features & autoclear::RAW_DATA != 0,
            zero_flag: self.version >= 3,
        }
    }

    /// The parts of the file that hold the header and the tables it points to, for who must not be
    /// misled into taking them for something else.
    pub(super) fn metadata(&self) -> Vec<(&'static str, ByteRange)> {
        let cluster = self.cluster_size();
        let l1 = u64::from(self.l1_size).saturating_mul(8);
        let refcounts = u64::from(self.refcount_table_clusters).saturating_mul(cluster);
        let place = |at: u64, len: u64| ByteRange::between(at, at.saturating_add(len));
        let mut parts = vec![
            ("the header", place(0, cluster)),
            ("the L1 table", place(self.l1_table_offset, l1)),
            (
                "the refcount table",
                place(self.refcount_table_offset, refcounts),
            ),
        ];
        if self.nb_snapshots > 0 {
            // Its length is not known here.
            parts.push(("the snapshot table", place(self.snapshots_offset, 1)));
        }
        parts.retain(|(_, range)| !range.is_empty());
        parts
    }

    /// The header at the start of `head`, which has the first bytes of a file of `file_size` bytes:
    /// all of the first cluster, or as much of it as holds the extensions.
    ///
    /// # Errors
    /// `NotThisFormat` without the magic; `Unsupported` for another version, an unknown feature
    /// (by its name, where the image tells) or compression; `Corrupt`.
    pub(super) fn parse(head: &[u8], file_size: u64) -> Result<Self> {
        if !has(head, 0, &MAGIC) {
            let what = "the magic of a qcow2 image is not there";
            return Err(Error::new(Kind::NotThisFormat, what));
        }
        let cut = || cut_off(format!("the file ends within its header, at {file_size}"));
        let word = |at| be32(head, at).ok_or_else(cut);
        let long = |at| be64(head, at).ok_or_else(cut);
        let version = word(4)?;
        if !(2..=3).contains(&version) {
            let what = format!("version {version} of the format, only 2 and 3 are known");
            return Err(unsupported(what));
        }
        let cluster_bits = word(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            let what = format!("clusters of 2^{cluster_bits} bytes, they have 2^9 to 2^21");
            return Err(corrupt(what));
        }
        let mut header = Self {
            version,
            backing_file: None,
            cluster_bits,
            size: long(24)?,
            encryption: encryption(word(32)?)?,
            l1_size: word(36)?,
            l1_table_offset: long(40)?,
            refcount_table_offset: long(48)?,
            refcount_table_clusters: word(56)?,
            nb_snapshots: word(60)?,
            snapshots_offset: long(64)?,
            incompatible_features: 0,
            compatible_features: 0,
            autoclear_features: 0,
            refcount_order: 4,
            header_length: LENGTH_2,
            compression: Compression::Zlib,
            extensions: Extensions::default(),
        };
        if version >= 3 {
            header.incompatible_features = long(72)?;
            header.compatible_features = long(80)?;
            header.autoclear_features = long(88)?;
            header.refcount_order = word(96)?;
            header.header_length = word(100)?;
        }
        let name = (long(8)?, word(16)?);
        header.backing_file = header.backing(name.0, name.1, file_size)?;
        header.check_length(head)?;
        let end = header
            .backing_file
            .map_or(header.cluster_size(), ByteRange::start);
        let extensions = slice_until(head, header.header_length, end);
        header.extensions = Extensions::parse(extensions)?;
        header.check_features()?;
        if header.header_length > LENGTH_3 {
            let kind = slice(head, 104, 1).and_then(|bytes| bytes.first().copied());
            header.compression = compression(kind.ok_or_else(cut)?)?;
        }
        let other = header.compression != Compression::Zlib;
        if other != header.has(incompatible::COMPRESSION) {
            let name = header.compression.name();
            let what = format!("compression {name}, which its feature bit contradicts");
            return Err(corrupt(what));
        }
        header.check_places(file_size)?;
        Ok(header)
    }

    /// Where the name of the backing file lies.
    fn backing(&self, offset: u64, len: u32, file_size: u64) -> Result<Option<ByteRange>> {
        if offset == 0 {
            return Ok(None);
        }
        if len > LONGEST_NAME {
            let what = format!("a backing file name of {len} bytes, it has at most {LONGEST_NAME}");
            return Err(corrupt(what));
        }
        let most = self.cluster_size().min(file_size);
        ByteRange::new(offset, u64::from(len))
            .filter(|range| range.end() <= most && range.start() >= u64::from(LENGTH_2))
            .map(|range| Some(range).filter(|range| !range.is_empty()))
            .ok_or_else(|| {
                let what = format!(
                    "a backing file name of {len} bytes at {offset}, which is not within the \
                     {most} bytes of the first cluster"
                );
                corrupt(what)
            })
    }

    fn check_length(&self, head: &[u8]) -> Result<()> {
        let len = self.header_length;
        let most = self.cluster_size();
        if self.version >= 3 && (len < LENGTH_3 || !len.is_multiple_of(8)) {
            let what =
                format!("a header of {len} bytes, it has a multiple of 8, at least {LENGTH_3}");
            return Err(corrupt(what));
        }
        if u64::from(len) > most {
            let what = format!("a header of {len} bytes, its cluster has {most}");
            return Err(corrupt(what));
        }
        if usize::try_from(len).map_or(true, |len| head.len() < len) {
            let have = head.len();
            let what = format!("a header of {len} bytes, of which {have} are there");
            return Err(cut_off(what));
        }
        Ok(())
    }

    fn check_features(&self) -> Result<()> {
        let unknown = self.incompatible_features & !incompatible::KNOWN;
        if unknown != 0 {
            let names: Vec<String> = (0..64_u8)
                .filter(|bit| unknown >> bit & 1 == 1)
                .map(|bit| self.extensions.feature_name(bit))
                .collect();
            let what = format!("unknown features: {}", names.join(", "));
            return Err(unsupported(what).hint("a newer version may know them"));
        }
        if self.has(incompatible::EXTENDED_L2) && self.cluster_bits < EXTENDED_BITS {
            let bits = self.cluster_bits;
            let what = format!("subclusters in clusters of 2^{bits} bytes, 2^14 is the least");
            return Err(corrupt(what));
        }
        if self.refcount_order > 6 {
            let order = self.refcount_order;
            let what = format!("refcounts of 2^{order} bits, they have at most 2^6");
            return Err(corrupt(what));
        }
        Ok(())
    }

    fn check_places(&self, file_size: u64) -> Result<()> {
        let size = self.size;
        if size > LARGEST {
            let what = format!("a disk of {size} bytes, 2^63 are the most");
            return Err(Error::new(Kind::Limit, what));
        }
        let needed = self.shape().l1_entries(size);
        check_l1(
            "the L1 table",
            self.l1_table_offset,
            u64::from(self.l1_size),
            needed,
            self.cluster_size(),
            file_size,
        )?;
        let cluster = self.cluster_size();
        for (name, at, used) in [
            ("refcount table", self.refcount_table_offset, true),
            (
                "snapshot table",
                self.snapshots_offset,
                self.nb_snapshots > 0,
            ),
        ] {
            if used && (!at.is_multiple_of(cluster) || at >= FARTHEST) {
                let what = format!("the {name} lies at {at}, which is no multiple of {cluster}");
                return Err(corrupt(what));
            }
        }
        Ok(())
    }
}

/// Checks that a table of `entries` L1 entries at `at` covers `needed`, and lies within the file.
pub(super) fn check_l1(
    name: &str,
    at: u64,
    entries: u64,
    needed: u64,
    cluster: u64,
    file_size: u64,
) -> Result<()> {
    if entries < needed {
        let what = format!("{name} has {entries} entries, the disk's size takes {needed}");
        return Err(corrupt(what));
    }
    if needed == 0 {
        return Ok(());
    }
    if at == 0 || !at.is_multiple_of(cluster) {
        let what =
            format!("{name} lies at {at}, which is no place for it: clusters have {cluster} bytes");
        return Err(corrupt(what));
    }
    let len = needed.saturating_mul(8);
    if at.checked_add(len).is_none_or(|end| end > file_size) {
        let what = format!("{name} of {len} bytes at {at}, the file has only {file_size}");
        return Err(cut_off(what));
    }
    Ok(())
}

/// `head[from..until]`, cut where it ends.
fn slice_until(head: &[u8], from: u32, until: u64) -> &[u8] {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let until = usize::try_from(until).unwrap_or(usize::MAX).min(head.len());
    head.get(from..until).unwrap_or(&[])
}

fn encryption(method: u32) -> Result<Encryption> {
    match method {
        0 => Ok(Encryption::None),
        1 => Ok(Encryption::Aes),
        2 => Ok(Encryption::Luks),
        other => Err(unsupported(format!("encryption method {other}"))),
    }
}

fn compression(kind: u8) -> Result<Compression> {
    match kind {
        0 => Ok(Compression::Zlib),
        1 => Ok(Compression::Zstd),
        other => Err(unsupported(format!("compression type {other}"))),
    }
}
