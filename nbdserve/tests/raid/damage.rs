//! Superblocks that lie.

use nbdserve::testing::{conformance, noise};
use nbdserve::{Kind, Volume};

use super::forge::{FAULTY, Member, SPARE, disk, mend_new, mend_old};
use super::{open, refused};

fn member(version: &'static str, level: i32, number: u32) -> Member {
    Member::new(version, level, number, 2, noise(65536, u64::from(number)))
}

fn pair(version: &'static str, level: i32, change: impl Fn(&mut Member)) -> Vec<u8> {
    let both = [0, 1].map(|number| {
        let mut member = member(version, level, number);
        change(&mut member);
        member.image()
    });
    disk(&both, 0xfd)
}

fn opens(image: &[u8]) -> Option<Volume> {
    match open(image, &[]) {
        Ok(volume) => Some(volume),
        Err(error) => {
            let fits = matches!(
                error.kind(),
                Kind::Corrupt | Kind::Unsupported | Kind::NotThisFormat | Kind::OutOfRange
            );
            assert!(fits, "{error:?}");
            None
        }
    }
}

#[test]
fn each_field_at_its_extremes_is_refused_or_within_bounds() {
    for version in ["0.90", "1.0", "1.1", "1.2"] {
        for level in [-1, 0, 1] {
            let one = member(version, level, 0);
            let second = member(version, level, 1).image();
            let at = one.superblock_at();
            let good = one.image();
            let fields: Vec<usize> = match version {
                "0.90" => (0..70)
                    .chain(128..200)
                    .chain([992])
                    .map(|word| word * 4)
                    .collect(),
                _ => (0..260).step_by(4).collect(),
            };
            for field in fields {
                for value in [0_u64, 1, 0x7fff_ffff, u64::MAX - 1, u64::MAX] {
                    for width in [2, 4, 8] {
                        let mut image = good.clone();
                        let bytes = &value.to_le_bytes()[..width];
                        let Some(place) = image.get_mut(at + field..at + field + width) else {
                            continue;
                        };
                        place.copy_from_slice(bytes);
                        let changed = image != good;
                        // Without a right checksum it is nothing. It is a sum: two words may change
                        // places, and a word of ones is one of zeroes.
                        if changed
                            && value != u64::MAX
                            && width < 8
                            && !(152..160).contains(&field)
                            && !(208..224).contains(&field)
                        {
                            let broken = disk(&[image.clone(), second.clone()], 0xfd);
                            assert!(
                                opens(&broken).is_none(),
                                "{version} {level} {field} {value:x}"
                            );
                        }
                        match version {
                            "0.90" => mend_old(&mut image[at..at + 4096]),
                            _ => mend_new(&mut image[at..]),
                        }
                        if let Some(volume) = opens(&disk(&[image, second.clone()], 0xfd)) {
                            let read = conformance::read_all(&volume);
                            assert_eq!(read.len() as u64, volume.size());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn an_image_that_is_cut_anywhere_is_refused() {
    for version in ["0.90", "1.0", "1.1", "1.2"] {
        let good = pair(version, 0, |_| {});
        for end in (0..good.len()).step_by(1531) {
            assert!(opens(&good[..end]).is_none(), "{version} at {end}");
        }
    }
}

/// Version, level, what is changed in both members, and what is said.
type Case = (&'static str, i32, fn(&mut Member), Kind, &'static str);

#[test]
fn what_is_not_opened_is_refused_by_name() {
    let cases: &[Case] = &[
        ("1.2", 4, |_| {}, Kind::Unsupported, "RAID 4"),
        ("1.2", 5, |_| {}, Kind::Unsupported, "RAID 5"),
        ("1.0", 6, |_| {}, Kind::Unsupported, "RAID 6"),
        ("0.90", 10, |_| {}, Kind::Unsupported, "RAID 10"),
        ("1.1", -4, |_| {}, Kind::Unsupported, "multipath"),
        ("1.2", 77, |_| {}, Kind::Unsupported, "RAID 77"),
        (
            "1.2",
            1,
            |member| member.features = 4,
            Kind::Unsupported,
            "reshaped",
        ),
        (
            "1.2",
            1,
            |member| member.features = 16,
            Kind::Unsupported,
            "replaced",
        ),
        (
            "1.2",
            1,
            |member| member.features = 256,
            Kind::Unsupported,
            "cluster",
        ),
        (
            "1.2",
            1,
            |member| member.features = 512,
            Kind::Unsupported,
            "journal",
        ),
        (
            "1.2",
            1,
            |member| member.features = 1024,
            Kind::Unsupported,
            "parity log",
        ),
        (
            "1.2",
            1,
            |member| member.features = 0x8000_0000,
            Kind::Unsupported,
            "unknown features",
        ),
        (
            "1.2",
            0,
            |member| member.chunk = 0,
            Kind::Corrupt,
            "chunks of 0",
        ),
        (
            "1.2",
            1,
            |member| member.places = 0,
            Kind::Corrupt,
            "no members",
        ),
        (
            "1.2",
            1,
            |member| member.places = 3,
            Kind::Unsupported,
            "degraded",
        ),
        (
            "1.2",
            0,
            |member| member.places = 3,
            Kind::Unsupported,
            "incomplete",
        ),
        (
            "1.2",
            -1,
            |member| member.places = 40,
            Kind::Unsupported,
            "incomplete",
        ),
        (
            "1.2",
            1,
            |member| member.places = 100_000,
            Kind::Corrupt,
            "100000 members",
        ),
        (
            "0.90",
            1,
            |member| member.places = 28,
            Kind::Corrupt,
            "28 members",
        ),
        (
            "1.2",
            1,
            |member| member.places = 1,
            Kind::Corrupt,
            "place 1 of an array of 1",
        ),
        (
            "1.2",
            1,
            |member| member.size += 1,
            Kind::Corrupt,
            "for an array of",
        ),
        (
            "1.2",
            1,
            |member| member.size = u64::MAX,
            Kind::Corrupt,
            "sectors",
        ),
        (
            "1.2",
            1,
            |member| member.roles = vec![0, 0],
            Kind::Corrupt,
            "both in place 0",
        ),
        (
            "1.2",
            1,
            |member| member.roles = vec![SPARE, SPARE],
            Kind::Unsupported,
            "incomplete",
        ),
        (
            "1.2",
            1,
            |member| member.roles = vec![FAULTY, FAULTY],
            Kind::Unsupported,
            "incomplete",
        ),
        (
            "1.2",
            1,
            |member| member.roles = vec![],
            Kind::Unsupported,
            "incomplete",
        ),
        (
            "1.2",
            1,
            |member| member.features = 8,
            Kind::Unsupported,
            "list of bad blocks",
        ),
    ];
    for (version, level, change, kind, words) in cases {
        let mut image = pair(version, *level, change);
        if *words == "list of bad blocks" {
            // The first entry says that something is bad.
            for start in [32768, 32768 + 16384 + 65536] {
                let at = start + 4096;
                image[at + 186..at + 188].copy_from_slice(&1_u16.to_le_bytes());
                image[at + 188..at + 192].copy_from_slice(&8_i32.to_le_bytes());
                image[at + 4096..at + 4104].copy_from_slice(&0x401_u64.to_le_bytes());
                mend_new(&mut image[at..at + 4096]);
            }
        }
        let (found, report) = refused(&image);
        assert_eq!(found, *kind, "{words}: {report}");
        assert!(report.contains(words), "{words}: {report}");
    }
}

#[test]
fn members_that_disagree_are_corrupt() {
    let changes: [fn(&mut Member); 3] = [
        |member| member.chunk = 16,
        |member| member.level = 0,
        |member| member.size -= 8,
    ];
    for change in changes {
        let mut second = member("1.2", 1, 1);
        change(&mut second);
        let image = disk(&[member("1.2", 1, 0).image(), second.image()], 0xfd);
        let (kind, words) = refused(&image);
        assert_eq!(kind, Kind::Corrupt, "{words}");
        assert!(words.contains("disagree"), "{words}");
    }
}

#[test]
fn parameters_that_mean_nothing_are_refused() {
    let image = pair("1.2", 1, |_| {});
    for args in [
        [("degraded", "maybe")],
        [("layout", "odd")],
        [("array", "\u{1b}[2J")],
    ] {
        let error = open(&image, &args).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange, "{error:?}");
        assert!(!error.to_string().contains('\u{1b}'), "{error}");
    }
}
