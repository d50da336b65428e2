//! The suite that all layers run through.

use nbdserve::testing::conformance;
use nbdserve::testing::packed;
use nbdserve::{Access, Cx, Volume};

use crate::tools::{MIB, image, lz4, lz4_sized, noise, open, open_on, roomy};

fn check(bytes: &[u8], file: &[u8], budget: u64) {
    for verify in [false, true] {
        let cx = || {
            let mut cx = Cx::new(budget);
            cx.verify = verify;
            cx
        };
        let fresh = || (open(file.to_vec(), &cx()).unwrap(), bytes.to_vec());
        conformance::check(fresh);
        let open = |below: &Volume| open_on(below, &cx());
        conformance::check_errors("lz4", file, open);
    }
}

#[test]
fn with_independent_blocks() {
    let bytes = image(3 * MIB + 12_345, 21);
    check(&bytes, &lz4(&bytes, &["-B4"]), 256 << 20);
    check(&bytes, &lz4_sized(&bytes, &["-B6", "-BX"]), 256 << 20);
}

#[test]
fn with_linked_blocks() {
    let bytes = image(9 * MIB + 12_345, 22);
    check(&bytes, &lz4(&bytes, &["-B4", "-BD"]), 256 << 20);
}

#[test]
fn with_a_budget_that_is_smaller_than_the_image() {
    let bytes = image(8 * MIB, 23);
    for file in [lz4(&bytes, &["-B4"]), lz4(&bytes, &["-B4", "-BD"])] {
        let fresh = || {
            (
                open(file.clone(), &Cx::new(7 << 20)).unwrap(),
                bytes.clone(),
            )
        };
        conformance::check(fresh);
    }
}

#[test]
fn with_a_legacy_frame() {
    let bytes = image(9 * MIB, 24);
    check(&bytes, &lz4(&bytes, &["-l"]), 64 << 20);
}

#[test]
fn with_an_empty_image_and_with_one_byte() {
    for bytes in [vec![], vec![0]] {
        for args in [&["-B7"][..], &["-BD"], &["-l"]] {
            let file = lz4(&bytes, args);
            let fresh = || (open(file.clone(), &roomy()).unwrap(), bytes.clone());
            conformance::check(fresh);
        }
    }
}

#[test]
fn with_lz4_in_lz4() {
    let bytes = image(2 * MIB, 26);
    let inner = lz4(&bytes, &["-B4"]);
    let outer = lz4(&inner, &["-B4", "-BD"]);
    let fresh = || {
        // Little memory and few threads, all shared: what waits for what matters here.
        let cx = Cx::new(6 << 20);
        let middle = open(outer.clone(), &cx).unwrap();
        (open_on(&middle, &cx).unwrap(), bytes.clone())
    };
    conformance::check(fresh);
}

#[test]
fn the_cost_of_a_jump_is_told() {
    let bytes = noise(12 * MIB, 27);
    let small = open(lz4(&bytes, &["-B4"]), &roomy()).unwrap();
    assert_eq!(small.geometry().access, Access::Block(1 << 20));
    let large = open(lz4(&bytes, &["-B7"]), &roomy()).unwrap();
    assert_eq!(large.geometry().access, Access::Block(4 << 20));
}

#[test]
fn the_budget_holds_with_many_readers() {
    let bytes = image(24 * MIB, 28);
    for args in [&["-B4"][..], &["-B5", "-BD"]] {
        let cx = Cx::new(20 << 20);
        let volume = open(lz4(&bytes, args), &cx).unwrap();
        packed::assert_budget_holds(&volume, &bytes, &cx);
    }
}
