//! See `nbdserve::testing::fuzz`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nbdserve::testing::fuzz::run("deflate_zeroes", data));
