//! Decoded blocks and the threads that decode them.
//!
//! A layer whose format is cut into blocks (xz blocks, gzip and zstd frames, compressed clusters)
//! says with [`Decode`] how one block is decoded and reads through [`Blocks`]. That gives it:
//!
//! * one decode per block, however many readers wait, on all cores ([`Pool`]);
//! * an answer as soon as the asked bytes of a block are decoded, unless checks come first;
//! * one budget for decoded blocks and decoders of all layers ([`BlockCache`]);
//! * blocks too large for that budget decoded once, into a temp file;
//! * damage remembered: a block whose check failed gives the same error from then on.

mod block;
mod blocks;
mod budget;
mod job;
mod lru;
mod pass;
mod pool;
mod streams;
mod temp;

pub use blocks::{Blocks, Decode, Huge};
pub use job::Job;
pub use lru::BlockCache;
pub use pool::{Pool, Priority, Work};
pub(crate) use temp::TempFile;
