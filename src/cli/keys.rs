//! Options for keys and passphrases.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use nbdserve::Result;

use super::args::parse_size_arg;
use crate::unit::front::Terminal;
use crate::unit::secrets::{KeyOptions, Keys};

/// Where keys come from. Without any of these the terminal is asked.
#[derive(Debug, Default, Args)]
pub struct KeyArgs {
    /// Key of an encrypted image: FILE as it is, or - (repeat to try more)
    #[arg(long = "key-file", value_name = "FILE")]
    pub key_file: Vec<PathBuf>,

    /// Bytes of the key file before the key
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg, requires = "key_file")]
    #[arg(hide_short_help = true)]
    pub key_file_offset: Option<u64>,

    /// Bytes of the key, where it is not all of the key file
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg, requires = "key_file")]
    #[arg(hide_short_help = true)]
    pub key_file_size: Option<u64>,

    /// Passphrase of an encrypted image, from descriptor N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    #[arg(conflicts_with = "key_file")]
    pub key_fd: Option<RawFd>,
}

impl KeyArgs {
    /// Whether there are any.
    pub(super) fn is_given(&self) -> bool {
        !self.key_file.is_empty() || self.key_fd.is_some()
    }

    /// Opens them. To be called before anything else is opened; `terminal` is asked where there are
    /// none.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub(super) fn open(&self, terminal: &Arc<Terminal>) -> Result<Arc<Keys>> {
        let options = KeyOptions {
            files: self.key_file.clone(),
            descriptor: self.key_fd,
            offset: self.key_file_offset.unwrap_or(0),
            size: self.key_file_size,
        };
        Keys::open(&options, terminal).map(Arc::new)
    }
}
