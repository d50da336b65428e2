//! The zip layer against zip, unzip and bsdtar, and against archives that lie.
#![allow(clippy::unwrap_used)]

mod damage;
mod deflated;
mod good;
mod tools;
