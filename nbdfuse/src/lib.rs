//! A volume as a FUSE file, a file system as a FUSE tree.
//!
//! ```text
//!  Volume ──────────────────────► file::serve_file ─┐
//!  Volume ─► tree::open ─► dyn FileSystem ─► tree::serve_tree ─┴─► Session (threads on /dev/fuse)
//! ```
//!
//! [`mount`] attaches a FUSE connection to a mount point and gives its file descriptor; [`mod@file`]
//! and [`tree`] serve it. The protocol itself (crate fuser) is known to the private module `fuse`
//! alone. This crate knows no command line and no unit.

pub mod file;
mod fuse;
pub mod mount;
pub mod tree;

pub use fuse::Session;
