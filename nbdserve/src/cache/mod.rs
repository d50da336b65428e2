//! Decoded blocks and the threads that decode them.
//!
//! A layer whose format is cut into blocks (xz blocks, gzip and zstd frames, compressed clusters)
//! says with [`Decode`] how one block is decoded and reads through [`Blocks`]. That gives it:
//!
//! * one decode per block, however many readers wait, on all cores ([`Pool`]);
//! * an answer as soon as the asked bytes of a block are decoded, unless checks come first;
//! * one budget for decoded blocks and decoders of all layers ([`BlockCache`]);
//! * blocks too large for that budget decoded once, into the cache on disk or a temp file;
//! * blocks of slow formats kept in the cache on disk, so that the next mount decodes none of them;
//! * damage remembered: a block whose check failed gives the same error from then on.
//!
//! Where a block's length is not known before it was decoded, that is done at opening, into the same
//! places ([`Shelf`]).

mod backing;
mod behind;
mod block;
mod blocks;
mod budget;
mod charge;
mod job;
mod keeper;
mod kept;
mod lru;
mod marks;
mod pass;
mod patience;
mod pool;
mod running;
mod shared;
mod spares;
mod streams;
mod temp;
mod whole;
mod zeroes;

pub use crate::sys::memory::Room;
pub use blocks::{Blocks, Decode, Huge};
pub use charge::Charge;
pub use job::Job;
pub(crate) use kept::Kept;
pub use lru::BlockCache;
pub use pool::{Pool, Priority, Work};
pub(crate) use temp::TempFile;
pub use whole::{OpeningMemory, Shelf, Stored, Whole};

/// Takes decoded bytes in order, from a decoder that serves a [`Job`] and a [`Whole`] alike.
pub trait Sink {
    /// Where the next bytes go. Empty when no more are expected.
    ///
    /// # Errors
    /// When the unit is being taken down.
    fn spare(&mut self) -> crate::Result<&mut [u8]>;

    /// `len` bytes of [`Self::spare`] or [`Self::room`] were filled.
    ///
    /// # Errors
    /// When they cannot be stored.
    fn advance(&mut self, len: usize) -> crate::Result<()>;

    /// All memory that there is, for a decoder that writes there and looks back into it; `None` where
    /// the bytes are taken away as they come.
    ///
    /// # Errors
    /// When the unit is being taken down.
    fn room(&mut self) -> crate::Result<Option<Room<'_>>> {
        Ok(None)
    }

    /// The next `len` bytes are zero.
    ///
    /// # Errors
    /// As [`Self::spare`] and [`Self::advance`].
    fn zeroes(&mut self, mut len: usize) -> crate::Result<()> {
        while len > 0 {
            let spare = self.spare()?;
            let now = spare.len().min(len);
            spare[..now].fill(0);
            self.advance(now)?;
            len -= now;
        }
        Ok(())
    }

    /// A sign of life: input has come. To be called for each request to the volume below.
    ///
    /// # Errors
    /// When the unit is being taken down.
    fn beat(&self) -> crate::Result<()>;
}
