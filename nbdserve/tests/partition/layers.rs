//! The layers: what they hold of the contract, what they are given.

use nbdserve::layer::{Args, LAYERS, LayerType};
use nbdserve::source::Memory;
use nbdserve::testing::{StrictDisk, conformance, noise};
use nbdserve::{ByteRange, Cx, Result, Volume};

use crate::made::{Disk, GPT, LOGICAL, SECTORS, bytes, sector, sectors};

/// Keys and values.
type LayerArgs<'a> = &'a [(&'a str, &'a str)];

/// Opens a layer by its name, as a plan does.
fn open_layer(name: &str, args: LayerArgs<'_>, below: &Volume) -> Result<Volume> {
    let layer: &LayerType = LAYERS.iter().find(|layer| layer.name == name).unwrap();
    let args: Args = args
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    let opened = (layer.open)(below, &args, &Cx::new(1 << 20));
    opened.map_err(|error| error.in_layer(layer.name))
}

#[test]
fn the_layers_keep_the_contract() {
    let gpt = Disk::new(SECTORS, GPT).bytes();
    let logical = Disk::new(SECTORS, LOGICAL).bytes();
    type Case<'a> = (&'a [u8], &'a str, LayerArgs<'a>, &'a str, ByteRange);
    let cases: [Case<'_>; 5] = [
        (
            &gpt,
            "partition",
            &[("number", "2")],
            "partition:2",
            sectors(200, 300),
        ),
        (
            &logical,
            "partition",
            &[("number", "6")],
            "partition:6",
            sectors(320, 50),
        ),
        (
            &gpt,
            "offset",
            &[("offset", "100"), ("size", "70001")],
            "offset",
            bytes(100, 70_001),
        ),
        (
            &gpt,
            "offset",
            &[("offset", "1000K")],
            "offset",
            sectors(2000, 48),
        ),
        (
            &gpt,
            "offset",
            &[("offset", "1M")],
            "offset",
            sectors(2048, 0),
        ),
    ];
    for (image, layer, args, name, range) in cases {
        let expected = image[range.start() as usize..range.end() as usize].to_vec();
        for block in [1, 4096] {
            let open = || {
                let (below, _) = StrictDisk::new(block).volume(image.to_vec());
                (open_layer(layer, args, &below).unwrap(), expected.clone())
            };
            assert_eq!(open().0.name(), name);
            conformance::check(open);
            conformance::check_writer(open);
        }
        conformance::check_errors(name, image, |below| open_layer(layer, args, below));
    }
}

#[test]
fn writes_to_a_partition_stay_in_it() {
    let before = Disk::new(SECTORS, GPT).bytes();
    let (below, disk) = StrictDisk::new(4096).volume(before.clone());
    let volume = open_layer("partition", &[("number", "1")], &below).unwrap();
    let new = noise(volume.size() as usize, 77);
    volume.writer().unwrap().write_at(&new, 0, true).unwrap();
    let mut expected = before;
    expected[sector(64)..sector(164)].copy_from_slice(&new);
    assert!(disk.durable() == expected);
}

#[test]
fn neighbours_in_one_block_written_through_two_partitions_are_not_lost() {
    // Sector 163 ends the first partition, 164 starts the second: one block of 4096 bytes.
    let script = "label: dos\n1 : start=64, size=100\n2 : start=164, size=100\n";
    let image = Disk::new(SECTORS, script).bytes();
    let (below, disk) = StrictDisk::new(4096).volume(image);
    let partition = |number| open_layer("partition", &[("number", number)], &below).unwrap();
    let (first, second) = (partition("1"), partition("2"));
    std::thread::scope(|scope| {
        for (volume, offset, byte) in [(&first, 99 * 512, 1), (&second, 0, 2)] {
            scope.spawn(move || {
                let writer = volume.writer().unwrap();
                for at in 0..512 {
                    writer.write_at(&[byte], offset + at, false).unwrap();
                }
            });
        }
    });
    let bytes = disk.bytes();
    assert!(bytes[sector(163)..sector(164)] == [1; 512]);
    assert!(bytes[sector(164)..sector(165)] == [2; 512]);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let below = Memory::volume(Disk::new(SECTORS, GPT).bytes());
    let size = below.size().to_string();
    let beyond = (below.size() + 1).to_string();
    let most = u64::MAX.to_string();
    let cases: [(&str, LayerArgs<'_>, &str); 9] = [
        ("offset", &[("offset", &beyond)], "beyond its 1048576 bytes"),
        ("offset", &[("offset", &most)], "beyond its 1048576 bytes"),
        (
            "offset",
            &[("offset", &size), ("size", "1")],
            "1 bytes at 1048576",
        ),
        (
            "offset",
            &[("offset", "1"), ("size", &most)],
            "are not within its",
        ),
        ("offset", &[("size", "x")], "\"x\" is not a number of bytes"),
        ("partition", &[], "which partition is not said"),
        ("partition", &[("number", "-1")], "\"-1\" is not the number"),
        (
            "partition",
            &[("number", "4")],
            "the GPT has no partition 4",
        ),
        (
            "partition",
            &[("number", "1"), ("sector", "520")],
            "\"520\" bytes",
        ),
    ];
    for (layer, args, text) in cases {
        let error = open_layer(layer, args, &below).unwrap_err();
        let found = error.to_string();
        assert!(found.contains(text), "{found}");
        assert!(found.starts_with(&format!("{layer}: ")), "{found}");
    }
}
