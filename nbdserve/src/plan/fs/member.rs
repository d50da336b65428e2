//! What is no file system by itself: swap space, encrypted volumes, parts of volume groups,
//! arrays and pools.

use super::{BEHIND, Class, FIRST, Found, evidence, text, uuid};
use crate::bytes::{array, has, le32, slice};
use crate::layer::Sample;
use crate::layer::lvm::header::dashed;

pub(super) fn probe(sample: &Sample<'_>) -> Option<Found> {
    let head = sample.head;
    luks(head)
        .or_else(|| bitlocker(head))
        .or_else(|| lvm(head))
        .or_else(|| raid(head))
        .or_else(|| swap(head))
}

fn member(name: &str, magic: &[u8], at: usize) -> Found {
    let confidence = if at < 512 { FIRST } else { BEHIND };
    Found::new(name, Class::Member, confidence, evidence(magic, at))
}

/// LUKS1 and LUKS2 On-Disk Format Specification: `luks_phdr`, `luks2_hdr`.
fn luks(head: &[u8]) -> Option<Found> {
    let magic = b"LUKS\xba\xbe";
    let version = array(head, 6).map(u16::from_be_bytes)?;
    if !has(head, 0, magic) || !(1..=2).contains(&version) {
        return None;
    }
    let found = member("luks", magic, 0)
        .detail(format!("LUKS{version}"))
        .uuid(text(head, 168, 40));
    Some(match version {
        2 => found.label(text(head, 24, 48)),
        _ => found,
    })
}

/// libbde's description of the format: the name in the boot sector.
fn bitlocker(head: &[u8]) -> Option<Found> {
    let magic = b"-FVE-FS-";
    has(head, 3, magic).then(|| Found::new("bitlocker", Class::Wrapper, FIRST, evidence(magic, 3)))
}

/// LVM2, `lib/format_text/layout.h`: a label in one of the first four sectors, then the header of
/// the physical volume with its identifier of 32 characters.
fn lvm(head: &[u8]) -> Option<Found> {
    for at in [0, 512, 1024, 1536] {
        let sector = slice(head, at, 512)?;
        if !has(sector, 0, b"LABELONE") || !has(sector, 24, b"LVM2 001") {
            continue;
        }
        let header = usize::try_from(le32(sector, 20)?).ok()?;
        let id = text(sector, header, 32).filter(|id| id.len() == 32 && id.is_ascii());
        let id = id.map(|id| dashed(&id));
        return Some(
            member("lvm2", b"LABELONE", at)
                .detail("LVM2 physical volume")
                .uuid(id),
        );
    }
    None
}

/// Linux, `include/uapi/linux/raid/md_p.h`, `struct mdp_superblock_1`, versions 1.1 and 1.2. The
/// superblocks of 0.90 and 1.0 are at the end: those members begin like what is in the array.
fn raid(head: &[u8]) -> Option<Found> {
    let magic = 0xa92b_4efc_u32.to_le_bytes();
    [0, 4096].into_iter().find_map(|at| {
        let head = head.get(at..)?;
        (has(head, 0, &magic) && le32(head, 4)? == 1).then(|| {
            member("md", &magic, at)
                .detail("Linux RAID member")
                .label(text(head, 32, 32))
                .uuid(uuid(head, 16))
        })
    })
}

/// Linux, `include/linux/swap.h`, `union swap_header`: the magic ends the first page, however long
/// that was on the machine that made it.
fn swap(head: &[u8]) -> Option<Found> {
    let magic = b"SWAPSPACE2";
    [4096_usize, 8192, 16384, 65536]
        .into_iter()
        .find_map(|page| {
            let at = page.checked_sub(magic.len())?;
            has(head, at, magic).then(|| {
                member("swap", magic, at)
                    .label(text(head, 1052, 16))
                    .uuid(uuid(head, 1036))
            })
        })
}

/// OpenZFS, "ZFS On-Disk Specification", 1.2: the name-value list of the first label, at 16 KiB,
/// which begins with the pair `version`.
pub(super) fn probe_pool(sample: &Sample<'_>) -> Option<Found> {
    const LIST: usize = 16384;
    let list = sample.head.get(LIST..)?;
    // XDR encoding; the length of the name, and the name.
    let is_list = has(list, 0, &[1]) && has(list, 20, b"\0\0\0\x07version\0");
    is_list.then(|| member("zfs", b"version", LIST.saturating_add(24)).detail("ZFS pool member"))
}
