//! The cache on disk below real layers: whatever becomes of it and of those who write to it, a layer
//! gives the bytes of its image or an error.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod killed;
mod lost;
mod rotten;
mod tools;
