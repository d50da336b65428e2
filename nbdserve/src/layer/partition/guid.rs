//! GUIDs as they lie on disk, and what the partition types among them mean.

use std::fmt;

use crate::bytes;

/// A GUID in the byte order of the disk: the first three fields are little-endian
/// (UEFI 2.10, appendix A).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::layer) struct Guid([u8; 16]);

impl Guid {
    pub(in crate::layer) fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// All zero: an unused entry.
    pub(super) fn is_nil(self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = bytes::le32(&self.0, 0).unwrap_or(0);
        let second = bytes::le16(&self.0, 4).unwrap_or(0);
        let third = bytes::le16(&self.0, 6).unwrap_or(0);
        write!(f, "{first:08x}-{second:04x}-{third:04x}-")?;
        for (at, byte) in self.0.iter().enumerate().skip(8) {
            if at == 10 {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The root partition of each architecture, by Rust's name for it (UAPI Group, Discoverable
/// Partitions Specification).
const ROOTS: &[(&str, &str, &str)] = &[
    (
        "x86_64",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        "Linux root (x86-64)",
    ),
    (
        "x86",
        "44479540-f297-41b2-9af7-d131d5f0458a",
        "Linux root (x86)",
    ),
    (
        "aarch64",
        "b921b045-1df0-41c3-af44-4c6f280d3fae",
        "Linux root (ARM-64)",
    ),
    (
        "arm",
        "69dad710-2ce4-4e3c-b16c-21a1d49abed3",
        "Linux root (ARM)",
    ),
    (
        "riscv64",
        "72ec70a6-cf74-40e6-bd49-4bda08e8f224",
        "Linux root (RISC-V-64)",
    ),
    (
        "riscv32",
        "60d5a7fe-8e7d-435c-b714-3dd8162144e1",
        "Linux root (RISC-V-32)",
    ),
    (
        "loongarch64",
        "77055800-792c-4f94-b39a-98c91b762bb6",
        "Linux root (LoongArch-64)",
    ),
    (
        "s390x",
        "5eead9a9-fe09-4a1e-a1d7-520d00531306",
        "Linux root (S390X)",
    ),
    (
        "powerpc64le",
        "c31c45e6-3f39-412e-80fb-4809c4980599",
        "Linux root (PPC64LE)",
    ),
    (
        "powerpc64",
        "912ade1d-a839-4913-8964-a10eee08fbd2",
        "Linux root (PPC64)",
    ),
    (
        "powerpc",
        "1de3f1ef-fa98-47b5-8dcd-4a860a654d78",
        "Linux root (PPC)",
    ),
    (
        "mips64",
        "700bda43-7a34-4507-b179-eeb93d7a7ca3",
        "Linux root (MIPS-64 LE)",
    ),
    (
        "mips",
        "37c58c8a-d913-4156-a25f-48b1b64e07f0",
        "Linux root (MIPS-32 LE)",
    ),
    (
        "ia64",
        "993d8d3d-f80e-4225-855a-9daf8ed7ea97",
        "Linux root (IA-64)",
    ),
    (
        "alpha",
        "6523f8ae-3eb1-4e2a-a05a-18b695ae656f",
        "Linux root (Alpha)",
    ),
    (
        "parisc",
        "1aacdb3b-5444-4138-bd9e-e5c2239b2346",
        "Linux root (HPPA/PARISC)",
    ),
];

/// Types that are often met, with the names that fdisk(8) gives them.
const OTHERS: &[(&str, &str)] = &[
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI System"),
    ("21686148-6449-6e6f-744e-656564454649", "BIOS boot"),
    (
        "024dee41-33e7-11d3-9d69-0008c781f39f",
        "MBR partition scheme",
    ),
    ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", "PowerPC PReP boot"),
    (
        "bc13c2ff-59e6-4262-a352-b275fd6f7172",
        "Linux extended boot",
    ),
    ("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux filesystem"),
    ("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home"),
    ("3b8f8425-20e0-4f3b-907f-1a25a76f98e8", "Linux server data"),
    (
        "4d21b016-b534-45c2-a9fb-5c16e091fd2d",
        "Linux variable data",
    ),
    (
        "7ec6f557-3bc5-4aca-b293-16ef5df639d1",
        "Linux temporary data",
    ),
    ("8da63339-0007-60c0-c436-083ac8230908", "Linux reserved"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("ca7d7ccb-63ed-4c53-861c-1742536059cc", "LUKS"),
    (
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7",
        "Microsoft basic data",
    ),
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved"),
    (
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac",
        "Windows recovery environment",
    ),
    ("48465300-0000-11aa-aa11-00306543ecac", "Apple HFS/HFS+"),
    ("7c3457ef-0000-11aa-aa11-00306543ecac", "Apple APFS"),
    ("516e7cb4-6ecf-11d6-8ff8-00022d09712b", "FreeBSD data"),
    ("83bd6b9d-7f41-11dc-be0b-001560b84f0f", "FreeBSD boot"),
    ("516e7cb6-6ecf-11d6-8ff8-00022d09712b", "FreeBSD UFS"),
    ("516e7cb5-6ecf-11d6-8ff8-00022d09712b", "FreeBSD swap"),
    ("516e7cba-6ecf-11d6-8ff8-00022d09712b", "FreeBSD ZFS"),
    (
        "6a898cc3-1dd2-11b2-99a6-080020736631",
        "Solaris /usr & Apple ZFS",
    ),
    ("fe3a2a5d-4f32-41a7-b725-accc3285a309", "ChromeOS kernel"),
    ("3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec", "ChromeOS root fs"),
];

/// What people call the partition type `guid`, given in lower case.
pub(super) fn type_name(guid: &str) -> Option<&'static str> {
    let root = ROOTS.iter().find(|(_, known, _)| *known == guid);
    let other = || OTHERS.iter().find(|(known, _)| *known == guid);
    root.map(|(_, _, name)| *name)
        .or_else(|| other().map(|(_, name)| *name))
}

/// The architecture whose root partition has the type `guid`, by Rust's name.
pub(super) fn root_architecture(guid: &str) -> Option<&'static str> {
    let root = ROOTS.iter().find(|(_, known, _)| *known == guid);
    root.map(|(architecture, _, _)| *architecture)
}

/// All types that have a name here, for the comparison with other tools.
#[cfg(test)]
pub(super) fn known_types() -> impl Iterator<Item = (&'static str, &'static str)> {
    let roots = ROOTS.iter().map(|(_, guid, name)| (*guid, *name));
    roots.chain(OTHERS.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_three_fields_are_little_endian() {
        let bytes = [
            0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e,
            0xc9, 0x3b,
        ];
        let text = Guid::new(bytes).to_string();
        assert_eq!(text, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(type_name(&text), Some("EFI System"));
    }

    #[test]
    fn fdisk_knows_the_same_types() {
        /// Younger than some releases of fdisk.
        const YOUNG: [&str; 2] = ["LUKS", "Linux root (HPPA/PARISC)"];
        let list = crate::testing::tools::run("sfdisk", ["--label", "gpt", "-T"]);
        let list = list.to_ascii_lowercase();
        let mut same = 0;
        for (guid, name) in known_types() {
            let mut lines = list.lines().map(str::trim_start);
            match lines.find_map(|line| line.strip_prefix(guid)) {
                // A release may call it by another name, but not many.
                Some(theirs) if theirs.trim() == name.to_ascii_lowercase() => same += 1,
                Some(_) => {}
                None => assert!(
                    YOUNG.contains(&name),
                    "sfdisk does not know {guid} ({name})"
                ),
            }
        }
        assert!(same > 35, "only {same} names are the same");
    }
}
