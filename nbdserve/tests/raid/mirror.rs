//! Mirrors that are written: all members hold the same, and a crash in the middle is noticed.

use std::fs;
use std::time::{Duration, Instant};

use nbdserve::plan::{self, Info};
use nbdserve::source::Memory;
use nbdserve::testing::conformance::{check_writer, read_all};
use nbdserve::testing::{Faulty, Recorder, Rng, noise, tools};
use nbdserve::{ByteRange, Kind, Volume, ZeroOpts};

use crate::forge::{FAULTY, Member, SPARE, disk, mend_new, mend_old};
use crate::{cx, open_on};

const VERSIONS: [&str; 4] = ["0.90", "1.0", "1.1", "1.2"];
const LEN: usize = 64 << 10;
/// Where the first partition of [`disk`] begins.
const FIRST: usize = 32768;

fn mirror(version: &'static str, count: u16) -> Vec<Member> {
    let data = noise(LEN, 1);
    let member = |number| Member::new(version, 1, number, count, data.clone());
    (0..u32::from(count)).map(member).collect()
}

fn image(members: &[Member]) -> Vec<u8> {
    let all: Vec<_> = members.iter().map(Member::image).collect();
    disk(&all, 0xfd)
}

/// What each member holds.
fn contents(image: &[u8], members: &[Member]) -> Vec<Vec<u8>> {
    let mut start = FIRST;
    let each = members.iter().map(|member| {
        let data = image[start + member.data_at()..][..LEN].to_vec();
        start += member.image().len();
        data
    });
    each.collect()
}

/// What mdadm says of each member.
fn examined(image: &[u8], members: &[Member]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("member");
    let mut start = FIRST;
    let each = members.iter().map(|member| {
        let len = member.image().len();
        fs::write(&path, &image[start..start + len]).unwrap();
        start += len;
        tools::run("mdadm", ["--examine".as_ref(), path.as_os_str()])
    });
    each.collect()
}

/// Why it is not written.
#[track_caller]
fn read_only(image: &[u8]) -> String {
    let volume = open_on(&Memory::volume(image.to_vec()), &[]).unwrap();
    assert!(volume.writer().is_none());
    let why = volume.read_only_because().expect("it says why");
    let error = volume.need_writer().unwrap_err();
    assert_eq!(error.kind(), Kind::ReadOnly);
    assert!(error.to_string().contains(&why), "{error}");
    why
}

#[test]
fn the_suite_holds_for_mirrors_of_all_versions() {
    for version in VERSIONS {
        let members = mirror(version, 2);
        let image = image(&members);
        let last = std::cell::RefCell::new(None);
        check_writer(|| {
            let below = Memory::volume(image.clone());
            let volume = open_on(&below, &[]).unwrap();
            *last.borrow_mut() = Some(below);
            (volume, members[0].data.clone())
        });
        let below = last.borrow().clone().unwrap();
        let contents = contents(&read_all(&below), &members);
        assert!(contents[0] == contents[1], "{version}");
        assert!(contents[0] != members[0].data, "{version}: it was written");
    }
}

#[test]
fn mdadm_sees_members_that_are_active_and_then_clean() {
    for version in VERSIONS {
        let members = mirror(version, 3);
        let (below, disk) = Recorder::volume(image(&members));
        let volume = open_on(&below, &[]).unwrap();
        let writer = volume.writer().unwrap();
        assert_eq!(disk.events(), 0, "opening changes nothing");
        let bytes = noise(5000, 2);
        writer.write_at(&bytes, 777, false).unwrap();
        let zeroed = ByteRange::between(50_000, 60_000);
        let _ = writer.zero(zeroed, ZeroOpts::default()).unwrap();
        let during = disk.after(disk.events());
        volume.close().unwrap();
        drop(volume);
        let after = disk.after(disk.events());
        for (image, state, events) in [(&during, "active", 11), (&after, "clean", 12)] {
            for text in examined(image, &members) {
                let has = |name: &str, value: &str| {
                    let mut lines = text.lines().filter_map(|line| line.split_once(" : "));
                    lines.any(|(key, found)| key.trim() == name && found.trim() == value)
                };
                assert!(has("State", state), "{version}: {text}");
                let count = match version {
                    "0.90" => format!("0.{events}"),
                    _ => events.to_string(),
                };
                assert!(
                    has("Events", &count) || has("Events", &events.to_string()),
                    "{version}: {text}"
                );
                assert!(text.contains("- correct"), "{version}: {text}");
            }
        }
        let mut expected = members[0].data.clone();
        expected[777..777 + bytes.len()].copy_from_slice(&bytes);
        expected[50_000..60_000].fill(0);
        for found in contents(&after, &members) {
            assert!(found == expected, "{version}");
        }
        // And it is written again.
        let below = Memory::volume(after);
        assert!(open_on(&below, &[]).unwrap().writer().is_some());
    }
}

/// Writes and flushes here and there, for a while; the array at each flush, and how much had happened
/// to the disk then.
fn scribble(volume: &Volume, disk: &Recorder, start: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut rng = Rng::new(7);
    let mut bytes = start.to_vec();
    let mut flushed = vec![(0, bytes.clone())];
    let writer = volume.writer().unwrap();
    for step in 0..40 {
        let range = rng.range(LEN as u64, 9000);
        let (from, to) = (range.start() as usize, range.end() as usize);
        match rng.below(6) {
            0 => {
                let _ = writer.zero(range, ZeroOpts::default()).unwrap();
                bytes[from..to].fill(0);
            }
            1 => {
                writer.flush().unwrap();
                flushed.push((disk.events(), bytes.clone()));
            }
            _ => {
                let piece = noise(to - from, 100 + step);
                writer.write_at(&piece, range.start(), false).unwrap();
                bytes[from..to].copy_from_slice(&piece);
            }
        }
        if step == 20 {
            // In the middle too members are made the same.
            volume.close().unwrap();
            flushed.push((disk.events(), bytes.clone()));
        }
    }
    volume.close().unwrap();
    flushed.push((disk.events(), bytes));
    flushed
}

#[test]
fn members_that_differ_after_a_crash_are_never_taken_for_the_same() {
    for version in VERSIONS {
        let members = mirror(version, 2);
        let (below, disk) = Recorder::volume(image(&members));
        let volume = open_on(&below, &[]).unwrap();
        scribble(&volume, &disk, &members[0].data);
        drop(volume);
        let (mut dirty, mut writable) = (0, 0);
        for cut in 0..=disk.events() {
            for seed in 0..3 {
                let image = match seed {
                    0 => disk.after(cut),
                    seed => disk.after_power_failure(cut, seed + cut as u64),
                };
                let below = Memory::volume(image.clone());
                let volume = open_on(&below, &[]).unwrap();
                let contents = contents(&image, &members);
                if volume.writer().is_some() {
                    writable += 1;
                    assert!(contents[0] == contents[1], "{version}: cut {cut}, {seed}");
                } else {
                    dirty += 1;
                    let why = volume.read_only_because().unwrap();
                    assert!(
                        why.contains("was not stopped") || why.contains("events"),
                        "{why}"
                    );
                }
            }
        }
        assert!(dirty > 40 && writable > 8, "{version}: {dirty} {writable}");
    }
}

#[test]
fn what_was_flushed_is_on_all_members() {
    for version in VERSIONS {
        let members = mirror(version, 2);
        let (below, disk) = Recorder::volume(image(&members));
        let volume = open_on(&below, &[]).unwrap();
        let flushed = scribble(&volume, &disk, &members[0].data);
        for (at, bytes) in &flushed {
            for seed in 1..4 {
                for found in contents(&disk.after_power_failure(*at, seed), &members) {
                    assert!(found == *bytes, "{version}: {at}");
                }
            }
        }
    }
}

#[test]
fn what_may_differ_is_said_and_not_written() {
    for version in VERSIONS {
        let members = mirror(version, 2);
        let (below, disk) = Recorder::volume(image(&members));
        let volume = open_on(&below, &[]).unwrap();
        let writer = volume.writer().unwrap();
        writer.write_at(&noise(4096, 3), 0, true).unwrap();
        let image = disk.after(disk.events());
        let why = read_only(&image);
        assert!(
            why.contains("partition 1 was not stopped") && why.contains("mdadm --assemble"),
            "{version}: {why}"
        );
        let resolved = plan::inspect(Memory::volume(image), "disk", &[], &cx()).unwrap();
        let text = Info::new(&resolved).to_string();
        assert!(text.contains("was not stopped"), "{text}");
    }
}

#[test]
fn degraded_and_unequal_mirrors_are_not_written_and_say_why() {
    for version in VERSIONS {
        let mut members = mirror(version, 2);
        members[1].events = 11;
        let why = read_only(&image(&members));
        assert!(
            why.contains("11 events") && why.contains("partition"),
            "{version}: {why}"
        );
        members.pop();
        let image = image(&members);
        let below = Memory::volume(image);
        let volume = open_on(&below, &[("degraded", "yes")]).unwrap();
        assert!(volume.writer().is_none());
        let why = volume.read_only_because().unwrap();
        assert!(why.contains("degraded: the member in place 1"), "{why}");
    }
}

#[test]
fn spares_and_members_that_were_left_out_are_not_touched() {
    let mut members = mirror("1.2", 4);
    for (number, member) in members.iter_mut().enumerate() {
        member.places = 2;
        member.roles = vec![0, 1, SPARE, FAULTY];
        if number > 1 {
            member.data = noise(LEN, 9);
            member.events = 10 - number as u64;
        }
    }
    let before = image(&members);
    let below = Memory::volume(before.clone());
    let volume = open_on(&below, &[]).unwrap();
    let writer = volume.writer().unwrap();
    writer.write_at(&noise(LEN, 5), 0, false).unwrap();
    volume.close().unwrap();
    let after = read_all(&below);
    let third = FIRST + 2 * members[0].image().len();
    assert!(after[third..] == before[third..]);
    let contents = contents(&after, &members);
    assert!(contents[0] == noise(LEN, 5) && contents[1] == contents[0]);
}

#[test]
fn a_bitmap_with_more_events_than_the_superblock_is_not_trusted() {
    for (version, bitmap_at) in [
        ("0.90", 4096_i64),
        ("1.0", -4096),
        ("1.1", 8192),
        ("1.2", 4096),
    ] {
        let members = mirror(version, 2);
        let plain = image(&members);
        for (magic, events, words) in [
            (&b"bitm"[..], 10_u64, None),
            (b"bitm", 9, None),
            (b"bitm", 11, Some("11 events")),
            (b"none", 10, Some("damaged")),
        ] {
            let mut image = plain.clone();
            let mut start = FIRST;
            for member in &members {
                let at = start + member.superblock_at();
                start += member.image().len();
                let superblock = &mut image[at..at + 4096];
                if version == "0.90" {
                    superblock[133] |= 1;
                    mend_old(superblock);
                } else {
                    superblock[8] |= 1;
                    let sectors = i32::try_from(bitmap_at / 512).unwrap();
                    superblock[96..100].copy_from_slice(&sectors.to_le_bytes());
                    mend_new(superblock);
                }
                let bitmap = at.checked_add_signed(bitmap_at as isize).unwrap();
                image[bitmap..bitmap + 4].copy_from_slice(magic);
                image[bitmap + 24..bitmap + 32].copy_from_slice(&events.to_le_bytes());
            }
            match words {
                None => {
                    let volume = open_on(&Memory::volume(image), &[]).unwrap();
                    assert!(volume.writer().is_some(), "{version}");
                }
                Some(words) => {
                    let why = read_only(&image);
                    assert!(why.contains("bitmap") && why.contains(words), "{why}");
                }
            }
        }
    }
}

#[test]
fn data_that_overlaps_a_superblock_is_not_written() {
    let members = mirror("1.2", 2);
    let mut image = image(&members);
    let superblock = &mut image[FIRST + 4096..FIRST + 8192];
    // Its data begins where the member does.
    superblock[128..136].copy_from_slice(&0_u64.to_le_bytes());
    mend_new(superblock);
    let why = read_only(&image);
    assert!(why.contains("overlap"), "{why}");
}

#[test]
fn the_count_of_events_has_an_end() {
    let mut members = mirror("1.2", 2);
    for member in &mut members {
        member.events = u64::MAX;
    }
    let below = Memory::volume(image(&members));
    let volume = open_on(&below, &[]).unwrap();
    let error = volume.need_writer().unwrap().write_at(&[1], 0, false);
    assert_eq!(error.unwrap_err().kind(), Kind::Limit);
    assert!(read_all(&volume) == members[0].data, "nothing was written");
}

#[test]
fn a_superblock_that_somebody_else_changes_is_left_alone() {
    let members = mirror("1.2", 2);
    let below = Memory::volume(image(&members));
    let volume = open_on(&below, &[]).unwrap();
    let other = open_on(&below, &[]).unwrap();
    let writer = other.writer().unwrap();
    writer.write_at(&[1; 512], 0, false).unwrap();
    other.close().unwrap();
    let writer = volume.need_writer().unwrap();
    let error = writer.write_at(&[2; 512], 0, false).unwrap_err();
    assert_eq!(error.kind(), Kind::Changed, "{error:?}");
    assert_eq!(volume.read_vec(0, 512).unwrap(), vec![1; 512]);
}

#[test]
fn a_write_that_fails_leaves_the_members_marked() {
    for version in VERSIONS {
        let members = mirror(version, 2);
        let below = Memory::volume(image(&members));
        let (faulty, faults) = Faulty::volume(below.clone());
        let volume = open_on(&faulty, &[]).unwrap();
        let writer = volume.writer().unwrap();
        writer.write_at(&noise(4096, 1), 0, false).unwrap();
        let second = FIRST + members[0].image().len() + members[1].data_at();
        faults.fail_bytes(ByteRange::new(second as u64, 4096).unwrap(), Kind::Io);
        let error = writer.write_at(&noise(4096, 2), 0, false).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        faults.clear();
        volume.close().unwrap();
        drop(volume);
        let image = read_all(&below);
        let contents = contents(&image, &members);
        assert!(contents[0] != contents[1], "{version}");
        assert!(read_only(&image).contains("was not stopped"), "{version}");
    }
}

#[test]
fn members_are_clean_again_when_nothing_is_written_for_a_moment() {
    let members = mirror("1.2", 2);
    let (below, disk) = Recorder::volume(image(&members));
    let volume = open_on(&below, &[]).unwrap();
    for round in 1..3_u64 {
        let writer = volume.writer().unwrap();
        writer.write_at(&noise(4096, round), 0, false).unwrap();
        assert!(read_only(&disk.after(disk.events())).contains("was not stopped"));
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let below = Memory::volume(disk.after(disk.events()));
            if open_on(&below, &[]).unwrap().writer().is_some() {
                break;
            }
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let text = examined(&disk.after(disk.events()), &members).concat();
    assert!(text.contains("Events : 14"), "{text}");
}
