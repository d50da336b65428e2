//! The suite that all layers run through.

use nbdserve::testing::conformance;
use nbdserve::{Cx, Volume};

use crate::opening::{keeping, knowing};
use crate::tools::{bzip2, image, open, open_on, roomy};

#[test]
fn after_the_pass_of_a_first_opening() {
    let bytes = image(2_345_678);
    let file = bzip2(&bytes, &["-3"]);
    conformance::check(|| (open(file.clone(), &roomy()).unwrap(), bytes.clone()));
    conformance::check_errors("bzip2", &file, |below: &Volume| open_on(below, &roomy()));
}

#[test]
fn with_an_index_of_an_earlier_opening() {
    let bytes = image(1_600_000);
    for (level, budget, verify) in [
        ("-1", 128 << 20, false),
        ("-9", 128 << 20, true),
        ("-5", 10 << 20, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = bzip2(&bytes, &[level]);
        let knowing = knowing(folder.path(), &file, budget);
        let cx = || {
            let mut cx = Cx::new(budget);
            cx.place.clone_from(&knowing.place);
            cx.verify = verify;
            cx
        };
        conformance::check(|| (open(file.clone(), &cx()).unwrap(), bytes.clone()));
        conformance::check_errors("bzip2", &file, |below: &Volume| open_on(below, &cx()));
    }
}

#[test]
fn with_an_empty_image_and_with_one_byte() {
    for bytes in [vec![], vec![0], vec![1]] {
        let file = bzip2(&bytes, &[]);
        conformance::check(|| (open(file.clone(), &roomy()).unwrap(), bytes.clone()));
    }
}

#[test]
fn with_bzip2_in_bzip2() {
    let bytes = image(1_500_000);
    let file = bzip2(&bzip2(&bytes, &["-1"]), &["-1"]);
    let folder = tempfile::tempdir().unwrap();
    let fresh = || {
        let outer = keeping(folder.path(), 24 << 20);
        let middle = open(file.clone(), &outer).unwrap();
        let mut inner: Cx = outer.clone();
        inner.place = outer.place.map(|place| place.inside("bzip2"));
        (open_on(&middle, &inner).unwrap(), bytes.clone())
    };
    conformance::check(fresh);
}
