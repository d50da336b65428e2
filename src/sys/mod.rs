//! Everything that talks to the kernel by number: netlink, ioctls, pidfds, mounts. All `unsafe`
//! of the package. Each wrapper is small and typed and says in its error what was tried.
#![allow(unsafe_code)]

pub mod block;
pub mod loopdev;
pub mod mount;
pub mod mountinfo;
pub mod namespace;
pub mod nbd;
mod netlink;
pub mod process;
pub mod rights;
pub mod terminal;
