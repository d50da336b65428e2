//! Sound arrays.

use std::fs;

use nbdserve::plan::{self, Content, Info, Pick, Purpose, Request};
use nbdserve::source::{File, Memory, OpenMode};
use nbdserve::testing::{Faulty, StrictDisk, conformance, disk_like, noise, tools};
use nbdserve::{Kind, Volume};

use super::forge::{FAULTY, MIB, Member, SPARE, disk};
use super::{cx, open, open_on, refused};

const VERSIONS: [&str; 4] = ["0.90", "1.0", "1.1", "1.2"];

/// Members with data of so many bytes each.
fn members(version: &'static str, level: i32, lens: &[usize]) -> Vec<Member> {
    let count = u16::try_from(lens.len()).unwrap();
    let one = |(number, len): (u32, &usize)| {
        let data = disk_like(*len, u64::from(number) + 1);
        Member::new(version, level, number, count, data)
    };
    (0..).zip(lens).map(one).collect()
}

fn images(members: &[Member]) -> Vec<u8> {
    let images: Vec<_> = members.iter().map(Member::image).collect();
    disk(&images, 0xfd)
}

/// The data of a member as the array uses it: all up to the superblock for 0.90.
fn data(member: &Member) -> Vec<u8> {
    match member.version {
        "0.90" => member.image()[..member.superblock_at()].to_vec(),
        _ => member.data.clone(),
    }
}

/// RAID 0 by its description: rows of chunks over the members that are long enough; `original` counts
/// the turns of a row from the start of the array.
fn striped(members: &[Member], original: bool) -> Vec<u8> {
    let chunk = members[0].chunk as usize * 512;
    let columns: Vec<Vec<u8>> = members.iter().map(data).collect();
    let mut out = Vec::new();
    for row in 0.. {
        let there: Vec<&[u8]> = columns
            .iter()
            .filter_map(|column| column.get(row * chunk..(row + 1) * chunk))
            .collect();
        if there.is_empty() {
            break;
        }
        for turn in 0..there.len() {
            let index = match original {
                true => (out.len() / chunk) % there.len(),
                false => turn,
            };
            out.extend(there[index]);
        }
    }
    out
}

/// An array of each level, and what it holds.
fn arrays(version: &'static str) -> Vec<(i32, Vec<u8>, Vec<u8>)> {
    let even = members(version, 0, &[65536, 65536, 65536]);
    let linear = members(version, -1, &[65536, 65536 * 3, 65536 * 2]);
    let mut mirror = members(version, 1, &[65536 * 2, 65536 * 2]);
    mirror[1].data = mirror[0].data.clone();
    vec![
        (0, images(&even), striped(&even, false)),
        (-1, images(&linear), linear.iter().flat_map(data).collect()),
        (1, images(&mirror), mirror[0].data.clone()),
    ]
}

#[test]
fn the_suite_holds_for_all_levels() {
    for (_, image, expected) in arrays("1.2") {
        conformance::check(|| (open(&image, &[]).unwrap(), expected.clone()));
        conformance::check_writer(|| {
            let (below, _) = StrictDisk::new(512).volume(image.clone());
            (open_on(&below, &[]).unwrap(), expected.clone())
        });
    }
    let name = "raid:30313233:34353637:38396162:63646566";
    let (_, image, _) = &arrays("1.2")[0];
    conformance::check_errors(name, image, |below| open_on(below, &[]));
}

#[test]
fn all_versions_hold_the_same() {
    for version in VERSIONS {
        for (level, image, expected) in arrays(version) {
            let read = conformance::read_all(&open(&image, &[]).unwrap());
            assert!(read == expected, "{version}, level {level}");
        }
    }
}

#[test]
fn unequal_members_are_used_in_the_way_that_is_said() {
    for (layout, name) in [(1, "original"), (2, "alternate")] {
        for lens in [[5, 9, 7], [9, 5, 5], [3, 8, 8], [4, 6, 9], [1, 2, 3]] {
            let lens = lens.map(|chunks| chunks * 4096);
            let mut unequal = members("1.2", 0, &lens);
            for member in &mut unequal {
                member.layout = layout;
            }
            let expected = striped(&unequal, layout == 1);
            let image = images(&unequal);
            assert!(conformance::read_all(&open(&image, &[]).unwrap()) == expected);
            // Without the word of the superblock the user has to say it.
            for member in &mut unequal {
                member.features = 0;
            }
            let image = images(&unequal);
            if lens[1] == lens[2] && lens[0] > lens[1] {
                // The rest is on one member: there is only one way.
                assert!(open(&image, &[]).is_ok());
                continue;
            }
            let (kind, words) = refused(&image);
            assert_eq!(kind, Kind::Unsupported);
            assert!(
                words.contains("unequal") && words.contains("layout=alternate"),
                "{words}"
            );
            let volume = open(&image, &[("layout", name)]).unwrap();
            assert!(
                conformance::read_all(&volume) == expected,
                "{name} {lens:?}"
            );
        }
    }
}

#[test]
fn the_suite_holds_for_unequal_members() {
    let mut unequal = members("1.2", 0, &[3 * 4096, 8 * 4096, 6 * 4096]);
    for member in &mut unequal {
        member.layout = 1;
    }
    let (image, expected) = (images(&unequal), striped(&unequal, true));
    conformance::check(|| (open(&image, &[]).unwrap(), expected.clone()));
}

#[test]
fn mdadm_reads_the_superblocks_that_these_tests_make() {
    let dir = tempfile::tempdir().unwrap();
    for version in VERSIONS {
        for member in members(version, 1, &[MIB, MIB]) {
            let path = dir.path().join("member");
            fs::write(&path, member.image()).unwrap();
            let text = tools::run("mdadm", ["--examine".as_ref(), path.as_os_str()]);
            for word in [
                format!("Version : {version}"),
                "raid1".to_owned(),
                "- correct".to_owned(),
            ] {
                assert!(text.contains(&word), "{version}: {text}");
            }
        }
    }
}

#[test]
fn names_are_found_and_a_plan_keeps_the_uuid() {
    let image = images(&members("1.2", 0, &[65536, 65536]));
    for name in [
        "forged",
        "box:forged",
        "/dev/md/forged",
        "/dev/md127",
        "md0",
        "30313233:34353637:38396162:63646566",
        "30313233-3435-3637-3839-616263646566",
    ] {
        let request = Request {
            layers: Vec::new(),
            pick: Pick::Partition(name.to_owned()),
            purpose: Purpose::Bytes,
            ..Request::default()
        };
        let source = Memory::volume(image.clone());
        let resolved = plan::resolve(source, "disk", &request, &|_, _| None, &cx()).unwrap();
        assert_eq!(
            resolved.plan.layers[0].to_string(),
            "raid:30313233:34353637:38396162:63646566",
            "{name}"
        );
        assert_eq!(resolved.volume.size(), 131_072);
    }
    let error = open(&image, &[("array", "other")]).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    assert!(error.to_string().contains("box:forged"), "{error}");
}

/// A file system of ext4.
fn ext4() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::File::create(&path)
        .unwrap()
        .set_len(2 * MIB as u64)
        .unwrap();
    tools::run(
        "mkfs.ext4",
        [
            "-q".as_ref(),
            "-L".as_ref(),
            "inside".as_ref(),
            path.as_os_str(),
        ],
    );
    fs::read(path).unwrap()
}

#[test]
fn a_mirror_is_chosen_and_its_members_are_not_taken_for_file_systems() {
    let mut mirror = members("1.0", 1, &[2 * MIB, 2 * MIB]);
    let data = ext4();
    for member in &mut mirror {
        member.data.clone_from(&data);
    }
    let all: Vec<_> = mirror.iter().map(Member::image).collect();
    // What the table says does not matter where the members are alike.
    for kind in [0xfd, 0x83] {
        let image = disk(&all, kind);
        for pick in [Pick::Auto, Pick::Partition("LABEL=inside".to_owned())] {
            let request = Request {
                pick,
                ..Request::default()
            };
            let source = Memory::volume(image.clone());
            let resolved = plan::resolve(source, "disk", &request, &|_, _| None, &cx()).unwrap();
            assert_eq!(resolved.plan.layers.len(), 1);
            assert_eq!(resolved.plan.layers[0].name(), "raid");
            assert!(matches!(resolved.content, Content::FileSystem(_)));
        }
        let resolved = plan::inspect(Memory::volume(image), "disk", &[], &cx()).unwrap();
        let text = Info::new(&resolved).to_string();
        for word in [
            "Linux RAID member",
            "RAID 1",
            "box:forged",
            "partition 1: place 0",
            "ext4 \"inside\"",
        ] {
            assert!(text.contains(word), "{text}");
        }
    }
}

#[test]
fn members_that_are_behind_faulty_or_spare_are_left_out() {
    let sound = |number: u32, roles: &[u16], events: u64, seed: u64| {
        let mut member = Member::new("1.2", 1, number, 2, noise(65536, seed));
        member.roles = roles.to_vec();
        member.events = events;
        member
    };
    // Two in sync, a spare and one that fell behind.
    let members = [
        sound(0, &[0, 1, SPARE, FAULTY], 20, 1),
        sound(1, &[0, 1, SPARE, FAULTY], 20, 1),
        sound(2, &[0, 1, SPARE, FAULTY], 20, 2),
        sound(3, &[0, 2, SPARE, 1], 12, 3),
    ];
    let image = images(&members);
    assert!(conformance::read_all(&open(&image, &[]).unwrap()) == members[0].data);
    let resolved = plan::inspect(Memory::volume(image), "disk", &[], &cx()).unwrap();
    let text = Info::new(&resolved).to_string();
    assert!(
        text.contains("partition 3: spare") && text.contains("partition 4: faulty"),
        "{text}"
    );
    // One member is stale: what is left is degraded.
    let stale = [sound(0, &[0, 1], 20, 1), sound(1, &[0, 1], 18, 2)];
    let image = images(&stale);
    let (kind, words) = refused(&image);
    assert_eq!(kind, Kind::Unsupported);
    assert!(
        words.contains("degraded") && words.contains("degraded=yes"),
        "{words}"
    );
    let volume = open(&image, &[("degraded", "yes")]).unwrap();
    assert!(conformance::read_all(&volume) == stale[0].data);
    // By one: the machine went down between two superblocks.
    let near = [sound(0, &[0, 1], 19, 2), sound(1, &[0, 1], 20, 1)];
    assert!(conformance::read_all(&open(&images(&near), &[]).unwrap()) == near[1].data);
}

#[test]
fn a_damaged_copy_is_read_from_the_other() {
    let mut mirror = members("1.2", 1, &[65536, 65536]);
    mirror[1].data = mirror[0].data.clone();
    let image = images(&mirror);
    let (below, faults) = Faulty::volume(Memory::volume(image));
    let volume = open_on(&below, &[]).unwrap();
    let first = nbdserve::ByteRange::new(32768 + 16384, 65536).unwrap();
    faults.fail_bytes(first, Kind::Io);
    assert!(conformance::read_all(&volume) == mirror[0].data);
    faults.fail_all(Kind::Io);
    assert_eq!(volume.read_vec(0, 512).unwrap_err().kind(), Kind::Io);
}

#[test]
fn one_member_that_is_the_whole_image_is_opened() {
    for version in ["1.1", "1.2"] {
        let member = &members(version, 1, &[65536])[0];
        let request = Request {
            pick: Pick::Partition("forged".to_owned()),
            purpose: Purpose::Bytes,
            layers: Vec::new(),
            ..Request::default()
        };
        let source = Memory::volume(member.image());
        let resolved = plan::resolve(source, "image", &request, &|_, _| None, &cx()).unwrap();
        assert!(conformance::read_all(&resolved.volume) == member.data);
    }
    // Those at the end are looked for when the layer is named.
    for version in ["0.90", "1.0"] {
        let member = &members(version, 1, &[65536])[0];
        let volume = open(&member.image(), &[]).unwrap();
        assert!(conformance::read_all(&volume) == member.data);
    }
}

/// What `plan` makes of an image in a file, where looking at the ends of partitions costs nothing.
fn inspect_file(image: &[u8]) -> (plan::Resolved, String) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), image).unwrap();
    let open = || Volume::new(File::open(file.path(), OpenMode::ReadOnly).unwrap());
    let resolved = plan::inspect(open(), "disk", &[], &cx()).unwrap();
    let info = Info::new(&resolved).to_string();
    let request = Request::default();
    let resolved = plan::resolve(open(), "disk", &request, &|_, _| None, &cx()).unwrap();
    (resolved, info)
}

#[test]
fn members_that_neither_the_table_nor_their_beginning_tells_are_found_by_their_ends() {
    // Linear: the second member begins like nothing else, the first like a file system.
    let data = ext4();
    for version in ["0.90", "1.0"] {
        let mut halves = members(version, -1, &[MIB, MIB]);
        halves[0].data = data[..MIB].to_vec();
        halves[1].data = data[MIB..].to_vec();
        let all: Vec<_> = halves.iter().map(Member::image).collect();
        let (resolved, info) = inspect_file(&disk(&all, 0x83));
        assert_eq!(resolved.plan.layers.len(), 1, "{version}: {info}");
        assert_eq!(resolved.plan.layers[0].name(), "raid");
        assert!(
            info.contains("linear") && info.contains("partition 2: place 1"),
            "{info}"
        );
        assert!(
            conformance::read_all(&resolved.volume)[..data.len()] == data,
            "{version}"
        );

        // Members of a mirror whose beginnings differ, as after a crash.
        let mut mirror = members(version, 1, &[2 * MIB, 2 * MIB]);
        for member in &mut mirror {
            member.data.clone_from(&data);
        }
        mirror[1].data[0] = 1;
        let all: Vec<_> = mirror.iter().map(Member::image).collect();
        let (resolved, info) = inspect_file(&disk(&all, 0x83));
        assert_eq!(resolved.plan.layers[0].name(), "raid", "{version}: {info}");
    }
}

#[test]
fn a_superblock_at_the_end_without_its_array_does_not_hide_a_file_system() {
    let data = ext4();
    for version in ["0.90", "1.0"] {
        let mut mirror = members(version, 1, &[2 * MIB, 2 * MIB]);
        mirror[0].data.clone_from(&data);
        // The other one is on another disk, or the superblock is left from former times.
        let lone = mirror[0].image();
        let mut damaged = lone.clone();
        damaged[mirror[0].superblock_at() + 200] ^= 1;
        let mut elsewhere = lone.clone();
        elsewhere.extend([0; 65536]);
        for (member, told) in [(lone, true), (damaged, false), (elsewhere, false)] {
            let (resolved, info) = inspect_file(&disk(&[member], 0x83));
            assert_eq!(
                resolved.plan.layers[0].name(),
                "partition",
                "{version}: {info}"
            );
            assert!(matches!(resolved.content, Content::FileSystem(_)));
            let note = "of which not all is here";
            assert_eq!(info.contains(note), told, "{version}: {info}");
        }
    }
}
