//! The suite that all layers run through.

use nbdserve::testing::conformance;
use nbdserve::testing::packed;
use nbdserve::{Access, Cx, Volume};

use crate::tools::{MIB, image, noise, open, open_on, piped, pzstd, roomy, seekable, zstd};

fn cx_for(budget: u64, verify: bool) -> Cx {
    let mut cx = Cx::new(budget);
    cx.verify = verify;
    cx
}

fn check(bytes: &[u8], file: &[u8], budget: u64) {
    for verify in [false, true] {
        let fresh = || {
            let cx = cx_for(budget, verify);
            (open(file.to_vec(), &cx).unwrap(), bytes.to_vec())
        };
        conformance::check(fresh);
        let open = |below: &Volume| open_on(below, &cx_for(budget, verify));
        conformance::check_errors("zstd", file, open);
    }
}

/// Frames of `step` bytes.
fn frames(bytes: &[u8], step: usize) -> Vec<u8> {
    let parts = bytes.chunks(step).map(|part| zstd(part, &["-1"]));
    parts.collect::<Vec<_>>().concat()
}

#[test]
fn with_frames_in_memory() {
    let bytes = image(3 * MIB + 12_345, 21);
    check(&bytes, &frames(&bytes, 100_001), 256 << 20);
}

#[test]
fn with_a_budget_that_is_smaller_than_the_image() {
    let bytes = image(8 * MIB, 22);
    let file = frames(&bytes, 400_000);
    let fresh = || {
        (
            open(file.clone(), &Cx::new(6 << 20)).unwrap(),
            bytes.clone(),
        )
    };
    conformance::check(fresh);
}

#[test]
fn with_one_huge_frame_and_with_several() {
    let bytes = image(6 * MIB, 23);
    check(&bytes, &zstd(&bytes, &["-1"]), 8 << 20);
    check(&bytes, &frames(&bytes, 5 * MIB / 2), 8 << 20);
}

#[test]
fn with_frames_that_do_not_say_their_size() {
    let bytes = image(6 * MIB, 24);
    check(&bytes, &piped(&bytes, &["-1"]), 8 << 20);
    check(&bytes, &pzstd(&bytes, &["-1", "-p", "2"]), 64 << 20);
}

#[test]
fn with_a_seek_table() {
    let bytes = image(3 * MIB, 25);
    check(&bytes, &seekable(&bytes, 200_000, true), 64 << 20);
}

#[test]
fn with_an_empty_image_and_with_one_byte() {
    for bytes in [vec![], vec![0]] {
        let file = zstd(&bytes, &[]);
        let fresh = || (open(file.clone(), &roomy()).unwrap(), bytes.clone());
        conformance::check(fresh);
    }
}

#[test]
fn with_zstd_in_zstd() {
    let bytes = image(2 * MIB, 26);
    let inner = frames(&bytes, 200_000);
    let outer = frames(&inner, 50_000);
    let fresh = || {
        // Little memory and few threads, all shared: what waits for what matters here.
        let cx = Cx::new(4 << 20);
        let middle = open(outer.clone(), &cx).unwrap();
        (open_on(&middle, &cx).unwrap(), bytes.clone())
    };
    conformance::check(fresh);
}

#[test]
fn the_cost_of_a_jump_is_told() {
    let bytes = noise(3 * MIB, 27);
    let blocks = open(frames(&bytes, MIB), &roomy()).unwrap();
    assert_eq!(blocks.geometry().access, Access::Block(1 << 20));
    let huge = vec![0; 65 * MIB];
    let huge = open(zstd(&huge, &["-1"]), &Cx::new(128 << 20)).unwrap();
    assert_eq!(huge.geometry().access, Access::FirstPass);
}

#[test]
fn the_budget_holds_with_many_readers() {
    let bytes = image(24 * MIB, 28);
    let cx = Cx::new(12 << 20);
    let volume = open(frames(&bytes, MIB), &cx).unwrap();
    packed::assert_budget_holds(&volume, &bytes, &cx);
}
