//! Keys and passphrases as a part of the unit.
//!
//! ```text
//!  launcher    keys/     has them: key files, a descriptor, the person at the terminal
//!     │        link.rs   a socket of their own, whose one end the supervisor only passes on
//!  server      link.rs   asks for the layers of the image
//! ```
//!
//! They are in no argument, environment, record or log, and in the memory of these two processes
//! alone, neither of which can be dumped from then on.

mod keys;
mod link;

pub use keys::{KeyOptions, Keys};
pub use link::{Asker, Asking};
