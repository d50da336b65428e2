//! The tar layer against GNU tar and bsdtar, and against archives that lie.
#![allow(clippy::unwrap_used)]

mod choice;
mod conformance;
mod damage;
mod forge;
mod good;
mod holes;
mod kept;
mod ova;
mod tools;
