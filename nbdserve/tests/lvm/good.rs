//! Sound groups.

use std::fs;
use std::sync::Arc;

use nbdserve::plan::{self, LayerSpec, Pick, Purpose, Request};
use nbdserve::secret::{OneSecret, Secret};
use nbdserve::source::Memory;
use nbdserve::testing::{Counting, StrictDisk, conformance, disk_like, noise, tools};
use nbdserve::{ByteRange, Kind};

use super::forge::{DATA, EXTENT, disk, group, id, logical, physical, physical_at, segment};
use super::{cx, open, open_on, probe, refused};

/// Two physical volumes as partitions, with volumes of all sorts; and what the volumes hold.
struct Sample {
    disk: Vec<u8>,
    volumes: Vec<(&'static str, Vec<u8>)>,
}

/// The bytes of extents, by the number of the physical volume.
fn extents(pvs: &[(usize, Vec<u8>)], pv: usize, first: usize, count: usize) -> &[u8] {
    let image = &pvs.iter().find(|(number, _)| *number == pv).unwrap().1;
    &image[DATA + first * EXTENT..][..count * EXTENT]
}

/// What columns hold in turns of `chunk` bytes.
fn in_turns(columns: &[&[u8]], chunk: usize) -> Vec<u8> {
    let turns = columns[0].len() / chunk;
    let turn = |at: usize| {
        columns
            .iter()
            .flat_map(move |column| &column[at * chunk..][..chunk])
    };
    (0..turns).flat_map(turn).copied().collect()
}

fn sample() -> Sample {
    let text = [
        logical("plain", 50, &[segment(1, 0, 3, &[(0, 2)], 0)]),
        logical(
            "parts",
            51,
            &[
                segment(1, 0, 1, &[(1, 7)], 0),
                segment(2, 1, 2, &[(0, 0)], 0),
                segment(3, 3, 4, &[(1, 0), (0, 8)], 8),
            ],
        ),
        logical("two", 52, &[segment(1, 0, 4, &[(1, 2), (0, 5)], 1)]),
        logical(
            "three.-x_",
            53,
            &[segment(1, 0, 3, &[(0, 7), (1, 4), (1, 5)], 16)],
        ),
    ];
    let text = group("my-vg", 7, &[(0, 10), (1, 8)], &text.concat());
    let mut pvs = vec![(0, physical(0, 10, &text)), (1, physical(1, 8, &text))];
    for (number, image) in &mut pvs {
        let len = image.len() - DATA;
        image[DATA..].copy_from_slice(&disk_like(len, *number as u64));
    }
    let of = |pv, first, count| extents(&pvs, pv, first, count);
    let volumes = vec![
        ("plain", of(0, 2, 3).to_vec()),
        (
            "parts",
            [
                of(1, 7, 1),
                of(0, 0, 2),
                &in_turns(&[of(1, 0, 2), of(0, 8, 2)], 8 * 512),
            ]
            .concat(),
        ),
        ("two", in_turns(&[of(1, 2, 2), of(0, 5, 2)], 512)),
        (
            "three.-x_",
            in_turns(&[of(0, 7, 1), of(1, 4, 1), of(1, 5, 1)], 16 * 512),
        ),
    ];
    let images: Vec<Vec<u8>> = pvs.iter().map(|(_, image)| image.clone()).collect();
    Sample {
        disk: disk(&images),
        volumes,
    }
}

#[test]
fn the_suite_holds_on_volumes_of_one_and_of_many_segments() {
    let sample = sample();
    for (name, bytes) in &sample.volumes {
        conformance::check(|| (open(&sample.disk, name).unwrap(), bytes.clone()));
        conformance::check_errors(&format!("lvm:my-vg/{name}"), &sample.disk, |below| {
            open_on(below, name)
        });
    }
}

#[test]
fn the_suite_of_writers_holds_and_neighbours_are_untouched() {
    let sample = sample();
    for (name, bytes) in &sample.volumes {
        for min_block in [1, 512, 4096] {
            conformance::check_writer(|| {
                let (below, _) = StrictDisk::new(min_block).volume(sample.disk.clone());
                (open_on(&below, name).unwrap(), bytes.clone())
            });
        }
        // All of one volume is overwritten: the others stay.
        let (below, state) = StrictDisk::new(512).volume(sample.disk.clone());
        let volume = open_on(&below, name).unwrap();
        let new = noise(bytes.len(), 99);
        let writer = volume.need_writer().unwrap();
        writer.write_at(&new, 0, true).unwrap();
        assert_eq!(state.durable(), state.bytes(), "FUA is passed on");
        let disk = state.bytes();
        for (other, held) in &sample.volumes {
            let found = conformance::read_all(&open(&disk, other).unwrap());
            assert!(
                found
                    == if other == name {
                        new.clone()
                    } else {
                        held.clone()
                    },
                "{other}"
            );
        }
        let differ = disk
            .iter()
            .zip(&sample.disk)
            .filter(|(one, two)| one != two);
        assert!(differ.count() <= bytes.len());
    }
}

#[test]
fn names_of_all_sorts_are_found_and_a_plan_keeps_the_full_one() {
    let sample = sample();
    for name in [
        "my-vg/three.-x_",
        "three.-x_",
        "/dev/my-vg/three.-x_",
        "/dev/mapper/my--vg-three.--x_",
        &id(53),
        &super::forge::dashed(53),
    ] {
        let request = Request {
            layers: Vec::new(),
            pick: Pick::Partition(name.to_owned()),
            purpose: Purpose::Bytes,
            ..Request::default()
        };
        let source = Memory::volume(sample.disk.clone());
        let resolved = plan::resolve(source, "disk", &request, &|_, _| None, &cx()).unwrap();
        let layers: Vec<String> = resolved
            .plan
            .layers
            .iter()
            .map(LayerSpec::to_string)
            .collect();
        assert_eq!(layers, ["lvm:my-vg/three.-x_"], "{name}");
        assert!(conformance::read_all(&resolved.volume) == sample.volumes[3].1);
        // A run of its own could be left to the kernel; this one is in turns.
        assert_eq!(resolved.source_range, None);
    }
    let error = open(&sample.disk, "vg/none").unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    let text = error.to_string();
    assert!(
        text.contains("my-vg/plain, my-vg/parts, my-vg/two"),
        "{text}"
    );
    let args = nbdserve::layer::Args::new();
    let below = Memory::volume(sample.disk.clone());
    let error = (nbdserve::layer::lvm::LVM.open)(&below, &args, &cx()).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange, "{error:?}");
}

#[test]
fn a_volume_that_is_one_run_is_a_range_of_the_image() {
    let sample = sample();
    let request = Request {
        layers: Vec::new(),
        pick: Pick::Partition("plain".to_owned()),
        purpose: Purpose::Bytes,
        ..Request::default()
    };
    let source = Memory::volume(sample.disk.clone());
    let resolved = plan::resolve(source, "disk", &request, &|_, _| None, &cx()).unwrap();
    let range = resolved.source_range.unwrap();
    assert_eq!(
        range,
        ByteRange::new(32768 + (DATA + 2 * EXTENT) as u64, 3 * EXTENT as u64).unwrap()
    );
}

#[test]
fn a_volume_by_itself_is_one_too_and_is_recognised() {
    let text = logical("lv", 50, &[segment(1, 0, 2, &[(0, 1)], 0)]);
    let mut image = physical(0, 4, &group("vg", 1, &[(0, 4)], &text));
    image[DATA + EXTENT..][..5].copy_from_slice(b"hello");
    assert!(matches!(
        probe(&image),
        nbdserve::layer::Verdict::Yes { .. }
    ));
    assert_eq!(
        open(&image, "lv").unwrap().read_vec(0, 5).unwrap(),
        b"hello"
    );
    let resolved = plan::inspect(Memory::volume(image.clone()), "image", &[], &cx()).unwrap();
    let text = plan::Info::new(&resolved).to_string();
    assert!(
        text.contains("vg/lv") && text.contains("LVM2 physical volume"),
        "{text}"
    );
    // The only one is taken without a name; it holds no file system.
    let request = Request::default();
    let error = plan::resolve(
        Memory::volume(image),
        "image",
        &request,
        &|_, _| None,
        &cx(),
    )
    .unwrap_err();
    assert_eq!(error.kind(), Kind::NotThisFormat);
    assert!(
        error.to_string().contains("no volume holds a file system"),
        "{error}"
    );
}

#[test]
fn a_text_that_wraps_around_in_its_area_is_read() {
    let text = logical("lv", 50, &[segment(1, 0, 2, &[(0, 1)], 0)]);
    let text = group("vg", 1, &[(0, 4)], &text);
    let area = super::forge::AREA_LEN;
    for offset in [
        512,
        area - 1,
        area - 512,
        area - text.len(),
        area - text.len() - 1,
        area - 700,
    ] {
        let image = physical_at(0, 4, &text, offset);
        assert_eq!(
            open(&image, "lv").unwrap().size(),
            2 * EXTENT as u64,
            "{offset}"
        );
    }
}

#[test]
fn the_newest_text_wins_and_a_damaged_copy_does_not_matter() {
    let lv = |count| logical("lv", 50, &[segment(1, 0, count, &[(0, 0)], 0)]);
    let text = |seqno, count| group("vg", seqno, &[(0, 4), (1, 4)], &lv(count));
    for (one, two) in [((5, 1), (6, 3)), ((6, 3), (5, 1)), ((6, 3), (6, 3))] {
        let first = physical(0, 4, &text(one.0, one.1));
        let second = physical(1, 4, &text(two.0, two.1));
        let image = disk(&[first, second]);
        assert_eq!(open(&image, "lv").unwrap().size(), 3 * EXTENT as u64);
    }
    let whole = physical(1, 4, &text(6, 3));
    let mut damaged = physical(0, 4, &text(6, 3));
    damaged[4096 + 600] ^= 1;
    let image = disk(&[damaged.clone(), whole]);
    assert_eq!(open(&image, "lv").unwrap().size(), 3 * EXTENT as u64);
    let mut other = physical(1, 4, &text(6, 3));
    other[4096 + 700] ^= 1;
    let (kind, text) = refused(&disk(&[damaged, other]), "lv");
    assert_eq!(kind, Kind::Corrupt);
    assert!(text.contains("checksum"), "{text}");
    // One without a copy is known by the others.
    let lv = logical("lv", 50, &[segment(1, 0, 4, &[(0, 0), (1, 0)], 8)]);
    let text = group("vg", 1, &[(0, 4), (1, 4)], &lv);
    let image = disk(&[physical(0, 4, &text), physical(1, 4, "")]);
    assert_eq!(open(&image, "lv").unwrap().size(), 4 * EXTENT as u64);
}

#[test]
fn opening_reads_little_and_reading_only_what_is_asked_for() {
    let sample = sample();
    let (below, counts) = Counting::volume(Memory::volume(sample.disk.clone()));
    let volume = open_on(&below, "two").unwrap();
    assert!(counts.read_bytes() < 100_000, "{}", counts.read_bytes());
    counts.reset();
    volume.read_vec(3 * 512, 512).unwrap();
    assert_eq!(counts.read_bytes(), 512);
    volume.will_need(ByteRange::between(0, volume.size()));
    assert_eq!(counts.hints(), 2, "one for each column");
    assert_eq!(counts.hint_sets().len(), 1);
}

#[test]
fn a_group_in_a_locked_partition_is_found_by_the_name_of_a_volume() {
    let lv = logical("root", 50, &[segment(1, 0, 2, &[(0, 1)], 0)]);
    let mut image = physical(0, 4, &group("vg", 1, &[(0, 4)], &lv));
    let held = noise(2 * EXTENT, 5);
    image[DATA + EXTENT..][..held.len()].copy_from_slice(&held);
    let dir = tempfile::tempdir().unwrap();
    let [plain, key, luks] = ["plain", "key", "luks"].map(|name| dir.path().join(name));
    fs::write(&plain, &image).unwrap();
    fs::write(&key, "swordfish").unwrap();
    let mut command = tools::command("qemu-img");
    command.arg("convert");
    command.args(["--object", &format!("secret,id=key,file={}", key.display())]);
    command.args([
        "-f",
        "raw",
        "-O",
        "luks",
        "-o",
        "key-secret=key,iter-time=10",
    ]);
    tools::run_command(command.arg(&plain).arg(&luks));
    let mut boot = vec![0; 65536];
    boot[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
    boot[1028] = 1;
    let disk = disk(&[boot, fs::read(&luks).unwrap()]);
    let mut cx = cx();
    cx.secrets = Arc::new(OneSecret(Secret::new(b"swordfish".to_vec())));
    for name in ["vg/root", "/dev/vg/root", "/dev/mapper/vg-root"] {
        let request = Request {
            layers: Vec::new(),
            pick: Pick::Partition(name.to_owned()),
            purpose: Purpose::Bytes,
            ..Request::default()
        };
        let source = Memory::volume(disk.clone());
        let resolved = plan::resolve(source, "disk", &request, &|_, _| None, &cx).unwrap();
        let layers: Vec<&str> = resolved.plan.layers.iter().map(LayerSpec::name).collect();
        assert_eq!(layers, ["partition", "luks", "lvm"], "{name}");
        assert!(conformance::read_all(&resolved.volume) == held);
    }
    let request = Request {
        pick: Pick::Partition("vg/other".to_owned()),
        ..Request::default()
    };
    let source = Memory::volume(disk);
    let error = plan::resolve(source, "disk", &request, &|_, _| None, &cx).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfRange);
    assert!(error.to_string().contains("vg/root"), "{error}");
}
