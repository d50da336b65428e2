//! The NBD protocol as bytes: no sockets, no devices.
//!
//! [`wire`] has the numbers, [`request`] the transmission phase (decode, check, reply), [`errno`]
//! the errors that may go over the wire. Source: the NBD protocol document (`proto.md` of the
//! NetworkBlockDevice project), section "Transmission phase".
#![deny(clippy::arithmetic_side_effects, clippy::as_conversions)]

pub mod errno;
pub mod request;
pub mod wire;

pub use errno::Errno;
pub use request::{Header, Request, Rules, SimpleReply};
pub use wire::{Command, CommandFlags, TransmissionFlags};
