//! Foreign tools, which make images and say what is in them.

use std::ffi::OsStr;
use std::process::Command;

/// A command that finds the tools of the administrator too and speaks English.
#[must_use]
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// Runs a tool to its end and returns what it printed.
///
/// # Panics
/// When it is not there or fails; shows its message.
pub fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    run_command(command(program).args(args))
}

/// Runs a command to its end and returns what it printed.
///
/// # Panics
/// When it is not there or fails; shows its message.
pub fn run_command(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
