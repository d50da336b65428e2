//! Volumes of LVM2 and arrays of MD.

use super::{cx, exercise, is_printable, may_refuse, mend};
use crate::Volume;
use crate::layer::Args;
use crate::layer::lvm::LVM;
use crate::layer::lvm::group::Group;
use crate::layer::lvm::read::Groups;
use crate::layer::raid::RAID;
use crate::layer::raid::header::{Version, superblock};
use crate::layer::raid::read::{Arrays, Depth};
use crate::source::Memory;

/// Most volumes of one image that are opened.
const MOST: usize = 8;

/// The text of a group: segments follow each other without gaps.
pub(super) fn lvm_text(data: &[u8]) {
    let group = match Group::parse(data) {
        Ok(group) => group,
        Err(error) => return may_refuse(&error),
    };
    for volume in &group.volumes {
        match &volume.segments {
            Err(error) => may_refuse(error),
            Ok(segments) => {
                let mut end = 0;
                for segment in segments {
                    assert_eq!(segment.start, end, "{segment:?}");
                    assert!(
                        segment.end > segment.start && segment.chunk > 0,
                        "{segment:?}"
                    );
                    assert_eq!(
                        segment.len * segment.columns.len() as u64,
                        segment.end - end
                    );
                    end = segment.end;
                }
                assert_eq!(end, volume.size);
            }
        }
    }
}

/// An image, once as it is and once with right checksums.
pub(super) fn lvm_open(data: &[u8]) {
    lvm(&Memory::volume(data.to_vec()));
    let mut image = data.to_vec();
    mend::lvm(&mut image);
    lvm(&Memory::volume(image));
}

fn lvm(below: &Volume) {
    let groups = match Groups::read(below, &[], &cx()) {
        Ok(groups) => groups,
        Err(error) => return may_refuse(&error),
    };
    for note in &groups.notes {
        assert!(is_printable(note), "{note:?}");
    }
    for (group, volume) in groups.volumes().take(MOST) {
        match groups.open(below, group, volume) {
            Err(error) => may_refuse(&error),
            Ok(opened) => {
                assert_eq!(opened.size(), volume.size);
                exercise(&opened);
                by_name(below, &groups.name(group, volume), volume.size);
            }
        }
    }
}

/// The same volume the way a plan opens it.
fn by_name(below: &Volume, name: &str, size: u64) {
    let args = Args::from([("volume".to_owned(), name.to_owned())]);
    match (LVM.open)(below, &args, &cx()) {
        Ok(volume) => assert_eq!(volume.size(), size),
        // Two volumes may have one name, and members of arrays are left out.
        Err(error) => assert!(is_printable(&error.report().to_string())),
    }
}

/// A superblock of each version, as it is and with a right checksum, for devices of any size.
pub(super) fn md_superblock(data: &[u8]) {
    for version in Version::ALL {
        for size in [0, 1 << 20, 1 << 40, u64::MAX] {
            let at = version.place(size).unwrap_or(0);
            let mut bytes = data.to_vec();
            for _ in 0..2 {
                match superblock(&bytes, version, at, size) {
                    Err(error) => may_refuse(&error),
                    Ok(found) => assert!(found.roles.len() <= 1920),
                }
                mend::md_superblock(&mut bytes);
            }
        }
    }
}

/// An image, once as it is and once with right checksums.
pub(super) fn raid_open(data: &[u8]) {
    raid(&Memory::volume(data.to_vec()));
    let mut image = data.to_vec();
    mend::raid(&mut image);
    raid(&Memory::volume(image));
}

fn raid(below: &Volume) {
    let arrays = match Arrays::read(below, Depth::Full) {
        Ok(arrays) => arrays,
        Err(error) => return may_refuse(&error),
    };
    for found in arrays.arrays.iter().take(MOST) {
        assert!(is_printable(&found.members_text()));
        for degraded in [false, true] {
            match found.open(below, None, degraded) {
                Ok(volume) => exercise(&volume),
                Err(error) => may_refuse(&error),
            }
        }
        let args = Args::from([
            ("degraded".to_owned(), "yes".to_owned()),
            ("layout".to_owned(), "original".to_owned()),
        ]);
        match (RAID.open)(below, &args, &cx()) {
            Ok(volume) => exercise(&volume),
            Err(error) => assert!(is_printable(&error.report().to_string())),
        }
    }
}
