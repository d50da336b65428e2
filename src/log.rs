//! Where messages go: those of background processes to a file, those of the command to standard
//! error when they are asked for.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

/// Overrules `-v`.
const VARIABLE: &str = "LOOPMOUNT_LOG";

/// The level for `-v` given this often; `LOOPMOUNT_LOG` overrules it.
fn filter(verbosity: u8) -> EnvFilter {
    let level = match verbosity {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(level))
}

/// Sends messages to a file, which is appended to. Where that is not possible there are none.
pub fn to_file(path: &Path, verbosity: u8) {
    let Ok(file) = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
    else {
        return;
    };
    // A second initialisation in the same process changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        .with_target(false)
        .with_env_filter(filter(verbosity))
        .try_init();
}

/// Sends the messages of the command itself to standard error, when `-v` or `LOOPMOUNT_LOG` asks for
/// them. What the user has to know is printed whether or not this was called.
pub fn of_command(verbosity: u8) {
    if verbosity == 0 && std::env::var_os(VARIABLE).is_none() {
        return;
    }
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_env_filter(filter(verbosity))
        .try_init();
}
