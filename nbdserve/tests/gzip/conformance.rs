//! The suite that all layers run through.

use nbdserve::testing::conformance;
use nbdserve::{Access, Cx, Volume};

use crate::tools::{MIB, bgzip, gzip, image, open, open_on, roomy};

fn cx_for(budget: u64, verify: bool) -> Cx {
    let mut cx = Cx::new(budget);
    cx.verify = verify;
    cx
}

#[test]
fn with_spans_in_memory() {
    let bytes = image(5 * MIB + 12_345, 21);
    for (file, verify) in [(gzip(&bytes), false), (bgzip(&bytes), true)] {
        let fresh = || {
            let cx = cx_for(256 << 20, verify);
            (open(file.clone(), &cx).unwrap(), bytes.clone())
        };
        conformance::check(fresh);
        let open = |below: &Volume| open_on(below, &cx_for(256 << 20, verify));
        conformance::check_errors("gzip", &file, open);
    }
}

#[test]
fn with_a_budget_that_is_smaller_than_the_image() {
    let bytes = image(14 * MIB, 22);
    let file = gzip(&bytes);
    // A span takes 4 MiB, which is just not too much for memory.
    let fresh = || {
        let volume = open(file.clone(), &Cx::new(18 << 20)).unwrap();
        (volume, bytes.clone())
    };
    conformance::check(fresh);
}

#[test]
fn with_spans_that_are_too_large_for_memory() {
    let bytes = image(5 * MIB, 23);
    for file in [gzip(&bytes), bgzip(&bytes)] {
        let fresh = || {
            let volume = open(file.clone(), &Cx::new(3 << 20)).unwrap();
            (volume, bytes.clone())
        };
        conformance::check(fresh);
    }
}

#[test]
fn with_an_empty_image_and_with_one_byte() {
    for bytes in [vec![], vec![0], vec![1]] {
        for file in [gzip(&bytes), bgzip(&bytes)] {
            let fresh = || (open(file.clone(), &roomy()).unwrap(), bytes.clone());
            conformance::check(fresh);
        }
    }
}

#[test]
fn with_gzip_in_gzip() {
    let bytes = image(9 * MIB, 24);
    let file = gzip(&bgzip(&bytes));
    let fresh = || {
        // Little memory and few threads, all shared: what waits for what matters here.
        let cx = Cx::new(18 << 20);
        let middle = open(file.clone(), &cx).unwrap();
        (open_on(&middle, &cx).unwrap(), bytes.clone())
    };
    conformance::check(fresh);
}

#[test]
fn the_cost_of_a_jump_is_told() {
    let bytes = image(20 * MIB, 25);
    let Access::Block(span) = open(gzip(&bytes), &roomy()).unwrap().geometry().access else {
        panic!("spans");
    };
    assert!((4 << 20..5 << 20).contains(&span), "{span}");
    let Access::Block(span) = open(bgzip(&bytes), &roomy()).unwrap().geometry().access else {
        panic!("blocks");
    };
    assert!((1 << 20..1 << 21).contains(&span), "{span}");
    let small = open(gzip(&bytes[..MIB]), &roomy()).unwrap();
    assert_eq!(small.geometry().access, Access::Random);
}
