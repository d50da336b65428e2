//! Partition tables as sfdisk and sgdisk make them and read them, and as enemies make them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod damage;
mod gpt;
mod layers;
mod made;
mod mbr;
mod tables;
