//! The suite that all layers run through.

use nbdserve::testing::{Counting, conformance};
use nbdserve::{Access, ByteRange, Cx, Volume};

use crate::tools::{MIB, image, open, open_on, roomy, xz};

fn cx_for(budget: u64, verify: bool) -> Cx {
    let mut cx = Cx::new(budget);
    cx.verify = verify;
    cx
}

#[test]
fn with_blocks_in_memory() {
    let bytes = image(2 * MIB + 12_345, 21);
    let compressed = xz(&bytes, &["-0", "--block-size=100001"]);
    for verify in [false, true] {
        let fresh = || {
            let cx = cx_for(256 << 20, verify);
            (open(compressed.clone(), &cx).unwrap(), bytes.clone())
        };
        conformance::check(fresh);
        let open = |below: &Volume| open_on(below, &cx_for(256 << 20, verify));
        conformance::check_errors("xz", &compressed, open);
    }
}

#[test]
fn with_a_budget_that_is_smaller_than_the_image() {
    let bytes = image(6 * MIB, 22);
    // A decoder takes 1.4 MiB of it; eight blocks do not fit beside it.
    let compressed = xz(
        &bytes,
        &["--lzma2=preset=0,dict=64KiB", "--block-size=500000"],
    );
    let fresh = || {
        let volume = open(compressed.clone(), &Cx::new(4 << 20)).unwrap();
        (volume, bytes.clone())
    };
    conformance::check(fresh);
}

#[test]
fn with_one_huge_block_and_with_several() {
    let bytes = image(4 * MIB, 23);
    for args in [&["-0"][..], &["-0", "--block-size=1500000"]] {
        let compressed = xz(&bytes, args);
        for verify in [false, true] {
            let fresh = || {
                let cx = cx_for(5 << 20, verify);
                (open(compressed.clone(), &cx).unwrap(), bytes.clone())
            };
            conformance::check(fresh);
            let open = |below: &Volume| open_on(below, &cx_for(5 << 20, verify));
            conformance::check_errors("xz", &compressed, open);
        }
    }
}

#[test]
fn with_an_empty_image_and_with_one_byte() {
    for bytes in [vec![], vec![0]] {
        let compressed = xz(&bytes, &[]);
        let fresh = || (open(compressed.clone(), &roomy()).unwrap(), bytes.clone());
        conformance::check(fresh);
    }
}

#[test]
fn with_xz_in_xz() {
    let bytes = image(2 * MIB, 24);
    let inner = xz(&bytes, &["-0", "--block-size=200000"]);
    let outer = xz(&inner, &["-0", "--block-size=50000"]);
    let fresh = || {
        // Little memory and few threads, all shared: what waits for what matters here.
        let cx = Cx::new(3 << 20);
        let middle = open(outer.clone(), &cx).unwrap();
        (open_on(&middle, &cx).unwrap(), bytes.clone())
    };
    conformance::check(fresh);
}

#[test]
fn opening_costs_a_few_requests_whatever_the_number_of_streams() {
    let part = xz(b"a small stream", &["-0"]);
    let mut compressed = Vec::new();
    for _ in 0..2000 {
        compressed.extend(&part);
        compressed.extend([0; 8]);
    }
    compressed.extend(vec![0; 3 * MIB]);
    let size = compressed.len() as u64;
    let (below, counts) = Counting::volume(nbdserve::source::Memory::volume(compressed));
    let volume = open_on(&below, &roomy()).unwrap();
    assert_eq!(volume.size(), 2000 * 14);
    assert!(counts.reads() <= 12, "{} requests", counts.reads());
    assert!(counts.read_bytes() < size + (2 << 20));
}

#[test]
fn the_cost_of_a_jump_is_told() {
    let bytes = image(3 * MIB, 25);
    let blocks = open(xz(&bytes, &["-0", "--block-size=1MiB"]), &roomy()).unwrap();
    assert_eq!(blocks.geometry().access, Access::Block(1 << 20));
    let small = open(xz(&bytes[..MIB], &["-0"]), &roomy()).unwrap();
    assert_eq!(small.geometry().access, Access::Random);
    let huge = vec![0; 65 * MIB];
    let huge = open(xz(&huge, &["-0"]), &Cx::new(128 << 20)).unwrap();
    assert_eq!(huge.geometry().access, Access::FirstPass);
}

#[test]
fn zeroes_are_known_in_pieces_and_in_blocks_that_nobody_has_read() {
    let mut bytes = vec![0; 16 * MIB];
    bytes[9 * MIB] = 1;
    let volume = open(xz(&bytes, &["-0", "--block-size=2MiB"]), &roomy()).unwrap();
    let extents = volume
        .extents(ByteRange::between(0, volume.size()))
        .unwrap();
    let zero: u64 = extents
        .runs()
        .iter()
        .filter(|run| run.flags.zero)
        .map(|run| run.range.len())
        .sum();
    assert_eq!(zero, (16 << 20) - (256 << 10), "all but one piece");
}
