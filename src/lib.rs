//! `loopmount`: any disk image, in any wrapping, is a directory, a file or a block device.
//!
//! This package plans (what is this image?) and manages units (make it appear, keep it, take it
//! down as one thing). It moves no data itself: [`nbdserve`] and [`nbdfuse`] do.

pub mod cli;
pub mod log;
pub mod sys;
pub mod target;
pub mod unit;
