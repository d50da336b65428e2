//! Standard output and standard error, which somebody may have stopped reading.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stderr, stdout};

use nbdserve::{Error, Result};

/// Prints `text` as it is on standard output.
///
/// # Errors
/// When it cannot be written; that nobody reads any more (`| head`) is no error.
pub fn print(text: impl Display) -> Result<()> {
    let mut out = stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::io("cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}

/// Prints a line on standard error, if it can be written: there is nobody else to be told.
pub fn tell(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}
