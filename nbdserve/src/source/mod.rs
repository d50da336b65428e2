//! Where the bytes are.

mod file;
pub mod http;
mod lock;
mod memory;
pub mod split;

pub use file::{File, OpenMode};
pub use http::{Http, HttpIdentity, HttpOptions, HttpStats};
pub use memory::Memory;
