//! Which layers an image has, which partition is meant, and how that is told.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod choice;
mod information;
mod layers;
mod made;
mod record;
