//! Foreign tools, which make images and say what is in them.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// Unmounts what the test itself may have had files open of: a child that another thread has just
/// forked holds them until it has started its program.
///
/// # Panics
/// When `umount` fails, or still finds it busy after half a minute.
pub fn umount(point: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let output = command("umount").arg(point).output().expect("umount");
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            return;
        }
        let again = said.contains("busy") && Instant::now() < deadline;
        assert!(again, "umount {}: {said}", point.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `program ARGS < input`: what it prints.
///
/// # Panics
/// When it is not there or fails.
#[must_use]
pub fn filter(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = command(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A tool that stops reading says why by its exit code.
            let _ = stdin.map(|mut stdin| stdin.write_all(input));
        });
        child.wait_with_output()
    });
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}");
    output.stdout
}
